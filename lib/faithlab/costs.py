"""What a method costs before it is run: arithmetic and time from a model's shape and the lengths of its traces.

Counts are of matrix products, two operations a multiplication and addition, attention taken over all N columns of a
row (kernels that skip the masked half need up to twice less of that part). There and back is three forward passes; with
frozen weights, whose gradients nobody wants, two (attention: three). Beside its arithmetic every call of a model has a
start: all weights are read and all operators set going, however few tokens there are. Many calls on few rows each, as
in the steps of a mask and in writing, are mostly starts; `seconds` counts both. Memory is in `faithlab.footprints`.

    >>> shape = SHAPES["llama-3.2-3b"]
    >>> round(shape.parameters / 1e9, 2)
    3.21
    >>> float(table(shape, Lengths(prompt=200, reasoning=800, answer=10)).loc["forward pass", "TFLOP"].round(1))
    6.8

The tests lay the arithmetic of every method beside torch's own counter of operations (the mask as published: one of its
steps); notebook 10 lays the time of all but the two dearest, the mask as published and the resampling,
beside a clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pandas as pd
import torch

from faithlab.errors import FaithlabError, check_number
from faithlab.footprints import (
    MAP,
    continuations,
    copies_of_cache,
    kept_for_training,
    layers_read,
    memory,
    tiles,
)
from faithlab.shapes import SHAPES, Lengths, Shape

__all__ = ["MAP", "SHAPES", "Lengths", "Phase", "Shape", "StepEstimate", "flops", "grpo_step", "measured_rate",
           "measured_start", "memory", "phases", "seconds", "table", "training_bytes", "writing_seconds"]  # fmt: skip

STEPS = {"answer": 30, "all": 50}  # of the optimised mask by its scope, with early stopping; notebook 04 measures them
PUBLISHED_STEPS = 200
MASKED = {"answer": 2**14, "all": 2**13}  # tokens of the traces whose masks are found at once, by scope


@dataclass(frozen=True)
class Phase:
    """A part of a method: FLOPs for one trace, and calls of the model for all traces together. A way back counts as a
    call, or as two where the weights get gradients; the lower half of the layers as half a call."""

    flops: float
    calls: float = 0.0


def phases(shape: Shape, lengths: Lengths, traces: int = 1) -> dict[str, list[Phase]]:
    """The parts of each method, for `traces` of the same lengths that are handed over together."""
    n, p, r, a = lengths.total, lengths.prompt, lengths.reasoning, lengths.answer
    (read, depth), half = layers_read(shape), max(1, shape.layers // 2)
    last = 2 * n * shape.hidden * (shape.heads + 2 * shape.key_heads) * shape.head_dim  # which ends before it attends
    maps = 1.6 * read * 2 * (r + a) * n * shape.heads * shape.head_dim  # all heads, and once more two groups of 0.3

    def batches(pieces: int, at_once: int) -> float:
        return max(1.0, traces * pieces / max(1, at_once))

    def mask(first: int, rows: int, logits: int, steps: int = STEPS["answer"], scope: str = "answer") -> list[Phase]:
        """The rows before are run once, the others there and back again in every step."""
        calls = 2 * steps * batches(1, MASKED[scope] // n)
        return [
            Phase(shape.rows(first, n, logits=0), bool(first)),
            Phase(steps * shape.back_and_forth(rows, n, logits), calls),
        ]

    tail = max(1, a - 1)  # rows behind the reasoning: that of the last token predicts nothing that is asked
    ends = Phase(2 * shape.rows(tail, n), 2 * batches(1, MASKED["answer"] // n))  # log p with nothing masked, with all
    early = Phase(shape.rows(n - a, n, logits=0), 1)
    (needed, fit), (written, together) = copies_of_cache(shape, lengths), continuations(lengths)
    return {
        "forward pass": [Phase(shape.rows(n, n), 1)],
        "GRPO's gradient": [Phase(3 * shape.rows(n, n), 3)],
        "capture of attention": [Phase(shape.rows(n, n, layers=depth, logits=0) + last + maps, depth / shape.layers)],
        "flow, after capture": [Phase(2.0 * n * n)],  # two sweeps over what lies below the diagonal
        "one-step gradient of the mask": mask(n - a, tail, tail, 1),
        "mask, scope answer": [ends, *mask(n - a, tail, tail)],
        "mask, scope all": [
            Phase(2 * shape.rows(r + tail, n, logits=tail), 2 * batches(1, MASKED["all"] // n)),
            *mask(p, r + tail, tail, STEPS["all"], "all"),
        ],
        "mask as published": mask(0, n, n, PUBLISHED_STEPS, "all"),
        "mask network": [Phase(shape.rows(n, n, layers=half, logits=0), half / shape.layers)],
        "drop or sufficiency": [early, Phase(2 * shape.rows(tail, n), 1)],
        "every token cut, scope answer": [early, Phase(r * shape.rows(tail, n), batches(needed, fit))],
        "every sentence resampled 8 times": [
            Phase(shape.rows(p, n, logits=0), 1),
            Phase(written * shape.rows(r // 2, n, logits=0), batches(written, together)),
            Phase(written * shape.rows(r // 2 + a, n), batches(written, together) * (r / 2 + a)),
        ],
    }


def flops(shape: Shape, lengths: Lengths) -> dict[str, float]:
    """FLOPs of each method for one trace."""
    return {name: sum(part.flops for part in parts) for name, parts in phases(shape, lengths).items()}


def seconds(shape: Shape, lengths: Lengths, *, rate: float, start: float, traces: int = 1) -> dict[str, float]:
    """Seconds of each method for `traces` together: FLOPs over `rate` (FLOP a second), and `start` for every call.

    A start takes what a call of one token takes (`measured_start`): on a large device the time to read all weights,
    their bytes over the memory's bandwidth; for a small model that of setting its operators going. Raises
    `FaithlabError` for a rate that is not above 0, or a start below it."""
    check_number("rate", rate, 0, above=True)
    check_number("start", start, 0)
    return {
        name: sum(traces * part.flops / rate + part.calls * start for part in parts)
        for name, parts in phases(shape, lengths, traces).items()
    }


def table(shape: Shape, lengths: Lengths, *, size: int = 2) -> pd.DataFrame:
    """One row a method: `TFLOP`, `forwards` (in forward passes) and `GB` beyond the weights."""
    work, held = flops(shape, lengths), memory(shape, lengths, size)
    rows = {
        name: dict(TFLOP=value / 1e12, forwards=value / work["forward pass"], GB=held[name] / 2**30)
        for name, value in work.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def training_bytes(shape: Shape, *, lora: int = 0, size: int = 2) -> int:
    """Weights, gradients and Adam's state: mixed precision holds 16 bytes a trained weight (2 and a float32 copy, 2 of
    gradient, 8 of Adam), float32 (`size` 4) as many; LoRA of rank `lora` only `size` for the frozen ones.

    Raises `FaithlabError` for a rank below 0 or another size."""
    check_number("lora", lora, 0, whole=True)
    if size not in (2, 4):
        raise FaithlabError(f"numbers of {size} bytes are not known here; use 2 (bfloat16) or 4 (float32)")
    if not lora:
        return 16 * shape.parameters
    d, k, q = shape.hidden, shape.key_heads * shape.head_dim, shape.heads * shape.head_dim
    adapters = shape.layers * lora * (2 * (d + q) + 2 * (d + k) + 3 * (d + shape.inner))
    return size * shape.parameters + 16 * adapters


def writing_seconds(shape: Shape, lengths: Lengths, batch: int, *, bandwidth: float, size: int = 2) -> float:
    """Seconds to write reasoning and answer for `batch` rollouts at once, where memory of `bandwidth` bytes a second is
    the limit: every token reads all weights once, and each rollout's cache as far as it is filled.

    Raises `FaithlabError` for a bandwidth that is not above 0."""
    check_number("bandwidth", bandwidth, 0, above=True)
    new = lengths.reasoning + lengths.answer
    middle = lengths.prompt + new / 2
    return new * (size * shape.parameters + batch * shape.cache_bytes(1, size) * middle) / bandwidth


@dataclass(frozen=True)
class StepEstimate:
    """What a GRPO step needs: bytes, and seconds at least (arithmetic at the device's rate for large matrices; small
    models reach a tenth of it or less)."""

    weights: float
    activations: float
    writing: float
    learning: float

    @property
    def seconds(self) -> float:
        """Of a step, at least."""
        return self.writing + self.learning

    def __str__(self) -> str:
        return (
            f"weights, gradients and optimiser {self.weights / 2**30:.2f} GB, "
            f"activations {self.activations / 2**30:.2f} GB; "
            f"a step takes at least {self.seconds:.1f} s ({self.writing:.1f} s of it for writing)"
        )


def grpo_step(
    shape: Shape, lengths: Lengths, rollouts: int, *, at_once: int, rate: float, start: float = 0.0, lora: int = 0,
    size: int = 2, autocast: bool = False,
) -> StepEstimate:  # fmt: skip
    """Estimate a step on one device: `rollouts` of these lengths are written and learnt from, `at_once` of them in one
    pass there and back, padded to one length, nothing recomputed. `rate` is in FLOP a second; every token written and
    every pass adds a `start` in seconds (see `seconds`; 0 leaves it out, and `writing_seconds` has that of a GPU).

    Args:
        size: bytes of a weight and of a number that is kept.
        autocast: weights in float32 are multiplied in bfloat16, as with TRL's `bf16`: what is multiplied is kept in
            two bytes, and beside the weights of the layers stands a copy of them in bfloat16.

    Raises `FaithlabError` for a rate that is not above 0, and what `training_bytes` refuses."""
    check_number("rate", rate, 0, above=True)
    n = lengths.total
    forward = rollouts * shape.rows(n, n) / rate
    kept = 2 if autocast else size
    return StepEstimate(
        training_bytes(shape, lora=lora, size=size) + 2 * autocast * shape.layers * shape.layer,
        at_once * kept_for_training(shape, n, kept, padded=True, autocast=autocast)
        + tiles(shape, at_once * n, kept, autocast=autocast),
        forward + (lengths.reasoning + lengths.answer) * start,
        3 * forward + 3 * rollouts / at_once * start,
    )


def measured_rate(device, dtype: torch.dtype = torch.float32, size: int = 1024, rounds: int = 5) -> float:
    """FLOP a second of the product of two matrices on a device: the best of some rounds."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _quickest(lambda: a @ a, a.is_cuda, rounds)


@torch.no_grad()
def measured_start(model, rounds: int = 5) -> float:
    """Seconds of a call of the model on a single token: the best of some rounds, after one that is not counted."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model(input_ids=ids)
    return _quickest(lambda: model(input_ids=ids, use_cache=False), ids.is_cuda, rounds)


def _quickest(work, cuda: bool, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
