"""The planted truth of a story's trace: which of its reasoning tokens the answer depends on.

The generator of `stories` knows which facts lie on the way to the answer, and what a model wrote is in a language that
can be read back (`tasks.story_text.annotate`). Nothing here is ever used to fit a score, only to judge one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from faithlab.tasks.story_text import annotate, decisive_step
from faithlab.traces import Trace


@dataclass(frozen=True)
class Planted:
    """True at the reasoning tokens of each kind; one value a reasoning token.

    `decisive` is the result of the last step about the question's subject, which an answer that follows the reasoning
    reads; `path` the results of all steps that the answer depends on, by relay; `distractor` and `filler` the whole
    sentences that it does not depend on; `number` every result, needed or not.
    """

    decisive: Bool[Tensor, " token"]
    path: Bool[Tensor, " token"]
    distractor: Bool[Tensor, " token"]
    filler: Bool[Tensor, " token"]
    number: Bool[Tensor, " token"]

    @property
    def known(self) -> bool:
        """Whether the reasoning holds a decisive step."""
        return bool(self.decisive.any())


def planted(trace: Trace) -> Planted | None:
    """The planted truth of one trace; None if its problem is no story."""
    truth = (trace.problem or {}).get("truth")
    if not truth or not truth.get("facts"):
        return None
    on_path = [fact["entity"] for fact in truth["facts"] if fact["on_path"]]
    steps = annotate(trace.reasoning_text, target=truth["target"], on_path=on_path)
    marks = {name: torch.zeros(trace.reasoning.stop - trace.reasoning.start, dtype=torch.bool)
             for name in ("decisive", "path", "distractor", "filler", "number")}  # fmt: skip

    def mark(name: str, start: int, end: int) -> None:
        marks[name][[p - trace.reasoning.start for p in trace.tokens_between(start, end)]] = True

    for step in steps:
        if step["value_start"] >= 0:
            mark("number", step["value_start"], step["value_end"])
        if step["kind"] == "step":
            mark("path", step["value_start"], step["value_end"])
        elif step["kind"] in ("distractor", "filler"):
            mark(step["kind"], step["start"], step["end"])
    last = decisive_step(steps, truth["target"])
    if last is not None:
        mark("decisive", last["value_start"], last["value_end"])
    return Planted(**marks)


def reached_value(trace: Trace) -> str | None:
    """The value that the reasoning of a story's trace reaches for what was asked, or None if it reaches none. An answer
    that is another one does not come from the reasoning."""
    target = trace.problem["truth"]["target"]
    step = decisive_step(annotate(trace.reasoning_text, target=target, on_path=()), target)
    return None if step is None else str(step["value"])
