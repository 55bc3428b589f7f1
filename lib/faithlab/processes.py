"""What several processes that train together have to agree on, and the weights that they share out among them. With
one process nothing happens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from faithlab.errors import FaithlabError

Value = TypeVar("Value")


def together() -> bool:
    """Whether processes have begun to train together."""
    return distributed.is_available() and distributed.is_initialized()


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if together() else 1


def is_first() -> bool:
    """Whether this is the only process, or the first that accelerate has started; known before they meet."""
    return os.environ.get("RANK", "0") == "0"


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


def weighted_mean(values: Tensor, weight: float) -> Tensor:
    """The mean of a tensor on the CPU over processes, each with its weight; NaN if all weights are 0. All processes
    must call it, with tensors of one shape; where the weight is 0 they hold numbers all the same."""
    if count() == 1:
        return values if weight else torch.full_like(values, torch.nan)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    held = torch.cat([values.flatten() * weight, torch.tensor([float(weight)])]).to(device)
    distributed.all_reduce(held)
    return (held[:-1] / held[-1]).reshape(values.shape).cpu()


def of_the_first(value: Value) -> Value:
    """The first process's value, in all of them. All processes must call it."""
    held = [value]
    if count() > 1:
        distributed.broadcast_object_list(held)
    return held[0]


def agree(value: bool) -> bool:
    """Whether it is true in every process. All processes must call it."""
    return mean(float(value)) == 1.0


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Within it each process holds all weights of a model that FSDP (version 2) shares out among the processes, and
    calls it without FSDP. All processes must enter it. With other models nothing happens.

    FSDP gathers a layer's weights from all processes each time the layer is called. Generation, masks and attention
    maps call a model as often as the process's own rollouts need, and stop half the way up, so the processes would
    gather at different times and wait for each other without end. The weights are gathered in the type in which they
    are held, as they are where nothing is shared out. What is done to them is lost: nothing may train them here.

    Raises `FaithlabError` for a model that FSDP version 1 or DeepSpeed's ZeRO stage 3 shares out.
    """
    if not together():
        yield
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # late: only these runs need them
    from torch.distributed.tensor import DTensor

    if any(isinstance(m, FullyShardedDataParallel) for m in model.modules()):
        raise FaithlabError("FSDP version 1 keeps its weights to itself; set fsdp_version: 2 in accelerate's file")
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise FaithlabError("ZeRO stage 3 keeps its weights to itself; set zero_stage: 2, or use FSDP version 2")
    shards = [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(p, DTensor)
    ]
    sharded = [m for m in model.modules() if isinstance(m, FSDPModule)]
    hooks = [(h, dict(h)) for m in sharded for h in (m._forward_pre_hooks, m._forward_hooks)]
    generate = vars(model).pop("generate", None)  # wrapped by the trainer, as another way into FSDP
    whole: dict[int, nn.Parameter] = {}
    try:
        for module, name, p in shards:  # tied weights are gathered once, and stay tied
            if id(p) not in whole:
                whole[id(p)] = nn.Parameter(p.detach().full_tensor(), requires_grad=p.requires_grad)
            setattr(module, name, whole[id(p)])
        for h, _ in hooks:
            h.clear()  # FSDP works by these alone
        yield
    finally:
        for h, before in hooks:
            h.update(before)
        for module, name, p in shards:
            setattr(module, name, p)
        if generate is not None:
            model.generate = generate
