"""Differences between arms: by hand, against scipy, and as laws."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from faithlab.comparison import area, compare, difference, holm, levels, matrix
from faithlab.errors import FaithlabError


def runs(**arms):
    """A table as `sweep.load_runs` gives it, from matrices [seed, problem]."""
    rows = []
    for arm, values in arms.items():
        for seed, row in enumerate(values):
            rows += [dict(arm=arm, seed=seed, problem=i, condition="no hint", right=v) for i, v in enumerate(row)]
    return pd.DataFrame(rows)


def test_with_one_seed_it_is_the_paired_comparison_over_problems():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.3, 1, (1, 200)), rng.normal(0, 1, (1, 200))
    got = difference(one, other, resamples=20_000)
    plain = stats.bootstrap(((one - other)[0],), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert got.value == pytest.approx((one - other).mean())
    assert (got.low, got.high) == pytest.approx(tuple(plain.confidence_interval), abs=0.01)
    assert got.detectable == pytest.approx(2.8016 * plain.standard_error, rel=0.03)
    known = stats.ttest_rel(one[0], other[0])
    assert got.p == pytest.approx(known.pvalue, abs=0.005)
    reach = known.confidence_interval()
    assert got.low <= reach.low + 1e-9 and got.high >= reach.high - 1e-9


def test_where_only_seeds_differ_it_is_students_t_over_seed_means():
    gaps = np.array([[-0.16], [-0.40], [-0.08]]) + np.zeros((3, 50))
    got = difference(gaps, np.zeros_like(gaps))
    known = stats.ttest_1samp(gaps[:, 0], 0)
    assert got.p == pytest.approx(known.pvalue) and got.p > 0.1, "three seeds of one sign are no proof"
    assert (got.low, got.high) == pytest.approx(tuple(known.confidence_interval()))


def test_seeds_that_disagree_widen_the_interval():
    """The same mean difference and the same problems, but in one case half the seeds say the opposite."""
    problems = np.random.default_rng(0).normal(0, 0.1, (1, 100))
    agreed, torn = np.full((4, 1), 0.2) + problems, np.array([[1.2], [-0.8], [1.2], [-0.8]]) + problems
    a, b = difference(agreed, np.zeros((4, 100))), difference(torn, np.zeros((4, 100)))
    assert a.value == pytest.approx(b.value) and a.p < 0.01 < 0.3 < b.p
    assert b.high - b.low > 5 * (a.high - a.low)


@pytest.mark.parametrize(("seeds", "by_seed", "by_problem"), [(3, 0.5, 0.2), (3, 0.1, 1.0), (6, 0.3, 1.0)])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(seeds, by_seed, by_problem):
    """Crossed effects of seeds and problems; 285 of 300 would be 95 %, and 270 are four standard errors less."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        gap = 0.5 + rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_problem, (1, 60))
        found = difference(gap + rng.normal(0, 0.5, (seeds, 60)), np.zeros((seeds, 60)), resamples=200)
        hits += found.low <= 0.5 <= found.high
    assert hits >= 270


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 12), st.integers(0, 10**6))
def test_turning_the_question_round_turns_the_sign(seeds, problems, seed):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, seeds, problems))
    a, b = difference(one, other, resamples=200), difference(other, one, resamples=200)
    assert (a.value, a.low, a.high, a.p) == pytest.approx((-b.value, -b.high, -b.low, b.p))
    assert a.low - 1e-9 <= a.value <= a.high + 1e-9 or seeds * problems < 20
    assert 0 < a.p <= 1


def test_equal_arms_do_not_differ():
    same = np.random.default_rng(0).random((3, 10))
    found = difference(same, same)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1) and math.isnan(found.detectable)


@pytest.mark.parametrize(("shape", "p"), [((1, 2), 0.5), ((1, 5), 2 / 32), ((3, 1), 0.25), ((2, 4), 0.125)])
def test_differences_that_are_all_alike_have_the_p_of_the_sign_test(shape, p):
    base = np.random.default_rng(0).random(shape)
    for gap in (1.0, -1.0, 0.3):
        found = difference(base + gap, base)
        assert found.p == pytest.approx(p) and found.value == pytest.approx(gap) and math.isnan(found.detectable)
        unmeasured = np.full((4, shape[1]), np.nan)
        more = difference(np.vstack([base + gap, unmeasured]), np.vstack([base, unmeasured]))
        assert more.p == found.p and more.seeds == shape[0], "what was not measured does not count"
    rounded = difference(np.full((1, 40), 0.1) + 0.2, np.full((1, 40), 0.3))
    assert 0 < abs(rounded.value) < 1e-15 and rounded.p == 1, "rounding is no difference"
    assert difference(np.ones((3, 400)), np.zeros((3, 400))).p == pytest.approx(2 / 10_001), (
        "no less than all resamples"
    )


@pytest.mark.parametrize(("ups", "downs", "same"), [(9, 0, 1), (10, 0, 0), (8, 1, 1), (4, 0, 1), (30, 12, 58)])
def test_few_indicators_of_one_seed_have_no_less_than_mcnemars_p(ups, downs, same):
    gap = np.repeat([1.0, -1.0, 0.0], [ups, downs, same])[None]
    other = np.where(gap < 0, 1.0, 0.0)
    exact = stats.binomtest(ups, ups + downs).pvalue
    found = difference(other + gap, other)
    assert exact <= found.p < 1.5 * exact + 0.01
    nats = difference(3 * (other + gap), 3 * other)  # the same on another scale are no indicators
    assert nats.p <= found.p


def test_indicators_that_are_all_alike_have_an_interval_with_width():
    table = runs(none=np.zeros((1, 40)), every=np.ones((1, 40)))
    wilson = 1 - stats.binomtest(0, 40).proportion_ci(method="wilson").high
    found = compare(table, ["every"], ["none"], "right", support=(0, 1)).iloc[0]
    assert (found["low"], found["high"]) == pytest.approx((wilson, 1))
    level = levels(table, ["none", "every"], "right", support=(0, 1)).set_index("arm")
    assert level.loc["none", ["low", "high"]].tolist() == pytest.approx([0, 1 - wilson])
    assert level.loc["every", ["low", "high"]].tolist() == pytest.approx([wilson, 1])
    counted = levels(table, ["every"], "right", support=(0, math.inf)).iloc[0]
    assert counted["low"] == counted["high"] == 1, "a length that is always 1 is no indicator"


def test_what_was_not_measured_is_left_out():
    one = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, np.nan]])
    found = difference(one, np.zeros((2, 3)))
    assert found.value == pytest.approx(2.0) and (found.seeds, found.problems) == (2, 2)
    nothing = difference(np.full((2, 3), np.nan), np.zeros((2, 3)))
    assert math.isnan(nothing.value) and nothing.problems == 0


def test_a_single_number_has_no_interval_and_no_p():
    found = difference([[0.003]], [[0.0]])
    assert found.value == 0.003 and all(math.isnan(v) for v in (found.low, found.high, found.p, found.detectable))


def test_many_problems_are_drawn_a_few_at_a_time_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(1)
    one, other = rng.random((3, 50)), rng.random((3, 50))
    whole = difference(one, other, seed=2)
    monkeypatch.setattr("faithlab.comparison.BLOCK", 50 * 7)
    monkeypatch.setattr("faithlab.comparison.KEPT", 0)
    assert difference(one, other, seed=2) == pytest.approx(whole, abs=1e-12)


def test_draws_that_are_kept_are_those_that_would_be_drawn(monkeypatch):
    gap = np.random.default_rng(1).normal(0.05, 1, (4, 50))
    asked = [(gap, 400, 2), (gap[:3], 400, 2), (gap, 400, 3), (gap, 300, 2), (gap[:, :40], 400, 2), (-gap, 400, 2)]

    def found():
        return [difference(g, np.zeros_like(g), resamples=n, seed=seed) for g, n, seed in asked]

    kept = found()
    monkeypatch.setattr("faithlab.comparison.KEPT", 0)
    assert kept == found()


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    got = holm([0.02, math.nan, 0.01])
    assert got[[0, 2]] == pytest.approx([0.02, 0.02]) and math.isnan(got[1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(p):
    got = holm(p)
    assert (got >= np.array(p) - 1e-12).all() and (got <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(got[np.argsort(p, kind="stable")]) >= 0).all(), "the order stays"


def test_arms_are_compared_over_the_seeds_they_share():
    rng = np.random.default_rng(0)
    base = rng.random((3, 40))
    table = runs(base=base, better=base + 0.2, same=base)
    table = table[~((table["arm"] == "better") & (table["seed"] == 2))]
    found = compare(table, ["base", "better", "same"], ["base"], "right", condition="no hint").set_index("arm")
    assert found["value"].to_dict() == pytest.approx(dict(better=0.2, same=0.0))
    one = compare(pd.concat([table, runs(start=base[:1] - 0.1).assign(seed=99)]), ["base"], ["start"], "right")
    assert one["seeds"][0] == 3 and one["value"][0] == pytest.approx((base - base[:1] + 0.1).mean()), "laid beside all"
    shared = pd.concat([table, runs(start=base[:1] - 0.1)])  # its one seed is one of the others', too
    assert compare(shared, ["base"], ["start"], "right")["seeds"][0] == 3
    assert found.loc["better", "seeds"] == 2 and found.loc["better", "p_holm"] < 0.01 < found.loc["same", "p_holm"]


def test_intervals_of_shares_end_where_differences_of_shares_do():
    table = runs(none=np.zeros((2, 30)), most=np.stack([np.ones(30), np.full(30, 0.4)]))
    free, held = (compare(table, ["most"], ["none"], "right", support=s).iloc[0] for s in (None, (0, 1)))
    assert free["high"] > 1 and free["low"] < -1 and (held["low"], held["high"]) == (-1, 1)
    assert held["value"] == free["value"] and held["p"] == free["p"]


def test_no_pair_is_tested_twice():
    rng = np.random.default_rng(1)
    table = runs(one=rng.random((3, 40)), two=rng.random((3, 40)), three=rng.random((3, 40)))
    found = compare(table, ["one", "two", "three"], ["one", "two"], "right")
    assert list(zip(found["arm"], found["against"], strict=True)) == [
        ("two", "one"),
        ("three", "one"),
        ("three", "two"),
    ]


def test_levels_are_means_over_seeds_and_problems():
    values = np.random.default_rng(0).random((3, 30))
    values[0, :5] = np.nan
    found = levels(runs(a=values), ["a"], "right", condition="no hint").iloc[0]
    assert found["value"] == pytest.approx(np.nanmean(values)) and (found["seeds"], found["n"]) == (3, 85)
    assert 0 < found["low"] < found["value"] < found["high"] < 1
    values[:, :10] = np.nan
    both = levels(runs(a=values, b=np.ones((1, 30))), ["a", "b"], "right")
    assert both["n"].tolist() == [60, 20], "both on the problems that both have"
    wide = levels(runs(a=np.array([[0.0] * 9, [0.9] * 9])), ["a"], "right", support=(0, 1)).iloc[0]
    assert (wide["low"], wide["high"]) == (0, 1)


def test_mistakes_are_named():
    table = runs(base=np.ones((2, 3)), alone=np.ones((2, 3)))
    table.loc[table["arm"] == "alone", "seed"] += 10
    with pytest.raises(FaithlabError, match="share no seed"):
        compare(table, ["alone"], ["base"], "right")
    with pytest.raises(FaithlabError, match="no finished run of 'none', wrong"):
        matrix(table, "none", "right", condition="wrong hint")
    with pytest.raises(FaithlabError, match="no column 'wrong'"):
        matrix(table, "base", "wrong")
    twice = pd.concat([table, table.assign(condition="wrong hint")])
    with pytest.raises(FaithlabError, match=r"several rows of a problem: name one condition; there are .*wrong hint"):
        compare(twice, ["base"], ["alone"], "right")
    with pytest.raises(FaithlabError, match="of one shape"):
        difference(np.ones((2, 3)), np.ones((3, 2)))


def test_area_is_the_mean_of_the_curve():
    log = pd.DataFrame(dict(arm="a", seed=[0, 0, 1, 1], step=[1, 2, 1, 2], reward=[0.0, 1.0, 0.5, 0.7]))
    assert area(log)["area"].tolist() == pytest.approx([0.5, 0.6])
