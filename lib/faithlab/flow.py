"""Reasoning as flow on the attention graph, conditioned on reaching the answer (FlowTracer, arXiv 2606.10646).

Tokens are nodes. Position `k` looking back at position `i` is an edge `i -> k` that carries information forward, with
weight `W[i, k]` the attention of `k` to `i` (mean over heads and layers). One unit of flow starts at the prompt, spread
evenly over its tokens, and must end in the answer:

    reachability   h[i] = sum_{k>i} W[i, k] h[k],  h = 1 on the answer            (how much of the answer sees token i)
    conditioned    W'[i, k] = W[i, k] h[k] / h[i]                                 (Doob's h-transform: rows sum to 1)
    inflow         f[k] = inject[k] + sum_{i<k} f[i] W'[i, k]
    edge flow      phi[i, k] = f[i] W'[i, k]
    throughput     tau[k] = f[k] + sum_{j>k} phi[k, j]

Answer tokens absorb: what reaches them leaves for a virtual sink. Since rows of W' sum to 1, tau = 2 f at every token
before the answer from which the answer can be reached, so ranking by throughput is ranking by inflow.

    >>> import torch
    >>> weights = torch.tensor([[1.0, 0, 0], [0.4, 0.6, 0], [0.1, 0.7, 0.2]])  # a prompt token, a thought, an answer
    >>> trace_flow(weights, slice(0, 1), slice(2, 3)).inflow.tolist()  # 0.28 of 0.38 goes by way of the thought
    [1.0, 0.7368421052631579, 1.0]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithlab.attention import capture
from faithlab.batches import longest_first
from faithlab.errors import FaithlabError
from faithlab.flow_solver import BLOCK, conditioned_of, graph_of, inflow_of, log_reachability
from faithlab.spans import Span, span_mask
from faithlab.traces import Trace

# Entries of the maps that are solved together: what stays in a CPU's caches, and what another device may hold.
CACHED, HELD = 2**19, 2**26


@dataclass(frozen=True)
class Flow:
    """Answer-conditioned flow of one trace. Vectors are indexed by token, matrices `[source, target]`; float64.

    `reachability` is h (0 where the answer cannot be reached, and where h is too small for a float64: see
    `log_reachability`), `inflow` is f, `throughput` is tau. `delivered` is the sum of f over the answer and
    `undeliverable` what was injected at prompt tokens without a way to the answer: the two sum to 1.
    """

    map: Float[Tensor, "query key"]  # as it was given, and not a copy
    log_reachability: Float[Tensor, " token"]
    inflow: Float[Tensor, " token"]
    throughput: Float[Tensor, " token"]
    prompt: Bool[Tensor, " token"]
    answer: Bool[Tensor, " token"]
    undeliverable: float

    def __len__(self) -> int:
        return len(self.inflow)

    @property
    def weights(self) -> Float[Tensor, "source target"]:
        """W, the graph; answer rows are 0, since answer tokens absorb."""
        return graph_of(self.map, self.answer)

    @property
    def reachability(self) -> Float[Tensor, " token"]:
        """h, `exp(log_reachability)`: 1 on the answer, 0 where it is out of reach; not bounded by 1."""
        return self.log_reachability.exp()

    @property
    def delivered(self) -> float:
        """The share of the flow that arrives: the sum of f over the answer, 1 - `undeliverable`; in [0, 1]."""
        return float(self.inflow[self.answer].sum())

    @property
    def reachable(self) -> bool:
        """Whether any prompt token has a way to the answer. If not, inflow and throughput are 0 everywhere."""
        return self.undeliverable < 1

    def conditioned(self) -> Float[Tensor, "source target"]:
        """W', the step probabilities of the conditioned walk; rows sum to 1, on the answer and off the graph to 0."""
        return conditioned_of(self.weights[None], self.log_reachability[None])[0]

    def edge_flow(self) -> Float[Tensor, "source target"]:
        """phi, the flow on every edge; its columns sum to the inflow less what is injected."""
        return self.inflow[:, None] * self.conditioned()

    def between(self) -> Bool[Tensor, " token"]:
        """The tokens that can be ranked: neither prompt nor answer nor behind it."""
        columns = torch.arange(len(self), device=self.inflow.device)
        last_prompt = columns[self.prompt].max()
        return (columns > last_prompt) & (columns < columns[self.answer].max()) & ~self.answer

    def backbone(self, k: int = 30) -> pd.DataFrame:
        """The `k` edges that carry most flow, strongest first: columns `source, target, flow`. Edges without flow are
        left out, so there may be fewer. Raises `FaithlabError` for k < 1."""
        if k < 1:
            raise FaithlabError(f"a backbone of k={k} edges is empty; use k >= 1")
        phi = self.edge_flow().flatten()
        flow, index = phi.topk(min(k, len(phi)))
        index = index[flow > 0].tolist()
        n = len(self)
        rows = [(i // n, i % n, float(phi[i])) for i in index]
        return pd.DataFrame(rows, columns=["source", "target", "flow"])

    def dominant_paths(self, k: int = 1) -> list[tuple[list[int], float]]:
        """The `k` likeliest ways of the conditioned walk from the prompt into the answer, likeliest first, each with
        its probability: the share of the flow that takes exactly this way. Fewer if there are not so many. Raises
        `FaithlabError` for k < 1."""
        if k < 1:
            raise FaithlabError(f"k={k} paths are none; use k >= 1")
        log_step, n = self.conditioned().log(), len(self)
        # [token, rank]: log probability of the rank-th likeliest way there, and where it came from (token * k + rank)
        best = torch.full((n, k), -torch.inf, dtype=log_step.dtype, device=log_step.device)
        before = torch.full((n, k), -1, device=log_step.device)
        best[self.prompt & (self.inflow > 0), 0] = -math.log(int(self.prompt.sum()))
        for j in range(1, n):
            ways = torch.cat([(best[:j] + log_step[:j, j, None]).flatten(), best[j, :1]])  # the last begins here
            value, source = ways.topk(min(k, len(ways)))
            best[j, : len(value)] = value
            before[j, : len(value)] = torch.where(source < j * k, source, -1)
        ends = torch.where(self.answer[:, None], best, -torch.inf).flatten()
        paths = []
        for end in ends.topk(min(k, len(ends))).indices.tolist():
            if ends[end] > -torch.inf:
                path = [end]
                while (previous := int(before.flatten()[path[-1]])) >= 0:
                    path.append(previous)
                paths.append(([at // k for at in reversed(path)], float(ends[end].exp())))
        return paths

    def hubs(self, k: int = 5, within: Span | None = None) -> list[int]:
        """The `k` tokens between prompt and answer with the highest throughput, highest first.

        `within` narrows the choice, as to the reasoning: the answer marker, form and not thought, carries much flow.
        """
        candidates = self.between()
        if within is not None:
            candidates &= span_mask(within, len(self), candidates.device)
        ranked = torch.where(candidates, self.throughput, -1.0)
        return ranked.topk(min(k, int(candidates.sum()))).indices.tolist()

    def checkpoints(self, share: float = 0.5) -> list[int]:
        """Tokens between prompt and answer that at least `share` of the delivered flow passes, in order. Raises
        `FaithlabError` for a share that is not above 0 and up to 1."""
        if not 0 < share <= 1:
            raise FaithlabError(f"share={share} of the flow is not possible; use a number above 0 and up to 1")
        passed = (self.inflow >= share * self.delivered * (1 - 1e-9)) & self.between() & (self.inflow > 0)
        return passed.nonzero().flatten().tolist()

    def table(self, pieces: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a token: `position, text, span, reachability, inflow, throughput`. Raises `FaithlabError` unless
        `pieces`, the texts, are one a token."""
        if pieces is not None and len(pieces) != len(self):
            raise FaithlabError(f"{len(pieces)} token texts for a flow of {len(self)} tokens")
        spans = ["prompt" if p else "answer" if a else "" for p, a in zip(self.prompt, self.answer, strict=True)]
        columns = dict(position=range(len(self)), text=list(pieces) if pieces is not None else [""] * len(self))
        numbers = dict(reachability=self.reachability, inflow=self.inflow, throughput=self.throughput)
        return pd.DataFrame(columns | dict(span=spans) | {name: v.cpu().numpy() for name, v in numbers.items()})

    def to_networkx(self, labels: Sequence[str] | None = None, *, k: int | None = None):
        """The graph as `networkx.DiGraph`: nodes with `label, inflow, throughput, span`, edges with `weight` (W) and
        `flow` (phi). With `k`, the backbone's edges and their nodes only. Raises what `table` and `backbone` raise."""
        import networkx as nx

        table, phi, weights = self.table(labels), self.edge_flow(), self.weights  # a new matrix each time
        if k is None:
            edges = [tuple(e) for e in (weights > 0).nonzero().tolist()]
        else:
            edges = [(e.source, e.target) for e in self.backbone(k).itertuples()]
        nodes = range(len(self)) if k is None else sorted({node for edge in edges for node in edge})
        graph = nx.DiGraph(delivered=self.delivered, undeliverable=self.undeliverable)
        for node in nodes:
            row = table.iloc[node]
            values = dict(inflow=float(row["inflow"]), throughput=float(row["throughput"]))
            graph.add_node(node, label=row["text"], span=row["span"], **values)
        graph.add_edges_from((i, j, dict(weight=float(weights[i, j]), flow=float(phi[i, j]))) for i, j in edges)
        return graph


def trace_flow(weights: Float[Tensor, "query key"], prompt: Span, answer: Span) -> Flow:
    """The answer-conditioned flow of one trace; see the module's head for the quantities.

    Args:
        weights: mean attention map, `weights[t, s]` from query `t` to key `s <= t`, not negative. Rows may sum to less
            than 1, but scale matters (c times the weights favours ways of m edges by c**m), so give a mean over heads
            and not a sum. The diagonal is not used: a token sends itself nothing.
        prompt: tokens that the flow starts from, evenly.
        answer: tokens that absorb it. All of them behind the first prompt token.

    Raises:
        FaithlabError: wrong shapes, NaN, negative or anti-causal weights, an empty span, spans that overlap, or an
            answer that no prompt token can reach.
    """
    flow = trace_flows(weights[None], [prompt], [answer])[0]
    if not flow.reachable:
        raise FaithlabError(
            "the answer cannot be reached from the prompt: no chain of non-zero attention leads there. Check the "
            "spans and the map: were the right layers read, does a sliding window cut everything off?"
        )
    return flow


def trace_flows(
    weights: Float[Tensor, "batch query key"] | Sequence[Float[Tensor, "query key"]],
    prompts: Sequence[Span],
    answers: Sequence[Span],
) -> list[Flow]:
    """`trace_flow` for many maps, of one size or of several, a number of them in two sweeps. The flows hold the maps
    and no copies: do not change these in place afterwards.

    Padding tokens take part in nothing as long as nobody attends to them. A trace whose answer is out of reach is no
    error here: its flow says so (`reachable` is False) and is 0.

    Raises:
        FaithlabError: wrong shapes, no maps, unlike numbers of maps and spans, NaN, negative or anti-causal weights, an
            empty span, or spans that overlap.
    """
    if isinstance(weights, Tensor) and weights.ndim != 3:
        raise FaithlabError(f"flow needs a square map [query, key] for each trace; got shape {tuple(weights.shape)}")
    maps = list(weights)
    for m in maps:
        if m.ndim != 2 or m.shape[0] != m.shape[1]:
            raise FaithlabError(f"flow needs a square map [query, key] for each trace; got shape {tuple(m.shape)}")
    if not maps:
        raise FaithlabError("no attention maps to trace flow on; give at least one")
    if not len(maps) == len(prompts) == len(answers):
        raise FaithlabError(f"{len(maps)} maps, {len(prompts)} prompts and {len(answers)} answers; give one each")
    flows: dict[int, Flow] = {}
    most = CACHED if maps[0].device.type == "cpu" else HELD
    for part in longest_first(dict(enumerate(map(len, maps))), lambda n: most // max(1, n**2)):
        found = _flows([maps[i] for i in part], [prompts[i] for i in part], [answers[i] for i in part])
        flows |= dict(zip(part, found, strict=True))
    return [flows[i] for i in range(len(maps))]


def flow_of(reasoner, trace: Trace) -> Flow:
    """The flow of a reasoner's trace through the middle layers, which are read here; `reachable` says if there is one.

    Raises:
        FaithlabError: what `attention.capture` and `trace_flows` refuse.
    """
    found = capture(reasoner.model, [trace], layers="middle", want=("mean_map",), pad_id=reasoner.pad_id)
    return trace_flows(found.traces[0].mean_map[None], [trace.prompt], [trace.answer])[0]


def _flows(maps: list[Float[Tensor, "query key"]], prompts: Sequence[Span], answers: Sequence[Span]) -> list[Flow]:
    """Flows of maps that are padded to the size of the largest and solved together."""
    n, device = max(map(len, maps)), maps[0].device
    if len(maps) == 1:
        together = maps[0][None]
    else:
        dtype = functools.reduce(torch.promote_types, [m.dtype for m in maps])
        together = maps[0].new_zeros(len(maps), n, n, dtype=dtype)
        for row, m in zip(together, maps, strict=True):
            row[: len(m), : len(m)] = m
    _check(together)
    prompt, answer = (torch.zeros(len(maps), n, dtype=torch.bool, device=device) for _ in range(2))
    for spans, into in ((prompts, prompt), (answers, answer)):
        for row, m, span in zip(into, maps, spans, strict=True):
            row[: len(m)] = span_mask(span, len(m), device)
    if not (prompt.any(1) & answer.any(1)).all():
        raise FaithlabError("flow needs at least one prompt token and one answer token")
    if (prompt & answer).any():
        raise FaithlabError("prompt and answer overlap: a token cannot be both source and sink")
    log_h = log_reachability(together, answer)
    inject = prompt.to(torch.float64) / prompt.sum(1, keepdim=True)
    lost = torch.where(log_h.isneginf(), inject, 0).sum(1)
    inject = torch.where(log_h.isneginf(), 0, inject)
    inflow = inflow_of(together, answer, log_h, inject)
    throughput = inflow * torch.where(answer | log_h.isneginf(), 1.0, 2.0)
    lost = torch.where(lost > 1 - 1e-12, torch.ones_like(lost), lost).tolist()
    columns = (log_h, inflow, throughput, prompt, answer)
    return [Flow(m, *(c[b, : len(m)] for c in columns), lost[b]) for b, m in enumerate(maps)]


def _check(weights: Float[Tensor, "batch query key"]) -> None:
    # Some rows at a time, so that no second map is made and the rows are read from memory once.
    extremes = []
    for first in range(0, weights.shape[1], BLOCK):
        rows = weights[:, first : first + BLOCK]
        low, high = rows.aminmax()  # NaN if there is any
        extremes.append(torch.stack([low, high, rows[:, :, first:].triu(1).amax()]))
    low, high, ahead = torch.stack(extremes or [weights.new_zeros(3)]).double().T.tolist()
    if not all(map(math.isfinite, low + high)):
        raise FaithlabError("the attention map holds NaN or infinity: compute it in float32, or check the model")
    if min(low) < 0:
        raise FaithlabError("the attention map holds negative weights; attention probabilities are not negative")
    if max(ahead) > 1e-6:
        raise FaithlabError("a token attends to a later one: is the map [query, key], and not transposed?")
