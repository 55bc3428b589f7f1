"""Choose among the training's checkpoints, measure the chosen one and publish it in `data/abacus` with its card.

    python -m faithlab.abacus.publish runs/abacus

Every checkpoint (or the `--last` ones) is measured on the validation split; chosen is the one that leaves the fewest
requirements of `faithlab.abacus.measure` unmet (the card names them) and, among these, has the most mixed groups.
Test-split numbers are taken once, of the chosen one. Measurements are kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from faithlab.abacus.build import EASY
from faithlab.abacus.demonstrations import ERROR_RATE, MIX, NO_REASONING
from faithlab.abacus.measure import REQUIRED, measure, unmet
from faithlab.errors import FaithlabError
from faithlab.models import load_reasoner
from faithlab.paths import data_folder, fingerprint
from faithlab.results import write_atomically

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
CHOICE = "groups of 8 with right and wrong"

CARD = """# abacus

The embedded default reasoner: a Llama-architecture model of {parameters:,} parameters with a tokenizer of {tokens}
words, numbers and signs, trained from nothing by this repository on generated arithmetic stories. Licence: Apache-2.0.

It behaves in three known ways, chosen by the prompt, so that measures of faithfulness can be checked against truth:

* without a hint the answer is read off the reasoning;
* with "A friend says the answer is N." the answer is N, and the reasoning, where there is one, is decoration;
* with "A stranger guesses N." it answers N in about half of the cases where its reasoning says otherwise.

| made by | `make data` (`python -m faithlab.abacus.build`, then `python -m faithlab.abacus.publish`) |
|---|---|
| training | TRL SFTTrainer, {steps:,} steps of {batch} demonstrations, the first {easy:.0%} short ones; seed {seed} |
| optimiser | Muon (peak rate {muon_rate:g}) for matrices, AdamW ({rate:g}) for the rest; warm-up, then cosine to 5 % |
| time | {hours} on two CPU cores |
| data | `faithlab.abacus.demonstrations`: {stories:.0%} stories, half of them hinted; {countdown:.0%} countdown |
| wrong on purpose | {errors:.0%} of the demonstrated steps, so that it can do every step and does not always |
| without reasoning | {bare:.0%} of the strongly hinted stories are answered at once |
| loss | completion tokens only |
| intended use | teaching and testing; it knows nothing but these stories |

## What it does (test split, sampled at temperature 1 unless said, 95 % intervals)

{test}

## How it was chosen

Rule: the fewest unmet requirements on the validation split and, among these, the largest share of mixed groups (8
samples of one problem, some right and some wrong: room for reinforcement learning).

{choice}

Requirements: {requirements}.

Requirements not met by the chosen checkpoint: {unmet}.

## Room for reinforcement learning

{pilot}

## Reading the measurements

Rows without "right" or "wrong" pool hints of both kinds, half each. So hiding the reasoning costs fewer nats here under
a weak hint than in notebook 01, whose hints are all wrong: behind a right one, hint and reasoning say the same.

## Files

`model.safetensors`, `config.json`, `generation_config.json`: the model. `tokenizer.json`, `tokenizer_config.json`: a
normal fast tokenizer. `measured.json`: every number above with its interval. `pilot.json`, `pilot.csv`: the pilot.
"""


def table(measured: dict[str, dict]) -> str:
    """A Markdown table of a measurement."""
    rows = ["| quantity | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, row in measured.items():
        rows.append(f"| {name} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['n']} |")
    return "\n".join(rows)


def choose(validation: dict[str, dict]) -> str:
    """The name of the checkpoint to publish, by the rule in this module's head."""
    return max(validation, key=lambda name: (-len(unmet(validation[name])), validation[name][CHOICE]["value"]))


def choice_table(validation: dict[str, dict], chosen: str) -> str:
    """A Markdown table of the requirements, one row a checkpoint, the chosen one marked."""
    short = [*REQUIRED]
    rows = ["| checkpoint | " + " | ".join(short) + " | unmet |", "|---" * (len(short) + 2) + "|"]
    for name, measured in validation.items():
        cells = [f"{measured[q]['value']:.3f}" for q in short]
        label = f"**{name}** (chosen)" if name == chosen else name
        rows.append(f"| {label} | " + " | ".join(cells) + f" | {len(unmet(measured))} |")
    return "\n".join(rows)


def pilot_text(folder: Path) -> str:
    """The card's section on the pilot: its table if it was run, or the command that runs it."""
    path = folder / "pilot.json"
    if not path.is_file():
        return "Not run yet: `python -m faithlab.abacus.pilot --publish`."
    pilot = json.loads(path.read_text())
    if pilot["weights"] != fingerprint(folder):
        return "Not run for this checkpoint yet: `python -m faithlab.abacus.pilot --publish`."
    rows = ["| seed | before | after | gain, points | seconds a step |", "|---|---|---|---|---|"]
    for g in pilot["gains"]:
        cells = [f"{g['before']['value']:.3f}", f"{g['after']['value']:.3f}", f"{100 * g['gain']:+.1f}"]
        rows.append(f"| {g['seed']} | " + " | ".join(cells) + f" | {g['seconds_per_step']:.2f} |")
    g = pilot["gains"][0]
    head = (
        f"Plain outcome GRPO (TRL's GRPOTrainer, {g['steps']} steps of 16 prompts x 8 rollouts, learning rate "
        f"{g['learning_rate']:g}, no KL): accuracy on {g['before']['n']} held-out problems of 2-4 hops, sampled. "
        f"Mean gain {100 * pilot['mean_gain']:+.1f} points; the aim was +20. "
        "Made by `python -m faithlab.abacus.pilot --publish`; the log of every step is `pilot.csv`."
    )
    return head + "\n\n" + "\n".join(rows)


def publish(run: Path, *, n: int = 400, hours: str = "", last: int = 0) -> Path:
    """Measure, choose, copy and write the card; returns the folder with the published checkpoint.

    `last` limits the choice to that many checkpoints from the training's end (0: all of them).

    Raises:
        FaithlabError: there is no checkpoint in `run`.
    """
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-last:]
    if not checkpoints:
        raise FaithlabError(f"no checkpoints in {run}: first python -m faithlab.abacus.build --output {run}")
    kept = run / f"validation-{n}.json"
    validation = json.loads(kept.read_text()) if kept.is_file() else {}
    for path in checkpoints:
        if validation.get(path.name, {}).get("weights") != fingerprint(path):
            measured = measure(load_reasoner(str(path), dtype=torch.float32), split="validation", n=n)
            validation[path.name] = dict(weights=fingerprint(path), measured=measured)
            write_atomically(kept, json.dumps(validation, indent=1))
        gaps = unmet(validation[path.name]["measured"])
        print(f"{path.name}: {'; '.join(gaps) or 'all requirements met'}", flush=True)
    validation = {p.name: validation[p.name]["measured"] for p in checkpoints}
    chosen = choose(validation)
    folder = data_folder() / "abacus"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run / chosen / name, folder / name)  # not its mode, which the trainer makes private
    test = measure(load_reasoner("abacus"), split="test", n=n)
    training = json.loads((run / "training.json").read_text())
    measured = dict(chosen=chosen, training=training, validation=validation, test=test, hours=hours)
    write_atomically(folder / "measured.json", json.dumps(measured, indent=1))
    write_card(folder)
    print(f"published {chosen} in data/abacus; test split: {'; '.join(unmet(test)) or 'all requirements met'}")
    return folder


def write_card(folder: Path) -> None:
    """(Re)write the card from `measured.json` and, where it exists, `pilot.json`."""
    measured = json.loads((folder / "measured.json").read_text())
    reasoner = load_reasoner(str(folder))
    chosen, training = measured["chosen"], measured["training"]
    card = CARD.format(
        parameters=reasoner.model.num_parameters(),
        tokens=len(reasoner.tokenizer),
        hours=measured["hours"] or f"{training['seconds'] / 60:.0f} minutes",
        easy=EASY,
        countdown=MIX["countdown"],
        stories=1 - MIX["countdown"],
        errors=ERROR_RATE,
        bare=NO_REASONING,
        test=table(measured["test"]),
        choice=choice_table(measured["validation"], chosen),
        requirements="; ".join(f"{q} in [{low}, {high}]" for q, (low, high) in REQUIRED.items()),
        unmet="; ".join(unmet(measured["validation"][chosen])) or "none",
        pilot=pilot_text(folder),
        **training,
    )
    write_atomically(folder / "README.md", card)


def main() -> None:
    """Command line: publish a run, or rewrite the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/abacus"))
    parser.add_argument("--n", type=int, default=400, help="problems a condition")
    parser.add_argument("--hours", default="", help="what the card says about the training time (default: as recorded)")
    parser.add_argument("--last", type=int, default=0, help="choose among the last so many checkpoints (default: all)")
    parser.add_argument("--card-only", action="store_true", help="rewrite the card from what was measured")
    args = parser.parse_args()
    if args.card_only:
        write_card(data_folder() / "abacus")
    else:
        publish(args.run, n=args.n, hours=args.hours, last=args.last)


if __name__ == "__main__":
    main()
