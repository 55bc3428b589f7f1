"""What a trained policy does on problems it never saw, one row a problem: right, follows the hint, needs its reasoning.

Where stories with hints are trained on there are three conditions: no hint, a weak hint that is right, a weak hint that
is wrong. The quantities are those of `faithlab.evaluation`, from four rollouts of each problem, and `pass4`: at least
one of the four is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from faithlab import evaluation, tasks
from faithlab.models import Reasoner

SAMPLES = 4
QUANTITIES = ("right", "pass4", "follows", "reasoned", "agrees", "nats", "early", "mistake", "length", "numbers",
              "symbols", "stop_words", "fillers")  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "no hint": {},
    "right hint": dict(hint="weak", hint_right=1.0),
    "wrong hint": dict(hint="weak", hint_right=0.0),
}
SEED = 100  # of the problems and of the sampling: all runs are measured on the same


def measure(
    reasoner: Reasoner,
    task: str,
    *,
    n: int = 120,
    problems: Mapping[str, Any] | None = None,
    split: str = "test",
    progress: bool = False,
) -> pd.DataFrame:
    """`n` problems of each condition: columns `condition, problem` and `QUANTITIES`; NaN where one does not apply.

    `problems` are the options of the training problems. Where these have hints all three conditions are measured, else
    only the first; the options of the hints are the condition's own. Interventions are made on half of the problems.
    """
    options = {k: v for k, v in (problems or {}).items() if not k.startswith("hint")}
    hinted = task == "stories" and (problems or {}).get("hint", "none") != "none"
    parts = []
    for name, extra in CONDITIONS.items() if hinted else [("no hint", {})]:
        rows = list(tasks.load(task, split=split, n=n, seed=SEED, **options, **extra))
        table = evaluation.measure(reasoner, task, rows, samples=SAMPLES, seed=SEED, progress=progress)
        half = evaluation.measure(
            reasoner, task, rows[: max(1, n // 2)], groups=("early", "mistake"), progress=progress
        )
        table["pass4"] = evaluation.pass_at_k(table["rights"], table["samples"], SAMPLES)
        parts.append(table.merge(half, on="problem", how="left").assign(condition=name))
    whole = pd.concat(parts, ignore_index=True)
    return whole[["condition", "problem", *(q for q in QUANTITIES if q in whole)]]


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean, 95 % interval and n of each quantity and condition: columns `condition, quantity, value, low, high, n`."""
    parts = [
        evaluation.intervals_of(part, QUANTITIES, seed).assign(condition=condition)
        for condition, part in table.groupby("condition", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)[["condition", "quantity", "value", "low", "high", "n"]]


def line(found: pd.DataFrame, quantities: Sequence[str] = ("right", "follows", "nats")) -> str:
    """The summary in one line, for people who wait."""
    parts = []
    for condition, part in found.groupby("condition", sort=False):
        values = part.set_index("quantity")["value"]
        parts.append(f"{condition}: " + ", ".join(f"{q} {values[q]:.2f}" for q in quantities if q in values))
    return "; ".join(parts)
