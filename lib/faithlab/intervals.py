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


def mean_interval(values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval. NaN for no values; a single value has no interval (NaN bounds).

    Values that are NaN are "not measured" and left out; `n` says how many remained.
    """
    data = np.asarray([v for v in values if not np.isnan(v)], dtype=float)
    if len(data) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if len(data) == 1:
        return Interval(float(data[0]), np.nan, np.nan, 1)
    if np.ptp(data) == 0:
        return Interval(float(data[0]), float(data[0]), float(data[0]), len(data))
    result = stats.bootstrap(
        (data,), np.mean, confidence_level=level, n_resamples=resamples, method="percentile", rng=seed, batch=200
    )
    low, high = result.confidence_interval
    return Interval(float(data.mean()), float(low), float(high), len(data))


def share_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """A share `successes / n` with Wilson's interval; NaN for n = 0."""
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(low), float(high), int(n))
