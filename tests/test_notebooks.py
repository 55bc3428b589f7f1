"""Every notebook from end to end, in the tiny profile, through the same runner as `make run`."""

from pathlib import Path

import pandas as pd
import pytest

from faithlab.cli import main

ROOT = Path(__file__).parents[1]
STEMS = [p.stem for p in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]


@pytest.mark.notebooks
@pytest.mark.parametrize("stem", STEMS)
def test_notebook_runs_and_reports(stem, tmp_path):
    assert main(["notebooks", stem, "--profile", "tiny", "--output", str(tmp_path)]) == 0
    [table] = tmp_path.glob("*/results.csv")
    results = pd.read_csv(table)
    assert set(results["notebook"]) == {stem} and len(results) > 3
    assert (results["n"].dropna() > 0).all()
    assert list(tmp_path.glob("*/*/figures/*.png"))
