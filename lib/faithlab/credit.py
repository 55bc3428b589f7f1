"""Token credit: which tokens of a rollout get more of its advantage, `A[t] -> gamma[t] A[t]`.

A strategy turns a score of the rollout's tokens into gamma, a positive scale that carries no gradient:

    uniform             gamma = 1: plain GRPO
    random              the control: tokens drawn by lot
    entropy             where the policy was unsure (Wang et al. 2025, arXiv 2506.01939, as a scale and not as a mask)
    gradient            what log p(answer) is most sensitive to, |embedding . gradient|
    received_attention  what later tokens look at, mean over the heads read
    local_chunk         where WAAD changes most:  D[t] = |WAAD[t] - WAAD[t+1]|    (preplan and anchor, arXiv 2510.13554)
    global_anchor       the highest FAI                                           (the same)
    coupled_rhythm      anchors, sharing their bonus with the token that introduces them (the same)
    flow                the highest throughput                                    (FlowTracer, arXiv 2606.10646)
    saliency            what the answer's optimised mask had to open              (AtManRL, arXiv 2604.16158)

All but `coupled_rhythm` give `amplify` to the top `quantile` of the tokens whose score is defined. A token without a
defined score (NaN) is never chosen; tokens outside the mask have gamma = 1.

    >>> import torch
    >>> scores, mask = torch.tensor([[0.1, 0.9, 0.5, torch.nan, 0.2]]), torch.ones(1, 5)
    >>> weights("flow", scores, mask, quantile=0.5).tolist()
    [[1.0, 1.5, 1.5, 1.0, 1.0]]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithlab.errors import FaithlabError, check_number, unknown

# What each strategy reads, by the names of `faithlab.rollouts.SCORES`.
NEEDS: dict[str, tuple[str, ...]] = {
    "uniform": (),
    "random": ("random",),
    "entropy": ("entropy",),
    "gradient": ("gradient",),
    "received_attention": ("received",),
    "local_chunk": ("waad",),
    "global_anchor": ("fai",),
    "coupled_rhythm": ("waad", "fai"),
    "flow": ("flow",),
    "saliency": ("saliency",),
}
STRATEGIES = tuple(NEEDS)
SIGNS = ("both", "positive", "negative")
SETTINGS = ("quantile", "amplify", "bottom", "sign", "normalise", "look_back", "alpha")  # of `weights`, for trainers
QUANTILE, AMPLIFY = 0.4, 1.5  # as published for both attention papers
LOOK_BACK, ALPHA = 3, 0.5  # k as published; alpha is not published and our choice


def weights(
    name: str,
    scores: Float[Tensor, "batch token"] | Mapping[str, Float[Tensor, "batch token"]] | None,
    mask: Float[Tensor, "batch token"] | Bool[Tensor, "batch token"],
    *,
    quantile: float = QUANTILE,
    amplify: float = AMPLIFY,
    bottom: bool = False,
    sign: str = "both",
    advantages: Float[Tensor, " batch"] | None = None,
    normalise: bool = False,
    look_back: int = LOOK_BACK,
    alpha: float = ALPHA,
    tau_waad: float | None = None,
    tau_delta: float | None = None,
) -> Float[Tensor, "batch token"]:
    """gamma of every token: above 0, exactly 1 outside the mask.

    Args:
        name: one of `STRATEGIES`.
        scores: what the strategy reads (`NEEDS`), as one tensor where that is one score, else by name. NaN: undefined.
        mask: the tokens that the policy wrote and is trained on.
        quantile: share of the tokens with a defined score that are amplified, 0 to 1; see `top`.
        amplify: gamma of these.
        bottom: take the lowest scores instead of the highest (ablation; not for coupled_rhythm).
        sign: "both"; or amplify only in rollouts with an advantage above 0 ("positive": version 1 of preplan and
            anchor, which leaves negative advantages alone) or below 0 ("negative"). Needs `advantages`.
        normalise: divide gamma by its mean over the mask, rollout by rollout, so that credit moves between tokens only.
        look_back, alpha, tau_waad, tau_delta: of coupled_rhythm, see `_coupled`. The thresholds are the medians of the
            rollout unless set; these and alpha are our choices, since the paper does not give them.

    Raises:
        FaithlabError: an unknown name, a score that is missing or of another shape, settings out of range.
    """
    if name not in NEEDS:
        raise unknown("credit strategy", name, STRATEGIES)
    check_number("quantile", quantile, 0, 1)
    check_number("amplify", amplify, 0, above=True)
    check_number("alpha", alpha, 0, 1)
    if name == "coupled_rhythm" and amplify <= alpha / (1 + alpha):
        raise FaithlabError(
            f"amplify={amplify:g} would turn the sign of tokens that coupled_rhythm counts twice; with alpha={alpha:g} "
            f"it must be above {alpha / (1 + alpha):.3g}"
        )
    check_number("look_back", look_back, 1, whole=True)
    if sign not in SIGNS:
        raise unknown("sign of credit", sign, SIGNS)
    inside = mask > 0
    found = _scores(name, scores, inside)
    ones = torch.ones(inside.shape, dtype=torch.float32, device=inside.device)
    if name == "uniform":
        return ones
    if name == "coupled_rhythm":
        if bottom:
            raise FaithlabError("coupled_rhythm has no bottom: it is made of anchors and what introduces them")
        bonus = _coupled(found["waad"], found["fai"], quantile, look_back, alpha, tau_waad, tau_delta)
    else:
        (score,) = found.values()
        score = change(score) if name == "local_chunk" else score
        bonus = top(-score if bottom else score, quantile).float()
    gamma = ones + (amplify - 1) * bonus
    if normalise:
        mean = torch.where(inside, gamma, 0).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
        gamma = torch.where(inside, gamma / mean.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    if sign != "both":
        if advantages is None or advantages.shape != (len(inside),):
            raise FaithlabError(f"sign={sign!r} needs advantages=, one a rollout")
        wanted = advantages > 0 if sign == "positive" else advantages < 0
        gamma = torch.where(wanted[:, None], gamma, 1.0)
    return gamma


def check(names: Iterable[str], settings: Mapping[str, object]) -> None:
    """Raise `FaithlabError` for what `weights` would refuse of these strategies with these `SETTINGS`, before there is
    any score."""
    one = torch.ones(1, 1)
    for name in names:
        weights(name, dict.fromkeys(NEEDS.get(name, ()), one), one, advantages=one[0], **settings)


def top(score: Float[Tensor, "batch token"], quantile: float) -> Bool[Tensor, "batch token"]:
    """The `quantile` of each row's defined scores that are highest: round(quantile * defined) of them, at least one if
    any is defined and the quantile is not 0, less those that tie with one left out.

    Tokens that tie across the border are all left out: a score that does not tell them apart gives no reason to take
    the earlier ones (a sparse mask is 0 at most tokens)."""
    defined = ~torch.isnan(score)
    count = defined.sum(1)
    wanted = (count * quantile).round().clamp(min=1 if quantile > 0 else 0)
    order = torch.where(defined, -score, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(score.shape[1], device=score.device).expand_as(order)
    )
    inside = defined & (rank < wanted[:, None])
    first_out = torch.where(defined & ~inside, score, -torch.inf).amax(1, keepdim=True)
    return inside & (score > first_out)


def change(waad: Float[Tensor, "batch token"]) -> Float[Tensor, "batch token"]:
    """`D[t] = |WAAD[t] - WAAD[t+1]|`: how suddenly the local heads' look-back changes. NaN at the last token."""
    return torch.cat([(waad[:, :-1] - waad[:, 1:]).abs(), waad.new_full((len(waad), 1), torch.nan)], 1)


def overlap(a: Bool[Tensor, "batch token"], b: Bool[Tensor, "batch token"]) -> float:
    """Jaccard overlap of the tokens that two strategies chose, over the whole batch; NaN if neither chose any."""
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else float("nan")


def _scores(name: str, scores, inside: Bool[Tensor, "batch token"]) -> dict[str, Tensor]:
    """The scores that the strategy reads, NaN outside the mask."""
    needs = NEEDS[name]
    if isinstance(scores, Tensor):
        if len(needs) > 1:
            raise FaithlabError(f"{name} reads {' and '.join(needs)}; give scores as a mapping of these")
        scores = dict.fromkeys(needs, scores)
    out = {}
    for need in needs:
        value = (scores or {}).get(need)
        if value is None:
            raise FaithlabError(f"{name} reads the score {need!r}, which is missing")
        if value.shape != inside.shape:
            raise FaithlabError(f"score {need!r} has shape {tuple(value.shape)}, the mask {tuple(inside.shape)}")
        if torch.isinf(value).any():
            raise FaithlabError(f"score {need!r} holds infinity; mark what is undefined by NaN")
        out[need] = torch.where(inside, value.to(inside.device, torch.float32), torch.nan)
    return out


def _coupled(waad, fai, quantile, look_back, alpha, tau_waad, tau_delta) -> Float[Tensor, "batch token"]:
    """Shares of the bonus under coupled_rhythm.

    An anchor t (top quantile of FAI) is *dominated* if WAAD[t] <= tau_waad and the largest D among the `look_back`
    tokens before it is >= tau_delta; the token of that D introduces it. Free anchors get 1, dominated ones 1 - alpha,
    introductory tokens alpha, and what a token gets adds up (introducing two anchors counts once).
    """
    delta, anchor = change(waad), top(fai, quantile)
    low = waad.nanmedian(1, keepdim=True).values if tau_waad is None else tau_waad
    high = delta.nanmedian(1, keepdim=True).values if tau_delta is None else tau_delta
    known = torch.nan_to_num(delta, nan=-torch.inf)
    padded = torch.cat([known.new_full((len(known), look_back), -torch.inf), known], 1)
    before = padded.unfold(1, look_back, 1)[:, : known.shape[1]]  # [batch, t, the tokens t - look_back to t - 1]
    largest, where = before.max(2)
    dominated = anchor & (waad <= low) & (largest >= high) & (largest > -torch.inf)
    introduced = torch.arange(known.shape[1], device=known.device) - look_back + where
    introduces = torch.zeros_like(known).scatter_reduce_(
        1, introduced.clamp(min=0), dominated.float(), reduce="amax", include_self=True
    )
    return anchor.float() - alpha * dominated.float() + alpha * introduces
