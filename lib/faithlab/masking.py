"""The greedy answer of a trace when some of its reasoning tokens cannot be seen by any later token.

This is the test that FlowTracer (arXiv 2606.10646) puts its ranking to: hide the tokens that carry most flow, or least,
or random ones, and see whether the answer changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from faithlab.attention import cut_bias, model_mask
from faithlab.batches import collate, longest_first
from faithlab.biases import check_window, evaluating
from faithlab.errors import FaithlabError, unknown
from faithlab.generation import cut_rollout, end_ids
from faithlab.prefill import prefill, shared_prefix
from faithlab.tasks.scoring import Score, gold_of, same_answer
from faithlab.traces import Trace

ANSWER_TOKENS = 16
PAIRS = 2**22  # of positions in a batch, traces x N x N: its bias is a few times this many bytes


@torch.no_grad()
def masked_answers(
    reasoner, traces: Sequence[Trace], hidden: Sequence[Sequence[int]], *, progress: bool = False
) -> list[str]:
    """The greedy answer behind each trace's reasoning and marker, with the attention of every later token to the
    `hidden` reasoning positions cut, in all layers and heads. Nothing is moved: positions stay as they were.

    Raises `FaithlabError` for a position outside the reasoning, or traces that end before an answer.
    """
    for t, positions in zip(traces, hidden, strict=True):
        if any(not t.reasoning.start <= p < t.reasoning.stop for p in positions):
            raise FaithlabError(
                f"only reasoning positions ({t.reasoning.start} to {t.reasoning.stop - 1}) can be hidden"
            )
        if t.answer.stop <= t.answer.start:
            raise FaithlabError("a trace without an answer has no place at which to ask for one")
    check_window(reasoner.model, (t.answer.start for t in traces))
    out = [""] * len(traces)
    bar = tqdm(total=len(traces), desc="masked answers", disable=not progress, unit="trace", leave=False)
    with bar, evaluating(reasoner.model):
        for some in longest_first(dict(enumerate(map(len, traces))), lambda n: PAIRS // n**2):
            answers = _answers(reasoner, [traces[i] for i in some], [hidden[i] for i in some])
            for i, answer in zip(some, answers, strict=True):
                out[i] = answer
            bar.update(len(some))
    return out


def _answers(reasoner, traces: Sequence[Trace], hidden: Sequence[Sequence[int]]) -> list[str]:
    model = reasoner.model
    opened = [
        Trace(t.input_ids[: t.answer.start], t.prompt, t.reasoning, slice(t.answer.start, t.answer.start))
        for t in traces
    ]
    shared = shared_prefix(model, [t.input_ids[t.prompt].tolist() for t in opened])  # such as few-shot examples
    batch = collate(opened, pad_id=reasoner.pad_id, shared=shared, device=reasoner.device)
    ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    cut = torch.zeros_like(ids, dtype=torch.bool)
    for row, (start, dark) in enumerate(zip(batch.starts.tolist(), hidden, strict=True)):
        cut[row, batch.columns(start, dark)] = True
    # A hidden token still sees itself and what stood before it; those behind it do not see it.
    n = ids.shape[1]
    later = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril(-1)
    bias = torch.where(later, cut_bias(torch.ones_like(cut), cut, model.dtype), 0.0)[:, shared:]
    cache, written = prefill(model, ids, mask, positions, shared, shared), []
    ended = torch.zeros(len(traces), dtype=torch.bool, device=ids.device)
    ends = end_ids(model, reasoner.tokenizer)
    stops = torch.tensor(sorted(ends), device=ids.device)
    for _ in range(ANSWER_TOKENS):
        first = cache.get_seq_length()
        logits = model(
            input_ids=ids[:, first:],
            attention_mask=model_mask(model, mask, first_query=first, bias=bias),
            position_ids=positions[:, first:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if not torch.isfinite(logits).all():
            raise FaithlabError("the model's logits are not finite: load it in float32, or check its weights for NaN")
        token = logits.argmax(-1, keepdim=True)
        written.append(token)
        ended |= torch.isin(token[:, 0], stops)
        if ended.all():
            break
        ids, positions = torch.cat([ids, token], 1), torch.cat([positions, positions[:, -1:] + 1], 1)
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        cut = torch.cat([cut, torch.zeros_like(token, dtype=torch.bool)], 1)
        bias = cut_bias(torch.ones_like(token, dtype=torch.bool), cut, model.dtype)
    answers = []
    for t, o, tokens in zip(traces, opened, torch.cat(written, 1).tolist(), strict=True):
        rollout = cut_rollout(tokens, ends, reasoner.format.stop, reasoner.tokenizer)
        rollout = dataclasses.replace(rollout, ids=o.input_ids[o.prompt.stop :].tolist() + rollout.ids)
        answers.append(reasoner.read(o.input_ids[o.prompt].tolist(), rollout, t.problem or "").answer_text)
    return answers


def extremes(scores: Sequence[float], share: float, kind: str, rng: np.random.Generator) -> list[int]:
    """Indices of the `share` (at least one) of highest ("top") or lowest ("bottom") scores, or of a random one.

    NaN comes last in either ranking, and ties are broken at random. Raises `FaithlabError` for another kind.
    """
    values = np.nan_to_num(np.asarray(scores, dtype=float), nan=np.inf if kind == "bottom" else -np.inf)
    count = max(1, round(share * len(values)))
    order = np.lexsort((rng.random(len(values)), values))
    picked = dict(top=order[::-1], bottom=order, random=rng.permutation(len(values)))
    if kind not in picked:
        raise unknown("kind of masking", kind, picked)
    return sorted(int(i) for i in picked[kind][:count])


def masking_test(
    reasoner,
    traces: Sequence[Trace],
    scores: Sequence[Sequence[float]],
    score: Callable[..., Score],
    *,
    share: float = 0.2,
    kinds: Sequence[str] = ("top", "random", "bottom"),
    before: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Hide a share of each reasoning by rank of `scores` (one a reasoning token) and answer again.

    One row a trace and kind: `trace, masked, hidden` (how many), `changed` (1 where the answer is another than with
    nothing hidden), `right` (before) and `flipped` (1 where it was right and is not any more; NaN where it was wrong).
    `score` is the task's scorer; `before` the answers with nothing hidden, where they are known from an earlier call.

    Raises `FaithlabError` for scores that are not one a reasoning token, an unknown kind, or traces without an answer.
    """
    if before is None:
        before = masked_answers(reasoner, traces, [[] for _ in traces], progress=progress)
    rows = []
    for kind in kinds:
        rng = np.random.default_rng([seed, *kind.encode()])
        hidden = []
        for t, values in zip(traces, scores, strict=True):
            if len(values) != t.reasoning.stop - t.reasoning.start:
                raise FaithlabError(f"{len(values)} scores for {t.reasoning.stop - t.reasoning.start} reasoning tokens")
            hidden.append([t.reasoning.start + i for i in extremes(values, share, kind, rng)] if len(values) else [])
        after = masked_answers(reasoner, traces, hidden, progress=progress)
        for i, (t, old, new) in enumerate(zip(traces, before, after, strict=True)):
            right = bool(score(old, t.problem).value)
            flipped = float(not score(new, t.problem).value) if right else np.nan
            changed = float(not same_answer(old, new, gold_of(t.problem)))
            rows.append(
                dict(trace=i, masked=kind, hidden=len(hidden[i]), changed=changed, right=right, flipped=flipped)
            )
    return pd.DataFrame(rows, columns=["trace", "masked", "hidden", "changed", "right", "flipped"])
