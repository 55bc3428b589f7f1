"""`gsm8k`: grade-school word problems, from the hub (openai/gsm8k) or a local file or folder in its format.

Each published row has `question` and `answer`, a worked solution that ends in "#### 18". Here `answer` is the final
number alone and `rationale` the solution before the mark, as published (with its `<<16-3=13>>` notes). The publication
has no validation split: it is a tenth of the training problems, chosen by their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faithlab.errors import FaithlabError
from faithlab.paths import user_path
from faithlab.tasks import files
from faithlab.tasks.files import Row
from faithlab.tasks.markers import clean
from faithlab.tasks.numerals import read_number
from faithlab.tasks.scoring import Score, score_number
from faithlab.tasks.splits import split_of

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID, CONFIGURATION = "openai/gsm8k", "main"
_OTHER = "socratic"  # a second wording of the same problems lies beside the first


def load(split: str = "train", n: int | None = None, seed: int = 0, path: str | Path | None = None) -> Dataset:
    """Problems with the columns `question`, `answer` (the number) and `rationale`.

    Args:
        split: "train", "validation" or "test".
        n: how many, chosen by `seed`; None for all.
        seed: decides the choice.
        path: a local `.jsonl`, `.csv` or `.parquet` file, which then *is* the split asked for, or a folder with files
            called `train…` and `test…`; None for the hub.

    Raises:
        FaithlabError: no such file, a row without its fields or without "#### number" (named by line), no hub.
    """
    from datasets import Dataset

    return Dataset.from_list(files.take("gsm8k", [_problem(row) for row in _rows(split, path)], n, seed))


def _rows(split: str, path: str | Path | None) -> Iterator[Row]:
    whole = False  # whether the rows hold one split and not training and validation together
    if path is None:
        rows: Iterable[Row] = files.from_hub("gsm8k", HUB_ID, CONFIGURATION, "test" if split == "test" else "train")
    else:
        whole = user_path(path).is_file() or files.has(path, ["validation"], CONFIGURATION, _OTHER)
        name = split if whole or split == "test" else "train"
        found = files.find(path, [name], CONFIGURATION, _OTHER)
        if len({(f.parent, f.suffix) for f in found}) > 1:  # the published data have one file, or parts side by side
            listing = ", ".join(map(str, found[:4]))
            raise FaithlabError(f"gsm8k: several data sets could be meant ({listing}); give path= one of them.")
        rows = (row for file in found for row in files.read(file))
    for row in rows:
        held_out = split_of(f"gsm8k|{' '.join(row.text('question').split())}") == "validation"
        if whole or split == "test" or held_out == (split == "validation"):
            yield row


def _problem(row: Row) -> dict:
    rationale, mark, final = row.text("answer").rpartition("####")
    number = clean(final)
    if not mark or read_number(number) is None:
        end = row.text("answer")[-30:]
        raise FaithlabError(f"{row.where}: field 'answer' should end in '#### number'; it ends in {end!r}.")
    return dict(question=row.text("question"), answer=number.replace(",", ""), rationale=rationale.strip())


def score(prediction: str | None, problem: Mapping[str, Any]) -> Score:
    """Right if the number in the prediction is the answer; see `scoring`."""
    return score_number(prediction, problem["answer"])
