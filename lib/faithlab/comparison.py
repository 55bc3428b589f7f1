"""Did one arm do better than another? Paired differences, cautious about few seeds, and a correction for many looks.

Runs differ by seed, and every run is measured on the same held-out problems. So the values of an arm are a matrix
`[seed, problem]`, and two arms are subtracted cell by cell (equal seeds see equal training problems). A claim about an
arm is about seeds and problems that were not tried, so both count as drawn, in two ways:

* the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1): seeds and problems are drawn anew together;
* a t interval from the variances of seed means and of problem means, with Satterthwaite's degrees of freedom.

With three seeds the first alone is far too narrow (where seeds differ, its 95 % interval reaches from the lowest seed
to the highest, which holds the truth in 75 %). The wider end and the larger p of the two are reported. A single seed
says nothing about others: then the interval is over problems only.

Nor is the second enough where many arms are compared: of three seeds some agree by chance, and with Satterthwaite's
degrees of freedom their p is far too small to be corrected for the number of looks. So the variance between seeds is
steadied by that of all comparisons in a table (`faithlab.moderation`): of tables without any true difference a tenth
then have one that stands at worst, where arms differ much in how far their seeds lie apart, and else the twentieth part
that is meant. A comparison that stands alone has no others to lean on: with three seeds its 5 % are up to 8 %.

Indicators of a single seed (right or wrong, with one sample) have at least the p of McNemar's exact test (1947), which
is the sign test of those that differ. Where all differences are alike neither has anything to work with. Then p is that
of the sign test (two problems that both went up are no proof), and with a `support` that ends on both sides, indicators
have Wilson's interval of n of n; n is the larger of the numbers of seeds and of problems.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from faithlab.errors import FaithlabError
from faithlab.intervals import ends_of_alike
from faithlab.moderation import moderated

RESAMPLES = 10_000
ROUNDING = 1e-12  # of the largest value: what is less is no difference
BLOCK = 2**24  # numbers that are drawn at a time, in 128 MiB
KEPT = 2**26  # numbers that are kept once drawn, in 64 or 128 MiB


class Difference(NamedTuple):
    """A mean paired difference with its 95 % interval; see the module's head.

    `p` is two-sided. `detectable` is the smallest true difference that the t test at 5 % would find in about 80 % of
    repetitions: `t(0.975) + t(0.8)` standard errors; NaN where these cannot be told, as all differences are alike.
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
    between_seeds: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of `one - other`, cell by cell; NaN cells ("not measured") are left out. `between_seeds` are variance and
    degrees of freedom of the means of seeds, in the place of their own.

    Raises `FaithlabError` for unlike shapes. Where nothing was measured all values are NaN; of a single cell only the
    value is known.
    """
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if one.ndim != 2 or one.shape != other.shape:
        raise FaithlabError(
            f"two matrices [seed, problem] of one shape are compared; got {one.shape} and {other.shape}"
        )
    gap = _measured(one - other)
    known = ~np.isnan(gap)
    seeds, problems = gap.shape
    if not known.any():
        return Difference(*[math.nan] * 5, len(one), 0)
    if known.sum() == 1:  # one number says nothing about how far others may lie
        return Difference(float(gap[known][0]), *[math.nan] * 4, seeds, problems)
    shape = (resamples, seeds, problems, seed)
    filled, means = np.where(known, gap, 0.0), []
    for picked in _kept_draws(*shape) if resamples * problems <= KEPT else _draws(*shape):
        of_seeds, of_problems = (counts.astype(float) for counts in picked)
        total = np.einsum("rs,sp,rp->r", of_seeds, filled, of_problems, optimize=True)
        weight = np.einsum("rs,sp,rp->r", of_seeds, known.astype(float), of_problems, optimize=True)
        means.append(total[weight > 0] / weight[weight > 0])
    drawn = np.concatenate(means)
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    value, (error, freedom) = float(gap[known].mean()), _standard_error(gap, between_seeds)
    rounding = ROUNDING * max(1, np.abs(one[~np.isnan(one)]).max())
    if np.ptp(gap[known]) < rounding:
        p = 2 * 0.5 ** max(seeds, problems) if abs(value) > rounding else 1.0
        return Difference(value, value, value, max(p, 2 / (resamples + 1)), math.nan, seeds, problems)
    if error > 0:
        reach = stats.t.ppf(0.975, freedom) * error
        low, high = min(low, value - reach), max(high, value + reach)
        p = max(p, 2 * stats.t.sf(abs(value) / error, freedom))
    ups, downs = (int((gap == sign).sum()) for sign in (1, -1))
    if seeds == 1 and known.sum() == ups + downs + (gap == 0).sum():  # indicators: few problems are far from normal
        p = max(p, stats.binomtest(ups, ups + downs).pvalue)
    detectable = (stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * error if error > 0 else math.nan
    return Difference(value, float(low), float(high), float(min(1.0, p)), float(detectable), seeds, problems)


def _draws(resamples: int, seeds: int, problems: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How often each seed [resample, seed] and each problem [resample, problem] is drawn, a part of the resamples at a
    time, as there may be many problems."""
    rng = np.random.default_rng(seed)

    def counts(n: int, size: int) -> np.ndarray:
        return rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.min_scalar_type(n))

    of_seeds, size = counts(seeds, resamples), max(1, BLOCK // problems)
    for part in (of_seeds[i : i + size] for i in range(0, resamples, size)):
        yield part, counts(problems, len(part))


@functools.lru_cache(maxsize=1)
def _kept_draws(*shape: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`_draws`, shared by comparisons of one shape in a row: drawing takes several times as long as all the rest."""
    return list(_draws(*shape))


def _measured(gap: Float[np.ndarray, "seed problem"]) -> Float[np.ndarray, "seed problem"]:
    """Without seeds and problems of which nothing is known."""
    gap = gap[:, ~np.isnan(gap).all(0)]
    return gap[~np.isnan(gap).all(1)]


def _between(gap: Float[np.ndarray, "seed problem"], axis: int) -> tuple[float, float]:
    """Variance of the means along an axis, and its degrees of freedom: NaN and 0 for a single mean."""
    means = np.nanmean(gap, axis=axis)
    if len(means) < 2:
        return math.nan, 0
    alike = np.ptp(means) < ROUNDING * max(1, np.abs(means).max())
    return 0.0 if alike else float(np.var(means, ddof=1)), len(means) - 1


def _standard_error(
    gap: Float[np.ndarray, "seed problem"], between_seeds: tuple[float, float] | None
) -> tuple[float, float]:
    """Standard error of the mean of crossed seeds and problems, and Satterthwaite's degrees of freedom."""
    found = zip((between_seeds or _between(gap, 1), _between(gap, 0)), gap.shape, strict=True)
    parts = [(variance / n, freedom) for (variance, freedom), n in found if freedom]
    total = sum(v for v, _ in parts)
    if total <= 0:
        return 0.0, 1.0
    return math.sqrt(total), total**2 / sum(v**2 / f for v, f in parts)


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
    if part.duplicated(["seed", unit]).any():
        kinds = ", ".join(map(str, part["condition"].unique())) if "condition" in part else "none"
        raise FaithlabError(f"{arm!r} has several rows of a {unit}: name one condition; there are {kinds}")
    return part.pivot(index="seed", columns=unit, values=quantity)


def _within(found: Difference, ends: tuple[float, float] | None) -> Difference:
    """The same with an interval that goes no further than `ends`, and is not without width for indicators that are all
    alike."""
    if ends is None:
        return found
    low, high = found.low, found.high
    if low == high:
        low, high = ends_of_alike(found.value, max(found.seeds, found.problems), ends)
    low, high = np.clip((low, high), *ends)
    return found._replace(low=float(low), high=float(high))


def compare(
    table: pd.DataFrame,
    arms: Sequence[str],
    against: Sequence[str],
    quantity: str,
    *,
    condition: str | None = None,
    unit: str = "problem",
    support: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Every arm against each of `against`, as `compare_pairs` does; no pair comes twice, nor turned round."""
    pairs: list[tuple[str, str]] = []
    for base in against:
        pairs += [(arm, base) for arm in arms if arm != base and (base, arm) not in pairs and (arm, base) not in pairs]
    return compare_pairs(
        table, pairs, quantity, condition=condition, unit=unit, support=support, resamples=resamples, seed=seed
    )


def compare_pairs(
    table: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    quantity: str,
    *,
    condition: str | None = None,
    unit: str = "problem",
    support: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The first arm of each pair against the second, over the seeds and problems of both: columns `arm, against`,
    those of `Difference`, and `p_holm`, corrected over the whole table. The variance between seeds is moderated over
    the table too: lay pairs whose seeds may lie equally far apart into one. A base with one run, as the untrained
    policy, is laid beside every seed of an arm. Intervals end where differences do: those of a quantity with `support`
    (0, 1), a share, at -1 and 1. No p is below 2 / (resamples + 1): a correction over many tests needs more resamples.

    Raises `FaithlabError` where two arms share no seed.
    """
    names = dict.fromkeys(name for pair in pairs for name in pair)
    frames = {name: matrix(table, name, quantity, condition=condition, unit=unit) for name in names}
    cells = [_both(frames, *pair) for pair in pairs]
    gaps = [_measured(one - other) for one, other in cells]
    spread = [_between(gap, 1) if gap.size else (math.nan, 0) for gap in gaps]
    ends, rows = support and (support[0] - support[1], support[1] - support[0]), []
    variances, freedom = np.array(spread, dtype=float).reshape(-1, 2).T
    found = moderated(variances, freedom, most=sum(len(f) - 1 for f in frames.values()))  # pairs may share an arm
    steady = zip(found[0].tolist(), found[1].tolist(), strict=True)
    for (arm, base), two, steadied in zip(pairs, cells, steady, strict=True):
        found = difference(*two, between_seeds=steadied, resamples=resamples, seed=seed)
        rows.append(dict(arm=arm, against=base, **_within(found, ends)._asdict()))
    out = pd.DataFrame(rows, columns=["arm", "against", *Difference._fields])
    return out.assign(p_holm=holm(out["p"]))


def _both(
    frames: dict[str, pd.DataFrame], arm: str, base: str
) -> tuple[Float[np.ndarray, "seed problem"], Float[np.ndarray, "seed problem"]]:
    """The values of two arms at the seeds and units that both have."""
    first, second = frames[arm], frames[base]
    seeds, units = first.index.intersection(second.index), first.columns.intersection(second.columns)
    if len(second) == 1:
        seeds = first.index
        second = pd.DataFrame(np.repeat(second.to_numpy(), len(seeds), 0), seeds, second.columns)
    if not len(seeds):
        raise FaithlabError(f"{arm} and {base} share no seed; run both with the same ones")
    return first.loc[seeds, units].to_numpy(float), second.loc[seeds, units].to_numpy(float)


def levels(
    table: pd.DataFrame, arms: Sequence[str], quantity: str, *, condition: str | None = None, unit: str = "problem",
    support: tuple[float, float] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The mean of each arm with its interval over seeds and problems, on the problems that all of them have: columns
    `arm, value, low, high, seeds, n` (n: of values that were measured). Intervals end where the quantity does, at its
    `support`: (0, 1) for a share."""
    rows = []
    found_of = {
        arm: matrix(table, arm, quantity, condition=condition, unit=unit).dropna(axis=1, how="all") for arm in arms
    }
    measured = [m.columns for m in found_of.values() if m.shape[1]]  # an arm without any value has no say
    common = [c for c in (measured[0] if measured else []) if all(c in columns for columns in measured)]
    for arm, values in found_of.items():
        values = values.reindex(columns=common).to_numpy()
        found = _within(difference(values, np.zeros_like(values)), support)
        rows.append(dict(arm=arm, value=found.value, low=found.low, high=found.high, seeds=found.seeds,
                         n=int((~np.isnan(values)).sum())))  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "value", "low", "high", "seeds", "n"])


def area(log: pd.DataFrame, column: str = "reward") -> pd.DataFrame:
    """Area under each run's learning curve, the mean of `column` over its steps: columns `arm, seed, area`."""
    return log.groupby(["arm", "seed"])[column].mean().rename("area").reset_index()
