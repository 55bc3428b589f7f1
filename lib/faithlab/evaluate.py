"""`faithlab evaluate`: reasoners or checkpoints side by side on the same problems, resumable.

In the output folder:

    evaluation.json     what was asked for, and the summary when all is done
    NAME.problems.csv   one row a problem and reasoner (`faithlab.evaluation`); written a part at a time
    summary.csv         mean, 95 % interval and n of every quantity and reasoner
    comparison.csv      every reasoner against the first: paired differences, p corrected after Holm

The same command again goes on where it was stopped, and so does one with further reasoners, or with more problems where
these begin with those of before (not so in gsm8k and mmlu): problems that are finished are not run again. Problems are
measured in parts of 24, and what is drawn at random belongs to the part; no result depends on the batch size. A last
part that was not full is measured again when problems are added.

    faithlab evaluate abacus --n 100
    faithlab evaluate abacus runs/train/shortcut_100_outcome-1/last -o hint weak -o hint_right 0.0 --groups all
    faithlab evaluate before=abacus best=runs/train/ARM-1/best last=runs/train/ARM-1/last
    faithlab evaluate smollm2 --task gsm8k -o path /absolute/path/to/test.jsonl --samples 1 --temperature 0
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from faithlab import comparison, evaluation, measures, tasks
from faithlab.errors import FaithlabError, check_known, check_number
from faithlab.evaluation_folder import EvaluationFolder, note
from faithlab.models import check_reasoner, identity, load_reasoner, usable_device
from faithlab.results import write_atomically
from faithlab.tasks import verify
from faithlab.tasks.fewshot import for_task
from faithlab.yaml_files import read_options

STRIDE = 10**6  # between the seeds of problems that follow one another
PART = 24  # problems between two savings; sampling is keyed by the place in a part, so that a resumed run is the same
DEFAULT = ("accuracy", "text", "reading", "reasoning", "sufficiency", "early", "mistake", "filler", "paraphrase")


def evaluate(
    reasoners: Sequence[str],
    output: str | Path,
    *,
    task: str = "stories",
    options: Mapping[str, Any] | None = None,
    split: str = "test",
    n: int = 200,
    groups: Sequence[str] | None = None,
    samples: int = 4,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, pd.DataFrame]:
    """Measure each reasoner (a name, folder or hub id, or LABEL= and one of these) on the same `n` problems. Returns
    the tables of problems by the reasoner's label.

    `max_new_tokens` is the longest response, by default the reasoner's own limit (256 for abacus, else 320: too few for
    models that think at length, see the column `answered`); `device` and `dtype` are those of `load_reasoner`.

    `groups` are names of `faithlab.measures.GROUPS`, by default `DEFAULT`; a group that the task cannot have is refused
    if it is named, and its columns are NaN where all groups or the default ones are asked for.

    Raises `FaithlabError`, before anything is measured, for bad settings, unknown reasoners or two of the same label,
    and an output folder that holds another evaluation, a damaged table, or cannot be written.
    """
    named = labels(reasoners)
    chosen = list(DEFAULT if groups is None else groups)
    check_known("group of measures", chosen, evaluation.GROUPS)
    check_number("n", n, 1, whole=True)
    check_number("seed", seed, 0, whole=True)
    evaluation.check_sampling(samples, temperature)
    if max_new_tokens is not None:
        check_number("max_new_tokens", max_new_tokens, 1, whole=True)
    for name in ("split", "n", "seed"):
        if name in (options or {}):
            raise FaithlabError(f"{name} is no option of the task here: give --{name}")
    usable_device(device)
    for source in named.values():
        check_reasoner(source)
    rows = list(tasks.load(task, split=split, n=n, seed=seed, **(options or {})))
    if set(chosen) not in (set(DEFAULT), set(evaluation.GROUPS)):
        for group, why in measures.lacking(task, rows, chosen).items():
            raise FaithlabError(
                f"{task} cannot have the group {group}: {why}. Leave {group} out of --groups, or give --groups all, "
                "which leaves empty what cannot be measured"
            )
    settings = dict(task=task, options=dict(options or {}), split=split, n=n, groups=chosen, samples=samples,
                    temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)  # fmt: skip
    sources = {name: dict(source=s, weights=identity(s)) for name, s in named.items()}
    folder = EvaluationFolder(Path(output), settings, rows, sources)
    for name in named:
        folder.finished(name)  # what is damaged is seen now
    loading = dict(device=device, dtype=dtype)
    return {name: _one(name, source, folder, rows, loading, progress) for name, source in named.items()}


def labels(reasoners: Sequence[str]) -> dict[str, str]:
    """What each reasoner is called, and its name, folder or hub id.

    `LABEL=REASONER` gives a label; else it is the reasoner's own name or the last part of its path (not "last" or
    "best"), with more of the path where two would be called the same. Characters that file names lack are left out.

    Raises `FaithlabError` if there is no reasoner, or if two are called the same.
    """
    given, sources = [], []
    for reasoner in map(str, reasoners):
        label, equals, source = reasoner.partition("=")
        is_labelled = bool(equals and source and re.fullmatch(r"\w[\w.-]*", label)) and not os.path.exists(reasoner)
        given.append(label if is_labelled else None)
        sources.append(source if is_labelled else reasoner)
    if not sources:
        raise FaithlabError("no reasoner was given: a name (abacus, smollm2), a folder, or a hub id")
    wholes = [[p for p in Path(source).parts if p not in ("/", "..", ".")] for source in sources]
    shorts = [[p for p in parts if p not in ("last", "best")] or parts for parts in wholes]
    found = [label or "_".join(short[-1:]) for label, short in zip(given, shorts, strict=True)]
    for k in range(2, max(map(len, wholes)) + 1):  # as many parts as tell them apart
        twice = {name for name in found if found.count(name) > 1}
        longer = [label or "_".join(parts[-k:]) for label, parts in zip(given, wholes, strict=True)]
        found = [more if name in twice else name for name, more in zip(found, longer, strict=True)]
    found = [re.sub(r"[^\w.-]+", "_", name) or "reasoner" for name in found]
    for name in found:
        if found.count(name) > 1:
            raise FaithlabError(f"two reasoners would both be called {name!r}; give one a label, as first={sources[0]}")
    return dict(zip(found, sources, strict=True))


def _one(
    name: str, source: str, folder: EvaluationFolder, rows: list[dict], loading: Mapping[str, Any], progress: bool
) -> pd.DataFrame:
    """One reasoner's problems; those in the folder are finished."""
    done, settings = folder.finished(name), folder.settings
    if len(done) >= len(rows):
        if loading["dtype"]:
            folder.measured_in(name, loading["dtype"])
        return done
    reasoner = for_task(load_reasoner(source, **loading), settings["task"])
    folder.measured_in(name, str(reasoner.model.dtype).removeprefix("torch."))
    if settings["max_new_tokens"] is not None:
        reasoner = dataclasses.replace(reasoner, max_new_tokens=settings["max_new_tokens"])
    passed = {k: settings[k] for k in ("groups", "samples", "temperature")}
    for first in range(len(done) // PART * PART, len(rows), PART):
        seed = settings["seed"] + STRIDE * first  # no two parts draw the same random numbers
        some = rows[first : first + PART]
        part = evaluation.measure(reasoner, settings["task"], some, progress=progress, seed=seed, **passed)
        part["problem"] += first
        done = pd.concat([done[:first], part], ignore_index=True) if first else part
        folder.save(name, done)
        if progress:
            print(f"{reasoner.name}: {len(done)} of {len(rows)} problems", flush=True)
    return folder.finished(name)


def summarise(tables: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """`evaluation.summary` of each reasoner, one below the other, with a column `reasoner` in front."""
    parts = [evaluation.summary(t, seed) for t in tables.values()]
    return pd.concat([p.assign(reasoner=name) for name, p in zip(tables, parts, strict=True)])[
        ["reasoner", "quantity", "value", "low", "high", "n"]
    ].reset_index(drop=True)


def compare(tables: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """Every reasoner against the first, problem by problem, in every quantity that both have; `p_holm` is corrected
    over the whole table. Columns: `quantity`, and those of `comparison.compare`."""
    whole = pd.concat([evaluation.with_pass(t).assign(arm=name, seed=0) for name, t in tables.items()])
    first, *others = tables
    quantities, parts = evaluation.quantities_of(whole), []
    # Holm multiplies the smallest p by the number of tests: it must be drawn finely enough to stay small
    resamples = max(comparison.RESAMPLES, 400 * len(quantities) * len(others))
    for quantity in quantities:
        have = [name for name in tables if whole.loc[whole["arm"] == name, quantity].notna().any()]
        if first in have:
            beside, support = [o for o in others if o in have], evaluation.support_of(quantity)
            found = comparison.compare(
                whole, beside, [first], quantity, support=support, resamples=resamples, seed=seed
            )
            parts.append(found.assign(quantity=quantity))
    columns = ["quantity", "arm", "against", *comparison.Difference._fields]
    out = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    out["p_holm"] = comparison.holm(out["p"])
    return out[["quantity", *(c for c in out.columns if c not in ("quantity", "seeds"))]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `faithlab evaluate`."""
    parser.description = __doc__
    parser.epilog = f"groups of measures, and what the columns of each are:\n\n{measures.described()}"
    add = parser.add_argument
    add(
        "reasoners",
        nargs="+",
        metavar="REASONER",
        help="a name (abacus, smollm2), a folder, or a hub id; LABEL=REASONER calls it LABEL in the tables",
    )
    add("--task", default="stories", help=f"one of {', '.join(tasks.names())}")
    add(
        "-o",
        "--option",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="of the task; repeatable",
    )
    add("--split", default="test")
    add("--n", type=int, default=200, help="problems")
    add("--samples", type=int, default=4, help="rollouts of each problem; pass@k for k = 2, 4, 8 ... up to these")
    add("--temperature", type=float, default=1.0, help="of the samples; 0 is greedy, with --samples 1")
    add("--max-new-tokens", type=int, help="longest response (default: the reasoner's own limit, 256 or 320)")
    add("--device", help="such as cpu or cuda:1 (default: a GPU where there is one)")
    add("--dtype", help="of the weights (default: bfloat16 on a GPU, float32 elsewhere and for the embedded ones)")
    add("--seed", type=int, default=0)
    add("--groups", help=f"what to measure (see below), with commas, or 'all' (default: {', '.join(DEFAULT)})")
    add("--output", type=Path, help="folder (default: runs/evaluate/LABELS-TASK); to add reasoners, that of before")
    add("--quiet", action="store_true", help="no progress")


def command(args: argparse.Namespace) -> int:
    """`faithlab evaluate`: measure, write the tables, print them."""
    names = list(labels(args.reasoners))
    groups = [g.strip() for g in args.groups.split(",")] if args.groups is not None else None
    if groups == ["all"]:
        groups = list(evaluation.GROUPS)
    options = read_options(args.option)
    folder = args.output or Path("runs/evaluate") / f"{'-'.join(names)}-{args.task}"
    tables = evaluate(
        args.reasoners, folder, task=args.task, options=options, split=args.split, n=args.n, groups=groups,
        samples=args.samples, temperature=args.temperature, max_new_tokens=args.max_new_tokens, device=args.device,
        dtype=args.dtype, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip
    found, notes = summarise(tables, args.seed), evaluation.empty(tables)
    write_atomically(folder / "summary.csv", found.to_csv(index=False, float_format="%.6g"))
    added = dict(summary=json.loads(found.to_json(orient="records")), empty=notes)
    shown = found.assign(cell=[f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}] n={r.n}" for r in found.itertuples()]).pivot(
        index="quantity", columns="reasoner", values="cell"
    )
    order = list(dict.fromkeys(found["quantity"]))
    print(shown.reindex(index=order, columns=names).to_string(na_rep="-") if order else "nothing could be measured")
    if notes:
        print("", *notes, sep="\n")
    if len(names) > 1:
        differences = compare(tables, args.seed)
        write_atomically(folder / "comparison.csv", differences.to_csv(index=False, float_format="%.6g"))
        added["comparison"] = json.loads(differences.to_json(orient="records"))
        columns = ["quantity", "arm", "value", "low", "high", "p_holm", "detectable"]
        print(f"\ndifference to {names[0]}, paired by problem; p corrected after Holm over all rows")
        print(differences[columns].to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    else:  # one of an earlier command with other reasoners, or fewer problems, would mislead
        (folder / "comparison.csv").unlink(missing_ok=True)
    note(folder, added)
    if verify.unjudged():
        print(f"\n{verify.unjudged()}")
    print(f"\ntables in {folder}")
    return 0
