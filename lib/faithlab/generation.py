"""Batched, seeded generation whose result does not depend on which prompts share a batch.

Sampling uses the Gumbel-max trick: adding independent Gumbel noise to log-probabilities and taking the largest is a
draw from them. The noise of a rollout comes from its own random stream, keyed by (seed, prompt number, sample number),
so a rollout is the same alone, in another batch, or after a resumed run. Everything else is transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from faithlab.batches import pad_rows
from faithlab.biases import context_window, evaluating
from faithlab.errors import FaithlabError, check_number
from faithlab.prefill import prefill, repeated, shared_prefix
from faithlab.traces import token_pieces

TOKENS_PER_BATCH = 49_152  # prompt plus new tokens of one batch; keeps abacus quick and SmolLM2 within a few GB
WORTH_THINNING = 8  # rows; what a smaller batch saves by leaving ended rows out is less than a fresh start costs


def end_ids(model, tokenizer) -> set[int]:
    """The tokens that end a rollout: the checkpoint's, and the tokenizer's, for chat models often end their turn with
    another one than the base model's."""
    end = model.generation_config.eos_token_id
    return {*(end if isinstance(end, list) else [end]), tokenizer.eos_token_id} - {None}


@dataclass(frozen=True)
class Rollout:
    """Token ids written after a prompt; `ended`: the last is the end token; `finished`: not cut off by the limit."""

    ids: list[int]
    ended: bool
    finished: bool


class RefuseNaN(LogitsProcessor):
    """Raises `FaithlabError` where the model's logits are NaN or plus infinity, instead of sampling nonsense."""

    def __call__(self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocab"]):
        if torch.isnan(scores).any() or torch.isposinf(scores).any():
            rows = torch.isnan(scores).any(-1).nonzero().flatten().tolist()
            raise FaithlabError(
                f"the model's logits are not finite (rows {rows[:5]} of the batch, after {input_ids.shape[1]} tokens): "
                "load it in float32, or check the checkpoint for NaN weights"
            )
        return scores


class GumbelNoise(LogitsProcessor):
    """Add each row's own Gumbel noise, so that greedy decoding of the result is a sample."""

    def __init__(self, keys: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(key) for key in keys]

    def __call__(self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocab"]):
        uniform = torch.empty(scores.shape, dtype=torch.float64)
        for row, generator in zip(uniform, self.generators, strict=True):
            row.uniform_(generator=generator)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        # log_softmax first: the noise is on the scale of log-probabilities, and -inf (filtered tokens) stays -inf
        return torch.log_softmax(scores.double(), -1) + gumbel.to(scores.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.generators = [self.generators[row] for row in rows]


class Ended(StoppingCriteria):
    """Which rows have ended, by an end token or by one of the strings in the text they have written.

    A row that has ended costs as much as one that goes on. So the whole batch is stopped once half of it has ended, and
    `_write` goes on with the others alone. transformers' own `StopStringCriteria` fails on tokenizers with a closed
    vocabulary, so the text is looked at.
    """

    def __init__(self, tokenizer, ends: set[int], strings: Sequence[str], start: int, rows: int, device):
        self.tokenizer, self.strings, self.start = tokenizer, tuple(strings), start
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        self.rows = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: Int[Tensor, "batch tokens"], scores, **kwargs):
        self.rows |= torch.isin(input_ids[:, -1], self.ends)
        if self.strings:
            hits = stopped(self.tokenizer, input_ids[:, self.start :], self.strings)
            self.rows |= torch.tensor(hits, device=input_ids.device)
        if len(self.rows) >= WORTH_THINNING and 2 * int(self.rows.sum()) >= len(self.rows):
            return torch.ones_like(self.rows)
        return self.rows.clone()


def stopped(tokenizer, written: Int[Tensor, "batch tokens"], strings: Sequence[str]) -> list[bool]:
    """Whether one of the strings stands at the end of what a row has written; none does where there are none."""
    tail = max(map(len, strings), default=0) + 8  # a token holds at least one character, or is a special one
    recent = written[:, max(0, written.shape[1] - tail) :]
    texts = tokenizer.batch_decode(recent, clean_up_tokenization_spaces=False)  # as `token_pieces` does
    return [any(s in text for s in strings) for text in texts]


def stream_key(seed: int, prompt: int, sample: int) -> int:
    """A 63-bit key for one rollout's random stream, mixed so that the lower 32 bits, which are all that torch's CPU
    generator reads, differ as well."""
    mixed = (seed * 0x9E3779B97F4A7C15 + prompt * 0xBF58476D1CE4E5B9 + sample * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return (mixed * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1


def _plan(lengths: Sequence[int], new: Sequence[int], batch_size: int | None) -> list[list[int]]:
    """Indices in batches of like length, longest first (so that a lack of memory shows at once).

    A batch has one limit of new tokens: a prompt near the window's end must not shorten what others may write.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        first = batches[-1][0] if batches else i
        limit = batch_size or max(1, TOKENS_PER_BATCH // (lengths[first] + new[first]))
        if not batches or len(batches[-1]) >= limit or new[first] != new[i]:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.no_grad()
def generate_ids(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    progress: str | None = None,
) -> list[Rollout]:
    """One rollout per prompt, in the order given. `temperature=0` is greedy; `keys` seed each rollout's noise.

    Prompts are left-padded behind what all of them have in common; padding is known by position, never by id.
    `progress` labels a progress bar (None: no bar). A prompt that leaves less than `max_new_tokens` of the model's
    window is continued to the window's end. Raises `FaithlabError` for an empty prompt, a prompt that fills the window,
    a logit that is not finite, or settings out of range.
    """
    check_number("temperature", temperature, 0)
    check_number("top_p", top_p, 0, 1, above=True)
    check_number("top_k", top_k, 0, whole=True)
    check_number("max_new_tokens", max_new_tokens, 1, whole=True)
    if batch_size is not None:
        check_number("batch_size", batch_size, 1, whole=True)
    if any(len(p) == 0 for p in prompts):
        raise FaithlabError("a prompt without tokens cannot be continued")
    window = context_window(model)
    longest = max(map(len, prompts), default=0)
    if window and longest >= window:
        raise FaithlabError(f"a prompt of {longest} tokens does not fit the model's window of {window}; shorten it")
    limits = [min(max_new_tokens, window - len(p)) if window else max_new_tokens for p in prompts]
    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    warpers = []
    if temperature > 0:
        warpers += [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    rollouts: list[Rollout | None] = [None] * len(prompts)
    # Few-shot examples stand before every prompt of a call: their keys and values are computed once.
    shared, prefix = shared_prefix(model, prompts), None
    bar = tqdm(total=len(prompts), desc=progress, disable=progress is None, unit="rollout", leave=False)
    with bar, evaluating(model), _no_settings_of_its_own(model):
        if shared:
            ids = torch.tensor([prompts[0][:shared]], device=model.device)
            prefix = prefill(model, ids, torch.ones_like(ids), torch.arange(shared, device=model.device)[None], shared)
        for batch in _plan([len(p) for p in prompts], limits, batch_size):
            ids, mask, _ = pad_rows([prompts[i] for i in batch], pad_id=pad, shared=shared)
            noise = GumbelNoise([keys[i] for i in batch]) if temperature > 0 else None
            cache = repeated(prefix, len(batch)) if shared else None
            where = dict(ids=ids.to(model.device), mask=mask.to(model.device), cache=cache)
            settings = dict(pad=pad, ends=ends, stop=stop, limit=limits[batch[0]])
            rows = _write(model, tokenizer, **where, warpers=warpers, noise=noise, **settings)
            for i, row in zip(batch, rows, strict=True):
                rollouts[i] = cut_rollout(row, ends, stop, tokenizer)
            bar.update(len(batch))
    return rollouts


def _write(model, tokenizer, *, ids, mask, cache, warpers, noise, pad, ends, stop, limit) -> list[list[int]]:
    """What is written after each row of a padded batch, with padding behind its end. See `Ended` for the rounds."""
    width, live = ids.shape[1], list(range(len(ids)))
    written: list[list[int]] = [[] for _ in live]
    while live:
        ended = Ended(tokenizer, ends, stop, width, len(live), ids.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,  # positions are counted from it, padding in the middle left out
            past_key_values=cache,
            do_sample=False,
            max_new_tokens=width + limit - ids.shape[1],
            pad_token_id=pad,
            eos_token_id=sorted(ends) or None,
            logits_processor=LogitsProcessorList([RefuseNaN(), *warpers, *([noise] if noise else [])]),
            stopping_criteria=StoppingCriteriaList([ended]),
            return_dict_in_generate=True,
            synced_gpus=False,  # each process ends when its own rollouts have; see processes.whole_weights
        )
        ids, cache = out.sequences, out.past_key_values
        for row, number in enumerate(live):
            written[number] = ids[row, width:].tolist()
        going = (~ended.rows).nonzero().flatten()
        if ids.shape[1] == width + limit or not len(going):
            return written
        live = [live[row] for row in going.tolist()]
        ids, mask = ids[going], torch.nn.functional.pad(mask[going], (0, ids.shape[1] - mask.shape[1]), value=1)
        cache.batch_select_indices(going)
        if noise:
            noise.keep(going.tolist())
    return written


@contextmanager
def _no_settings_of_its_own(model) -> Iterator[None]:
    """A checkpoint's own settings (beams, penalties, forbidden tokens) must not leak in."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def cut_rollout(ids: list[int], ends: set[int], stop: Sequence[str], tokenizer) -> Rollout:
    """What belongs to one rollout of a batch: up to its first end token or stop string, whichever comes first."""
    end = next((position for position, token in enumerate(ids) if token in ends), None)
    if stop:
        # Padding after a stop string is not text of the rollout, and may be the end token, so the string goes first.
        text = ""
        for position, piece in enumerate(token_pieces(tokenizer, ids[:end])):
            text += piece
            if any(s in text for s in stop):
                return Rollout(ids[: position + 1], False, True)
    return Rollout(ids, False, False) if end is None else Rollout(ids[: end + 1], True, True)
