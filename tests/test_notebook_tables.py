"""What notebooks show: text that a model wrote is shown as text, never run as HTML; figures say what is on them."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
OPTION = '"styler.format.escape", "html"'
HOSTILE = "<script>alert(1)</script>"
SAFE = "&lt;script&gt;alert(1)&lt;/script&gt;"
TEXT_TABLES = {  # notebook and cell whose last line shows model text -> the names that this line needs
    ("01", "cell-06"): dict(shown=[("step", 4.0, HOSTILE)], pd=pd),
    ("03", "cell-07"): dict(table=pd.DataFrame(dict(position=[1], text=[HOSTILE], throughput=[0.25]))),
}


def code(path):
    """The code of a notebook's cells, by their ids."""
    cells = json.loads(path.read_text())["cells"]
    return {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "code"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_with_styled_tables_escapes_their_text(path):
    sources = list(code(path).values())
    at = [i for i, source in enumerate(sources) if ".style." in source]
    sets = [i for i, source in enumerate(sources) if "pd.set_option(" in source and OPTION in source]
    assert not at or (sets and sets[0] < at[0]), f"add {OPTION} to pd.set_option in {path.name}"


@pytest.mark.parametrize(("number", "cell"), TEXT_TABLES, ids=lambda name: name)
def test_a_table_of_model_text_shows_tags_and_does_not_run_them(number, cell):
    [path] = [p for p in NOTEBOOKS if p.name.startswith(number)]
    last = code(path)[cell].splitlines()[-1]
    names = TEXT_TABLES[number, cell]
    page = eval(last, dict(names)).to_html()
    assert HOSTILE not in page and SAFE in page
    # The option alone would not do: pandas forgets it as soon as `.format` is called without `escape`.
    with pd.option_context("styler.format.escape", "html"):
        forgetful = eval(last.replace(', escape="html"', ""), dict(names)).to_html()
    assert HOSTILE in forgetful


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_saved_figure_has_alternative_text(path):
    calls = []
    for source in code(path).values():
        calls += [
            n for n in ast.walk(ast.parse(source)) if getattr(getattr(n, "func", None), "id", "") == "save_figure"
        ]
    assert calls
    for call in calls:
        [alt] = [k.value for k in call.keywords if k.arg == "alt"] or [None]
        assert alt is not None, f"{path.name}, {ast.unparse(call.args[2])}: no alt"
        texts = [n.value for n in ast.walk(alt) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert sum(map(len, texts)) > 40, f"{path.name}, {ast.unparse(call.args[2])}: what is on the axes?"
