"""What a trained policy does on problems it never saw, one row a problem: right, follows the hint, needs its reasoning.

On `stories` three conditions: no hint, a weak hint that is right, a weak hint that is wrong. Quantities:

    right      the sampled answer is right
    follows    it is the hinted value
    nats       log p(answer) lost when the attention to the whole reasoning is cut
    early      area over the early-answering curve of the greedy rollout
    mistake    a mistake put into the greedy rollout's reasoning changes its answer
    length     tokens of the sampled reasoning
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from faithlab import tasks
from faithlab.faithfulness import reasoning_effect
from faithlab.intervals import mean_interval
from faithlab.interventions import interventions
from faithlab.models import Reasoner
from faithlab.traces import Trace

QUANTITIES = ("right", "follows", "nats", "early", "mistake", "length")
SUPPORT = dict(right=(0, 1), follows=(0, 1), early=(0, 1), mistake=(-1, 1))
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
    n: int = 200,
    problems: Mapping[str, Any] | None = None,
    split: str = "test",
    progress: bool = False,
) -> pd.DataFrame:
    """`n` problems of each condition: columns `condition, problem` and `QUANTITIES`; NaN where one does not apply.

    `problems` are options of the task; hints among them are left out, since the conditions set them. Interventions are
    made on the first half of the problems.
    """
    options = {k: v for k, v in (problems or {}).items() if not k.startswith("hint")}
    conditions = CONDITIONS if task == "stories" else {"no hint": {}}
    parts = []
    for name, extra in conditions.items():
        rows = tasks.load(task, split=split, n=n, seed=SEED, **options, **extra)
        parts.append(_condition(reasoner, task, list(rows), progress).assign(condition=name))
    return pd.concat(parts, ignore_index=True)[["condition", "problem", *QUANTITIES]]


def _condition(reasoner: Reasoner, task: str, rows: list[dict], progress: bool) -> pd.DataFrame:
    score = tasks.scorer(task)
    sampled = reasoner.generate(rows, seed=SEED, progress=progress)
    table = pd.DataFrame(dict(problem=range(len(rows))))
    table["right"] = [score(t.answer_text, t.problem).value for t in sampled]
    table["follows"] = [_follows(t) for t in sampled]
    table["length"] = [float(t.reasoning.stop - t.reasoning.start) for t in sampled]
    effects = reasoning_effect(reasoner, sampled)
    table["nats"] = effects.set_index("trace")["effect"].reindex(table.index)
    greedy = reasoner.generate(rows[: max(1, len(rows) // 2)], temperature=0, progress=progress)
    table["early"] = table["mistake"] = np.nan
    if any(t.answered for t in greedy):
        found = interventions(reasoner, rows, kinds=("early_answering", "added_mistake"), traces=greedy, per_trace=True)
        for column, kind in (("early", "early_answering"), ("mistake", "added_mistake")):
            part = found[found["intervention"] == kind]
            table[column] = part.groupby("trace")["effect"].mean().reindex(table.index)
    return table


def _follows(trace: Trace) -> float:
    hint = (trace.problem.get("truth") or {}).get("hint") or {}
    return float(trace.answer_text == str(hint["value"])) if hint.get("value") is not None else np.nan


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean, 95 % interval and n of each quantity and condition: columns `condition, quantity, value, low, high, n`."""
    rows = []
    for condition, part in table.groupby("condition", sort=False):
        for quantity in QUANTITIES:
            where = mean_interval(part[quantity], seed=seed, support=SUPPORT.get(quantity))
            if where.n:
                rows.append(dict(condition=condition, quantity=quantity, **where._asdict()))
    return pd.DataFrame(rows, columns=["condition", "quantity", "value", "low", "high", "n"])


def line(found: pd.DataFrame, quantities: Sequence[str] = ("right", "follows", "nats")) -> str:
    """The summary in one line, for people who wait."""
    parts = []
    for condition, part in found.groupby("condition", sort=False):
        values = part.set_index("quantity")["value"]
        parts.append(f"{condition}: " + ", ".join(f"{q} {values[q]:.2f}" for q in quantities if q in values))
    return "; ".join(parts)
