"""One way into every attention call of a model: whatever its architecture and backend, it is left as it was.

transformers looks an attention function up by name at every call. For the time of a block the name is ours, and the
call goes to a handler, which is given the backend's own function and may look, change, or answer in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from faithlab.biases import evaluating

NAME = "faithlab_interception"
# (the backend's function, module, query, key, value, mask, scaling=..., ...) -> (output, weights or None)
Handler = Callable[..., tuple]

_running: list[tuple[str, Handler]] = []  # backend and handler; the innermost block is the last


def _dispatch(module, *args, **options):
    backend, handler = _running[-1]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager)
    # Some backends (flash attention) look their own name up in the config while they run.
    module.config._attn_implementation = backend
    try:
        return handler(function, module, *args, **options)
    finally:
        module.config._attn_implementation = NAME


AttentionInterface.register(NAME, _dispatch)


@contextmanager
def intercepted(model, handler: Handler) -> Iterator[None]:
    """Within the block every attention call of the model, which is in eval mode, goes to `handler`."""
    config = model.config.get_text_config()
    backend = config._attn_implementation or "eager"
    masks = AttentionMaskInterface()
    _running.append((backend, handler))
    AttentionMaskInterface.register(NAME, masks[backend])
    config._attn_implementation = NAME
    try:
        with evaluating(model):
            yield
    finally:
        config._attn_implementation = backend
        _running.pop()
