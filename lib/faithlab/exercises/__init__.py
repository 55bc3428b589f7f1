"""Checks of the course's exercises: `check("name", answer)` says whether an answer is right, and if not, why.

    from faithlab.exercises import check
    check("received_attention", my_function)

An answer is a number, a dictionary, or a function of the learner's. Its check lives in the module of its subject and is
a function of one argument, decorated with `@exercise`, that calls `expect` for each thing an answer must do:

    @exercise
    def received_attention(function):
        "What later tokens give to a token: the mean of its column below the diagonal."
        got = function(torch.eye(3))
        expect(got[0] == 0, "a token's attention to itself is counted: leave the diagonal out")
        return "the column's mean, without the diagonal"          # said when the answer is right

A check never raises into the notebook: a learner's mistake is the normal case, and a headless run goes on to the next
exercise. What came of each is kept for `outcomes`, which is how a class is graded.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from faithlab.errors import first_words, unknown

NOTHING = "your function returns nothing: end it with `return` and the result"
RIGHT, WRONG, OPEN = "right", "wrong", "not done"
MARKS = {RIGHT: "✔", WRONG: "✘", OPEN: "…"}

# whose lines are not the learner's: faithlab's, Python's own, and those of installed packages
LIBRARIES = (str(Path(__file__).parents[1]), *{sysconfig.get_path(k) for k in ("stdlib", "purelib", "platlib")})

CHECKS: dict[str, Callable[[Any], str]] = {}
_outcomes: dict[str, Outcome] = {}


class Outcome(NamedTuple):
    """What a check came to: `status` is "right", "wrong" or "not done"; `message` is for the learner."""

    status: str
    message: str


class Wrong(AssertionError):
    """An answer that does not do what was asked; the message explains why."""


def expect(condition: Any, why: str) -> None:
    """Raise `Wrong(why)` unless `condition` holds. `why` names the mistake and the way on, not only the failure."""
    if not condition:
        raise Wrong(why)


def compare(got, right, mistakes: Iterable[tuple], otherwise: str, atol: float = 1e-4) -> None:
    """Raise `Wrong` unless `got` equals `right`: with the words of the first of `mistakes`, pairs of what a mistake
    gives and what it is, that equals `got`; else with `otherwise`. Numbers, lists, arrays and tensors are alike."""
    value = tensor_of(got).flatten()

    def same(other) -> bool:
        other = torch.as_tensor(other, dtype=torch.float64).flatten()
        return value.shape == other.shape and torch.allclose(value, other, atol=atol, equal_nan=True)

    if not same(right):
        why = next((why for wrong, why in mistakes if same(wrong)), None)
        raise Wrong(why or _in_percent(value, right, atol) or otherwise)


def _in_percent(value: torch.Tensor, right, atol: float) -> str | None:
    """What to say of shares that were given as percentages, rounded to whole ones perhaps; None if they were not."""
    share = torch.as_tensor(right, dtype=torch.float64).flatten()
    if value.shape != share.shape or not ((share >= 0) & (share <= 1)).all() or not (value > 1).any():
        return None
    if not torch.allclose(value / 100, share, atol=max(atol, 6e-3), rtol=0):
        return None
    first = float(value[value > 1][0])
    return f"{first:g} is about 100 times too much: shares are between 0 and 1, so write {first:g} % as {first / 100:g}"


def tensor_of(values: Any) -> torch.Tensor:
    """A learner's numbers as float64, be they a tensor, an array, or (nested) lists of any of these."""
    expect(values is not None, NOTHING)
    refuse_text(values)
    if isinstance(values, list | tuple) and len(values):
        return torch.stack([tensor_of(v) for v in values])
    return torch.as_tensor(values, dtype=torch.float64).detach()


def refuse_text(answer: Any, *, like_numbers: bool = False) -> None:
    """Raise `Wrong` if a string stands where numbers are wanted; of strings that look `like_numbers` only."""
    if isinstance(answer, str):
        expect(
            like_numbers and not re.fullmatch(r"[-+*/.,%()\s\d]*\d[-+*/.,%()\s\d]*", answer),
            f"numbers only, as 5/6 without quotes: you gave {answer!r}, which is a text",
        )
    elif isinstance(answer, dict | list | tuple):
        for value in answer.values() if isinstance(answer, dict) else answer:
            refuse_text(value, like_numbers=like_numbers)


def exercise(function: Callable[[Any], str]) -> Callable[[Any], str]:
    """Enter a check under its name; names are unique in the course. Raises ValueError for one that is taken."""
    if function.__name__ in CHECKS:
        raise ValueError(f"two exercises are called {function.__name__!r}")
    CHECKS[function.__name__] = function
    return function


def names() -> list[str]:
    """All exercises there are."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return list(CHECKS)


def judge(name: str, answer: Any) -> Outcome:
    """What the check `name` says about `answer`. Raises `FaithlabError` for a name that does not exist."""
    if name not in names():
        raise unknown("exercise", name, CHECKS)
    if unanswered(answer):
        return Outcome(OPEN, "Put your answer in place of None and run the cell again")
    silent: list[bool] = []
    given = _noting(answer, silent) if callable(answer) else _Read(answer) if isinstance(answer, dict) else answer
    try:
        return Outcome(RIGHT, CHECKS[name](given))
    except NotImplementedError:
        return Outcome(OPEN, "Replace the line `raise NotImplementedError` and run the cell again")
    except Wrong as error:
        return Outcome(WRONG, str(error))
    except Exception as error:
        return _stopped(error, given if isinstance(given, _Read) else answer, bool(silent))


class _Read(dict):
    """The learner's dictionary; `last` is the entry that was read last, which is the one that a check stopped at."""

    last: Any = None

    def __getitem__(self, key: Any) -> Any:
        self.last = key
        return super().__getitem__(key)


def _noting(function: Callable, silent: list[bool]) -> Callable:
    """The learner's function; that it returned nothing is noted in `silent`, for in some exercises it may."""

    @functools.wraps(function)
    def noting(*args, **kwargs):
        out = function(*args, **kwargs)
        if out is None:
            silent.append(True)
        return out

    return noting


def _stopped(error: Exception, answer: Any, silent: bool) -> Outcome:
    """Whatever a learner's function raises, or returns that the check could not read, is a wrong answer."""
    try:
        if isinstance(error, TypeError | ValueError):
            refuse_text(answer, like_numbers=True)
    except Wrong as text:
        return Outcome(WRONG, str(text))
    if isinstance(error, KeyError) and isinstance(answer, dict) and error.args[0] not in answer:
        return Outcome(WRONG, f"Your answer has no entry {error.args[0]!r}: give all those of the stub")
    if silent and isinstance(error, TypeError | AttributeError):
        return Outcome(WRONG, NOTHING.capitalize())
    kind = "dict" if isinstance(answer, dict) else type(answer).__name__
    if not callable(answer) and "object is not callable" in str(error):
        return Outcome(WRONG, f"A function is asked for, as in the stub; your answer is a {kind}")
    if str(error).startswith(f"'{kind}' object") or (kind != "dict" and "indices must be" in str(error)):
        return Outcome(WRONG, f"Your answer is a {kind}: give what the stub holds, with your values in it")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.line and not _of_a_library(f.filename)]
    if not frames and not callable(answer) and isinstance(error, TypeError | ValueError | IndexError | AttributeError):
        entry = answer[answer.last] if isinstance(answer, _Read) and answer.last in answer else answer
        what = "Your answer" if entry is answer else f"Your entry {answer.last!r}"
        return Outcome(WRONG, f"{what}, {_shown(entry)}, cannot be read: give it in the form that the stub describes")
    line = f", in your line `{frames[-1].line}`" if frames else ""
    return Outcome(WRONG, f"Your answer stopped with {type(error).__name__}: {first_words(error)}{line}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_a_library(filename: str) -> bool:
    return filename.startswith(LIBRARIES) or "site-packages" in filename


def unanswered(answer: Any) -> bool:
    """True for None, an ellipsis, or a collection that still holds one: the stub as it was handed out."""
    if isinstance(answer, dict):
        return any(unanswered(value) for value in answer.values())
    if isinstance(answer, list | tuple):
        return any(unanswered(value) for value in answer)
    return answer is None or answer is Ellipsis


def check(name: str, answer: Any) -> None:
    """Judge an answer, print what came of it in one line, and remember it."""
    outcome = judge(name, answer)
    _outcomes[name] = outcome
    print(f"{MARKS[outcome.status]} {name}: {outcome.status}. {outcome.message}")


def outcomes() -> dict[str, Outcome]:
    """What `check` found in this process so far: the latest outcome of each exercise."""
    return dict(_outcomes)
