"""Ranking measures against brute force over pairs, and the planted truth of stories."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import oracle, story
from tiny import tiny_reasoner

from faithlab import tasks
from faithlab.errors import FaithlabError
from faithlab.planted import planted
from faithlab.ranking import area, auroc, average_precision, hiding_curves, highest_first, spearman, top_one

rankings = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12)


@given(rankings)
@settings(max_examples=200, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order(pairs):
    scores, truth = zip(*pairs, strict=True)
    yes, no = ([s for s, t in pairs if t is kind] for kind in (True, False))
    if not yes or not no:
        assert math.isnan(auroc(scores, truth))
        return
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(yes, no)]
    assert auroc(scores, truth) == pytest.approx(np.mean(won))


@given(rankings)
@settings(max_examples=200, deadline=None)
def test_average_precision_goes_down_the_list(pairs):
    scores, truth = zip(*pairs, strict=True)
    if not any(truth):
        assert math.isnan(average_precision(scores, truth))
        return
    precisions = []
    for s, t in pairs:
        if t:
            above = [other for other in pairs if other[0] >= s]
            precisions.append(sum(label for _, label in above) / len(above))
    assert average_precision(scores, truth) == pytest.approx(np.mean(precisions))


@given(rankings, st.permutations(range(12)))
@settings(max_examples=100, deadline=None)
def test_measures_do_not_see_the_order_of_tokens_nor_the_scale_of_scores(pairs, order):
    order = [i for i in order if i < len(pairs)]
    scores, truth = (list(x) for x in zip(*pairs, strict=True))
    for measure in (auroc, average_precision, top_one):
        value = measure(scores, truth)
        moved = measure([math.exp(scores[i]) for i in order], [truth[i] for i in order])
        assert moved == pytest.approx(value, nan_ok=True)


def test_worked_example():
    scores, truth = [0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]
    assert auroc(scores, truth) == 0.75 and average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert top_one(scores, truth) == 1 and top_one([1, 1, 0, 0], truth) == 0.5
    assert spearman(scores, [4.0, 3.0, 2.0, 1.0]) == 1 and math.isnan(spearman(scores, [1.0] * 4))
    assert auroc([math.nan, 0.5], [1, 0]) == 0, "an undefined score ranks last"
    with pytest.raises(FaithlabError, match="give one each"):
        auroc([1, 2], [1])


def test_hiding_curves_of_a_reasoner_that_reads_one_number():
    reasoner = oracle()
    traces = reasoner.generate([story(s) for s in range(2, 8)], temperature=0)
    knows = [torch.tensor([float(p == " " + t.answer_text) for p in t.pieces[t.reasoning]]) for t in traces]
    shares = (0.0, 0.2, 0.5, 1.0)
    curves = hiding_curves(reasoner, traces, knows, shares=shares)
    np.testing.assert_allclose(curves["deletion"], [[1, 0, 0, 0]] * len(traces), atol=1e-5)
    np.testing.assert_allclose(curves["insertion"], [[0, 1, 1, 1]] * len(traces), atol=1e-5)
    wrong = hiding_curves(reasoner, traces, [-k for k in knows], shares=shares)
    assert (area(wrong["deletion"], shares) > area(curves["deletion"], shares)).all()
    assert (area(wrong["insertion"], shares) < area(curves["insertion"], shares)).all()


def test_planted_truth_marks_what_the_generator_planted():
    reasoner = tiny_reasoner()
    known = 0
    for row in tasks.load("stories", split="validation", n=30, seed=2, hops=(2, 4)):
        t = reasoner.trace(row, row["reasoning"], row["response"])
        p = planted(t)
        words = [piece.strip() for piece in t.pieces[t.reasoning]]
        if not p.known:
            continue
        known += 1
        assert {w for w, m in zip(words, p.decisive, strict=True) if m} == {str(row["response"])}
        assert (p.path | ~p.decisive).all() and (p.number | ~p.path).all()
        assert not (p.path & p.distractor).any() and not (p.filler & p.number).any()
        values = {w for w, m in zip(words, p.number, strict=True) if m}
        assert all(v.isdigit() for v in values)
    assert known >= 20


def test_a_problem_without_truth_has_none():
    assert planted(tiny_reasoner().trace("Ada has 3 pears. How many?", "Ada = 3.", "3")) is None


def test_the_highest_come_first_the_earlier_of_equals_and_nan_last():
    scores = [math.nan, 1.0, 2.0, -math.inf, 2.0, math.inf]
    assert highest_first(scores).tolist() == highest_first(torch.tensor(scores)).tolist() == [5, 2, 4, 1, 3, 0]
