"""The units that a text is cut into: tokens or sentences, of the reasoning or of the question in the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from faithlab.errors import unknown
from faithlab.tasks.story_text import sentences
from faithlab.traces import Trace

__all__ = ["PARTS", "UNITS", "Part", "Unit", "question_positions", "sentences", "units_of"]

UNITS = ("token", "sentence")
Unit = Literal["token", "sentence"]
PARTS = ("reasoning", "question")
Part = Literal["reasoning", "question"]


def units_of(
    trace: Trace,
    unit: Unit = "token",
    split: Callable[[str], list[tuple[int, int]]] = sentences,
    *,
    of: Part = "reasoning",
) -> list[tuple[int, ...]]:
    """Positions of each unit: single tokens, or the sentences that `split` finds in the text.

    `of` is the part that is cut: the reasoning, or the question as it stands in the prompt (`question_positions`). The
    prompt's first token is in no unit: models park attention there that goes nowhere else, so that hiding it breaks
    more than it hides.

    Raises `FaithlabError` for another unit or part.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    if of not in PARTS:
        raise unknown("part", of, PARTS)
    if of == "question":
        span, (start, end) = "prompt", _question_in_prompt(trace)
        text, whole = trace.prompt_text[start:end], question_positions(trace)
    else:
        span, start, text = "reasoning", 0, trace.reasoning_text
        whole = range(trace.reasoning.start, trace.reasoning.stop)
    found = [(p,) for p in whole]
    if unit == "sentence":
        found = [tuple(trace.tokens_between(start + a, start + b, span)) for a, b in split(text)]
    if of == "question":
        found = [tuple(p for p in positions if p != trace.prompt.start) for positions in found]
    return [positions for positions in found if positions]


def question_positions(trace: Trace) -> list[int]:
    """Positions of the question's tokens in the prompt, without instruction, examples and template; white space may
    differ, since templates trim. Empty where the template words the question anew; of several places the last counts.
    """
    return trace.tokens_between(*_question_in_prompt(trace), "prompt")


def _question_in_prompt(trace: Trace) -> tuple[int, int]:
    """Characters of the prompt's text, (0, 0) where the question does not stand there."""
    words = r"\s+".join(map(re.escape, trace.question.split()))
    found = list(re.finditer(words, trace.prompt_text)) if words else []
    return found[-1].span() if found else (0, 0)
