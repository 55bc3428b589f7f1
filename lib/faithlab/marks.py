"""What readers marked in reasonings, and the sheet of plain text on which they can do it.

    traces --write_sheet--> a text file, edited by hand --read_sheet--> marks

A mark is a span of characters of the reasoning's text, so it holds for every tokenizer. Marks are kept one reasoning a
line, as JSON (`save_marks`). On the sheet a reader puts double square brackets around what the answer depends on:

    Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = [[7]] pears.

In a notebook `faithlab.annotator` does the same with buttons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from faithlab.errors import FaithlabError
from faithlab.planted import planted
from faithlab.results import write_atomically
from faithlab.traces import Trace

HEAD = """# Put [[ ]] around the words and numbers that the answer depends on; as many as you like, or none.
# Change nothing else. If you cannot judge a reasoning, write skip behind its number, as in: === 3 skip
"""
WORD = re.compile(r"\w+(?:[.,]\d+)*")  # 7,000 and 3.5 are one
SIGNS = re.compile(r"\[\[|\]\]|^===", re.MULTILINE)  # the sheet's own


@dataclass(frozen=True)
class Marked:
    """A reasoning and what one reader marked in it: `marks` are (start, end) characters of `reasoning`, in order.

    White space at the ends of a mark is cut off, and a mark within a word grows to the whole word, so that marks are
    words and numbers for every tokenizer. Raises `FaithlabError` for marks out of order or out of the text.
    """

    question: str
    reasoning: str
    answer: str
    marks: tuple[tuple[int, int], ...]
    annotator: str = "anonymous"

    def __post_init__(self):
        end = 0
        for mark in self.marks:
            if not (len(mark) == 2 and end <= mark[0] < mark[1] <= len(self.reasoning)):
                raise FaithlabError(
                    f"the mark {tuple(mark)} does not lie in order within {len(self.reasoning)} characters"
                )
            end = mark[1]
        object.__setattr__(self, "marks", _whole_words(self.reasoning, self.marks))

    def trace(self, reasoner) -> Trace:
        """The marked reasoning and answer as a trace of a reasoner."""
        return reasoner.trace(self.question, self.reasoning, self.answer)

    def tokens(self, trace: Trace) -> Bool[Tensor, " token"]:
        """Which reasoning tokens of its trace are marked, in whole or in part."""
        out = torch.zeros(trace.reasoning.stop - trace.reasoning.start, dtype=torch.bool)
        for start, end in self.marks:
            out[[p - trace.reasoning.start for p in trace.tokens_between(start, end)]] = True
        return out

    def words(self) -> list[bool]:
        """Of every word and number of the reasoning, in order, whether it is marked, in whole or in part."""
        inside = np.zeros(len(self.reasoning) + 1, dtype=bool)
        for start, end in self.marks:
            inside[start:end] = True
        return [bool(inside[slice(*word.span())].any()) for word in WORD.finditer(self.reasoning)]

    @property
    def phrases(self) -> list[str]:
        """The marked texts."""
        return [self.reasoning[start:end].strip() for start, end in self.marks]


def _whole_words(text: str, marks: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Marks without white space at their ends, grown to word borders, in order, those that then touch made one."""
    out: list[tuple[int, int]] = []
    for start, end in marks:
        part = text[start:end]
        if not part.strip():
            continue
        start, end = start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
        while start > 0 and _inside(text, start):
            start -= 1
        while end < len(text) and _inside(text, end):
            end += 1
        if out and start < out[-1][1]:
            start, end = out[-1][0], max(end, out.pop()[1])
        out.append((start, end))
    return tuple(out)


def _inside(text: str, place: int) -> bool:
    """Whether a place stands within a word or a number such as 3.5 or 7,000."""
    before, after = text[place - 1], text[place]
    if before.isalnum() and after.isalnum():
        return True
    around = text[place - 1 : place + 2], text[max(0, place - 2) : place + 1]
    return any(re.fullmatch(r"\d[.,]\d", three) for three in around)


def save_marks(marked: Iterable[Marked], path: str | Path) -> None:
    """Write marks, one JSON object a line; the file is replaced whole or not at all."""
    write_atomically(Path(path), "".join(json.dumps(asdict(m), ensure_ascii=False) + "\n" for m in marked))


def load_marks(path: str | Path) -> list[Marked]:
    """Read what `save_marks` wrote. Raises `FaithlabError`, with the line, for anything else."""
    out = []
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FaithlabError(f"cannot read marks from {path}: {error}") from error
    for number, line in enumerate(text.split("\n") if text else [], start=1):  # texts may hold other line ends
        try:
            row = json.loads(line)
            marks = tuple((int(a), int(b)) for a, b in row.pop("marks"))
            out.append(Marked(**row, marks=marks))
        except (ValueError, TypeError, KeyError, AttributeError, FaithlabError) as error:
            raise FaithlabError(f"{path}, line {number}, holds no marks: {error}") from error
    return out


def from_truth(traces: Sequence[Trace]) -> list[Marked]:
    """The marks of a reader who knows the story: every value that the answer rests on (the planted dependency path).

    Traces whose truth is unknown, or whose reasoning never reaches what was asked, are left out.
    """
    out = []
    for t in traces:
        truth = planted(t)
        if truth is None or not truth.known or not t.explained:
            continue
        lead = len(t.text_of("reasoning")) - len(t.text_of("reasoning").lstrip())
        ends = np.cumsum([len(p) for p in t.pieces[t.reasoning]]) - lead
        marks = []
        for i in truth.path.nonzero().flatten().tolist():
            piece = t.pieces[t.reasoning.start + i]
            marks.append((int(ends[i]) - len(piece.lstrip()), int(ends[i])))
        out.append(Marked(t.question, t.reasoning_text, t.answer_text, tuple(marks), "planted truth"))
    return out


def write_sheet(traces: Sequence[Trace], path: str | Path) -> list[Path]:
    """Write a text file for a reader to mark, and beside it (`.json`) what was handed out, which `read_sheet` needs.

    Raises `FaithlabError` if a file is there already (it may hold somebody's marks), or for a text with `[[` in it.
    """
    path = Path(path)
    keep = path.with_suffix(".json")
    handed = [
        dict(question=t.question, reasoning=t.reasoning_text, answer=t.answer_text) for t in traces if t.explained
    ]
    if not handed:
        raise FaithlabError("none of these traces has a reasoning and an answer, so there is nothing to mark")
    for place in (path, keep):
        if place.exists():
            raise FaithlabError(f"{place} exists and may hold somebody's marks; choose another name")
    parts = [HEAD]
    for number, row in enumerate(handed, start=1):
        if SIGNS.search("\n".join(row.values())):
            raise FaithlabError(
                f"item {number} holds the sheet's own signs ([[, ]] or ===); mark it in a notebook instead"
            )
        parts.append(
            f"\n=== {number}\nquestion: {row['question']}\nanswer: {row['answer']}\nreasoning:\n{row['reasoning']}\n"
        )
    write_atomically(keep, json.dumps(handed, indent=1, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(parts))
    return [path, keep]


def read_sheet(path: str | Path, annotator: str = "anonymous") -> list[Marked]:
    """The marks on a sheet. Skipped reasonings are left out.

    Raises `FaithlabError`, naming the reasoning, where the text is not the one handed out or brackets do not match.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        handed = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FaithlabError(f"cannot read the sheet {path} and its .json: {error}") from error
    blocks = re.split(r"^===", text, flags=re.MULTILINE)[1:]
    found = {}
    for block in blocks:
        head, _, rest = block.partition("\n")
        number = re.match(r"\s*(\d+)\W*(.*?)\W*$", head)
        if number is None or not (number[2] == "" or number[2].casefold().startswith("skip")):
            raise FaithlabError(
                f"{path}: the line '==={head}' is none of the sheet's; write a number, and skip behind it"
            )
        found[int(number[1])] = (bool(number[2]), rest.partition("\nreasoning:\n")[2].strip())
    out = []
    for number, row in enumerate(handed, start=1):
        if number not in found:
            raise FaithlabError(f"{path}: reasoning {number} is missing; write skip behind its number to leave it out")
        skipped, body = found[number]
        if not skipped:
            marks = _marks(body, row["reasoning"], f"{path}, reasoning {number}")
            out.append(Marked(**row, marks=marks, annotator=annotator))
    return out


def _marks(body: str, reasoning: str, where: str) -> tuple[tuple[int, int], ...]:
    marks, plain, opened = [], "", None
    for piece in re.split(r"(\[\[|\]\])", body):
        if piece == "[[":
            if opened is not None:
                raise FaithlabError(f"{where}: a [[ inside of another; close the first with ]]")
            opened = len(plain)
        elif piece == "]]":
            if opened is None:
                raise FaithlabError(f"{where}: a ]] without a [[ before it")
            if len(plain) > opened:
                marks.append((opened, len(plain)))
            opened = None
        else:
            plain += piece
    if opened is not None:
        raise FaithlabError(f"{where}: a [[ that is never closed with ]]")
    if plain != reasoning:
        at = next(
            (i for i, (a, b) in enumerate(zip(plain, reasoning, strict=False)) if a != b),
            min(len(plain), len(reasoning)),
        )
        raise FaithlabError(f"{where}: the text was changed at {plain[at : at + 20]!r}; only [[ and ]] may be added")
    return tuple(marks)
