"""The two sweeps over the attention graph behind `faithlab.flow`: reachability from the end, inflow from the beginning.

Both sweeps are triangular solves, made block by block of rows, so that float64 is held for a few rows of the map only:
at thousands of tokens a second map costs more than all the arithmetic. float64 has room for h of softmax attention;
where even that is not enough (hard zeros of sliding windows, thousands of hops) h is computed in logarithms instead.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK = 128  # rows of the map that are taken into float64 at a time

# Outside this range a positive float64 is not trusted to be what it stands for.
SMALLEST, LARGEST = 1e-250, 1e250


def log_reachability(maps: Float[Tensor, "batch query key"], answer: Bool[Tensor, "batch token"]):
    """log h; -inf where the answer cannot be reached."""
    h = answer.to(torch.float64)  # what the rows so far bring to each token; finished from the end
    for first, last, rows, corner in _blocks(maps, answer, backwards=True):
        h[:, first:last] = _solved(corner.transpose(1, 2), h[:, first:last], upper=True)
        brought = (h[:, None, first:last] @ rows)[:, 0]
        h[:, :first] += brought.masked_fill_(answer[:, :first], 0)
    h = h.clamp_(min=0)
    log_h = h.log()
    # A zero may be an underflow, and so may be what was built on one. Tokens behind the answer are truly off the graph.
    columns = torch.arange(maps.shape[1], device=maps.device)
    before = columns < torch.where(answer, columns, -1).amax(1, keepdim=True)
    doubtful = before & ~((h > SMALLEST) & (h < LARGEST))
    for b in doubtful.any(1).nonzero().flatten().tolist():
        graph = graph_of(maps[b], answer[b])
        if (graph[doubtful[b]].sum(1) > 0).any():
            log_h[b] = in_logarithms(graph, answer[b])
    return log_h


def inflow_of(maps, answer, log_h, inject) -> Float[Tensor, "batch token"]:
    """f. With g = f / h the equation loses W': g[k] = inject[k] / h[k] + sum_i g[i] W[i, k]. Where h has too wide a
    range for that, W' is made after all."""
    known = ~log_h.isneginf()
    span = torch.where(known, log_h, 0.0).abs().amax()
    if span < math.log(LARGEST):
        scale = log_h.exp()
        g = torch.where(known, inject / torch.where(known, scale, 1.0), 0.0)
    else:
        graphs = torch.stack([graph_of(m, a) for m, a in zip(maps, answer, strict=True)])
        maps, g, scale = conditioned_of(graphs, log_h).transpose(1, 2), inject.clone(), 1.0
    for first, last, rows, corner in _blocks(maps, answer):
        sent = g[:, :first].masked_fill(answer[:, :first], 0)
        g[:, first:last] = _solved(corner, g[:, first:last] + (rows @ sent[:, :, None])[:, :, 0], upper=False)
    return (g * scale).clamp(min=0)


def _blocks(maps: Float[Tensor, "batch query key"], answer: Bool[Tensor, "batch token"], *, backwards: bool = False):
    """The map by blocks of rows, in float64: `first, last`, their weights on the columns before `first`, and the square
    from `first` to `last`, strictly lower, answer columns 0. The tensors are valid until the next block."""
    b, n, _ = maps.shape
    space = maps.new_empty(b * BLOCK * n, dtype=torch.float64)  # one for all: fresh memory is what costs
    starts = range(0, n, BLOCK)
    for first in reversed(starts) if backwards else starts:
        last = min(first + BLOCK, n)
        rows = space[: b * (last - first) * last].view(b, last - first, last).copy_(maps[:, first:last, :last])
        corner = rows[:, :, first:].tril(-1).masked_fill_(answer[:, None, first:last], 0)
        yield first, last, rows[:, :, :first], corner


def _solved(strict: Float[Tensor, "batch row column"], right: Float[Tensor, "batch row"], *, upper: bool):
    """x of (1 - strict) x = right, for a strictly triangular matrix."""
    return torch.linalg.solve_triangular(-strict, right[..., None], upper=upper, unitriangular=True)[..., 0]


def graph_of(weights: Float[Tensor, "query key"], answer: Bool[Tensor, " token"]) -> Float[Tensor, "source target"]:
    """W: who sends to whom, in float64."""
    return weights.to(torch.float64, copy=True).tril_(-1).T.masked_fill(answer[:, None], 0)


def in_logarithms(graph: Float[Tensor, "source target"], answer: Bool[Tensor, " token"]) -> Float[Tensor, " token"]:
    """log h token by token from the end: no scale is too small, at the price of one step a token."""
    log_w = graph.log()
    log_h = torch.where(answer, 0.0, -torch.inf).to(graph.dtype)
    for i in range(len(graph) - 2, -1, -1):
        if not answer[i]:
            log_h[i] = torch.logsumexp(log_w[i, i + 1 :] + log_h[i + 1 :], 0)
    return log_h


def conditioned_of(graph: Float[Tensor, "batch source target"], log_h: Float[Tensor, "batch token"]):
    """W' = W h[target] / h[source], rows scaled to sum to exactly 1 where there is any."""
    # Where W > 0 the ratio is at most -log W, since h[source] >= W h[target]; elsewhere it may be anything, times 0.
    off = log_h.isneginf()
    finite = torch.where(off, 0.0, log_h)
    ratio = (finite[:, None, :] - finite[:, :, None]).clamp_(max=700).exp_()
    step = ratio.mul_(graph).masked_fill_(off[:, None, :] | off[:, :, None], 0)
    total = step.sum(2, keepdim=True)
    return torch.where(total > 0, step / total, 0.0)
