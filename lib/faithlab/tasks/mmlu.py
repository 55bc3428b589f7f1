"""`mmlu`: multiple-choice questions on 57 subjects, from the hub (cais/mmlu) or local files in a published format.

Two formats are read: that of the hub (`question`, `subject`, `choices`, `answer` as an index; Parquet or JSON lines)
and that of the original release (CSV without header: question, four options, letter; the file name is the subject).
The question's text lists the options the way common harnesses print them, without their closing "Answer:", which would
leave no room for reasoning.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faithlab.errors import FaithlabError, unknown
from faithlab.tasks import files
from faithlab.tasks.files import Row
from faithlab.tasks.scoring import Score, score_choice

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID, CONFIGURATION = "cais/mmlu", "all"
_FOLDERS = {"train": ["auxiliary_train", "train"], "validation": ["validation", "val"], "test": ["test"]}
_COLUMNS = ("question", "A", "B", "C", "D", "answer")


def load(
    split: str = "train",
    n: int | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    subject: str | None = None,
) -> Dataset:
    """Problems with the columns `question` (with its options), `answer` (a letter), `choices` and `subject`.

    Args:
        split: "train" (the publication's auxiliary training set), "validation" or "test".
        n: how many, chosen by `seed`; None for all.
        seed: decides the choice.
        path: a local file, which then *is* the split asked for, or a folder as published; None for the hub.
        subject: keep only this subject, such as "anatomy".

    Raises:
        FaithlabError: no such file or subject, a malformed row (named by line), no hub.
    """
    from datasets import Dataset

    problems = [_problem(row, default) for row, default in _rows(split, path)]
    if subject is not None:
        subjects = sorted({p["subject"] for p in problems})
        problems = [p for p in problems if p["subject"] == subject]
        if not problems:
            raise unknown("subject", subject, subjects)
    return Dataset.from_list(files.take("mmlu", problems, n, seed))


def _rows(split: str, path: str | Path | None) -> Iterator[tuple[Row, str]]:
    """Rows, each with the subject that its file's name gives it."""
    if path is None:
        for row in files.from_hub("mmlu", HUB_ID, CONFIGURATION, _FOLDERS[split][0]):
            yield row, ""
        return
    for file in files.find(path, _FOLDERS[split], CONFIGURATION):
        # "anatomy_test.csv" in the original release; "test-00000-of-00001.parquet" on the hub says nothing.
        stem, name = file.stem, next((n for n in _FOLDERS[split] if file.stem.endswith(f"_{n}")), "")
        subject = stem.removesuffix(f"_{name}") if name else ""
        for row in files.read(file, columns=_COLUMNS):
            yield row, subject


def _problem(row: Row, subject: str) -> dict:
    choices = _choices(row)
    letter = string.ascii_uppercase[_index(row, len(choices))]
    subject = row.whole("subject", str(row.fields.get("subject") or subject))
    question = format_question(row.text("question"), choices)
    return dict(question=question, answer=letter, choices=choices, subject=subject)


def format_question(question: str, choices: list[str]) -> str:
    """The question, and below it each option behind its letter: "A. first", "B. second"."""
    options = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
    return "\n".join([question.strip(), *options])


def _choices(row: Row) -> list[str]:
    if "choices" not in row.fields and "A" in row.fields:
        choices: Any = [row.value(letter) for letter in _COLUMNS[1:5]]
    else:
        choices = row.value("choices")
        if isinstance(choices, str):  # a CSV cell
            try:
                choices = json.loads(choices)
            except (ValueError, RecursionError):  # no JSON, or nested without end
                choices = None
    if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
        raise FaithlabError(f"{row.where}: field 'choices' should be a list of options (JSON in CSV files).")
    return [row.whole("choices", str(choice).strip()) for choice in choices]


def _index(row: Row, n_choices: int) -> int:
    answer = row.value("answer")
    text = str(answer).strip().upper()
    if not isinstance(answer, bool):
        if len(text) == 1 and text in string.ascii_uppercase[:n_choices]:
            return string.ascii_uppercase.index(text)
        if text.isascii() and text.isdigit() and len(text) <= 2 and int(text) < n_choices:
            return int(text)
    last = string.ascii_uppercase[n_choices - 1]
    raise FaithlabError(
        f"{row.where}: field 'answer' should be a letter A-{last} or a number 0-{n_choices - 1}; got {answer!r:.40}."
    )


def score(prediction: str | None, problem: Mapping[str, Any]) -> Score:
    """Right if the prediction names the letter of the right option, or is that option's text; see `scoring`."""
    choices = problem.get("choices") or list("ABCD")
    return score_choice(prediction, problem["answer"], string.ascii_uppercase[: len(choices)], problem.get("choices"))
