"""A reasoner: a causal language model with its tokenizer and its format, which writes and reads traces."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faithlab.biases import context_window
from faithlab.errors import FaithlabError, check_number
from faithlab.formats import AbacusFormat, Example, Format, begun
from faithlab.generation import Rollout, generate_ids, stream_key
from faithlab.tasks.story_text import ITEMS, NAMES
from faithlab.traces import Trace, build_trace


@dataclass(frozen=True)
class Reasoner:
    """A model that reasons before it answers. `model` is in eval mode; nothing here trains or edits it."""

    name: str
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    format: Format = field(repr=False)
    max_new_tokens: int = 256

    @property
    def device(self) -> torch.device:
        """Where the model's weights are, and where its input has to be."""
        return self.model.device

    @property
    def pad_id(self) -> int:
        """The id that fills up a batch: the tokenizer's pad token, else its end token, else 0."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.tokenizer.eos_token_id or 0)

    def with_examples(self, examples: Sequence[Example]) -> Reasoner:
        """The same model prompted with few-shot examples (question, reasoning, answer)."""
        return dataclasses.replace(self, format=dataclasses.replace(self.format, examples=tuple(examples)))

    def with_format(self, format: Format) -> Reasoner:
        """The same model asked in another format."""
        return dataclasses.replace(self, format=format)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text` as it stands, without added special tokens. Raises `FaithlabError`, naming them, for
        words that the tokenizer does not hold."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # too long is for us to say
        unknown_id = self.tokenizer.unk_token_id
        if unknown_id is not None and unknown_id in ids:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(encoding.input_ids, encoding.offset_mapping, strict=True)
            words = sorted({text[a:b].strip() or repr(text[a:b]) for i, (a, b) in spans if i == unknown_id})
            raise FaithlabError(
                f"{self.name} does not know: {', '.join(words[:10])}. It reads the language of the `stories` task: "
                f"names such as {', '.join(NAMES[:4])}, things such as {', '.join(ITEMS[:4])}; use those, or another "
                "reasoner (smollm2)"
            )
        return ids

    def prompt_ids(self, problem: str | Mapping) -> list[int]:
        """The ids of a problem's prompt, with the token that begins a text where the tokenizer has one."""
        return begun(self.tokenizer, self.ids(self.format.prompt(problem, self.tokenizer)))

    def fits(self, problem: str | Mapping, room: int = 1) -> bool:
        """Whether a problem's prompt leaves `room` tokens of the model's window."""
        window = context_window(self.model)
        return not window or len(self.prompt_ids(problem)) + room <= window

    def trace(self, question: str | Mapping, reasoning: str, answer: str) -> Trace:
        """The trace of a given reasoning and answer to a question, as if this reasoner had written them.

        An empty reasoning gives an empty span. Raises `FaithlabError` for an empty question or, where the tokenizer
        has a closed vocabulary, for words it does not hold.
        """
        completion = self.ids(self.format.completion(reasoning.strip(), str(answer).strip()))
        end = self.tokenizer.eos_token_id
        rollout = Rollout([*completion, end] if end is not None else completion, end is not None, True)
        return self.read(self.prompt_ids(question), rollout, question)

    def answering(self, trace: Trace, answer: str) -> Trace:
        """The same prompt and reasoning with another answer in the place of the trace's, as if it had been written.

        Raises `FaithlabError` for a trace without an answer, and for words that the tokenizer does not hold.
        """
        if not trace.answered:
            raise FaithlabError("the trace has no answer that another could take the place of")
        piece = trace.pieces[trace.answer.start]
        space = piece[: len(piece) - len(piece.lstrip())]
        written = self.ids(space + str(answer).strip())
        end = self.tokenizer.eos_token_id
        before = trace.input_ids[trace.prompt.stop : trace.answer.start].tolist()
        rollout = Rollout([*before, *written, *([end] if end is not None else [])], end is not None, True)
        return self.read(trace.input_ids[trace.prompt].tolist(), rollout, trace.problem or "")

    def read(self, prompt: list[int], rollout: Rollout, problem: str | Mapping) -> Trace:
        """The trace of what was written after a prompt: ids in, spans found by this reasoner's answer marker."""
        row = problem if isinstance(problem, Mapping) else {"question": problem}
        marker = re.compile(r"\s*\bAnswer:") if isinstance(self.format, AbacusFormat) else None
        options = {"marker": marker} if marker else {}
        ended, finished = rollout.ended, rollout.finished
        return build_trace(prompt, rollout.ids, self.tokenizer, ended=ended, finished=finished, problem=row, **options)

    def generate(
        self,
        problems: Sequence[str | Mapping],
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int | None = None,
        openings: Sequence[str] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[Trace]:
        """`n` traces for each problem, problem by problem; `temperature=0` is greedy.

        `openings` gives each problem a beginning of the completion that the model has to continue (a reasoning so far,
        or reasoning and marker); it belongs to the trace's completion. The result is the same for every batch size,
        up to ties within rounding.

        Raises:
            FaithlabError: unlike numbers of problems and openings, `n` below 1 or a setting of `generate_ids` out of
                range, a problem without a question or with words that the tokenizer does not hold, a prompt that fills
                the model's window, or logits that are not finite.
        """
        problems = [problems] if isinstance(problems, (str, Mapping)) else list(problems)
        openings = [""] * len(problems) if openings is None else list(openings)
        if len(openings) != len(problems):
            raise FaithlabError(f"{len(openings)} openings for {len(problems)} problems; give one each")
        check_number("n", n, 1, whole=True)
        check_number("seed", seed, -(2**63), 2**63, whole=True)
        prompts = [self.prompt_ids(p) for p in problems]
        starts = [self.ids(text) if text else [] for text in openings]
        rollouts = generate_ids(
            self.model,
            self.tokenizer,
            [p + s for p, s in zip(prompts, starts, strict=True) for _ in range(n)],
            [stream_key(seed, i, sample) for i in range(len(problems)) for sample in range(n)],
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=self.max_new_tokens if max_new_tokens is None else max_new_tokens,
            stop=self.format.stop,
            batch_size=batch_size,
            progress=f"{self.name} writes" if progress else None,
        )
        traces = []
        for k, rollout in enumerate(rollouts):
            i = k // n
            whole = dataclasses.replace(rollout, ids=starts[i] + rollout.ids)
            traces.append(self.read(prompts[i], whole, problems[i]))
        return traces

    def continued(
        self,
        beginnings: Sequence[tuple[Trace, Sequence[int]]],
        keys: Sequence[int],
        *,
        temperature: float,
        progress: str | None = None,
    ) -> list[Trace]:
        """The traces that come of writing on: for each (original trace, changed ids from its prompt on) a new one.

        Little more than the longest original response is written, since a continuation that runs on and on only
        costs time: it has no answer.
        """
        longest = max((len(t) - t.prompt.stop for t, _ in beginnings), default=1)
        rollouts = generate_ids(
            self.model,
            self.tokenizer,
            [list(ids) for _, ids in beginnings],
            keys,
            temperature=temperature,
            max_new_tokens=min(self.max_new_tokens, longest + 32),
            stop=self.format.stop,
            progress=progress,
        )
        traces = []
        for (t, ids), rollout in zip(beginnings, rollouts, strict=True):
            written = dataclasses.replace(rollout, ids=[*ids[t.prompt.stop :], *rollout.ids])
            traces.append(self.read(list(ids[: t.prompt.stop]), written, t.problem or ""))
        return traces
