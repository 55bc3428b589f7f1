"""The units that a reasoning is cut into: tokens or sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from faithlab.errors import unknown
from faithlab.tasks.story_text import sentences
from faithlab.traces import Trace

__all__ = ["UNITS", "Unit", "sentences", "units_of"]

UNITS = ("token", "sentence")
Unit = Literal["token", "sentence"]


def units_of(
    trace: Trace, unit: Unit = "token", split: Callable[[str], list[tuple[int, int]]] = sentences
) -> list[tuple[int, ...]]:
    """Positions of each unit of the reasoning: single tokens, or the sentences that `split` finds in its text.

    Raises `FaithlabError` for another unit.
    """
    span = trace.reasoning
    if unit == "token":
        return [(p,) for p in range(span.start, span.stop)]
    if unit != "sentence":
        raise unknown("unit", unit, UNITS)
    found = [tuple(trace.tokens_between(a, b)) for a, b in split(trace.reasoning_text)]
    return [positions for positions in found if positions]
