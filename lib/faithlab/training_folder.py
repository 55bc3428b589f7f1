"""The folder of a training run: whose it is, the last checkpoint that is whole, and what an error in it means."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from faithlab.arms import Arm
from faithlab.errors import FaithlabError, first_words

FULL = 2**24  # bytes left on a disk that counts as full
NETWORK = (ConnectionError, TimeoutError, socket.gaierror)  # requests has errors of its own, without a number
NO_MEMORY = ("can't allocate memory", "not enough memory")  # of torch's allocator on Linux, and elsewhere
DAMAGED = ("deserializing", "PytorchStreamReader")  # of safetensors and torch


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written whole, or None. Its state file is written last, so where a run was killed or
    the disk was full half the way, that lacks or is cut short."""
    whole = [p for p in folder.glob("checkpoint-*") if _readable(p / "trainer_state.json")]
    return str(max(whole, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if whole else None


def _readable(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def record(arm: Arm, seed: int) -> str:
    """What `arm.json` says."""
    return json.dumps(dict(arm=dataclasses.asdict(arm), seed=seed), indent=1, default=list) + "\n"


@contextmanager
def explaining(folder: Path, remedy: str) -> Iterator[None]:
    """Within it other libraries' errors that mean something to who trains in the folder say what: no space, no memory,
    a damaged file. `remedy` is what saves memory. Errors that nobody can explain come through.

    Raises `FaithlabError` in their place."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        told = _explained(error, folder, remedy)
        if told is None:
            raise
        raise FaithlabError(told) from error


def _explained(error: Exception, folder: Path, remedy: str) -> str | None:
    reason = getattr(error, "strerror", None) or first_words(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY):
        return f"out of memory. {remedy}, and another --output"
    if any(words in str(error) for words in DAMAGED):
        return (
            f"a file in {folder} cannot be read ({reason}); delete the last checkpoint-N there and give the same "
            "command again to go on from the one before, or from the beginning"
        )
    if isinstance(error, NETWORK) or (isinstance(error, OSError) and error.errno is None):
        return (
            f"{reason} ({type(error).__name__}); if a connection failed, leave any --report-to out, or name the "
            "reasoner by its folder, and give the same command again to go on"
        )
    # torch and safetensors report a full disk in errors of their own
    if not isinstance(error, RuntimeError) or shutil.disk_usage(folder).free <= FULL:
        return f"cannot write to {folder}: {reason}; free space and give the same command again to go on"
    return None
