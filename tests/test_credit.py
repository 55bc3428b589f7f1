"""Token credit: hand-computed cases, a naive loop as oracle, and laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faithlab import credit
from faithlab.errors import FaithlabError

nan = math.nan


def row(*values):
    return torch.tensor([values])


ONE = [n for n in credit.STRATEGIES if len(credit.NEEDS[n]) == 1 and n != "local_chunk"]


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE)
def test_the_top_quantile_of_defined_scores_is_amplified(name):
    gamma = credit.weights(name, row(0.1, 0.9, nan, 0.5, 0.2, 0.3), torch.tensor([[1, 1, 1, 1, 1, 0]]), quantile=0.5)
    assert gamma.tolist() == [[1, 1.5, 1, 1.5, 1, 1]], "two of the four that are defined and inside the mask"


def test_uniform_reads_nothing_and_is_one():
    assert credit.weights("uniform", None, torch.ones(2, 3)).tolist() == [[1.0] * 3] * 2


def test_at_least_one_token_unless_it_ties_with_those_left_out():
    assert credit.weights("flow", row(1.0, 3.0, 2.0), torch.ones(1, 3), quantile=0.01).tolist() == [[1, 1.5, 1]]
    assert credit.weights("flow", row(1.0, 3.0, 2.0), torch.ones(1, 3), quantile=0).tolist() == [[1, 1, 1]]
    sparse = row(0.0, 0.9, 0.0, 0.4, 0.0, 0.0)
    assert credit.weights("saliency", sparse, torch.ones(1, 6), quantile=0.5).tolist() == [[1, 1.5, 1, 1.5, 1, 1]]
    assert credit.weights("flow", row(2.0, 2.0, 2.0), torch.ones(1, 3), quantile=0.4).tolist() == [[1, 1, 1]]
    assert credit.weights("flow", row(2.0, 2.0, 2.0), torch.ones(1, 3), quantile=1).tolist() == [[1.5, 1.5, 1.5]]


def test_bottom_takes_the_lowest_and_never_the_undefined():
    assert credit.weights("flow", row(3.0, nan, 1.0, 2.0), torch.ones(1, 4), quantile=0.4, bottom=True).tolist() == [
        [1, 1, 1.5, 1]
    ]


def test_local_chunk_looks_at_the_change_to_the_next_token():
    # D = 4, 1, 2, undefined
    assert credit.change(row(0.0, 4.0, 3.0, 5.0)).nan_to_num(-1).tolist() == [[4, 1, 2, -1]]
    gamma = credit.weights("local_chunk", row(0.0, 4.0, 3.0, 5.0), torch.ones(1, 4), quantile=0.67)
    assert gamma.tolist() == [[1.5, 1, 1.5, 1]]


def test_an_anchor_shares_its_bonus_with_the_token_that_introduces_it():
    """WAAD 0 5 1 1 6 6: D = 5 4 0 5 0 -, median of D 4, of WAAD 1. FAI picks tokens 2 and 4.

    Token 2 has low WAAD, and the largest D before it is 5 at token 0: dominated, introduced by 0. Token 4 has high
    WAAD: a free anchor.
    """
    waad, fai = row(0.0, 5.0, 1.0, 1.0, 6.0, 6.0), row(0.0, 0.1, 0.9, 0.2, 0.8, nan)
    gamma = credit.weights("coupled_rhythm", dict(waad=waad, fai=fai), torch.ones(1, 6), quantile=0.4)
    assert gamma.tolist() == [[1.25, 1, 1.25, 1, 1.5, 1]]


def test_bonuses_add_and_two_anchors_introduced_count_once():
    # tokens 1, 2 and 3 are anchors; 1 is free (high WAAD) and introduces both others (its D is the largest)
    waad, fai = row(1.0, 9.0, 0.0, 0.0, 0.0), row(0.0, 0.9, 0.8, 0.7, 0.0)
    gamma = credit.weights(
        "coupled_rhythm", dict(waad=waad, fai=fai), torch.ones(1, 5), quantile=0.6, tau_waad=0.5, tau_delta=3.0
    )
    assert gamma.tolist() == [[1, 1 + 0.5 + 0.25, 1.25, 1.25, 1]]


def test_an_anchor_without_anything_before_it_is_free():
    waad, fai = row(0.0, 1.0, 2.0), row(0.9, 0.1, 0.2)
    gamma = credit.weights("coupled_rhythm", dict(waad=waad, fai=fai), torch.ones(1, 3), quantile=0.1)
    assert gamma.tolist() == [[1.5, 1, 1]]


def test_signs():
    scores, mask = torch.tensor([[1.0, 0.0]] * 3), torch.ones(3, 2)
    advantages = torch.tensor([1.0, -1.0, 0.0])
    found = {
        s: credit.weights("flow", scores, mask, sign=s, advantages=advantages)[:, 0].tolist() for s in credit.SIGNS
    }
    assert found == dict(both=[1.5] * 3, positive=[1.5, 1, 1], negative=[1, 1.5, 1])


def test_normalised_gamma_has_mean_one_over_the_mask():
    scores, mask = torch.rand(4, 9), (torch.rand(4, 9) < 0.7).float()
    mask[:, 0] = 1
    gamma = credit.weights("flow", scores, mask, normalise=True)
    assert ((gamma * mask).sum(1) / mask.sum(1)).tolist() == pytest.approx([1.0] * 4)
    assert (gamma[mask == 0] == 1).all()


def test_overlap():
    a, b = row(True, True, False, False), row(False, True, True, False)
    assert credit.overlap(a, b) == pytest.approx(1 / 3) and math.isnan(credit.overlap(a & ~a, a & ~a))


# --- a naive loop as oracle ------------------------------------------------------------------------------------------


def naive(name, scores, mask, quantile, look_back=3, alpha=0.5):
    """gamma of one rollout, token by token."""
    n = len(mask)
    inside = [i for i in range(n) if mask[i]]

    def chosen(score):
        defined = [i for i in inside if not math.isnan(score[i])]
        count = max(1, round(quantile * len(defined))) if quantile and defined else 0
        ranked = sorted(defined, key=lambda i: -score[i])
        return {i for i in ranked[:count] if count == len(ranked) or score[i] > score[ranked[count]]}

    def lower_median(values):
        known = sorted(v for v in values if not math.isnan(v))
        return known[(len(known) - 1) // 2] if known else nan

    if name not in ("local_chunk", "coupled_rhythm"):
        return [1.5 if i in chosen(scores[credit.NEEDS[name][0]]) else 1.0 for i in range(n)]
    waad = [w if mask[i] else nan for i, w in enumerate(scores["waad"])]
    delta = [abs(waad[i] - waad[i + 1]) if i + 1 < n else nan for i in range(n)]
    if name == "local_chunk":
        return [1.5 if i in chosen(delta) else 1.0 for i in range(n)]
    low, high = lower_median(waad), lower_median(delta)
    anchors, introducers = {}, set()
    for t in chosen(scores["fai"]):
        before = [(delta[i], -i) for i in range(max(0, t - look_back), t) if not math.isnan(delta[i])]
        dominated = bool(before) and waad[t] <= low and max(before)[0] >= high
        anchors[t] = 1 - alpha if dominated else 1.0
        if dominated:
            introducers.add(-max(before)[1])
    return [1 + 0.5 * (anchors.get(i, 0.0) + (alpha if i in introducers else 0.0)) for i in range(n)]


@st.composite
def batches(draw):
    n, rows = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    values = st.one_of(st.just(nan), st.integers(0, 5).map(float))
    table = st.lists(st.lists(values, min_size=n, max_size=n), min_size=rows, max_size=rows)
    lengths = draw(st.lists(st.integers(0, n), min_size=rows, max_size=rows))
    mask = torch.tensor([[float(i < length) for i in range(n)] for length in lengths])
    names = {need for needs in credit.NEEDS.values() for need in needs}
    return {name: torch.tensor(draw(table)) for name in sorted(names)}, mask, draw(st.sampled_from([0, 0.2, 0.4, 1.0]))


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([n for n in credit.STRATEGIES if n != "uniform"]))
def test_a_naive_loop_gives_the_same(batch, name):
    scores, mask, quantile = batch
    gamma = credit.weights(name, scores, mask, quantile=quantile)
    for i in range(len(mask)):
        alone = naive(name, {k: v[i].tolist() for k, v in scores.items()}, mask[i].bool().tolist(), quantile)
        assert gamma[i].tolist() == pytest.approx(alone), name


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from(credit.STRATEGIES))
def test_gamma_is_positive_one_outside_the_mask_and_the_same_for_any_order_and_padding(batch, name):
    scores, mask, quantile = batch
    gamma = credit.weights(name, scores, mask, quantile=quantile)
    assert (gamma > 0).all() and (gamma[mask == 0] == 1).all() and not gamma.requires_grad
    order = list(reversed(range(len(mask))))
    turned = credit.weights(name, {k: v[order] for k, v in scores.items()}, mask[order], quantile=quantile)
    assert torch.equal(turned, gamma[order])

    def wider(x, fill):
        return torch.cat([x, x.new_full((len(x), 3), fill)], 1)

    padded = credit.weights(name, {k: wider(v, 7.0) for k, v in scores.items()}, wider(mask, 0), quantile=quantile)
    assert torch.equal(padded[:, : mask.shape[1]], gamma) and (padded[:, mask.shape[1] :] == 1).all()


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(name="flwo", scores=row(1.0)), "did you mean 'flow'"),
        (dict(name="flow", scores=None), "reads the score 'flow', which is missing"),
        (dict(name="flow", scores=row(1.0, 2.0)), "has shape"),
        (dict(name="flow", scores=row(math.inf)), "infinity"),
        (dict(name="coupled_rhythm", scores=row(1.0)), "waad and fai"),
        (dict(name="coupled_rhythm", scores=dict(waad=row(1.0), fai=row(1.0)), bottom=True), "has no bottom"),
        (dict(name="flow", scores=row(1.0), quantile=1.5), "quantile=1.5"),
        (dict(name="flow", scores=row(1.0), amplify=0), "amplify=0"),
        (dict(name="coupled_rhythm", scores=dict(waad=row(1.0), fai=row(1.0)), amplify=0.3), "must be above 0.333"),
        (dict(name="flow", scores=row(1.0), sign="up"), "unknown sign"),
        (dict(name="flow", scores=row(1.0), sign="positive"), "needs advantages"),
        (dict(name="flow", scores=row(1.0), look_back=0), "look_back=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(FaithlabError, match=message):
        credit.weights(mask=torch.ones(1, 1), **call)
