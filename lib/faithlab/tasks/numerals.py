"""Numbers as models write them, and the arithmetic written around them.

`read_chains` reads cleaned text (`markers.clean`) as *chains*: expressions joined by equals signs, such as
``3 + 4 = 7``, between words and punctuation. The value of a chain is that of its last expression, if that is a single
number or a quotient or mixed number (``14``, ``-3``, ``1,234.50``, ``1/2``, ``2 1/2``, ``50%``, ``3e2``). ``3 + 4``
alone has no value: whoever answers with a sum still to be done has not answered, and a model could earn the reward of
an arithmetic task by repeating the question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 300  # longer numerals are read as having no value; Python itself refuses to convert 4,301 digits

_ARGUMENT = r"(?:\s?\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*+\})*+\})*+\})"
_TOKEN = re.compile(
    r"(?P<number>(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+|(?<![0-9])\.[0-9]++)"
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z]))?+)(?P<percent> ?%)?"
    r"|(?P<power>\^ ?-?(?:\w|" + _ARGUMENT + r")|\*\*)"
    r"|(?P<sign>[-+*/()])"
    r"|(?P<equals>=)"
    # Symbols that change the value of a number beside them: roots, pi, a variable glued to its factor.
    r"|(?P<symbol>\\(?:[dtc]?frac|sqrt|binom|log|ln|exp|sin|cos|tan|pi|infty)(?![a-z])"
    rf"(?:\[[^\[\]]{{0,9}}\])?{_ARGUMENT}{{0,2}}+|\bsqrt ?\([^()]{{0,60}}\)|[√π]|(?<=[0-9)])[xyz](?!\w))"
    r"|(?P<line>\n)"
    r"|(?P<other>\\[A-Za-z]++|[^\W\d_][\w'-]*+|\S)"
)


@dataclass(frozen=True)
class Number:
    """An exact value, and whether a percent sign followed it (the value is the figure before the sign)."""

    value: Fraction
    percent: bool = False


@dataclass(frozen=True)
class Chain:
    """Expressions joined by equals signs, in the text from `start` to `end`."""

    text: str  # the last expression as it stands
    value: Number | None  # of the last expression; None if that is not a single number
    equation: bool  # an equals sign stands before the last expression
    symbolic: bool  # the last expression holds powers, roots or other symbols: a case for math-verify
    unfinished: bool  # the text ends in the equals sign
    start: int
    end: int


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int
    percent: bool = False


def _tokens(text: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        percent = kind == "percent"
        if percent:
            kind = "number"
        found.append(_Token(kind, match[kind], match.start(), match.end(), percent))
    return found


def _to_fraction(text: str) -> Fraction | None:
    if len(text) > MAX_DIGITS:
        return None
    return Fraction(text.replace(",", ""))


def _value(expression: list[_Token]) -> Number | None:
    """The value of an expression that is one number, a quotient of two, or a mixed number; else None."""
    tokens = [t for t in expression if t.text not in "()"]
    sign = 1
    if tokens and tokens[0].text in "+-":
        sign = -1 if tokens[0].text == "-" else 1
        tokens = tokens[1:]
    while tokens and tokens[-1].kind == "sign":  # a dash or a list mark behind the number
        tokens = tokens[:-1]
    numbers = [_to_fraction(t.text) for t in tokens if t.kind == "number"]
    if None in numbers:
        return None
    match [t.text if t.kind == "sign" else t.kind for t in tokens]:
        case ["number"]:
            value = numbers[0]
        case ["number", "/", "number"] if numbers[1]:
            value = numbers[0] / numbers[1]
        case ["number", "number", "/", "number"] if numbers[2]:
            value = numbers[0] + numbers[1] / numbers[2]
        case _:
            return None
    return Number(sign * value, tokens[-1].percent)


def _chain(text: str, parts: list[list[_Token]], unfinished: bool) -> Chain:
    last = parts[-1] or parts[-2]
    start, end = last[0].start, last[-1].end
    symbolic = any(t.kind in ("power", "symbol") for t in last)
    value = None if symbolic or unfinished else _value(last)
    first = next(part for part in parts if part)[0].start
    said = text[start:end]
    if value is None:
        said = said.strip(" *+-/")
    return Chain(said, value, len(parts) > 1, symbolic, unfinished, first, end)


def read_chains(text: str) -> list[Chain]:
    """All chains in cleaned `text` that hold a number or a symbol, in order.

    A line that starts with a dash and a space is an item of a list, not a negative number, unless it is the only line.
    """
    tokens = _tokens(text)
    lines = "\n" in text
    chains: list[Chain] = []
    parts: list[list[_Token]] = [[]]

    def close(unfinished: bool = False) -> None:
        nonlocal parts
        if any(t.kind in ("number", "symbol") for t in parts[-1] or (parts[-2] if len(parts) > 1 else [])):
            chains.append(_chain(text, parts, unfinished))
        parts = [[]]

    for index, token in enumerate(tokens):
        before = parts[-1][-1] if parts[-1] else None
        if token.kind in ("other", "line"):
            close()
        elif token.kind == "equals":
            if parts[-1] or len(parts) == 1:
                parts.append([])
        elif token.kind in ("number", "symbol"):
            if before is None or token.kind == "symbol" or before.kind == "symbol":
                joined = True  # also 2 \sqrt{3}
            elif before.kind == "number":  # only in a mixed number, 2 1/2, does one number follow another
                fraction = index + 1 < len(tokens) and tokens[index + 1].text == "/"
                joined = fraction and all(t.text != "/" for t in parts[-1])
            else:
                joined = before.text != ")"
            if not joined:
                close()
            parts[-1].append(token)
        else:
            bullet = token.text == "-" and before is None and lines and text[token.end : token.end + 1] == " "
            if bullet and text[token.start - 1 : token.start] in ("", "\n"):
                continue
            if token.text == "(" and before and before.kind == "number":
                close()  # Ben (3)
            parts[-1].append(token)
    unfinished = bool(tokens) and tokens[-1].kind == "equals" and len(parts) > 1
    close(unfinished)
    return chains


def read_number(text: str) -> Number | None:
    """The number that all of cleaned `text` is, up to a full stop behind it; None if it is anything else."""
    text = text.removesuffix(".").rstrip()
    match read_chains(text):
        case [chain] if (chain.start, chain.end) == (0, len(text)):
            return chain.value
    return None


def same(a: Number, b: Number) -> bool:
    """Whether two numbers are equal as answers: integers exactly, others to one part in a million, at most 1e-6.

    Where just one of them has a percent sign, it may be left out or worked out: 50% is 50 and is 0.5.
    """
    if a.percent != b.percent:
        plain, percent = (a, b) if b.percent else (b, a)
        return _close(percent.value, plain.value) or _close(percent.value / 100, plain.value)
    return _close(a.value, b.value)


def _close(a: Fraction, b: Fraction) -> bool:
    return a == b or (
        (a.denominator != 1 or b.denominator != 1) and abs(a - b) <= Fraction(1, 10**6) * min(Fraction(1), abs(b))
    )
