"""Traces padded to one batch: which columns are padding follows from lengths, never from ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from faithlab.errors import FaithlabError
from faithlab.traces import SpanName, Trace


@dataclass(frozen=True)
class Batch:
    """Several traces in one padded tensor.

    Position `p` of trace `b` stands in column `starts[b] + p`, except that the first `shared` positions, which all
    traces have alike, stand in columns 0 to `shared - 1` (then padding is between them and the rest).
    """

    input_ids: Int[Tensor, "batch tokens"]
    attention_mask: Int[Tensor, "batch tokens"]
    starts: Int[Tensor, " batch"]
    traces: tuple[Trace, ...]
    shared: int = 0

    @property
    def position_ids(self) -> Int[Tensor, "batch tokens"]:
        """The position, in its trace, of what stands in each column: the column less `starts`, and the column itself
        within the first `shared`. Padding before a trace's own part has position `shared`, padding behind it counts on.
        """
        columns = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None]
        positions = (columns - self.starts[:, None]).clamp(min=self.shared)
        return torch.where(columns < self.shared, columns, positions)

    def columns(self, start: int, positions: Iterable[int]) -> list[int]:
        """Where positions of a trace stand. `start` is its entry of `starts`, which a caller reads from the device once
        for all."""
        return [p if p < self.shared else start + p for p in positions]

    def mask(self, span: SpanName) -> Bool[Tensor, "batch tokens"]:
        """True at the columns of the named span of each trace."""
        where = [getattr(trace, span) for trace in self.traces]
        first, last = (
            torch.tensor(ends, device=self.starts.device)[:, None]
            for ends in zip(*((w.start, w.stop) for w in where), strict=True)
        )
        inside = (self.position_ids >= first) & (self.position_ids < last)
        return inside & self.attention_mask.bool()


def longest_first(lengths: Mapping[int, int], at_once: Callable[[int], int]) -> Iterator[list[int]]:
    """Numbers in batches of like length, so that little is padded; the longest come first, so that a lack of memory
    shows at once. `at_once` says how many of a length fit together; one always does."""
    order = sorted(lengths, key=lambda i: -lengths[i])
    while order:
        count = max(1, at_once(lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def pad_rows(
    rows: Sequence[Sequence[int] | Int[Tensor, " tokens"]],
    *,
    pad_id: int,
    side: Literal["left", "right"] = "left",
    shared: int = 0,
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"], Int[Tensor, " batch"]]:
    """Ids, attention mask and starts of a padded batch; what `starts` and `shared` mean is said in `Batch`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    starts = torch.tensor([width - len(row) if side == "left" else 0 for row in rows])
    for number, (row, start) in enumerate(zip(rows, starts.tolist(), strict=True)):
        for part, column in ((row[:shared], 0), (row[shared:], start + shared)):
            ids[number, column : column + len(part)] = torch.as_tensor(part)
            mask[number, column : column + len(part)] = 1
    return ids, mask, starts


def collate(
    traces: Iterable[Trace], *, pad_id: int, side: Literal["left", "right"] = "left", shared: int = 0, device=None
) -> Batch:
    """Pad traces to one batch. Which columns are padding follows from lengths, never from ids.

    `shared` (with left padding) keeps that many first tokens in the first columns: see `Batch`. The caller knows that
    they are alike in all traces.

    Raises `FaithlabError` if there is no trace or one is empty.
    """
    traces = tuple(traces)
    if not traces:
        raise FaithlabError("no traces to put into a batch; give at least one")
    if any(len(t) == 0 for t in traces):
        raise FaithlabError("a trace without tokens cannot be run; drop it first")
    if side not in ("left", "right"):
        raise FaithlabError(f"padding side {side!r} is not known; use 'left' or 'right'")
    ids, mask, starts = pad_rows([t.input_ids for t in traces], pad_id=pad_id, side=side, shared=shared)
    return Batch(ids.to(device), mask.to(device), starts.to(device), traces, shared)
