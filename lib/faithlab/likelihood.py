"""How likely a trace's answer is, and how likely it remains when tokens are hidden or replaced.

The quantity is `log p(answer | what stands before it)`, teacher-forced: the sum over the answer's tokens of their log
probability, in nats, at most 0. A *variant* of a trace hides some of its reasoning positions, or puts other tokens
there. All variants of all traces run batched, and what they share is computed once:

    scope="answer"   only the rows after the reasoning lose sight of a hidden token (direct influence); each variant
                     reruns the few rows of marker and answer.
    scope="all"      every later row does (relayed influence too); each variant reruns the rows behind its first change.

Keys and values of the rows before are those of the unchanged trace, computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from faithlab.attention import cut_bias, model_mask, prefill
from faithlab.errors import FaithlabError, unknown
from faithlab.traces import Batch, Trace, collate

Scope = Literal["answer", "all"]
SCOPES = ("answer", "all")
ROWS_PER_CALL = 24_576  # query rows x variants in one call
CACHE_BYTES_PER_CALL = 2**30  # copies of shared keys and values in one call on a GPU
# On a CPU, copies that leave its caches cost more than a larger batch saves: up to four times on abacus. A large model
# reads its weights in every call, so copying as many bytes again is no loss.
CPU_CACHE_BYTES_PER_CALL = 2**23


@dataclass(frozen=True)
class Variant:
    """A change to trace number `trace`: positions hidden, and positions given another token id."""

    trace: int
    hidden: tuple[int, ...] = ()
    replaced: dict[int, int] = field(default_factory=dict)


def answer_logp(reasoner, traces: Sequence[Trace], *, progress: bool = False) -> Float[Tensor, " traces"]:
    """log p(answer) of each trace as it stands, in nats. NaN for a trace without an answer."""
    return variant_logp(reasoner, traces, [Variant(i) for i in range(len(traces))], progress=progress)


def reasoning_hidden_logp(
    reasoner, traces: Sequence[Trace], *, scope: Scope = "answer", progress: bool = False
) -> Float[Tensor, " traces"]:
    """log p(answer) of each trace with the attention to its whole reasoning cut. NaN without an answer."""
    variants = [Variant(i, tuple(range(t.reasoning.start, t.reasoning.stop))) for i, t in enumerate(traces)]
    return variant_logp(reasoner, traces, variants, scope=scope, progress=progress)


def variant_logp(
    reasoner, traces: Sequence[Trace], variants: Sequence[Variant], *, scope: Scope = "answer", progress: bool = False
) -> Float[Tensor, " variants"]:
    """log p(answer) of each variant, in nats; NaN where the trace has no answer.

    Replacing always reruns every later row, whatever the scope. Raises `FaithlabError` for an unknown scope, positions
    outside the reasoning, and logits that are not finite.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    for v in variants:
        span = traces[v.trace].reasoning
        if any(not span.start <= p < span.stop for p in (*v.hidden, *v.replaced)):
            raise FaithlabError(f"only reasoning positions ({span.start} to {span.stop - 1}) can be hidden or replaced")
    out = torch.full((len(variants),), float("nan"))
    by_trace: dict[int, list[int]] = {}
    for index, v in enumerate(variants):
        if traces[v.trace].answered:
            by_trace.setdefault(v.trace, []).append(index)
    # Traces of like length and tail share a prefill; each prefill serves all variants of its traces.
    order = sorted(by_trace, key=lambda i: (len(traces[i]), i))
    bar = tqdm(total=sum(map(len, by_trace.values())), disable=not progress, unit="variant", leave=False)
    width = max((len(traces[i]) for i in order), default=1)
    group = max(1, ROWS_PER_CALL // width)
    for first in range(0, len(order), group):
        members = order[first : first + group]
        jobs = [(row, index) for row, i in enumerate(members) for index in by_trace[i]]
        run = _Run(reasoner, [traces[i] for i in members], scope)
        for some in run.calls(jobs, variants):
            values = run([row for row, _ in some], [variants[index] for _, index in some])
            out[[index for _, index in some]] = values.float().cpu()
            bar.update(len(some))
    bar.close()
    return out


class _Run:
    """One prefill of several traces, and calls that rerun the tail for variants of them."""

    def __init__(self, reasoner, traces: Sequence[Trace], scope: Scope):
        self.reasoner, self.scope = reasoner, scope
        # The last answer token predicts nothing we read, and what stands behind it neither: leave them away.
        self.traces = [_until_answer(t) for t in traces]
        self.batch: Batch = collate(self.traces, pad_id=reasoner.pad_id, device=reasoner.device)
        self.starts = self.batch.starts.tolist()
        answers = [t.input_ids_after for t in self.traces]
        self.targets = torch.full((len(answers), max(map(len, answers))), -1, device=reasoner.device)
        for row, answer in enumerate(answers):
            self.targets[row, -len(answer) :] = answer
        upto = max(self.first_row(row, Variant(row)) for row in range(len(self.traces)))
        self.cache, self.bytes_per_column = None, 0
        if upto > 0:
            b = self.batch
            self.cache = prefill(reasoner.model, b.input_ids, b.attention_mask, b.position_ids, upto)
            self.bytes_per_column = sum(k[0].nbytes + v[0].nbytes for k, v, *_ in self.cache) // upto

    def first_row(self, row: int, v: Variant) -> int:
        """The first column whose row a variant reruns: all before are as in the unchanged trace."""
        t = self.traces[row]
        changes = [t.answer.start - 1]  # the row that predicts the first answer token is always rerun
        if v.hidden:
            changes.append(t.reasoning.stop if self.scope == "answer" else min(v.hidden) + 1)
        if v.replaced:
            changes.append(min(v.replaced))
        return max(0, self.starts[row] + min(changes))

    def calls(self, jobs: list[tuple[int, int]], variants: Sequence[Variant]) -> Iterator[list[tuple[int, int]]]:
        """The (row, variant) jobs in groups of like tails, each within the limits of one call."""
        budget, width = CACHE_BYTES_PER_CALL, self.batch.input_ids.shape[1]
        if self.reasoner.device.type == "cpu":
            weights = sum(p.nbytes for p in self.reasoner.model.parameters())
            budget = max(CPU_CACHE_BYTES_PER_CALL, weights)
        some: list[tuple[int, int]] = []
        for first, job in sorted(((self.first_row(row, variants[k]), (row, k)) for row, k in jobs), reverse=True):
            more = len(some) + 1
            if some and (more * (width - first) > ROWS_PER_CALL or more * first * self.bytes_per_column > budget):
                yield some
                some = []
            some.append(job)
        if some:
            yield some

    @torch.no_grad()
    def __call__(self, rows: list[int], variants: list[Variant]) -> Float[Tensor, " variants"]:
        model, b, device = self.reasoner.model, self.batch, self.reasoner.device
        pick = torch.tensor(rows, device=device)
        ids, mask, positions = b.input_ids[pick], b.attention_mask[pick], b.position_ids[pick]
        starts, upto = self.starts, min(map(self.first_row, rows, variants))
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        blind = torch.zeros_like(hidden)  # the query rows that lose sight of the hidden columns
        for k, (row, v) in enumerate(zip(rows, variants, strict=True)):
            for position, token in v.replaced.items():
                ids[k, starts[row] + position] = token
            if v.hidden:
                hidden[k, [starts[row] + p for p in v.hidden]] = True
                after = self.traces[row].reasoning.stop if self.scope == "answer" else min(v.hidden) + 1
                blind[k, starts[row] + after :] = True
        bias = cut_bias(blind[:, upto:], hidden, model.dtype)
        if self.scope == "all":  # a hidden token still sees itself and what stood before it
            columns = torch.arange(ids.shape[1], device=device)
            later = columns[upto:, None] > columns[None]
            bias = torch.where(later[None], bias, torch.zeros((), dtype=bias.dtype, device=device))
        logits = model(
            input_ids=ids[:, upto:],
            attention_mask=model_mask(model, mask, first_query=upto, bias=bias),
            position_ids=positions[:, upto:],
            past_key_values=_pick(self.cache, pick, upto) if upto else None,
            use_cache=upto > 0,
            logits_to_keep=self.targets.shape[1],
        ).logits
        # Answers are predicted by the last rows, thanks to the left padding; -1 stands before the shorter ones.
        targets = self.targets[pick][:, -logits.shape[1] :]
        picked = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        total = torch.where(targets >= 0, picked, 0.0).sum(-1)
        if not torch.isfinite(total).all():
            raise FaithlabError("log p(answer) is not finite: load the model in float32, or check its weights for NaN")
        return total


@dataclass(frozen=True)
class _Cropped(Trace):
    """A trace up to the row that predicts its last answer token; `input_ids_after` are the answer's tokens."""

    input_ids_after: Tensor | None = None


def _until_answer(trace: Trace) -> _Cropped:
    stop = trace.answer.stop - 1
    answer = slice(min(trace.answer.start, stop), stop)
    ids = trace.input_ids[:stop]
    return _Cropped(ids, trace.prompt, trace.reasoning, answer, input_ids_after=trace.input_ids[trace.answer])


def _pick(cache: DynamicCache, rows: Tensor, upto: int) -> DynamicCache:
    """A new cache holding the given rows up to a column; the shared one stays as it is."""
    return DynamicCache([(keys[:, :, :upto][rows], values[:, :, :upto][rows]) for keys, values, *_ in cache])
