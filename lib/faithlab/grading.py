"""Grading what students hand in: the exercise cells of their notebooks, each run alone in a process of its own.

A cell belongs to the exercise whose name stands in its call `check("name", answer)`, however that call is written.
`faithlab course grade FILES` is the command.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faithlab.course import exercises_of
from faithlab.errors import FaithlabError, first_words
from faithlab.notebook_files import discover, read_notebook
from faithlab.notebook_kernel import execute, kernel_of_this_python, terminate_like_ctrl_c
from faithlab.results import read_results, write_atomically
from faithlab.run_folder import fresh_part

NOT_RUN = "did not run"
COLUMNS = ["file", "notebook", "exercise", "status", "message"]
# in a cell that is no Python, whose syntax error the student should be told: a call that is not commented out
ROUGH_CHECK = re.compile(r"^[^#\n]*\bcheck\s*\(\s*[\"'](\w+)[\"']", re.MULTILINE)
UNDEFINED = re.compile(r"NameError: name '(\w+)' is not defined")
LAST_CELL = """from faithlab import exercises
from faithlab.results import write_results

found = exercises.outcomes()
write_results("results.json", [dict(quantity=k, value=v.status) for k, v in found.items()], notebook={stem!r},
              messages={{k: v.message for k, v in found.items()}})"""


@dataclass
class HandedIn:
    """A file that was handed in: which notebook of the course it is (None: it cannot be said, and `why`), and its code
    cells; `cells` has those of each exercise in order."""

    stem: str | None = None
    why: str = ""
    sources: list[str] = field(default_factory=list)
    cells: dict[str, list[str]] = field(default_factory=dict)


def files_of(names: Iterable[str]) -> list[Path]:
    """The files that are meant by names of files and folders; a folder means the notebooks that lie in it.

    Raises:
        FaithlabError: there is no such file or folder, or a folder without notebooks.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        found = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
        if not found:
            raise FaithlabError(f"no notebook (*.ipynb) lies in the folder {name}; name the files, or another folder")
        if not path.exists():
            raise FaithlabError(f"no such file: {name}")
        files += found
    return files


def checked_in(source: str) -> set[str]:
    """The names of the exercises that a cell checks: the first argument of its calls of `check`."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return set(ROUGH_CHECK.findall(source))
    return {name for node in ast.walk(tree) if isinstance(node, ast.Call) and (name := _checked_by(node))}


def _checked_by(call: ast.Call) -> str | None:
    """The name in `check("name", ...)`, also of `exercises.check(...)` and `check(name="name", ...)`."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]
    if called != "check" or not given or not isinstance(given[0], ast.Constant):
        return None
    return given[0].value if isinstance(given[0].value, str) else None


def grading_copy(source: str, stem: str) -> Any:
    """A notebook of one exercise cell, which may fail, and a cell that writes down what came of it."""
    import nbformat

    result = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    cell = nbformat.v4.new_code_cell(source)
    cell.metadata["tags"] = ["raises-exception"]  # papermill then goes on to the next cell
    result.cells = [cell, nbformat.v4.new_code_cell(LAST_CELL.format(stem=stem))]
    return result


def grade(files: Sequence[Path], output: Path, folder: Path, timeout: float = 120.0) -> Any:
    """Run the exercise cells of handed-in notebooks, each in a process of its own, so that an endless loop or a dead
    kernel costs that exercise alone.

    Args:
        files: notebooks; their names tell them apart. Which notebook of the course a file is says its metadata, or its
            first heading. Exercises of that notebook whose cell is missing count as "did not run", and so does every
            exercise of a file that cannot be read. Where several cells check an exercise the last one counts.
        output: the folder that receives the executed cells and `grades.csv`.
        folder: the course's notebooks.
        timeout: seconds for each exercise.

    Returns:
        A data frame: file, notebook, exercise, status ("right", "wrong", "not done", "did not run"), message. A file of
        which not even the notebook is known has one row, with empty columns.

    Raises:
        FaithlabError: no kernel starts here, or a folder cannot be written.
    """
    import pandas as pd

    course = {}
    for path in discover(folder):
        node = read_notebook(path).node
        course[path.stem] = (_titles(node), [e.name for e in exercises_of(node, path.name)])
    rows = []
    with terminate_like_ctrl_c(), kernel_of_this_python(online=False):
        for index, path in enumerate(files, start=1):
            print(f"[{index}/{len(files)}] {path}", flush=True)
            given = _handed_in(path, course)
            if given.stem is None:
                rows.append((str(path), "", "", NOT_RUN, given.why))
            for name in course[given.stem][1] if given.stem else ():
                outcome = _graded(given, name, output, f"{index:03d}-{path.stem}-{name}", timeout)
                rows.append((str(path), given.stem, name, *outcome))
            table = pd.DataFrame(rows, columns=COLUMNS)
            write_atomically(output / "grades.csv", table.to_csv(index=False))  # each time: a run may be broken off
    return pd.DataFrame(rows, columns=COLUMNS)


def _graded(given: HandedIn, name: str, output: Path, part: str, timeout: float) -> tuple[str, str]:
    """Status and message of one exercise of a file."""
    cells = given.cells.get(name)
    if not cells:
        return NOT_RUN, f'no call of check("{name}", ...) found: its cell is missing, or the call or its name changed'
    try:
        status, message = _run(cells[-1], name, output, part, timeout)
    except (FaithlabError, ValueError) as error:  # what one cell holds or leaves behind must not cost the others
        status, message = NOT_RUN, f"It cannot be graded: {first_words(error)}"
    notes = [message]
    if len(cells) > 1:
        notes.append(f'{len(cells)} cells call check("{name}", ...), and the last one counts')
    undefined = UNDEFINED.search(message)
    if undefined and any(cells[-1] != s and re.search(rf"\b{undefined[1]}\b", s) for s in given.sources):
        notes.append(
            f"{undefined[1]} stands in another cell: graded alone, this cell needs its helpers and imports in itself"
        )
    return status, ". ".join(notes)


def _run(cell: str, name: str, output: Path, part: str, timeout: float) -> tuple[str, str]:
    """Status and message of one exercise's cell, run in a process of its own in the folder `output/part`."""
    import nbformat

    working, source = fresh_part(output, part), output / f"{part}.ipynb"
    write_atomically(source, nbformat.writes(grading_copy(cell, part)))
    outcome = execute(source, working, {}, timeout)
    source.unlink()
    if not (working / "results.json").exists():  # it is also written behind a cell that stopped
        return NOT_RUN, outcome.message
    content = read_results(working / "results.json")
    found = {r["quantity"]: r["value"] for r in content["results"]}
    return found.get(name, NOT_RUN), content["messages"].get(name, outcome.message)


def _titles(node: Any) -> set[str]:
    """The first headings of the cells."""
    found = (re.match(r"# .+", cell.source) for cell in node.cells if cell.cell_type == "markdown")
    return {match[0].strip() for match in found if match}


def _handed_in(path: Path, course: dict[str, Any]) -> HandedIn:
    """What a file holds, with the notebooks of the course by their stems: their titles, and their exercises."""
    import nbformat

    try:
        node = nbformat.read(path, as_version=4)
        named = node.metadata.get("faithlab", {}).get("of")
        stem = named if named in course else next((k for k, (t, _) in course.items() if t & _titles(node)), None)
        sources = [cell.source for cell in node.cells if cell.cell_type == "code"]
        checked = [checked_in(source) for source in sources]
    except Exception as error:  # nbformat trusts a file's structure; whatever is wrong with it is the file's fault
        return HandedIn(why=f"It cannot be read as a notebook: {first_words(error)}")
    if stem is None:
        return HandedIn(why="It is no copy of a notebook of the course: its title is missing")
    wanted = course[stem][1]
    cells = {name: [s for s, found in zip(sources, checked, strict=True) if name in found] for name in wanted}
    return HandedIn(stem, "", sources, cells)
