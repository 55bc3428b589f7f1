"""Reading attention and tracing flow: memory, time and growth, against the usual ways in the same run."""

import math
import time

import harness
import networkx as nx
import pytest
import torch
from test_flow import attention, by_networkx

from faithlab.attention import capture
from faithlab.flow import trace_flow, trace_flows
from faithlab.memory_peaks import peak, random_trace
from faithlab.models import load_reasoner

pytestmark = pytest.mark.timeout(1800)
TOKENS = 2048


def test_memory_of_capture(bench_row):
    ours, plain = peak("capture of attention", TOKENS), peak("attention of all layers", TOKENS)
    bare = peak("forward pass, logits of the last token", TOKENS)
    name = f"extra memory, smollm2, N = {TOKENS}, output_attentions / capture"
    bench_row(harness.single(name, "MB", ours / 2**20, plain / 2**20, plain / ours, aim=20))
    ours, plain = ours - bare, plain - bare
    name = f"the same, beyond what a plain forward pass takes, N = {TOKENS}"
    bench_row(harness.single(name, "MB", ours / 2**20, plain / 2**20, plain / ours))


def test_capture_of_8192_tokens_in_6_gb(bench_row):
    used = peak("capture of attention", 8192) / 2**30
    layers, heads = 30, 9
    usual = layers * heads * 8192**2 * 4 / 2**30
    bench_row(harness.single("extra memory, smollm2, N = 8192, all maps / capture (aim: 6 GB)", "GB", used, usual,
                             usual / used, aim=usual / 6))  # fmt: skip


@torch.no_grad()
def test_time_of_capture(bench):
    model = load_reasoner("smollm2").model
    trace = random_trace(model.config.vocab_size, TOKENS)

    def ours():
        capture(model, [trace], want=("profiles",))
        return 1

    def plain():
        model(input_ids=trace.input_ids[None], use_cache=False, logits_to_keep=1)
        return 1

    # at most 1.3 times the plain pass's time is at least 1 / 1.3 of its rate
    bench(f"capture, smollm2, N = {TOKENS}, share of the plain rate", ours, plain, unit="passes/s", aim=1 / 1.3)


def by_lists(weights, prompt, answer):
    """Both sweeps as a plain loop over lists of edges."""
    n = len(weights)
    out = [[(k, weights[k][i]) for k in range(i + 1, n) if weights[k][i]] for i in range(n)]
    h = [1.0 if i in answer else 0.0 for i in range(n)]
    for i in reversed(range(n)):
        if i not in answer:
            h[i] = sum(w * h[k] for k, w in out[i])
    f = [1 / len(prompt) if i in prompt and h[i] else 0.0 for i in range(n)]
    through = list(f)
    for i in range(n):
        if i not in answer and h[i]:
            for k, w in out[i]:
                flow = f[i] * w * h[k] / h[i]
                f[k] += flow
                through[i] += flow
                through[k] += flow
    return through


def test_flow_against_networkx_and_lists(bench):
    n = 1024
    weights = attention(n, 1).float()
    prompt, answer = slice(0, 200), slice(n - 5, n)
    lists = weights.tolist()
    graph = nx.DiGraph()
    graph.add_edges_from((i, k, dict(weight=lists[k][i])) for k in range(n) for i in range(k))
    prompts, answers = set(range(200)), set(range(n - 5, n))
    flow = trace_flow(weights, prompt, answer)
    expected = by_lists(lists, prompts, answers)
    assert flow.throughput.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9), "both sides do the same work"

    def ours():
        for _ in range(5):
            trace_flow(weights, prompt, answer)
        return 5

    def by_graph():
        return len(by_networkx(graph, prompts, answers)) // 2

    bench(f"flow, N = {n}, networkx traversal", ours, by_graph, unit="flows/s", aim=100)
    bench(
        f"flow, N = {n}, list-based loop", ours, lambda: bool(by_lists(lists, prompts, answers)), unit="flows/s", aim=30
    )


def test_growth_of_flow(bench_row):
    times = {}
    for n in (512, 1024, 2048, 4096, 8192):
        weights = torch.rand(n, n).tril_()
        weights /= weights.sum(1, keepdim=True)
        repeats = max(1, 2048 // n)
        trace_flow(weights, slice(0, 100), slice(n - 5, n))
        start = time.perf_counter()
        for _ in range(repeats):
            trace_flow(weights, slice(0, 100), slice(n - 5, n))
        times[n] = (time.perf_counter() - start) / repeats
    exponent = math.log(times[8192] / times[512]) / math.log(16)
    bench_row(harness.single("flow, N = 512 to 8192: 2.2 / exponent of growth", "s", times[512], times[8192],
                             2.2 / exponent, aim=1))  # fmt: skip


def test_flow_of_a_batch(bench):
    maps = torch.stack([attention(256, s) for s in range(64)]).float()
    prompts, answers = [slice(0, 60)] * 64, [slice(252, 256)] * 64

    def ours():
        return len(trace_flows(maps, prompts, answers))

    def plain():
        return sum(1 for m in maps if trace_flow(m, prompts[0], answers[0]))

    bench(
        "flow, batch of 64, N = 256, one by one", ours, plain, unit="flows/s", aim=5 if torch.cuda.is_available() else 1
    )
