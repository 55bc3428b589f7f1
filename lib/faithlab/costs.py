"""What a method costs before it is run: arithmetic and memory from a model's shape and the lengths of its traces.

Counts are of matrix products, two operations a multiplication and addition, attention taken over all N columns of a
row (kernels that skip the masked half need up to twice less of that part). There and back is three forward passes; with
frozen weights, whose gradients nobody wants, two (attention: three). Writing is bound by reading weights and cache once
a token, not by arithmetic.

    >>> shape = SHAPES["llama-3.2-3b"]
    >>> round(shape.parameters / 1e9, 2)
    3.21
    >>> float(table(shape, Lengths(prompt=200, reasoning=800, answer=10)).loc["forward pass", "TFLOP"].round(1))
    6.8

The forward pass, the pass back and the mask's steps are checked against torch's own counter of operations in the tests,
all but the costliest against measured time in notebook 10.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pandas as pd
import torch

from faithlab.errors import FaithlabError, check_number

STEPS = 30  # of the optimised mask, with early stopping; notebook 04 measures them
PUBLISHED_STEPS = 200
READ_LAYERS = 5  # whose attention is read, at most; the deepest of them at two thirds of the depth
MAP = 4  # bytes of an attention probability, kept as float32


@dataclass(frozen=True)
class Shape:
    """What the cost of a decoder with gated feed-forward layers follows from."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config) -> Shape:
        """From a transformers configuration."""
        c = config.get_text_config()
        heads = c.num_attention_heads
        return cls(
            c.num_hidden_layers, c.hidden_size, heads, getattr(c, "num_key_value_heads", None) or heads,
            getattr(c, "head_dim", None) or c.hidden_size // heads,
            getattr(c, "intermediate_size", None) or 4 * c.hidden_size, c.vocab_size,
            bool(getattr(c, "tie_word_embeddings", False)),
        )  # fmt: skip

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """All weights, but for the norms' (less than a thousandth)."""
        return self.layers * self.layer + self.hidden * self.vocabulary * (1 if self.tied else 2)

    def rows(self, rows: int, columns: int, *, layers: int | None = None, logits: int | None = None) -> float:
        """FLOPs of running `rows` positions that look at `columns` each, through `layers`, with logits of so many."""
        layers = self.layers if layers is None else layers
        logits = rows if logits is None else logits
        attention = 4 * rows * columns * self.heads * self.head_dim
        return layers * (2 * rows * self.layer + attention) + 2 * logits * self.hidden * self.vocabulary

    def back_and_forth(self, rows: int, columns: int, logits: int | None = None) -> float:
        """FLOPs of the same, and back again with frozen weights."""
        attention = 4 * rows * columns * self.heads * self.head_dim * self.layers
        return 2 * self.rows(rows, columns, logits=logits) + attention

    def cache_bytes(self, tokens: int, size: int = 2) -> int:
        """Keys and values of so many tokens, in numbers of `size` bytes."""
        return 2 * self.layers * self.key_heads * self.head_dim * tokens * size


SHAPES = {
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49_152, True),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 128, 8192, 128_256, True),
    "qwen3-4b": Shape(36, 2560, 32, 8, 128, 9728, 151_936, True),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14_336, 128_256, False),
    "llama-3.1-70b": Shape(80, 8192, 64, 8, 128, 28_672, 128_256, False),
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of a trace."""

    prompt: int
    reasoning: int
    answer: int

    def __post_init__(self):
        for name in ("prompt", "reasoning", "answer"):
            check_number(name, getattr(self, name), 1, whole=True)

    @property
    def total(self) -> int:
        return self.prompt + self.reasoning + self.answer


def flops(shape: Shape, lengths: Lengths) -> dict[str, float]:
    """FLOPs of each method for one trace."""
    n, r, a = lengths.total, lengths.reasoning, lengths.answer
    read = min(READ_LAYERS, shape.layers)
    depth = min(shape.layers, 2 * shape.layers // 3 + 1)
    hidden = shape.rows(n, n, layers=depth, logits=0)
    maps = read * 2 * n * n * shape.heads * shape.head_dim  # queries times keys, once more
    prefix = shape.rows(n - a, n, logits=0)
    return {
        "forward pass": shape.rows(n, n),
        "GRPO's gradient": 3 * shape.rows(n, n),
        "capture of attention": hidden + maps,
        "flow, after capture": 4.0 * n * n,  # two triangular solves
        "one-step gradient of the mask": prefix + shape.back_and_forth(a, n),
        "mask, scope answer": prefix + STEPS * shape.back_and_forth(a, n),
        "mask, scope all": shape.rows(lengths.prompt, n, logits=0) + STEPS * shape.back_and_forth(r + a, n, logits=a),
        "mask as published": PUBLISHED_STEPS * shape.back_and_forth(n, n),
        "mask network": shape.rows(n, n, layers=max(1, shape.layers // 2), logits=0),  # it reads half the way up
        "drop or sufficiency": prefix + 2 * shape.rows(a, n),
        "every token cut, scope answer": prefix + r * shape.rows(a, n),
        "every sentence resampled 8 times": 8 * (r / 20) * shape.rows(r // 2 + a, n),
    }


def memory(shape: Shape, lengths: Lengths, size: int = 2) -> dict[str, float]:
    """Bytes that each method holds beyond the weights, for one trace, in numbers of `size` bytes."""
    n, a, read = lengths.total, lengths.answer, min(READ_LAYERS, shape.layers)
    layer = n * size * (6 * shape.hidden + 3 * shape.inner)  # the widest layer's activations
    logits = 4 * n * shape.vocabulary
    cache = shape.cache_bytes(n, size)
    tail = a * (shape.layers * size * (12 * shape.hidden + 4 * shape.inner) + 2 * 4 * shape.vocabulary)
    recorded = n * size * read * (shape.heads + shape.key_heads) * shape.head_dim  # queries and keys of the layers read
    scores = shape.layers * shape.heads * a * n * size  # attention of the answer's rows, kept for the way back
    return {
        "forward pass": layer + logits,
        "GRPO's gradient": shape.layers * n * shape.hidden * size + layer * 2 + 2 * logits,  # checkpointed
        "capture of attention": layer + recorded + MAP * n * n,
        "flow, after capture": MAP * n * n,
        "mask, scope answer": cache + tail + scores,
        "mask network": layer + n * shape.hidden * size,
        "drop or sufficiency": cache + tail / 4,
    }


def table(shape: Shape, lengths: Lengths, *, size: int = 2) -> pd.DataFrame:
    """One row a method: `TFLOP`, `forwards` (in forward passes) and `GB` beyond the weights (NaN: as its parts)."""
    work, held = flops(shape, lengths), memory(shape, lengths, size)
    rows = {
        name: dict(TFLOP=value / 1e12, forwards=value / work["forward pass"], GB=held.get(name, float("nan")) / 2**30)
        for name, value in work.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def training_bytes(shape: Shape, *, lora: int = 0, size: int = 2) -> int:
    """Weights, gradients and Adam's state: mixed precision holds 16 bytes a trained weight (2 and a float32 copy, 2 of
    gradient, 8 of Adam), float32 (`size` 4) as many; LoRA of rank `lora` only `size` for the frozen ones."""
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
    the limit: every token reads all weights once, and each rollout's cache as far as it is filled."""
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

    def __str__(self) -> str:
        return (
            f"weights, gradients and optimiser {self.weights / 2**30:.2f} GB, "
            f"activations {self.activations / 2**30:.2f} GB; "
            f"a step takes at least {self.writing + self.learning:.1f} s ({self.writing:.1f} s of it for writing)"
        )


def grpo_step(
    shape: Shape, lengths: Lengths, rollouts: int, *, at_once: int, rate: float, lora: int = 0, size: int = 2
) -> StepEstimate:
    """Estimate a step: `rollouts` of these lengths are written and learnt from, `at_once` of them in one pass there and
    back. `rate` is in FLOP a second; writing is counted as arithmetic, which on a GPU is the smaller of its limits
    (`writing_seconds` has the other)."""
    check_number("rate", rate, 0, above=True)
    n = lengths.total
    # without checkpointing: hidden states, norms, attention's and the feed-forward's inputs of every layer
    inner = shape.layers * n * size * (8 * shape.hidden + 4 * shape.inner) + shape.layers * shape.heads * n * size
    logits = 2 * 4 * n * shape.vocabulary
    return StepEstimate(
        training_bytes(shape, lora=lora, size=size),
        at_once * (inner + logits),
        rollouts * shape.rows(n, n) / rate,
        rollouts * 3 * shape.rows(n, n) / rate,
    )


def measured_rate(device, dtype: torch.dtype = torch.float32, size: int = 1024, rounds: int = 5) -> float:
    """FLOP a second of the product of two matrices on a device: the best of some rounds."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
