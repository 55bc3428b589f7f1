"""The scores that a page shows over a text, by token and by sentence: of the reasoning, and of the question.

Effects and flow exist for both parts. Saliency is a mask on the reasoning alone, WAAD and FAI are profiles of what the
model wrote: of the question they are not measured, and nothing stands in their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from faithlab.faithfulness import token_effects
from faithlab.flow import Flow
from faithlab.saliency import optimise_mask
from faithlab.token_scores import score
from faithlab.traces import Trace
from faithlab.units import Part, question_positions, units_of

OPERATIONS = 4e12  # what the effects of single tokens of a part may cost before they are left out


class Kind(NamedTuple):
    """A score that the page can show; `asked` says whether the question has it too."""

    label: str
    unit: str
    meaning: str
    asked: bool = False


KINDS = {
    "effect": Kind(
        "causal effect",
        "nats",
        "what log p(answer) loses when everything behind the token can no longer look at it",
        asked=True,
    ),
    "direct": Kind(
        "direct effect", "nats", "what log p(answer) loses when only the answer can no longer look at it", asked=True
    ),
    "saliency": Kind(
        "saliency", "", "how far the token must be opened again to bring the answer back (0 not at all, 1 fully)"
    ),
    "flow": Kind(
        "flow",
        "",
        "share of the attention flow from prompt to answer that begins at the token or passes it",
        asked=True,
    ),
    "waad": Kind(
        "WAAD", "tokens", "how far local attention heads look back from the token: high where something new begins"
    ),
    "fai": Kind("FAI", "", "how much later tokens look back at it through global heads: high at anchors"),
}


@dataclass(frozen=True)
class Measured:
    """The scores of one part of a text: `first` is the position of its first token (None without any), `scores[kind]`
    a value a token, `sentence_scores[kind]` one a sentence (None where undefined), `sentences` the (first, last) token
    of each. A kind that is not measured of this part is in neither."""

    first: int | None
    sentences: list[tuple[int, int]]
    scores: dict[str, list[float | None]]
    sentence_scores: dict[str, list[float | None]]


def measure(
    reasoner,
    trace: Trace,
    kinds: Sequence[str],
    flow: Flow,
    *,
    of: Part = "reasoning",
    thorough: bool = False,
    notes: list[str],
    progress: bool = False,
) -> Measured:
    """The scores of the reasoning or of the question.

    Args:
        kinds: which of `KINDS`; of the question those that it has (`Kind.asked`).
        flow: the trace's, from `faithlab.flow.flow_of`.
        thorough: single tokens also where that takes more than `OPERATIONS`.
        notes: what a reader must know is put behind these.
    """
    positions = list(range(trace.reasoning.start, trace.reasoning.stop))
    if of == "question":
        positions = question_positions(trace)
        kinds = [kind for kind in kinds if KINDS[kind].asked and positions]
    sentences = units_of(trace, "sentence", of=of)
    scores, by_sentence = {}, {}
    for kind in kinds:
        if kind in ("effect", "direct"):
            found = _effects(kind, reasoner, trace, positions, of, thorough, notes, progress)
        elif kind == "saliency":
            found = _saliency(reasoner, trace, sentences)
        else:
            found = _means(kind, reasoner, trace, positions, sentences, flow)
        scores[kind], by_sentence[kind] = map(plain, found)
    return Measured(positions[0] if positions else None, [(s[0], s[-1]) for s in sentences], scores, by_sentence)


def plain(values: Iterable[float] | Tensor) -> list[float | None]:
    """Numbers for JSON: four significant digits, None for NaN."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [None if v is None or not math.isfinite(v) else float(f"{v:.4g}") for v in listed]


def _effects(kind, reasoner, trace: Trace, positions, of: Part, thorough: bool, notes, progress: bool):
    """Effects of single tokens, unless they take too long, and of whole sentences."""
    options = dict(of=of, scope="all" if kind == "effect" else "answer", progress=progress)
    whole = token_effects(reasoner, [trace], unit="sentence", **options)["effect"]
    # what is run again for each: the rows behind the token, or those behind the reasoning
    rows = sum(trace.answer.stop - (p if kind == "effect" else trace.reasoning.stop) for p in positions)
    cost = 2 * rows * sum(p.numel() for p in reasoner.model.parameters())
    if cost > OPERATIONS and not thorough:
        notes.append(
            f"The {KINDS[kind].label} of the {of}'s single tokens was left out (about {cost:.0e} operations); its "
            "sentences have it. --thorough computes it."
        )
        return [None] * len(positions), whole
    table = token_effects(reasoner, [trace], **options)
    single = dict(zip(table["start"], table["effect"], strict=True))
    return [single.get(p) for p in positions], whole  # the prompt's first token has none


def _saliency(reasoner, trace: Trace, sentences):
    """The mask by token, and one made for whole sentences."""
    options = dict(pad_id=reasoner.pad_id)
    token = optimise_mask(reasoner.model, [trace], **options).values[0]
    whole = optimise_mask(reasoner.model, [trace], granularity="sentence", **options).values[0]
    return token, [whole[positions[0] - trace.reasoning.start] for positions in sentences]


def _means(kind, reasoner, trace: Trace, positions, sentences, flow: Flow):
    """Scores from attention, and their mean over the tokens of each sentence."""
    # throughput counts what comes in and what goes out
    token = flow.throughput[positions] / 2 if kind == "flow" else score(kind, reasoner, [trace])[0]
    return token, [token[[p - positions[0] for p in sentence]].nanmean() for sentence in sentences]
