"""Every notebook from end to end, in the tiny profile, through the same runner as `make run`.

The student's copy runs, so that its stubs are met as a student meets them, with the solution behind each stub; and the
teacher's copy, in which solutions stand in place of the stubs.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from test_models import as_on_the_hub

from faithlab.cli import main
from faithlab.course import exercises_of, solutions_copy, student_copy
from faithlab.models import data_folder

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MARKS, SCALING = "05_which_tokens_matter", "10_scaling_up"


def more_arguments(path, folder):
    """Notebook 05 gets a file of marks, so that the annotator is shown; notebook 10 a model in a folder, as a hub would
    leave it, and a file of MMLU's form: so that what it has for a large model runs too."""
    if path.stem == MARKS:
        marks = folder / "marks.jsonl"
        marks.write_text("".join((data_folder() / "marks" / "planted.jsonl").open().readlines()[:3]))
        return ["-p", "marks_path", str(marks)]
    if path.stem != SCALING:
        return []
    as_on_the_hub(folder / "hub", "someone/tiny-llama")
    (folder / "sums_test.csv").write_text("".join(f'"What is {i} + 1?",{i + 1},{i + 2},{i},9,A\n' for i in range(3)))
    model = folder / "hub" / "models--someone--tiny-llama" / "snapshots" / ("0" * 40)
    return [
        "-p",
        "large_reasoner",
        str(model),
        "-p",
        "mmlu_path",
        str(folder / "sums_test.csv"),
        "-p",
        "n_large",
        "3",
        "-p",
        "large_tokens",
        "64",
    ]


def check_scaling(results, printed):
    """Real questions, the hub's layout, the large model: all were evaluated, on as many problems as asked."""
    found = results.set_index(["reasoner", "quantity"])
    assert found.loc[("smollm2", "two questions of our own: right"), "n"] == 2
    for task in ("gsm8k", "mmlu"):
        assert found.loc[("tiny-llama", f"smoke test of {task} by hub id: problems evaluated"), "value"] == 2
    for task, data, n in (("gsm8k", "two questions of our own", 2), ("mmlu", "MMLU", 3)):
        assert found.loc[(f"large: {'0' * 40}", f"{data}: right"), "n"] == n
        assert f"{task}, {n} problems, 0 examples each" in printed, "by the conventions of lm-eval too"


def with_solutions_behind(node):
    """The student's copy, each stub followed by its solution."""
    copy = student_copy(node)
    for e in reversed(exercises_of(node)):
        copy.cells.insert(e.cell + 1, nbformat.v4.new_code_cell(e.solution))
    return copy


@pytest.mark.notebooks
@pytest.mark.parametrize("copied", [with_solutions_behind, solutions_copy], ids=["student", "teacher"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_runs_and_reports(path, copied, tmp_path):
    node = nbformat.read(path, as_version=4)
    exercises, copy = exercises_of(node), copied(node)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(copy, folder / path.name)
    out = tmp_path / "out"
    call = ["notebooks", path.stem, "--folder", str(folder), "--profile", "tiny", "--output", str(out)]
    assert main([*call, *more_arguments(path, tmp_path)]) == 0
    [table] = out.glob("*/results.csv")
    results = pd.read_csv(table)
    assert set(results["notebook"]) == {path.stem} and len(results) > 3
    assert (results["n"].dropna() > 0).all()
    assert list(out.glob("*/*/figures/*.png"))
    ran = next(out.glob("*/*/*.ipynb"))
    assert "it/s]" not in ran.read_text(), "a notebook keeps every frame of a progress bar"
    printed = "".join(o.get("text", "") for c in nbformat.read(ran, as_version=4).cells
                      for o in c.get("outputs", []))  # fmt: skip
    for e in exercises:
        assert f"✔ {e.name}: right." in printed
        assert (f"… {e.name}: not done." in printed) == (copied is with_solutions_behind)
    if path.stem == SCALING:
        check_scaling(results, printed)
    if path.stem == MARKS:
        shown = [json.dumps(c.outputs) for c in nbformat.read(ran, as_version=4).cells if c.cell_type == "code"]
        assert sum("save and next" in o or "widget-view" in o for o in shown) == 1, "the annotator's buttons"
        assert sum("agreement with your own marks" in o for o in shown) == 1


def test_a_command_that_fails_ends_notebook_10_with_its_last_words():
    cells = nbformat.read(ROOT / "notebooks" / f"{SCALING}.ipynb", as_version=4).cells
    [source] = [c.source for c in cells if "def faithlab(" in c.source]
    [function] = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    names = dict(os=os, subprocess=subprocess, sys=sys)
    exec(ast.unparse(function), names)
    assert "faithlab" in names["faithlab"]("--help")
    with pytest.raises(AssertionError, match=r"(?s)evaluate abacuss: exit status 2.*unknown reasoner 'abacuss'"):
        names["faithlab"]("evaluate", "abacuss")
