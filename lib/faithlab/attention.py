"""The one door into a model's attention: streaming capture, and additive score biases that carry gradient.

`capture` runs one ordinary forward pass, with whatever attention backend the model was loaded with, and keeps of the
layers it reads only queries and keys. Attention probabilities are then made again from these in chunks of query rows
and reduced on the spot, so `layers x heads x N x N` numbers never exist. For head groups that follow from the traces
themselves (local and global heads, by backward distance) the chunks are made twice; the forward pass runs once.

Biases (`model_mask`, `cut_bias`, `causal_bias`) are defined in `faithlab.biases` and re-exported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from faithlab import heads
from faithlab.batches import collate
from faithlab.biases import causal_bias, check_window, cut_bias, frozen, layer_windows, lowest, model_mask
from faithlab.errors import FaithlabError, unknown
from faithlab.memory import check_fits
from faithlab.recorder import Recorded, record
from faithlab.traces import Trace

__all__ = [
    "AttentionSummary",
    "TraceAttention",
    "capture",
    "causal_bias",
    "cut_bias",
    "frozen",
    "layer_windows",
    "lowest",
    "model_mask",
    "read_layers",
]

WANTS = ("profiles", "waad", "fai", "maps", "mean_map", "layer_maps", "received", "entropy")
LAYER_RANGES = ("middle", "bottom", "top", "all")
READ = 5  # layers of a range
LIKE = 0.8  # of the longest of a batch is the shortest, at least
CHUNK_BYTES = 2**23  # of attention probabilities at a time


@dataclass(frozen=True)
class TraceAttention:
    """What was read of one trace; N tokens, R response tokens. What was not asked for is None.

    `waad`, `fai` are profiles over the response; `local_map`, `global_map` the mean maps of the two head groups;
    `mean_map` the mean over all heads read (the token graph of `faithlab.flow`); `layer_maps` the head mean of every
    layer read; `received` each head's attention from response rows at least 10 tokens later; `kurtosis` how peaked
    that is; `entropy` that of the distribution which produced each response token, in nats.
    """

    distance: Float[Tensor, "layer head"]
    waad: Float[Tensor, " response"] | None = None
    fai: Float[Tensor, " response"] | None = None
    local_map: Float[Tensor, "query key"] | None = None
    global_map: Float[Tensor, "query key"] | None = None
    mean_map: Float[Tensor, "query key"] | None = None
    layer_maps: Float[Tensor, "layer query key"] | None = None
    received: Float[Tensor, "layer head response"] | None = None
    kurtosis: Float[Tensor, "layer head"] | None = None
    entropy: Float[Tensor, " response"] | None = None


@dataclass(frozen=True)
class AttentionSummary:
    """`capture`'s result: one `TraceAttention` a trace, and the heads that were chosen.

    `local` and `global_` index the flattened (layer, head) grid of the layers read; pass the summary as `groups=` to
    another call to freeze the choice.
    """

    layers: tuple[int, ...]
    distance: Float[Tensor, "layer head"]  # mean over traces
    local: Int[Tensor, " local"]
    global_: Int[Tensor, " global"]
    traces: tuple[TraceAttention, ...] = field(repr=False)

    def names(self, chosen: Int[Tensor, " heads"]) -> list[str]:
        """Heads as "layer.head", zero-based, as in "3.1"."""
        per_layer = self.distance.shape[1]
        return [f"{self.layers[i // per_layer]}.{i % per_layer}" for i in chosen.tolist()]


def read_layers(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers meant by a range name: up to five evenly spaced ones of the middle third (`floor(L/3)` to
    `floor(2L/3)`), the bottom or top third, or "all". A list of zero-based indices is taken as it is.

    Raises `FaithlabError` for an unknown name, an empty list, or an index that does not exist.
    """
    if isinstance(layers, str):
        third = depth // 3
        ends = dict(middle=(third, 2 * depth // 3), bottom=(0, third), top=(2 * depth // 3, depth - 1))
        if layers == "all":
            return tuple(range(depth))
        if layers not in ends:
            raise unknown("layer range", layers, LAYER_RANGES)
        first, last = (min(end, depth - 1) for end in ends[layers])
        return tuple(dict.fromkeys(int(x) for x in np.linspace(first, last, READ).round()))
    try:
        chosen = tuple(dict.fromkeys(int(i) for i in layers))
    except (TypeError, ValueError) as error:
        raise FaithlabError(f"layers={layers!r} are no layers; use {', '.join(LAYER_RANGES)}, or numbers") from error
    if not chosen or not all(0 <= i < depth for i in chosen):
        raise FaithlabError(f"layers {list(layers)} do not exist; the model has layers 0 to {depth - 1}")
    return tuple(sorted(chosen))


def capture(
    model,
    traces: Sequence[Trace],
    *,
    layers: str | Sequence[int] = "middle",
    want: Sequence[str] = ("profiles",),
    groups: AttentionSummary | None = None,
    window: int = heads.WINDOW,
    horizon: tuple[int, int | None] = heads.HORIZON,
    fraction: float = heads.FRACTION,
    pad_id: int = 0,
    side: Literal["left", "right"] = "left",
    quiet: bool = True,
) -> AttentionSummary:
    """Read a model's attention over traces in one forward pass of each. All that is returned is on the CPU.

    Args:
        model: any causal language model of transformers, on any device, with any attention backend.
        traces: padded to a batch of each length's like; nothing depends on the padding.
        layers: see `read_layers`.
        want: "waad", "fai", or "profiles" for both, "maps" (local and global), "mean_map", "layer_maps", "received"
            (with kurtosis), "entropy". Every map asked for is N x N a trace; the others are vectors.
        groups: an earlier result whose local and global heads (and layers) are used again, instead of choosing.
        window, horizon, fraction: of WAAD, FAI and the head split; see `faithlab.heads`.
        quiet: do not print the memory estimate.

    Raises:
        FaithlabError: unknown names, no traces, an empty response, attention that cannot be read (sinks, layers without
            attention), NaN, or what does not fit into memory, with the remedy.
    """
    for name in want:
        if name not in WANTS:
            raise unknown("thing to capture", name, WANTS)
    want = {*want} | ({"waad", "fai"} if "profiles" in want else set())
    if not traces:
        raise FaithlabError("no traces to read attention of; give at least one")
    config = model.config.get_text_config()
    chosen = groups.layers if groups is not None else read_layers(layers, config.num_hidden_layers)
    for i, t in enumerate(traces):
        if t.response.stop <= t.response.start:
            raise FaithlabError(f"trace {i} has no response: nothing was written, so there is nothing to read")
    check_window(model, map(len, traces))
    alike = _of_like_length(traces)
    check_fits(model, [[len(traces[i]) for i in p] for p in alike], len(chosen), want, CHUNK_BYTES, quiet=quiet)
    found: dict[int, _Reading] = {}
    for places in alike:
        batch = collate([traces[i] for i in places], pad_id=pad_id, side=side, device=model.device)
        recorded = record(model, batch, chosen, entropy="entropy" in want)
        found |= {i: _Reading(recorded, row, traces[i], chosen) for row, i in enumerate(places)}
    readings = [found[i] for i in range(len(traces))]
    parts = [r.first_pass(want, window, horizon) for r in readings]
    distance = torch.stack([p["distance"] for p in parts]).mean(0)
    if not torch.isfinite(distance).all():
        raise FaithlabError("attention is not finite: load the model in float32, or check its weights for NaN")
    if groups is None:
        local, global_ = heads.split_heads(distance, fraction)
    else:
        local, global_ = groups.local.to(distance.device), groups.global_.to(distance.device)
    for r, part in zip(readings, parts, strict=True):
        for name, group in (
            ("waad", local),
            ("fai", global_),
        ):  # linear in attention, so that heads may be averaged last
            if name in want:
                part[name] = part[name].flatten(0, 1)[group].mean(0)
        if "maps" in want:
            part |= r.second_pass(local, global_)
        if "entropy" in want:
            part["entropy"] = r.entropy()
        part |= {name: value.cpu() for name, value in part.items()}
    read = tuple(TraceAttention(**part) for part in parts)
    return AttentionSummary(chosen, distance.cpu(), local.cpu(), global_.cpu(), read)


def _of_like_length(traces: Sequence[Trace]) -> list[list[int]]:
    """Numbers of the traces by length, in parts of which no trace is shorter than `LIKE` times the longest: what is
    padding costs as much as what is not."""
    parts: list[list[int]] = []
    for i in sorted(range(len(traces)), key=lambda i: -len(traces[i])):
        if not parts or len(traces[i]) < LIKE * len(traces[parts[-1][0]]):
            parts.append([])
        parts[-1].append(i)
    return parts


class _Reading:
    """The recorded queries and keys of one trace, and the passes over their attention probabilities."""

    def __init__(self, recorded: Recorded, row: int, trace: Trace, layers: Sequence[int]):
        start = int(recorded.starts[row])
        self.columns = slice(start, start + len(trace))
        self.layers = [recorded.layers[i] for i in layers]
        self.recorded, self.row, self.n, self.response = recorded, row, len(trace), trace.response

    def chunks(
        self, picked: Sequence[Sequence[int] | None], within: slice | None = None
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        """(number of the layer, first row, last row, probabilities [head, row, key up to the last row]) of the picked
        heads of each layer (None: all), in chunks of rows `within` (None: all rows). Keys behind a chunk's last row
        have probability 0."""
        begin, end = (0, self.n) if within is None else (within.start, within.stop)
        for number, (layer, chosen) in enumerate(zip(self.layers, picked, strict=True)):
            if chosen is not None and not len(chosen):
                continue
            q = layer.query[self.row, :, self.columns].float()
            k = layer.key[self.row, :, self.columns].float()
            group = len(q) // len(k)
            index = torch.arange(len(q)) if chosen is None else torch.as_tensor(chosen)
            q, k = q[index.to(q.device)], k[(index // group).to(k.device)]
            size = max(1, CHUNK_BYTES // (4 * len(q) * self.n))
            for first in range(begin, end, size):
                last = min(first + size, end)
                yield number, first, last, layer.probabilities(q[:, first:last], k[:, :last], first)

    def first_pass(self, want: Sequence[str], window: int, horizon: tuple[int, int | None]) -> dict[str, Tensor]:
        """Distances of all heads, and what is read from all of them; profiles [layer, head, response] of each head, for
        which are local and which global is known when all traces have been read."""
        n, lo = self.n, heads.HORIZON[0]
        device = self.layers[0].query.device
        count, per_layer = len(self.layers), self.layers[0].query.shape[1]
        inside = torch.zeros(n, device=device)
        inside[self.response] = 1.0
        distance = torch.zeros(count, per_layer, device=device)
        received = torch.zeros(count, per_layer, n, device=device) if "received" in want else None
        layered = "layer_maps" in want or "mean_map" in want
        maps = torch.zeros(count if "layer_maps" in want else 1, n, n, device=device) if layered else None
        positions = torch.arange(n, device=device, dtype=torch.float32)
        profiles = heads.Profiles((count, per_layer, n), self.response, want, window, horizon, device)
        within = None if layered else self.response  # nobody asks for the prompt's rows otherwise
        for number, first, last, probs in self.chunks([None] * count, within):
            rows = inside[first:last]
            # sum_s P (t - s) = t - sum_s P s, since rows sum to 1: no matrix of distances is needed
            reach = positions[first:last] - probs @ positions[:last]
            distance[number] += (reach * rows).sum(-1)
            profiles.add(number, first, last, probs)
            if received is not None:
                ahead = positions[first:last, None] - positions[None, :last] >= lo
                received[number, :, :last] += (probs * (ahead * rows[:, None])).sum(1)
            if layered:
                maps[number if "layer_maps" in want else 0, first:last, :last] += probs.sum(0)
        out: dict[str, Tensor] = dict(distance=distance / inside.sum())
        if "layer_maps" in want:
            out["layer_maps"] = maps / per_layer
        if "mean_map" in want:
            out["mean_map"] = maps.sum(0) / (count * per_layer)
        out |= profiles.finished()
        if received is not None:
            rows = torch.arange(n, device=device)[self.response]
            later = (len(rows) - lo - torch.arange(len(rows), device=device)).clamp(min=0)
            mean = received[..., self.response] / later
            out["received"] = torch.where(later > 0, mean, torch.nan)
            out["kurtosis"] = heads.kurtosis(out["received"])
        return out

    def second_pass(self, local: Tensor, global_: Tensor) -> dict[str, Tensor]:
        """The mean maps of the two head groups."""
        per_layer, device = self.layers[0].query.shape[1], self.layers[0].query.device
        out: dict[str, Tensor] = {}
        for name, group in (("local_map", local.tolist()), ("global_map", global_.tolist())):
            out[name] = torch.zeros(self.n, self.n, device=device)
            picked = [[i % per_layer for i in group if i // per_layer == k] for k in range(len(self.layers))]
            for _, first, last, probs in self.chunks(picked):
                out[name][first:last, :last] += probs.sum(0) / len(group)
        return out

    def entropy(self) -> Float[Tensor, " response"]:
        """Of the rows that produced the response's tokens: one before each."""
        values = self.recorded.entropy[self.row, self.columns]
        before = torch.cat([values.new_full((1,), math.nan), values])  # nothing stands before the first token
        return before[self.response]
