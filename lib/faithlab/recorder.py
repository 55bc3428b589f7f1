"""Queries, keys and hidden states of a forward pass, recorded on the way through whatever backend a model has.

While a model runs inside `record`, its attention is dispatched to a function that notes the arguments it is called with
and hands them on to the backend's own function. Nothing else about the model changes, and the backend's name is put
back afterwards, also after an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from faithlab.batches import Batch
from faithlab.biases import evaluating
from faithlab.errors import FaithlabError
from faithlab.heads import entropy as token_entropy
from faithlab.interception import intercepted

LOGIT_BYTES = 2**27  # of logits at a time, for entropies


@dataclass(frozen=True)
class LayerRecord:
    """What one layer's attention was computed from. `window`: how many last positions a query sees (None: all)."""

    query: Float[Tensor, "batch head column dim"]
    key: Float[Tensor, "batch group column dim"]
    scaling: float
    softcap: float | None
    window: int | None

    def probabilities(self, q, k, first: int) -> Float[Tensor, "head row key"]:
        """Attention of the query rows `first` and following to the keys 0 to the last of these rows, in float32."""
        rows = torch.arange(first, first + q.shape[1], device=q.device)[:, None]
        keys = torch.arange(k.shape[1], device=q.device)[None]
        hidden = keys > rows
        if self.window is not None:
            hidden |= rows - keys >= self.window
        bias = torch.zeros(hidden.shape, device=q.device).masked_fill_(hidden, -torch.inf)
        if self.softcap is None:  # product, scale and mask in one go over the scores, which are what costs
            return torch.baddbmm(bias[None], q, k.transpose(-1, -2), alpha=self.scaling).softmax(-1)
        scores = (q @ k.transpose(-1, -2)).mul_(self.scaling / self.softcap).tanh_().mul_(self.softcap)
        return scores.add_(bias).softmax(-1)


@dataclass(frozen=True)
class Recorded:
    """One forward pass over a padded batch: records by layer, the column each row starts at, entropies by column."""

    layers: dict[int, LayerRecord]
    starts: Tensor
    entropy: Float[Tensor, "batch column"] | None


class _Enough(Exception):
    """Ends a forward pass whose upper layers nobody reads."""


class _Tape:
    """The records of the pass in progress: a handler for `intercepted` that looks and lets pass. With `end` the pass is
    broken off once all is recorded."""

    def __init__(self, layers: Sequence[int], end: bool):
        self.wanted, self.end, self.records = set(layers), end, {}

    def __call__(self, function, module, query, key, value, attention_mask, scaling=None, **options):
        index = getattr(module, "layer_idx", None)
        if index in self.wanted:
            if options.get("s_aux") is not None:
                raise FaithlabError("this model's attention has sinks beside the tokens, which capture cannot read")
            window = options.get("sliding_window") or getattr(module, "sliding_window", None)
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            self.records[index] = LayerRecord(query.detach(), key.detach(), scale, options.get("softcap"), window)
            if self.end and len(self.records) == len(self.wanted):
                raise _Enough
        return function(module, query, key, value, attention_mask, scaling=scaling, **options)


@torch.no_grad()
def record(model, batch: Batch, layers: Sequence[int], *, entropy: bool = False) -> Recorded:
    """Run the model once over a batch and keep queries and keys of `layers`, and token entropies if asked for.

    Without entropies the pass ends in the last layer that is read. Logits are never made for all tokens at once:
    entropies are computed from the last hidden states, some at a time.

    Raises:
        FaithlabError: a layer without attention that can be recorded, or with sinks beside the tokens.
    """
    tape, hidden = _Tape(layers, end=not entropy), None
    with intercepted(model, tape), suppress(_Enough):
        hidden = model.base_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
    missing = [i for i in layers if i not in tape.records]
    if missing:
        raise FaithlabError(f"layers {missing} have no attention that passes transformers' interface; read others")
    return Recorded(tape.records, batch.starts, _entropies(model, hidden) if entropy else None)


@torch.no_grad()
def hidden_states(model, batch: Batch, layers: Sequence[int]) -> list[Float[Tensor, "batch column dim"]]:
    """What enters each of the zero-based `layers`, as transformers counts its `hidden_states`: 0 is the embeddings, and
    the number of layers is what leaves the model, after its last normalisation. The pass ends where no more is read.

    Raises `FaithlabError` for a layer that the model does not have.
    """
    depth = model.config.get_text_config().num_hidden_layers
    if not layers or not all(0 <= i <= depth for i in layers):
        raise FaithlabError(f"states {list(layers)} cannot be read; the model has 0 to {depth}")
    blocks = next((m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    inputs = dict(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    if blocks is None or depth in layers:
        with evaluating(model):
            states = model.base_model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        return [states[i] for i in layers]
    found: dict[int, Tensor] = {}

    def reader(i):
        def note(module, args, options):
            found[i] = args[0] if args else options["hidden_states"]
            if i == max(layers):
                raise _Enough

        return note

    with ExitStack() as stack:
        for i in set(layers):
            stack.callback(blocks[i].register_forward_pre_hook(reader(i), with_kwargs=True).remove)
        stack.enter_context(evaluating(model))
        with suppress(_Enough):
            model.base_model(**inputs, use_cache=False)
    return [found[i] for i in layers]


@torch.no_grad()
def _entropies(model, hidden: Float[Tensor, "batch column dim"]) -> Float[Tensor, "batch column"]:
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    size = max(1, LOGIT_BYTES // (4 * config.vocab_size))
    parts = []
    for first in range(0, len(flat), size):
        logits = head(flat[first : first + size]).float() * scale
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        parts.append(token_entropy(logits))
    return torch.cat(parts).reshape(hidden.shape[:-1])
