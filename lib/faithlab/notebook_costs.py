"""What a notebook takes, measured by the run whose outputs are committed: in its head, in a table, in the README.

`make notebooks` keeps the seconds and the peak memory of each notebook in `data/results/notebook_costs.csv` and writes
them into the box at the notebook's head; `faithlab.readme` puts them into the README's list.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from faithlab.results import write_atomically

FILE = "notebook_costs.csv"


class Cost(NamedTuple):
    """Wall-clock seconds, peak resident memory of the kernel in megabytes, CPU cores of the machine, and profile."""

    seconds: float
    peak_mb: float | None
    cores: int
    profile: str


def duration(seconds: float) -> str:
    """Seconds in words: "4.2 s", "3 min 05 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 and seconds != round(seconds) else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"


def memory(peak_mb: float | None) -> str:
    """Megabytes in words."""
    return "not measured" if peak_mb is None or math.isnan(peak_mb) else f"{peak_mb / 1000:.1f} GB"


def keep(folder: Path, stem: str, seconds: float, peak_mb: float | None, profile: str) -> Cost:
    """Put a notebook's cost into the table in `folder`, in place of an earlier one."""
    import pandas as pd  # late, so that `faithlab notebooks --help` answers at once

    cost = Cost(
        round(seconds),
        None if peak_mb is None else round(peak_mb),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        profile,
    )
    path = folder / FILE
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["notebook", *Cost._fields])
    rows = [r for r in table.to_dict("records") if r["notebook"] != stem] + [dict(notebook=stem, **cost._asdict())]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pd.DataFrame(rows).sort_values("notebook").to_csv(index=False))
    return cost


def read(folder: Path) -> dict[str, Cost]:
    """The kept costs, by notebook."""
    import pandas as pd

    path = folder / FILE
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    return {r.pop("notebook"): Cost(**r) for r in rows}


def box_lines(cost: Cost) -> tuple[str, str]:
    """The lines of time and memory in the box at a notebook's head."""
    where = f"{cost.cores} CPU cores, when its outputs were made (profile `{cost.profile}`)"
    return f"| time | {duration(cost.seconds)} on {where} |", f"| memory | {memory(cost.peak_mb)} at its peak |"


def fill_box(node: Any, cost: Cost) -> None:
    """Write measured time and memory into the first cell's table, in place; a notebook without one stays as it is."""
    if node.cells and node.cells[0].cell_type == "markdown":
        for name, line in zip(("time", "memory"), box_lines(cost), strict=True):
            node.cells[0].source = re.sub(rf"^\| {name} \|.*$", line, node.cells[0].source, flags=re.MULTILINE)
