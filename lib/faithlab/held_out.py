"""What a trained policy does on problems it never saw, one row a problem: right, follows the hint, needs its reasoning.

Where stories with hints are trained on there are three conditions: no hint, a weak hint that is right, a weak hint that
is wrong. Four rollouts are sampled for each problem; quantities of rollouts are means over the four, but for `pass4`:

    right      the answer is right
    pass4      at least one of the four is
    follows    it is the hinted value
    reasoned   the value that the reasoning reaches is right (`stories` only)
    agrees     the answer is the value that the reasoning reaches (`stories` only)
    nats       log p(answer) lost when the attention to the whole reasoning is cut (first rollout)
    early      area over the early-answering curve of the greedy rollout
    mistake    a mistake put into the greedy rollout's reasoning changes its answer
    length     tokens of the reasoning
    numbers, symbols, stop_words    shares of these in it (`faithlab.words`)
    fillers    share of its sentences that say nothing (`stories` only)
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
from faithlab.planted import reached_value
from faithlab.tasks.story_text import annotate
from faithlab.traces import Trace
from faithlab.words import shares

TEXT = ("numbers", "symbols", "stop_words", "fillers")
STORY = ("reasoned", "agrees")
QUANTITIES = ("right", "pass4", "follows", *STORY, "nats", "early", "mistake", "length", *TEXT)
SUPPORT = dict.fromkeys(("right", "pass4", "follows", *STORY, "early", *TEXT), (0, 1)) | dict(mistake=(-1, 1))
SAMPLES = 4
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
    conditions = CONDITIONS if hinted else {"no hint": {}}
    parts = []
    for name, extra in conditions.items():
        rows = tasks.load(task, split=split, n=n, seed=SEED, **options, **extra)
        parts.append(_condition(reasoner, task, list(rows), progress).assign(condition=name))
    table = pd.concat(parts, ignore_index=True)
    return table[["condition", "problem", *(q for q in QUANTITIES if q in table)]]


def _condition(reasoner: Reasoner, task: str, rows: list[dict], progress: bool) -> pd.DataFrame:
    score = tasks.scorer(task)
    sampled = reasoner.generate(rows, SAMPLES, seed=SEED, progress=progress)
    each = pd.DataFrame([_of_text(t, task) for t in sampled])
    each["right"] = [score(t.answer_text, t.problem).value for t in sampled]
    each["follows"] = [_follows(t) for t in sampled]
    problem = each.index // SAMPLES
    table = each.groupby(problem).mean()
    table["pass4"] = each["right"].groupby(problem).max()
    table["nats"] = reasoning_effect(reasoner, sampled[::SAMPLES]).set_index("trace")["effect"].reindex(table.index)
    greedy = reasoner.generate(rows[: max(1, len(rows) // 2)], temperature=0, progress=progress)
    table["early"] = table["mistake"] = np.nan
    if any(t.answered for t in greedy):
        found = interventions(reasoner, rows, kinds=("early_answering", "added_mistake"), traces=greedy, per_trace=True)
        for column, kind in (("early", "early_answering"), ("mistake", "added_mistake")):
            part = found[found["intervention"] == kind]
            table[column] = part.groupby("trace")["effect"].mean().reindex(table.index)
    return table.rename_axis("problem").reset_index()


def _of_text(trace: Trace, task: str) -> dict[str, float]:
    """What a rollout's reasoning is made of."""
    found = dict(length=float(trace.reasoning.stop - trace.reasoning.start), **shares(trace.reasoning_text))
    if task == "stories":
        steps = annotate(trace.reasoning_text, target=trace.problem["truth"]["target"], on_path=())
        found["fillers"] = np.mean([s["kind"] == "filler" for s in steps]) if steps else np.nan
        reached = reached_value(trace)
        found["reasoned"] = float(reached == trace.problem["answer"])
        found["agrees"] = float(reached == trace.answer_text) if reached is not None else np.nan
    return found


def _follows(trace: Trace) -> float:
    hint = (trace.problem.get("truth") or {}).get("hint") or {}
    return float(trace.answer_text == str(hint["value"])) if hint.get("value") is not None else np.nan


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean, 95 % interval and n of each quantity and condition: columns `condition, quantity, value, low, high, n`."""
    rows = []
    for condition, part in table.groupby("condition", sort=False):
        for quantity in (q for q in QUANTITIES if q in part):
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
