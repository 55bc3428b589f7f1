"""`countdown`, `chain_sum` and `gsm_symbolic`: endless problems from reasoning-gym, in splits that cannot overlap.

reasoning-gym draws problem `i` of seed `s` from the random state `s + i`, so that seeds 0 and 1 give almost the same
problems. Here the seed is hashed first, and a problem's split follows from the problem itself (`splits`), whatever the
seed and the options. Problems that differ only in the order of their numbers count as one.

* `countdown`: combine all of the given numbers, each exactly once, with + - * / to reach a target. Default: three
  numbers of 1..20, target 10..60. Columns `numbers` and `target`; `answer` is one of several valid expressions.
* `chain_sum`: a sum of terms. Default: 2-3 terms of 1-2 digits. Column `expression`.
* `gsm_symbolic`: GSM8K-like word problems with new names and numbers. Column `rationale`, the worked solution.

Every field of the task's reasoning-gym configuration is an option, except `seed` and `size`, which `seed` and `n` set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from faithlab.errors import FaithlabError, unknown
from faithlab.tasks.expressions import score_expression
from faithlab.tasks.scoring import Score, score_number
from faithlab.tasks.splits import split_of

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_N = 1000
PATIENCE = 3000  # draws in a row without a new problem of the split, at least, before the space counts as used up
GIVEN_UP = 20  # what a draw counts for that reasoning-gym gave up on, after a hundred slow attempts of its own
_CHUNK = 50_000  # problems drawn from one reasoning-gym stream; gsm_symbolic prepares the whole stream at once


def countdown_key(numbers: list[int], target: int) -> str:
    """Canonical text of a countdown problem, for `split_of`: the order of the numbers does not matter."""
    return f"countdown|{' '.join(map(str, sorted(numbers)))}|{target}"


def chain_sum_key(expression: str) -> str:
    """Canonical text of a sum such as "3 + 14 - 2": the order of the terms, with their signs, does not matter."""
    terms = []
    sign = 1
    for token in expression.split():
        if token in "+-":
            sign = 1 if token == "+" else -1
        else:
            terms.append(sign * int(token))
    return f"chain_sum|{' '.join(map(str, sorted(terms)))}"


def text_key(task: str, question: str) -> str:
    """Canonical text of a problem known by its wording: case and white space do not matter."""
    return f"{task}|{' '.join(question.split()).casefold()}"


@dataclass(frozen=True)
class GeneratedTask:
    """One task of reasoning-gym with this project's defaults, canonical text, columns and scorer."""

    name: str
    module: str  # of reasoning_gym; imported late, as it takes a second
    dataset_class: str
    config_class: str
    defaults: Mapping[str, Any]
    key: Callable[[dict], str]  # of a reasoning-gym item
    columns: Callable[[dict], dict]  # beside question and answer
    score: Callable[[str | None, Mapping[str, Any]], Score] = field(repr=False)

    def option_names(self) -> list[str]:
        """The fields of the reasoning-gym configuration that may be set."""
        return [f.name for f in dataclasses.fields(self._class(self.config_class)) if f.name not in ("seed", "size")]

    def load(self, split: str = "train", n: int | None = None, seed: int = 0, **options: Any) -> Dataset:
        """`n` (default 1,000) different problems of `split`.

        Args:
            split: "train", "validation" or "test".
            n: how many; None for 1,000.
            seed: any integer; other seeds draw from unrelated streams.
            options: fields of the reasoning-gym configuration, in place of the task's defaults.

        Raises:
            FaithlabError: unknown option, values that reasoning-gym refuses, or fewer than `n` problems exist.
        """
        from datasets import Dataset

        n = DEFAULT_N if n is None else n
        found: dict[str, dict] = {}
        misses = draws = 0
        for item in self._stream(seed, {**self.defaults, **options}):
            draws += 1
            key = self.key(item) if item else ""
            if item and key not in found and split_of(key) == split and (row := self._row(item)):
                found[key] = row
                misses = 0
            else:
                misses += 1 if item else GIVEN_UP
            if len(found) == n:
                return Dataset.from_list(list(found.values()))
            # With half of the space found, every second draw of the split is new; with all found, none ever is.
            if misses > PATIENCE + 20 * len(found):
                break
        raise FaithlabError(
            f"{self.name}: only {len(found)} different problems in split {split!r} after {draws:,} draws, "
            f"n={n} asked for; ask for fewer or widen the options ({', '.join(self.option_names())})."
        )

    def _class(self, name: str) -> type:
        return getattr(importlib.import_module(self.module), name)

    def _stream(self, seed: int, options: dict[str, Any]) -> Iterator[dict | None]:
        """Items in the order of the seed; None where reasoning-gym gave up on one."""
        known = self.option_names()
        for name in options:
            if name not in known:
                raise unknown(f"option of {self.name}", name, known)
        chunk = 0
        while True:
            digest = hashlib.blake2b(f"{self.name}|{seed}|{chunk}".encode(), digest_size=4).digest()
            config_class, dataset_class = self._class(self.config_class), self._class(self.dataset_class)
            try:
                items = dataset_class(config_class(seed=int.from_bytes(digest, "big"), size=_CHUNK, **options))
            except (AssertionError, TypeError, ValueError) as error:
                raise FaithlabError(f"{self.name}: these options do not work: {error or options}.") from error
            for index in range(_CHUNK):
                try:
                    item = items[index]
                except ValueError:  # no problem within these bounds in reasoning-gym's hundred attempts
                    item = None
                yield item
            chunk += 1

    def _row(self, item: dict) -> dict | None:
        """The data row, or None if reasoning-gym's own answer does not pass the scorer."""
        row = dict(question=item["question"].strip(), answer=str(item["answer"]), **self.columns(item))
        return row if self.score(row["answer"], row).value == 1.0 else None


def _score_countdown(prediction: str | None, problem: Mapping[str, Any]) -> Score:
    """Right if the expression uses exactly the problem's numbers and equals its target; see `expressions`."""
    return score_expression(prediction, problem["numbers"], problem["target"])


def _score_number(prediction: str | None, problem: Mapping[str, Any]) -> Score:
    """Right if the number in the prediction is the answer; see `scoring`."""
    return score_number(prediction, problem["answer"])


def _worked_solution(item: dict) -> dict:
    # The last line repeats the answer behind "####"; a rationale that contains the answer mark would be cut there.
    return dict(rationale=re.sub(r"\s*####.*\Z", "", item["metadata"].get("answer_cot", ""), flags=re.DOTALL))


countdown = GeneratedTask(
    name="countdown",
    module="reasoning_gym.games.countdown",
    dataset_class="CountdownDataset",
    config_class="CountdownConfig",
    defaults=dict(min_numbers=3, max_numbers=3, min_value=1, max_value=20, min_target=10, max_target=60),
    key=lambda item: countdown_key(item["metadata"]["numbers"], item["metadata"]["target"]),
    columns=lambda item: dict(numbers=list(item["metadata"]["numbers"]), target=item["metadata"]["target"]),
    score=_score_countdown,
)
chain_sum = GeneratedTask(
    name="chain_sum",
    module="reasoning_gym.arithmetic.chain_sum",
    dataset_class="ChainSumDataset",
    config_class="ChainSumConfig",
    defaults=dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2),
    key=lambda item: chain_sum_key(item["metadata"]["expression"]),
    columns=lambda item: dict(expression=item["metadata"]["expression"]),
    score=_score_number,
)
gsm_symbolic = GeneratedTask(
    name="gsm_symbolic",
    module="reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic",
    dataset_class="GSMSymbolicDataset",
    config_class="GSMSymbolicDatasetConfig",
    defaults={},
    key=lambda item: text_key("gsm_symbolic", item["question"]),
    columns=_worked_solution,
    score=_score_number,
)
