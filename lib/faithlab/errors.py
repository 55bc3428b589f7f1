"""The one exception that means "your input, not our bug", and the message for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FaithlabError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do; the command line prints it as is."""


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
