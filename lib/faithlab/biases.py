"""Additive score biases on a model's attention: causal, padding-aware, carrying gradient. Used through `attention`.

An attention *bias* `b[t, s]` is added to the score with which query position `t` looks at key position `s`, in every
layer and head, before the softmax: 0 changes nothing, minus infinity cuts the connection. It travels as the
four-dimensional float mask that transformers passes through untouched to every attention backend, so models need no
surgery and are left as they were.

    >>> import torch
    >>> causal_bias(torch.tensor([[1, 1]]), dtype=torch.float32)[0, 0].tolist()[1]
    [0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from faithlab.errors import FaithlabError

# Backends that take an arbitrary float mask. Flash attention knows causal and padding masks only.
MASKED_BACKENDS = ("eager", "sdpa")


def context_window(model) -> int | None:
    """How many tokens the model was made to read at most; None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_window(model, lengths: Iterable[int]) -> None:
    """Raise `FaithlabError` if one of these traces is longer than the model's window: beyond it some models fail, and
    others go on with positions that they never saw."""
    longest, window = max(lengths, default=0), context_window(model)
    if window and longest > window:
        raise FaithlabError(f"a trace of {longest} tokens does not fit the model's window of {window}; leave it out")


def lowest(dtype: torch.dtype) -> float:
    """The score bias that stands for minus infinity: finite, so that a row with every key cut gives no NaN."""
    return torch.finfo(dtype).min


def causal_bias(
    attention_mask: Int[Tensor, "batch key"],
    *,
    dtype: torch.dtype,
    first_query: int = 0,
    window: int | None = None,
    bias: Float[Tensor, "batch *heads query key"] | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """The float mask of causal attention over padded rows, plus an additive `bias`.

    Rows are the queries `first_query` to the end (those before are in a cache). `window` limits attention to the last
    `window` positions (sliding-window layers). Where the causal, padding or window rule forbids a key the result is
    the lowest finite number whatever `bias` says; elsewhere it is `bias`, which keeps its gradient, and at least half
    that number: a row whose every key is cut looks at all it may see alike, and never at the future or at padding.

    Raises `FaithlabError` if `bias` does not fit (batch, heads or 1, queries, keys).
    """
    batch, keys = attention_mask.shape
    columns = torch.arange(keys, device=attention_mask.device)
    queries = columns[first_query:, None]
    allowed = columns[None] <= queries
    if window is not None:
        allowed &= queries - columns[None] < window
    allowed = allowed[None] & attention_mask.bool()[:, None]
    # A padding query may see itself: its output is never read, but must not be NaN.
    allowed |= (columns[None] == queries)[None]
    allowed = allowed[:, None]
    floor = torch.tensor(lowest(dtype), dtype=dtype, device=attention_mask.device)
    if bias is None:
        return torch.where(allowed, torch.zeros_like(floor), floor)
    if bias.ndim == 3:
        bias = bias[:, None]
    if bias.ndim != 4 or bias.shape[0] != batch or bias.shape[2:] != (keys - first_query, keys):
        raise FaithlabError(
            f"an attention bias must have shape (batch {batch}, heads or 1, queries {keys - first_query}, "
            f"keys {keys}); got {tuple(bias.shape)}"
        )
    return torch.where(allowed, bias.to(dtype).clamp(min=lowest(dtype) / 2), floor)


def layer_windows(config) -> dict[str, int | None]:
    """The attention window of each layer type of a model: {"full_attention": None} for ordinary models.

    For models that mix layer types the keys are transformers' names, and masks are passed as a dict with these keys.

    Raises `FaithlabError` for layers of another type than "full_attention" and "sliding_attention".
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types:
        known = {"full_attention": None, "sliding_attention": window}
        strange = set(types) - set(known)
        if strange:
            raise FaithlabError(f"cannot bias attention layers of type {sorted(strange)}; supported: {list(known)}")
        return {t: known[t] for t in dict.fromkeys(types)}
    return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}


def model_mask(model, attention_mask: Int[Tensor, "batch key"], *, first_query: int = 0, bias=None):
    """What to pass to `model(attention_mask=...)` so that every layer gets its causal mask plus `bias`.

    Raises `FaithlabError` if the model was loaded with an attention backend that takes no float mask.
    """
    backend = model.config._attn_implementation
    if backend not in MASKED_BACKENDS:
        raise FaithlabError(
            f"attention backend {backend!r} takes no additive bias; load the model with attn_implementation='sdpa'"
        )
    windows = layer_windows(model.config)
    build = dict(dtype=model.dtype, first_query=first_query, bias=bias)
    masks = {kind: causal_bias(attention_mask, window=window, **build) for kind, window in windows.items()}
    # Architectures that mix layer types read a dict by type; one tensor serves all others.
    return masks if len(masks) > 1 else masks.popitem()[1]


def cut_bias(
    rows: Bool[Tensor, "batch query"], columns: Bool[Tensor, "batch key"], dtype: torch.dtype
) -> Float[Tensor, "batch query key"]:
    """The bias that cuts the attention of the query positions `rows` to the key positions `columns`."""
    zero = torch.zeros((), dtype=dtype, device=rows.device)
    return torch.where(rows[:, :, None] & columns[:, None, :], lowest(dtype), zero)


@contextmanager
def evaluating(model):
    """Within the block the model is in eval mode; every module's training flag comes back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model):
    """As `evaluating`, and no weight collects gradient; requires_grad comes back as it was. Gradient to other things is
    wanted, so it is on even where the caller has turned it off."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    with evaluating(model), torch.enable_grad():
        for p, _ in before:
            p.requires_grad_(False)
        try:
            yield model
        finally:
            for p, flag in before:
                p.requires_grad_(flag)
