"""What can be said about one answer: scores of its reasoning's tokens and sentences, the flow's backbone, a verdict.

    question --Trace--> scores · backbone · curve · fresh rollouts --> Explanation --> page.py (HTML), JSON, PNG

Nothing here draws; an `Explanation` holds plain numbers and texts and goes to JSON as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from faithlab import verdict
from faithlab.attention import capture
from faithlab.biases import context_window
from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.faithfulness import reasoning_effect, token_effects
from faithlab.flow import trace_flows
from faithlab.intervals import mean_interval
from faithlab.likelihood import Variant, variant_logp
from faithlab.ranking import highest_first
from faithlab.saliency import optimise_mask
from faithlab.tasks.numerals import Number, read_number, same
from faithlab.tasks.scoring import gold_of, readable, same_answer
from faithlab.token_scores import score
from faithlab.traces import Trace
from faithlab.units import units_of

EDGES = 40  # of the backbone
OPERATIONS = 4e12  # what the relayed effects of single tokens may cost before they are left out


class Kind(NamedTuple):
    """A score that the page can show."""

    label: str
    unit: str
    meaning: str


KINDS = {
    "effect": Kind(
        "causal effect", "nats", "what log p(answer) loses when everything behind the token can no longer look at it"
    ),
    "direct": Kind("direct effect", "nats", "what log p(answer) loses when only the answer can no longer look at it"),
    "saliency": Kind(
        "saliency", "", "how far the token must be opened again to bring the answer back (0 not at all, 1 fully)"
    ),
    "flow": Kind("flow", "", "share of the attention flow from prompt to answer that passes the token"),
    "waad": Kind(
        "WAAD", "tokens", "how far local attention heads look back from the token: high where something new begins"
    ),
    "fai": Kind("FAI", "", "how much later tokens look back at it through global heads: high at anchors"),
}


@dataclass(frozen=True)
class Explanation:
    """One question, reasoning and answer, and what was found out about them.

    `tokens` are (text, part) of the whole trace up to the answer, the part being "prompt", "question", "reasoning",
    "marker" or "answer". `first` is the position of the first reasoning token. `scores[kind]` holds a value a reasoning
    token, `sentence_scores[kind]` one a sentence (None where undefined), `sentences` the (first, last) token of each.
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
    notes: list[str] = field(default_factory=list)

    @property
    def effect(self) -> float:
        """log p(answer) less log p(answer | reasoning hidden), in nats."""
        return self.logp - self.logp_hidden

    @property
    def hardly(self) -> bool:
        """Whether the answer was given, and is one that the reasoner would hardly ever write behind the reasoning."""
        return self.pasted and verdict.hardly_written(self.logp)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is null."""
        content = asdict(self) | {"effect": self.effect}
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
    scores, by_sentence = {}, {}
    for kind in kinds:
        scores[kind], by_sentence[kind] = _scores(kind, reasoner, trace, sentences, thorough, notes, progress)
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
        first=trace.reasoning.start,
        sentences=[(s[0], s[-1]) for s in sentences],
        logp=float(table["logp"]),
        logp_hidden=float(table["logp_hidden"]),
        verdict=said.name,
        says=said.text,
        scores=scores,
        sentence_scores=by_sentence,
        edges=_backbone(reasoner, trace, notes),
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
    # a template may trim the question, or break its lines otherwise
    words = r"\s+".join(map(re.escape, trace.question.split()))
    found = list(re.finditer(words, trace.prompt_text)) if words else []
    for position in trace.tokens_between(*found[-1].span(), "prompt") if found else ():
        out[position] = "question"
    return out


def plain(values: Iterable[float] | Tensor) -> list[float | None]:
    """Numbers for JSON: four significant digits, None for NaN."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [None if v is None or not math.isfinite(v) else float(f"{v:.4g}") for v in listed]


def _scores(
    kind: str, reasoner, trace: Trace, sentences, thorough: bool, notes: list[str], progress: bool
) -> tuple[list[float | None], list[float | None]]:
    """A score by token and by sentence. Effects and saliency are measured for whole sentences; of the others a
    sentence has the mean over its tokens."""
    blank = [None] * (trace.reasoning.stop - trace.reasoning.start)
    if kind in ("effect", "direct"):
        scope = "all" if kind == "effect" else "answer"
        whole = token_effects(reasoner, [trace], unit="sentence", scope=scope, progress=progress)["effect"]
        rows = len(blank) * (len(blank) / 2 if scope == "all" else len(trace) - trace.reasoning.stop)
        cost = 2 * rows * sum(p.numel() for p in reasoner.model.parameters())
        if cost > OPERATIONS and not thorough:
            notes.append(
                f"The {KINDS[kind].label} of single tokens was left out (about {cost:.0e} operations); sentences have "
                "it. --thorough computes it."
            )
            return blank, plain(whole)
        return plain(token_effects(reasoner, [trace], scope=scope, progress=progress)["effect"]), plain(whole)
    if kind == "saliency":
        options = dict(pad_id=reasoner.pad_id)
        token = optimise_mask(reasoner.model, [trace], **options).values[0]
        whole = optimise_mask(reasoner.model, [trace], granularity="sentence", **options).values[0]
        return plain(token), plain(whole[positions[0] - trace.reasoning.start] for positions in sentences)
    token = score(kind, reasoner, [trace])[0]
    token = token / 2 if kind == "flow" else token  # throughput counts what comes in and what goes out
    start = trace.reasoning.start
    parts = [token[[p - start for p in positions]] for positions in sentences]
    return plain(token), plain(part.nanmean() for part in parts)


def _backbone(reasoner, trace: Trace, notes: list[str]) -> list[tuple[int, int, float]]:
    found = capture(reasoner.model, [trace], layers="middle", want=("mean_map",), pad_id=reasoner.pad_id)
    flow = trace_flows(found.traces[0].mean_map[None], [trace.prompt], [trace.answer])[0]
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


def strongest(explanation: Explanation, kind: str, k: int = 5) -> list[tuple[int, float]]:
    """The `k` reasoning tokens with the highest score above 0, fewer if there are not so many: (position, value)."""
    values = np.array([np.nan if v is None else v for v in explanation.scores[kind]])
    return [(explanation.first + i, float(values[i])) for i in highest_first(values)[:k].tolist() if values[i] > 0]
