"""`faithlab evaluate`: reasoners or checkpoints side by side on the same problems, resumable.

In the output folder:

    evaluation.json     what was asked for, and the summary when all is done
    NAME.problems.csv   one row a problem and reasoner (`faithlab.evaluation`); written a part at a time
    summary.csv         mean, 95 % interval and n of every quantity and reasoner
    comparison.csv      every reasoner against the first: paired differences, p corrected after Holm

The same command again goes on where it was stopped: problems that are finished are not run again.

    faithlab evaluate abacus --n 100
    faithlab evaluate abacus runs/train/shortcut_100_outcome-1/last -o hint weak -o hint_right 0.0 --groups all
    faithlab evaluate smollm2 --task gsm8k -o path /absolute/path/to/test.jsonl --samples 1 --temperature 0
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from faithlab import comparison, evaluation, tasks
from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.models import load_reasoner
from faithlab.paths import fingerprint
from faithlab.results import write_atomically
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
    groups: Sequence[str] = DEFAULT,
    samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, pd.DataFrame]:
    """Measure each reasoner (a name, folder or hub id) on the same `n` problems. Returns the tables of problems by the
    reasoner's label.

    Raises `FaithlabError` for bad settings, reasoners of the same label, an output folder that holds another evaluation
    or cannot be written.
    """
    folder, names = Path(output), labels(reasoners)
    for group in groups:
        if group not in evaluation.GROUPS:
            raise unknown("group of measures", group, evaluation.GROUPS)
    for name, value, least in (("n", n, 1), ("samples", samples, 1), ("seed", seed, 0)):
        check_number(name, value, least, whole=True)
    settings = dict(reasoners=list(map(str, reasoners)), task=task, options=dict(options or {}), split=split, n=n,
                    groups=list(groups), samples=samples, temperature=temperature, seed=seed)  # fmt: skip
    settings["weights"] = {name: _weights(source) for name, source in zip(names, reasoners, strict=True)}
    _refuse_another(folder, settings)
    rows = list(tasks.load(task, split=split, n=n, seed=seed, **(options or {})))
    return {
        name: _one(source, folder / f"{name}.problems.csv", rows, settings, progress)
        for name, source in zip(names, reasoners, strict=True)
    }


def _weights(source: str) -> str | None:
    """What tells one state of a checkpoint's folder from another, such as `best/` of a run that goes on."""
    folder = Path(str(source)).expanduser()
    return fingerprint(folder) if folder.is_dir() and any(folder.glob("*.safetensors")) else None


def labels(reasoners: Sequence[str]) -> list[str]:
    """A short name for each reasoner: its own, or the last parts of its path, without characters that files lack.

    Raises `FaithlabError` if there is none, or if two have the same.
    """
    found = []
    for source in reasoners:
        parts = [p for p in Path(str(source)).parts if p not in ("last", "best", "/", "..", ".")]
        found.append(re.sub(r"[^\w.-]+", "_", parts[-1]) if parts else "reasoner")
    if not found:
        raise FaithlabError("no reasoner was given: a name (abacus, smollm2), a folder, or a hub id")
    twice = {name for name in found if found.count(name) > 1}
    if twice:
        raise FaithlabError(f"two reasoners would both be called {twice.pop()!r}; rename a folder, or leave one out")
    return found


def _refuse_another(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that is for something else. What it is for is noted with the first problems that are saved, so
    that a mistake in the command costs nothing."""
    path = folder / "evaluation.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["settings"] != _plain(settings):
            raise FaithlabError(f"{folder} holds another evaluation, or one of other weights; give another --output")
    except OSError as error:
        raise FaithlabError(f"cannot make {folder}: {error.strerror}; choose another --output") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FaithlabError(f"{path} is damaged; give another --output") from error


def _plain(settings: Mapping[str, Any]) -> dict:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(settings, default=str))


def _one(source: str, path: Path, rows: list[dict], settings: Mapping, progress: bool) -> pd.DataFrame:
    """One reasoner's problems; those in `path` are finished."""
    done = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if len(done) >= len(rows):
        return done
    reasoner = for_task(load_reasoner(source), settings["task"])
    passed = {k: settings[k] for k in ("groups", "samples", "temperature")}
    for first in range(len(done) // PART * PART, len(rows), PART):
        seed = settings["seed"] + STRIDE * first  # no two parts draw the same random numbers
        some = rows[first : first + PART]
        part = evaluation.measure(reasoner, settings["task"], some, progress=progress, seed=seed, **passed)
        part["problem"] += first
        done = pd.concat([done[:first], part], ignore_index=True)
        if not (record := path.with_name("evaluation.json")).is_file():
            write_atomically(record, json.dumps(dict(settings=_plain(settings)), indent=1) + "\n")
        write_atomically(path, done.to_csv(index=False, float_format="%.6g"))
        if progress:
            print(f"{reasoner.name}: {len(done)} of {len(rows)} problems", flush=True)
    return pd.read_csv(path)


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
    parts = []
    for quantity in evaluation.quantities_of(whole):
        have = [name for name in tables if whole.loc[whole["arm"] == name, quantity].notna().any()]
        if first in have:
            beside, support = [o for o in others if o in have], evaluation.support_of(quantity)
            found = comparison.compare(whole, beside, [first], quantity, support=support, seed=seed)
            parts.append(found.assign(quantity=quantity))
    columns = ["quantity", "arm", "against", *comparison.Difference._fields]
    out = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    out["p_holm"] = comparison.holm(out["p"])
    return out[["quantity", *(c for c in out.columns if c not in ("quantity", "seeds"))]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `faithlab evaluate`."""
    parser.description = __doc__
    add = parser.add_argument
    add("reasoners", nargs="+", metavar="REASONER", help="a name (abacus, smollm2), a folder, or a hub id")
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
    add("--samples", type=int, default=4, help="rollouts of each problem; pass@k goes up to this k")
    add("--temperature", type=float, default=1.0, help="of the samples; 0 is greedy")
    add("--seed", type=int, default=0)
    add("--groups", default=",".join(DEFAULT), help="what to measure, with commas, or 'all'; there are "
        + ", ".join(evaluation.GROUPS))  # fmt: skip
    add("--output", type=Path, help="folder (default: runs/evaluate/LABELS-TASK)")
    add("--quiet", action="store_true", help="no progress")


def command(args: argparse.Namespace) -> int:
    """`faithlab evaluate`: measure, write the tables, print them."""
    names = labels(args.reasoners)
    groups = list(evaluation.GROUPS) if args.groups == "all" else [g.strip() for g in args.groups.split(",")]
    options = read_options(args.option)
    folder = args.output or Path("runs/evaluate") / f"{'-'.join(names)}-{args.task}"
    tables = evaluate(
        args.reasoners, folder, task=args.task, options=options, split=args.split, n=args.n, groups=groups,
        samples=args.samples, temperature=args.temperature, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip
    found = summarise(tables, args.seed)
    write_atomically(folder / "summary.csv", found.to_csv(index=False, float_format="%.6g"))
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    record["summary"] = json.loads(found.to_json(orient="records"))
    shown = found.assign(cell=[f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}] n={r.n}" for r in found.itertuples()]).pivot(
        index="quantity", columns="reasoner", values="cell"
    )
    order = list(dict.fromkeys(found["quantity"]))
    print(shown.reindex(index=order, columns=names).to_string(na_rep="-"))
    if len(names) > 1:
        differences = compare(tables, args.seed)
        write_atomically(folder / "comparison.csv", differences.to_csv(index=False, float_format="%.6g"))
        record["comparison"] = json.loads(differences.to_json(orient="records"))
        columns = ["quantity", "arm", "value", "low", "high", "p_holm", "detectable"]
        print(f"\ndifference to {names[0]}, paired by problem; p corrected after Holm over all rows")
        print(differences[columns].to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    write_atomically(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    print(f"\ntables in {folder}")
    return 0
