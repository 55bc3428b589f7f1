"""Did one arm do better than another? Paired differences with hierarchical bootstrap and a correction for many looks.

Runs differ by seed, and every run is measured on the same held-out problems. So the values of an arm are a matrix
`[seed, problem]`, and two arms are subtracted cell by cell (equal seeds see equal training problems). Seeds and
problems are both drawn anew in each resample, since a claim about an arm is about seeds and problems that were not
tried (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1). With three to five seeds any bootstrap
is somewhat narrow; the number of seeds stands beside each interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from faithlab.errors import FaithlabError

RESAMPLES = 10_000


class Difference(NamedTuple):
    """A mean paired difference with its 95 % interval.

    `p` is two-sided, from the same resamples, at least 2 / (resamples + 1). `detectable` is the smallest true
    difference that a test at 5 % would find in 80 % of repetitions: (1.96 + 0.84) standard errors.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float
    seeds: int
    problems: int


def difference(
    one: Float[np.ndarray, "seed problem"],
    other: Float[np.ndarray, "seed problem"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of `one - other`, cell by cell; NaN cells ("not measured") are left out.

    Raises `FaithlabError` for unlike shapes. Where nothing was measured all values are NaN.
    """
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if one.ndim != 2 or one.shape != other.shape:
        raise FaithlabError(
            f"two matrices [seed, problem] of one shape are compared; got {one.shape} and {other.shape}"
        )
    gap = one - other
    gap = gap[:, ~np.isnan(gap).all(0)]
    known = ~np.isnan(gap)
    seeds, problems = gap.shape
    if not known.any():
        return Difference(*[math.nan] * 5, seeds, 0)
    rng = np.random.default_rng(seed)

    def counts(n: int) -> Float[np.ndarray, "resample n"]:
        """How often each of n things is drawn in each resample."""
        return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)

    of_seeds, of_problems = counts(seeds), counts(problems)
    total = np.einsum("rs,sp,rp->r", of_seeds, np.where(known, gap, 0.0), of_problems, optimize=True)
    weight = np.einsum("rs,sp,rp->r", of_seeds, known.astype(float), of_problems, optimize=True)
    drawn = total[weight > 0] / weight[weight > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    detectable = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * drawn.std()
    return Difference(float(gap[known].mean()), float(low), float(high), float(p), float(detectable), seeds, problems)


def holm(p: Sequence[float]) -> Float[np.ndarray, " test"]:
    """Holm's step-down correction (1979): the i-th smallest of m p-values times m - i (from 0), made monotone, at most
    1. NaN stays NaN and is not counted."""
    p = np.asarray(p, dtype=float)
    out = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors)) if len(order) else []
    return out


def matrix(
    table: pd.DataFrame, arm: str, quantity: str, *, condition: str | None = None, unit: str = "problem"
) -> pd.DataFrame:
    """The values of an arm as a frame of seeds (rows) by problems or other units (columns), from `sweep.load_runs`.

    Raises `FaithlabError` if there is no such run or column.
    """
    for name in (quantity, unit):
        if name not in table.columns:
            raise FaithlabError(f"the runs have no column {name!r}; they have {', '.join(table.columns)}")
    part = table[table["arm"] == arm]
    if condition is not None:
        part = part[part["condition"] == condition]
    if part.empty:
        raise FaithlabError(f"no finished run of {arm!r}" + (f", {condition}" if condition else ""))
    return part.pivot(index="seed", columns=unit, values=quantity)


def compare(
    table: pd.DataFrame,
    arms: Sequence[str],
    against: Sequence[str],
    quantity: str,
    *,
    condition: str | None = None,
    unit: str = "problem",
    seed: int = 0,
) -> pd.DataFrame:
    """Every arm against each of `against`, over the seeds that both have: columns `arm, against`, those of
    `Difference`, and `p_holm`, corrected over the whole table.

    Raises `FaithlabError` where two arms share no seed.
    """
    rows = []
    for base in against:
        second = matrix(table, base, quantity, condition=condition, unit=unit)
        for arm in arms:
            if arm == base:
                continue
            first = matrix(table, arm, quantity, condition=condition, unit=unit)
            seeds, units = first.index.intersection(second.index), first.columns.intersection(second.columns)
            if not len(seeds):
                raise FaithlabError(f"{arm} and {base} share no seed; run both with the same ones")
            found = difference(first.loc[seeds, units].to_numpy(), second.loc[seeds, units].to_numpy(), seed=seed)
            rows.append(dict(arm=arm, against=base, **found._asdict()))
    out = pd.DataFrame(rows, columns=["arm", "against", *Difference._fields])
    return out.assign(p_holm=holm(out["p"]))


def levels(
    table: pd.DataFrame, arms: Sequence[str], quantity: str, *, condition: str | None = None, unit: str = "problem"
) -> pd.DataFrame:
    """The mean of each arm with its interval over seeds and problems: columns `arm, value, low, high, seeds, n` (n: of
    values that were measured)."""
    rows = []
    for arm in arms:
        values = matrix(table, arm, quantity, condition=condition, unit=unit).to_numpy()
        found = difference(values, np.zeros_like(values))
        rows.append(dict(arm=arm, value=found.value, low=found.low, high=found.high, seeds=found.seeds,
                         n=int((~np.isnan(values)).sum())))  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "value", "low", "high", "seeds", "n"])


def area(log: pd.DataFrame, column: str = "reward") -> pd.DataFrame:
    """Area under each run's learning curve, the mean of `column` over its steps: columns `arm, seed, area`."""
    return log.groupby(["arm", "seed"])[column].mean().rename("area").reset_index()
