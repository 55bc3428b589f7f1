"""Between a trainer's tensors and traces: rollouts read as traces, and scores of their tokens as tensors again.

A trainer holds a batch as prompts padded on the left and completions padded on the right. `read_rollouts` makes traces
of it (which part of a completion is reasoning, which is answer), `score_rollouts` the scores that token credit reads,
[batch, completion token], NaN where a score is undefined: outside the response, and in rollouts without an answer where
a score asks how much the answer needs a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from faithlab import heads, processes, token_scores
from faithlab.attention import AttentionSummary, TraceAttention, capture, read_layers
from faithlab.errors import unknown
from faithlab.flow import trace_flows
from faithlab.formats import begun
from faithlab.generation import Rollout, end_ids, stopped
from faithlab.graph_scores import received_attention
from faithlab.models import Reasoner
from faithlab.traces import Trace

# What a score is read from: a want of `attention.capture`, or None for those of `faithlab.token_scores`.
SCORES: dict[str, str | None] = {
    "waad": "waad",
    "fai": "fai",
    "flow": "mean_map",
    "received": "mean_map",
    "entropy": "entropy",
    "gradient": None,
    "saliency": None,
    "random": None,
}
MAP_ENTRIES = 2**24  # of attention maps held at a time
TOKENS_PER_PASS = 2**15  # whose queries, keys and hidden states are held at a time


def prompt_ids(tokenizer, prompt: str | Sequence[Mapping], template: Mapping | None = None) -> list[int]:
    """The ids of a prompt: a text as it stands, begun as `formats.begun` says; messages through the chat template.
    `template` is what TRL calls `chat_template_kwargs`, such as `{"enable_thinking": False}`."""
    if isinstance(prompt, str):
        return begun(tokenizer, tokenizer(prompt, add_special_tokens=False).input_ids)
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=False) | dict(template or {})
    return tokenizer.apply_chat_template(prompt, **options)


def completion_text(completion: str | Sequence[Mapping]) -> str:
    """The text of a completion in either of TRL's forms: a string, or a list of chat messages."""
    return completion if isinstance(completion, str) else "".join(m.get("content") or "" for m in completion)


def rewarded_rollouts(
    reasoner: Reasoner,
    prompts: Sequence[str | Sequence[Mapping]],
    completions: Sequence[str | Sequence[Mapping]],
    completion_ids: Sequence[Sequence[int]] | None,
    problems: Sequence[Mapping],
    template: Mapping | None = None,
) -> list[Trace]:
    """The traces of what TRL passes to a reward function. Without the ids that were sampled, each completion is taken
    as written to its end: by its text alone nobody can say that it was cut off."""
    ids = [prompt_ids(reasoner.tokenizer, p, template) for p in prompts]
    if completion_ids is not None:
        return rollouts_of(reasoner, ids, completion_ids, problems)
    texts = [Rollout(reasoner.ids(completion_text(c)), ended=False, finished=True) for c in completions]
    return [reasoner.read(i, text, row) for i, text, row in zip(ids, texts, problems, strict=True)]


def read_rollouts(
    reasoner: Reasoner,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Int[Tensor, "batch prompt"],
    completion_ids: Int[Tensor, "batch completion"],
    completion_mask: Int[Tensor, "batch completion"],
    problems: Sequence[Mapping] | None = None,
) -> list[Trace]:
    """The trace of each rollout. What is padding is taken from the masks, never from ids."""
    rows = zip(
        prompt_ids.tolist(), prompt_mask.tolist(), completion_ids.tolist(), completion_mask.tolist(), strict=True
    )
    prompts, completions = [], []
    for prompt, real, completion, written in rows:
        prompts.append(prompt[len(prompt) - sum(real) :])
        completions.append(completion[: sum(written)])
    return rollouts_of(reasoner, prompts, completions, problems)


def rollouts_of(
    reasoner: Reasoner,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    problems: Sequence[Mapping] | None = None,
) -> list[Trace]:
    """The traces of prompts and what was written after them, as lists of token ids. A completion that ends neither in
    an end token nor in a stop string of the reasoner's format was cut off."""
    ends = end_ids(reasoner.model, reasoner.tokenizer)
    traces = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ended = bool(len(completion)) and completion[-1] in ends
        strings, written = reasoner.format.stop, torch.tensor([list(completion)], dtype=torch.long)
        finished = ended or (bool(strings) and stopped(reasoner.tokenizer, written, strings)[0])
        rollout = Rollout(list(completion), ended, finished)
        traces.append(reasoner.read(list(prompt), rollout, problems[i] if problems else {}))
    return traces


def score_rollouts(
    names: Sequence[str],
    reasoner: Reasoner,
    traces: Sequence[Trace],
    width: int,
    *,
    layers: str | Sequence[int] = "middle",
    groups: AttentionSummary | None = None,
    horizon: tuple[int, int | None] = heads.HORIZON,
    fraction: float = heads.FRACTION,
    seed: int = 0,
    saliency: Mapping | None = None,
) -> tuple[dict[str, Float[Tensor, "batch completion"]], AttentionSummary | None]:
    """The named scores (see `SCORES`), by name, on the CPU, and the head groups that were used (None if no attention
    was read).

    Args:
        width: columns of the completions.
        layers, groups, horizon, fraction: of `attention.capture`; `groups` freezes which heads are local and global.
        seed: of the random score.
        saliency: options of `faithlab.saliency.optimise_mask` for the score "saliency".

    Raises `FaithlabError` for an unknown name and whatever a score refuses.
    """
    for name in names:
        if name not in SCORES:
            raise unknown("rollout score", name, tuple(SCORES))
    out = {name: torch.full((len(traces), width), torch.nan) for name in names}
    wanted = tuple(dict.fromkeys(SCORES[n] for n in names if SCORES[n]))
    if wanted:
        options = dict(layers=layers, groups=groups, horizon=horizon, fraction=fraction)
        groups = _from_attention(out, wanted, reasoner, traces, options)
    if "random" in out:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(traces), width, generator=generator)
        for i, t in enumerate(traces):
            _place(out["random"], i, t, t.response, noise[i, : t.response.stop - t.response.start])
    mask = dict(saliency or {})
    found = dict(gradient="gradient_x_input", saliency=f"saliency_{mask.pop('scope', 'answer')}")
    for name in found.keys() & out.keys():
        options = mask if name == "saliency" else {}
        for i, values in enumerate(token_scores.score(found[name], reasoner, traces, **options)):
            _place(out[name], i, traces[i], traces[i].reasoning, values)
    return out, groups


def _place(target: Tensor, row: int, trace: Trace, span: slice, values: Tensor) -> None:
    """Values over `span` of a trace, into the columns of its completion."""
    start = span.start - trace.prompt.stop
    target[row, start : start + len(values)] = values.float()


def _from_attention(out, wanted, reasoner: Reasoner, traces: Sequence[Trace], options: dict) -> AttentionSummary | None:
    """Fill in all scores that are read from attention, by one pass over each part of the batch."""
    written = sorted(
        (i for i, t in enumerate(traces) if t.response.stop > t.response.start), key=lambda i: -len(traces[i])
    )
    choose = bool({"waad", "fai"} & {*wanted}) and options["groups"] is None
    longest = len(traces[written[0]]) if written else 1
    size = max(1, min(TOKENS_PER_PASS // longest, MAP_ENTRIES // longest**2 if "mean_map" in wanted else len(written)))
    parts = [written[first : first + size] for first in range(0, len(written), size)]
    functions: dict[str, Callable] = dict(
        waad=lambda read, t: read.waad,
        fai=lambda read, t: read.fai,
        entropy=lambda read, t: read.entropy,
        received=lambda read, t: received_attention(read.mean_map, t.response)[t.response],
    )
    # Local and global heads are chosen by all rollouts of all processes, and not by the first part's.
    if choose and (processes.count() > 1 or len(parts) > 1):
        options = options | dict(groups=_of_all([[traces[i] for i in part] for part in parts], reasoner, options))
    if not written:
        return options["groups"]
    for part in parts:
        found = capture(reasoner.model, [traces[i] for i in part], want=wanted, pad_id=reasoner.pad_id, **options)
        if options["groups"] is None:
            options = options | dict(groups=found)  # the rest of the batch reads the same heads
        for i, read in zip(part, found.traces, strict=True):
            for name in out.keys() & functions.keys():
                _place(out[name], i, traces[i], traces[i].response, functions[name](read, traces[i]))
        if "flow" in out:
            for i, through in zip(part, _throughputs(found.traces, [traces[i] for i in part]), strict=True):
                _place(out["flow"], i, traces[i], traces[i].response, through)
    return options["groups"]


def _of_all(parts: Sequence[Sequence[Trace]], reasoner: Reasoner, options: dict) -> AttentionSummary | None:
    """Distances and head groups of the traces of all processes, of which `parts` are this one's; None if there are none
    anywhere."""
    config = reasoner.model.config.get_text_config()
    layers = read_layers(options["layers"], config.num_hidden_layers)
    total, count = torch.zeros(len(layers), config.num_attention_heads), sum(map(len, parts))
    for part in parts:
        found = capture(reasoner.model, part, want=(), pad_id=reasoner.pad_id, **options)
        total += found.distance * len(part) / count
    distance = processes.weighted_mean(total, count)
    if not torch.isfinite(distance).all():
        return None
    local, global_ = heads.split_heads(distance, options["fraction"])
    return AttentionSummary(tuple(layers), distance, local, global_, traces=())


def _throughputs(read: Sequence[TraceAttention], traces: Sequence[Trace]) -> list[Float[Tensor, " response"]]:
    """Throughput of the responses' tokens before the answer, NaN on the answer, which takes in all flow by definition,
    and everywhere where no flow reaches it."""
    through = [torch.full((t.response.stop - t.response.start,), torch.nan) for t in traces]
    answered = [i for i, t in enumerate(traces) if t.answered]
    if answered:
        spans = zip(*((traces[i].prompt, traces[i].answer) for i in answered), strict=True)
        for i, flow in zip(answered, trace_flows([read[i].mean_map for i in answered], *spans), strict=True):
            if flow.reachable:
                inner = slice(traces[i].reasoning.start, traces[i].answer.start)
                through[i][: inner.stop - inner.start] = flow.throughput[inner].float()
    return through
