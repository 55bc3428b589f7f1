"""How likely a trace's answer is, and how likely it remains when tokens are hidden or replaced.

The quantity is `log p(answer | what stands before it)`, teacher-forced: the sum over the answer's tokens of their log
probability, in nats, at most 0. A *variant* of a trace hides some of its positions before the answer, or puts other
tokens in the place of some of its reasoning. All variants of all traces run batched, and what they share is computed
once:

    scope="answer"   only the rows after the reasoning lose sight of a hidden token (direct influence); each variant
                     reruns the few rows of marker and answer.
    scope="all"      every later row does (relayed influence too); each variant reruns the rows behind its first change.

Keys and values of the rows before are those of the unchanged trace, computed once. Variants of a trace that rerun the
same few rows stand one behind the other in one row of the batch, and the mask keeps them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from faithlab.attention import cut_bias, lowest, model_mask
from faithlab.batches import Batch, collate
from faithlab.biases import check_window, evaluating
from faithlab.errors import FaithlabError, unknown
from faithlab.prefill import prefill, shared_prefix
from faithlab.traces import Trace, check_traces

Scope = Literal["answer", "all"]
SCOPES = ("answer", "all")
ROWS_PER_CALL = 24_576  # query rows x variants in one call
PACKED_ROWS = 64  # query rows of a slot: more would spend more on masked-out pairs than they save in copies
CACHE_BYTES_PER_CALL = 2**30  # copies of shared keys and values in one call on a GPU
# On a CPU, copies that leave its caches cost more than a larger batch saves: up to four times on abacus. A large model
# reads its weights in every call, so copying as many bytes again is no loss.
CPU_CACHE_BYTES_PER_CALL = 2**23

Slot = tuple[int, list[int]]  # a trace's row, and the variants of it that share one copy of its keys and values


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
    return variant_logp(reasoner, traces, _without_reasoning(traces), scope=scope, progress=progress)


def _without_reasoning(traces: Sequence[Trace]) -> list[Variant]:
    """Each trace with its whole reasoning hidden."""
    check_traces(traces)
    return [Variant(i, tuple(range(t.reasoning.start, t.reasoning.stop))) for i, t in enumerate(traces)]


def with_and_without_reasoning(
    reasoner, traces: Sequence[Trace], *, scope: Scope = "answer", progress: bool = False
) -> tuple[Float[Tensor, " traces"], Float[Tensor, " traces"]]:
    """`answer_logp` and `reasoning_hidden_logp`, which share the work on prompt and reasoning."""
    variants = [*(Variant(i) for i in range(len(traces))), *_without_reasoning(traces)]
    both = variant_logp(reasoner, traces, variants, scope=scope, progress=progress)
    return both[: len(traces)], both[len(traces) :]


def prompt_hidden_logp(reasoner, traces: Sequence[Trace]) -> Float[Tensor, " traces"]:
    """log p(answer) of each trace where the rows after the reasoning see the reasoning and not the prompt.

    The reasoning itself keeps the prompt in sight, and the first token stays visible to all: models park attention
    there that goes nowhere else, so that hiding it breaks more than it hides. NaN without an answer.
    """
    check_traces(traces)
    variants = [Variant(i, tuple(range(t.prompt.start + 1, t.prompt.stop))) for i, t in enumerate(traces)]
    return variant_logp(reasoner, traces, variants)


def variant_logp(
    reasoner, traces: Sequence[Trace], variants: Sequence[Variant], *, scope: Scope = "answer", progress: bool = False
) -> Float[Tensor, " variants"]:
    """log p(answer) of each variant, in nats; NaN where the trace has no answer.

    Replacing always reruns every later row, whatever the scope. Raises `FaithlabError` for an unknown scope, positions
    outside the reasoning (the prompt's can be hidden, but with scope "all" not its first token: models park attention
    there that goes nowhere else), and logits that are not finite.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    check_traces(traces)
    check_window(reasoner.model, (t.answer.stop - 1 for t in traces))  # the last token predicts nothing
    for v in variants:
        span, prompt = traces[v.trace].reasoning, traces[v.trace].prompt
        first = min(prompt.start + (scope == "all"), span.start)
        if any(not first <= p < span.stop for p in v.hidden) or any(
            not span.start <= p < span.stop for p in v.replaced
        ):
            raise FaithlabError(
                f"only reasoning positions ({span.start} to {span.stop - 1}) can be hidden or replaced; the prompt's "
                "can be hidden, with scope='all' those behind its first token"
            )
    out = torch.full((len(variants),), float("nan"))
    by_trace: dict[int, list[int]] = {}
    for index, v in enumerate(variants):
        if traces[v.trace].answered:
            by_trace.setdefault(v.trace, []).append(index)
    # Traces of like length and tail share a prefill; each prefill serves all variants of its traces.
    order = sorted(by_trace, key=lambda i: (len(traces[i]), i))
    width = max((len(traces[i]) for i in order), default=1)
    group = max(1, ROWS_PER_CALL // width)
    bar = tqdm(total=sum(map(len, by_trace.values())), disable=not progress, unit="variant", leave=False)
    with bar, evaluating(reasoner.model):  # a trainer's model may come in train mode
        for first in range(0, len(order), group):
            members = order[first : first + group]
            jobs = [(row, index) for row, i in enumerate(members) for index in by_trace[i]]
            run = _Run(reasoner, [traces[i] for i in members], scope)
            for slots in run.calls(jobs, variants):
                done = [index for _, indices in slots for index in indices]
                out[done] = run(slots, variants).float().cpu()
                bar.update(len(done))
    return out


class _Run:
    """One prefill of several traces, and calls that rerun the tail for variants of them."""

    def __init__(self, reasoner, traces: Sequence[Trace], scope: Scope):
        self.reasoner, self.scope = reasoner, scope
        # The last answer token predicts nothing we read, and what stands behind it neither: leave them away.
        self.traces = [until_answer(t) for t in traces]
        shared = shared_prefix(reasoner.model, [t.input_ids[t.prompt].tolist() for t in self.traces])
        self.batch: Batch = collate(self.traces, pad_id=reasoner.pad_id, shared=shared, device=reasoner.device)
        self.starts = self.batch.starts.tolist()
        answers = [t.input_ids_after for t in self.traces]
        self.targets = torch.full((len(answers), max(map(len, answers))), -1, device=reasoner.device)
        for row, answer in enumerate(answers):
            self.targets[row, -len(answer) :] = answer
        upto = max(self.first_row(row, Variant(row)) for row in range(len(self.traces)))
        self.cache, self.bytes_per_column = None, 0
        if upto > 0:
            b = self.batch
            self.cache = prefill(reasoner.model, b.input_ids, b.attention_mask, b.position_ids, upto, shared)
            self.bytes_per_column = sum(k[0].nbytes + v[0].nbytes for k, v, *_ in self.cache) // upto

    def first_row(self, row: int, v: Variant) -> int:
        """The first column whose row a variant reruns: all before are as in the unchanged trace."""
        t = self.traces[row]
        changes = [t.answer.start - 1]  # the row that predicts the first answer token is always rerun
        if v.hidden:
            changes.append(t.reasoning.stop if self.scope == "answer" else min(v.hidden) + 1)
        if v.replaced:
            changes.append(min(v.replaced))
        return max(0, self._column(row, min(changes)))

    def _column(self, row: int, position: int) -> int:
        return self.batch.columns(self.starts[row], [position])[0]

    def calls(self, jobs: list[tuple[int, int]], variants: Sequence[Variant]) -> Iterator[list[Slot]]:
        """The (row, variant) jobs as slots, in calls of like tails, each call within its limits."""
        budget, width = CACHE_BYTES_PER_CALL, self.batch.input_ids.shape[1]
        if self.reasoner.device.type == "cpu":
            weights = sum(p.nbytes for p in self.reasoner.model.parameters())
            budget = max(CPU_CACHE_BYTES_PER_CALL, weights)
        alike: dict[tuple[int, int], list[int]] = {}
        for row, k in jobs:
            alike.setdefault((self.first_row(row, variants[k]), row), []).append(k)
        slots: list[Slot] = []
        for (first, row), indices in sorted(alike.items(), reverse=True):
            tail = width - first
            parts = math.ceil(len(indices) / max(1, PACKED_ROWS // tail))
            for part in range(parts):
                some = indices[part::parts]
                size = max([len(some), *(len(others) for _, others in slots)])
                full = (len(slots) + 1) * size * tail > ROWS_PER_CALL
                full |= (len(slots) + 1) * first * self.bytes_per_column > budget
                # Slots are filled up to the longest, so a call takes slots of like size.
                if slots and (full or size > 2 * min(len(some), *(len(others) for _, others in slots))):
                    yield slots
                    slots = []
                slots.append((row, some))
        if slots:
            yield slots

    @torch.no_grad()
    def __call__(self, slots: list[Slot], all_variants: Sequence[Variant]) -> Float[Tensor, " variants"]:
        model, b, device = self.reasoner.model, self.batch, self.reasoner.device
        size = max(len(indices) for _, indices in slots)
        rows = [row for row, _ in slots for _ in range(size)]
        filled = [indices + indices[-1:] * (size - len(indices)) for _, indices in slots]  # the fill is dropped below
        variants = [all_variants[k] for indices in filled for k in indices]
        pick = torch.tensor(rows, device=device)
        ids, mask, positions = b.input_ids[pick], b.attention_mask[pick], b.position_ids[pick]
        starts, upto = self.starts, min(map(self.first_row, rows, variants))
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        blind = torch.zeros_like(hidden)  # the query rows that lose sight of the hidden columns
        for k, (row, v) in enumerate(zip(rows, variants, strict=True)):
            for position, token in v.replaced.items():
                ids[k, starts[row] + position] = token
            if v.hidden:
                hidden[k, b.columns(starts[row], v.hidden)] = True
                after = self.traces[row].reasoning.stop if self.scope == "answer" else min(v.hidden) + 1
                blind[k, self._column(row, after) :] = True
        bias = cut_bias(blind[:, upto:], hidden, model.dtype)
        if self.scope == "all":  # a hidden token still sees itself and what stood before it
            columns = torch.arange(ids.shape[1], device=device)
            later = columns[upto:, None] > columns[None]
            bias = torch.where(later[None], bias, torch.zeros((), dtype=bias.dtype, device=device))
        masks = model_mask(model, mask, first_query=upto, bias=bias)
        masks = {k: _packed(m, size) for k, m in masks.items()} if isinstance(masks, dict) else _packed(masks, size)
        # Answers are predicted by the last rows, thanks to the left padding; -1 stands before the shorter ones.
        tail = ids.shape[1] - upto
        targets = self.targets[pick][:, -tail:]
        ends = torch.arange(size, device=device)[:, None] * tail + torch.arange(tail, device=device)
        logits = model(
            input_ids=ids[:, upto:].reshape(len(slots), -1),
            attention_mask=masks,
            position_ids=positions[:, upto:].reshape(len(slots), -1),
            past_key_values=_pick(self.cache, pick[::size], upto) if upto else None,
            use_cache=upto > 0,
            logits_to_keep=ends[:, -targets.shape[1] :].flatten(),
        ).logits
        logits = logits.float().log_softmax(-1).reshape(*targets.shape, -1)
        picked = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        total = torch.where(targets >= 0, picked, 0.0).sum(-1)
        total = total[[i * size + k for i, (_, indices) in enumerate(slots) for k in range(len(indices))]]
        if not torch.isfinite(total).all():
            raise FaithlabError("log p(answer) is not finite: load the model in float32, or check its weights for NaN")
        return total


@dataclass(frozen=True)
class Cropped(Trace):
    """A trace up to the row that predicts its last answer token; `input_ids_after` are the answer's tokens."""

    input_ids_after: Tensor | None = None


def until_answer(trace: Trace) -> Cropped:
    """The trace without its last answer token and what stands behind: these predict nothing that is read."""
    stop = trace.answer.stop - 1
    answer = slice(min(trace.answer.start, stop), stop)
    ids = trace.input_ids[:stop]
    return Cropped(ids, trace.prompt, trace.reasoning, answer, input_ids_after=trace.input_ids[trace.answer])


def _packed(mask: Float[Tensor, "rows 1 query key"], size: int) -> Float[Tensor, "slots 1 queries keys"]:
    """The mask of `size` variants that stand one behind the other in a row: all see the shared columns of the cache as
    each alone would, and of the rerun columns each sees its own."""
    tail, width = mask.shape[2:]
    slots = len(mask) // size
    shared = mask[..., : width - tail].reshape(slots, 1, size * tail, width - tail)
    own = mask.new_full((slots, size, tail, size, tail), lowest(mask.dtype))
    each = torch.arange(size, device=mask.device)
    own[:, each, :, each] = mask[..., width - tail :].reshape(slots, size, tail, tail).transpose(0, 1)
    return torch.cat([shared, own.reshape(slots, 1, size * tail, size * tail)], dim=-1)


def _pick(cache: DynamicCache, rows: Tensor, upto: int) -> DynamicCache:
    """A new cache holding the given rows up to a column; the shared one stays as it is."""
    return DynamicCache([(keys[:, :, :upto][rows], values[:, :, :upto][rows]) for keys, values, *_ in cache])
