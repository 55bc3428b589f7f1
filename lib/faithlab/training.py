"""`faithlab train`: one arm with one seed, resumable, measured on held-out problems when it is done.

In the run's folder:

    arm.json          what was asked for; a folder serves one arm and seed
    log.csv, .json    one row a step: TRL's metrics and ours
    rollouts.jsonl    a group of rollouts every so many steps, with rewards and saliency
    checkpoint-N/     the last two states that training can go on from
    best/, last/      models: of the highest mean reward between two checkpoints (at one weight, where it moves), and of
                      the end; with the last also what its rewards learnt (`reward-0/`: a mask network, a weight)
    held_out.csv      one row a held-out problem (`faithlab.held_out`); there once the run is finished
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
import shutil
import time
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout

from faithlab import costs, held_out, processes, rewards, run_folder, tasks, training_folder
from faithlab.arms import Arm, arm_names, read_arm
from faithlab.balance import Balanced
from faithlab.errors import FaithlabError, NotFinite, check_number, unknown
from faithlab.formats import adds_begin
from faithlab.memory import available_bytes, keep_freed_memory
from faithlab.models import Reasoner, load_reasoner
from faithlab.notebook_costs import duration
from faithlab.results import write_atomically
from faithlab.rollouts import prompt_ids

TRACKERS = ("trackio", "wandb")
REMEDY = "Set accumulation higher, lora, fewer prompts or rollouts, or a lower max_completion_length"


def prompts_of(reasoner: Reasoner, rows, task: str):
    """A data set as TRL wants it: a `prompt` column and the `task` beside the task's own columns."""
    # What begins a text stands there once: a template may have written it, and TRL lets the tokenizer add it.
    begin = reasoner.tokenizer.bos_token if adds_begin(reasoner.tokenizer) else ""
    prompts = [reasoner.format.prompt(row, reasoner.tokenizer).removeprefix(begin) for row in rows]
    return rows.add_column("prompt", prompts).add_column("task", [task] * len(prompts))


def reward_of(arm: Arm, reasoner: Reasoner):
    """The arm's reward function."""
    if arm.saliency is None:
        return rewards.outcome
    return Balanced(rewards.SaliencyReward(reasoner, **arm.saliency), **arm.balance)


def make_trainer(arm: Arm, seed: int, folder: Path, *, quiet: bool = False, save: bool = True, report_to: str = "none"):
    """The trainer of an arm; its `reasoner` is the policy. Everything random follows `seed`. `report_to` is one of
    `TRACKERS`, or "none".

    Raises `FaithlabError` for rollouts that do not split among the processes, `lora` without the package peft, a
    tracker that is unknown or not installed, and whatever `load_reasoner`, the task or the trainer refuse.
    """
    if report_to not in ("none", *TRACKERS):
        raise unknown("tracker", report_to, ("none", *TRACKERS))
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise FaithlabError(f"{report_to} is not installed: pip install {report_to}, or leave --report-to out")
    from accelerate import PartialState
    from transformers import PrinterCallback, set_seed  # late, as TRL below: importing them takes seconds

    from faithlab.grpo import FaithfulGRPOConfig, FaithfulGRPOTrainer, SoundGradients, quick_rollouts

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` is; TRL is pinned
    set_seed(seed)
    cuda = torch.cuda.is_available()
    # Before the model is loaded, since it gives each process its device. Without GPUs it has to be told so.
    count = PartialState(cpu=not cuda).num_processes
    shared = any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED"))
    place = "cpu" if shared else None  # a model that is shared out among devices may fit on none of them
    # bf16 is for the arithmetic, not for the weights
    reasoner = load_reasoner(arm.reasoner, dtype=torch.float32, device=place)
    if arm.prompts * arm.rollouts % (arm.accumulation * count):
        raise FaithlabError(f"{arm.prompts} x {arm.rollouts} rollouts do not split among {count} processes")
    given = {f"credit_{k}": v for k, v in arm.credit.items() if k != "name"}
    config = FaithfulGRPOConfig(
        output_dir=str(folder),
        max_steps=max(1, arm.steps),
        per_device_train_batch_size=arm.prompts * arm.rollouts // arm.accumulation // count,
        gradient_accumulation_steps=arm.accumulation,
        num_generations=arm.rollouts,
        num_iterations=arm.iterations,
        max_completion_length=arm.max_completion_length,
        temperature=arm.temperature,
        beta=arm.beta,
        loss_type=arm.loss,
        importance_sampling_level="sequence" if arm.loss == "luspo" else "token",  # as LUSPO is defined
        scale_rewards=arm.scale_rewards,
        learning_rate=arm.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=arm.warmup,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        use_cpu=not cuda,
        bf16=arm.bf16 if arm.bf16 is not None else cuda and arm.reasoner != "abacus",
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="steps" if save else "no",
        save_steps=arm.save_every,
        save_total_limit=2,
        report_to=report_to,
        run_name=f"{arm.name}-{seed}",
        disable_tqdm=quiet,
        seed=seed,
        credit=arm.credit.get("name", "uniform"),
        **given,
    )
    batches = max(1, math.ceil(arm.steps / arm.iterations))  # one epoch: a resumed run must not begin a second one
    rows = tasks.load(arm.task, split="train", n=arm.prompts * batches, seed=seed, **arm.problems)
    options = {}
    if arm.lora:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise FaithlabError("lora needs the package peft: pip install peft") from error
        options["peft_config"] = LoraConfig(r=arm.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = FaithfulGRPOTrainer(
        model=reasoner.model,
        args=config,
        reward_funcs=reward_of(arm, reasoner),
        train_dataset=prompts_of(reasoner, rows, arm.task),
        processing_class=reasoner.tokenizer,
        reasoner=reasoner,
        rollout_func=quick_rollouts,
        callbacks=[SoundGradients()],
        **options,
    )
    trainer.remove_callback(PrinterCallback)  # a run's log has it all
    return trainer


def train(arm: Arm, seed: int, folder: str | Path, *, quiet: bool = False, report_to: str = "none") -> pd.DataFrame:
    """Train and measure one arm; go on where an interrupted run of the same arm and seed stopped. `report_to` sends the
    log to a tracker too (`TRACKERS`).

    Returns the table of `held_out.summary`. A finished run is not run again.

    Raises `FaithlabError` if the folder is another arm's, if it cannot be written, or if the loss is not finite (the
    last sound state is kept); `Busy` while another process trains in the folder.
    """
    keep_freed_memory()
    check_number("seed", seed, 0, 2**31, whole=True)
    folder = Path(folder)
    run_folder.claim(folder, "arm.json", training_folder.record(arm, seed))
    if (folder / "held_out.csv").is_file():
        return held_out.summary(pd.read_csv(folder / "held_out.csv"))
    with training_folder.explaining(folder, REMEDY):
        if not processes.is_first():  # the first holds the folder for the others
            return _train(arm, seed, folder, quiet, report_to)
        try:
            with FileLock(folder / "run.lock", blocking=False):  # let go by the system, however the process ends
                return _train(arm, seed, folder, quiet, report_to)
        except Timeout as error:
            raise Busy(f"another process trains in {folder}; wait for it, or give another --output") from error


class Busy(FaithlabError):
    """Another process trains in the folder."""


def _train(arm: Arm, seed: int, folder: Path, quiet: bool, report_to: str) -> pd.DataFrame:
    from transformers.utils import logging

    from faithlab.run_log import RunLog, save_whole

    if quiet:
        logging.disable_progress_bar()  # of saving and loading; the trainer's own is an option
    trainer = make_trainer(arm, seed, folder, quiet=quiet, report_to=report_to)
    main = trainer.is_world_process_zero()
    needed = estimate(arm, trainer)
    if main and not quiet:
        whole = f"{arm.steps} steps: {duration(arm.steps * needed.seconds)} or more"
        print(f"estimate for {arm.name}: {needed}; {whole}", flush=True)
    if main:  # only now, so that a mistake in the arm costs nothing
        write_atomically(folder / "arm.json", training_folder.record(arm, seed))
    trainer.add_callback(RunLog(trainer, folder, arm.keep_rollouts_every))
    try:
        if arm.steps:
            trainer.train(resume_from_checkpoint=training_folder.last_checkpoint(folder))
            save_whole(trainer, folder / "last")
            if main:
                trainer.save_rewards(folder / "last")
    except NotFinite as error:
        save_whole(trainer, folder / "stopped")  # the weights before the step that failed
        if main:
            trainer.save_rewards(folder / "stopped")
        raise NotFinite(
            f"{error}; to begin anew from there, name {folder / 'stopped'} as `reasoner` of an arm"
        ) from error
    reasoner = trainer.reasoner  # may write as much as in training: what is cut off has no answer
    reasoner = dataclasses.replace(reasoner, max_new_tokens=max(reasoner.max_new_tokens, arm.max_completion_length))
    with processes.whole_weights(reasoner.model):
        table = held_out.measure(
            reasoner, arm.task, n=arm.test_problems, problems=arm.problems, progress=main and not quiet
        )
    if main:
        write_atomically(folder / "held_out.csv", table.to_csv(index=False, float_format="%.5g"))
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
    return held_out.summary(table)


def estimate(arm: Arm, trainer) -> costs.StepEstimate:
    """What a step of this trainer needs on each device, from the model's shape and the lengths of texts: the longest of
    the first 16 prompts, and the longest completion that the arm allows.

    Raises `FaithlabError`, with what could be changed, if that cannot fit into the device's memory.
    """
    model, tokenizer, args = trainer.reasoner.model, trainer.reasoner.tokenizer, trainer.args
    ids = [prompt_ids(tokenizer, p, args.chat_template_kwargs) for p in trainer.train_dataset[:16]["prompt"]]
    lengths = costs.Lengths(max(map(len, ids)), arm.max_completion_length, 1)
    shared = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # among processes: no call of the model yet
    found = costs.grpo_step(
        costs.Shape.of(model.config), lengths, -(-arm.prompts * arm.rollouts // args.world_size),
        at_once=args.per_device_train_batch_size,
        rate=costs.measured_rate(model.device, torch.bfloat16 if args.bf16 else torch.float32), lora=arm.lora, size=4,
        autocast=args.bf16, start=0.0 if shared else costs.measured_start(model),
    )  # fmt: skip
    weights, loaded = found.weights, sum(p.nbytes for p in model.parameters())
    if shared:  # a share, and all weights while rollouts are scored
        weights = weights / args.world_size + loaded
    free = available_bytes(model.device) + loaded
    if weights + found.activations > free:
        raise FaithlabError(f"{arm.name} does not fit: {found}, and {free / 2**30:.1f} GB are free. {REMEDY}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `faithlab train`."""
    parser.description = __doc__
    parser.epilog = f"Arms that are shipped: {', '.join(arm_names())}"
    parser.add_argument("--config", required=True, metavar="ARM", help="a YAML file, or the name of a shipped arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the run's folder (default: runs/train/ARM-SEED)")
    parser.add_argument("--steps", type=int, help="overrides the arm's")
    parser.add_argument("--reasoner", help="overrides the arm's, such as with a folder that `faithlab warmup` made")
    parser.add_argument("--report-to", choices=TRACKERS, default="none", help="send the log there too (default: none)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def command(args: argparse.Namespace) -> int:
    """`faithlab train`: train, or go on, and print what was measured."""
    arm = read_arm(args.config)
    given = {name: value for name in ("steps", "reasoner") if (value := getattr(args, name)) is not None}
    arm = dataclasses.replace(arm, **given)
    folder = args.output or Path("runs/train") / f"{arm.name}-{args.seed}"
    started = time.perf_counter()
    found = train(arm, args.seed, folder, quiet=args.quiet, report_to=args.report_to)
    if not processes.is_first():
        return 0
    print(found.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    print(
        f"\n{arm.name}, seed {args.seed}: {time.perf_counter() - started:.0f} s; log, rollouts and models in {folder}"
    )
    return 0
