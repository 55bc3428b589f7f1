"""What kinds of words a text is made of: numbers, symbols, stop words, content words.

A text is cut into numbers (`12`, `3.5`, `1,200`), words (runs of letters) and symbols (any other single character that
is not white space). Stop words are the words that carry grammar rather than content (`STOP_WORDS`, in English).
"""

from __future__ import annotations

import math
import re

PIECES = re.compile(r"(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_]+)|(?P<symbol>\S)")
_GRAMMAR = """
    a an the this that these those it its he him his she her they them their we us our you your i me my who which what
    and or but so if then than as of to in on at by for with from into about after before is are was were be been am do
    does did has have had can could will would shall should may might must not no there here let also just now
"""
STOP_WORDS = frozenset(_GRAMMAR.split())


def content_words(text: str) -> set[str]:
    """The distinct content words and numbers of a text, in lower case."""
    found = {m.group() for m in PIECES.finditer(text.casefold()) if m.lastgroup != "symbol"}
    return found - STOP_WORDS


def shares(text: str) -> dict[str, float]:
    """Shares of `numbers`, `symbols` and `stop_words` among all numbers, words and symbols of a text, each in [0, 1];
    NaN for a text without any.

    >>> shares("Ben has 3 + 4.")
    {'numbers': 0.3333333333333333, 'symbols': 0.3333333333333333, 'stop_words': 0.16666666666666666}
    """
    found = [(m.lastgroup, m.group()) for m in PIECES.finditer(text)]
    if not found:
        return dict.fromkeys(("numbers", "symbols", "stop_words"), math.nan)
    counts = dict(
        numbers=sum(kind == "number" for kind, _ in found),
        symbols=sum(kind == "symbol" for kind, _ in found),
        stop_words=sum(kind == "word" and piece.casefold() in STOP_WORDS for kind, piece in found),
    )
    return {name: count / len(found) for name, count in counts.items()}
