"""Keys and values that are computed once: of what several variants of a trace share, or of few-shot examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from faithlab.biases import MASKED_BACKENDS, layer_windows, model_mask

SHORTEST_SHARED = 32  # tokens; sharing fewer saves less than the extra call costs


def shared_prefix(model, rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows have alike and may be computed once for all, such as few-shot examples.

    0 where that does not pay (few tokens, one row) or cannot work: sliding windows count columns, and backends without
    a float mask know padding only at the ends. At least the last token of every row is left over.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    if len(rows) < 2 or kinds != {"full_attention"} or model.config._attn_implementation not in MASKED_BACKENDS:
        return 0
    if set(layer_windows(config).values()) != {None}:
        return 0
    first = rows[0]
    alike = min(map(len, rows)) - 1
    for row in rows[1:]:
        alike = next((i for i in range(alike) if row[i] != first[i]), alike)
    return alike if alike >= SHORTEST_SHARED else 0


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """The cache of one row as that of `rows` alike rows, without copying."""
    return DynamicCache(
        [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values, *_ in cache]
    )


@torch.no_grad()
def prefill(model, input_ids, attention_mask, position_ids, upto: int, shared: int = 0) -> DynamicCache:
    """Keys and values of the columns before `upto`, for later calls that rerun only the tail.

    The first `shared` columns, alike in all rows and without padding, are computed once. The cache keeps every position
    of every layer (no sliding-window eviction), since the masks say what is seen.
    """
    cache = DynamicCache()
    for rows, start, stop in ((1, 0, shared), (len(input_ids), shared, upto)):
        if start == stop:
            continue
        model(
            input_ids=input_ids[:rows, start:stop],
            attention_mask=model_mask(model, attention_mask[:rows, :stop], first_query=start),
            position_ids=position_ids[:rows, start:stop],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if stop == shared:
            cache = repeated(cache, len(input_ids))
    return cache
