"""Does plain outcome GRPO move abacus? The check that reinforcement learning has room before anything is built on it.

    python -m faithlab.abacus.pilot --seeds 0 1 2

TRL's own GRPOTrainer with the outcome reward alone, 100 steps of 16 prompts x 8 rollouts on unhinted stories of 2-4
hops; accuracy on held-out problems at temperature 1 before and after. Writes `data/abacus/pilot.csv` (one row a logged
step) and `data/abacus/pilot.json` (the gains). A finished seed is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from faithlab import rewards, tasks
from faithlab.abacus.measure import accuracy
from faithlab.models import load_reasoner
from faithlab.paths import data_folder, fingerprint
from faithlab.results import write_atomically
from faithlab.training import prompts_of

PROMPTS, ROLLOUTS, STEPS = 16, 8, 100
HELD_OUT = 500


def training_problems(reasoner, n: int, seed: int, **options):
    """Stories of the training split as TRL wants them: a `prompt` column beside the task's own."""
    rows = tasks.load("stories", split="train", n=n, seed=seed, **options)
    return prompts_of(reasoner, rows, "stories")


def run(name: str, seed: int, *, steps: int, learning_rate: float, output: Path) -> tuple[dict, pd.DataFrame]:
    """One seed: accuracy before and after, and the trainer's log."""
    set_seed(seed)
    reasoner = load_reasoner(name, dtype=torch.float32)
    held_out = tasks.load("stories", split="test", n=HELD_OUT, seed=100, hops=(2, 4))
    before = accuracy(reasoner.generate(held_out, seed=100))
    cpu = not torch.cuda.is_available()
    config = GRPOConfig(
        output_dir=str(output / f"seed-{seed}"),
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * ROLLOUTS,
        num_generations=ROLLOUTS,
        max_completion_length=224,
        temperature=1.0,
        beta=0.0,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        use_cpu=cpu,
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    trainer = GRPOTrainer(
        model=reasoner.model,
        args=config,
        reward_funcs=rewards.outcome,
        train_dataset=training_problems(reasoner, PROMPTS * steps, seed, hops=(2, 4)),
        processing_class=reasoner.tokenizer,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    after = accuracy(reasoner.generate(held_out, seed=100))
    log = pd.DataFrame([row for row in trainer.state.log_history if "reward" in row])
    log = log[["step", "reward", "frac_reward_zero_std", "entropy", "completions/mean_length", "grad_norm"]]
    gain = dict(seed=seed, steps=steps, learning_rate=learning_rate, before=before._asdict(), after=after._asdict())
    gain |= dict(gain=after.value - before.value, seconds_per_step=seconds / steps)
    return gain, log.assign(seed=seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: run the seeds that are not finished, print the gains, publish them on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reasoner", default="abacus", help="abacus, or a checkpoint folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--output", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--publish", action="store_true", help="also write data/abacus/pilot.json and pilot.csv")
    args = parser.parse_args(argv)
    folder = data_folder() / "abacus" if args.reasoner == "abacus" else Path(args.reasoner)
    weights = fingerprint(folder)  # so that a new checkpoint does not inherit an old one's gains
    gains, logs = [], []
    for seed in args.seeds:
        # the learning rate has a point, so these names must not go through with_suffix
        done = f"{weights}-{args.steps}-{args.learning_rate:g}-seed-{seed}"
        result, steps_log = args.output / f"{done}.json", args.output / f"{done}.csv"
        if not result.is_file():
            gain, log = run(args.reasoner, seed, steps=args.steps, learning_rate=args.learning_rate, output=args.output)
            args.output.mkdir(parents=True, exist_ok=True)
            log.to_csv(steps_log, index=False, float_format="%.4f")
            write_atomically(result, json.dumps(gain, indent=1))
        gains.append(json.loads(result.read_text()))
        logs.append(pd.read_csv(steps_log))
        g = gains[-1]
        print(
            f"seed {seed}: {g['before']['value']:.3f} -> {g['after']['value']:.3f}, gain {g['gain']:+.3f}", flush=True
        )
    mean = sum(g["gain"] for g in gains) / len(gains)
    print(
        f"mean gain over {len(gains)} seeds: {100 * mean:+.1f} points on {HELD_OUT} held-out problems at temperature 1"
    )
    if args.publish:
        pd.concat(logs).to_csv(data_folder() / "abacus" / "pilot.csv", index=False, float_format="%.4f")
        write_atomically(
            data_folder() / "abacus" / "pilot.json",
            json.dumps(dict(weights=weights, gains=gains, mean_gain=mean), indent=1),
        )


if __name__ == "__main__":
    main()
