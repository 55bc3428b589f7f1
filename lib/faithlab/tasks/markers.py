"""Where in a model's text its final answer stands.

Text is first cleaned (`clean`): typographic minus signs, markdown bold, LaTeX spacing and currency signs go, so that
the patterns below and in `numerals` see one spelling. Then `find_answer` looks for a marked answer. When several kinds
of marker occur, the first of this list that carries a value is taken, and of one kind the last:

1. a box, ``\\boxed{14}``
2. a tag, ``<answer>14</answer>``
3. the GSM8K mark, ``#### 14``
4. a phrase, ``The answer is 14``, ``Answer: 14``, ``the correct option is B``

Everything here takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARS = 20_000  # only the end of a longer text is read: final answers stand there

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"),  # minus, en dash, small and full-width hyphen
        **dict.fromkeys("×⋅·∗", "*"),
        **dict.fromkeys("÷⁄∕", "/"),
        **{chr(0xFF10 + d): str(d) for d in range(10)},  # full-width digits
        **{"（": "(", "）": ")", "：": ":", "％": "%", "`": " ", "\r": "\n", "\x00": " "},
    }
)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s?\{([^{}]*+)\}")
# In this order: each line relies on the ones above it.
_SPELLINGS = (
    (re.compile(r"<<[^<>]*+>>"), ""),  # calculator notes of GSM8K, as in $<<4+2=6>>6
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\,|\\!|,\\!|[\u00a0\u2009\u202f])(?=[0-9]{3})"), ","),  # thousands
    (re.compile(r"\\(?:[,;:! ]|(?:left|right|displaystyle|q?quad)(?![a-z]))|[\t\f\v\u00a0\u2009\u202f~]"), " "),
    (re.compile(r"-\s?(?:\\?\$|[€£])"), "-"),
    (re.compile(r"\\?\$|[€£]|\\[()\[\]]"), " "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\^ ?\{? ?\\circ(?![a-z]) ?\}?|°"), " "),  # degrees are a unit
    (re.compile(r"\\(?:times|cdot|ast)(?![a-z])"), "*"),
    (re.compile(r"\\div(?![a-z])"), "/"),
    (re.compile(r"(-?)\\[dtc]?frac\s?([0-9])([0-9])(?![0-9])"), r" \1\2/\3"),
    (re.compile(r"(-?)\\[dtc]?frac\s?\{\s?(-?[0-9]++)\s?\}\s?\{\s?([0-9]++)\s?\}"), r" \1\2/\3"),
    (re.compile(r"(?<![\w)*])\*\*(?=[^\s*])|(?<=[^\s*])\*\*(?![\w(*])"), ""),  # bold, but not the power in 2**3
    (re.compile(r"(?<=[0-9])\s?\*\s?10\s?\^\s?\{?\s?([-+]?[0-9]{1,3})\s?\}?(?![0-9])"), r"e\1"),  # 3 * 10^2
    (re.compile(r"[ ]+"), " "),
    (re.compile(r"(?: ?\n ?)+"), "\n"),
    (re.compile(r"\n?=\n?"), "="),  # equations broken over lines
)


def clean(text: str) -> str:
    """`text` in one spelling (see the module's head), at most its last `MAX_CHARS` characters, without outer space."""
    text = text[-MAX_CHARS:].translate(_CHARACTERS)
    text = _WRAPPED.sub(r" \1 ", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text.strip()


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``; nothing if a ``<think>`` was opened and never closed; else the whole text."""
    head, closed, rest = text.rpartition("</think>")
    if "<think>" in rest:
        return ""
    return rest if closed else head + rest


@dataclass(frozen=True)
class Marked:
    """A marked answer: the kind of its marker and the text it marks, empty if the text stops before it."""

    kind: str  # "box", "tag", "hashes" or "phrase"
    content: str


_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\[{}]|[{}]")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s?([A-Za-z0-9])(?![A-Za-z0-9])")
_TAG = re.compile(r"<answer>([^<]*+)", re.IGNORECASE)
_HASHES = re.compile(r"####[ ]?([^\n#]*+)")
_PHRASE = re.compile(
    r"\b(?:answer|(?:correct|right|best) (?:option|choice))\b[^.\n:=]{0,60}?"
    r"(?:\b(?:is|was|be|equals)\b(?! not\b)|[:=])[ :=]*+\n?",
    re.IGNORECASE,
)


def _boxes(text: str) -> list[str]:
    """Contents of all boxes in order of opening; the content of a box that is never closed is empty."""
    found: list[str] = []
    open_braces: list[tuple[int, int]] = []  # (index in `found` or -1, where the content starts)
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            if open_braces:
                index, start = open_braces.pop()
                if index >= 0:
                    found[index] = text[start : match.start()].strip()
        elif token in ("\\{", "\\}"):
            continue  # a brace that is printed, not one that groups
        elif token == "{":
            open_braces.append((-1, 0))
        else:
            open_braces.append((len(found), match.end()))
            found.append("")
    return found or _BARE_BOX.findall(text)


def _phrases(text: str) -> list[str]:
    """What follows each answer phrase, up to the end of its line or the next phrase."""
    found = list(_PHRASE.finditer(text))
    ends = [*[match.start() for match in found[1:]], len(text)]
    return [text[match.end() : end].partition("\n")[0] for match, end in zip(found, ends, strict=False)]


def find_answer(text: str) -> Marked | None:
    """The marked answer in cleaned `text`, or None if no marker occurs.

    A marker without content is passed over for one with content. If no marker has any, the text was cut off right
    behind it, and the result's content is empty.
    """
    seen = None
    for kind, contents in (
        ("box", _boxes(text)),
        ("tag", _TAG.findall(text)),
        ("hashes", _HASHES.findall(text)),
        ("phrase", _phrases(text)),
    ):
        for content in reversed(contents):
            if any(c.isalnum() for c in content):
                return Marked(kind, content.strip())
            seen = Marked(kind, "")
    return seen
