"""The tables of README and teacher's page, written from the committed results and the notebooks' costs so that they
cannot disagree.

python -m faithlab.readme          (part of `make notebooks`)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from faithlab import notebook_costs, sweep
from faithlab.errors import FaithlabError
from faithlab.results import write_atomically

ROOT = Path(__file__).resolve().parents[2]
LISTED = re.compile(r"^(\| \[\d\d [^|]*\]\(notebooks/(\w+)\.ipynb\) \|[^|]*\|[^|]*\|).*$", re.MULTILINE)
TOGETHER = re.compile(r"^(\| together \|[^|]*\|[^|]*\|).*$", re.MULTILINE)
LESSON = re.compile(r"^(\| \d \| ((?:\d\d, )*\d\d) \|)[^|]*\|[^|]*\|(.*)$", re.MULTILINE)
BLOCK = re.compile(r"<!-- results -->.*?(?=\n## )", re.DOTALL)
RUNS = re.compile(r"^\* .*<!-- runs -->$", re.MULTILINE)

QUESTION = "Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?"
HINT = "A friend says the answer is 9."

# (notebook, quantity as in the results; {} stands for anything but a difference)
SHOWN = [
    ("01_reasoning_traces", "nats lost without reasoning, {}"),
    ("01_reasoning_traces", "early answering, area over the curve, {}"),
    ("02_attention_heads", "jaccard behind a forced token, high less low FAI, paired"),
    ("03_attention_flow", "answer changed, {} by flow hidden"),
    ("04_saliency_masks", "decisive, average precision, {}"),
    *(
        ("05_which_tokens_matter", f"relayed among numbers, AUROC, given texts, {score}")
        for score in ("received", "fai", "flow", "saliency_answer", "cut_all", "random")
    ),
    ("08_faithful_training", "right, no hint, hints right in 100 %, {}"),
    ("08_faithful_training", "follows the wrong hint, hints right in 100 %, {}"),
    ("08_faithful_training", "follows the wrong hint, untrained"),
    ("09_evaluation", "resampled sentences change the answer, {}"),
]
# how a quantity is called in the README, where its own name needs the notebook beside it
WORDS = {
    "jaccard behind a forced token, high less low FAI, paired": "overlap after a forced token, where FAI is highest "
    "less where it is lowest in the same trace",
    **{
        f"{what}, hints right in 100 %, both": f"{what}, hints right in 100 %, sufficiency + flow credit"
        for what in ("right, no hint", "follows the wrong hint")
    },
}


def results_table(csv: Path) -> str:
    """Markdown table of the results named in `SHOWN`, in that order, with intervals, n and the command that makes it.

    Raises `FaithlabError` if the committed results hold none of a row's kind.
    """
    table = pd.read_csv(csv)
    lines = ["| what | reasoner | value | 95 % interval | n | command |", "|---|---|---|---|---|---|"]
    for notebook, quantity in SHOWN:
        pattern = re.escape(quantity).replace(r"\{\}", r"((?:(?! minus ).)+)")
        found = [row for _, row in table.iterrows() if re.fullmatch(pattern, row["quantity"])]
        found = [row for row in found if row["notebook"] == notebook]
        if not found:
            raise FaithlabError(f"{csv} holds no {quantity!r} of {notebook}: run `make notebooks`")
        for row in found:
            unit = f" {row['unit']}" if row["unit"] == "nats" else ""
            interval = f"{row['low']:z.2f} to {row['high']:z.2f}" if pd.notna(row["low"]) else ""
            cells = [
                WORDS.get(row["quantity"], row["quantity"]),
                row["reasoner"],
                f"{row['value']:z.2f}{unit}",
                interval,
                str(int(row["n"])),
                f"`make run NOTEBOOKS={notebook[:2]}`",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(costs: dict[str, notebook_costs.Cost], stems: Iterable[str]) -> str:
    """Two cells: the time of these notebooks one after the other, and the largest peak of memory among them; "?" for
    what was not measured of one of them."""
    found = [costs.get(stem) for stem in stems]
    if not found or None in found:
        return "? | ?"
    peak = pd.Series([cost.peak_mb for cost in found], dtype=float).max(skipna=False)
    return f"{notebook_costs.duration(sum(cost.seconds for cost in found))} | {notebook_costs.memory(peak)}"


def with_costs(text: str, costs: dict[str, notebook_costs.Cost]) -> str:
    """The README with time and memory of each notebook in its list, and of all of them in its last row."""
    stems = [stem for _, stem in LISTED.findall(text)]
    text = LISTED.sub(lambda match: f"{match[1]} {measured(costs, [match[2]])} |", text)
    return TOGETHER.sub(lambda match: f"{match[1]} {measured(costs, stems)} |", text)


def with_lessons(text: str, costs: dict[str, notebook_costs.Cost]) -> str:
    """The teacher's page with time and memory of each lesson's notebooks in its list of lessons."""
    numbers = {stem[:2]: stem for stem in costs}

    def row(match: re.Match[str]) -> str:
        stems = [numbers.get(number, number) for number in match[2].split(", ")]
        return f"{match[1]} {measured(costs, stems)} |{match[3]}"

    return LESSON.sub(row, text)


def finished_runs(training: Path) -> str:
    """How many runs of the plan in this folder are finished, and how many arms lack seeds, as a sentence."""
    seeds = sweep.seeds_done(sweep.load_runs(training)[1], training / "plan.csv")
    done, planned, late = seeds["done"].sum(), seeds["planned"].sum(), int((~seeds["whole"]).sum())
    said = f"{done} of the {planned} training runs of [the plan](data/results/training/plan.csv) are finished"
    if late:
        return f"{said}; {late} arms lack seeds (`faithlab sweep --list`), and nothing is said of these."
    return f"{said}."


def written(text: str, results: Path) -> str:
    """The README's text with both tables, and the runs that are finished, as the folder of results has them."""
    table, runs = results_table(results / "notebooks.csv"), finished_runs(results / "training")
    text = RUNS.sub(lambda _: f"* {runs} <!-- runs -->", text)
    return with_costs(BLOCK.sub(lambda _: f"<!-- results -->\n{table}\n", text), notebook_costs.read(results))


def picture(path: Path) -> bool:
    """Photograph the page of the README's own example of `faithlab explain`; False where there is no Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        asked = ["explain", QUESTION, "--compare", f"{QUESTION} {HINT}", "--output", folder, "--name", "page"]
        subprocess.run([sys.executable, "-m", "faithlab.cli", *asked], check=True, stdout=subprocess.DEVNULL)
        shot, page = Path(folder) / "shot.png", Path(folder) / "page" / "explanation.html"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        flags += [f"--user-data-dir={folder}/home", "--window-size=1400,820", f"--screenshot={shot}"]
        address = f"file://{page}#score=effect&level=token&backbone=0"
        subprocess.run([browser, *flags, address], check=True, stderr=subprocess.DEVNULL, timeout=120)
        write_atomically(path, shot.read_bytes())
    return True


def main() -> None:
    """Command line: write the tables into README.md and TEACHING.md, and renew the README's picture of a page."""
    readme, teaching, results = ROOT / "README.md", ROOT / "notebooks" / "TEACHING.md", ROOT / "data" / "results"
    made = picture(ROOT / "figures" / "explain.png")
    print("figures/explain.png: " + ("made" if made else "left as it is, since there is no Chromium here"))
    write_atomically(readme, written(readme.read_text(), results))
    write_atomically(teaching, with_lessons(teaching.read_text(), notebook_costs.read(results)))
    print("README.md: tables of notebooks and results written; notebooks/TEACHING.md: table of lessons written")


if __name__ == "__main__":
    main()
