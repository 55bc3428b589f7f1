"""How well a score ranks tokens: against a yes-or-no truth, against measured effects, and by what hiding them does.

Scores and truths are one value a reasoning token. NaN scores rank last. Ties count half where order matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from scipy import stats
from torch import Tensor

from faithlab.errors import FaithlabError
from faithlab.likelihood import Scope, Variant, variant_logp
from faithlab.traces import Trace

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


def _ranked(scores: Sequence[float] | Tensor, truth: Sequence[float] | Tensor) -> tuple[np.ndarray, np.ndarray]:
    values, labels = (np.asarray(v, dtype=float) for v in (scores, truth))
    if values.shape != labels.shape or values.ndim != 1:
        raise FaithlabError(f"{values.shape} scores for {labels.shape} tokens; give one each")
    return np.where(np.isnan(values), -np.inf, values), labels


def highest_first(scores: Sequence[float] | Tensor) -> Int[Tensor, " token"]:
    """The places of the scores from the highest to the lowest: of equal ones the earlier first, NaN last."""
    values = torch.as_tensor(scores, dtype=torch.float64)
    return torch.nan_to_num(-values, nan=torch.inf).argsort(stable=True)


def auroc(scores, truth) -> float:
    """Area under the ROC curve: the chance that a true token scores above a false one, ties counting half.

    In [0, 1], 0.5 by chance; NaN where all tokens are true or none is. Raises `FaithlabError` unless scores and truth
    are rows of one length.
    """
    values, labels = _ranked(scores, truth)
    yes = labels > 0
    if yes.all() or not yes.any():
        return math.nan
    ranks = stats.rankdata(values)
    count = yes.sum()
    return float((ranks[yes].sum() - count * (count + 1) / 2) / (count * (~yes).sum()))


def average_precision(scores, truth) -> float:
    """Mean over true tokens of the precision among all tokens that score at least as high; in (0, 1].

    By chance it is above the share of true tokens: with one true token among N, (1 + 1/2 + ... + 1/N) / N. NaN where no
    token is true. Raises `FaithlabError` unless scores and truth are rows of one length.
    """
    values, labels = _ranked(scores, truth)
    yes = labels > 0
    if not yes.any():
        return math.nan
    return float(np.mean([yes[values >= v].mean() for v in values[yes]]))


def top_one(scores, truth) -> float:
    """Whether the highest score is at a true token; the share of true ones among tied highest scores. NaN without
    tokens. Raises `FaithlabError` unless scores and truth are rows of one length."""
    values, labels = _ranked(scores, truth)
    return float((labels > 0)[values == values.max()].mean()) if len(values) else math.nan


def spearman(scores, effects) -> float:
    """Rank correlation of scores with effects over the tokens where both are known; NaN where either is constant."""
    values, labels = (np.asarray(v, dtype=float) for v in (scores, effects))
    known = np.isfinite(values) & np.isfinite(labels)
    values, labels = values[known], labels[known]
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(labels) == 0:
        return math.nan
    return float(stats.spearmanr(values, labels).statistic)


def hiding_curves(
    reasoner,
    traces: Sequence[Trace],
    scores: Sequence[Tensor],
    *,
    shares: Sequence[float] = SHARES,
    scope: Scope = "answer",
) -> dict[str, np.ndarray]:
    """Insertion and deletion curves: what is left of the reasoning's worth when tokens are hidden by score.

    With the share x of the reasoning's tokens with the highest scores hidden ("deletion") or alone visible
    ("insertion"), `(log p - log p_hidden) / (log p_full - log p_hidden)`: 1 with all to be seen, 0 with nothing. A good
    score has a deletion curve that falls at once and an insertion curve that rises at once. [trace, share] each; NaN
    for traces whose answer the whole reasoning is worth less than 1 nat, since there is nothing to share out.
    """
    variants = []
    for i, (t, s) in enumerate(zip(traces, scores, strict=True)):
        order = (highest_first(s) + t.reasoning.start).tolist()
        for share in shares:
            cut = round(share * len(order))
            variants += [Variant(i, tuple(order[:cut])), Variant(i, tuple(order[cut:]))]
    logp = variant_logp(reasoner, traces, variants, scope=scope).numpy().reshape(len(traces), len(shares), 2)
    ends = [Variant(i, tuple(range(t.reasoning.start, t.reasoning.stop))) for i, t in enumerate(traces)]
    plain = [Variant(i) for i in range(len(traces))]
    full, hidden = variant_logp(reasoner, traces, plain + ends, scope=scope).numpy().reshape(2, -1, 1)
    worth = np.where(full - hidden >= 1, full - hidden, np.nan)
    return {name: (logp[..., k] - hidden) / worth for k, name in enumerate(("deletion", "insertion"))}


def area(curve: np.ndarray, shares: Sequence[float] = SHARES) -> np.ndarray:
    """Area under each trace's curve, by trapezoids over the share of tokens."""
    return np.trapezoid(curve, np.asarray(shares), axis=-1)
