"""What a reader meets first: links that lead somewhere, numbers that a run printed, a tree of what is there."""

import csv
import functools
import json
import re
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from faithlab import notebook_costs, readme
from faithlab.arms import arm_names
from faithlab.errors import FaithlabError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
README = (ROOT / "README.md").read_text()
TEACHING = (ROOT / "notebooks" / "TEACHING.md").read_text()
PAGES = sorted(p for p in ROOT.rglob("*.md") if not {".venv", "runs", ".git"} & set(p.relative_to(ROOT).parts))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def prose(path):
    """What a reader sees as text: a page without its blocks of code, or the markdown cells of a notebook."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(path):
    """The anchors of a page's headings: GitHub's on a page, Jupyter's in a notebook."""
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", t) for t in re.findall(r"^#+ +(.*?) *$", prose(path), re.MULTILINE)]
    if path.suffix == ".ipynb":
        return {t.replace(" ", "-") for t in titles}
    slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
    return {f"{slug}-{n}" if (n := slugs[:i].count(slug)) else slug for i, slug in enumerate(slugs)}


def broken_links(page):
    """What is wrong with a page's links: their form, the file that they lead to, the section in it."""
    wrong = []
    for target in re.findall(r"\]\(([^)]*)\)", prose(page)) + re.findall(r"\bhttps?:[^\s)>\]`\"]+", prose(page)):
        file, _, section = target.partition("#")
        where = page.parent / file if file else page
        if not target or re.search(r"\s", target):
            wrong.append(f"{target!r} is empty or has a space in it")
        elif re.match(r"\w+:", target):
            if not re.fullmatch(r"https://[\w-]+(\.[\w-]+)+([/#?]\S*)?|mailto:\S+@\S+", target):
                wrong.append(f"{target} is no address that begins with https://")
        elif not where.exists():
            wrong.append(f"{target} does not exist")
        elif section and (where.suffix not in (".md", ".ipynb") or section not in anchors(where)):
            wrong.append(f"{target}: {where.name} has no such section")
    return wrong


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.hub
def test_addresses_outside_answer():
    """Every address of the pages and notebooks, asked once; 403 and 429 are of sites that serve people only."""
    found = {t for page in [*PAGES, *NOTEBOOKS] for t in re.findall(r"\]\((https://[^)\s]*)\)", prose(page))}
    dead = []
    for address in sorted({t.partition("#")[0] for t in found}):
        asked = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (links of faithlab)"})
        try:
            urllib.request.urlopen(asked, timeout=30).close()
        except urllib.error.HTTPError as error:
            dead += [f"{address}: {error.code}"] if error.code not in (403, 429) else []
        except OSError as error:
            dead.append(f"{address}: {error}")
    assert found and not dead


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `name` of 2, and more\n## Twice\n## Twice\n```\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#a-name-of-2-and-more) [c](other.md#twice-1) [d](#here) [e](https://a.org/b#c)"
    bad = ["no.md", "other.md#no-heading", "other.md#twice-2", "#there", "http://a.org", "other .md", "https:/a.org"]
    page, notebook = tmp_path / "page.md", tmp_path / "01_a.ipynb"
    page.write_text(f"# Here\n{good}\n```\n[f](in_code.md)\n```\n" + " ".join(f"[x]({target})" for target in bad))
    found = broken_links(page)
    assert all(any(target in line for line in found) for target in bad)
    assert not re.search(r"org/b|a-name|twice-1|#here|in_code", " ".join(found))
    cells = [dict(cell_type="markdown", source=["# Two words\n", "[x](no.md) [y](#Two-words) [z](#two-words)"])]
    notebook.write_text(json.dumps(dict(cells=[*cells, dict(cell_type="code", source=["[f](in_code.md)"])])))
    assert broken_links(notebook) == ["no.md does not exist", "#two-words: 01_a.ipynb has no such section"]


def test_tables_are_those_of_the_committed_run():
    costs = notebook_costs.read(RESULTS)
    assert readme.written(README, RESULTS) == README, "run python -m faithlab.readme"
    assert readme.with_lessons(TEACHING, costs) == TEACHING, "run python -m faithlab.readme"
    assert set(costs) == {p.stem for p in NOTEBOOKS}
    for path in NOTEBOOKS:
        head = "".join(json.loads(path.read_text())["cells"][0]["source"])
        assert all(line in head for line in notebook_costs.box_lines(costs[path.stem])), path.name


def test_every_row_of_results_has_the_command_that_makes_it():
    with (RESULTS / "notebooks.csv").open() as file:
        printed = {(row["notebook"][:2], row["quantity"], row["reasoner"]) for row in csv.DictReader(file)}
    named = {words: quantity for quantity, words in readme.WORDS.items()}
    table = README.split("<!-- results -->\n")[1].split("\n\n")[0].splitlines()[2:]
    rows = [re.fullmatch(r"\| (.+?) \| (\w+) \| .* \| `make run NOTEBOOKS=(\d\d)` \|", line) for line in table]
    assert len(rows) > 30 and all(rows)
    assert all(
        (number, named.get(what, what), reasoner) in printed for what, reasoner, number in map(re.Match.groups, rows)
    )
    assert set(named) <= {row[1] for row in rows}, "a wording that no row has"


def test_arms_that_the_readme_names_are_shipped():
    arms = set(re.findall(r"\b((?:shortcut|text|credit|countdown)_\w+?)(?=[-` ])", README))
    assert len(arms) > 3 and arms <= set(arm_names())


def test_a_row_of_results_as_it_is_written(tmp_path, monkeypatch):
    path, head = tmp_path / "notebooks.csv", "notebook,profile,reasoner,quantity,value,low,high,n,unit\n"
    path.write_text(head + "03_b,laptop,abacus,lost,-0.004,-0.126,0.5,7,nats\n02_a,laptop,abacus,lost,1,,,7,\n")
    monkeypatch.setattr(readme, "SHOWN", [("03_b", "{}")])
    monkeypatch.setattr(readme, "WORDS", {"lost": "in words"})
    row = "| in words | abacus | 0.00 nats | -0.13 to 0.50 | 7 | `make run NOTEBOOKS=03` |"
    assert readme.results_table(path).splitlines()[2:] == [row]
    monkeypatch.setattr(readme, "SHOWN", [("04_c", "lost")])
    with pytest.raises(FaithlabError, match="holds no 'lost' of 04_c"):
        readme.results_table(path)


def test_lessons_and_the_last_row_of_notebooks_add_them_up():
    with (RESULTS / "notebook_costs.csv").open() as file:
        costs = {row["notebook"][:2]: row for row in csv.DictReader(file)}

    def cells(numbers):
        minutes, seconds = divmod(sum(int(costs[n]["seconds"]) for n in numbers), 60)
        rest = f" {seconds:02d} s" if seconds else ""
        return f"{minutes} min{rest} | {max(float(costs[n]['peak_mb']) for n in numbers) / 1000:.1f} GB"

    lessons = re.findall(r"^\| \d \| ([\d, ]+) \| (\d.*? GB) \| .*\? \| .* \|$", TEACHING, re.MULTILINE)
    assert [n for numbers, _ in lessons for n in numbers.split(", ")] == sorted(costs)
    assert [shown for _, shown in lessons] == [cells(numbers.split(", ")) for numbers, _ in lessons]
    assert f"| together | | | {cells(costs)} |" in README


def test_what_was_not_measured_is_no_sum():
    cost = notebook_costs.Cost(90, 1500.0, 2, "laptop")
    costs = {"01_a": cost, "02_b": cost._replace(seconds=60, peak_mb=float("nan")), "03_c": cost._replace(peak_mb=900)}
    for numbers, shown in (("01, 03", "3 min | 1.5 GB"), ("01, 02", "2 min 30 s | not measured"), ("01, 09", "? | ?")):
        filled = readme.with_lessons(f"| 1 | {numbers} | old | old | why? | words |", costs)
        assert filled == f"| 1 | {numbers} | {shown} | why? | words |"
    exercises = "| 1 | 01·1, 02·2 | 20 | 01·2 | 50 | 70 |"
    assert readme.with_lessons(exercises, costs) == exercises


def test_every_notebook_is_in_the_readme():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert f"notebooks/{path.name}" in README


def test_the_first_screen_has_one_figure_and_all_have_alternative_text():
    figures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert figures and all(len(alt) > 30 for alt, _ in figures)
    assert README.split("\n## ")[0].count("![") == 1


def tree():
    """The files and folders that the README's tree names, each with the folder in whose rows it stands."""
    [block] = re.findall(r"## Where things are\n\n```\n(.*?)```", README, re.DOTALL)
    named, folder = [], ""
    for line in block.splitlines():
        folder = folder if line.startswith(" ") else (re.match(r"\S+/(?= )", line) or [""])[0]
        named += [(folder, name) for name in re.findall(r"[\w./-]*\w/(?!\w)|[\w-]+\.\w+|Makefile", line)]
    return named


def test_the_readmes_tree_names_every_module_and_nothing_else():
    for folder, name in tree():
        assert any((base / name).exists() for base in (ROOT, ROOT / folder)), f"{name} in {folder} does not exist"
    package = ROOT / "lib" / "faithlab"
    there = {p.name for p in package.glob("*.py")} | {f"{p.name}/" for p in package.iterdir() if p.is_dir()}
    named = [name for folder, name in tree() if folder == "lib/faithlab/" and name != folder]
    assert set(named) == there - {"__init__.py", "__pycache__/"}
    assert len(named) == len(set(named)), "a module stands twice in the tree"


def test_citation_and_changelog_agree_about_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"] and cited["license"] == project["license"]
    log = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {project['version']} · {cited['date-released']}\n" in log
    days = [re.fullmatch(r"(\d{4}-\d\d-\d\d) · .+", t) for t in re.findall(r"^### (.*)$", log, re.MULTILINE)]
    assert all(days) and [d[1] for d in days] == sorted((d[1] for d in days), reverse=True)
