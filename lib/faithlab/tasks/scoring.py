"""Scores: does a model's text give the right answer, a wrong one, or none?

One `Score` for every task. Texts may be a bare answer ("14", "$14.00", "(B)") or a whole response that ends in one.

*Which number counts.* A marked answer goes before an unmarked one: a box, an ``<answer>`` tag, ``####``, then a phrase
such as "the answer is" (see `markers`). Without a marker the last number of the text counts. Letters go the same way,
but without a marker a letter that opens the text ("B) Paris") goes before the last one.

*Unanswered* is a text without any number or letter, an empty one, one that stops right behind its marker or an equals
sign, inside a box, or inside ``<think>``. *Wrong* is everything else that is not right, such as a marked answer that is
no number. Scoring never raises, whatever the text, and takes milliseconds; expressions with roots, powers and the like
go to math-verify under a deadline (see `verify`, which also counts what got no verdict).

    >>> score_number("Ben has 3 + 4 = 7 pears. The answer is 7.", "7").status
    'right'
    >>> score_choice("I think (B) fits best.", "C")
    Score(status='wrong', value=0.0, extracted='B')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from faithlab.tasks import verify
from faithlab.tasks.markers import Marked, after_thinking, clean, find_answer
from faithlab.tasks.numerals import Chain, read_chains, read_number, same

LETTERS = "ABCDEFGHIJ"  # of multiple-choice options, where a task does not say which it uses
MAX_EXTRACTED = 200  # characters kept of an extracted answer

# Words that may stand between a marker and the number it marks.
_LEADING = re.compile(r"(?:\b(?:about|approximately|around|exactly|just|only|roughly|simply)\b|[^\w.\\])*", re.I)
_SENTENCE_END = re.compile(r"[.;!?](?:\s|$)|,\s|\s(?:which|because|since|so)\b")


@dataclass(frozen=True)
class Score:
    """The verdict on one answer.

    `status`: "right", "wrong" or "unanswered". `value`: 1.0 for a right answer, else 0.0. `extracted`: what was taken
    for the answer, None where there is none.
    """

    status: Literal["right", "wrong", "unanswered"]
    value: float
    extracted: str | None

    @classmethod
    def of(cls, right: bool, extracted: str) -> Score:
        """The score of an answer that was given."""
        extracted = extracted[:MAX_EXTRACTED]
        return cls("right", 1.0, extracted) if right else cls("wrong", 0.0, extracted)


UNANSWERED = Score("unanswered", 0.0, None)


class Scorer(Protocol):
    """What `faithlab.tasks.scorer` returns: compares a prediction with a row of the task's data set."""

    def __call__(self, prediction: str | None, problem: Mapping[str, Any]) -> Score: ...


def readable(prediction: object) -> str:
    """The cleaned text of a prediction behind its thinking; empty for None and for thinking that never ends."""
    return "" if prediction is None else clean(after_thinking(str(prediction)))


def score_number(prediction: str | None, gold: str) -> Score:
    """Score a text against a number or mathematical expression.

    Args:
        prediction: the answer's text or a whole response; None is "unanswered".
        gold: the right answer, such as "14", "-3", "1/2" or "\\sqrt{2}".

    Returns:
        The score. Numbers are compared by `numerals.same`; anything symbolic by math-verify.
    """
    text, gold = readable(prediction), clean(str(gold))
    target = read_number(gold)
    if target is None:
        expression = _find_expression(text)
        return Score.of(_same_expression(gold, expression), expression) if expression else UNANSWERED
    found = _find_number(text)
    if found is None:
        return UNANSWERED
    if isinstance(found, str):  # marked, and no number
        return Score.of(False, found)
    if found.value is not None:
        return Score.of(same(found.value, target), found.text)
    # A sum still to be done does not answer a question whose answer is a number, so math-verify never sees one.
    return Score.of(found.symbolic and _same_expression(gold, found.text), found.text)


def gold_of(problem: Mapping | None) -> str:
    """The right answer of a problem as text; empty where there is no problem or it has none."""
    answer = (problem or {}).get("answer")
    return "" if answer is None else str(answer)


def same_answer(one: str | None, other: str | None, gold: str = "") -> bool:
    """Whether two texts give the same answer, right or wrong: the same letter where the right answer `gold` is one,
    else the same number, else the same words. Two empty texts are the same; an answer and an empty text are not.

    >>> same_answer("7 pears", "7"), same_answer("7", "8"), same_answer("", "7")
    (True, False, False)
    """
    first, second = (" ".join(readable(text).casefold().split()).removesuffix(".") for text in (one, other))
    if first == second:
        return True
    if re.fullmatch(r"[A-Z]", gold.strip()):
        letters = [extract_letter(text, letters=LETTERS) for text in (one, other)]
        return letters[0] is not None and letters[0] == letters[1]
    found = [_find_number(readable(text)) for text in (one, other)]
    values = [chain.value if isinstance(chain, Chain) else None for chain in found]
    return None not in values and same(*values)


def _same_expression(gold: str, answer: str) -> bool:
    return "".join(gold.split()) == "".join(answer.split()) or verify.equal(gold, answer)


def _find_number(text: str) -> Chain | str | None:
    """The answering chain of cleaned text; a marked text that holds none as it is; None where there is no answer."""
    marked = find_answer(text)
    if marked is None:
        chains = read_chains(text)
        return chains[-1] if chains and not chains[-1].unfinished else None
    if not marked.content:
        return None
    chains = read_chains(marked.content)
    if not chains:
        return _first_clause(marked.content)
    clause = read_chains(_SENTENCE_END.split(marked.content, maxsplit=1)[0]) or chains[:1]
    equations = [chain for chain in clause if chain.equation]
    if equations:
        chain = equations[-1]  # "28 pears / 2 = 14 pears"
    elif chains[0].start <= _LEADING.match(marked.content).end():
        chain = chains[0]  # "14 pears, 3 of them ripe"
    else:
        chain = clause[-1]  # "Ada has 3 pears and Ben has 14."
    return None if chain.unfinished else chain


def _find_expression(text: str) -> str | None:
    """The marked expression of cleaned text, else its last line; None where there is none."""
    marked = find_answer(text)
    if marked is None:
        return text.rpartition("\n")[2] or None
    if marked.kind == "phrase" and marked.content:
        return _first_clause(marked.content)
    return marked.content or None


def _first_clause(text: str) -> str:
    return _SENTENCE_END.split(text, maxsplit=1)[0].strip() or text


def score_choice(
    prediction: str | None, gold: str, letters: str = "ABCD", choices: Sequence[str] | None = None
) -> Score:
    """Score a text against the letter of the right option.

    Args:
        prediction: the answer's text or a whole response; None is "unanswered".
        gold: the right letter.
        letters: the letters of the options, in order.
        choices: the options' texts; if given, a text that names no letter but equals one option stands for its letter.
    """
    found = extract_letter(prediction, letters, choices)
    if found is not None:
        return Score.of(found == gold.strip().upper(), found)
    marked = find_answer(readable(prediction))
    return Score.of(False, marked.content) if marked and marked.content else UNANSWERED


def extract_letter(prediction: str | None, letters: str = "ABCD", choices: Sequence[str] | None = None) -> str | None:
    """The option letter, in upper case, that `score_choice` would compare; None if there is none."""
    text = readable(prediction)
    marked = find_answer(text)
    content = text if marked is None else marked.content
    if not content:
        return None
    return _letter_of(content, letters, marked) or _letter_of_choice(content, letters, choices)


def _letter_of(content: str, letters: str, marked: Marked | None) -> str | None:
    upper = re.escape(letters.upper())
    either = upper + re.escape(letters.lower())
    # The whole text, or the letter that opens it with a bracket, a full stop or a colon: "b", "(B) foo", "B. foo".
    opening = re.match(rf"\W*([{either}])(?:\W*$|\s?[).:](?:\s|$))|\W*\(([{either}])\)", content)
    if opening:
        return (opening[1] or opening[2]).upper()
    first_line = re.match(rf"\W*([{upper}])\W*\n", content)
    if first_line:
        return first_line[1]
    # A lone capital. "A" is also an article, and "I" a pronoun, unless brackets or the next word say otherwise.
    article = r"(?<=[AI]) (?!(?:is|are|was|because|since|as)\b)[a-z]"
    free = re.findall(rf"\(([{either}])\)|(?<![\w'’-])([{upper}])(?![\w'’-])(?!{article})", content)
    if not free:
        return None
    return "".join(free[0] if marked else free[-1]).upper()


def _letter_of_choice(content: str, letters: str, choices: Sequence[str] | None) -> str | None:
    """The letter of the one option whose text is `content`, up to case and outer punctuation."""

    def plain(text: str) -> str:
        return re.sub(r"^\W+|\W+$", "", clean(str(text))).casefold()

    hits = [letter for letter, choice in zip(letters, choices or (), strict=False) if plain(choice) == plain(content)]
    return hits[0] if len(hits) == 1 and plain(content) else None
