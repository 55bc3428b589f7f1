"""Countdown answers: does an arithmetic expression use exactly the given numbers and reach the target?

The rule is reasoning-gym's own: every given number exactly once, also where a wording of the question says "at most
once". Allowed are whole numbers, + - * /, signs and brackets; values are exact fractions, so 8/3*3 is 8. The expression
is parsed into a syntax tree and never executed.

    >>> score_expression("(3 + 4) * 2 = 14", [2, 3, 4], 14).status
    'right'
    >>> score_expression("3 * 4 + 2 + 0", [2, 3, 4], 14).status
    'wrong'
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from fractions import Fraction

from faithlab.tasks.markers import find_answer
from faithlab.tasks.scoring import UNANSWERED, Score, readable

MAX_CHARS = 400  # of an expression; a problem of fifteen numbers needs less

_FORM = re.compile(r"[0-9+\-*/() ]+")
# A stretch of text that could be an expression, with the right-hand sides that may follow it.
_STRETCH = re.compile(r"(?:[0-9(]|-(?=[ ]?[0-9(]))[0-9+\-*/()= ]*+")
_BULLET = re.compile(r"^- ", re.MULTILINE)  # in a text of several lines a list, not a minus sign
_OPERATIONS = {ast.Add: Fraction.__add__, ast.Sub: Fraction.__sub__, ast.Mult: Fraction.__mul__}


class _Unusable(Exception):
    """Not an arithmetic expression of the allowed form."""


def score_expression(prediction: str | None, numbers: Sequence[int], target: int) -> Score:
    """Score a text that should hold a countdown solution.

    Args:
        prediction: the expression, bare or in a longer response: behind a marker (see `markers`), or else the last
            stretch of the text that looks like arithmetic. "= 14" may stand beside it, and must be the target.
        numbers: the numbers given.
        target: the value to reach.

    Returns:
        "unanswered" for a text without arithmetic and digits; "wrong" for anything that is not a solution.
    """
    text = readable(prediction)
    marked = find_answer(text)
    if marked is not None:
        text = marked.content
    if not text:
        return UNANSWERED
    answer = _last_expression(text)
    if answer is None:
        # Words where an expression should stand: behind a marker that is an answer, elsewhere it is chatter.
        return Score.of(False, text) if marked or any(c.isdigit() for c in text) else UNANSWERED
    return Score.of(_solves(answer, numbers, target), answer)


def _last_expression(text: str) -> str | None:
    """The last stretch of arithmetic with an operator in it, else the last with a digit."""
    if "\n" in text:
        text = _BULLET.sub("", text)
    stretches = [m.group().rstrip(" =+-*/") for m in _STRETCH.finditer(text)]
    stretches = [s for s in stretches if any(c.isdigit() for c in s)]
    with_operator = [s for s in stretches if re.search(r"[-+*/]", s[1:])]
    return (with_operator or stretches or [None])[-1]


def _solves(answer: str, numbers: Sequence[int], target: int) -> bool:
    sides = [side.strip() for side in answer.split("=")]
    if len(sides) == 2:
        if sides[1] == str(target):
            sides = sides[:1]
        elif sides[0] == str(target):
            sides = sides[1:]
    if len(sides) != 1:
        return False
    try:
        tree = _parse(sides[0])
        used = sorted(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        # The numbers are compared first: that bounds the size of everything computed below.
        return used == sorted(numbers) and _evaluate(tree) == target
    except (_Unusable, ZeroDivisionError, RecursionError):
        return False


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_CHARS or not _FORM.fullmatch(text):
        raise _Unusable
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: deep nesting
        raise _Unusable from error


def _evaluate(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() as value):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _evaluate(left) / _evaluate(right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_evaluate(left), _evaluate(right))
    raise _Unusable
