"""What can be said about one answer: scores of its reasoning's tokens and sentences, the flow's backbone, a verdict.

    question --Trace--> scores · backbone · curve · fresh rollouts --> Explanation --> page.py (HTML), JSON, PNG

Nothing here draws; an `Explanation` holds plain numbers and texts and goes to JSON as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from faithlab import verdict
from faithlab.biases import context_window
from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.faithfulness import reasoning_effect
from faithlab.flow import Flow, flow_of
from faithlab.intervals import mean_interval
from faithlab.likelihood import Variant, variant_logp
from faithlab.ranking import highest_first
from faithlab.shown_scores import KINDS, Measured, measure, plain
from faithlab.tasks.numerals import Number, read_number, same
from faithlab.tasks.scoring import gold_of, readable, same_answer
from faithlab.traces import Trace
from faithlab.units import PARTS, Part, question_positions, units_of

EDGES = 40  # of the backbone
SHOWN = 0.05  # nats: smaller effects are not called strong
WORD = 24  # characters; longer runs, as of a script without spaces, are named by their strongest token
HIDDEN = {"effect": "Hidden from all that follows", "direct": "Hidden from the answer"}


@dataclass(frozen=True)
class Explanation:
    """One question, reasoning and answer, and what was found out about them.

    `tokens` are (text, part) of the whole trace up to the answer, the part being "prompt", "question", "reasoning",
    "marker" or "answer". `first` is the position of the first reasoning token. `scores[kind]` holds a value a reasoning
    token, `sentence_scores[kind]` one a sentence (None where undefined), `sentences` the (first, last) token of each.
    `in_question` has the same four of the question, as far as they are measured of it (`faithlab.shown_scores`).
    `edges` are (source, target, flow), strongest first. `curve[k]` is log p(answer) in nats with only the first k
    sentences in sight of the answer. `rollouts` are effects in nats of fresh rollouts of the same question.
    """

    reasoner: str
    question: str
    reasoning: str
    answer: str
    gold: str | None
    right: bool | None
    pasted: bool
    tokens: list[tuple[str, str]]
    first: int
    sentences: list[tuple[int, int]]
    logp: float
    logp_hidden: float
    verdict: str
    says: str
    scores: dict[str, list[float | None]]
    sentence_scores: dict[str, list[float | None]]
    edges: list[tuple[int, int, float]]
    curve: list[float]
    rollouts: dict[str, Any]
    in_question: Measured
    notes: list[str] = field(default_factory=list)

    @property
    def effect(self) -> float:
        """log p(answer) less log p(answer | reasoning hidden), in nats."""
        return self.logp - self.logp_hidden

    @property
    def hardly(self) -> bool:
        """Whether the answer was given, and is one that the reasoner would hardly ever write behind the reasoning."""
        return self.pasted and verdict.hardly_written(self.logp)

    @property
    def judged(self) -> str:
        """The answer, and whether it is right where that is known: "7 (wrong: 8 is right)"."""
        return self.answer + (
            "" if self.right is None else " (right)" if self.right else f" (wrong: {self.gold} is right)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is null."""
        content = asdict(self) | {"effect": self.effect}
        content |= {"beyond": beyond(self), "how_often_wrong": verdict.how_often_wrong()}
        content["kinds"] = {k: KINDS[k]._asdict() for k in self.scores}
        return content


def explain(
    reasoner,
    trace: Trace,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    pasted: bool = False,
    samples: int = 8,
    seed: int = 0,
    max_new_tokens: int | None = None,
    thorough: bool = False,
    progress: bool = False,
) -> Explanation:
    """Everything about one trace.

    Args:
        reasoner: who wrote it, or who is asked about a reasoning that somebody else wrote (`pasted`).
        kinds: which scores, of `KINDS`.
        samples: fresh rollouts of the same question at temperature 1, of at most `max_new_tokens` tokens (by default
            the reasoner's limit), which say how far the verdict holds beyond this one; 0 for none.
        thorough: compute the relayed effects of single tokens however long they take.

    Raises:
        FaithlabError: no answer, no reasoning, an unknown score, or a trace longer than the model's window.
    """
    check_number("samples", samples, 0, whole=True)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("score", kind, KINDS)
    _explainable(reasoner, trace)
    notes = _absent(trace)
    sentences = units_of(trace, "sentence")
    flow = flow_of(reasoner, trace)
    options = dict(thorough=thorough, notes=notes, progress=progress)
    reasoning, question = (measure(reasoner, trace, kinds, flow, of=part, **options) for part in PARTS)
    if question.first is None:
        notes.append("The prompt words the question in another way, so that no word of the question could be measured.")
    table = reasoning_effect(reasoner, [trace]).iloc[0]
    said = verdict.judge(table["logp"], table["logp_hidden"], reader=reasoner.name if pasted else None)
    gold = gold_of(trace.problem) or None
    return Explanation(
        reasoner=reasoner.name,
        question=trace.question,
        reasoning=trace.reasoning_text,
        answer=trace.answer_text,
        gold=gold,
        right=None if gold is None else same_answer(trace.answer_text, gold, gold),
        pasted=pasted,
        tokens=list(zip(trace.pieces[: trace.answer.stop], _spans(trace), strict=True)),
        **vars(reasoning),
        in_question=question,
        logp=float(table["logp"]),
        logp_hidden=float(table["logp_hidden"]),
        verdict=said.name,
        says=said.text,
        edges=_backbone(flow, notes),
        curve=_curve(reasoner, trace, sentences),
        rollouts=_rollouts(reasoner, trace, samples, seed, max_new_tokens, progress),
        notes=notes,
    )


def _explainable(reasoner, trace: Trace) -> None:
    if not trace.answered:
        raise FaithlabError(
            f"{reasoner.name} gave no answer here (no answer marker, or cut off): {trace.completion_text[-80:]!r}. "
            "Show it the form with --examples TASK, allow more with --max-new-tokens, or give --reasoning and --answer"
        )
    if trace.reasoning.stop == trace.reasoning.start:
        raise FaithlabError("there is no reasoning in front of the answer, so there is nothing to explain it by")
    window = context_window(reasoner.model)
    if window and len(trace) > window:
        raise FaithlabError(f"the trace has {len(trace)} tokens, and {reasoner.name} reads {window}; shorten it")


def _absent(trace: Trace) -> list[str]:
    """A note where the answer is a number that the reasoning does not hold in digits; signs and units do not count."""
    answer = read_number(readable(trace.answer_text))
    if answer is None:
        return []
    text = readable(trace.reasoning_text)
    words = re.findall(r"[0-9]+(?:[.,/][0-9]+)*%?", text) + re.findall(r"[0-9]+", text)  # 6/2 is 3, and holds 6 and 2
    held = filter(None, map(read_number, words))
    if any(same(Number(abs(answer.value), answer.percent), number) for number in held):
        return []
    return [f"The answer's value, {trace.answer_text.strip()}, does not occur in the reasoning as a number."]


def _spans(trace: Trace) -> list[str]:
    """The name of the part that each token up to the answer's last belongs to; of the prompt, the question's tokens are
    told from the rest (instruction, examples, template)."""
    out = ["marker"] * trace.answer.stop
    for name in ("prompt", "reasoning", "answer"):
        where = getattr(trace, name)
        out[where] = [name] * (where.stop - where.start)
    for position in question_positions(trace):
        out[position] = "question"
    return out


def _backbone(flow: Flow, notes: list[str]) -> list[tuple[int, int, float]]:
    if not flow.reachable:
        notes.append("The answer cannot be reached from the question on the attention graph: there is no flow.")
        return []
    return [(int(e.source), int(e.target), float(f"{e.flow:.4g}")) for e in flow.backbone(EDGES).itertuples()]


def _curve(reasoner, trace: Trace, sentences) -> list[float]:
    """log p(answer) where the answer sees the first k sentences only, k from none to all."""
    everything = range(trace.reasoning.start, trace.reasoning.stop)
    borders = [s[0] for s in sentences[1:]] + [trace.reasoning.stop]
    variants = [Variant(0, hidden=tuple(p for p in everything if p >= b)) for b in [trace.reasoning.start, *borders]]
    return [float(f"{v:.4g}") for v in variant_logp(reasoner, [trace], variants).tolist()]


def _rollouts(reasoner, trace: Trace, samples: int, seed: int, limit: int | None, progress: bool) -> dict[str, Any]:
    """What fresh rollouts of the same question say: the effect of each, its mean with interval, how many agree."""
    if not samples:
        return dict(n=0, effects=[], mean=None, low=None, high=None, agree=None)
    options = dict(n=samples, seed=seed, max_new_tokens=limit, progress=progress)
    written = [t for t in reasoner.generate([trace.problem or {"question": trace.question}], **options) if t.answered]
    effects = reasoning_effect(reasoner, written)["effect"].tolist() if written else []
    where = mean_interval(effects)
    agree = sum(same_answer(t.answer_text, trace.answer_text, gold_of(trace.problem)) for t in written)
    mean, low, high = plain([where.value, where.low, where.high])
    return dict(n=samples, answered=len(written), effects=plain(effects), mean=mean, low=low, high=high, agree=agree)


def strongest(
    explanation: Explanation, kind: str, k: int = 5, *, of: Part = "reasoning", level: str = "token"
) -> list[tuple[int, float]]:
    """The `k` tokens of a part, or its sentences, with the highest score above 0, fewer if there are not so many:
    (position, value), of a sentence the position of its first token.

    Of effects in nats it is those of the largest size, at least `SHOWN`, for the answer or (below 0) against it.
    """
    part = explanation if of == "reasoning" else explanation.in_question
    scores = part.scores if level == "token" else part.sentence_scores
    values = np.array([np.nan if v is None else v for v in scores[kind]], dtype=float)
    starts = (
        [part.first + i for i in range(len(values))] if level == "token" else [first for first, _ in part.sentences]
    )
    sizes, least = (np.abs(values), SHOWN) if KINDS[kind].unit == "nats" else (values, np.nextafter(0, 1))
    return [(starts[i], float(values[i])) for i in highest_first(sizes)[:k].tolist() if sizes[i] >= least]


def beyond(explanation: Explanation) -> str:
    """A sentence on how far the verdict holds beyond this one reasoning: what fresh rollouts of the question say."""
    r = explanation.rollouts
    if not r["n"]:
        return "No fresh rollouts were made, so this is about this one reasoning only."
    if not r["answered"]:
        return f"None of {r['n']} fresh rollouts of the question came to an answer."
    interval = "" if r["low"] is None else f" (95 % interval {r['low']:z.1f} to {r['high']:z.1f})"
    asked = f"{r['n']} fresh rollout{'s' * (r['n'] > 1)} of the question (temperature 1)"
    came = "" if r["answered"] == r["n"] else f", of which {r['answered']} came to an answer,"
    whose = f"{explanation.reasoner}'s own reasoning, not the given one," if explanation.pasted else "the reasoning"
    if r["answered"] == 1:
        same = "the same" if r["agree"] else "another"
        return f"In {asked}{came} {whose} is worth {r['mean']:z.1f} nats; the answer is {same}."
    spread = f"single ones from {min(r['effects']):z.1f} to {max(r['effects']):z.1f}"
    mean = f"{whose} is worth {r['mean']:z.1f} nats on average{interval}, {spread}"
    return f"Over {asked}{came} {mean}; {r['agree']} of them answer the same."


def question_words(explanation: Explanation, k: int = 3) -> str:
    """A sentence that names the `k` words of the question which change log p(answer) most, either way, by at least
    `verdict.DECORATION` nats; a word counts by its strongest token. "" where no effect of single tokens is known."""
    part = explanation.in_question
    kind = next((kind for kind in HIDDEN if any(v is not None for v in part.scores.get(kind, ()))), None)
    if kind is None:
        return ""
    values = [v or 0.0 for v in part.scores[kind]]
    pieces = [text for text, _ in explanation.tokens[part.first : part.first + len(values)]]
    found = []
    for start, stop in _words(pieces):
        place = max(range(start, stop), key=lambda i: abs(values[i]))
        word = "".join(pieces[start:stop]).strip()
        found.append((values[place], word if len(word) <= WORD else pieces[place].strip()))
    top = [f for f in sorted(found, key=lambda f: -abs(f[0]))[:k] if abs(f[0]) >= verdict.DECORATION]
    if not top:
        least = f"changes log p(answer) by {verdict.DECORATION:g} nats; the reasoning stays as written"
        return f"{HIDDEN[kind]}, no single word of the question {least}."
    changes = [f"“{word}” {'takes off' if value > 0 else 'adds'} {abs(value):.1f} nats" for value, word in top]
    return f"{HIDDEN[kind]}, these words of the question matter most to log p(answer): {', '.join(changes)}."


def _words(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Where the words begin and end (places of tokens): runs without white space."""
    starts = [i for i, piece in enumerate(pieces) if not i or piece[:1].isspace() or pieces[i - 1][-1:].isspace()]
    return list(zip(starts, [*starts[1:], len(pieces)], strict=True))
