"""How much memory a capture will need, and whether it is there: asked before, not found out after."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import psutil
import torch

from faithlab.costs import Shape
from faithlab.errors import FaithlabError

FLOAT = 4
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
MAPS = {"maps": 2, "mean_map": 1}  # N x N maps kept of each trace; layer_maps: one a layer
PASSES = 4  # arrays of the size of a chunk of probabilities alive at once


def capture_bytes(model, parts: Sequence[Sequence[int]], layers: int, want: Sequence[str], chunk: int) -> int:
    """An estimate of what `attention.capture` allocates beyond the model, in bytes, for traces of the lengths in
    `parts`, each of which is run as a batch.

    The largest part's activations of the forward pass (a handful of hidden states and the widest layer's) and padding
    mask, all parts' recorded queries and keys, the maps that are kept, and the working maps of one trace.
    """
    shape, size = Shape.of(model.config), torch.finfo(model.dtype).bits // 8
    forward, recorded = 0, 0
    for lengths in parts:
        width = max(lengths)
        columns, pairs = width * len(lengths), width**2 * len(lengths)
        part = columns * size * (6 * shape.hidden + 3 * shape.inner) + pairs
        if model.config.get_text_config()._attn_implementation == "eager":  # which holds some copies of N x N weights
            part += 3 * pairs * shape.heads * size
        forward = max(forward, part)
        recorded += columns * size * layers * (shape.heads + shape.key_heads) * shape.head_dim
    every = [n for lengths in parts for n in lengths]
    kept = sum(MAPS.get(name, 0) for name in want) + (layers if "layer_maps" in want else 0)
    maps = sum(n * n for n in every) * FLOAT * kept
    working = max(every) ** 2 * FLOAT * (2 if kept else 0) + PASSES * chunk  # a trace's maps, and the rows in progress
    return int(forward + recorded + maps + working)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # torch holds on to what it has freed, and uses it again
    return psutil.virtual_memory().available


def check_fits(
    model, parts: Sequence[Sequence[int]], layers: int, want: Sequence[str], chunk: int, *, quiet: bool
) -> int:
    """Print the estimate of `capture_bytes` unless `quiet`; return it.

    Raises `FaithlabError`, with the remedy, if it cannot fit.
    """
    needed, free = capture_bytes(model, parts, layers, want, chunk), available_bytes(model.device)
    if not quiet:
        print(
            f"capture: {sum(map(len, parts))} traces of up to {max(map(max, parts))} tokens, {layers} layers, "
            f"about {needed / 2**30:.2f} GB of {free / 2**30:.1f} GB free"
        )
    if needed > free:
        raise FaithlabError(
            f"capture needs about {needed / 2**30:.1f} GB and {free / 2**30:.1f} GB are free: capture fewer traces at "
            "once (pass the first result as groups= to the next), want profiles instead of maps, or read fewer layers"
        )
    return needed


def keep_freed_memory() -> bool:
    """Have this process keep memory that it frees, instead of giving it back and asking for it again at every step of a
    training run: fresh pages cost more than the arithmetic on them. For glibc; elsewhere nothing happens. Returns
    whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
