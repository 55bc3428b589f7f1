"""What an executed notebook leaves in the repository: its outputs without traces of this machine, figures, results."""

from __future__ import annotations

import copy
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faithlab import notebook_costs
from faithlab.errors import FaithlabError
from faithlab.notebook_files import Notebook, read_notebook
from faithlab.notebook_kernel import Outcome
from faithlab.paths import short
from faithlab.results import gather_results, keep_results, write_atomically

EXECUTED = "executed_code"  # in a notebook's metadata: the digest of the code that made its outputs


def code_digest(nb: Any) -> str:
    """A fingerprint of a notebook's code cells: outputs beside other code were made by another version of it."""
    sources = "\0".join(c.source for c in nb.cells if c.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def keep_outputs(
    nb: Notebook, working: Path, figures: dict[str, str], outcome: Outcome, profile: str, values: Mapping[str, Any]
) -> None:
    """Put what a run left in its `working` folder where it is committed: outputs, time and memory into the notebook,
    figures into `figures/` beside its folder, results into `data/results`.

    Args:
        figures: who wrote which figure; this notebook's are added.
        profile, values: with which the notebook ran; the box at its head and a note say so.

    Raises:
        FaithlabError: the notebook was edited while it ran, or another one wrote a figure of the same name.
    """
    import nbformat

    if read_notebook(nb.path).sha256 != nb.sha256:
        raise FaithlabError(f"{nb.path} was edited while it ran, so its outputs are not written back; run it again")
    root = nb.path.absolute().parents[1]
    executed = nbformat.read(working / nb.path.name, as_version=4)
    clean = clean_copy(nb.node, executed, machine_paths(working.absolute(), root))
    kept = root / "data" / "results"
    cost = notebook_costs.keep(kept, nb.stem, outcome.seconds, outcome.peak_mb, profile)
    notebook_costs.fill_box(clean, cost)
    pictures = sorted((working / "figures").glob("*.png"))
    for picture in pictures:
        if figures.setdefault(picture.name, nb.stem) != nb.stem:
            raise FaithlabError(f"{nb.stem} and {figures[picture.name]} both write figures/{picture.name}; rename one")
    write_atomically(nb.path, nbformat.writes(clean).rstrip("\n") + "\n")
    for picture in pictures:
        (root / "figures").mkdir(exist_ok=True)
        write_atomically(root / "figures" / picture.name, picture.read_bytes())
    keep_results(gather_results(working.parent, [nb.stem]), kept / "notebooks.csv")
    print(f"      written back: {short(nb.path)}, figures: {len(pictures)}", flush=True)
    other = [f"{k}={v!r} (its cell says {nb.parameters[k]!r})" for k, v in values.items() if v != nb.parameters[k]]
    if other:
        print(f"      note: these outputs were made with {', '.join(other)}", flush=True)


def clean_copy(source: Any, executed: Any, machine: Mapping[str, str]) -> Any:
    """The source notebook with the outputs of its executed copy, and nothing else of it.

    Everything but outputs, counts and the digest of the code comes from the source, so papermill's metadata, its
    injected cell and timings cannot slip in. Progress bars go, and paths of this machine are replaced.

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
    result.metadata[EXECUTED] = code_digest(result)
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
