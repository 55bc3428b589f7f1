"""`faithlab warmup`: supervised training on worked solutions, from which reinforcement learning can climb.

GRPO learns from groups of rollouts in which some are right and some are not. A policy that is never right, or never
writes the answer where it is looked for, has none. The loss is the mean negative log-likelihood of the completion's
tokens (TRL's SFTTrainer). Killed at any time, the same command goes on from the last checkpoint.

In the output folder:

    warmup.json       what was asked for; a folder serves one warm-up
    checkpoint-N/     the last state that training can go on from
    last/             the model, there once training is finished: name it as `reasoner` of an arm, or
                      `faithlab train --config ARM --reasoner FOLDER/last`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from faithlab import run_folder, tasks, training_folder
from faithlab.errors import FaithlabError, check_number
from faithlab.intervals import mean_interval
from faithlab.memory import keep_freed_memory
from faithlab.models import Reasoner, load_reasoner
from faithlab.results import write_atomically
from faithlab.tasks import worked
from faithlab.yaml_files import read_options

PROBLEMS, ROLLOUTS = 16, 8  # of the look at how warm a policy is
REMEDY = "Set --batch lower"


@dataclass(frozen=True)
class Warmup:
    """What a warm-up trains. Raises `FaithlabError` for numbers out of range, and tasks without worked solutions or
    with other options."""

    reasoner: str
    task: str = "chain_sum"
    problems: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 200
    batch: int = 16
    learning_rate: float = 2e-5
    seed: int = 0
    save_every: int = 50

    def __post_init__(self):
        for name in ("steps", "batch", "save_every"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("learning_rate", self.learning_rate, 0, above=True)
        check_number("seed", self.seed, 0, 2**31, whole=True)
        tasks.check_options(self.task, self.problems)
        worked.solution(self.task, tasks.load(self.task, n=1, **self.problems)[0])


def demonstrations(reasoner: Reasoner, asked: Warmup) -> list[dict[str, list[int]]]:
    """Token ids and labels of `steps * batch` prompts with their worked solutions, answers and end tokens; prompt
    tokens carry no loss (label -100)."""
    rows, out = tasks.load(asked.task, n=asked.steps * asked.batch, seed=asked.seed, **asked.problems), []
    end = [] if reasoner.tokenizer.eos_token_id is None else [reasoner.tokenizer.eos_token_id]
    for row in rows:
        prompt = reasoner.prompt_ids(row)
        text = reasoner.format.completion(worked.solution(asked.task, row), row["answer"])
        completion = [*reasoner.ids(text), *end]
        out.append(dict(input_ids=prompt + completion, labels=[-100] * len(prompt) + completion))
    return out


def warm_up(asked: Warmup, output: str | Path, *, quiet: bool = False) -> Path:
    """Train, or go on training; returns the folder with the model. A finished warm-up is not run again.

    Raises `FaithlabError` for a folder of another warm-up or one in use, one that cannot be written, too little memory,
    and gradients that are not finite.
    """
    keep_freed_memory()
    folder = Path(output)
    record = json.dumps(asdict(asked), indent=1, default=list) + "\n"
    run_folder.claim(folder, "warmup.json", record)
    if (folder / "last").is_dir():
        return folder / "last"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.cuda.device_count() > 1:
        raise FaithlabError("a warm-up is for one process with one device: without accelerate launch, and with "
                            "CUDA_VISIBLE_DEVICES=0")  # fmt: skip
    with training_folder.explaining(folder, REMEDY):
        try:
            with FileLock(folder / "run.lock", blocking=False):
                return _train(asked, folder, record, quiet)
        except Timeout as error:
            raise FaithlabError(f"another process trains in {folder}; wait for it, or give another --output") from error


def _train(asked: Warmup, folder: Path, record: str, quiet: bool) -> Path:
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed  # late, as TRL below: importing them takes seconds
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    from faithlab.grpo import SoundGradients

    if quiet:
        logging.disable_progress_bar()  # of saving; the trainer's own is an option
    set_seed(asked.seed)
    reasoner = load_reasoner(asked.reasoner, dtype=torch.float32)
    shown = Dataset.from_list(demonstrations(reasoner, asked))
    write_atomically(folder / "warmup.json", record)  # only now, so that a mistake costs nothing
    cuda = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=asked.steps,
        per_device_train_batch_size=asked.batch,
        learning_rate=asked.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, asked.steps // 20),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        activation_checkpointing=False,
        bf16=cuda and asked.reasoner != "abacus",
        use_cpu=not cuda,
        save_steps=asked.save_every,
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=quiet,
        seed=asked.seed,
        remove_unused_columns=False,
    )
    trainer = SFTTrainer(
        model=reasoner.model,
        args=config,
        train_dataset=shown,
        processing_class=reasoner.tokenizer,
        callbacks=[SoundGradients()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=training_folder.last_checkpoint(folder))
    reasoner.model.save_pretrained(folder / "last.part")  # the trainer's own way adds its settings as a pickle
    reasoner.tokenizer.save_pretrained(folder / "last.part")
    (folder / "last.part").rename(folder / "last")  # a model that is there is whole
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    return folder / "last"


def warmth(reasoner: Reasoner, asked: Warmup, *, quiet: bool = False) -> str:
    """In words: how often the policy is right on validation problems at temperature 1, and in how many groups of
    rollouts some are right and some are not."""
    rows = tasks.load(asked.task, split="validation", n=PROBLEMS, seed=asked.seed, **asked.problems)
    traces = reasoner.generate(rows, n=ROLLOUTS, seed=asked.seed, progress=not quiet)
    score = tasks.scorer(asked.task)
    right = np.array([score(t.answer_text if t.answered else None, t.problem).value for t in traces])
    groups = right.reshape(len(rows), ROLLOUTS).mean(1)
    found, mixed = mean_interval(groups, support=(0, 1)), ((groups > 0) & (groups < 1)).mean()
    return (
        f"right in {found.value:.0%} [{found.low:.0%}, {found.high:.0%}] of {PROBLEMS} validation problems, {ROLLOUTS} "
        f"rollouts each; groups that GRPO can learn from, some right and some not: {mixed:.0%}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `faithlab warmup`."""
    default = Warmup.__dataclass_fields__
    parser.description = __doc__
    parser.add_argument("reasoner", help="smollm2, abacus, a folder, or a hub id")
    parser.add_argument("--task", default="chain_sum", choices=worked.TASKS, help="default: chain_sum")
    parser.add_argument("-o", "--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="an option of the task, such as -o max_terms 4; repeatable")  # fmt: skip
    parser.add_argument("--steps", type=int, default=default["steps"].default, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=default["batch"].default, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=default["learning_rate"].default,
                        help="default: %(default)s")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: runs/warmup/REASONER-TASK")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def command(args: argparse.Namespace) -> int:
    """`faithlab warmup`: train, or go on, and say how warm the policy is before and after."""
    asked = Warmup(args.reasoner, args.task, read_options(args.option), args.steps, args.batch, args.learning_rate,
                   args.seed)  # fmt: skip
    folder = args.output or Path("runs/warmup") / f"{Path(args.reasoner).name}-{args.task}"
    if not (folder / "last").is_dir():
        print(f"before: {warmth(load_reasoner(args.reasoner), asked, quiet=args.quiet)}", flush=True)
    last = warm_up(asked, folder, quiet=args.quiet)
    print(f"after:  {warmth(load_reasoner(str(last)), asked, quiet=args.quiet)}")
    print(f"\nthe model: {last}; go on with faithlab train --config ARM --reasoner {last}")
    return 0
