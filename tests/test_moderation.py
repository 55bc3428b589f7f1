"""Moderated variances: against draws from the model they assume, by hand, and as laws; and what they are for."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from faithlab.comparison import compare_pairs
from faithlab.errors import FaithlabError
from faithlab.moderation import moderated, prior


def runs(**arms):
    """A table as `sweep.load_runs` gives it, from matrices [seed, problem]."""
    return pd.DataFrame(
        dict(arm=arm, seed=seed, problem=i, condition="no hint", right=value)
        for arm, values in arms.items()
        for (seed, i), value in np.ndenumerate(values)
    )


@pytest.mark.parametrize(("weight", "centre"), [(4, 0.5), (8, 3.0)])
def test_the_prior_of_drawn_variances_is_found(weight, centre):
    rng = np.random.default_rng(0)
    true = weight * centre / rng.chisquare(weight, 50_000)
    for d in (2, 9):
        found = prior(true * rng.chisquare(d, len(true)) / d, np.full(len(true), float(d)))
        assert found == pytest.approx((centre, weight), rel=0.1)


def test_alike_variances_are_pooled():
    """The geometric mean, put right for the bias of a logarithm; as sure of it as all together may be."""
    own = 2.0 * np.random.default_rng(1).chisquare(3, 4000) / 3
    centre, weight = prior(own, np.full(4000, 3.0))
    assert centre == pytest.approx(2.0, rel=0.1) and weight > 50
    same = np.full(5, 0.3)
    centre, weight = prior(same, np.full(5, 2.0))
    assert weight == np.inf and centre == pytest.approx(0.3 * np.exp(0.5772) * 1.0, rel=1e-3)  # digamma(1) = -0.5772
    found, freedom = moderated(same, np.full(5, 2.0))
    assert found == pytest.approx(np.full(5, centre)) and freedom.tolist() == [10] * 5


def test_unlike_variances_keep_their_own():
    own = 10.0 ** np.arange(-6, 7, 2)
    found, freedom = moderated(own, np.full(7, 2.0))
    assert found[-1] == own[-1] and found[0] < 1e-3 and (freedom < 3).all()


def test_what_cannot_be_moderated_is_left():
    for own in ([0.4], [0.4, np.nan], [0.0, 0.0, 0.7], []):
        freedom = np.full(len(own), 2.0)
        found = moderated(np.array(own), freedom)
        np.testing.assert_array_equal(found[0], own)
        np.testing.assert_array_equal(found[1], freedom)
    found, freedom = moderated(np.array([0.4, np.nan, 0.0, 0.5]), np.array([2.0, 0.0, 2.0, 2.0]))
    assert np.isnan(found[1]) and freedom[1] == 0 and found[2] > 0.1, "agreement to the last digit is chance too"
    for own, freedom, says in (([1.0], [1.0, 2.0], "shapes"), ([-1.0, 1.0], [2.0, 2.0], "not negative")):
        with pytest.raises(FaithlabError, match=says):
            moderated(np.array(own), np.array(freedom))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=12), st.integers(1, 6), st.floats(1e-3, 1e3))
def test_laws(own, d, scale):
    own, freedom = np.array(own), np.full(len(own), float(d))
    found, degrees = moderated(own, freedom)
    assert (found >= own).all() and (degrees >= d).all() and (degrees <= d * len(own)).all()
    order = np.random.default_rng(0).permutation(len(own))
    turned = moderated(own[order], freedom)
    np.testing.assert_allclose(turned[0], found[order], rtol=1e-6)
    scaled = moderated(scale * own, freedom)
    np.testing.assert_allclose(scaled[0], scale * found, rtol=1e-5)
    np.testing.assert_allclose(scaled[1], degrees, rtol=1e-4)


def test_a_variance_that_is_kept_keeps_its_own_freedom():
    own = np.array([0.9, 1.0, 1.1, 1.0, 40.0])
    found, freedom = moderated(own, np.full(5, 2.0))
    assert found[-1] == 40 and freedom[-1] == 2, "the others know nothing of it"
    assert (found[:-1] > own[:-1]).all() and (freedom[:-1] > 2).all()
    assert (moderated(own, np.full(5, 2.0), most=3)[1] <= 3).all(), "of three independent ones in all"
    assert (moderated(own, np.array([2.0, 2.0, 2.0, 9.0, 2.0]), most=3)[1] == [3, 3, 3, 9, 2]).all()


def test_seeds_that_agree_but_for_rounding_have_no_say():
    """Means of the same numbers in another order; as a variance, 1e-33 among ordinary ones would undo the others."""
    rng = np.random.default_rng(2)
    alike = rng.normal(1, 0.5, 30)
    values = {f"arm{i}": rng.normal(0, 0.3, (3, 1)) + rng.normal(0, 0.3, (3, 30)) for i in range(6)}
    same = np.array([rng.permutation(alike) for _ in range(3)])
    assert 0 < same.mean(1).var() < 1e-30
    found = [
        compare_pairs(
            runs(base=np.zeros((3, 30)), **values, same=rows), [(n, "base") for n in (*values, "same")], "right"
        )
        for rows in (same, np.tile(alike, (3, 1)))
    ]
    columns = ["low", "high", "p"]
    np.testing.assert_allclose(found[0].loc[:5, columns], found[1].loc[:5, columns])


def false_tables(spread, base_spread, together, seed=5, tables=60, problems=40):
    """In how many of 60 tables without any true difference one of the arms, three seeds each, stands against the base:
    compared together, or each by itself and corrected afterwards."""
    rng, fell, arms = np.random.default_rng(seed), 0, len(spread)
    for _ in range(tables):
        values = {
            f"arm{i}": rng.normal(0, s, (3, 1)) + rng.normal(0, 0.4, (1, problems)) + rng.normal(0, 0.3, (3, problems))
            for i, s in enumerate(spread)
        }
        table = runs(base=rng.normal(0, base_spread, (3, 1)) + np.zeros((3, problems)), **values)
        pairs = [(name, "base") for name in values]
        parts = [pairs] if together else [[pair] for pair in pairs]
        p = pd.concat([compare_pairs(table, part, "right", resamples=1000)["p"] for part in parts])
        fell += (p <= 0.05 / arms).any()
    return fell


@pytest.mark.parametrize(
    ("spread", "base_spread"),
    [([0.3] * 12, 0), ([0.3] * 12, 0.3), ([0.3] * 10 + [1.2] * 2, 0.3), ([0.1, 0.2, 0.3, 0.6] * 3, 0)],
)
def test_among_many_arms_that_differ_in_nothing_few_tables_have_one_that_stands(spread, base_spread):
    """Seeds that lie equally far apart, a base that all share, two arms that collapse, and arms unlike one another."""
    assert false_tables(spread, base_spread, together=True) <= 9  # a tenth is 6, and 9 are 1.3 standard errors more


def test_compared_by_themselves_many_tables_have_one_that_stands():
    assert false_tables([0.3] * 12, 0, together=False) > 6


def test_large_differences_stand_in_spite_of_many_looks():
    rng = np.random.default_rng(6)
    values = {f"arm{i}": rng.normal(0.0, 0.05, (3, 1)) + rng.normal(0, 0.3, (3, 60)) for i in range(20)}
    large = {f"other{i}": values[f"arm{i}"] + 0.5 for i in range(8)}
    found = compare_pairs(
        runs(base=np.zeros((3, 60)), **values, **large), [(n, "base") for n in values | large], "right"
    )
    stand = found.set_index("arm").loc[list(large), "p_holm"] < 0.05
    alone = [28 * stats.ttest_1samp(rows.mean(1), 0).pvalue < 0.05 for rows in large.values()]
    assert sum(alone) < 4 <= stand.sum(), (alone, stand)
    assert (found.set_index("arm").loc[list(values), "p_holm"] > 0.05).all()
