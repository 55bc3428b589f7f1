"""`faithlab course`: copies of the notebooks for students and for the teacher; `faithlab.grading` grades them.

An exercise is three cells in a row: its text, headed `### Exercise 1 · by hand · ●○○ · 5 minutes`; a code cell tagged
`exercise`, which holds the stub and ends in `check("name", answer)`; and a text cell tagged `solution`, in which hint
and solution are folded. An exercise's cell imports all it needs, so it can be graded without running the notebook.

    faithlab course student       outputs and solutions removed (hints stay)
    faithlab course solutions     every stub replaced by its solution
    faithlab course grade FILES   the exercise cells of handed-in notebooks, run headless one by one
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError
from faithlab.notebook_files import discover, read_notebook, select
from faithlab.notebook_outputs import EXECUTED
from faithlab.results import write_atomically
from faithlab.run_folder import new_folder

KINDS = ("by hand", "implement", "design")
OUTPUT = Path("runs") / "course"
HEAD = re.compile(r"^### Exercise (\d+) · ([a-z ]+) · ([●○]{3}) · (\d+) minutes$", re.MULTILINE)
# as the course itself writes it, in one line at the end; `faithlab.grading` takes what students make of it
CHECK = re.compile(r"^check\(\"(\w+)\", .+\)$", re.MULTILINE)
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?```python\n(?P<code>.*?)\n```\s*</details>", re.DOTALL)

# at the beginning of a link or a path in a string, and what it leads to
UP = re.compile(r"""(?<=["'(])\.\./(?=([\w.-]+))""")

EXAMPLES = """examples:
  faithlab course student                            into runs/course/student/
  faithlab course solutions 06 07 --output mine      of two notebooks, into mine/solutions/
  faithlab course grade handed_in                    all notebooks of a folder, or name the files: handed_in/*.ipynb;
                                                     prints a table and writes grades.csv beside the executed copies

Grading runs the code that was handed in: do it where that code can do no harm."""


@dataclass(frozen=True)
class Exercise:
    """An exercise of a notebook: `cell` is the index of its stub, the `solution` is what replaces it."""

    name: str
    number: int
    kind: str
    difficulty: int
    minutes: int
    cell: int
    stub: str
    solution: str


def tagged(cell: Any, tag: str) -> bool:
    """Whether a notebook's cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def exercises_of(node: Any, where: str = "the notebook") -> list[Exercise]:
    """The exercises of a notebook, in order. Raises `FaithlabError` where one is not built as described above."""
    found = []
    for i, cell in enumerate(node.cells):
        if cell.cell_type != "code" or not tagged(cell, "exercise"):
            continue
        heads = HEAD.findall(node.cells[i - 1].source)
        checks = CHECK.findall(cell.source)
        answer = SOLUTION.search(node.cells[i + 1].source) if i + 1 < len(node.cells) else None
        if len(heads) != 1 or len(checks) != 1 or not answer or not tagged(node.cells[i + 1], "solution"):
            raise FaithlabError(
                f"{where}, cell {i + 1}: an exercise is a text with a line like `### Exercise 1 · by hand · ●○○ · 5 "
                'minutes`, a stub that ends in check("name", answer), and a folded solution in Python'
            )
        number, kind, dots, minutes = heads[0]
        if kind not in KINDS:
            raise FaithlabError(f"{where}, cell {i + 1}: exercises are {', '.join(KINDS)}, not {kind!r}")
        solved = "\n\n".join([cell.source.splitlines()[0], answer["code"], CHECK.search(cell.source)[0]])
        found.append(Exercise(checks[0], int(number), kind, dots.count("●"), int(minutes), i, cell.source, solved))
    return found


def without_outputs(node: Any) -> Any:
    """A copy of the notebook as if it had never been run."""
    result = copy.deepcopy(node)
    for cell in result.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    result.metadata.pop(EXECUTED, None)
    return result


def student_copy(node: Any) -> Any:
    """The notebook without outputs, and without solutions; hints stay folded under their exercises."""
    result = without_outputs(node)
    for cell in result.cells:
        if tagged(cell, "solution"):
            cell.source = SOLUTION.sub("", cell.source).rstrip()
    return result


def solutions_copy(node: Any) -> Any:
    """The notebook without outputs, with the solution in place of every stub."""
    result = without_outputs(node)
    for exercise in exercises_of(node):
        result.cells[exercise.cell].source = exercise.solution
    return result


COPIES: dict[str, Callable[[Any], Any]] = {"student": student_copy, "solutions": solutions_copy}


def write_copies(kind: str, names: Sequence[str], folder: Path, output: Path) -> Path:
    """Write copies of the chosen notebooks into `output/kind/`; returns that folder.

    A copy that was not touched since it was written is replaced, one that was worked on never: it is an error then, and
    nothing is written at all.

    Raises:
        FaithlabError: an unknown notebook or one that is not valid, a copy that was worked on, or a folder that cannot
            be made or written.
    """
    import nbformat

    target = output / kind
    up = Path(os.path.relpath(folder.parent.absolute(), target.absolute())).as_posix()  # to where "../" led
    # What else begins with "../" is no path as seen from a notebook.
    ours = {"runs", *(entry.name for entry in folder.parent.iterdir())}
    texts = {}
    for path in select(discover(folder), names):
        made = COPIES[kind](read_notebook(path).node)
        for cell in made.cells:
            cell.source = UP.sub(lambda found: f"{up}/" if found[1] in ours else found[0], cell.source)
        made.metadata["faithlab"] = {"copy": kind, "of": path.stem, "sources": _fingerprint(made)}
        texts[target / path.name] = nbformat.writes(made).rstrip("\n") + "\n"
    for path in texts:
        if path.exists() and not _untouched(path):
            raise FaithlabError(f"{path} exists and may hold somebody's work; move it away, or choose another --output")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FaithlabError(f"cannot make {target}: {error.strerror}; choose another --output") from error
    for path, text in texts.items():
        write_atomically(path, text)
    return target


def _fingerprint(node: Any) -> str:
    """Says whether any cell was added, taken away or changed, outputs aside."""
    return hashlib.sha256("\0".join(cell.source for cell in node.cells).encode()).hexdigest()[:16]


def _untouched(path: Path) -> bool:
    import nbformat

    try:
        node = nbformat.read(path, as_version=4)
        return node.metadata["faithlab"]["sources"] == _fingerprint(node)
    except Exception:  # whatever is wrong with it, it is not ours as we wrote it
        return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `faithlab course`."""
    parser.description = __doc__
    parser.epilog = EXAMPLES
    parser.add_argument("action", choices=[*COPIES, "grade"], help="what to do")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NOTEBOOK|FILE|FOLDER",
        help="which notebooks (default: all), or files and folders to grade",
    )
    parser.add_argument("--folder", help="where the course's notebooks are (default: notebooks)")
    parser.add_argument("--output", help=f"where the copies, or the grading's folder, are made (default: {OUTPUT})")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="grading: seconds an exercise (default: 120)"
    )


def command(args: argparse.Namespace) -> int:
    """Carry out `faithlab course` and return its exit status.

    Raises:
        FaithlabError: nothing to grade is named, and whatever the action itself refuses.
    """
    from faithlab import grading  # which imports this module
    from faithlab.notebooks import notebook_folder

    folder, output = notebook_folder(args.folder), Path(args.output or OUTPUT)
    if args.action != "grade":
        target = write_copies(args.action, args.names, folder, output)
        print(f"written: {target}; open it with: jupyter lab {target}")
        return 0
    if not args.names:
        raise FaithlabError("nothing to grade; name the files: faithlab course grade handed_in/*.ipynb")
    files = grading.files_of(args.names)
    run = new_folder(output / "graded")
    table = grading.grade(files, run, folder, args.timeout)
    for name, part in table.groupby("file", sort=False):
        print(f"\n{name}: {part['status'].eq('right').sum()} of {len(part)} right")
        for row in part.itertuples():
            print(f"  {row.exercise}: {row.status}. {row.message}")
    print(f"\ngrades: {run / 'grades.csv'}")
    return 0
