"""Spans of positions: a `slice`, a boolean mask or an index tensor, read in one place."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from faithlab.errors import FaithlabError

Span = slice | Tensor


def span_mask(span: Span, n: int, device=None) -> Bool[Tensor, " n"]:
    """The span as a boolean mask over `n` positions.

    Raises `FaithlabError` if it is none of a slice, a boolean mask of length n or integer indices within 0..n-1.
    """
    mask = torch.zeros(n, dtype=torch.bool, device=device)
    if isinstance(span, slice):
        start, stop = span.start or 0, n if span.stop is None else span.stop
        if span.step not in (None, 1) or not 0 <= start <= stop <= n:
            raise FaithlabError(f"span {span.start}:{span.stop} does not lie within {n} tokens")
        mask[start:stop] = True
        return mask
    if not isinstance(span, Tensor) or span.ndim != 1 or span.is_floating_point():
        raise FaithlabError("a span is a slice, a boolean mask or a tensor of indices")
    if span.dtype == torch.bool:
        if len(span) != n:
            raise FaithlabError(f"a span mask of {len(span)} positions for {n} tokens")
        return span.to(device)
    if len(span) and (int(span.min()) < 0 or int(span.max()) >= n):
        raise FaithlabError(f"span indices {int(span.min())} to {int(span.max())} do not lie within {n} tokens")
    mask[span.to(device)] = True
    return mask


def span_indices(span: Span, n: int, device=None) -> Int[Tensor, " positions"]:
    """The span's positions in increasing order."""
    return span_mask(span, n, device).nonzero().flatten()
