"""What a reader meets: links that lead somewhere, numbers that a run printed, notebooks that were executed."""

import json
import re
from pathlib import Path

import pytest

from faithlab import api_page, notebook_costs, readme

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in ROOT.rglob("*.md") if not {".venv", "runs", ".git"} & set(p.relative_to(ROOT).parts))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def links(text):
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t and not t.startswith(("#", "mailto:"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in links(page.read_text()):
        assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}, which does not exist"


def test_readme_tables_are_those_of_the_committed_run():
    text, results = (ROOT / "README.md").read_text(), ROOT / "data" / "results"
    assert readme.written(text, results) == text, "run python -m faithlab.readme"
    assert readme.results_table(results / "notebooks.csv").count("\n") > 3
    costs = notebook_costs.read(results)
    assert set(costs) == {p.stem for p in NOTEBOOKS}
    for path in NOTEBOOKS:
        head = "".join(json.loads(path.read_text())["cells"][0]["source"])
        assert all(line in head for line in notebook_costs.box_lines(costs[path.stem])), path.name


def test_every_notebook_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert f"notebooks/{path.name}" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_is_executed_clean_and_readable(path):
    cells = json.loads(path.read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
    assert "papermill" not in path.read_text(), "papermill's metadata must not be committed"
    assert not any("injected-parameters" in c["metadata"].get("tags", []) for c in cells)
    ran = [c["execution_count"] for c in code]
    assert ran == sorted(n for n in ran if n is not None), "every code cell ran, in order"
    assert not any(o["output_type"] == "error" for c in code for o in c["outputs"])
    assert any(o.get("data", {}).get("image/png") for c in code for o in c["outputs"])
    assert max(len("".join(c["source"]).splitlines()) for c in code) <= 26
    assert path.stat().st_size < 1_500_000
    saved = set(re.findall(r'output_dir, "(\w+)"', "".join("".join(c["source"]) for c in code)))
    assert saved and all((ROOT / "figures" / f"{name}.png").is_file() for name in saved)


def test_figures_in_the_readme_have_alternative_text():
    figures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert figures and all(len(alt) > 30 for alt, _ in figures)


def test_nothing_pickled_and_no_machine_paths():
    skip = {".venv", "runs", ".git", ".pytest_cache", ".hypothesis", ".ruff_cache"}
    for path in ROOT.rglob("*"):
        if skip & set(path.relative_to(ROOT).parts) or not path.is_file():
            continue
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin"}, path
        texts = {".py", ".md", ".yml", ".yaml", ".toml", ".ipynb", ".json", ".csv"}
        if path.suffix in texts and "tests" not in path.relative_to(ROOT).parts:
            found = re.search(r"/(home|root|Users)/\w", path.read_text(errors="replace"))
            assert not found, f"{path} names a home folder"


def test_the_page_of_the_interface_is_that_of_the_code():
    assert (ROOT / "lib" / "API.md").read_text() == api_page.page(), "run python -m faithlab.api_page"


def test_every_public_name_is_documented():
    for module in api_page.modules():
        assert module.__doc__, module.__name__
        for name, thing in api_page.public(module):
            assert thing.__doc__ and not thing.__doc__.startswith(f"{name}("), f"{module.__name__}.{name}"
