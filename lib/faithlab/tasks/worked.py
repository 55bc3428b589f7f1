"""Worked solutions: for a problem of a task, a reasoning in short steps that ends in its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faithlab.errors import FaithlabError

TASKS = ("stories", "chain_sum", "gsm_symbolic")


def solution(task: str, problem: Mapping[str, Any]) -> str:
    """The reasoning that solves a problem of one of `TASKS`.

    >>> solution("chain_sum", {"expression": "6 + 3 - 4"})
    '6 + 3 = 9. 9 - 4 = 5.'

    Raises `FaithlabError` for other tasks, and for a story that was drawn with a wrong step.
    """
    if task == "stories":
        if str(problem["truth"]["reached"]) != problem["answer"]:
            raise FaithlabError("a demonstrated reasoning does not reach the answer: leave error_rate out")
        return problem["reasoning"]
    if task == "gsm_symbolic":
        return problem["rationale"].strip()
    if task == "chain_sum":
        return _running_total(problem["expression"])
    raise FaithlabError(f"no worked solutions are known for {task}; there are some for {', '.join(TASKS)}")


def _running_total(expression: str) -> str:
    """A sum from left to right, one step a term."""
    first, *rest = expression.split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {after}.")
        total = after
    return " ".join(steps)
