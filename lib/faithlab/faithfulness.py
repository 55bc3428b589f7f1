"""Causal truth about tokens: how much the answer depends on each token or sentence of the reasoning.

Three ways to ask, from cheapest to dearest, one table for all:

    cut        hide the token from the rows that come later, read log p(answer)           effect in nats
    replace    put other tokens there, keep the rest as written, read log p(answer)       effect in nats
    resample   put something else there and let the model write the rest                  effect in share of answers

Trace-level interventions (early answering, added mistake, …) are in `faithlab.interventions`, and re-exported here.
Sources: Lanham et al. 2023 (arXiv 2307.13702); Thought Anchors (arXiv 2506.19143) for resampling.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from faithlab.errors import FaithlabError, unknown
from faithlab.generation import stream_key
from faithlab.intervals import mean_interval
from faithlab.interventions import interventions, summarise
from faithlab.likelihood import SCOPES, Scope, Variant, variant_logp, with_and_without_reasoning
from faithlab.tasks.scoring import gold_of, same_answer
from faithlab.traces import Trace, check_traces
from faithlab.units import PARTS, UNITS, Part, Unit, units_of

__all__ = ["interventions", "reasoning_effect", "replacement_ids", "summarise", "token_effects", "units_of"]

METHODS = ("cut", "replace", "resample")


def reasoning_effect(
    reasoner, traces: Sequence[Trace], *, scope: Scope = "answer", progress: bool = False
) -> pd.DataFrame:
    """What the whole reasoning is worth to the answer: one row a trace.

    `effect = log p(answer) - log p(answer | reasoning hidden)` in nats; large and positive where the answer is read
    off the reasoning, near 0 where the reasoning is decoration. Columns `trace, logp, logp_hidden, effect`; NaN where
    a trace has no answer.
    """
    both = with_and_without_reasoning(reasoner, traces, scope=scope, progress=progress)
    full, hidden = (v.numpy() for v in both)
    return pd.DataFrame(dict(trace=range(len(traces)), logp=full, logp_hidden=hidden, effect=full - hidden))


def replacement_ids(reasoner, trace: Trace, positions: Sequence[int], rng: random.Random) -> dict[int, int]:
    """Other tokens for `positions`: for a number another number of like size, for other tokens one seen elsewhere in
    the reasoning (so that the text stays of a kind), never the token itself."""
    out = {}
    special = set(reasoner.tokenizer.all_special_ids)  # a chat template's tokens are no words
    seen = [{int(i) for i in trace.input_ids[span]} - special for span in (trace.reasoning, trace.prompt)]
    pool = sorted(seen[0] if len(seen[0]) > 1 else seen[0] | seen[1])  # one token alone has nothing to change with
    for p in positions:
        piece, old = trace.pieces[p], int(trace.input_ids[p])
        choices: list[int] = []
        if piece.strip().isdecimal():
            value = int(piece)
            space = piece[: len(piece) - len(piece.lstrip())]
            for other in {max(0, value + d) for d in (-10, -3, -2, -1, 1, 2, 3, 10)}:
                ids = reasoner.tokenizer(f"{space}{other}", add_special_tokens=False).input_ids
                if len(ids) == 1 and ids[0] != old:
                    choices.append(ids[0])
        choices = sorted(choices) or [i for i in pool if i != old]
        if choices:
            out[p] = rng.choice(choices)
    return out


def token_effects(
    reasoner,
    traces: Sequence[Trace],
    *,
    method: str = "cut",
    unit: Unit = "token",
    scope: Scope = "answer",
    of: Part = "reasoning",
    n: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """The causal effect of each reasoning token (or sentence) on the trace's own answer.

    `cut` and `replace`: `effect = log p(answer) - log p(answer | changed)` in nats, positive where the answer needs
    the token; `replace` averages over `n` draws of other tokens. `scope` applies to `cut`: see `faithlab.likelihood`.
    `resample`: the share of `n >= 8` continuations, written by the model at temperature 1 behind the changed unit,
    whose answer differs from the trace's, less the same share behind the unchanged unit; in [-1, 1]. A token is changed
    to another one; in a sentence's place the model writes another itself (draws in which it writes the same sentence
    again are left out, and `n` says how many remained), as in Thought Anchors.

    `of="question"` cuts the tokens (or sentences) of the question in the prompt instead. With scope "all" the states of
    the reasoning are computed again without the token, and its text stays as written: what the token did to the choice
    of words is not in the effect.

    Returns one row a unit: `trace, unit, start, stop` (positions), `text, n, effect, low, high` (95 % bootstrap over
    the n draws; NaN where there is one value or none). Traces without reasoning or answer give no rows.

    Raises `FaithlabError` for an unknown method, unit, scope or part, for n < 8 with `resample`, and for a question
    that is to be replaced or resampled.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    if of not in PARTS:
        raise unknown("part", of, PARTS)
    if of == "question" and method != "cut":
        raise FaithlabError(f"method={method!r} would ask another question; use method='cut' with of='question'")
    if n < 1:
        raise FaithlabError(f"n={n} draws a position are not possible; use n >= 1")
    if method == "resample" and n < 8:
        raise FaithlabError(f"n={n} samples a position say too little; use n >= 8")
    check_traces(traces)
    units = [(i, u) for i, t in enumerate(traces) if t.answered for u in units_of(t, unit, of=of)]
    if method == "resample":
        values = list(_resampled(reasoner, traces, units, unit, n, seed, progress))
    else:
        values = _teacher_forced(reasoner, traces, units, method, scope, n, seed, progress)
    rows = []
    for (i, positions), drawn in zip(units, values, strict=True):
        t, where = traces[i], mean_interval(drawn, resamples=500, support=(-1, 1) if method == "resample" else None)
        row = dict(trace=i, unit=unit, start=positions[0], stop=positions[-1] + 1)
        row |= dict(text="".join(t.pieces[positions[0] : positions[-1] + 1]), n=where.n)
        rows.append(row | dict(effect=where.value, low=where.low, high=where.high))
    columns = ["trace", "unit", "start", "stop", "text", "n", "effect", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _teacher_forced(reasoner, traces, units, method, scope, n, seed, progress) -> list[list[float]]:
    variants = [Variant(i) for i in range(len(traces))]  # the traces as they stand go first, and share the work
    if method == "cut":
        variants += [Variant(i, hidden=positions) for i, positions in units]
    else:
        for number, (i, positions) in enumerate(units):
            rng = random.Random(f"replace-{seed}-{number}")
            for _ in range(n):
                variants.append(Variant(i, replaced=replacement_ids(reasoner, traces[i], positions, rng)))
    values = variant_logp(reasoner, traces, variants, scope=scope, progress=progress).numpy()
    full, changed = values[: len(traces)], values[len(traces) :].reshape(len(units), 1 if method == "cut" else n)
    return [list(full[i] - row) for (i, _), row in zip(units, changed, strict=True)]


def _resampled(reasoner, traces, units, unit, n, seed, progress) -> Iterator[list[float]]:
    """For each unit the n differences (answer differs behind the change) - (differs behind the original); NaN for a
    draw that changed nothing."""
    beginnings, keys = [], []
    for number, (i, positions) in enumerate(units):
        ids = traces[i].input_ids.tolist()
        kept = ids[: positions[-1] + 1]
        rng = random.Random(f"resample-{seed}-{number}")
        for sample in range(n):
            changed = ids[: positions[0]] if unit == "sentence" else list(kept)
            if unit == "token":
                for p, token in replacement_ids(reasoner, traces[i], positions, rng).items():
                    changed[p] = token
            beginnings += [(traces[i], changed), (traces[i], kept)]
            keys += [stream_key(seed, number, sample)] * 2
    written = reasoner.continued(beginnings, keys, temperature=1.0, progress="resampling" if progress else None)
    differs = []
    for number, ((t, _), new) in enumerate(zip(beginnings, written, strict=True)):
        stop = len(beginnings[number | 1][1])  # pairs of changed and unchanged; the unchanged one ends with the unit
        # only a sentence that the model writes itself can come out the same
        again = unit == "sentence" and number % 2 == 0 and torch.equal(new.input_ids[:stop], t.input_ids[:stop])
        differs.append(np.nan if again else float(not same_answer(new.answer_text, t.answer_text, gold_of(t.problem))))
    pairs = np.array(differs).reshape(len(units), n, 2)
    yield from (list(pair[:, 0] - pair[:, 1]) for pair in pairs)
