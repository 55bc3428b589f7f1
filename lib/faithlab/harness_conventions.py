"""The conventions of lm-eval's tasks `gsm8k` and `mmlu`: rows as published, prompts, and how an answer is read.

See `faithlab.harness` for what they are and where they end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.tasks import files, gsm8k, mmlu
from faithlab.tasks.files import Row

LETTERS = "ABCD"
STOP = ("Question:", "</s>", "<|im_end|>")
NEW_TOKENS = 256  # what lm-eval lets a model write where a task does not say, as gsm8k does not
SEED = 1234  # lm-eval's own, for few-shot examples
INVALID = "[invalid]"  # stands for an answer that was not found, and equals no published one
# task -> its module, and what the splits of problems and of examples may be called; the first is the hub's name
TASKS: dict[str, tuple[Any, list[str], list[str]]] = {
    "gsm8k": (gsm8k, ["test"], ["train"]),
    "mmlu": (mmlu, ["test"], ["dev", "validation", "val"]),
}

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = tuple(re.compile(pattern) for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$"))  # in this order


class Problem(NamedTuple):
    """A published row. `answer` is the worked solution as published (gsm8k, no `choices`) or a letter (mmlu)."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    subject: str = ""

    @property
    def asked(self) -> str:
        """The question up to the place where the answer goes."""
        if self.choices:
            return f"{mmlu.format_question(self.question, list(self.choices))}\nAnswer:"
        return f"Question: {self.question}\nAnswer:"


def load(task: str, path: str | Path | None = None, *, examples: bool = False) -> list[Problem]:
    """The problems of the test split, or with `examples` those that few-shot examples come from, in published order.

    Read as they stand, since prompts hold them so: `faithlab.tasks` strips options and takes commas out of numbers.
    `path` is a file, a folder in the published layout, or None for the hub. Raises `FaithlabError` for an unknown task,
    a missing or malformed file (named by line), no hub.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    module, names, other, columns = TASKS[task][0], TASKS[task][2 if examples else 1], "socratic", None
    if task == "mmlu":  # the original release has no header; of gsm8k a second wording lies beside the first
        columns, other = ("question", *LETTERS, "answer"), None
    if path is None:
        found = [(row, "") for row in files.from_hub(task, module.HUB_ID, module.CONFIGURATION, names[0])]
    else:
        paths = files.find(path, names, module.CONFIGURATION, other)
        found = [(row, file.stem) for file in paths for row in files.read(file, columns)]
    if not found:
        raise FaithlabError(f"{task}: there is no problem in {path or 'this data'}; give another file.")
    return [_problem(task, row, stem) for row, stem in found]


def _problem(task: str, row: Row, stem: str) -> Problem:
    question, answer = row.text("question"), str(row.value("answer")).strip()
    if task == "gsm8k":
        if "#### " not in answer:
            raise FaithlabError(f"{row.where}: field 'answer' should end in '#### number', as published.")
        return Problem(question, row.text("answer"))
    choices = row.fields.get("choices", [row.fields.get(letter) for letter in LETTERS])
    with contextlib.suppress(ValueError, RecursionError):
        choices = json.loads(choices) if isinstance(choices, str) else choices  # a CSV cell
    place, named = (LETTERS + "0123").find(answer.upper()), re.fullmatch(r"(.+)_(?:test|dev|val|validation)", stem)
    subject = str(row.fields.get("subject") or (named[1] if named else ""))
    four = isinstance(choices, list) and len(choices) == 4 and None not in choices
    if not four or len(answer) != 1 or place < 0 or not subject:
        what = "four choices, an answer A-D or 0-3, and a subject (a field, or a file called SUBJECT_test.csv)"
        raise FaithlabError(f"{row.where}: {what} are expected.")
    return Problem(question, LETTERS[place % 4], tuple(map(str, choices)), subject)


def by_subject(problems: Sequence[Problem]) -> dict[str, list[int]]:
    """The places of each subject's problems, in the order of first appearance; gsm8k's subject is the empty text."""
    places: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        places.setdefault(problem.subject, []).append(place)
    return places


def description(subject: str) -> str:
    """The first line of an MMLU prompt, with the white space behind it; "" without a subject."""
    about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return about if subject else ""


def prompts(problems: Sequence[Problem], pool: Sequence[Problem], shots: int = 5, seed: int = SEED) -> list[str]:
    """What is put before the model for each problem, with `shots` examples out of `pool`.

    gsm8k draws them anew for every problem, from one random stream that begins with `seed`: problem i gets the same
    ones in every run over the same files. mmlu takes the first ones of the subject. Raises `FaithlabError` where there
    are too few.
    """
    check_number("shots", shots, 0, whole=True)
    stream, places, texts = random.Random(seed), by_subject(pool), []
    for problem in problems:
        own = [pool[i] for i in places.get(problem.subject, [])]
        if shots > len(own):
            where = f" of {problem.subject}" if problem.subject else ""
            raise FaithlabError(f"there are only {len(own)} rows{where} to take {shots} examples from; lower --shots")
        chosen = own[:shots] if problem.choices else stream.sample(own, shots)
        shown = [f"{row.asked} {row.answer}\n\n" for row in chosen]
        texts.append("".join([description(problem.subject), *shown, problem.asked]))
    return texts


def strict(text: str) -> str:
    """The first number behind "#### ", as written; "[invalid]" where there is none (filter strict-match)."""
    found = _STRICT.search(text)
    return found[1] if found else INVALID


def flexible(text: str) -> str:
    """The last number, or run of digits, dots, commas and dollar signs; "[invalid]" without (flexible-extract)."""
    found = _FLEXIBLE.findall(text)
    return found[-1] if found else INVALID


def normalised(text: str) -> str:
    """What of an answer is compared (exact_match): no commas or dollars, nothing up to "#### ", no last full stop."""
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def short_hash(text: str) -> str:
    """Sixteen hex digits that stand for a text which must not be written down."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
