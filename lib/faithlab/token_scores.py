"""Every way to score reasoning tokens, behind one call: `score(name, reasoner, traces)`.

A score is one number a reasoning token, higher for "the answer needs it more", on the CPU, one tensor a trace. The
cheap relatives of the optimised mask are defined here; attention and flow scores come from parts of their own:

    mask        saliency_answer, saliency_all             the optimised mask of `faithlab.saliency`
                mask_network                              its prediction, by the `network` that is passed
    gradient    gradient_open, gradient_floor, integrated_gradients, gradient_x_input
    causal      cut_answer, cut_all                       leave one out (AtMan, arXiv 2301.08110)
    attention   last_layer, answer_attention, received, rollout, flow, waad, fai
    control     entropy, position, random
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from faithlab import heads
from faithlab.attention import capture, read_layers
from faithlab.batches import collate, longest_first
from faithlab.biases import frozen
from faithlab.errors import FaithlabError, check_known, unknown
from faithlab.faithfulness import token_effects
from faithlab.flow import trace_flows
from faithlab.generation import stream_key
from faithlab.graph_scores import attention_rollout, received_attention
from faithlab.likelihood import until_answer
from faithlab.mask_network import MaskNetwork, predict_masks
from faithlab.masked_answer import MaskedAnswer
from faithlab.saliency import FLOOR, TOKENS_BEFORE_ANSWERS, TOKENS_PER_BATCH, batches_of, optimise_mask, undefined
from faithlab.saliency import OPTIONS as MASK_OPTIONS
from faithlab.traces import Trace

Scores = list[Float[Tensor, " token"]]
PATH_POINTS = 16  # of integrated gradients
MAPS_AT_ONCE = 2**24  # entries of attention maps held at a time
OPTIONS = ("network", "horizon", "progress", *sorted(MASK_OPTIONS - {"scope"}))  # of `score`
_GROUPS: dict[str, str] = {}
_FUNCTIONS: dict[str, Callable[..., Scores]] = {}


def _register(group: str, *names: str):
    def wrap(function):
        for name in names or (function.__name__,):
            _GROUPS[name], _FUNCTIONS[name] = group, function
        return function

    return wrap


def names(group: str | None = None) -> tuple[str, ...]:
    """The scores there are, or those of a group."""
    return tuple(n for n, g in _GROUPS.items() if group in (None, g))


def group_of(name: str) -> str:
    """The group of a score: mask, gradient, causal, attention or control."""
    return _GROUPS[name]


def score(name: str, reasoner, traces: Sequence[Trace], *, seed: int = 0, **options) -> Scores:
    """The named score of each trace's reasoning tokens; NaN where it is undefined.

    Options: `network` of "mask_network"; `horizon` of "waad" and "fai"; `floor` of "gradient_floor" and
    "integrated_gradients"; and of the optimised masks all of `optimise_mask`'s but `scope`, which the name says. A
    score ignores options of others, so that one call can serve many scores.

    Raises `FaithlabError` for an unknown name or option, and whatever the score itself refuses.
    """
    if name not in _FUNCTIONS:
        raise unknown("score", name, tuple(_FUNCTIONS))
    check_known("option of a score", options, OPTIONS)
    return _FUNCTIONS[name](reasoner, traces, name=name, seed=seed, **options)


@_register("mask", "saliency_answer", "saliency_all")
def _saliency(reasoner, traces, *, name, seed, network=None, horizon=None, **options) -> Scores:
    scope = name.split("_")[1]
    return optimise_mask(reasoner.model, traces, scope=scope, pad_id=reasoner.pad_id, **options).values


@_register("mask")
def mask_network(reasoner, traces, *, network: MaskNetwork | None = None, **unused) -> Scores:
    """What `network`, a trained `faithlab.mask_network.MaskNetwork`, predicts. Raises `FaithlabError` without one."""
    if network is None:
        raise FaithlabError("the score 'mask_network' needs network=, a trained MaskNetwork")
    return predict_masks(network, reasoner.model, traces, pad_id=reasoner.pad_id)


def _mask_gradients(reasoner, traces, points: Sequence[float]) -> Scores:
    """Mean over `points` of the gradient of log p(answer) by the mask, with the whole mask at that value."""
    out = [undefined(t) for t in traces]
    with frozen(reasoner.model):
        for batch in batches_of(traces, tokens=TOKENS_BEFORE_ANSWERS):
            problem = MaskedAnswer(reasoner.model, [traces[i] for i in batch], "answer", reasoner.pad_id)
            total = torch.zeros(problem.valid.shape, device=problem.ids.device)
            for point in points:
                mask = torch.full_like(total, point).requires_grad_(True)
                total += torch.autograd.grad(problem.logp(mask).sum(), mask)[0] / len(points)
            for row, i in enumerate(batch):
                out[i] = total[row, : traces[i].reasoning.stop - traces[i].reasoning.start].cpu()
    return out


@_register("gradient")
def gradient_open(reasoner, traces, **unused) -> Scores:
    """d log p(answer) / d m at m = 0: what closing a token a little would cost."""
    return _mask_gradients(reasoner, traces, [0.0])


@_register("gradient")
def gradient_floor(reasoner, traces, *, floor: float = FLOOR, **unused) -> Scores:
    """d log p(answer) / d m with all the reasoning at the floor: what opening a token a little would bring."""
    return _mask_gradients(reasoner, traces, [floor])


@_register("gradient")
def integrated_gradients(reasoner, traces, *, floor: float = FLOOR, **unused) -> Scores:
    """-c times the mean gradient on the straight way from the floor c to 0 (midpoints of 16 parts). The scores of a
    trace sum to log p(answer) less log p with all the reasoning at the floor, up to the width of the parts."""
    points = [floor * (k + 0.5) / PATH_POINTS for k in range(PATH_POINTS)]
    return [-floor * g for g in _mask_gradients(reasoner, traces, points)]


@_register("gradient")
def gradient_x_input(reasoner, traces, **unused) -> Scores:
    """|embedding . d log p(answer) / d embedding| of each token."""
    out, model = [undefined(t) for t in traces], reasoner.model
    with frozen(model):
        for batch in batches_of(traces):
            cropped = [until_answer(traces[i]) for i in batch]
            b = collate(cropped, pad_id=reasoner.pad_id, device=model.device)
            embedded = model.get_input_embeddings()(b.input_ids).detach().requires_grad_(True)
            keep = max(len(t.input_ids_after) for t in cropped)
            options = dict(attention_mask=b.attention_mask, position_ids=b.position_ids, use_cache=False)
            logits = model(inputs_embeds=embedded, logits_to_keep=keep, **options).logits.float().log_softmax(-1)
            total = sum(
                logits[row, -len(t.input_ids_after) :].gather(-1, t.input_ids_after[:, None].to(logits.device)).sum()
                for row, t in enumerate(cropped)
            )
            product = (torch.autograd.grad(total, embedded)[0] * embedded).sum(-1).abs()
            for row, i in enumerate(batch):
                start = int(b.starts[row])
                span = traces[i].reasoning
                out[i] = product[row, start + span.start : start + span.stop].detach().float().cpu()
    return out


@_register("causal", "cut_answer", "cut_all")
def _cut(reasoner, traces, *, name, **unused) -> Scores:
    table = token_effects(reasoner, traces, method="cut", scope=name.split("_")[1])
    out = [undefined(t) for t in traces]
    for i, part in table.groupby("trace"):
        out[i] = torch.tensor(part["effect"].to_numpy(), dtype=torch.float32)
    return out


def _maps(reasoner, traces, layers, want: str) -> Iterator[tuple[list[int], list[Tensor]]]:
    """The "mean_map" [query, key] or the "layer_maps" [layer, query, key] of the layers: numbers of traces that are
    read together, and the map of each. Traces without an answer are left out."""
    lengths = {i: len(t) for i, t in enumerate(traces) if t.answered}
    count = len(read_layers(layers, _depth(reasoner))) if want == "layer_maps" else 1
    for some in longest_first(lengths, lambda n: min(MAPS_AT_ONCE // (count * n**2), TOKENS_PER_BATCH // n)):
        found = capture(reasoner.model, [traces[i] for i in some], layers=layers, want=(want,), pad_id=reasoner.pad_id)
        yield some, [getattr(t, want) for t in found.traces]


def _depth(reasoner) -> int:
    return reasoner.model.config.get_text_config().num_hidden_layers


def _readers(trace: Trace) -> slice:
    """The rows that predict the answer's tokens."""
    return slice(trace.answer.start - 1, trace.answer.stop - 1)


def _from_maps(layers, function, want: str = "mean_map") -> Callable[..., Scores]:
    def scores(reasoner, traces, **unused) -> Scores:
        out = [undefined(t) for t in traces]
        chosen = [_depth(reasoner) - 1] if layers == "last" else layers
        for some, maps in _maps(reasoner, traces, chosen, want):
            for i, found in zip(some, maps, strict=True):
                out[i] = function(found, traces[i])[traces[i].reasoning].float()
        return out

    return scores


_register("attention", "last_layer")(_from_maps("last", lambda read, t: read[_readers(t)].mean(0)))
_register("attention", "answer_attention")(_from_maps("middle", lambda read, t: read[_readers(t)].mean(0)))
_register("attention", "received")(_from_maps("middle", lambda read, t: received_attention(read, t.response)))
_register("attention", "rollout")(
    _from_maps("all", lambda maps, t: attention_rollout(maps, _readers(t)), want="layer_maps")
)


@_register("attention", "flow")
def _flow(reasoner, traces, **unused) -> Scores:
    out = [undefined(t) for t in traces]
    for some, maps in _maps(reasoner, traces, "middle", "mean_map"):
        flows = trace_flows(maps, [traces[i].prompt for i in some], [traces[i].answer for i in some])
        for i, flow in zip(some, flows, strict=True):
            out[i] = flow.throughput[traces[i].reasoning].float()
    return out


@_register("attention", "waad", "fai")
def _profiles(reasoner, traces, *, name, horizon=(heads.HORIZON[0], None), **unused) -> Scores:
    return _from_response(reasoner, traces, name, want=("profiles",), horizon=horizon)


@_register("control")
def entropy(reasoner, traces, **unused) -> Scores:
    """The entropy of the distribution that each token was drawn from."""
    return _from_response(reasoner, traces, "entropy", want=("entropy",))


def _from_response(reasoner, traces, name: str, **options) -> Scores:
    """What `capture` reads over the response, of the reasoning; NaN for traces without any response."""
    out = [undefined(t) for t in traces]
    written = [i for i, t in enumerate(traces) if t.response.stop > t.response.start]
    if written:
        found = capture(reasoner.model, [traces[i] for i in written], pad_id=reasoner.pad_id, **options)
        for i, read in zip(written, found.traces, strict=True):
            out[i] = getattr(read, name)[: traces[i].reasoning.stop - traces[i].reasoning.start]
    return out


@_register("control")
def position(reasoner, traces, **unused) -> Scores:
    """How late a token stands: 0 for the first, 1 for the last."""
    return [torch.linspace(0, 1, t.reasoning.stop - t.reasoning.start) for t in traces]


@_register("control", "random")
def _random(reasoner, traces, *, seed, **unused) -> Scores:
    """Uniform noise, from a stream of its own for each trace."""
    out = []
    for i, t in enumerate(traces):
        generator = torch.Generator().manual_seed(stream_key(seed, i, 0))
        out.append(torch.rand(t.reasoning.stop - t.reasoning.start, generator=generator))
    return out
