"""Notebook files: find them, and check them before a run.

papermill runs on silently when the `parameters` tag is missing or a name is unknown, and then shows the defaults as if
they were what was asked for. So everything is checked first: here one cell tagged `parameters`, holding plain literals,
and kernel `python3`; in `notebook_profiles` that every passed name is there and every value of the type of its default.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError, unknown

PATTERN = "[0-9][0-9]_*.ipynb"


@dataclass(frozen=True)
class Notebook:
    """A notebook that passed `read_notebook`: its file, the defaults of its parameter cell, its source's SHA-256."""

    path: Path
    node: Any
    parameters: dict[str, Any]
    sha256: str

    @property
    def stem(self) -> str:
        """The file's name without `.ipynb`, by which profiles and results name the notebook."""
        return self.path.stem

    @property
    def title(self) -> str:
        """The first heading, or the empty string."""
        text = "\n".join(c.source for c in self.node.cells if c.cell_type == "markdown")
        found = re.search(r"^#+\s+(.+)$", text, re.MULTILINE)
        return found.group(1).strip() if found else ""


def discover(folder: Path) -> list[Path]:
    """The notebooks of a folder, `NN_name.ipynb`, in order. Raises FaithlabError if the folder has none."""
    found = sorted(folder.glob(PATTERN))
    if not found:
        raise FaithlabError(f"no notebooks named like 01_name.ipynb in {folder}; give another folder with --folder")
    return found


def select(paths: Sequence[Path], names: Iterable[str]) -> list[Path]:
    """The notebooks that `names` mean (a number, a stem, a file name or a glob pattern); all of them for no names.

    Raises `FaithlabError` for a name that means none of `paths`.
    """
    wanted: set[Path] = set()
    names = list(names)
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        hits = [p for p in paths if p.stem == stem or fnmatchcase(p.stem, stem)]
        if stem.isdecimal():
            hits += [p for p in paths if int(p.stem[:2]) == int(stem)]
        if not hits:
            raise unknown("notebook", name, [p.stem for p in paths])
        wanted.update(hits)
    return [p for p in paths if p in wanted or not names]


def read_notebook(path: Path) -> Notebook:
    """Read and check one notebook.

    Raises:
        FaithlabError: not a valid notebook; kernel other than `python3`; not exactly one cell tagged `parameters`;
            that cell holds anything but `name = literal`; a cell left behind by an earlier papermill run.
    """
    import nbformat

    try:
        raw = path.read_bytes()
        node = nbformat.reads(raw.decode("utf-8"), as_version=4)
        nbformat.validate(node)
    except OSError as error:
        raise FaithlabError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError, KeyError, nbformat.ValidationError) as error:
        # nbformat trusts the file's structure until it validates; errors of JSON and UTF-8 are ValueErrors.
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FaithlabError(f"{path.name} is not a valid notebook: {why}; restore it, or save it again") from error

    kernel = node.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        raise FaithlabError(f"{path.name} asks for kernel {kernel!r}; set its kernelspec to 'python3'")
    tagged = [i for i, cell in enumerate(node.cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or node.cells[tagged[0]].cell_type != "code":
        where = f" (cells {', '.join(str(i + 1) for i in tagged)})" if tagged else ""
        raise FaithlabError(f"{path.name}: {len(tagged)} cells tagged 'parameters'{where}; tag exactly one code cell")
    # papermill replaces such a cell only when it passes parameters, and otherwise runs it: stale values would win.
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in node.cells):
        raise FaithlabError(f"{path.name} holds a cell 'injected-parameters' of an earlier run; delete that cell")
    defaults = _literals(node.cells[tagged[0]].source, path.name)
    return Notebook(path, node, defaults, hashlib.sha256(raw).hexdigest())


def _literals(source: str, name: str) -> dict[str, Any]:
    """The assignments of a parameter cell, parsed as Python: papermill's own inspector reads single lines only."""
    rule = "the parameter cell holds lines `name = literal` and nothing else"
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise FaithlabError(f"{name}: {rule}; line {error.lineno} is no Python") from error
    values: dict[str, Any] = {}
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        try:
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
                raise ValueError
            if len(targets) != 1 or not isinstance(targets[0], ast.Name) or targets[0].id in values:
                raise ValueError
            values[targets[0].id] = ast.literal_eval(statement.value)
        except ValueError as error:
            line = source.splitlines()[statement.lineno - 1].strip()
            raise FaithlabError(f"{name}: {rule}; line {statement.lineno} is `{line}`") from error
    return values
