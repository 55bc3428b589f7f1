"""Head metrics against plain loops, hand-computed cases and closed forms."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_flow import attention

from faithlab import heads
from faithlab.attention_plots import attention_map
from faithlab.couplings import coupling, couplings, peaks
from faithlab.errors import FaithlabError

N = 14
RESPONSE = slice(4, 13)


def previous_token(n):
    w = torch.eye(n, dtype=torch.float64).roll(-1, dims=1).tril()
    w[0, 0] = 1
    return w


def uniform(n):
    w = torch.ones(n, n, dtype=torch.float64).tril()
    return w / w.sum(1, keepdim=True)


def first_token(n):
    w = torch.zeros(n, n, dtype=torch.float64)
    w[:, 0] = 1
    return w


@pytest.mark.parametrize("seed", range(3))
def test_backward_distance_and_waad_equal_plain_loops(seed):
    p = attention(N, seed)
    rows = range(RESPONSE.start, RESPONSE.stop)
    mean = sum(p[t, s].item() * (t - s) for t in rows for s in range(t + 1)) / len(rows)
    assert heads.backward_distance(p, RESPONSE).item() == pytest.approx(mean)
    for window in (1, 3, 10):
        expected = [sum(p[t, s].item() * min(t - s, window) for s in range(t + 1)) for t in rows]
        assert heads.waad(p, RESPONSE, window).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("lo", "hi"), [(1, None), (2, 4), (3, 3), (0, 2), (10, 100)])
def test_fai_equals_a_plain_loop(lo, hi):
    p = attention(N, 1)
    rows = range(RESPONSE.start, RESPONSE.stop)
    got = heads.fai(p, RESPONSE, lo, hi)
    for value, s in zip(got.tolist(), rows, strict=True):
        later = [t for t in rows if s + lo <= t <= (s + hi if hi is not None else N)]
        if later:
            assert value == pytest.approx(sum(p[t, s].item() for t in later) / len(later))
        else:
            assert math.isnan(value), "undefined where no later token is in reach"


def test_leading_dimensions_are_heads():
    p = torch.stack([attention(N, s) for s in range(6)]).reshape(2, 3, N, N)
    d, f = heads.backward_distance(p, RESPONSE), heads.fai(p, RESPONSE, 2, 5)
    assert d.shape == (2, 3) and f.shape == (2, 3, 9)
    assert d[1, 2] == heads.backward_distance(p[1, 2], RESPONSE)
    assert torch.equal(f[1, 2].nan_to_num(-1), heads.fai(p[1, 2], RESPONSE, 2, 5).nan_to_num(-1))


def test_closed_forms():
    r = slice(1, N)
    assert heads.backward_distance(previous_token(N), r) == pytest.approx(1)
    assert heads.waad(previous_token(N), r).tolist() == pytest.approx([1.0] * (N - 1))
    assert heads.backward_distance(first_token(N), r) == pytest.approx(np.mean(range(1, N)))
    assert heads.waad(first_token(N), r, 10).tolist() == pytest.approx([min(t, 10) for t in range(1, N)])
    assert heads.backward_distance(uniform(N), r) == pytest.approx(np.mean([t / 2 for t in range(1, N)]))
    fai = heads.fai(uniform(N), slice(0, N), 1, None)
    assert fai[:-1].tolist() == pytest.approx([np.mean([1 / (t + 1) for t in range(s + 1, N)]) for s in range(N - 1)])
    assert heads.fai(previous_token(N), r, 2, None)[:-2].tolist() == [0.0] * (N - 3)


def test_one_response_token_and_short_responses():
    p, one = attention(N, 2), slice(6, 7)
    assert heads.waad(p, one).shape == (1,) and torch.isnan(heads.fai(p, one)).all()
    assert torch.isnan(heads.fai(p, RESPONSE, 10, 100)).all(), "shorter than the horizon: nothing is in reach"
    with pytest.raises(FaithlabError, match="response is empty"):
        heads.backward_distance(p, slice(5, 5))


def test_spans_of_every_kind_mean_the_same():
    p = attention(N, 3)
    mask = torch.zeros(N, dtype=torch.bool)
    mask[RESPONSE] = True
    for span in (mask, torch.arange(RESPONSE.start, RESPONSE.stop)):
        assert torch.equal(heads.waad(p, span), heads.waad(p, RESPONSE))
        assert torch.equal(heads.fai(p, span, 1, 4).nan_to_num(9), heads.fai(p, RESPONSE, 1, 4).nan_to_num(9))


@given(st.integers(0, 10**6), st.integers(5, 12))
@settings(max_examples=30, deadline=None)
def test_profiles_are_causal(seed, cut):
    """What tokens behind a position do never changes the WAAD before it, nor a FAI that looks no further."""
    a, b = attention(N, seed), attention(N, seed + 1)
    b[:cut] = a[:cut]
    before = cut - RESPONSE.start
    assert torch.equal(heads.waad(a, RESPONSE)[:before], heads.waad(b, RESPONSE)[:before])
    one, two = (heads.fai(p, RESPONSE, 1, 2) for p in (a, b))
    assert torch.equal(one[: max(0, before - 2)], two[: max(0, before - 2)])


def test_nothing_is_written_into_the_callers_map():
    p = attention(N, 4)
    before = p.clone()
    heads.backward_distance(p, RESPONSE), heads.waad(p, RESPONSE), heads.fai(p, RESPONSE)
    assert torch.equal(p, before)


def test_split_takes_both_ends_and_ties_go_to_the_lower_index():
    d = torch.tensor([[5.0, 1.0, 3.0], [1.0, 5.0, 2.0]])
    local, far = heads.split_heads(d, 0.34)
    assert local.tolist() == [1, 3] and far.tolist() == [0, 4]
    one = heads.split_heads(torch.tensor([2.0]))
    assert one[0].tolist() == one[1].tolist() == [0], "a single head is both"
    local, far = heads.split_heads(torch.tensor([1.0, 2.0, 3.0]), 0.5)
    assert not set(local.tolist()) & set(far.tolist()), "the groups never overlap"
    local, far = heads.split_heads(torch.arange(15.0), 0.3)
    assert len(local) == len(far) == 4
    local, far = heads.split_heads(d, 1)
    assert sorted(local.tolist()) == sorted(far.tolist()) == list(range(6)), "the ablation: all heads are in both"
    for bad in (0, 0.6, -1, 2):
        with pytest.raises(FaithlabError, match="of the heads is not possible"):
            heads.split_heads(d, bad)
    with pytest.raises(FaithlabError, match="NaN"):
        heads.split_heads(torch.tensor([1.0, torch.nan]))


def test_kurtosis_is_scipys_and_a_flat_profile_has_no_peak():
    values = np.random.default_rng(0).exponential(size=(4, 30))
    got = heads.kurtosis(torch.from_numpy(values))
    assert got.tolist() == pytest.approx(stats.kurtosis(values, axis=1).tolist())
    holes = values.copy()
    holes[:, 20:] = np.nan
    assert heads.kurtosis(torch.from_numpy(holes)).tolist() == pytest.approx(stats.kurtosis(values[:, :20], axis=1))
    flat = torch.full((1, 9), 0.1)
    assert heads.kurtosis(flat).item() == -2
    assert math.isnan(heads.kurtosis(torch.tensor([1.0, torch.nan])).item())
    peaked = torch.tensor([[0.0] * 20 + [1.0], [0.0, 1.0] * 10 + [0.0]])
    assert heads.receiver_heads(heads.kurtosis(peaked), 1).tolist() == [0]
    assert heads.receiver_heads(torch.tensor([torch.nan, 1.0, 1.0]), 3).tolist() == [1, 2, 0]


def test_entropy_in_nats():
    logits = torch.tensor([[0.0, 0, 0, 0], [100.0, 0, 0, 0]])
    assert heads.entropy(logits).tolist() == pytest.approx([math.log(4), 0], abs=1e-6)


@pytest.mark.parametrize("call", [heads.waad, heads.fai, heads.backward_distance])
def test_maps_that_are_not_square_are_clear_errors(call):
    with pytest.raises(FaithlabError, match="as many queries as keys"):
        call(torch.rand(3, 4), slice(0, 2))


def test_bad_windows_and_horizons_are_clear_errors():
    p = attention(N)
    with pytest.raises(FaithlabError, match="window=0"):
        heads.waad(p, RESPONSE, 0)
    for lo, hi in ((5, 4), (-1, 3)):
        with pytest.raises(FaithlabError, match="horizon"):
            heads.fai(p, RESPONSE, lo, hi)


# --- peaks and couplings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "share", "expected"),
    [
        ([0, 1, 0, 2, 0], 1.0, [1, 3]),
        ([0, 1, 0, 2, 0], 0.2, [3]),
        ([3, 0, 1, 1, 0, 3], 1.0, [2]),  # a plateau counts once; the ends are no peaks
        ([0, math.nan, 5, math.nan, 0], 1.0, [2]),
        ([0, 5, math.nan, 5, 0], 1.0, [1, 3]),
        ([1, 2], 1.0, []),
        ([1, 1, 1, 1], 1.0, []),
        ([], 1.0, []),
    ],
)
def test_peaks(profile, share, expected):
    assert peaks(profile, share) == expected


def test_peaks_refuse_shares_that_make_no_sense():
    for share in (0, 1.5):
        with pytest.raises(FaithlabError, match="share"):
            peaks([0, 1, 0], share)


def test_a_coupling_that_is_there_is_found_and_one_that_is_not_is_not():
    rng = np.random.default_rng(1)
    values = [rng.normal(size=60) for _ in range(10)]
    at = [[int(i) for i in rng.choice(60, 8, replace=False)] for _ in values]
    null = coupling("none", values, at, shuffles=400)
    assert null.low < null.null < null.high and null.low < null.observed < null.high
    assert null.excess.low < 0 < null.excess.high and null.excess.n == 10
    assert null.excess.value == pytest.approx(null.observed - null.null, abs=0.02), "shuffles, counted out"
    assert null.p > 0.05 and null.n == 80 and null.null == pytest.approx(np.concatenate(values).mean(), abs=0.02)
    for v, positions in zip(values, at, strict=True):
        v[positions] += 1
    found = coupling("some", values, at, shuffles=400)
    assert found.p == pytest.approx(1 / 401) and found.observed > found.null + 0.5
    assert found.excess.low > 0.5 and found.excess.value == pytest.approx(found.observed - found.null, abs=0.02)
    assert found.observed == pytest.approx(np.mean([v[p].mean() for v, p in zip(values, at, strict=True)]))
    assert coupling("some", values, at, shuffles=50) == coupling("some", values, at, shuffles=50)
    nothing = coupling("no peaks", values, [[]] * 10)
    assert math.isnan(nothing.observed) and nothing.p == 1 and nothing.n == nothing.excess.n == 0


def test_couplings_worked_by_hand():
    n = 12
    waad, fai, receiver = np.zeros(n), np.zeros(n), np.zeros(n)
    waad[[2, 7]], fai[[3, 7, 10]], receiver[[7]] = 1, 1, 1
    entropy = np.zeros(n)
    entropy[2] = 3.0
    results = {c.name: c for c in couplings([waad], [fai], [receiver], [entropy], after=2, shuffles=200)}
    assert results["entropy_at_waad"].observed == 1.5 and results["entropy_at_waad"].n == 2
    assert results["fai_is_receiver"].observed == pytest.approx(1 / 3)
    assert results["fai_after_waad"].observed == pytest.approx(2 / 3), "3 is just after 2, 7 is at 7, 10 is too late"
    # of the ten positions that can be peaks, six are at or just after a WAAD peak
    assert results["fai_after_waad"].null == pytest.approx(0.6, abs=0.05)
    with pytest.raises(FaithlabError, match="trace 0: the profiles differ in length"):
        couplings([waad], [fai[:-1]], [receiver], [entropy])


def test_a_map_of_the_last_rows_hides_what_lies_ahead_of_each():
    """Three queries of five positions: row 0 stands at position 2 and sees three columns."""
    ax = attention_map(np.full((3, 5), 0.2), bar=False)
    (image,) = ax.images
    seen = ~np.ma.getmaskarray(np.ma.masked_invalid(image.get_array()))
    assert seen.sum(1).tolist() == [3, 4, 5]
    assert list(image.get_extent()) == [-0.5, 4.5, 4.5, 1.5], "rows are called by their positions"
    plt.close(ax.figure)
