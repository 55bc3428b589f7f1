"""`faithlab sweep`: the runs of a plan, one after the other, in its order; what is finished is skipped.

A plan is a CSV with the columns `arm` and `seed`. Each finished run leaves two small files beside the plan, meant to be
committed: `ARM-SEED.log.csv` (chosen columns of the log) and `ARM-SEED.held_out.csv`. Whoever has these need not run it
again. Ctrl-C or a kill loses at most the steps since the last checkpoint.

Several sweeps of one plan may run side by side: each passes over what another is at. On a CPU one sweep for each core,
with OMP_NUM_THREADS=1, does more than one sweep with all cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from faithlab import held_out
from faithlab.arms import read_arm
from faithlab.errors import FaithlabError
from faithlab.paths import data_folder, make_folder
from faithlab.results import write_atomically
from faithlab.training import Busy, train

KEPT = (
    "step", "reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length", "grad_norm",
    "step_time", "balance/outcome", "balance/saliency", "balance/weight", "saliency/seconds", "mask_network/loss",
    "credit/gamma_mean", "credit/share", "credit/seconds",
)  # fmt: skip


def read_plan(path: Path) -> list[tuple[str, int]]:
    """The (arm, seed) pairs of a plan, each arm's file read once, so that a mistake shows before the first run.

    Raises `FaithlabError` for a missing file, missing columns, an unknown arm, a seed that is no number, or a pair that
    comes twice.
    """
    try:
        table = pd.read_csv(path, comment="#", dtype=str)
    except OSError as error:
        raise FaithlabError(
            f"cannot read {path}: {error.strerror}; give a CSV with the columns arm and seed"
        ) from error
    except ValueError as error:  # pandas' own errors, and bytes that are no text
        raise FaithlabError(f"{path} is no CSV ({error}); give the columns arm and seed") from error
    if not {"arm", "seed"} <= set(table.columns):
        raise FaithlabError(f"{path} needs the columns arm and seed; it has {', '.join(table.columns)}")
    runs = []
    for number, row in enumerate(table.itertuples(), start=2):
        if row.arm not in {arm for arm, _ in runs}:
            read_arm(str(row.arm))
        if not str(row.seed).isdecimal():
            raise FaithlabError(f"line {number} of {path}: the seed {row.seed!r} is no whole number")
        if (row.arm, int(row.seed)) in runs:
            raise FaithlabError(f"line {number} of {path}: {row.arm} with seed {row.seed} comes twice")
        runs.append((row.arm, int(row.seed)))
    return runs


def load_runs(results: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All finished runs of a results folder: their logs and their held-out problems, with columns `arm` and `seed`."""
    folder = Path(results) if results is not None else data_folder() / "results" / "training"
    found = []
    for kind in ("log", "held_out"):
        parts = []
        for path in sorted(folder.glob(f"*.{kind}.csv")):
            arm, seed = path.name.removesuffix(f".{kind}.csv").rsplit("-", 1)
            parts.append(pd.read_csv(path).assign(arm=arm, seed=int(seed)))
        found.append(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "seed"]))
    return found[0], found[1]


def seeds_done(held: pd.DataFrame, plan: str | Path | None = None) -> pd.DataFrame:
    """How many seeds of each arm the plan asks for (column `planned`), how many are finished (`done`), and if that is
    all of them (`whole`).

    Args:
        held: the held-out problems of `load_runs`.
        plan: a plan's CSV, the committed one unless given.

    Raises `FaithlabError` for a plan that cannot be read (see `read_plan`).
    """
    path = Path(plan) if plan is not None else data_folder() / "results" / "training" / "plan.csv"
    asked = pd.DataFrame(read_plan(path), columns=["arm", "seed"])
    done = held[["arm", "seed"]].astype({"seed": int}).drop_duplicates().merge(asked)  # of the plan's
    counts = {name: table.groupby("arm")["seed"].nunique() for name, table in (("planned", asked), ("done", done))}
    seeds = pd.DataFrame(counts).fillna(0).astype(int)
    return seeds.assign(whole=seeds["done"] == seeds["planned"])


def say_missing(seeds: pd.DataFrame, arms: Iterable[str]) -> None:
    """Print which of these arms of the plan, as `seeds_done` tells them, lack seeds, if any does."""
    late = seeds[seeds.index.isin(list(arms)) & ~seeds["whole"]]
    if len(late):
        named = ", ".join(f"{r.Index} ({r.done} of {r.planned} seeds)" for r in late.itertuples())
        print(f"not run yet and left out (faithlab sweep): {named}")


def keep(run: Path, results: Path, name: str) -> None:
    """Copy what is worth committing of a finished run."""
    make_folder(results)
    if (run / "log.csv").is_file():
        log = pd.read_csv(run / "log.csv")
        kept = log[[c for c in KEPT if c in log.columns]]
        write_atomically(results / f"{name}.log.csv", kept.to_csv(index=False, float_format="%.4g"))
    held = pd.read_csv(run / "held_out.csv")
    write_atomically(results / f"{name}.held_out.csv", held.to_csv(index=False, float_format="%.4g"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `faithlab sweep`."""
    parser.description = __doc__
    parser.add_argument("--plan", type=Path, default=data_folder() / "results" / "training" / "plan.csv")
    parser.add_argument("--results", type=Path, help="where finished runs are noted (default: beside the plan)")
    parser.add_argument("--output", type=Path, default=Path("runs/train"), help="the runs' folders")
    parser.add_argument("--minutes", type=float, help="begin no further run after so many")
    parser.add_argument("--list", action="store_true", help="only say what is finished and what is not")


def command(args: argparse.Namespace) -> int:
    """`faithlab sweep`: run what is not finished."""
    runs = read_plan(args.plan)
    results = args.results or args.plan.parent
    started, failed = time.perf_counter(), []
    for number, (source, seed) in enumerate(runs, start=1):
        arm = read_arm(source)
        name = f"{arm.name}-{seed}"
        done = (results / f"{name}.held_out.csv").is_file()
        label = f"[{number}/{len(runs)}] {arm.name}, seed {seed}"
        if done or args.list:
            print(f"{label}: {'finished' if done else 'to do'}")
            continue
        if args.minutes is not None and time.perf_counter() - started > 60 * args.minutes:
            print(f"{label}: not begun, {args.minutes:g} minutes are over; give the same command to go on")
            break
        begun = time.perf_counter()
        try:
            found = train(arm, seed, args.output / name, quiet=True)
            keep(args.output / name, results, name)
        except Busy:
            print(f"{label}: another process is at it", flush=True)
            continue
        except FaithlabError as error:  # one arm that fails must not keep the others waiting
            failed.append(name)
            print(f"{label}: FAILED: {error}", flush=True)
            continue
        print(f"{label}: {time.perf_counter() - begun:.0f} s; {held_out.line(found)}", flush=True)
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}; the others are kept, the same command tries these again")
    return 1 if failed else 0
