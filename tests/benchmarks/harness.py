"""Speed ratios: two ways of doing the same work, timed in turn in the same run. Nothing here can fail a test.

A row compares our way with the plain one, each as a callable that does its work and returns how many units it did
(tokens, interventions). Seconds differ from machine to machine and hour to hour; the ratio of two medians taken in
alternation does so much less, which is why only ratios have an aim.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from faithlab.results import write_atomically

RESULTS = Path(__file__).parents[2] / "data" / "results" / "bench.json"


@dataclass(frozen=True)
class Row:
    """One comparison. `ours` and `plain` are median rates in `unit`; `low`, `high` the ratio's range over rounds."""

    name: str
    unit: str
    ours: float
    plain: float
    ratio: float
    low: float
    high: float
    rounds: int
    aim: float | None
    command: str = ""  # that measures this row again

    @property
    def verdict(self) -> str:
        if self.aim is None:
            return "reported"
        return "reached" if self.ratio >= self.aim else "NOT reached"


def rate(work: Callable[[], int]) -> float:
    """Units a second of one call, of which a GPU has done all when the clock is read."""
    _finish()
    start = time.perf_counter()
    units = work()
    _finish()
    return units / (time.perf_counter() - start)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    name: str, ours: Callable[[], int], plain: Callable[[], int], *, unit: str, aim: float | None = None, rounds=3
) -> Row:
    """Time both in alternation, `rounds` times each, after one call of each that is not counted."""
    ours()
    plain()
    pairs = [(rate(ours), rate(plain)) for _ in range(rounds)]
    fast, slow = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    return Row(name, unit, fast, slow, fast / slow, min(ratios), max(ratios), rounds, aim)


def single(name: str, unit: str, ours: float, plain: float, ratio: float, aim: float | None = None) -> Row:
    """One measurement that is no rate, such as a peak of memory: taken once, `ratio` is how much better ours is."""
    return Row(name, unit, ours, plain, ratio, ratio, ratio, 1, aim)


def machine() -> dict:
    """What the numbers depend on, without anything that names the machine or its owner."""
    return dict(
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        architecture=platform.machine(),
        system=platform.system(),
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
    )


def table(rows: list[Row]) -> str:
    """The rows as text: rates of both sides, their ratio with its range over rounds, aim and verdict."""
    lines = [f"{'what':62s} {'unit':16s} {'ours':>9s} {'plain':>9s} {'ratio':>7s} {'range':>15s} {'aim':>5s}  verdict"]
    for r in rows:
        aim, spread = "" if r.aim is None else f"{r.aim:.3g}x", f"{r.low:.3g} to {r.high:.3g}"
        rates = f"{r.ours:9.4g} {r.plain:9.4g} {r.ratio:6.3g}x {spread:>15s} {aim:>5s}"
        lines.append(f"{r.name:62s} {r.unit:16s} {rates}  {r.verdict}")
    return "\n".join(lines)


def keep_only(names: set[str], path: Path = RESULTS) -> None:
    """Drop the rows of other names from the file of results."""
    found = json.loads(path.read_text())
    found["rows"] = [row for row in found["rows"] if row["name"] in names]
    write_atomically(path, json.dumps(found, indent=1) + "\n")


def write(row: Row, load: float, path: Path = RESULTS) -> None:
    """Put a row into the file of results, in the place of the older one of its name. The other rows stay if
    they were measured on the same machine with as many threads; the file of another one is kept beside it."""
    here, kept = machine(), {}
    if path.is_file():
        before = json.loads(path.read_text())
        if before["machine"] != here:
            path.replace(path.with_suffix(".before.json"))
        else:
            kept = {row["name"]: row for row in before["rows"]}
    values = asdict(row) | dict(verdict=row.verdict, load_before=round(load, 2))
    kept[row.name] = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dict(machine=here, rows=[*kept.values()]), indent=1) + "\n")
