"""Do planning, anchoring and uncertainty go together? Peaks of token profiles, and three couplings with their nulls.

    entropy_at_waad     mean token entropy at WAAD peaks, against shuffled peak positions
    fai_is_receiver     share of FAI peaks that are also peaks of the receiver heads, against shuffled FAI peaks
    fai_after_waad      share of FAI peaks at or just after a WAAD peak, against shuffled FAI peaks

Source: preplan and anchor (arXiv 2510.13554), table 2. What counts as a peak and as "just after" is not published;
`SHARE` and `AFTER` are our choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import find_peaks

from faithlab.errors import FaithlabError
from faithlab.intervals import Interval, ratio_interval

SHARE = 0.4  # peaks are local maxima among the top 40 % of a profile
AFTER = 2  # "just after" is up to two tokens later


def peaks(profile: Sequence[float], share: float = SHARE) -> list[int]:
    """Indices of the local maxima of a profile that belong to its top `share`.

    A plateau counts once, at its middle (the left of two middles). The first and the last token have one neighbour only
    and are no peaks. Undefined (NaN) entries are never peaks, and count as lower than everything to their neighbours.

    Raises:
        FaithlabError: `share` is not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise FaithlabError(f"share={share} is not possible; use a number above 0 and up to 1")
    values = np.asarray(profile, dtype=float)
    known = values[~np.isnan(values)]
    if len(known) < 3:
        return []
    threshold = np.quantile(known, 1 - share)
    found, _ = find_peaks(np.where(np.isnan(values), -np.inf, values))
    return [int(i) for i in found if values[i] >= threshold]


@dataclass(frozen=True)
class Coupling:
    """`observed` against the `null` of shuffled positions (mean over shuffles, 95 % of which lie between `low` and
    `high`); `p` is the one-sided share of shuffles at least as high as observed (with the +1 correction); `n` counts
    peaks over all traces. NaN and p = 1 for none.

    The null says whether chance makes the coupling in these traces. How far other traces would move it, `excess` says:
    observed less what shuffling gives on average, with its 95 % interval over traces (its `n` counts those with peaks).
    """

    name: str
    observed: float
    null: float
    low: float
    high: float
    p: float
    n: int
    excess: Interval


def _shuffled(values: list[np.ndarray], defined: list[np.ndarray], counts: list[int], rng) -> float:
    """Mean of `values` at as many positions as there were peaks, drawn from the `defined` ones of each trace."""
    drawn = [v[rng.choice(d, size=c, replace=False)] for v, d, c in zip(values, defined, counts, strict=True) if c]
    return float(np.concatenate(drawn).mean())


def coupling(
    name: str,
    values: Sequence[np.ndarray],
    at: Sequence[Sequence[int]],
    where: Sequence[Sequence[int]] | None = None,
    *,
    shuffles: int = 1000,
    seed: int = 0,
) -> Coupling:
    """The mean of `values` at the peaks `at`, over all traces, against shuffled positions.

    Args:
        name: for the table.
        values: for each trace one number a token (an entropy, or 1/0 for "is a peak of the other kind").
        at: for each trace the positions of its peaks.
        where: for each trace the positions that a peak could have had; all where `values` is defined, unless given.

    Raises:
        FaithlabError: unlike numbers of traces.
    """
    values = [np.asarray(v, dtype=float) for v in values]
    if not len(values) == len(at) == len(where if where is not None else at):
        raise FaithlabError(f"{len(values)} traces of values and {len(at)} of peaks; give one each")
    defined = [
        np.flatnonzero(~np.isnan(v)) if where is None else np.asarray([i for i in where[k] if not np.isnan(v[i])], int)
        for k, v in enumerate(values)
    ]
    at = [[i for i in positions if not np.isnan(v[i])] for positions, v in zip(at, values, strict=True)]
    counts = [min(len(positions), len(d)) for positions, d in zip(at, defined, strict=True)]
    n = sum(map(len, at))
    if not n:
        return Coupling(name, *[np.nan] * 4, 1.0, 0, ratio_interval([], []))
    observed = float(
        np.concatenate([v[positions] for v, positions in zip(values, at, strict=True) if positions]).mean()
    )
    rng = np.random.default_rng(seed)
    null = np.array([_shuffled(values, defined, counts, rng) for _ in range(shuffles)])
    low, high = np.quantile(null, [0.025, 0.975])
    p = (1 + (null >= observed - 1e-12).sum()) / (1 + shuffles)
    # the mean over all shuffles of a trace is the mean of its possible positions, so nothing has to be drawn
    above = [
        (v[positions] - v[d].mean()).sum() for v, positions, d in zip(values, at, defined, strict=True) if positions
    ]
    excess = ratio_interval(above, [len(positions) for positions in at if positions], seed=seed)
    return Coupling(name, observed, float(null.mean()), float(low), float(high), float(p), n, excess)


def couplings(
    waads: Sequence[Sequence[float]],
    fais: Sequence[Sequence[float]],
    receivers: Sequence[Sequence[float]],
    entropies: Sequence[Sequence[float]],
    *,
    share: float = SHARE,
    after: int = AFTER,
    shuffles: int = 1000,
    seed: int = 0,
) -> list[Coupling]:
    """The three couplings over a set of traces; each argument holds one profile over the response a trace.

    Raises:
        FaithlabError: profiles of one trace that differ in length, or a `share` that is not above 0 and up to 1.
    """
    waads, fais, receivers, entropies = (
        [np.asarray(p, float) for p in ps] for ps in (waads, fais, receivers, entropies)
    )
    for k, profiles in enumerate(zip(waads, fais, receivers, entropies, strict=True)):
        if len({len(p) for p in profiles}) != 1:
            raise FaithlabError(f"trace {k}: the profiles differ in length, {[len(p) for p in profiles]}")
    waad_peaks, fai_peaks, receiver_peaks = ([peaks(p, share) for p in ps] for ps in (waads, fais, receivers))

    def marks(positions: list[int], n: int, reach: int) -> np.ndarray:
        out = np.zeros(n)
        for p in positions:
            out[p : p + reach + 1] = 1
        return out

    # Where a peak could be: the first and the last token have one neighbour only, and an undefined FAI is no peak.
    inner = [np.flatnonzero(~np.isnan(f[1:-1])) + 1 for f in fais]
    anywhere = [np.arange(1, len(w) - 1) for w in waads]
    options = dict(shuffles=shuffles, seed=seed)
    is_receiver = [marks(p, len(f), 0) for p, f in zip(receiver_peaks, fais, strict=True)]
    after_waad = [marks(p, len(f), after) for p, f in zip(waad_peaks, fais, strict=True)]
    return [
        coupling("entropy_at_waad", entropies, waad_peaks, anywhere, **options),
        coupling("fai_is_receiver", is_receiver, fai_peaks, inner, **options),
        coupling("fai_after_waad", after_waad, fai_peaks, inner, **options),
    ]
