"""Answer-conditioned flow against path enumeration, networkx, plain loops, closed forms and its own laws."""

import itertools
import math

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Arc

from faithlab import attention_plots
from faithlab.errors import FaithlabError
from faithlab.flow import trace_flow, trace_flows
from faithlab.flow_solver import graph_of, in_logarithms, log_reachability
from faithlab.graph_scores import attention_rollout, max_flow, received_attention


def attention(n: int, seed: int = 0, zeros: float = 0.0) -> torch.Tensor:
    """A random causal attention map, some of its entries exactly 0."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, n, generator=g, dtype=torch.float64) * 2
    hidden = torch.rand(n, n, generator=g) < zeros
    hidden.fill_diagonal_(False)
    scores[hidden | torch.ones(n, n).triu(1).bool()] = -torch.inf
    return scores.softmax(-1)


@st.composite
def problems(draw, most: int = 9):
    """(map, number of prompt tokens, answer slice)"""
    n = draw(st.integers(3, most))
    q = draw(st.integers(1, n - 2))
    a = draw(st.integers(q, n - 1))
    stop = draw(st.integers(a + 1, n))
    return attention(n, draw(st.integers(0, 10**6)), draw(st.sampled_from([0.0, 0.3, 0.6]))), q, slice(a, stop)


def by_paths(weights, prompt, answer):
    """Enumerate every path from every prompt token to the answer: h, f and edge flow by their meaning."""
    n, w = len(weights), weights.tolist()
    sources, sinks = set(range(*prompt.indices(n))), set(range(*answer.indices(n)))
    h, f, phi, lost = [0.0] * n, [0.0] * n, [[0.0] * n for _ in range(n)], 0.0
    for start in range(n):
        paths = []
        inner = [i for i in range(start + 1, n) if i not in sinks]
        for end in [a for a in sinks if a > start] if start not in sinks else []:
            between = [i for i in inner if i < end]
            for size in range(len(between) + 1):
                for middle in itertools.combinations(between, size):
                    path = (start, *middle, end)
                    weight = math.prod(w[k][i] for i, k in itertools.pairwise(path))
                    if weight:
                        paths.append((path, weight))
        h[start] = 1.0 if start in sinks else sum(weight for _, weight in paths)
        if start in sources:
            if not paths:
                lost += 1 / len(sources)
            for path, weight in paths:
                share = weight / h[start] / len(sources)
                for i in path:
                    f[i] += share
                for i, k in itertools.pairwise(path):
                    phi[i][k] += share
    return h, f, phi, lost


@given(problems())
@settings(max_examples=60, deadline=None)
def test_flow_is_the_sum_over_all_paths(problem):
    weights, q, answer = problem
    [flow] = trace_flows(weights[None], [slice(0, q)], [answer])
    h, f, phi, lost = by_paths(weights, slice(0, q), answer)
    assert flow.reachability.tolist() == pytest.approx(h, rel=1e-9, abs=1e-15)
    assert flow.inflow.tolist() == pytest.approx(f, rel=1e-9, abs=1e-12)
    assert flow.edge_flow().flatten().tolist() == pytest.approx(list(itertools.chain(*phi)), rel=1e-9, abs=1e-12)
    assert flow.undeliverable == pytest.approx(lost, abs=1e-12)
    through = [a + b for a, b in zip(f, (sum(row) for row in phi), strict=True)]
    assert flow.throughput.tolist() == pytest.approx(through, rel=1e-9, abs=1e-12)


@given(problems(most=24))
@settings(max_examples=60, deadline=None)
def test_conservation(problem):
    weights, q, answer = problem
    [flow] = trace_flows(weights[None], [slice(0, q)], [answer])
    assert flow.delivered + flow.undeliverable == pytest.approx(1, abs=1e-9)
    on_graph = (flow.reachability > 0) & ~flow.answer
    step = flow.conditioned()
    assert step.sum(1)[on_graph].tolist() == pytest.approx([1.0] * int(on_graph.sum()), abs=1e-9)
    assert (step[~on_graph] == 0).all()
    # what comes in goes out, and twice that is the throughput
    phi = flow.edge_flow()
    assert phi.sum(1)[on_graph].tolist() == pytest.approx(flow.inflow[on_graph].tolist(), abs=1e-9)
    assert flow.throughput[~flow.answer].tolist() == pytest.approx((2 * flow.inflow)[~flow.answer].tolist())
    assert flow.throughput[flow.answer].tolist() == pytest.approx(flow.inflow[flow.answer].tolist())
    assert (flow.inflow[flow.reachability == 0] == 0).all()
    # h solves its own equation: W' was not made to sum to 1 by force alone
    h = flow.reachability
    assert (flow.weights @ h)[on_graph].tolist() == pytest.approx(h[on_graph].tolist(), rel=1e-9)


@given(problems(most=16), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_rescaling_tokens_changes_no_flow(problem, seed):
    """W[i, k] -> W[i, k] d[i] / d[k] with d > 0, d = 1 on the answer, multiplies h by d and leaves the flow alone."""
    weights, q, answer = problem
    d = torch.exp(torch.randn(len(weights), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    d[answer] = 1
    scaled = (weights * d[None] / d[:, None]).tril(-1)  # [query k, key i]
    one, two = (trace_flows(w[None], [slice(0, q)], [answer])[0] for w in (weights, scaled))
    assert two.inflow.tolist() == pytest.approx(one.inflow.tolist(), rel=1e-9, abs=1e-12)
    assert two.reachability.tolist() == pytest.approx((one.reachability * d).tolist(), rel=1e-9)


@given(problems(most=12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_token_without_flow_changes_nothing(problem, seed):
    weights, q, answer = problem
    n, at = len(weights), q + seed % (len(weights) - q)
    wider = torch.zeros(n + 1, n + 1, dtype=weights.dtype)
    old = [i for i in range(n + 1) if i != at]
    wider[torch.tensor(old)[:, None], torch.tensor(old)] = weights
    wider[at, : at + 1] = 1 / (at + 1)  # it looks at others, and no one looks at it
    moved = torch.tensor([i for i, o in enumerate(old) if answer.start <= i < answer.stop])
    [before] = trace_flows(weights[None], [slice(0, q)], [answer])
    [after] = trace_flows(wider[None], [slice(0, q)], [torch.tensor(old)[moved]])
    assert after.inflow[old].tolist() == pytest.approx(before.inflow.tolist(), abs=1e-12)
    assert after.inflow[at] == 0 and after.reachability[at] == 0


def test_a_batch_is_its_traces_and_padding_takes_no_part():
    cases = [(attention(n, n, 0.2), slice(0, 3), slice(n - 2, n)) for n in (6, 9, 14)]
    alone = [trace_flow(w, p, a) for w, p, a in cases]
    for side in ("left", "right"):
        maps, prompts, answers, shifts = [], [], [], []
        for w, p, a in cases:
            shift = 14 - len(w) if side == "left" else 0
            padded = torch.zeros(14, 14, dtype=w.dtype)
            padded[shift : shift + len(w), shift : shift + len(w)] = w
            maps.append(padded)
            prompts.append(slice(p.start + shift, p.stop + shift))
            answers.append(slice(a.start + shift, a.stop + shift))
            shifts.append(shift)
        for order in (range(3), (2, 0, 1)):
            flows = trace_flows(torch.stack([maps[i] for i in order]), [prompts[i] for i in order],
                                [answers[i] for i in order])  # fmt: skip
            for i, flow in zip(order, flows, strict=True):
                here = slice(shifts[i], shifts[i] + len(alone[i]))
                assert flow.inflow[here].tolist() == pytest.approx(alone[i].inflow.tolist(), abs=1e-12)
                assert flow.inflow.sum() == pytest.approx(alone[i].inflow.sum().item())


def test_scale_favours_long_or_short_ways_so_a_mean_is_not_a_sum():
    w = torch.tensor([[1.0, 0, 0], [0.4, 0.6, 0], [0.1, 0.7, 0.2]], dtype=torch.float64)
    once, twice = (trace_flow(c * w, slice(0, 1), slice(2, 3)).inflow[1].item() for c in (1, 2))
    assert once == pytest.approx(0.28 / 0.38) and twice == pytest.approx(1.12 / 1.32)


def test_spans_of_every_kind_mean_the_same():
    w = attention(8, 3)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[6:8] = True
    one = trace_flow(w, slice(0, 2), slice(6, 8))
    for answer in (mask, torch.tensor([7, 6])):
        assert torch.equal(trace_flow(w, torch.tensor([0, 1]), answer).inflow, one.inflow)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_previous_token_attention_is_one_path():
    w = torch.eye(7, dtype=torch.float64).roll(-1, dims=1).tril()
    w[0, 0] = 1
    flow = trace_flow(w, slice(0, 1), slice(6, 7))
    assert flow.reachability.tolist() == [1.0] * 7 and flow.inflow.tolist() == [1.0] * 7
    [(path, share)] = flow.dominant_paths()
    assert path == list(range(7)) and share == pytest.approx(1)
    assert flow.checkpoints(1.0) == [1, 2, 3, 4, 5]
    two = trace_flow(w, slice(0, 2), slice(6, 7))  # the second prompt token passes on what it gets from the first
    assert two.inflow.tolist() == pytest.approx([0.5] + [1.0] * 6)


def test_first_token_attention_reaches_the_answer_directly():
    w = torch.zeros(6, 6, dtype=torch.float64)
    w[:, 0] = 1
    flow = trace_flow(w, slice(0, 2), slice(4, 6))
    assert flow.reachability.tolist() == [2.0, 0, 0, 0, 1, 1], "h counts answer tokens, so it may exceed 1"
    assert flow.inflow.tolist() == [0.5, 0, 0, 0, 0.25, 0.25] and flow.undeliverable == 0.5
    assert flow.checkpoints(0.1) == []


def test_uniform_attention_in_closed_form():
    """Row t gives 1/(t+1) to every token up to t. With one answer token a, h[i] = (1/a+...)= 1/(i+2) * ... : worked out
    by the recursion h[i] = sum_{k>i} h[k]/(k+1), whose solution is h[i] = (1/(a+1)) * prod_{k=i+1}^{a-1} (1 + 1/(k+1))
    = (a + 1) / ((a + 1) (i + 2)) = 1 / (i + 2)."""
    n, a = 40, 39
    w = torch.ones(n, n, dtype=torch.float64).tril()
    w = w / w.sum(1, keepdim=True)
    flow = trace_flow(w, slice(0, 1), slice(a, n))
    assert flow.reachability[:a].tolist() == pytest.approx([1 / (i + 2) for i in range(a)])
    # the first token's flow: f[k] = f-mass that ever visits k = W'[..] = 1/(k + 2) for 0 < k < a
    assert flow.inflow[1:a].tolist() == pytest.approx([1 / (k + 2) for k in range(1, a)])


def test_six_tokens_by_hand():
    """Prompt 0 1, reasoning 2 3 4, answer 5; token 3 is a dead end.

    h[4] = .5, h[3] = 0, h[2] = .8 h[4] + .2 = .6, h[1] = .5 h[2] = .3, h[0] = .5 h[2] + .3 = .6.
    From 0: .3/.6 by 2 and .3/.6 directly; from 1: all by 2. Inflow of 2: .5 * .5 + .5 = .75; of it .4/.6 by way of 4.
    """
    w = torch.zeros(6, 6, dtype=torch.float64)
    w[2, 0], w[2, 1] = 0.5, 0.5
    w[3, 0], w[3, 2] = 0.7, 0.3
    w[4, 2] = 0.8
    w[5, 0], w[5, 2], w[5, 4] = 0.3, 0.2, 0.5
    flow = trace_flow(w, slice(0, 2), slice(5, 6))
    assert flow.reachability.tolist() == pytest.approx([0.6, 0.3, 0.6, 0, 0.5, 1], rel=1e-6)
    assert flow.inflow.tolist() == pytest.approx([0.5, 0.5, 0.75, 0, 0.5, 1], rel=1e-6)
    assert flow.throughput.tolist() == pytest.approx([1, 1, 1.5, 0, 1, 1], rel=1e-6)
    backbone = flow.backbone(3)
    edges = list(zip(backbone["source"], backbone["target"], strict=True))
    assert set(edges) == {(1, 2), (2, 4), (4, 5)} and backbone["flow"].tolist() == pytest.approx([0.5] * 3, rel=1e-6)
    assert len(flow.backbone(100)) == 6, "edges without flow are no backbone"
    [(path, share)] = flow.dominant_paths()
    assert path == [1, 2, 4, 5] and share == pytest.approx(0.5 * 0.4 / 0.6, rel=1e-6)
    assert (
        flow.hubs(1) == [2]
        and flow.hubs(5, within=slice(3, 5)) == [4, 3]
        and flow.checkpoints(0.5) == [2, 4]
        and flow.checkpoints(0.6) == [2]
    )
    table = flow.table(list("abcdef"))
    assert table["text"].tolist() == list("abcdef")
    assert table["span"].tolist() == ["prompt", "prompt", "", "", "", "answer"]
    assert table["throughput"].tolist() == pytest.approx(flow.throughput.tolist())


# --- networkx -------------------------------------------------------------------------------------------------------


def by_networkx(graph, prompt, answer):
    """Both sweeps as traversals of a directed graph in topological order."""
    order = list(nx.topological_sort(graph))
    h = dict.fromkeys(order, 0.0) | dict.fromkeys(answer, 1.0)
    for i in reversed(order):
        if i not in answer:
            h[i] = sum(d["weight"] * h[k] for _, k, d in graph.out_edges(i, data=True))
    f = {i: 1 / len(prompt) if i in prompt and h[i] else 0.0 for i in order}
    for i in order:
        if i not in answer and h[i]:
            for _, k, d in graph.out_edges(i, data=True):
                f[k] += f[i] * d["weight"] * h[k] / h[i]
    return h, f


def test_same_as_a_networkx_traversal(monkeypatch):
    w = attention(60, 5, 0.3)
    flow = trace_flow(w, slice(0, 10), slice(57, 60))
    with monkeypatch.context() as patch:
        built = []
        patch.setattr("faithlab.flow.graph_of", lambda *a, make=graph_of: built.append(1) or make(*a))
        graph = flow.to_networkx()
    assert len(built) == 2, "once for the weights, once for the flow, and not for every edge"
    h, f = by_networkx(graph, set(range(10)), {57, 58, 59})
    assert flow.inflow.tolist() == pytest.approx([f.get(i, 0.0) for i in range(60)], rel=1e-9, abs=1e-14)
    assert flow.reachability.tolist() == pytest.approx([h.get(i, 0.0) for i in range(60)], rel=1e-9)
    assert graph.graph["delivered"] == pytest.approx(flow.delivered)
    phi = flow.edge_flow()
    assert all(d["flow"] == pytest.approx(phi[i, k].item()) for i, k, d in graph.edges(data=True))
    small = flow.to_networkx([f"t{i}" for i in range(60)], k=5)
    assert small.number_of_edges() == 5
    assert all(d["label"] == f"t{i}" and d["throughput"] > 0 for i, d in small.nodes(data=True))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_dominant_paths_are_the_shortest_in_minus_log_probability(k):
    w = attention(20, 8, 0.4)
    flow = trace_flow(w, slice(0, 4), slice(18, 20))
    graph = nx.DiGraph()
    step = flow.conditioned()
    for i, j in (step > 0).nonzero().tolist():
        graph.add_edge(i, j, length=-math.log(step[i, j]))
    graph.add_edges_from([("start", i, dict(length=math.log(4))) for i in range(4) if i in graph])
    graph.add_edges_from([(a, "end", dict(length=0.0)) for a in (18, 19) if a in graph])
    expected = list(itertools.islice(nx.shortest_simple_paths(graph, "start", "end", weight="length"), k))
    ours = flow.dominant_paths(k)
    assert [path for path, _ in ours] == [path[1:-1] for path in expected]
    lengths = [nx.path_weight(graph, path, "length") for path in expected]
    assert [share for _, share in ours] == pytest.approx([math.exp(-length) for length in lengths])


def test_all_dominant_paths_together_carry_the_whole_flow():
    w = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]])
    flow = trace_flow(w, slice(0, 1), slice(3, 4))
    ways = flow.dominant_paths(10)
    assert len(ways) == 4 and sum(share for _, share in ways) == pytest.approx(1)
    assert {tuple(path) for path, _ in ways} == {(0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)}
    with pytest.raises(FaithlabError, match="k=0"):
        flow.dominant_paths(0)


# --- numbers that are very small or very many ------------------------------------------------------------------------


def test_eight_thousand_tokens_in_float32_neither_underflow_nor_overflow():
    n = 8192
    w = torch.ones(n, n).tril_()
    w /= w.sum(1, keepdim=True)
    flow = trace_flow(w, slice(0, 100), slice(n - 5, n))
    assert flow.delivered == pytest.approx(1, abs=1e-9) and torch.isfinite(flow.throughput).all()


@pytest.mark.parametrize("leak", [1e-3, 1e-12])
def test_thousands_of_hops_of_a_sliding_window_stay_exact(leak):
    """Every token gives `leak` to the one before and the rest to itself: h = leak ** hops is far below any float."""
    n = 2000
    w = torch.zeros(n, n)
    rows = torch.arange(1, n)
    w[rows, rows - 1], w[rows, rows], w[0, 0] = leak, 1 - leak, 1
    flow = trace_flow(w, slice(0, 2), slice(n - 1, n))
    assert flow.log_reachability[0].item() == pytest.approx((n - 1) * math.log(leak), rel=1e-5)
    assert flow.reachability[0] == 0, "too small to be written down"
    assert flow.inflow[2:].tolist() == pytest.approx([1.0] * (n - 2)) and flow.delivered == pytest.approx(1)


def test_the_two_ways_to_reachability_agree():

    w = attention(50, 2, 0.3)
    answer = torch.zeros(50, dtype=torch.bool)
    answer[45:47] = True
    fast = log_reachability(w[None], answer[None])[0]
    slow = in_logarithms(graph_of(w, answer), answer)
    assert torch.equal(fast.isneginf(), slow.isneginf())
    known = ~fast.isneginf()
    assert fast[known].tolist() == pytest.approx(slow[known].tolist(), abs=1e-9)


@pytest.mark.parametrize("cached", [1, 50 * 50, 2**20])
def test_maps_of_several_sizes_are_solved_together(cached, monkeypatch):
    monkeypatch.setattr("faithlab.flow.CACHED", cached)
    maps = [attention(n, n, 0.3) for n in (12, 50, 31, 12)] + [attention(20, 1).float(), torch.eye(9)]
    prompts = [slice(0, len(m) // 3) for m in maps]
    answers = [slice(10, 11), torch.tensor([20, 45, 46]), slice(29, None), slice(9, 12), slice(18, 20), slice(7, 9)]
    for m, p, a, flow in zip(maps, prompts, answers, trace_flows(maps, prompts, answers), strict=True):
        [alone] = trace_flows(m[None], [p], [a])
        assert flow.map is m and len(flow) == len(m) and flow.reachable == alone.reachable == (m is not maps[-1])
        assert flow.prompt.equal(alone.prompt) and flow.answer.equal(alone.answer)
        for name in ("inflow", "throughput", "reachability"):
            assert getattr(flow, name).tolist() == pytest.approx(getattr(alone, name).tolist(), rel=1e-12, abs=1e-15)
        assert flow.undeliverable == pytest.approx(alone.undeliverable, rel=1e-12)


def test_a_span_beyond_a_shorter_map_is_an_error_beside_a_longer_one():
    with pytest.raises(FaithlabError, match="does not lie within 6 tokens"):
        trace_flows([attention(30), attention(6)], [slice(0, 2)] * 2, [slice(4, 9)] * 2)


@pytest.mark.parametrize("block", [1, 7, 49])
def test_blocks_of_rows_change_nothing(block, monkeypatch):
    maps = torch.stack([attention(50, seed, 0.3) for seed in (3, 4)])
    prompts, answers = [slice(0, 9), torch.tensor([2, 11])], [torch.tensor([20, 33, 45, 46]), slice(48, 50)]
    whole = trace_flows(maps, prompts, answers)
    for module in ("flow", "flow_solver"):
        monkeypatch.setattr(f"faithlab.{module}.BLOCK", block)
    for a, b in zip(whole, trace_flows(maps, prompts, answers), strict=True):
        assert a.throughput.tolist() == pytest.approx(b.throughput.tolist(), rel=1e-12)
        assert a.reachability.tolist() == pytest.approx(b.reachability.tolist(), rel=1e-12)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_an_unreachable_answer_is_an_error_alone_and_a_flag_in_a_batch():
    blocked = torch.eye(6, dtype=torch.float64)
    with pytest.raises(FaithlabError, match="cannot be reached from the prompt"):
        trace_flow(blocked, slice(0, 2), slice(4, 6))
    flows = trace_flows(torch.stack([blocked, attention(6)]), [slice(0, 2)] * 2, [slice(4, 6)] * 2)
    assert [f.reachable for f in flows] == [False, True]
    assert flows[0].undeliverable == 1 and flows[0].throughput.sum() == 0 and flows[0].delivered == 0
    assert flows[0].dominant_paths() == [] and len(flows[0].backbone()) == 0
    assert flows[1].delivered == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[0], "square map"),
        (lambda w: w[:4], "square map"),
        (lambda w: w.index_fill(0, torch.tensor([2]), torch.nan), "NaN"),
        (lambda w: -w, "negative"),
        (lambda w: w.T, "transposed"),
    ],
)
def test_bad_maps_are_clear_errors(change, message):
    with pytest.raises(FaithlabError, match=message):
        trace_flow(change(attention(6)), slice(0, 2), slice(4, 6))


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        (slice(0, 0), slice(4, 6), "at least one prompt token"),
        (slice(0, 2), slice(5, 5), "at least one prompt token"),
        (slice(0, 5), slice(4, 6), "overlap"),
        (slice(0, 2), slice(4, 9), "does not lie within 6 tokens"),
        (torch.tensor([0, 7]), slice(4, 6), "indices 0 to 7"),
        (torch.tensor([True, False]), slice(4, 6), "mask of 2 positions"),
        ([0, 1], slice(4, 6), "a span is a slice"),
    ],
)
def test_bad_spans_are_clear_errors(prompt, answer, message):
    with pytest.raises(FaithlabError, match=message):
        trace_flow(attention(6), prompt, answer)


def test_bad_questions_are_clear_errors():
    flow = trace_flow(attention(6), slice(0, 2), slice(4, 6))
    for call in (lambda: flow.backbone(0), lambda: flow.checkpoints(0), lambda: flow.table(["a"])):
        with pytest.raises(FaithlabError):
            call()


# --- scores to compare with -------------------------------------------------------------------------------------------


def test_rollout_is_the_product_of_the_layers():
    maps = torch.stack([attention(7, s) for s in range(3)])
    product = torch.eye(7, dtype=torch.float64)
    for m in maps:
        product = (m + torch.eye(7)) / 2 @ product
    got = attention_rollout(maps, slice(5, 7))
    assert got.tolist() == pytest.approx(product[5:7].mean(0).tolist()) and got.sum() == pytest.approx(1)
    with pytest.raises(FaithlabError, match="maps \\[layer, query, key\\]"):
        attention_rollout(maps[0], slice(5, 7))


def test_received_attention_is_a_mean_over_later_readers():
    w = attention(6, 1)
    got = received_attention(w, slice(2, 6))
    for s in range(6):
        rows = [t for t in range(2, 6) if t > s]
        expected = sum(w[t, s].item() for t in rows) / len(rows) if rows else 0.0
        assert got[s].item() == pytest.approx(expected)


def test_max_flow_is_networkx_max_flow():
    w = attention(12, 4, 0.3)
    passed = max_flow(w, slice(0, 3), slice(10, 12))
    graph = nx.DiGraph()
    for i, k in itertools.combinations(range(12), 2):
        if w[k, i] > 0 and i < 10:
            graph.add_edge(i, k, capacity=round(w[k, i].item() * 10**6))
    graph.add_edges_from([("s", i, dict(capacity=10**9)) for i in range(3)])
    graph.add_edges_from([(a, "t", dict(capacity=10**9)) for a in (10, 11)])
    value = nx.maximum_flow_value(graph, "s", "t") / 10**6
    assert passed[10:].sum().item() == pytest.approx(value, abs=1e-5)
    assert (passed >= 0).all() and passed[:3].sum().item() == pytest.approx(value, abs=1e-5)
    middle = passed[3:10]
    capacity = torch.minimum(w.tril(-1)[3:10].sum(1), w.tril(-1)[:, 3:10].sum(0))
    assert (middle <= capacity + 1e-5).all(), "no token passes more than its edges carry"
    with pytest.raises(FaithlabError, match="up to 512"):
        max_flow(torch.zeros(600, 600), slice(0, 3), slice(10, 12))


@pytest.mark.parametrize("start", [0, 6])
def test_the_backbone_s_arcs_stay_inside_the_axes_and_carry_what_the_edges_carry(start):
    n, flow = 24, trace_flow(attention(24, seed=3), slice(0, 8), slice(23, 24))
    ax = attention_plots.backbone(flow, ["x"] * n, k=60, hubs=[20], span=slice(start, n))
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    arcs = [p for p in ax.patches if isinstance(p, Arc)]
    for arc in arcs:
        (x, y), half = arc.get_center(), arc.width / 2
        assert left < x - half < x + half < right and low < y and y + arc.height / 2 < high
    edges = flow.backbone(60)
    edges = edges[edges["target"] >= start]
    inside = edges[edges["source"] >= start]
    before = edges[edges["source"] < start].groupby("target")["flow"].sum()
    assert len(inside) and (len(before) > 0) == (start > 0)
    carried = sorted([*inside["flow"], *before])
    widths = sorted(arc.get_linewidth() for arc in arcs)
    assert widths == pytest.approx([0.5 + 4 * f / carried[-1] for f in carried])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert ("from the text before, summed" in legend) == (start > 0) and legend[-1] == "hub"
    assert f"carries {carried[-1]:.2g} of the one unit" in legend
