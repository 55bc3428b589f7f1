"""What each method holds in memory beyond the model's weights: formulas, each with where it comes from.

One trace of n = p + r + a tokens (prompt, reasoning, and all behind it), a model of L layers of width d with H query
heads and G key heads of k numbers, feed-forward width f, vocabulary V, in numbers of s bytes. The parts:

    layer(x) = x s (4 d + 3 f)     x positions on their way through a layer that nobody goes back through: embeddings,
                                   residual, sum and norm; gate, its activation, and their product with the other half
    cache(x) = 2 L G k x s         keys and values
    prefill(x) = cache(x) + layer(x) + s x^2     the last is the mask, an array of floats: it hides what is to be hidden
    logits(x) = x V (8 + s')       as the model gives them, in float32, and their log-softmax; s' = s where that is
                                   fewer than 4 bytes, and 0 for float32, which needs no second copy
    back(x, y, v) = L x (8 d + s (3 f + H k + 2 G k)) + L H x y (4 + s') + 12 max(H x y, v V)
                                   x positions that look at y, with logits of v of them, kept for the way back through
                                   frozen weights: two float32 inputs of norms, three feed-forward arrays, queries, keys
                                   and values of each layer; its attention probabilities in float32 and in s' bytes; and
                                   at work three float32 arrays of one layer's scores, or of the logits

    forward pass            max(layer(n), n s (d + V))      the logits of all tokens come when the layers are done
    GRPO's gradient         L n (2 d (4 + 2 s) + s (4 f + 2 H k + 2 G k) + 4 H) + tiles
                                   weights' gradients need the inputs of all matrices: of two norms three arrays each,
                                   four of the feed-forward part, queries, keys, values, attention's output and the
                                   sums of its rows. TRL makes logits in tiles of min(n, 4096) x min(V, 32768) and
                                   lets them go: one of s bytes and seven in float32, beside a gradient of the head in
                                   float32 where s < 4. Nothing is recomputed (no checkpointing)
    capture of attention    recorded + max(layer(n), 8 n H k + chunk),    recorded = 5 n s (H + G) k
                                   queries and keys of the layers read; a layer's in float32, and three arrays of up to
                                   8 MiB of probabilities, and the bias of their rows. Profiles: no map is kept
    flow, after capture     4 n^2 + 1024 (n + 256)          its map in float32, and 128 rows of it in float64
    one-step gradient, mask, scope answer    max(prefill(n - a), cache(n - a) + back(a, n, a))
    mask, scope all         max(prefill(p), cache(p) + back(r + a, n, a))
    mask as published       back(n, n, n), s' = 0           by torch's own attention, which keeps probabilities once
    mask network            max(layer(n), 4 r (4 d + 512))  half the layers, or the network's own 8 heads of 32 numbers
    drop or sufficiency     max(prefill(n - a), 3 cache(n - a), 2 cache(n - a) + logits(2 a))
                                   the kept cache, and a copy that is made a cache again before it is let go
    every token cut         max(prefill(n - a), cache(n - a) + max(2 copies, logits(64 a copy)))
                                   64 rows of answers share a copy of the cache; so many copies are made at once as fit
                                   into 1 GB, at least one, each with three masks of 64 n numbers
    resampled               b (cache(n) + max(layer(r) + s r^2, 28 V))    b continuations are written at once: all, or
                                   so many as have 49,152 tokens. Their beginnings are read, padded to the longest, and
                                   noise is drawn in float64

Arrays of some bytes a token, kernels' own workspace, and what an allocator keeps for later are left out. The tests lay
each formula beside the bytes of all tensors alive, notebook 10 some beside the peak of a process.
"""

from __future__ import annotations

import math

from faithlab.shapes import Lengths, Shape

READ_LAYERS = 5  # of the middle third, whose attention is read, at most
MAP = 4  # bytes of an attention probability, kept as float32
CHUNK = 2**23  # bytes of attention probabilities at a time
SLOT = 64  # rows of answers that share a copy of the cache
COPIES = 2**30  # bytes of copies at once
WRITTEN = 49_152  # tokens of the rollouts that are written at once
TILE = (4096, 2**15)  # tokens and words of the logits that TRL makes at a time
SENTENCE, SAMPLES = 20, 8  # tokens; continuations of each, behind it and behind another in its place


def layers_read(shape: Shape) -> tuple[int, int]:
    """How many layers `attention.capture` reads, and how many run before the last of them: two thirds of all."""
    last = min(shape.layers - 1, 2 * shape.layers // 3)
    return min(READ_LAYERS, last - shape.layers // 3 + 1), last


def kept_for_training(shape: Shape, tokens: int, size: int, *, padded: bool = False, autocast: bool = False) -> float:
    """Bytes kept of a rollout of `tokens` for the way back to all weights, without the logits' part. In a `padded`
    batch each layer also keeps the mask that hides the padding, and keys and values repeated for every query head. With
    `autocast` to `size` bytes what is normalised stays in float32, and is kept once more as it is multiplied."""
    s, d = shape, shape.hidden
    groups = s.heads if padded else s.key_heads
    normalised = 4 + (8 if autocast else size) + size
    inputs = 2 * d * normalised + size * (4 * s.inner + 2 * (s.heads + groups) * s.head_dim)
    return s.layers * tokens * (inputs + 4 * s.heads + padded * size * tokens)


def tiles(shape: Shape, tokens: int, size: int, *, autocast: bool = False) -> float:
    """Bytes of the logits that TRL holds at a time, with what torch's operators make of them on a CPU (on a GPU a
    kernel of its own needs fewer), and of the head's gradient in float32 where weights have fewer bytes; with
    `autocast` weights have four, and a tile of the head is cast to `size`."""
    if autocast:
        head = size * shape.hidden * min(shape.vocabulary, TILE[1])
    else:
        head = 4 * shape.hidden * shape.vocabulary if size < 4 else 0
    return (7 * 4 + size) * min(tokens, TILE[0]) * min(shape.vocabulary, TILE[1]) + head


def copies_of_cache(shape: Shape, lengths: Lengths, size: int = 2) -> tuple[int, int]:
    """How many copies of a trace's cache are needed while every token is cut in turn, and how many fit at once."""
    needed = math.ceil(lengths.reasoning / max(1, SLOT // max(1, lengths.answer - 1)))
    return needed, max(1, int(COPIES // shape.cache_bytes(lengths.total - lengths.answer, size)))


def continuations(lengths: Lengths) -> tuple[int, int]:
    """How many are needed while every sentence is resampled, behind it and behind another in its place, and how many
    are written at once."""
    return max(1, round(2 * SAMPLES * lengths.reasoning / SENTENCE)), max(1, WRITTEN // lengths.total)


def memory(shape: Shape, lengths: Lengths, size: int = 2) -> dict[str, float]:
    """Bytes that each method holds beyond the weights, for one trace, in numbers of `size` bytes: see the module's
    head. Weights' gradients and the optimiser's state are `costs.training_bytes`."""
    s, n, p, r, a = shape, lengths.total, lengths.prompt, lengths.reasoning, lengths.answer
    d, width, again = s.hidden, s.heads * s.head_dim, size if size < 4 else 0

    def layer(rows: float) -> float:
        return rows * size * (4 * d + 3 * s.inner)

    def cache(rows: int) -> float:
        return s.cache_bytes(rows, size)

    def prefill(rows: int) -> float:
        return cache(rows) + layer(rows) + size * rows**2

    def back(rows: int, columns: int, logits: int, again: int) -> float:
        inputs = 8 * d + size * (3 * s.inner + width + 2 * s.key_heads * s.head_dim)
        scores = s.heads * rows * columns
        at_work = 3 * 4 * max(scores, logits * s.vocabulary)
        return s.layers * (rows * inputs + scores * (MAP + again)) + at_work

    def logits(rows: int) -> float:
        return rows * s.vocabulary * (8 + again)

    recorded = layers_read(s)[0] * n * size * (s.heads + s.key_heads) * s.head_dim
    chunk = min(CHUNK, MAP * s.heads * (r + a) * n)
    early, copies, written = n - a, min(copies_of_cache(s, lengths, size)), min(continuations(lengths))
    a_copy = 3 * SLOT * n * size + max(2 * cache(early), logits(SLOT))
    mask = max(prefill(early), cache(early) + back(a, n, a, again))
    return {
        "forward pass": max(layer(n), n * size * (d + s.vocabulary)),
        "GRPO's gradient": kept_for_training(s, n, size) + tiles(s, n, size),
        "capture of attention": recorded + max(layer(n), 8 * n * width + 3 * chunk + 1.25 * chunk / s.heads),
        "flow, after capture": MAP * n**2 + 8 * 128 * (n + 256),
        "one-step gradient of the mask": mask,
        "mask, scope answer": mask,
        "mask, scope all": max(prefill(p), cache(p) + back(r + a, n, a, again)),
        "mask as published": back(n, n, n, 0),
        "mask network": max(layer(n), 4 * r * (4 * d + 512)),
        "drop or sufficiency": max(prefill(early), 3 * cache(early), 2 * cache(early) + logits(2 * a)),
        "every token cut, scope answer": max(prefill(early), cache(early) + copies * a_copy),
        "every sentence resampled 8 times": written * (cache(n) + max(layer(r) + size * r**2, 28 * s.vocabulary)),
    }
