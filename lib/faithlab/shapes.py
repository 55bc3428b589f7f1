"""What the costs of a model follow from: the sizes of its matrices, and the lengths of a trace.

>>> SHAPES["llama-3.2-3b"].parameters
3212574720
>>> SHAPES["llama-3.2-3b"].cache_bytes(8192) / 2**30  # keys and values of 8,192 tokens in two bytes a number, in GB
0.875
"""

from __future__ import annotations

from dataclasses import dataclass

from faithlab.errors import check_number


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
    """Tokens of a trace. `answer` is all that stands behind the reasoning: the marker that announces the answer too,
    for its rows are run again with the answer's. Raises `FaithlabError` for a part of less than one token."""

    prompt: int
    reasoning: int
    answer: int

    def __post_init__(self):
        for name in ("prompt", "reasoning", "answer"):
            check_number(name, getattr(self, name), 1, whole=True)

    @property
    def total(self) -> int:
        """Tokens of the whole trace."""
        return self.prompt + self.reasoning + self.answer
