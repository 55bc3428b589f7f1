"""Exercises of notebook 09: uncertainty over seeds and problems, many looks, and what accuracy does not see."""

from __future__ import annotations

import math

import numpy as np

from faithlab.exercises import compare, exercise, expect

GAPS = np.array([[0.3, 0.3, 0.5, 0.5], [0.1, 0.1, 0.3, 0.3], [-0.1, -0.1, 0.1, 0.1]])  # [seed, problem]
T = 3.182  # t(0.975) for 3 degrees of freedom
SAMPLES = 8


def near(one, other, tolerance: float = 2e-3) -> bool:
    """Whether two numbers are the same but for rounding."""
    return abs(float(one) - float(other)) <= tolerance


def error_of(values: np.ndarray, ddof: int = 1) -> float:
    """Standard error of a mean."""
    return float(np.std(values, ddof=ddof) / math.sqrt(len(values)))


@exercise
def seeds_and_problems(answer: dict) -> str:
    """Standard errors of a mean difference over problems, over seeds and over both, and the interval's lower end."""
    from faithlab import comparison

    of_problems, of_seeds = GAPS.mean(0), GAPS.mean(1)
    expect(near(answer["value"], GAPS.mean()), "the difference is the mean of all twelve cells, each counted once")
    for name, means in (("problems", of_problems), ("seeds", of_seeds)):
        given, want = float(answer[f"error_{name}"]), error_of(means)
        expect(not near(given, error_of(means, 0)), f"{name}: a variance from {len(means)} values divides by one less")
        spread = f"{name}: this is the standard deviation of the means; their mean is surer, by the root of how many"
        expect(not near(given, want * math.sqrt(len(means))), spread)
        why = f"{name}: the standard deviation of the {len(means)} means of the {name}, over the root of {len(means)}"
        expect(near(given, want), why)
    both = math.hypot(error_of(of_problems), error_of(of_seeds))
    given = float(answer["error"])
    added = "variances add up, not errors: the root of the sum of the two squared errors"
    expect(not near(given, error_of(of_problems) + error_of(of_seeds)), added)
    expect(
        not near(given, error_of(GAPS.ravel())),
        "that is the error over problems alone, or over twelve cells drawn one by one. Three runs were drawn as well, "
        "and the cells of a run rise and fall together",
    )
    expect(near(given, both), "the error over both: the root of the sum of the two squared errors")
    given = float(answer["low"])
    normal = "with so few values 1.96 is too small: take t = 3.182, as given"
    expect(not near(given, GAPS.mean() - 1.96 * both), normal)
    expect(near(given, GAPS.mean() - T * both), "the lower end is the mean less 3.182 times the error over both")
    found = comparison.difference(GAPS, np.zeros_like(GAPS), resamples=1000)
    alone = GAPS.mean() - T * error_of(of_problems)
    return f"over problems alone it would begin at {alone:.3f} and stand; the library says p = {found.p:.2f}"


@exercise
def step_down(function) -> str:
    """Holm's correction, against the library's on random p-values, ties, gaps and none at all."""
    from faithlab import comparison

    draw, nan = np.random.default_rng(1), float("nan")
    cases = [
        [0.012, 0.04, 0.03, 0.005],
        (draw.random(7) ** 3).round(3).tolist(),
        [0.02, 0.02, 0.5, 0.02],  # ties
        [0.3, 0.6, 0.4],
        [0.04, nan, 0.01, nan],
        [0.03],
        [],
    ]
    for p in cases:
        right, got = comparison.holm(p), function(list(p))
        shown = f"For p = {p} the corrected ones are {[round(v, 3) for v in right.tolist()]}"
        slips = [(told, f"{why}. {shown}") for told, why in _other_corrections(p)]
        rule = "the smallest times m, the next times m - 1, and so on; never below the one before, at most 1"
        compare(got, right, slips, f"{shown}: {rule}, one value for each p in the given order", atol=1e-9)
    return "equal to comparison.holm: one test costs nothing, a hundred cost the smallest p a factor of a hundred"


def _other_corrections(p: list[float]) -> list[tuple[np.ndarray, str]]:
    """What typical mistakes give for these p-values, and what to say of each."""
    given = np.array(p, dtype=float)
    place = np.flatnonzero(~np.isnan(given))
    order = place[np.argsort(given[place], kind="stable")]
    ranked, m = given[order], len(order)

    def put(values) -> np.ndarray:
        out = np.full(len(given), np.nan)
        out[order] = values
        return out

    factors = m - np.arange(m)
    plain = ranked * factors
    holm = np.minimum(1, np.maximum.accumulate(plain)) if m else plain
    step_up = np.minimum.accumulate(np.minimum(1, plain)[::-1])[::-1]
    rates = np.minimum.accumulate((ranked * m / np.arange(1, m + 1))[::-1])[::-1]
    with_gaps = np.minimum(1, np.maximum.accumulate(ranked * (len(given) - np.arange(m)))) if m else plain
    return [
        (put(np.minimum(1, ranked * m)), "that is Bonferroni: only the smallest is multiplied by all m"),
        (put(np.maximum.accumulate(plain)), "a probability is at most 1"),
        (put(np.minimum(1, plain)), "a larger p may not end below a smaller one: take the running maximum"),
        (np.sort(put(holm)), "right values in sorted order: give them back in the order in which the p-values came"),
        (put(step_up), "the running minimum from the largest down is Hochberg's; Holm takes the maximum from below"),
        (put(np.minimum(1, rates)), "that is Benjamini and Hochberg, which bounds the share of false finds"),
        (put(with_gaps), "a test that was not made (nan) is not counted in m"),
        (np.where(np.isnan(put(holm)), 1, put(holm)), "a test that was not made has no p: leave nan as it is"),
    ]


@exercise
def sharper_not_abler(function) -> str:
    """Counts of right samples before and after training: pass@1 up, pass@8 down, both beyond chance."""
    from faithlab import comparison, evaluation

    before, after = (np.array([float(v) for v in counts]) for counts in function())
    expect(len(before) == len(after), "both checkpoints answer the same problems: two lists of one length")
    expect(20 <= len(before) <= 60, f"use 20 to 60 problems; yours are {len(before)}")
    whole = np.concatenate([before, after])
    expect(
        ((whole >= 0) & (whole <= SAMPLES) & (whole == whole.round())).all(),
        f"counts of right samples are whole numbers from 0 to {SAMPLES}",
    )
    found = {}
    for k in (1, SAMPLES):
        one, other = (evaluation.pass_at_k(c, np.full(len(c), SAMPLES), k) for c in (after, before))
        found[k] = comparison.difference(one[None], other[None], resamples=1000)
    sharp, wide = found[1], found[SAMPLES]
    expect(
        sharp.value > 0, f"pass@1 changes by {sharp.value:+.3f} with training: it has to rise. It is the mean of c / 8"
    )
    expect(
        wide.value < 0,
        f"pass@8 changes by {wide.value:+.3f}: it has to fall. Of 8 samples 8 are drawn, so it is the share of "
        "problems with at least one right sample",
    )
    for k, gap in found.items():
        expect(
            gap.p < 0.05,
            f"pass@{k} changes by {gap.value:+.3f} [{gap.low:.3f}, {gap.high:.3f}], p = {gap.p:.3f}: chance could do "
            "that. Let more of the problems move the same way, or take more of them",
        )
    return f"pass@1 {sharp.value:+.2f}, pass@8 {wide.value:+.2f}: surer of what it could do, and able to do less"
