"""Train abacus from nothing with TRL's SFTTrainer: `python -m faithlab.abacus.build`, resumable and seeded.

The demonstrations of `faithlab.abacus.demonstrations` are drawn once, sorted into batches of like length (which halves
the time, since nothing is computed on padding) and read in order. Killed at any time, the same command goes on from
the last checkpoint. The loss is the mean negative log-likelihood of the completion's tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from pathlib import Path

import datasets
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from faithlab.abacus.demonstrations import demonstrations
from faithlab.abacus.optimizer import MuonAdamW
from faithlab.abacus.tokenizer import build_tokenizer
from faithlab.results import write_atomically

# What has to be learnt is looking facts up, and that seemed to take updates rather than examples, hence small batches.
BATCH = 16
STEPS = 20_000
EASY = 0.15  # share of the steps, the first ones, with short stories: the same skills with less to confuse them
SAVE_EVERY = 1000
LEARNING_RATE = 2e-3  # of AdamW, for embeddings and norms
MUON_RATE = 4e-3
POOL = 64  # batches sorted by length together


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama of about one million parameters, with grouped-query attention."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # 0.02, the default, is right for widths in the thousands; at 128 it costs hundreds of steps of warming up
        initializer_range=0.07,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        faithlab_format="abacus",  # so that a copy in another folder is still asked in abacus's words
    )
    return LlamaForCausalLM(config)


def encode(rows: list[dict], tokenizer: PreTrainedTokenizerFast) -> list[dict]:
    """Token ids and labels of prompt, completion and end token; prompt tokens carry no loss (label -100)."""
    prompts = tokenizer([row["prompt"] for row in rows]).input_ids
    completions = tokenizer([row["completion"] for row in rows]).input_ids
    out = []
    for prompt, completion in zip(prompts, completions, strict=True):
        completion = [*completion, tokenizer.eos_token_id]
        out.append(dict(input_ids=prompt + completion, labels=[-100] * len(prompt) + completion))
    return out


def training_set(steps: int, seed: int, tokenizer: PreTrainedTokenizerFast) -> datasets.Dataset:
    """`steps * BATCH` demonstrations in reading order: easy ones first, batches of like length, shuffled.

    The countdown problems of the easy part come again in the other (both parts draw them from the same seed).
    """
    streams = {easy: demonstrations(seed, easy=easy) for easy in (True, False)}
    rng = random.Random(f"order-{seed}")
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in ("input_ids", "labels")})
    parts = []
    for first in range(0, steps, POOL):
        stream = streams[first < EASY * steps]
        pool = encode(list(itertools.islice(stream, BATCH * min(POOL, steps - first))), tokenizer)
        pool.sort(key=lambda row: len(row["input_ids"]))
        batches = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(batches)
        parts.append(datasets.Dataset.from_list([row for batch in batches for row in batch], features=features))
    return datasets.concatenate_datasets(parts)


class Record(TrainerCallback):
    """At every checkpoint one line in the log, and the training time so far (over resumed runs) for the card."""

    def __init__(self, output: Path, **settings):
        self.path, self.settings, self.since = output / "training.json", settings, time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        """Write `training.json`: the settings, and the seconds of training so far; and print the step."""
        before = json.loads(self.path.read_text())["seconds"] if self.path.is_file() else 0.0
        now = time.perf_counter()
        write_atomically(self.path, json.dumps(dict(self.settings, seconds=before + now - self.since), indent=1))
        self.since = now
        print(f"step {state.global_step}: checkpoint written", flush=True)


def train(output: Path, *, steps: int = STEPS, seed: int = 0, save_every: int = SAVE_EVERY) -> Path:
    """Train (or go on training) and return the folder with the checkpoints `checkpoint-<step>`."""
    set_seed(seed)
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    model = new_model(tokenizer)
    print(f"abacus: {model.num_parameters():,} parameters, {len(tokenizer)} tokens; {steps * BATCH:,} demonstrations")
    config = SFTConfig(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,  # for the log; the optimiser below brings its own
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=100,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_steps=save_every,
        logging_steps=50,
        report_to="none",
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=training_set(steps, seed, tokenizer),
        processing_class=tokenizer,
        optimizers=(MuonAdamW(model, muon_rate=MUON_RATE, adamw_rate=LEARNING_RATE), None),
        callbacks=[
            Record(output, steps=steps, batch=BATCH, rate=LEARNING_RATE, muon_rate=MUON_RATE, seed=seed),
        ],
    )
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    print(f"going on from {last}" if last else "starting from step 0", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=last)
    return output


def main() -> None:
    """Command line: train or go on training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/abacus"), help="where checkpoints go")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=SAVE_EVERY)
    args = parser.parse_args()
    train(args.output, steps=args.steps, seed=args.seed, save_every=args.save_every)


if __name__ == "__main__":
    main()
