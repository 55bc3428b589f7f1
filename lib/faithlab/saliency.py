"""Which reasoning tokens does the answer need? A mask found by gradient descent (AtManRL, arXiv 2604.16158).

Each reasoning token j gets a bias `m[j]` on the attention scores of its column (see `faithlab.masked_answer`). It
starts at a floor c < 0, all reasoning suppressed, and gradient steps on m alone, within [c, b], restore the answer's
likelihood at the least price:

    minimise   -log p(answer | m)  +  sparsity * mean_j u[j],      u[j] = (m[j] - c) / (b - c) in [0, 1]

(log p per answer token if `normalise`). Tokens that had to be opened again are the ones the answer needs, so the
saliency is `s[j] = 1 - m[j] / c`: 0 suppressed, 1 as it was, above 1 turned up (only with a ceiling b > 0). The paper
prints the formula with the other sign, s = m / c, which is `sign="suppressed"` here.

Traces are independent of each other: each stops when its loss no longer falls, and leaves the batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from faithlab.batches import longest_first
from faithlab.biases import frozen
from faithlab.errors import FaithlabError, check_known, check_number, keyword_options, unknown
from faithlab.granularity import GRANULARITIES, Layout, Split, make_layout
from faithlab.likelihood import SCOPES, Scope
from faithlab.masked_answer import MaskedAnswer
from faithlab.traces import Trace
from faithlab.units import sentences

OPTIMISERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
SIGNS = ("reopened", "suppressed")
PARAMETRISATIONS = ("projected", "sigmoid")
FLOOR, SPARSITY, STEPS, RATE = -12.0, 4.0, 60, 0.1  # chosen in notebook 04
PATIENCE = 15  # with 5 the mask stops a third sooner, before its small values have come to rest (bench_saliency)
TOKENS_PER_BATCH = 8192  # padded tokens of one batch
TOKENS_BEFORE_ANSWERS = 2**14  # where all but the answer's rows are computed once: there is less to keep
SMALLEST_START = 0.02  # of the sigmoid, whose gradient vanishes at 0, and at 1


@dataclass(frozen=True)
class Saliency:
    """What `optimise_mask` found, trace by trace, on the CPU. A trace has R reasoning tokens.

    `mask` are the biases m, [token], [head, token] or [layer, head, token]. `full_logp`, `suppressed_logp` and
    `restored_logp` are log p(answer) in nats without a mask, with all of the reasoning at the floor, and under the mask
    found. `steps` were taken; `converged` says that the loss had stopped falling before the limit. A trace without an
    answer has NaN everywhere and 0 steps; one without reasoning has an empty mask.
    """

    traces: tuple[Trace, ...] = field(repr=False)
    mask: tuple[Float[Tensor, "*lead token"], ...] = field(repr=False)
    full_logp: Float[Tensor, " trace"]
    suppressed_logp: Float[Tensor, " trace"]
    restored_logp: Float[Tensor, " trace"]
    steps: Int[Tensor, " trace"]
    converged: Bool[Tensor, " trace"]
    floor: float
    sign: str = "reopened"

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def per_head(self) -> list[Float[Tensor, "*lead token"]]:
        """Saliency with its head (and layer) dimensions, where the mask has them."""
        share = [m / self.floor for m in self.mask]
        return share if self.sign == "suppressed" else [1 - s for s in share]

    @property
    def values(self) -> list[Float[Tensor, " token"]]:
        """Saliency of each reasoning token, one tensor a trace; a mean over heads where the mask has heads."""
        return [s.flatten(0, -2).mean(0) if s.ndim > 1 else s for s in self.per_head]

    def top(self, k: int = 5) -> list[list[int]]:
        """The positions of the `k` most salient reasoning tokens of each trace, most salient first; ties go to the
        earlier token."""
        out = []
        for trace, s in zip(self.traces, self.values, strict=True):
            order = torch.nan_to_num(-s, nan=torch.inf).argsort(stable=True)[: min(k, len(s))]
            out.append([trace.reasoning.start + i for i in order.tolist()])
        return out

    def table(self) -> pd.DataFrame:
        """One row a reasoning token: `trace, position, text, saliency`."""
        rows = []
        for i, (trace, s) in enumerate(zip(self.traces, self.values, strict=True)):
            for offset, value in enumerate(s.tolist()):
                position = trace.reasoning.start + offset
                text = trace.pieces[position] if trace.pieces else ""
                rows.append(dict(trace=i, position=position, text=text, saliency=value))
        return pd.DataFrame(rows, columns=["trace", "position", "text", "saliency"])

    def summary(self) -> pd.DataFrame:
        """One row a trace: log p without mask, suppressed and restored, the mean saliency, steps and convergence."""
        columns = dict(trace=range(len(self)), full_logp=self.full_logp, suppressed_logp=self.suppressed_logp)
        mean = [float(s.mean()) if len(s) else float("nan") for s in self.values]
        columns |= dict(restored_logp=self.restored_logp, mean=mean, steps=self.steps, converged=self.converged)
        return pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()})


def optimise_mask(
    model,
    traces: Sequence[Trace],
    *,
    scope: Scope = "answer",
    floor: float = FLOOR,
    ceiling: float = 0.0,
    sparsity: float = SPARSITY,
    steps: int = STEPS,
    granularity: str = "token",
    optimiser: str = "adam",
    rate: float = RATE,
    parametrisation: str = "projected",
    start: float = 0.5,
    sign: str = "reopened",
    normalise: bool = False,
    patience: int = PATIENCE,
    tolerance: float = 1e-3,
    split: Split = sentences,
    pad_id: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Saliency:
    """Find, for each trace, the mask on its reasoning under which its answer stays likely at the least opening.

    The target is the answer that stands in the trace: the model's own, or another (see `Reasoner.answering`).

    Args:
        model: a causal language model of transformers that was loaded with the eager or sdpa attention backend. Its
            weights get no gradient, and it is left as it was.
        scope: "answer" (direct influence) or "all" (relayed influence too): see `faithlab.masked_answer`.
        floor, ceiling: the ends c < 0 <= b of the mask. The paper has c = -0.4; b > 0 can turn tokens up.
        sparsity: what opening everything costs, in nats.
        steps, patience, tolerance: at most so many steps; a trace is done once `patience` steps in a row have lowered
            its best loss by less than `tolerance` nats.
        granularity: "token", "sentence" (as `split` finds them), "hierarchical", "head", "layer_head".
        optimiser, rate: "adam" or "sgd" (as published), with the rate of a step in units of u.
        parametrisation: "projected" (u itself, put back into [0, 1] after each step) or "sigmoid".
        start: u before the first step. 0 is the floor, as published; where that is deep there is no gradient to start
            with. The sigmoid starts between 0.02 and 0.98.
        sign: "reopened" or "suppressed", see the module's head.
        normalise: log p per answer token instead of in sum.

    Raises:
        FaithlabError: settings out of range or unknown names, no traces, a trace longer than the model's window, log p
            that is not finite.
    """
    _check(floor, ceiling, sparsity, steps, rate, start, patience, tolerance)
    _check_names(dict(optimiser=optimiser, sign=sign, parametrisation=parametrisation))
    traces = tuple(traces)
    if not traces:
        raise FaithlabError("no traces to find a mask for; give at least one")
    found = {name: torch.full((len(traces),), torch.nan) for name in ("full_logp", "suppressed_logp", "restored_logp")}
    found |= dict(steps=torch.zeros(len(traces), dtype=torch.long), converged=torch.zeros(len(traces)).bool())
    masks = [undefined(t) for t in traces]
    bar = tqdm(total=len(traces), disable=not progress, desc="masks", unit="trace", leave=False)
    with bar, frozen(model):
        for batch in batches_of(traces, batch_size, TOKENS_BEFORE_ANSWERS if scope == "answer" else TOKENS_PER_BATCH):
            problem = MaskedAnswer(model, [traces[i] for i in batch], scope, pad_id)
            layout = make_layout(granularity, [traces[i] for i in batch], problem.valid, model.config, split)
            settings = dict(floor=floor, ceiling=ceiling, sparsity=sparsity, steps=steps, normalise=normalise)
            settings |= dict(patience=patience, tolerance=tolerance)
            part = _descend(problem, layout, OPTIMISERS[optimiser], rate, parametrisation, start, **settings)
            bias = part.pop("bias").cpu()
            for row, i in enumerate(batch):
                masks[i] = bias[row, ..., : traces[i].reasoning.stop - traces[i].reasoning.start]
            for name, value in part.items():
                found[name][batch] = value.cpu().to(found[name].dtype)
            bar.update(len(batch))
    return Saliency(traces, tuple(masks), **found, floor=floor, sign=sign)


def _descend(
    problem: MaskedAnswer, layout: Layout, optimiser, rate, parametrisation, start, *, floor, ceiling, sparsity, steps,
    normalise, patience, tolerance,
) -> dict[str, Tensor]:  # fmt: skip
    """The descent for one batch: the best bias of each trace, and what `Saliency` tells of it."""
    count, dtype, device = len(problem), torch.promote_types(problem.model.dtype, torch.float32), problem.ids.device
    smooth = parametrisation == "sigmoid"
    inner = min(max(start, SMALLEST_START), 1 - SMALLEST_START)  # at its ends the sigmoid has no gradient
    value = torch.logit(torch.tensor(inner)).item() if smooth else start
    theta = layout.start(value, dtype)
    for t in theta.values():
        t.requires_grad_(True)
    descent = optimiser(list(theta.values()), lr=rate)

    def bias_of(parts):
        return floor + (ceiling - floor) * layout.expand(parts)

    with torch.no_grad():
        full = problem.logp()
        suppressed = problem.logp(bias_of(layout.start(0.0, dtype)))
    length = (problem.targets >= 0).sum(1) if normalise else torch.ones(count, device=device)
    best = torch.full((count,), torch.inf, dtype=dtype, device=device)
    found = bias_of(layout.start(0.0, dtype))
    restored, taken = suppressed.clone(), torch.zeros(count, dtype=torch.long, device=device)
    stale = torch.zeros_like(taken)
    live = torch.arange(count, device=device)
    for _ in range(steps):
        parts = {k: torch.sigmoid(t) if smooth else t for k, t in theta.items()}
        bias = bias_of(parts)
        logp = problem.logp(bias[live])
        loss = sparsity * layout.price(parts)[live] - logp / length[live]
        descent.zero_grad()
        loss.sum().backward()
        with torch.no_grad():
            gain = best[live] - loss
            better = live[gain > 0]
            best[better], found[better], restored[better] = loss[gain > 0], bias[better], logp[gain > 0]
            taken[live] += 1
            stale[live] = torch.where(gain > tolerance, 0, stale[live] + 1)
            going = stale[live] < patience
            if not going.any():
                break
            if not going.all():
                problem.keep(going.nonzero().flatten().tolist())
                live = live[going]
        descent.step()
        if not smooth:
            with torch.no_grad():
                for t in theta.values():
                    t.clamp_(0, 1)
    return dict(
        bias=found, full_logp=full, suppressed_logp=suppressed, restored_logp=restored, steps=taken,
        converged=stale >= patience,
    )  # fmt: skip


def check_options(options: Mapping[str, object]) -> None:
    """Raise `FaithlabError` unless these are options of `optimise_mask`, with numbers and names that are possible."""
    check_known("option of a mask:", options, sorted(OPTIONS))
    numbers = inspect.signature(_check).parameters
    defaults = {k: p.default for k, p in inspect.signature(optimise_mask).parameters.items() if k in numbers}
    _check(**defaults | {k: v for k, v in options.items() if k in numbers})
    _check_names(options)


def undefined(trace: Trace) -> Float[Tensor, " token"]:
    """A score of the trace's reasoning tokens that is nowhere defined: NaN."""
    return torch.full((trace.reasoning.stop - trace.reasoning.start,), torch.nan)


def batches_of(traces: Sequence[Trace], size: int | None = None, tokens: int | None = None) -> Iterator[list[int]]:
    """Numbers of the traces that have an answer, in batches of like length: `size` at once, or as many as hold about so
    many tokens (default: `TOKENS_PER_BATCH`)."""
    tokens = TOKENS_PER_BATCH if tokens is None else tokens
    lengths = {i: len(t) for i, t in enumerate(traces) if t.answered}
    return longest_first(lengths, lambda length: size or tokens // length)


def _check(floor, ceiling, sparsity, steps, rate, start, patience, tolerance) -> None:
    numbers = all(isinstance(v, Real) for v in (floor, ceiling))
    if not (numbers and -math.inf < floor < 0 <= ceiling < math.inf):
        raise FaithlabError(f"a mask from {floor} to {ceiling} is not possible; use floor < 0 <= ceiling")
    check_number("sparsity", sparsity, 0)
    check_number("steps", steps, 1, whole=True)
    check_number("rate", rate, 0, above=True)
    check_number("start", start, 0, 1)
    check_number("patience", patience, 1, whole=True)
    check_number("tolerance", tolerance, 0)


def _check_names(options: Mapping[str, object]) -> None:
    for kind, known in NAMES.items():
        name = options.get(kind, known[0])
        if name not in known:
            raise unknown(kind, name, known)


NAMES = dict(
    scope=SCOPES, granularity=GRANULARITIES, optimiser=tuple(OPTIMISERS), sign=tuple(SIGNS),
    parametrisation=tuple(PARAMETRISATIONS),
)  # fmt: skip
OPTIONS = frozenset(keyword_options(optimise_mask) - {"pad_id", "progress"})
