"""What the repository holds: notebooks that were executed, nothing pickled, names that are documented."""

import ast
import json
import re
import textwrap
from pathlib import Path

import nbformat
import pytest

from faithlab import api_page
from faithlab.notebook_outputs import EXECUTED, code_digest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


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
    node = nbformat.read(path, as_version=4)
    assert node.metadata.get(EXECUTED) == code_digest(node), (
        "the code is not that which made these outputs: run it again"
    )
    assert path.stat().st_size < 1_500_000
    saved = set(re.findall(r'output_dir, "(\w+)"', "".join("".join(c["source"]) for c in code)))
    assert saved and all((ROOT / "figures" / f"{name}.png").is_file() for name in saved)


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


def test_no_question_of_gsm8k_is_committed():
    """Its numbers are published here and its texts are not, executed outputs included."""
    published = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"
    if not published.is_file():
        pytest.skip("the published file is not there")
    asked = [json.loads(line)["question"] for line in published.open(encoding="utf-8")]
    beginnings = [json.dumps(text)[1:50] for text in asked]  # as JSON writes it, in notebooks and results
    folders = [ROOT / name for name in ("notebooks", "lib", "tests", "data")]
    files = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in {".ipynb", ".py", ".md", ".jsonl", ".json", ".csv"}
    ]
    text = "\n".join(
        p.read_text(errors="replace") for p in files if "training" not in p.parts and p.stat().st_size < 2_000_000
    )
    assert len(asked) > 1000 and len(text) > 1_000_000 and [b for b in beginnings if b in text] == []


def test_the_page_of_the_interface_is_that_of_the_code():
    page = (ROOT / "lib" / "API.md").read_text()
    assert page == api_page.page(), "run python -m faithlab.api_page"
    for name in (
        "plots.PALETTE",
        "credit.STRATEGIES",
        "heads.HORIZON",
        "claims.VERDICTS",
        "costs.STEPS",
        "exercises.check",
    ):
        module, name = name.split(".")
        section = page.split(f"\n## {module}\n")[1].split("\n## ")[0]
        assert re.search(rf"(^|, |`){name}( =|, |\()", section, re.M), name


def refuses(function):
    """Whether a function's own body, without functions defined in it, raises an error, or has a check raise it."""
    nodes = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("check_number", "check_known"):
            return True
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return False


def undocumented(tree, of_class=""):
    """Public functions, classes, methods and properties that have no docstring, or that raise and do not say so.

    Names that begin with `_` need none, but what `__init__`, `__post_init__` or `__call__` raise is said in their own
    docstring or in the class's. Checks of exercises raise as their package says, and not to a caller.
    """
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        text, special = ast.get_docstring(node) or "", node.name.startswith("__")
        if node.name.startswith("_") and not special:
            continue
        if not special and not text:
            yield f"{node.name} in line {node.lineno} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, of_class=text)
            continue
        says = re.search(r"\braises?\b", text + (of_class if special else ""), re.IGNORECASE)
        if refuses(node) and not says and not any(ast.unparse(d) == "exercise" for d in node.decorator_list):
            yield f"{node.name} in line {node.lineno} raises an error that no docstring names"


def test_every_public_name_is_documented():
    found = []
    for path in sorted((ROOT / "lib" / "faithlab").rglob("*.py")):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        found += [f"{path.relative_to(ROOT)}: {gap}" for gap in undocumented(tree)]
    assert not found, "\n".join(found)


def test_a_missing_docstring_and_an_unnamed_error_are_found():
    source = '''
        def silent(): return 1
        def says(x):
            """One. Raises `FaithlabError` for 0."""
            check_number("x", x, 1)
        def hides(x):
            """One."""
            if not x: raise unknown("x", x, [1])
        def checks(x):
            """One."""
            check_number("x", x, 1)
        def passes(x):
            """One."""
            def inner(): raise ValueError
            try: return inner()
            except ValueError: raise
        def _private(): raise ValueError
        class Thing:
            """A thing."""
            def __init__(self, x): raise FaithlabError(x)
            @property
            def size(self): return 1
        class Sound:
            """A thing. Raises `FaithlabError` always."""
            def __post_init__(self): raise FaithlabError(self)
    '''
    found = [gap.split()[0] for gap in undocumented(ast.parse(textwrap.dedent(source)))]
    assert found == ["silent", "hides", "checks", "__init__", "size"]
