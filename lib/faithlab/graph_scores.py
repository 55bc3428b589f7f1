"""Scores to compare flow with: attention rollout, max-flow, attention received. One number a token.

Sources: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928) for rollout and max-flow.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from faithlab.errors import FaithlabError
from faithlab.spans import Span, span_indices, span_mask

MAX_FLOW_TOKENS = 512
UNITS = 10**6  # max-flow works on whole numbers: capacities are in millionths


def attention_rollout(maps: Float[Tensor, "layer query key"], answer: Span) -> Float[Tensor, " token"]:
    """How much of each token arrives in the answer when attention maps are multiplied through the layers.

    `A_l = (map_l / rows + I) / 2`, the half for the residual stream; the score of token `s` is the mean over answer
    rows of `(A_L ... A_1)[t, s]`. `maps` are the head means of successive layers, lowest first. In [0, 1], sums to 1.

    Raises:
        FaithlabError: no maps, maps that are not square, or an answer without a token.
    """
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or not len(maps):
        raise FaithlabError(f"rollout needs maps [layer, query, key]; got shape {tuple(maps.shape)}")
    n = maps.shape[-1]
    rows = span_mask(answer, n, maps.device).to(maps.dtype)
    if not rows.any():
        raise FaithlabError("rollout needs at least one answer token")
    rolled = rows / rows.sum()  # a row vector through the product, top layer first: never an N x N product
    for layer in reversed(range(len(maps))):
        total = maps[layer].sum(-1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        rolled = (rolled @ (maps[layer] / total) + rolled) / 2
    return rolled


def received_attention(weights: Float[Tensor, "query key"], readers: Span) -> Float[Tensor, " token"]:
    """Mean attention that each token receives from the `readers` behind it (0 where none is behind it); in [0, 1]."""
    n = weights.shape[-1]
    later = weights.tril(-1) * span_mask(readers, n, weights.device)[:, None]
    counts = span_mask(readers, n, weights.device).flip(0).cumsum(0).flip(0)
    behind = torch.cat([counts[1:], counts.new_zeros(1)])
    return later.sum(0) / behind.clamp(min=1)


def max_flow(weights: Float[Tensor, "query key"], prompt: Span, answer: Span) -> Float[Tensor, " token"]:
    """What passes each token in a maximum flow from prompt to answer with attention as capacity (scipy's solver).

    Capacities are scaled to whole numbers, since float capacities can give wrong cuts. Not unique: other maximum flows
    can pass other tokens. For small graphs only.

    Raises:
        FaithlabError: more than 512 tokens.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import maximum_flow

    n = weights.shape[-1]
    if n > MAX_FLOW_TOKENS:
        raise FaithlabError(f"max-flow over {n} tokens would take minutes; it is meant for up to {MAX_FLOW_TOKENS}")
    sources, sinks = (span_indices(s, n).tolist() for s in (prompt, answer))
    capacity = np.zeros((n + 2, n + 2), dtype=np.int32)
    graph = weights.tril(-1).T.double().cpu().numpy().copy()
    graph[sinks] = 0
    capacity[:n, :n] = np.round(graph * UNITS)
    unlimited = np.int32(min(2**31 - 1, (n + 1) * UNITS))
    capacity[n, sources] = unlimited
    capacity[sinks, n + 1] = unlimited
    flow = maximum_flow(sparse.csr_matrix(capacity), n, n + 1).flow.toarray()
    passed = np.clip(flow, 0, None)[:n, :].sum(1) / UNITS
    return torch.from_numpy(passed).to(weights)
