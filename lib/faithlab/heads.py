"""Local and global attention heads, and what they say about planning (preplan and anchor, arXiv 2510.13554).

*Local* heads look at what has just been written, *global* ones far back. Two profiles over the response come of it:

    WAAD  windowed average attention distance, of local heads: high where a token reaches back to begin something new
    FAI   future attention influence, of global heads: high where later tokens look back to a token (an anchor)

All functions are pure, take attention probabilities with the index order `[..., query, key]` and know no model.
"Response" are the tokens from the first of the reasoning to the last of the answer. Undefined values are NaN, and NaN
never wins a ranking.

    >>> import torch
    >>> previous = torch.eye(5).roll(-1, dims=1).tril()  # every token looks at the one before it ...
    >>> previous[0, 0] = 1.0  # ... and the first at itself
    >>> backward_distance(previous[None], slice(1, 5)).tolist()
    [1.0]
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from faithlab.errors import FaithlabError
from faithlab.spans import Span, span_indices, span_mask

WINDOW = 10
HORIZON = (10, 100)  # of FAI; the paper's first version has (10, 50)
FRACTION = 0.3


def distances(n: int, device=None) -> Int[Tensor, "query key"]:
    """`t - s` for query `t` and key `s`, 0 where `s > t`."""
    positions = torch.arange(n, device=device)
    return (positions[:, None] - positions[None]).clamp(min=0)


def backward_distance(probs: Float[Tensor, "*head query key"], response: Span) -> Float[Tensor, "*head"]:
    """How far back a head looks on average, in tokens: mean over response rows t of `sum_s P[t, s] (t - s)`. Raises
    `FaithlabError` for maps that are not square and for an empty response."""
    _square(probs)
    rows = span_indices(response, probs.shape[-1], probs.device)
    _not_empty(rows)
    d = distances(probs.shape[-1], probs.device).to(probs.dtype)
    return (probs[..., rows, :] * d[rows]).sum(-1).mean(-1)


def check_fraction(fraction: float) -> None:
    """Raises `FaithlabError` for a share of heads that `split_heads` cannot take: outside (0, 0.5], and not 1."""
    if isinstance(fraction, str) or not (0 < fraction <= 0.5 or fraction == 1):
        raise FaithlabError(
            f"fraction={fraction} of the heads is not possible; use a number above 0 and up to 0.5, or 1"
        )


def split_heads(
    distance: Float[Tensor, "*head"], fraction: float = FRACTION
) -> tuple[Int[Tensor, " local"], Int[Tensor, " global"]]:
    """The local and the global heads: the `fraction` with the smallest and the largest backward distance.

    Indices into `distance.flatten()`, at least one of each, in order of distance; ties go to the lower index. With a
    single head it is both, and with a fraction of 1 all heads are in both groups (the ablation of preplan and anchor).
    Raises `FaithlabError` for NaN or a fraction outside (0, 0.5] that is not 1.
    """
    check_fraction(fraction)
    flat = distance.flatten()
    if not len(flat) or torch.isnan(flat).any():
        raise FaithlabError("head distances are missing or NaN; was attention captured for any head?")
    count = max(1, round(fraction * len(flat)))
    if len(flat) > 1 and fraction < 1:
        count = min(count, len(flat) // 2)
    order = flat.argsort(stable=True)
    farthest = (-flat).argsort(stable=True)
    return order[:count], farthest[:count]


def waad(local_map: Float[Tensor, "query key"], response: Span, window: int = WINDOW) -> Float[Tensor, " response"]:
    """`WAAD[t] = sum_s P_local[t, s] min(t - s, window)`: mean look-back of the local heads, in tokens, capped.

    In [0, window]; one value a response token. Raises `FaithlabError` for a map that is not square, or window < 1.
    """
    _square(local_map)
    n = local_map.shape[-1]
    rows = span_indices(response, n, local_map.device)
    return (local_map[rows] * look_back(rows, n, window)).sum(-1)


def look_back(rows: Int[Tensor, " row"], keys: int, window: int = WINDOW) -> Float[Tensor, "row key"]:
    """What WAAD weighs attention with, `min(t - s, window)` for the query positions t in `rows` and the first `keys`
    keys, 0 where `s > t`. Raises `FaithlabError` for window < 1."""
    if window < 1:
        raise FaithlabError(f"window={window} is not possible; use window >= 1")
    return (rows[:, None] - torch.arange(keys, device=rows.device)).clamp(0, window).float()


def fai(
    global_map: Float[Tensor, "*head query key"], response: Span, lo: int = HORIZON[0], hi: int | None = HORIZON[1]
) -> Float[Tensor, "*head response"]:
    """`FAI[s]` = mean of `P_global[t, s]` over the response rows t with `s + lo <= t <= s + hi`.

    What later tokens, not the nearest ones, give to a token: in [0, 1]. `hi=None` reads to the end of the response (as
    the paper does for analysis; (10, 100) is for reinforcement learning). NaN where no row is in reach. Leading
    dimensions, such as heads, are kept.

    Raises `FaithlabError` for maps that are not square, and unless 0 <= lo <= hi.
    """
    _square(global_map)
    n = global_map.shape[-1]
    rows = span_mask(response, n, global_map.device).nonzero().flatten()
    among = global_map[..., rows, :][..., rows]
    total, count = torch.where(in_reach(rows, rows, lo, hi), among, 0.0).sum(-2), rows_in_reach(rows, lo, hi)
    return torch.where(count > 0, total / count, torch.nan)


def in_reach(rows: Int[Tensor, " row"], keys: Int[Tensor, " key"], lo: int, hi: int | None) -> Bool[Tensor, "row key"]:
    """Which rows t FAI reads for which keys s: `s + lo <= t <= s + hi`. Raises `FaithlabError` unless 0 <= lo <= hi."""
    if lo < 0 or (hi is not None and hi < lo):
        raise FaithlabError(f"a horizon from {lo} to {hi} tokens ahead is empty; use 0 <= lo <= hi")
    ahead = rows[:, None] - keys[None]
    return (ahead >= lo) & (ahead <= (torch.inf if hi is None else hi))


def rows_in_reach(rows: Int[Tensor, " response"], lo: int, hi: int | None) -> Int[Tensor, " response"]:
    """How many of the response's rows, in order, FAI averages over at each of its tokens."""
    last = rows.new_tensor(len(rows)) if hi is None else torch.searchsorted(rows, rows + hi, right=True)
    return (last - torch.searchsorted(rows, rows + lo)).clamp(min=0)


class Profiles:
    """WAAD and FAI over a response, of every head of some layers, added up in chunks of rows: of whole maps only a part
    need be held. Which heads are local and which global may be decided afterwards, for both are linear in attention:
    the profile of a mean map is the mean of the heads' profiles.

    `shape` is (layers, heads, tokens); `want` names "waad", "fai", both or neither. Raises `FaithlabError` as
    `look_back` and `in_reach` do.
    """

    def __init__(
        self, shape: tuple[int, int, int], response: slice, want: Collection[str], window: int,
        horizon: tuple[int, int | None], device=None,
    ):  # fmt: skip
        self.response, self.window, self.horizon = response, window, horizon
        self.positions = torch.arange(shape[-1], device=device)
        self.sums = {name: torch.zeros(shape, device=device) for name in ("waad", "fai") if name in want}
        self._known: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}  # the same in every layer

    def add(self, layer: int, first: int, last: int, probs: Float[Tensor, "head row key"]) -> None:
        """Rows `first` to `last` of all heads' maps, with keys up to `last`."""
        here = slice(max(first, self.response.start), min(last, self.response.stop))
        if not self.sums or here.start >= here.stop:
            return
        part, keys = probs[:, here.start - first : here.stop - first], slice(self.response.start, here.stop)
        back, reach = self._weights(here.start, here.stop, last)
        if "waad" in self.sums:
            self.sums["waad"][layer, :, here] = (part * back).sum(-1)
        if "fai" in self.sums:
            self.sums["fai"][layer, :, keys] += (part[..., keys] * reach).sum(-2)

    def _weights(self, start: int, stop: int, last: int) -> tuple[Tensor, Tensor]:
        key = start, stop, last
        if key not in self._known:
            rows, keys = self.positions[start:stop], self.positions[self.response.start : stop]
            self._known[key] = look_back(rows, last, self.window), in_reach(rows, keys, *self.horizon).float()
        return self._known[key]

    def finished(self) -> dict[str, Float[Tensor, "layer head response"]]:
        """Each profile that was wanted; FAI is NaN where no row is in reach."""
        out = {name: values[..., self.response] for name, values in self.sums.items()}
        if "fai" in out:
            count = rows_in_reach(self.positions[self.response], *self.horizon)
            out["fai"] = torch.where(count > 0, out["fai"] / count, torch.nan)
        return out


def kurtosis(profile: Float[Tensor, "*head token"]) -> Float[Tensor, "*head"]:
    """How peaked a profile is: fourth central moment over squared variance, less 3 (0 for a normal distribution).

    Undefined (NaN) entries are left out. NaN for fewer than two values; a constant profile, which has no peak, gets the
    lowest kurtosis there is, -2.
    """
    known = ~torch.isnan(profile)
    count = known.sum(-1)
    values = torch.where(known, profile, 0.0).double()
    mean = values.sum(-1, keepdim=True) / count.unsqueeze(-1)
    centred = torch.where(known, values - mean, 0.0)
    m2, m4 = ((centred**p).sum(-1) / count for p in (2, 4))
    flat = m2 <= 1e-24 * (1 + mean[..., 0] ** 2)
    out = torch.where(flat, -2.0, m4 / torch.where(flat, 1.0, m2) ** 2 - 3)
    return torch.where(count >= 2, out, torch.nan).to(profile.dtype)


def receiver_heads(peakedness: Float[Tensor, "*head"], k: int = 5) -> Int[Tensor, " k"]:
    """The `k` heads whose received-attention profile is most peaked (Thought Anchors, arXiv 2506.19143), most peaked
    first: indices into `peakedness.flatten()`. Ties go to the lower index; heads with NaN come last. Fewer than `k` if
    there are not so many. Raises `FaithlabError` for k < 1 or no head."""
    flat = peakedness.flatten()
    if k < 1 or not len(flat):
        raise FaithlabError("receiver heads: use k >= 1 and give at least one head")
    return torch.nan_to_num(-flat, nan=torch.inf).argsort(stable=True)[: min(k, len(flat))]


def entropy(logits: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token"]:
    """Entropy of the next-token distribution, in nats; in [0, log vocab]. Row t belongs to the token at t + 1."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def _square(probs: Tensor) -> None:
    if probs.ndim < 2 or probs.shape[-1] != probs.shape[-2]:
        raise FaithlabError(
            f"attention must be [..., query, key] with as many queries as keys; got {tuple(probs.shape)}"
        )


def _not_empty(rows: Tensor) -> None:
    if not len(rows):
        raise FaithlabError("the response is empty: there is nothing to average over")
