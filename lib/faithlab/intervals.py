"""Confidence intervals used in every table: the bootstrap for means, Wilson's for shares. Both are scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean or share with its interval; `n` counts the values used."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(
    values: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    support: tuple[float, float] | None = None,
) -> Interval:
    """Mean with its percentile bootstrap interval. NaN for no values; a single value has no interval (NaN bounds).

    Values that are NaN are "not measured" and left out; `n` says how many remained. Where all values are alike the
    bootstrap has nothing to draw from and the interval has no width. That is wrong for indicators: 0 of 40 is not proof
    of never. So for values that are whole numbers within `support`, (0, 1) for an indicator or (-1, 1) for a difference
    of two, the interval then goes as far to either side, within `support`, as Wilson's does for 0 of n.
    """
    data = np.asarray([v for v in values if not np.isnan(v)], dtype=float)
    if len(data) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if len(data) == 1:
        return Interval(float(data[0]), np.nan, np.nan, 1)
    if np.ptp(data) == 0:
        value = float(data[0])
        return Interval(value, *ends_of_alike(value, len(data), support, level=level), len(data))
    result = stats.bootstrap(
        (data,), np.mean, confidence_level=level, n_resamples=resamples, method="percentile", rng=seed, batch=200
    )
    low, high = result.confidence_interval
    return Interval(float(data.mean()), float(low), float(high), len(data))


def ends_of_alike(
    value: float, n: int, support: tuple[float, float] | None, *, level: float = 0.95
) -> tuple[float, float]:
    """The interval's ends where n values are all `value`: no width, but for whole numbers in a `support` that is finite
    on both sides as far to either side, within it, as Wilson's interval goes for 0 of n."""
    if support is None or not np.isfinite(support).all() or not value.is_integer():
        return value, value
    width = share_interval(0, n, level=level).high
    return max(support[0], value - width), min(support[1], value + width)


def ratio_interval(
    totals: Sequence[float], counts: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`sum(totals) / sum(counts)`, a mean over cases that come in clusters (peaks in traces), with its percentile
    bootstrap interval: clusters are drawn anew, each with all of its cases. `n` counts clusters. NaN for no case, and
    no interval for a single cluster."""
    totals, counts = np.asarray(totals, dtype=float), np.asarray(counts, dtype=float)
    if not counts.sum():
        return Interval(np.nan, np.nan, np.nan, 0)
    value = float(totals.sum() / counts.sum())
    if len(totals) == 1:
        return Interval(value, np.nan, np.nan, 1)
    found = stats.bootstrap(
        (totals, counts), lambda t, c, axis: t.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        confidence_level=level, n_resamples=resamples, method="percentile", rng=seed, batch=200,
    )  # fmt: skip
    return Interval(value, float(found.confidence_interval.low), float(found.confidence_interval.high), len(totals))


def share_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """A share `successes / n` with Wilson's interval; NaN for n = 0."""
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    # the closed form leaves rounding errors at the ends: 0 of n begins at 0, n of n ends at 1
    return Interval(successes / n, float(low) if successes else 0.0, float(high) if successes < n else 1.0, int(n))
