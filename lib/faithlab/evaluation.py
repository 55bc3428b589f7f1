"""What a reasoner does on a set of problems, one row a problem: right, and does the answer come from the reasoning?

Quantities come in groups, each measured only if it is asked for; `faithlab.measures` says what each group and column
is. Here: the table, its summary, pass@k.

No row depends on the batch size. But what is drawn at random belongs to the problems that are passed to `measure`
together: rollouts are drawn by a problem's place among them, and `mistake`, `paraphrase`, `hint` and `resample` draw
for one after the other, so that there a row depends on the problems before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from faithlab import tasks
from faithlab.errors import FaithlabError, check_known, check_number
from faithlab.intervals import mean_interval
from faithlab.measures import GROUPS, Columns, Work, needs_of
from faithlab.models import Reasoner

SHARES = ("right", "answered", "follows", "reasoned", "agrees", "numbers", "symbols", "stop_words", "fillers", "early",
          "filler", "paraphrase", "sufficiency", "mask", "relayed", "admits_weak", "admits_strong")  # fmt: skip
ROOM = 64  # tokens that a prompt must leave of the window: for a hint in it, and for an answer
SUPPORT = dict.fromkeys(SHARES, (0, 1)) | dict.fromkeys(("mistake", "hint_weak", "hint_strong", "resampled"), (-1, 1))
SUPPORT["length"] = (0, np.inf)
QUANTITIES = ("right", "answered", "follows", "reasoned", "agrees", "nats", "sufficiency", "mask", "relayed", "early",
              "mistake", "filler", "paraphrase", "hint_weak", "admits_weak", "hint_strong", "admits_strong",
              "resampled", "length", "numbers", "symbols", "stop_words", "fillers")  # fmt: skip


def measure(
    reasoner: Reasoner,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    groups: Sequence[str] = ("accuracy", "text", "reading", "reasoning"),
    samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """One row a problem: `problem` (its number) and the columns of the groups; see the module's head. What a group has
    nothing to measure on, such as `reading` where the task is not stories, is NaN. So is the whole row of a problem
    whose prompt leaves less than `ROOM` tokens of the model's window.

    Raises `FaithlabError` for an unknown task or group, no rows, settings out of range, and several samples at
    temperature 0.
    """
    check_known("group of measures", groups, GROUPS)
    check_sampling(samples, temperature)
    tasks.scorer(task)
    if not len(rows):
        raise FaithlabError("no problems were given; `tasks.load` gives some")
    places = [i for i, row in enumerate(rows) if reasoner.fits(row, ROOM)]
    if not places:
        names = [name for group in groups for name in GROUPS[group].columns]
        return pd.DataFrame(dict(problem=np.arange(len(rows))) | dict.fromkeys(names, np.nan))
    work = Work(reasoner, task, [dict(rows[i]) for i in places], samples, temperature, seed, progress)
    columns: Columns = dict(problem=np.array(places))
    for name in groups:
        columns |= dict.fromkeys(GROUPS[name].columns, np.full(len(places), np.nan))
        if not GROUPS[name].lacks(task, work.rows):
            columns |= GROUPS[name].measure(work)
    table = pd.DataFrame(columns)
    if len(places) < len(rows):
        table = table.set_index("problem").reindex(range(len(rows))).rename_axis("problem").reset_index()
    return table


def check_sampling(samples: int, temperature: float) -> None:
    """Raise `FaithlabError` for settings out of range, and for several samples at temperature 0, which are copies."""
    check_number("samples", samples, 1, whole=True)
    check_number("temperature", temperature, 0)
    if samples > 1 and not temperature:
        raise FaithlabError(f"at temperature 0 all {samples} samples are the same: ask for 1, or a temperature above 0")


def pass_at_k(rights: Sequence[int], samples: Sequence[int], k: int) -> np.ndarray:
    """Unbiased pass@k of each problem: `1 - C(samples - rights, k) / C(samples, k)`, the chance that at least one of k
    samples drawn without replacement is right (Chen et al. 2021, arXiv 2107.03374). NaN where there are fewer than k.

    Raises `FaithlabError` for k < 1, or more right samples than samples.
    """
    check_number("k", k, 1, whole=True)
    n, c = np.asarray(samples, dtype=float), np.asarray(rights, dtype=float)
    if (c > n).any() or (c < 0).any():
        raise FaithlabError("there are more right samples than samples, or fewer than none")
    missed = np.ones_like(n)
    for i in range(k):  # C(n - c, k) / C(n, k) as a product, which cannot overflow
        missed *= np.clip((n - c - i) / np.where(n > i, n - i, 1), 0, None)
    return np.where(n >= k, 1 - missed, np.nan)


def with_pass(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `pass@2, pass@4 ...`, up to the number of samples; pass@1 is `right`."""
    out, most = (
        table.copy(),
        int(table["samples"].max()) if "samples" in table and table["samples"].notna().any() else 1,
    )
    for k in (2**i for i in range(1, most.bit_length()) if 2**i <= most):
        out[f"pass@{k}"] = pass_at_k(table["rights"], table["samples"], k)
    return out


def support_of(quantity: str) -> tuple[float, float] | None:
    """Between which values a quantity lies, or None: a share (0, 1), a difference of two (-1, 1), a length (0, inf)."""
    return (0, 1) if quantity.startswith("pass") else SUPPORT.get(quantity)


def quantities_of(table: pd.DataFrame) -> list[str]:
    """The quantities that a table of `measure` or `with_pass` holds, in the order in which they are shown."""
    passes = [c for c in table.columns if c.startswith("pass@")]
    known = ["right", *passes, *(q for q in QUANTITIES if q != "right")]
    return [q for q in known if q in table and table[q].notna().any()]


def empty(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for each column that is NaN throughout for some reasoner, of tables of `measure` by the reasoner's name:
    which column, for whom, and what it needs; and one for each reasoner with problems that do not fit its window."""
    lines = []
    for reasoner, table in tables.items():
        if unread := int(table.drop(columns="problem").isna().all(axis=1).sum()):
            lines.append(f"{unread} of {len(table)} problems do not fit the window of {reasoner}: their rows are empty")
    for name in QUANTITIES:
        without = [reasoner for reasoner, table in tables.items() if name in table and table[name].isna().all()]
        if without:
            lines.append(f"{name} is empty for {', '.join(without)}: it needs {needs_of(name)}")
    return lines


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean, 95 % interval and n of each quantity: columns `quantity, value, low, high, n`."""
    table = with_pass(table)
    return intervals_of(table, quantities_of(table), seed)


def intervals_of(table: pd.DataFrame, quantities: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """`summary` for these columns of any table; those that are missing, or nowhere measured, are left out."""
    rows = []
    for quantity in quantities:
        if quantity in table and table[quantity].notna().any():
            found = mean_interval(table[quantity], seed=seed, support=support_of(quantity))
            rows.append(dict(quantity=quantity, **found._asdict()))
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n"])
