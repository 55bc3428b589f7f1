"""Every notebook from end to end, in the tiny profile, through the same runner as `make run`.

What runs is the student's copy, so that its stubs are met as a student meets them, with the solution behind each stub.
"""

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from faithlab.cli import main
from faithlab.course import exercises_of, student_copy

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.notebooks
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_runs_and_reports(path, tmp_path):
    node = nbformat.read(path, as_version=4)
    exercises, copy = exercises_of(node), student_copy(node)
    for e in reversed(exercises):
        copy.cells.insert(e.cell + 1, nbformat.v4.new_code_cell(e.solution))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(copy, folder / path.name)
    out = tmp_path / "out"
    assert main(["notebooks", path.stem, "--folder", str(folder), "--profile", "tiny", "--output", str(out)]) == 0
    [table] = out.glob("*/results.csv")
    results = pd.read_csv(table)
    assert set(results["notebook"]) == {path.stem} and len(results) > 3
    assert (results["n"].dropna() > 0).all()
    assert list(out.glob("*/*/figures/*.png"))
    printed = "".join(o.get("text", "") for c in nbformat.read(next(out.glob("*/*/*.ipynb")), as_version=4).cells
                      for o in c.get("outputs", []))  # fmt: skip
    for e in exercises:
        assert f"… {e.name}: not done." in printed and f"✔ {e.name}: right." in printed
