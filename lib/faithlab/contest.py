"""All token scores on the same traces, judged by the same truths, with what each costs.

Truths, in order of cost: what the generator planted (stories only), what hiding each token does to log p(answer), and
how often the answer changes when the model writes another sentence in a sentence's place (see `faithlab.faithfulness`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from faithlab import token_scores
from faithlab.errors import check_known
from faithlab.intervals import Interval, mean_interval
from faithlab.likelihood import answer_logp
from faithlab.planted import planted
from faithlab.ranking import auroc, average_precision, spearman, top_one
from faithlab.traces import Trace

SUMMARIES = dict(largest=torch.max, mean=torch.mean)
COLUMNS = ["score", "group", "measure", "n", "value", "low", "high"]


def run_scores(
    reasoner, traces: Sequence[Trace], names: Sequence[str] | None = None, *, seed: int = 0, **options
) -> tuple[dict[str, list[Tensor]], pd.DataFrame]:
    """Every named score (default: all; "mask_network" only with `network=`) of the traces, and what it cost.

    The second result has `score, group, seconds, per_trace` and `forward_equivalents`: seconds over those of one plain
    forward pass of the same traces in the same run (the fastest of three).
    """
    forward = min(timed(lambda: answer_logp(reasoner, traces))[1] for _ in range(3))
    found, costs = {}, []
    known = [n for n in token_scores.names() if n != "mask_network" or "network" in options]
    for name in names or known:
        found[name], spent = timed(lambda n=name: token_scores.score(n, reasoner, traces, seed=seed, **options))
        cost = dict(score=name, group=token_scores.group_of(name), seconds=spent, per_trace=spent / len(traces))
        costs.append(cost | dict(forward_equivalents=spent / forward))
    return found, pd.DataFrame(costs)


def timed(work):
    """What `work()` returns, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def judge(
    scores: dict[str, list[Tensor]],
    traces: Sequence[Trace],
    *,
    effects: dict[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Every score against every truth that is known, trace by trace: columns `score, trace, measure, value`.

    Measures against the planted truth of stories: "decisive, top 1", "decisive, average precision", "path, AUROC"
    (results of needed steps among all reasoning tokens), "relayed among numbers, AUROC" (needed among written results
    other than the decisive one; NaN where a trace has none of either kind).
    `effects` are tables of `token_effects` by name; each adds "Spearman, <name>". In tables by sentence a score counts
    with the largest of its tokens.
    """
    rows = []
    truths = [planted(t) for t in traces]
    measured = {name: dict(list(table.groupby("trace"))) for name, table in (effects or {}).items()}
    for name, values in scores.items():
        for i, (trace, s, truth) in enumerate(zip(traces, values, truths, strict=True)):
            found: dict[str, float] = {}
            if truth is not None and truth.known:
                found["decisive, top 1"] = top_one(s, truth.decisive)
                found["decisive, average precision"] = average_precision(s, truth.decisive)
                found["path, AUROC"] = auroc(s, truth.path)
                relayed = truth.number & ~truth.decisive
                found["relayed among numbers, AUROC"] = auroc(s[relayed], truth.path[relayed])
            for effect, parts in measured.items():
                if i in parts:
                    found[f"Spearman, {effect}"] = spearman(_by_unit(s, trace, parts[i]), parts[i]["effect"])
            rows += [dict(score=name, trace=i, measure=k, value=v) for k, v in found.items()]
    return pd.DataFrame(rows, columns=["score", "trace", "measure", "value"])


def _by_unit(s: Tensor, trace: Trace, units: pd.DataFrame) -> list[float]:
    """The largest score within each unit of a table of effects; NaN where none is defined."""
    out = []
    for start, stop in zip(units["start"], units["stop"], strict=True):
        part = s[start - trace.reasoning.start : stop - trace.reasoning.start]
        part = part[~torch.isnan(part)]
        out.append(float(part.max()) if len(part) else math.nan)
    return out


def standings(judged: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean over traces, with its 95 % bootstrap interval, of every score and measure: columns of `COLUMNS`."""
    rows = []
    for (name, measure), part in judged.groupby(["score", "measure"], sort=False):
        where = mean_interval(part["value"], seed=seed)
        row = dict(score=name, group=token_scores.group_of(name), measure=measure, n=where.n)
        rows.append(row | dict(value=where.value, low=where.low, high=where.high))
    return pd.DataFrame(rows, columns=COLUMNS)


def tells_apart(
    faithful: Sequence[Tensor], decorative: Sequence[Tensor], by: str = "largest", *, draws: int = 0, seed: int = 0
) -> Interval:
    """Whether a score, summed up over a trace, tells traces that need their reasoning from such that do not: AUROC of
    the trace's "largest" value, or of its "mean", with a 95 % interval of `draws` bootstrap samples of both groups (NaN
    without). Traces without a defined value are left out; NaN where a group has none. Raises `FaithlabError` for
    another `by`."""
    check_known("summary of a trace:", [by], SUMMARIES)
    groups = []
    for group in (faithful, decorative):
        defined = [s[~torch.isnan(s)] for s in group]
        groups.append(np.array([float(SUMMARIES[by](s)) for s in defined if len(s)]))
    n = sum(map(len, groups))
    if not all(map(len, groups)):
        return Interval(math.nan, math.nan, math.nan, n)
    labels, rng = [1] * len(groups[0]) + [0] * len(groups[1]), np.random.default_rng(seed)
    drawn = [auroc(np.concatenate([rng.choice(g, len(g)) for g in groups]), labels) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if draws else (math.nan, math.nan)
    return Interval(auroc(np.concatenate(groups), labels), float(low), float(high), n)
