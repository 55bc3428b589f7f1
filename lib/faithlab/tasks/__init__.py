"""Problems whose answers can be checked, and the scorers that check them.

    >>> problems = load("chain_sum", split="test", n=5, seed=0)
    >>> scorer("chain_sum")(problems[0]["answer"], problems[0]).status
    'right'

Every data set has the string columns `question` and `answer`; some have more (see the task's own module), such as
`truth`, where it is known which parts of the question the answer depends on. Splits are "train", "validation" and
"test" and share no problem. A task is anything with `load(split, n, seed, **options)` and `score(prediction, problem)`;
its module is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from faithlab.errors import FaithlabError, check_known, unknown
from faithlab.tasks.splits import SPLITS

if TYPE_CHECKING:
    from datasets import Dataset

    from faithlab.tasks.scoring import Scorer

MOST = 10**6  # problems that are drawn at a time

# name -> module, or module:object where one module holds several tasks
_TASKS = {
    "stories": "faithlab.tasks.stories",
    "countdown": "faithlab.tasks.generated:countdown",
    "chain_sum": "faithlab.tasks.generated:chain_sum",
    "gsm_symbolic": "faithlab.tasks.generated:gsm_symbolic",
    "gsm8k": "faithlab.tasks.gsm8k",
    "mmlu": "faithlab.tasks.mmlu",
}
PUBLISHED = ("gsm8k", "mmlu")  # data sets that were written once; the others draw as many problems as are asked for


def names() -> list[str]:
    """The tasks there are."""
    return list(_TASKS)


def _task(name: str) -> Any:
    if name not in _TASKS:
        raise unknown("task", name, names())
    module, _, attribute = _TASKS[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def load(name: str, *, split: str = "train", n: int | None = None, seed: int = 0, **options: Any) -> Dataset:
    """The problems of a task.

    Args:
        name: one of `names()`.
        split: "train", "validation" or "test".
        n: how many problems; None for the task's own default (generated tasks) or all there are (published ones).
        seed: decides which problems; the same arguments give the same problems in the same order.
        options: the task's own, such as `path=` for gsm8k and mmlu, or any field of the reasoning-gym configuration.

    Returns:
        A `datasets.Dataset` with the string columns `question` and `answer`, and the task's own.

    Raises:
        FaithlabError: unknown task, split or option; `n` below 1 or beyond what exists; unreadable data.
    """
    task = _task(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise FaithlabError(f"n must be a whole number from 1 on, or None; got n={n!r}.")
    if n is not None and n > MOST:
        raise FaithlabError(f"n={n} problems are more than the {MOST} that are drawn at a time")
    check_options(name, options)
    return task.load(split, n, seed, **options)


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise `FaithlabError` for an unknown task, and for names that are no options of its `load`. Tasks that take any
    field of another library's configuration leave that to the library."""
    for option in options:
        if option in ("name", "split", "n", "seed"):
            raise FaithlabError(f"{option} is no option of a task: it is set beside them")
    parameters = inspect.signature(_task(name).load).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_known(f"option of {name}", options, [p for p in parameters if p not in ("split", "n", "seed")])


def scorer(name: str) -> Scorer:
    """The function that compares a prediction with a row of the task: `scorer(name)(prediction, problem) -> Score`.
    Raises `FaithlabError` for an unknown task."""
    return _task(name).score
