"""What several processes that train together have to agree on. With one process nothing happens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over processes, in place. All processes must call it, with like tensors."""
    if count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= count()


def mean(value: float) -> float:
    """The mean of a number over processes. All processes must call it."""
    if count() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    held = torch.tensor(value, dtype=torch.float64, device=device)
    average([held])
    return held.item()


def of_the_first(value: Value) -> Value:
    """The first process's value, in all of them. All processes must call it."""
    held = [value]
    if count() > 1:
        distributed.broadcast_object_list(held)
    return held[0]
