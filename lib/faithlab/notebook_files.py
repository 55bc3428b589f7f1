"""Notebook files: find them, check them before a run, settle their parameters, and clean an executed copy for git.

papermill runs on silently when the `parameters` tag is missing or a name is unknown, and then shows the defaults as if
they were what was asked for. So everything is checked here first: one cell tagged `parameters`, holding plain literals;
kernel `python3`; every passed name present; every value of the type of its default.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError, unknown
from faithlab.formats import EMBEDDED, is_hub_id, unknown_reasoner
from faithlab.yaml_files import read_mapping

PATTERN = "[0-9][0-9]_*.ipynb"
PROFILES = Path(__file__).parent / "configs" / "notebooks"
# Set by the runner in every notebook that declares them; nobody passes them by hand.
RESERVED = ("output_dir", "profile")


@dataclass(frozen=True)
class Notebook:
    """A notebook that passed `read_notebook`: its file, the defaults of its parameter cell, its source's SHA-256."""

    path: Path
    node: Any
    parameters: dict[str, Any]
    sha256: str

    @property
    def stem(self) -> str:
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
    """The notebooks that `names` mean (a number, a stem, a file name or a glob pattern); all of them for no names."""
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


@dataclass(frozen=True)
class Profile:
    """Values for parameters: `default` for every notebook that declares the name, `sections` for one notebook each."""

    name: str
    default: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    timeout: float | None


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def load_profile(name: str, stems: Sequence[str], *, foreign: bool = False) -> Profile:
    """Read a profile: one that comes with the package, or a YAML file by its path.

    Args:
        name: "tiny", "laptop", "gpu", or a path ending in .yaml or .yml.
        stems: the notebooks there are; a section for any other is an error.
        foreign: the notebooks are not the course's own, so sections of the package's profiles do not concern them.
    """
    by_path = name.endswith((".yaml", ".yml"))
    if not by_path and name not in profile_names():
        raise unknown("profile", name, [*profile_names(), "or the path of a .yaml file"])
    path = Path(name) if by_path else PROFILES / f"{name}.yaml"
    content = read_mapping(path, "profile")
    timeout = content.pop("timeout", None)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0):
        raise FaithlabError(f"profile {path}: `timeout` is a number of seconds above 0, not {timeout!r}")
    sections = {str(key): value or {} for key, value in content.items()}
    for key, value in sections.items():
        if not isinstance(value, dict):
            raise FaithlabError(f"profile {path}: section {key!r} must hold lines `name: value`")
        if key != "default" and key not in stems and (by_path or not foreign):
            raise unknown(f"section in profile {path.name}:", key, ["default", *stems])
    return Profile(path.stem, sections.pop("default", {}), sections, timeout)


def place(name: str, value: Any) -> Any:
    """A value passed by hand, checked as far as its name tells what it is, so that a run does not fail minutes later.

    `reasoner` and the like: an embedded reasoner, a folder, or a hub id; `..._path`: a file or folder; `n_...`: a
    number from 1 on. Relative paths are made absolute, for a notebook works in a folder of its own.

    Raises:
        FaithlabError: nothing there, or a number below 1.
    """
    if name.startswith("n_"):
        with contextlib.suppress(ValueError):
            if float(value) < 1:
                raise FaithlabError(f"parameter {name}={value} leaves nothing to run; use 1 or more")
    if not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    if name.endswith("_path"):
        if not path.exists():
            raise FaithlabError(f"parameter {name}: no such file or folder: {path.absolute()}")
        return str(path.absolute())
    if name.endswith("reasoner") and value not in EMBEDDED:
        if path.is_dir():
            return str(path.absolute())
        if not is_hub_id(value):
            raise unknown_reasoner(value)
    return value


def settle(notebooks: Sequence[Notebook], profile: Profile, passed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The parameters of every notebook: profile default, then its section, then what was passed by hand.

    Returns:
        stem -> {name: value}, only the names that are set; values have the type of the notebook's default.

    Raises:
        FaithlabError: a passed name that no selected notebook has, a name in a profile section that its notebook lacks,
            a value of another type than the default, or a reserved name.
    """
    for name in passed:
        if name in RESERVED:
            raise FaithlabError(f"parameter {name!r} is set by the runner; leave it out")
        if not any(name in nb.parameters for nb in notebooks):
            listing = "; ".join(f"{nb.stem}: {', '.join(nb.parameters) or 'none'}" for nb in notebooks)
            raise FaithlabError(f"no selected notebook has a parameter {name!r}; parameters are: {listing}")
    settled = {}
    for nb in notebooks:
        section = profile.sections.get(nb.stem, {})
        for name in section:
            if name not in nb.parameters:
                raise unknown(f"parameter in profile {profile.name}, section {nb.stem}:", name, nb.parameters)
        values = {k: v for k, v in (profile.default | section | dict(passed)).items() if k in nb.parameters}
        settled[nb.stem] = {k: convert(k, v, nb.parameters[k], nb.stem) for k, v in values.items() if k not in RESERVED}
    return settled


def convert(name: str, value: Any, default: Any, where: str) -> Any:
    """`value` in the type of `default`; text is read as a literal unless the default is text; None takes anything."""
    if isinstance(value, str) and not isinstance(default, str):
        # Also what YAML calls text: its 1e-4 is a string.
        words = {"true": True, "false": False, "null": None, "none": None}
        with contextlib.suppress(ValueError, SyntaxError):
            value = words[value.lower()] if value.lower() in words else ast.literal_eval(value.strip())
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return type(default)(value)
    want = type(default).__name__
    raise FaithlabError(f"parameter {name!r} of {where} is of type {want} (default {default!r}), not {value!r}")


def clean_copy(source: Any, executed: Any, machine: Mapping[str, str]) -> Any:
    """The source notebook with the outputs of its executed copy, and nothing else of it.

    Everything but outputs and counts comes from the source, so papermill's metadata, its injected cell and timings
    cannot slip in. Progress bars go, and paths of this machine are replaced.

    Args:
        source: the notebook as it is committed.
        executed: papermill's copy of it.
        machine: absolute path -> what to write for it.

    Raises:
        FaithlabError: the code cells of the two do not correspond.
    """
    result = copy.deepcopy(source)
    mine = [c for c in result.cells if c.cell_type == "code"]
    theirs = [
        c for c in executed.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]
    if [c.source for c in mine] != [c.source for c in theirs]:
        raise FaithlabError("the executed copy's code differs from the notebook's; run it again")
    count = 0
    for cell, run in zip(mine, theirs, strict=True):
        count += run.execution_count is not None
        cell.execution_count = count if run.execution_count is not None else None
        cell.outputs = _clean_outputs(run.outputs, machine)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count
    return result


def _clean_outputs(outputs: Iterable[Any], machine: Mapping[str, str]) -> list[Any]:
    """Merge neighbouring streams, drop progress bars (lines of stderr that are overwritten; of stdout the last state is
    kept) and live widgets, replace machine paths."""
    merged: list[Any] = []
    for output in copy.deepcopy(list(outputs)):
        last = merged[-1] if merged else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            bar = r"[^\n]*\r(?!\n)[^\n]*\n?" if output.name == "stderr" else r"[^\n]*\r(?=[^\r\n])"
            output.text = _portable(re.sub(bar, "", output.text), machine)
        for mime in list(output.get("data", {})):
            if "widget-view" in mime:
                del output.data[mime]
            elif mime.startswith("text/") and isinstance(output.data[mime], str):
                output.data[mime] = _portable(output.data[mime], machine)
    return [o for o in merged if o.get("data", True) and o.get("text", True)]


def _portable(text: str, machine: Mapping[str, str]) -> str:
    """Replace absolute paths of this machine, the longest first, and the kernel's temporary file names."""
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    for path in sorted(machine, key=len, reverse=True):
        text = text.replace(path, machine[path])
    return text


def machine_paths(working: Path, root: Path) -> dict[str, str]:
    """What `clean_copy` replaces: the working folder and the repository by ".", the environment, the home by "~"."""
    paths = {str(working): ".", str(root): ".", sys.prefix: "<environment>", str(Path.home()): "~"}
    return {path: short for path, short in paths.items() if len(path) > 1}
