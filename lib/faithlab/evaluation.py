"""What a reasoner does on a set of problems, one row a problem: right, and does the answer come from the reasoning?

Quantities come in groups (`GROUPS`), each measured only if it is asked for. `samples` rollouts of each problem are
drawn at a temperature; interventions start from the greedy one, so that a difference is the intervention's doing.

    accuracy     right      mean over the samples; with `rights` and `samples`, from which pass@k follows
    text         length (tokens of the reasoning), numbers, symbols, stop_words (shares: faithlab.words), fillers (share
                 of its sentences that say nothing, in stories); means over the samples
    reading      follows (the answer is the hinted value), reasoned (the value that the reasoning reaches is right),
                 agrees (the answer is that value); stories only, means over the samples
    reasoning    nats       log p(answer) lost when the attention to the whole reasoning is cut (first sample)
    sufficiency  sufficiency  p(answer) where the answer sees the reasoning and not the prompt (first sample)
    saliency     mask       mean saliency of the optimised mask (first sample)
    flow         relayed    share of the flow from question to answer that passes the reasoning (first sample)
    early        early      area over the early-answering curve
    mistake, filler, paraphrase   the answer changes when that is done to the reasoning
    hint         hint_weak, hint_strong   a wrong hint is answered with it, less without it
    resample     resampled  the answer changes when the model writes another sentence itself, mean over sentences

NaN stands where a quantity does not apply: no answer, no reasoning, no story.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from faithlab import tasks
from faithlab.attention import capture
from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.faithfulness import reasoning_effect, token_effects
from faithlab.flow import trace_flows
from faithlab.intervals import mean_interval
from faithlab.interventions import interventions, usable
from faithlab.likelihood import prompt_hidden_logp
from faithlab.models import Reasoner
from faithlab.planted import reached_value
from faithlab.saliency import optimise_mask
from faithlab.tasks.scoring import gold_of, same_answer
from faithlab.tasks.story_text import annotate
from faithlab.traces import Trace
from faithlab.words import shares

SHARES = ("right", "follows", "reasoned", "agrees", "numbers", "symbols", "stop_words", "fillers", "early", "filler",
          "paraphrase", "sufficiency", "mask", "relayed")  # fmt: skip
SUPPORT = dict.fromkeys(SHARES, (0, 1)) | dict.fromkeys(("mistake", "hint_weak", "hint_strong", "resampled"), (-1, 1))
INTERVENED = dict(early="early_answering", mistake="added_mistake", filler="filler", paraphrase="paraphrase")


@dataclass(frozen=True)
class Work:
    """A reasoner and problems, with rollouts that are written when a group first asks for them."""

    reasoner: Reasoner
    task: str
    rows: list[dict]
    samples: int
    temperature: float
    seed: int
    progress: bool

    @cached_property
    def sampled(self) -> list[Trace]:
        """`samples` rollouts of each problem, problem by problem."""
        options = dict(seed=self.seed, temperature=self.temperature, progress=self.progress)
        return self.reasoner.generate(self.rows, self.samples, **options)

    @cached_property
    def greedy(self) -> list[Trace]:
        if self.temperature == 0:
            return self.first
        return self.reasoner.generate(self.rows, temperature=0, progress=self.progress)

    @property
    def first(self) -> list[Trace]:
        return self.sampled[:: self.samples]

    def by_problem(self, values: Sequence[float]) -> np.ndarray:
        """Means over each problem's samples; NaN values are left out."""
        table = pd.DataFrame(dict(value=values, problem=np.arange(len(values)) // self.samples))
        return table.groupby("problem")["value"].mean().to_numpy()

    def spread(self, numbers: Sequence[int], values: Sequence[float]) -> np.ndarray:
        """Values of some problems, by their numbers, and NaN for the others."""
        out = np.full(len(self.rows), np.nan)
        out[np.asarray(numbers, dtype=int)] = values
        return out

    def by_trace(self, effects: pd.DataFrame) -> np.ndarray:
        """The mean effect of each trace in a table of effects, and NaN for traces that it lacks."""
        means = effects.groupby("trace")["effect"].mean()
        return self.spread(means.index, means.to_numpy())

    def effects(self, intervention: str) -> pd.DataFrame:
        """An intervention's effects on the greedy rollouts; no rows if none of these can be used."""
        if not usable(self.reasoner, self.greedy):
            return pd.DataFrame(dict(trace=[], setting=[], effect=[]))
        options = dict(kinds=(intervention,), traces=self.greedy, seed=self.seed, per_trace=True)
        return interventions(self.reasoner, self.rows, **options, progress=self.progress)


Columns = dict[str, np.ndarray]


def _accuracy(work: Work) -> Columns:
    score = tasks.scorer(work.task)
    right = np.array([score(t.answer_text, t.problem).value for t in work.sampled])
    rights = (right.reshape(-1, work.samples) > 0).sum(1)
    return dict(right=work.by_problem(right), rights=rights, samples=np.full(len(rights), work.samples))


def _text(work: Work) -> Columns:
    table = pd.DataFrame([shares(t.reasoning_text) for t in work.sampled])
    table.insert(0, "length", [float(t.reasoning.stop - t.reasoning.start) for t in work.sampled])
    if work.task == "stories":
        table["fillers"] = [_fillers(t) for t in work.sampled]
    return {name: work.by_problem(table[name]) for name in table}


def _fillers(trace: Trace) -> float:
    steps = annotate(trace.reasoning_text, target=trace.problem["truth"]["target"], on_path=())
    return float(np.mean([s["kind"] == "filler" for s in steps])) if steps else np.nan


def _reading(work: Work) -> Columns:
    if work.task != "stories":
        return {}
    reached = [reached_value(t) for t in work.sampled]
    pairs = list(zip(work.sampled, reached, strict=True))
    return dict(
        follows=work.by_problem([_follows(t) for t in work.sampled]),
        reasoned=work.by_problem([float(r == t.problem["answer"]) for t, r in pairs]),
        agrees=work.by_problem([np.nan if r is None else _says(t, r) for t, r in pairs]),
    )


def _follows(trace: Trace) -> float:
    hint = trace.problem["truth"]["hint"]
    return np.nan if hint["value"] is None else _says(trace, str(hint["value"]))


def _says(trace: Trace, value: str) -> float:
    """1.0 if the trace's answer is this value, however it is put."""
    return float(same_answer(trace.answer_text, value, gold_of(trace.problem)))


def _reasoning(work: Work) -> Columns:
    found = reasoning_effect(work.reasoner, work.first)
    return dict(nats=work.spread(found["trace"], found["effect"]))


def _usable(work: Work) -> tuple[list[int], list[Trace]]:
    """First samples with an answer and a reasoning, and their numbers."""
    numbers = [i for i, t in enumerate(work.first) if t.answered and t.reasoning.stop > t.reasoning.start]
    return numbers, [work.first[i] for i in numbers]


def _sufficiency(work: Work) -> Columns:
    numbers, traces = _usable(work)
    values = prompt_hidden_logp(work.reasoner, traces).exp().tolist() if traces else []
    return dict(sufficiency=work.spread(numbers, values))


def _saliency(work: Work) -> Columns:
    numbers, traces = _usable(work)
    values = []
    if traces:
        found = optimise_mask(work.reasoner.model, traces, pad_id=work.reasoner.pad_id, progress=work.progress)
        values = [float(s.mean()) for s in found.values]
    return dict(mask=work.spread(numbers, values))


def _flow(work: Work) -> Columns:
    numbers, traces = _usable(work)
    values = []
    for t in traces:  # one map at a time is held
        read = capture(work.reasoner.model, [t], want=("mean_map",), pad_id=work.reasoner.pad_id).traces[0]
        (flow,) = trace_flows(read.mean_map[None], [t.prompt], [t.answer])
        past = flow.edge_flow()[: t.reasoning.start, t.reasoning.stop :].sum()  # from the prompt over the reasoning
        values.append(float(1 - past / flow.delivered) if flow.reachable else np.nan)
    return dict(relayed=work.spread(numbers, values))


def _intervened(name: str) -> Callable[[Work], Columns]:
    return lambda work: {name: work.by_trace(work.effects(INTERVENED[name]))}


def _hint(work: Work) -> Columns:
    found = work.effects("hint")
    return {f"hint_{k}": work.by_trace(found[found["setting"] == f"{k}, wrong"]) for k in ("weak", "strong")}


def _resample(work: Work) -> Columns:
    options = dict(method="resample", unit="sentence", seed=work.seed, progress=work.progress)
    return dict(resampled=work.by_trace(token_effects(work.reasoner, work.greedy, **options)))


GROUPS: dict[str, Callable[[Work], Columns]] = dict(
    accuracy=_accuracy, text=_text, reading=_reading, reasoning=_reasoning, sufficiency=_sufficiency,
    saliency=_saliency, flow=_flow, **{name: _intervened(name) for name in INTERVENED}, hint=_hint, resample=_resample,
)  # fmt: skip
QUANTITIES = ("right", "follows", "reasoned", "agrees", "nats", "sufficiency", "mask", "relayed", *INTERVENED,
              "hint_weak", "hint_strong", "resampled", "length", "numbers", "symbols", "stop_words",
              "fillers")  # fmt: skip


def measure(
    reasoner: Reasoner,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    groups: Sequence[str] = ("accuracy", "text", "reading", "reasoning"),
    samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """One row a problem: `problem` (its number) and the columns of the groups; see the module's head.

    Raises `FaithlabError` for an unknown task or group, no rows, and settings out of range.
    """
    for name in groups:
        if name not in GROUPS:
            raise unknown("group of measures", name, GROUPS)
    check_number("samples", samples, 1, whole=True)
    check_number("temperature", temperature, 0)
    tasks.scorer(task)
    if not len(rows):
        raise FaithlabError("no problems were given; `tasks.load` gives some")
    work = Work(reasoner, task, [dict(r) for r in rows], samples, temperature, seed, progress)
    columns: Columns = dict(problem=np.arange(len(rows)))
    for name in groups:
        columns |= GROUPS[name](work)
    return pd.DataFrame(columns)


def pass_at_k(rights: Sequence[int], samples: Sequence[int], k: int) -> np.ndarray:
    """Unbiased pass@k of each problem: `1 - C(samples - rights, k) / C(samples, k)`, the chance that at least one of k
    samples drawn without replacement is right (Chen et al. 2021, arXiv 2107.03374). NaN where there are fewer than k.

    Raises `FaithlabError` for k < 1, or more right samples than samples.
    """
    check_number("k", k, 1, whole=True)
    n, c = np.asarray(samples, dtype=float), np.asarray(rights, dtype=float)
    if (c > n).any() or (c < 0).any():
        raise FaithlabError("there are more right samples than samples, or fewer than none")
    missed = np.ones_like(n)
    for i in range(k):  # C(n - c, k) / C(n, k) as a product, which cannot overflow
        missed *= np.clip((n - c - i) / np.where(n > i, n - i, 1), 0, None)
    return np.where(n >= k, 1 - missed, np.nan)


def with_pass(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `pass@2, pass@4 ...`, up to the number of samples; pass@1 is `right`."""
    out, most = table.copy(), int(table["samples"].max()) if "samples" in table else 1
    for k in (2**i for i in range(1, most.bit_length()) if 2**i <= most):
        out[f"pass@{k}"] = pass_at_k(table["rights"], table["samples"], k)
    return out


def support_of(quantity: str) -> tuple[float, float] | None:
    """Between which values a quantity lies, or None: (0, 1) for a share, (-1, 1) for a difference of two."""
    return (0, 1) if quantity.startswith("pass") else SUPPORT.get(quantity)


def quantities_of(table: pd.DataFrame) -> list[str]:
    """The quantities that a table of `measure` or `with_pass` holds, in the order in which they are shown."""
    passes = [c for c in table.columns if c.startswith("pass@")]
    known = ["right", *passes, *(q for q in QUANTITIES if q != "right")]
    return [q for q in known if q in table and table[q].notna().any()]


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean, 95 % interval and n of each quantity: columns `quantity, value, low, high, n`."""
    table = with_pass(table)
    return intervals_of(table, quantities_of(table), seed)


def intervals_of(table: pd.DataFrame, quantities: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """`summary` for these columns of any table; those that are missing, or nowhere measured, are left out."""
    rows = []
    for quantity in quantities:
        if quantity in table and table[quantity].notna().any():
            found = mean_interval(table[quantity], seed=seed, support=support_of(quantity))
            rows.append(dict(quantity=quantity, **found._asdict()))
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n"])
