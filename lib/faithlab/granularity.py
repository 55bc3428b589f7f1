"""What one value of a mask stands for: a token, a sentence, both together, or a token in one head.

A layout turns parameters `u` in [0, 1] ("how far opened") into one value a token (or head and token). All granularities
go through it, so the optimiser and the mask network know only parameters and expanded masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from faithlab.errors import unknown
from faithlab.traces import Trace
from faithlab.units import sentences, units_of

GRANULARITIES = ("token", "sentence", "hierarchical", "head", "layer_head")
Split = Callable[[str], list[tuple[int, int]]]


@dataclass(frozen=True)
class Layout:
    """Shapes of the parameters of one batch, and what they mean.

    `kinds` are the parts: "token" and / or "sentence". `lead` are extra dimensions, (heads,) or (layers, heads).
    `sentence` [trace, token] numbers each token's sentence, of which each trace has `count`.
    """

    kinds: tuple[str, ...]
    lead: tuple[int, ...]
    valid: Bool[Tensor, "trace token"]
    sentence: Int[Tensor, "trace token"]
    count: Int[Tensor, " trace"]

    def shape(self, kind: str) -> tuple[int, ...]:
        """Of one kind's parameters: (traces, *lead, tokens), or (traces, *lead, the most sentences of any trace)."""
        last = self.valid.shape[1] if kind == "token" else int(self.count.max())
        return (len(self.valid), *self.lead, last)

    def start(self, value: float, dtype: torch.dtype) -> dict[str, Tensor]:
        """Parameters that are all `value`."""
        return {k: torch.full(self.shape(k), value, dtype=dtype, device=self.valid.device) for k in self.kinds}

    def expand(self, parts: dict[str, Float[Tensor, "trace *lead unit"]]) -> Float[Tensor, "trace *lead token"]:
        """How far each token is opened: its own value, its sentence's, or the mean of the two."""
        whole = [parts["token"]] if "token" in parts else []
        if "sentence" in parts:
            index = self.sentence.reshape(len(self.sentence), *[1] * len(self.lead), -1).expand(-1, *self.lead, -1)
            whole.append(parts["sentence"].gather(-1, index))
        return sum(whole) / len(whole)

    def price(self, parts: dict[str, Float[Tensor, "trace *lead unit"]]) -> Float[Tensor, " trace"]:
        """The mean of the parameters that stand for something: of tokens, of sentences, or of both means."""
        total = []
        for kind, u in parts.items():
            counted = torch.arange(u.shape[-1], device=u.device) < self.count[:, None]
            real = self.valid if kind == "token" else counted
            real = real.reshape(len(u), *[1] * len(self.lead), -1).expand(u.shape)
            total.append((u * real).flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1))
        return sum(total) / len(total)


def make_layout(
    granularity: str, traces: Sequence[Trace], valid: Bool[Tensor, "trace token"], config, split: Split = sentences
) -> Layout:
    """The layout of a granularity: "token", "sentence" (as `split` finds them), "hierarchical" (both), "head" (a mask a
    head, the same in all layers) or "layer_head". Raises `FaithlabError` for another name."""
    if granularity not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    kinds = dict(sentence=("sentence",), hierarchical=("sentence", "token")).get(granularity, ("token",))
    config = config.get_text_config()
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    lead = dict(head=(heads,), layer_head=(layers, heads)).get(granularity, ())
    numbers, count = torch.zeros(valid.shape, dtype=torch.long), torch.zeros(len(valid), dtype=torch.long)
    if "sentence" in kinds:
        for row, trace in enumerate(traces):
            found = sentence_numbers(trace, split)
            numbers[row, : len(found)], count[row] = found, int(found[-1]) + 1 if len(found) else 0
    return Layout(kinds, lead, valid, numbers.to(valid.device), count.to(valid.device))


def sentence_numbers(trace: Trace, split: Split = sentences) -> Int[Tensor, " token"]:
    """The number of each reasoning token's sentence; white space between sentences goes with the one before it."""
    span = trace.reasoning
    first = torch.zeros(span.stop - span.start, dtype=torch.long)
    for positions in units_of(trace, "sentence", split)[1:]:
        first[positions[0] - span.start] = 1
    return first.cumsum(0)
