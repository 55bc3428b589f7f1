"""log p(answer) as a differentiable function of a bias on what later tokens see of the reasoning.

The engine of every mask in `faithlab.saliency`. A bias `m[j]` is added to all attention scores of key column j, for j
in the reasoning: 0 changes nothing, minus infinity hides the token. Which rows feel it is the scope:

    scope="answer"   every row after the reasoning (direct influence); prompt and reasoning are computed once
    scope="all"      every row after token j (relayed influence too); only the prompt is computed once

What is computed once is kept as keys and values without gradient. Each evaluation runs the other rows against them, and
its attention reads the kept columns where they lie: nothing is concatenated or repeated over heads, and gradient flows
to the bias and to the rows that were run, not to the kept columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithlab.batches import collate
from faithlab.biases import check_window, model_mask
from faithlab.errors import FaithlabError, unknown
from faithlab.interception import intercepted
from faithlab.likelihood import SCOPES, Scope, until_answer
from faithlab.prefill import prefill, shared_prefix
from faithlab.traces import Trace


class MaskedAnswer:
    """A batch of traces, and log p of their answers under biases on their reasoning. Use within `biases.frozen`.

    `valid` [trace, token] says which entries of a bias belong to a reasoning token: biases are padded on the right.

    Raises `FaithlabError` for an unknown scope, no traces, or a trace without an answer.
    """

    def __init__(self, model, traces: Sequence[Trace], scope: Scope = "answer", pad_id: int = 0):
        if scope not in SCOPES:
            raise unknown("scope", scope, SCOPES)
        for i, t in enumerate(traces):
            if t.answer.stop <= t.answer.start:
                raise FaithlabError(f"trace {i} has no answer, so nothing depends on its reasoning; leave it out")
        check_window(model, map(len, traces))
        self.model, device = model, model.device
        cropped = [until_answer(t) for t in traces]
        shared = shared_prefix(model, [t.input_ids[t.prompt].tolist() for t in cropped])
        batch = collate(cropped, pad_id=pad_id, shared=shared, device=device)
        starts = batch.starts[:, None]
        # All rows before the first that any trace has to run are the prefix.
        spoken = [t.reasoning.stop if scope == "answer" else t.prompt.stop for t in cropped]
        first = [min(row, len(t) - len(t.input_ids_after)) for row, t in zip(spoken, cropped, strict=True)]
        upto = int((batch.starts + torch.tensor(first, device=device)).min())
        self.prefix: list[tuple[Tensor, Tensor]] = []
        if upto > 0:
            cache = prefill(model, batch.input_ids, batch.attention_mask, batch.position_ids, upto, shared)
            self.prefix = [(keys, values) for keys, values, *_ in cache]
        self.ids, self.positions = batch.input_ids[:, upto:], batch.position_ids[:, upto:]
        self.attention_mask = batch.attention_mask
        self.causal = model_mask(model, batch.attention_mask, first_query=upto)
        longest = max(t.reasoning.stop - t.reasoning.start for t in cropped)
        offsets = torch.arange(longest, device=device)
        spans = torch.tensor([(t.reasoning.start, t.reasoning.stop) for t in cropped], device=device)
        self.valid: Bool[Tensor, "trace token"] = offsets < (spans[:, 1:] - spans[:, :1])
        width = batch.input_ids.shape[1]
        self.columns = torch.where(self.valid, starts + spans[:, :1] + offsets, width)  # padding goes to a spare column
        columns = torch.arange(width, device=device)
        rows = columns[upto:]
        felt = (
            rows[None] >= starts + spans[:, 1:] if scope == "answer" else torch.ones_like(rows, dtype=torch.bool)[None]
        )
        self.felt = felt[:, None, :, None] & (columns < rows[:, None])  # [trace, 1, row, column]
        self.targets = torch.full((len(cropped), max(len(t.input_ids_after) for t in cropped)), -1, device=device)
        for row, t in enumerate(cropped):
            self.targets[row, -len(t.input_ids_after) :] = t.input_ids_after

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these traces only."""
        pick = torch.tensor(rows, device=self.ids.device)
        self.prefix = [(keys[pick], values[pick]) for keys, values in self.prefix]
        for name in ("ids", "positions", "attention_mask", "valid", "columns", "targets"):
            setattr(self, name, getattr(self, name)[pick])
        kinds = self.causal  # of layers, where a model has several
        self.causal = {k: m[pick] for k, m in kinds.items()} if isinstance(kinds, dict) else kinds[pick]
        self.felt = self.felt[pick] if len(self.felt) > 1 else self.felt

    def logp(self, bias: Float[Tensor, "trace *layer_head token"] | None = None) -> Float[Tensor, " trace"]:
        """log p of each trace's answer, in nats, under `bias`: [trace, token], [trace, head, token] or
        [trace, layer, head, token]. Raises `FaithlabError` if it is not finite."""
        spread = None if bias is None else self._spread(bias)
        alike = self._felt(spread[:, 0]) if spread is not None and spread.shape[1] == 1 else None

        def attend(function, module, query, key, value, mask, scaling=None, **options):
            if options.get("s_aux") is not None:
                raise FaithlabError("this model's attention has sinks beside the tokens, which masks cannot reach")
            if spread is not None:
                mask = mask + (self._felt(spread[:, module.layer_idx]) if alike is None else alike)
            prefix = self.prefix[module.layer_idx] if self.prefix else None
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return _attention(query, key, value, prefix, mask, scale, options.get("softcap")), None

        with intercepted(self.model, attend):
            logits = self.model(
                input_ids=self.ids,
                attention_mask=self.causal,
                position_ids=self.positions,
                use_cache=False,
                logits_to_keep=self.targets.shape[1],
            ).logits
        at_least_float = torch.promote_types(logits.dtype, torch.float32)
        picked = logits.to(at_least_float).log_softmax(-1).gather(-1, self.targets.clamp(min=0)[..., None])[..., 0]
        total = torch.where(self.targets >= 0, picked, 0.0).sum(-1)
        if not torch.isfinite(total).all():
            raise FaithlabError("log p(answer) is not finite: load the model in float32, or check its weights for NaN")
        return total

    def _felt(self, spread: Float[Tensor, "trace head column"]) -> Float[Tensor, "trace head row column"]:
        """The bias of columns where a row feels it, 0 elsewhere."""
        return torch.where(self.felt, spread[:, :, None], spread.new_zeros(()))

    def _spread(self, bias: Tensor) -> Float[Tensor, "trace layer head column"]:
        """The bias of reasoning tokens as one of columns."""
        if bias.shape[0] != len(self) or bias.shape[-1] != self.valid.shape[1] or not 2 <= bias.ndim <= 4:
            raise FaithlabError(
                f"a bias must be [trace {len(self)}, (layer,) (head,) token {self.valid.shape[1]}]; "
                f"got {tuple(bias.shape)}"
            )
        while bias.ndim < 4:
            bias = bias[:, None]
        width = self.attention_mask.shape[1]
        where = self.columns[:, None, None].expand(bias.shape)
        return bias.new_zeros(*bias.shape[:3], width + 1).scatter(-1, where, bias)[..., :width]


def _attention(query, key, value, prefix, mask, scale: float, softcap: float | None):
    """Softmax attention of the run rows to the kept columns and to each other: [trace, row, head, dim]."""
    batch, heads, rows, dim = query.shape
    groups = key.shape[1]
    query = query.reshape(batch, groups, heads // groups * rows, dim) * scale  # here, as scores are many more
    scores = query @ key.transpose(-1, -2)
    if prefix is not None:
        scores = torch.cat([query @ prefix[0].transpose(-1, -2), scores], -1)
    scores = scores.view(batch, heads, rows, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    at_least_float = torch.promote_types(scores.dtype, torch.float32)
    probs = (scores + mask).softmax(-1, dtype=at_least_float).to(value.dtype)
    probs = probs.view(batch, groups, heads // groups * rows, -1)
    if prefix is None:
        out = probs @ value
    else:
        before, own = probs.split([probs.shape[-1] - key.shape[2], key.shape[2]], -1)
        out = own @ value + before @ prefix[1]
    return out.view(batch, heads, rows, -1).transpose(1, 2).contiguous()
