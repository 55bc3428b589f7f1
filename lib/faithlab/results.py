"""`results.json`: the numbers a notebook stands for, written at its end and gathered by the runner into one table.

A file holds `{"notebook": stem, "profile": name, "results": [row, ...]}`, and a row holds the fields of `FIELDS`:

    quantity   what was measured, in words             unit       of value, low and high, or null
    value      a number, a text, or null               reasoner   which model, or null
    low, high  the ends of its interval, or null       n          how many cases stand behind it, or null
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faithlab.errors import FaithlabError, unknown
from faithlab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd

FIELDS = ("quantity", "value", "low", "high", "n", "unit", "reasoner")
COLUMNS = ("notebook", "profile", "reasoner", "quantity", "value", "low", "high", "n", "unit")


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file so that it is there whole or not at all: a temporary file beside it, then a rename.

    Raises:
        FaithlabError: the disk is full, the folder is missing or may not be written.
    """
    path = Path(path)
    try:
        data = data.encode("utf-8") if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise FaithlabError(f"cannot write {path}: it holds half a character ({error.reason})") from error
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
        # A temporary file is private to its owner; a result is as readable as any other new file.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FaithlabError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error


def write_results(path: str | Path, rows: Iterable[Mapping[str, Any]], **meta: Any) -> Path:
    """Check rows of results and write them to `path`, whole or not at all.

    Args:
        path: the file, or a folder, in which it is then called results.json.
        rows: mappings with the fields above; `quantity` and `value` are required, the others default to None. NumPy
            scalars are welcome. An interval end that is not finite becomes None; a `value` that is not is an error.
        meta: `notebook` (the stem, required), `profile`, and whatever else describes the run.

    Returns:
        The path of the file.

    Raises:
        FaithlabError: a row that breaks the rules (named by its number), two rows for one quantity and reasoner,
            or a file that cannot be written.
    """
    if not isinstance(meta.get("notebook"), str) or not meta["notebook"]:
        raise FaithlabError("write_results needs notebook='NN_name', the notebook's file name without .ipynb")
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    checked = check_rows(rows)
    content = {"notebook": meta.pop("notebook"), "profile": meta.pop("profile", None), **meta, "results": checked}
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


class Gathered(list):
    """The rows of a notebook's `results.json`, as they are measured."""

    def note(self, quantity: str, where: Interval, unit: str | None = None, reasoner: str | None = None) -> None:
        """Add a value with its interval. What was not measured (n = 0) is no result and is left out."""
        if where.n:
            self.append(dict(quantity=quantity, **where._asdict(), unit=unit, reasoner=reasoner))


def check_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with every field present and plain Python values; see `write_results` for the rules.

    Raises `FaithlabError`, naming the row, for the first that breaks them.
    """
    checked: list[dict[str, Any]] = []
    seen: set[tuple[Any, Any]] = set()
    for number, row in enumerate(rows, start=1):
        where = f"result row {number}"
        if not isinstance(row, Mapping):
            raise FaithlabError(f"{where} is a {type(row).__name__}; give a mapping with fields {', '.join(FIELDS)}")
        for field in row:
            if field not in FIELDS:
                raise unknown(f"field in {where}:", field, FIELDS)
        plain = {field: _plain(row.get(field)) for field in FIELDS}
        quantity = plain["quantity"]
        if not isinstance(quantity, str) or not quantity.strip():
            raise FaithlabError(f"{where} needs a `quantity` in words, not {quantity!r}")
        where = f"{where} ({quantity!r})"
        if "value" not in row:
            raise FaithlabError(f"{where} has no `value`; pass None if there is none")
        if not (plain["value"] is None or isinstance(plain["value"], str) or _is_number(plain["value"])):
            raise FaithlabError(f"{where}: `value` is a finite number, a text or None, not {plain['value']!r}")
        for end in ("low", "high"):
            if isinstance(plain[end], float) and not math.isfinite(plain[end]):
                plain[end] = None  # the bootstrap of a single case has no interval
            if plain[end] is not None and not _is_number(plain[end]):
                raise FaithlabError(f"{where}: `{end}` is a number or None, not {plain[end]!r}")
        if None not in (plain["low"], plain["high"]) and plain["low"] > plain["high"]:
            raise FaithlabError(f"{where}: low {plain['low']} lies above high {plain['high']}; swap them")
        if plain["n"] is not None and (type(plain["n"]) is not int or plain["n"] < 0):
            raise FaithlabError(f"{where}: `n` is a whole number of cases or None, not {plain['n']!r}")
        for field in ("unit", "reasoner"):
            if plain[field] is not None and not isinstance(plain[field], str):
                raise FaithlabError(f"{where}: `{field}` is a text or None, not {plain[field]!r}")
        if (quantity, plain["reasoner"]) in seen:
            raise FaithlabError(f"{where} appears twice for reasoner {plain['reasoner']!r}; word the quantities apart")
        seen.add((quantity, plain["reasoner"]))
        checked.append(plain)
    return checked


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number; anything else as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check one results.json. Raises FaithlabError when it is missing, half-written or breaks the rules."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("results"), list):
            raise FaithlabError(f"{path} has no list `results`; write it with faithlab.notebooks.write_results")
        return {**content, "results": check_rows(content["results"])}
    except OSError as error:
        raise FaithlabError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FaithlabError(f"{path} is not valid JSON ({error}); run its notebook again") from error


def gather_results(folder: str | Path, only: Iterable[str] | None = None) -> pd.DataFrame:
    """One table of the results of a run: every `*/results.json` in its folder, in the order of the notebooks.

    Args:
        folder: the run's folder.
        only: the notebooks to gather, by stem; by default all that have a results.json.

    Returns:
        A data frame with the columns of `COLUMNS`, one row per result; empty if there are no results.
    """
    import pandas as pd

    rows = []
    stems = None if only is None else set(only)
    for path in sorted(Path(folder).glob("*/results.json")):
        if stems is not None and path.parent.name not in stems:
            continue
        content = read_results(path)
        head = {"notebook": content.get("notebook") or path.parent.name, "profile": content.get("profile")}
        rows += [head | row for row in content["results"]]
    # dtype object: a column of whole numbers and gaps must not turn into floats.
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def keep_results(table: pd.DataFrame, path: Path) -> None:
    """Put a run's table of results into a committed CSV: rows of the same notebooks are replaced, others stay. Numbers
    are kept whole: a table that rounds them then shows what the notebook printed.

    Raises:
        FaithlabError: the file cannot be written.
    """
    import pandas as pd

    if path.is_file():
        kept = pd.read_csv(path, dtype=object)
        table = pd.concat([kept[~kept["notebook"].isin(set(table["notebook"]))], table], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = table.sort_values("notebook", kind="stable")
    # A gap stays a gap whether it was just measured or read back, so that a second writing changes nothing.
    ordered = ordered.map(lambda v: (repr(float(v)) if isinstance(v, float) else v) if pd.notna(v) else None)
    write_atomically(path, ordered.to_csv(index=False))


def save_figure(figure: Any, output_dir: str | Path, name: str, alt: str = "") -> Path:
    """Save a matplotlib figure (or the figure of an `Axes`) as `output_dir/figures/name.png`; the folder is made. In a
    notebook it is shown too, at once and with its text alternative.

    Args:
        alt: what the figure shows, in a sentence, for readers who hear the page. It is kept where nbconvert looks for
            it: in the output's metadata, under `image/png`.

    Raises:
        FaithlabError: the folder cannot be made or written.
    """
    figure = figure if hasattr(figure, "savefig") else figure.get_figure()
    path = Path(output_dir) / "figures" / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise FaithlabError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error
    _show(figure, alt)
    return path


def _show(figure: Any, alt: str) -> None:
    """Show a figure where a notebook runs; closed, so that the notebook does not show it again, without its text."""
    from IPython import get_ipython  # late: a program without a notebook needs neither
    from IPython.display import display

    if hasattr(get_ipython(), "kernel"):
        import matplotlib.pyplot as plt

        display(figure, metadata={"image/png": {"alt": alt}} if alt else None)
        plt.close(figure)
