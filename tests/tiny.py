"""Tiny randomly initialised models of several architectures, all with abacus's tokenizer: for tests that need none of
the behaviour of a trained model, only its mechanics."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from faithlab.abacus.tokenizer import build_tokenizer
from faithlab.formats import AbacusFormat, PlainFormat
from faithlab.models import Reasoner

ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt2", "mistral")


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every text: one token a byte."""
    words = ["<end>", *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=template
    )


def tiny_reasoner(architecture: str = "llama", *, attention: str = "sdpa", seed: int = 0) -> Reasoner:
    """A reasoner of two to four layers, with grouped queries and, for gemma3 and mistral, a sliding window of 8."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    common = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=attention,
        initializer_range=0.2,  # large enough that attention matters in a random model
    )
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    elif architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**common, head_dim=8))
    elif architecture == "mistral":
        model = MistralForCausalLM(MistralConfig(**common, sliding_window=8))
    elif architecture == "gemma3":
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        config = Gemma3TextConfig(**common, head_dim=8, sliding_window=8, layer_types=types, query_pre_attn_scalar=8)
        model = Gemma3ForCausalLM(config)
    elif architecture == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=3, n_head=4, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            attn_implementation=attention, initializer_range=0.2,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    else:
        raise ValueError(architecture)
    return Reasoner(f"tiny-{architecture}", model.eval(), tokenizer, AbacusFormat(), max_new_tokens=24)


def byte_reasoner(window=1024, seed=0):
    """A tiny random model that reads every text, one token a byte."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=window, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.4,
    )  # fmt: skip
    return Reasoner("bytes", LlamaForCausalLM(config).eval(), tokenizer, PlainFormat())


def saved(reasoner: Reasoner, folder: Path) -> Path:
    """A reasoner's model and tokenizer in a folder, as transformers saves them."""
    reasoner.model.save_pretrained(folder)
    reasoner.tokenizer.save_pretrained(folder)
    return folder


def tiny_traces(reasoner: Reasoner):
    """A handful of traces of different lengths, one without reasoning, one with an answer of several tokens."""
    q = "Ben has 4 more pears than Ada. Ada has 3 pears. How many pears does Ben have?"
    short = "Ada has 3 pears. How many pears does Ada have?"
    return [
        reasoner.trace(q, "Ada has 3 pears. Ben has 3 + 4 = 7 pears.", "7"),
        reasoner.trace(short, "Ada = 3.", "3"),
        reasoner.trace(
            q + " A friend says the answer is 9.", "Let us look at the facts. Ada = 3. Ben = 3 + 4 = 7.", "9"
        ),
        reasoner.trace(short, "", "3"),
        reasoner.trace("Make 26 from 3, 5 and 7.", "3 * 7 = 21. 21 + 5 = 26. Yes.", "(3 * 7) + 5"),
    ]


def hand_made_masks(model, n: int, blind=()):
    """Float masks of `n` rows by plain rule, one a kind of layer: causal, with a window where the model has one, and
    without the (query row, key column) pairs of `blind`."""
    window = getattr(model.config, "sliding_window", None)
    kinds = set(getattr(model.config, "layer_types", None) or ())

    def mask(width):
        allowed = torch.ones(n, n).tril().bool()
        if width:
            allowed &= ~torch.ones(n, n).tril(-width).bool()
        for row, column in blind:
            allowed[row, column] = False
        return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]

    if "sliding_attention" in kinds:
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    return mask(window)
