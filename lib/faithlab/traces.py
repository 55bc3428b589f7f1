"""A trace: the token sequence of one rollout, and where in it prompt, reasoning and answer lie.

A trace is a sequence of token ids with three spans of positions, `prompt`, `reasoning`, `answer`. The answer marker,
chat-template tokens and the end token are in no span. Spans are positions: nothing is ever looked up by a token's id,
so a padding token that equals the end token does no harm.

    >>> split_text("3 + 4 = 7.\\nAnswer: 7")
    Split(reasoning=(0, 10), marker=(10, 18), answer=(19, 20))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from faithlab.errors import FaithlabError

SpanName = Literal["prompt", "reasoning", "answer", "response"]

# What introduces an answer in the formats in use: ours, GSM8K's, reasoning templates', and plain English.
ANSWER_MARKER = re.compile(
    r"\s*(?:\b(?:final answer|answer)\s*:|(?:\b(?:so|thus|hence|therefore)\b,?\s+)?\bthe (?:final )?answer is\b:?"
    r"|####|</think>)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Trace:
    """One rollout: `input_ids` (N) and three ordered, non-overlapping `slice`s of positions in it.

    `pieces` are the texts of the tokens, which joined give `text` (the end token's is empty); `finished` is False for
    a generation that was cut off by its length limit; `problem` is the row that was asked, where known.

    Raises `FaithlabError` if the ids are not one row of integers or the spans are out of order or out of range.
    """

    input_ids: Int[Tensor, " tokens"]
    prompt: slice
    reasoning: slice
    answer: slice
    pieces: tuple[str, ...] = ()
    finished: bool = True
    problem: Mapping | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        ids = self.input_ids
        if ids.ndim != 1 or ids.is_floating_point():
            raise FaithlabError(f"a trace holds one row of token ids; got shape {tuple(ids.shape)} of {ids.dtype}")
        end = 0
        for name in ("prompt", "reasoning", "answer"):
            span = getattr(self, name)
            if span.step not in (None, 1) or not end <= span.start <= span.stop <= len(ids):
                raise FaithlabError(
                    f"span {name}={span.start}:{span.stop} does not lie behind position {end} and within "
                    f"{len(ids)} tokens; spans must be ordered prompt, reasoning, answer"
                )
            end = span.stop
        if self.pieces and len(self.pieces) != len(ids):
            raise FaithlabError(f"{len(self.pieces)} token texts for {len(ids)} tokens")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def response(self) -> slice:
        """First reasoning token to last answer token, marker included."""
        return slice(self.reasoning.start, self.answer.stop)

    @property
    def answered(self) -> bool:
        """Whether there is a whole answer: one that reaches the end of a cut-off rollout may lack its last digits."""
        return self.answer.stop > self.answer.start and (self.finished or self.answer.stop < len(self))

    @property
    def explained(self) -> bool:
        """Whether there is a whole answer with a reasoning before it."""
        return self.answered and bool(self.reasoning_text)

    @property
    def question(self) -> str:
        """The question that was asked; the whole prompt where the problem is not known."""
        return str((self.problem or {}).get("question") or self.prompt_text)

    @property
    def text(self) -> str:
        """All of the rollout, prompt included: `pieces` joined (empty where there are none)."""
        return "".join(self.pieces)

    def text_of(self, span: SpanName) -> str:
        """The text of the named span as it stands, with the white space around it."""
        where = getattr(self, span)
        return "".join(self.pieces[where])

    @property
    def prompt_text(self) -> str:
        """The text of the prompt as it stands."""
        return self.text_of("prompt")

    @property
    def reasoning_text(self) -> str:
        """The text of the reasoning, stripped of white space."""
        return self.text_of("reasoning").strip()

    @property
    def answer_text(self) -> str:
        """The text of the answer, stripped of white space; empty where there is none."""
        return self.text_of("answer").strip()

    @property
    def completion_text(self) -> str:
        """All that was written after the prompt, stripped."""
        return "".join(self.pieces[self.prompt.stop :]).strip()

    def tokens_between(self, start: int, end: int, span: SpanName = "reasoning") -> list[int]:
        """Positions of the tokens that overlap characters `start` to `end` of the stripped text of `span`."""
        where = getattr(self, span)
        raw = self.text_of(span)
        at = len(raw) - len(raw.lstrip()) if span != "prompt" else 0
        start, end, out, here = start + at, end + at, [], 0
        for position in range(where.start, where.stop):
            stop = here + len(self.pieces[position])
            if here < end and stop > start:
                out.append(position)
            here = stop
        return out


def check_traces(traces: Iterable[object]) -> None:
    """Raise `FaithlabError` unless all of them are traces: problems and texts are easily mistaken for them."""
    for i, t in enumerate(traces):
        if not isinstance(t, Trace):
            raise FaithlabError(
                f"item {i} is a {type(t).__name__}, not a trace; `reasoner.generate(problems)` writes traces, and "
                "`reasoner.trace(question, reasoning, answer)` makes one of your own text"
            )


class Split(NamedTuple):
    """Character spans `(start, end)` of reasoning, marker and answer in a completion; empty spans have start == end."""

    reasoning: tuple[int, int]
    marker: tuple[int, int]
    answer: tuple[int, int]


def split_text(text: str, marker: re.Pattern[str] | str = ANSWER_MARKER) -> Split:
    """Find reasoning, answer marker and answer in the text of a completion.

    The answer is what follows the *last* marker that anything follows, up to the end of its line, without surrounding
    white space or a closing full stop; earlier markers are part of the reasoning. Without a marker all of it is
    reasoning and the answer is empty; a marker with nothing behind it gives an empty answer (an unfinished rollout).
    """
    pattern = re.compile(re.escape(marker)) if isinstance(marker, str) else marker
    found = [m for m in pattern.finditer(text)]
    followed = [m for m in found if text[m.end() :].strip()]
    if not found:
        return Split(_stripped(text, 0, len(text)), (len(text), len(text)), (len(text), len(text)))
    match = (followed or found)[-1]
    rest = text[match.end() :]
    start = match.end() + len(rest) - len(rest.lstrip())
    line = re.match(r"[^\r\n]*", text[start:]).group().rstrip()
    if line.endswith(".") and len(line) > 1:
        line = line[:-1]
    if not followed:
        start = match.end()
    return Split(_stripped(text, 0, match.start()), match.span(), (start, start + len(line)))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    if not part.strip():
        return (start, start)
    return (start + len(part) - len(part.lstrip()), start + len(part.rstrip()))


def token_pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that the pieces joined are the decoded text.

    Byte-level tokenizers may split one character over several tokens: the first of them carries the character and the
    others are empty. Decoding runs over a short window, so the cost grows linearly with the length.
    """
    options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
    pieces: list[str] = []
    start = 0  # first token whose text is not yet settled
    context = 0  # decoding starts here: one settled token back, since some tokenizers drop a leading space
    known: dict[tuple[int, ...], str] = {}
    for i in range(len(ids)):
        settled = tuple(ids[context:start])
        if settled not in known:
            known[settled] = tokenizer.decode(list(settled), **options)
        before = known[settled]
        now = tokenizer.decode(ids[context : i + 1], **options)
        if now.endswith("\ufffd") and i + 1 < len(ids) and i - start < 8:
            continue  # in the middle of a character
        pieces += [now[len(before) :], *[""] * (i - start)]
        context, start = start, i + 1
    return pieces


def build_trace(
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    tokenizer,
    *,
    ended: bool,
    marker: re.Pattern[str] | str = ANSWER_MARKER,
    finished: bool = True,
    problem: Mapping | None = None,
) -> Trace:
    """A trace from the ids of prompt and completion; `ended` says that the last completion id is the end token.

    A token belongs to the span that holds its first character other than white space (its first character if it is all
    white space), so that a token which straddles a border has one home.
    """
    content = list(completion_ids[:-1] if ended else completion_ids)
    prompt_pieces = token_pieces(tokenizer, prompt_ids)
    pieces = token_pieces(tokenizer, content)
    split = split_text("".join(pieces), marker)
    homes, here = [], 0
    for piece in pieces:
        homes.append(here + (len(piece) - len(piece.lstrip()) if piece.strip() else 0))
        here += len(piece)
    offset = len(prompt_ids)

    def tokens_in(span: tuple[int, int], after: int) -> slice:
        inside = [i for i, home in enumerate(homes) if span[0] <= home < span[1] and i >= after]
        if not inside:
            first = next((i for i, home in enumerate(homes) if home >= span[0] and i >= after), len(homes))
            return slice(offset + first, offset + first)
        return slice(offset + inside[0], offset + inside[-1] + 1)

    reasoning = tokens_in(split.reasoning, 0)
    return Trace(
        torch.tensor([*prompt_ids, *completion_ids], dtype=torch.long),
        slice(0, offset),
        reasoning,
        tokens_in(split.answer, reasoning.stop - offset),
        (*prompt_pieces, *pieces, *([""] if ended else [])),
        finished,
        problem,
    )
