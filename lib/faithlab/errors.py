"""The one exception that means "your input, not our bug", and the checks of numbers and names that raise it."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real


class FaithlabError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do; the command line prints it as is."""


class NotFinite(FaithlabError):
    """Training stopped before a step that would have spoilt the weights, in all processes alike."""


def check_number(
    name: str, value: object, low: float, high: float = math.inf, *, whole: bool = False, above: bool = False
) -> None:
    """Raise `FaithlabError`, naming the setting, its value and its range, unless low <= value <= high.

    `whole`: only whole numbers; `above`: `low` itself is out of range too.
    """
    kind = "whole number" if whole else "number"
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not right or not low <= value <= high or (above and value == low) or math.isinf(value):
        ends = f"{'above' if above else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
        raise FaithlabError(f"{name}={value!r} is not possible; use a {kind} {ends}")


def check_known(kind: str, names: Iterable[object], known: Collection[object]) -> None:
    """Raise `unknown(kind, ...)` for the first of the names that is not among the known ones."""
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


def keyword_options(function: Callable) -> set[str]:
    """The keyword-only options of a function or class."""
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def first_words(error: BaseException, length: int = 200) -> str:
    """The beginning of another library's message, on one line, cut between words and without a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …").rstrip(".")


def unknown(kind: str, name: object, known: Iterable[object]) -> FaithlabError:
    """The error for a name that does not exist: it names the closest match and lists what there is.

    Args:
        kind: what is looked up, in the singular ("reasoner", "task", "profile").
        name: what was asked for.
        known: the names that exist.

    Returns:
        The exception, for the caller to raise: ``raise unknown("task", name, TASKS)``.
    """
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listing = f"there are: {', '.join(names)}" if names else "there are none"
    return FaithlabError(f"unknown {kind} {str(name)!r}; {hint}{listing}")
