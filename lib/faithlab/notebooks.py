"""`faithlab notebooks`: run the notebooks of the course headless, with papermill behind checks.

Every notebook runs in a fresh working folder `runs/notebooks/<run>/<stem>/` and must leave a `results.json` there. The
run's folder ends with all results in one table (`results.csv`, `results.json`) and with `run.json`, from which an
interrupted run resumes.

    from faithlab.notebooks import write_results          # in the last cell of a notebook
    write_results("results.json", rows, notebook="01_reasoning_traces", profile=profile)
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError
from faithlab.notebook_costs import duration
from faithlab.notebook_files import Notebook, discover, read_notebook, select
from faithlab.notebook_kernel import Outcome, execute, kernel_of_this_python, terminate_like_ctrl_c
from faithlab.notebook_outputs import keep_outputs
from faithlab.notebook_profiles import Profile, load_profile, place, profile_names, settle
from faithlab.paths import short
from faithlab.results import gather_results, write_atomically, write_results
from faithlab.run_folder import fresh_part, new_folder, read_record, save_record

__all__ = ["Run", "add_arguments", "command", "gather_results", "run_notebooks", "write_results"]

OUTPUT = Path("runs") / "notebooks"
TIMEOUT = 1800.0
OWN = Path(__file__).resolve().parents[2] / "notebooks"  # beside the source, when installed from a checkout

EXAMPLES = """examples:
  faithlab notebooks                                   all notebooks, laptop profile
  faithlab notebooks 01 '0[3-5]*' --profile tiny       some, by number or pattern
  faithlab notebooks 01 -p reasoner smollm2 -p seed 1  with parameters of your own
  faithlab notebooks --list --profile gpu              what there is, and with which values it would run
  faithlab notebooks --resume runs/notebooks/NAME      go on where an interrupted run stopped
  faithlab notebooks --write-back                      renew the committed notebooks and figures

exit status: 0 all ran, 1 a notebook failed, 2 bad input, 130 interrupted"""


@dataclass
class Plan:
    """What a run will do, all of it checked: the notebooks, the values for each, the seconds allowed for each."""

    folder: Path
    profile: Profile
    notebooks: list[Notebook]
    values: dict[str, dict[str, Any]]
    timeout: float

    def wanted(self, nb: Notebook, online: bool) -> dict[str, Any]:
        """What decides whether a notebook that was done before counts as done now."""
        state = {"sha256": nb.sha256, "profile": self.profile.name, "online": online}
        # By way of JSON, as the record on disk has it: there a tuple is a list.
        return json.loads(json.dumps(state | {"parameters": self.values[nb.stem]}, default=repr))


@dataclass
class Run:
    """A run: its folder, the outcome of every notebook it reached (those done earlier included), and the rest."""

    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every notebook of the run ended with status "ok"."""
        return not self.missing and all(o.status == "ok" for o in self.outcomes.values())


def notebook_folder(folder: str | Path | None = None) -> Path:
    """Where the notebooks are: `folder`, or `notebooks` here, or those beside the installed source. Raises
    `FaithlabError` if there is no such folder."""
    if folder is None:
        folder = next((p for p in (Path("notebooks"), OWN) if p.is_dir()), Path("notebooks"))
    folder = Path(folder)
    if not folder.is_dir():
        raise FaithlabError(f"no folder {folder}; --folder names the folder that holds the notebooks")
    return folder


def make_plan(
    names: Iterable[str] = (),
    *,
    folder: str | Path | None = None,
    profile: str = "laptop",
    parameters: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> Plan:
    """Find and check everything a run needs; see `run_notebooks` for the arguments.

    Raises:
        FaithlabError: whatever is wrong with the names, the notebooks, the profile or the parameters.
    """
    folder = notebook_folder(folder)
    paths = discover(folder)
    settings = load_profile(profile, [p.stem for p in paths], foreign=folder.resolve() != OWN)
    notebooks = [read_notebook(p) for p in select(paths, names)]
    values = settle(notebooks, settings, {k: place(k, v) for k, v in (parameters or {}).items()})
    limit = timeout if timeout is not None else settings.timeout or TIMEOUT
    if not 0 < limit < float("inf"):
        raise FaithlabError(f"a timeout is a number of seconds above 0, not {limit}")
    return Plan(folder, settings, notebooks, values, limit)


def run_notebooks(
    names: Iterable[str] = (),
    *,
    folder: str | Path | None = None,
    profile: str = "laptop",
    parameters: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    output: str | Path = OUTPUT,
    name: str | None = None,
    resume: str | Path | None = None,
    keep_going: bool = False,
    write_back: bool = False,
    online: bool = False,
) -> Run:
    """Check the chosen notebooks, run them one after the other, gather their results.

    Args:
        names: numbers, stems or glob patterns; all notebooks for none.
        folder: where the notebooks are; by default `notebooks` here, or beside the installed source.
        profile: a profile's name, or a YAML file.
        parameters: values that win over the profile's; text is read in the type of the notebook's default.
        timeout: seconds for each notebook; by default the profile's `timeout`, or half an hour.
        output: the folder that receives the run's folder; `name`: what to call it instead of the date and time.
        resume: the folder of an earlier run, used instead of a new one: notebooks that ended well there, with the same
            source, profile and parameters, are not run again.
        keep_going: run the others when one fails.
        write_back: put the outputs into the notebooks themselves and their figures into `figures/`.
        online: let the notebooks reach a model hub.

    Raises:
        FaithlabError: bad input, found before anything runs; a kernel that does not start; a full disk.
    """
    names = list(names)
    plan = make_plan(names, folder=folder, profile=profile, parameters=parameters, timeout=timeout)
    if resume is not None:
        run, parts = Run(Path(resume)), read_record(Path(resume))["parts"]
    else:
        run, parts = Run(new_folder(Path(output), name)), {}
    settings = {
        "names": names,
        "folder": str(plan.folder.absolute()),
        "profile": profile if profile in profile_names() else str(Path(profile).absolute()),
        "parameters": dict(parameters or {}),
        "timeout": timeout,
        "keep_going": keep_going,
        "write_back": write_back,
        "online": online,
    }
    record = {"settings": settings, "parts": parts}
    run.missing = [nb.stem for nb in plan.notebooks]
    figures: dict[str, str] = {}
    try:
        with terminate_like_ctrl_c(), kernel_of_this_python(online=online):
            for index, nb in enumerate(plan.notebooks, start=1):
                outcome = _one(f"[{index}/{len(plan.notebooks)}] {nb.stem}", nb, plan, run, record)
                run.outcomes[nb.stem] = outcome
                run.missing.remove(nb.stem)
                if outcome.status == "ok" and write_back:
                    values = plan.values[nb.stem]
                    keep_outputs(nb, run.folder / nb.stem, figures, outcome, plan.profile.name, values)
                if outcome.status != "ok" and not keep_going:
                    break
    except KeyboardInterrupt:
        run.interrupted = True
    _summarise(run, [stem for stem, part in parts.items() if part["status"] == "ok"])
    return run


def _one(label: str, nb: Notebook, plan: Plan, run: Run, record: dict[str, Any]) -> Outcome:
    """Run one notebook, unless it is done, and keep the record; says when it starts and how it ended."""
    wanted = plan.wanted(nb, record["settings"]["online"])
    entry, working = record["parts"].get(nb.stem, {}), run.folder / nb.stem
    done = entry.get("status") == "ok" and all(entry.get(key) == value for key, value in wanted.items())
    if done and (working / "results.json").exists() and (working / nb.path.name).exists():
        print(f"{label}: done earlier, in {duration(entry['seconds'])}", flush=True)
        return Outcome("ok", entry["seconds"], entry["peak_mb"])
    print(f"{label}: started {time.strftime('%H:%M:%S')}, at most {duration(plan.timeout)}", flush=True)
    working = fresh_part(run.folder, nb.stem)
    record["parts"][nb.stem] = {"status": "running", **wanted}
    save_record(run.folder, record)
    given = {"output_dir": str(working.absolute()), "profile": plan.profile.name} | plan.values[nb.stem]
    outcome = execute(nb.path, working, {k: v for k, v in given.items() if k in nb.parameters}, plan.timeout)
    record["parts"][nb.stem] |= {"status": outcome.status, "seconds": outcome.seconds, "peak_mb": outcome.peak_mb}
    save_record(run.folder, record)
    if outcome.status == "ok":
        print(f"{label}: done in {duration(outcome.seconds)}", flush=True)
    else:
        end = f"{outcome.status.upper()} after {duration(outcome.seconds)}"
        print(f"{label}: {end}: {outcome.message}", file=sys.stderr)
        print(f"      executed copy: {short(working / nb.path.name)}", file=sys.stderr)
        if outcome.traceback:
            print(f"      traceback:     {short(outcome.traceback)}", file=sys.stderr, flush=True)
    return outcome


def _summarise(run: Run, done: Sequence[str]) -> None:
    """Print durations and results, write the results table of the notebooks `done`, say how to go on."""
    rows = [(stem, o.status, duration(o.seconds), _memory(o.peak_mb)) for stem, o in run.outcomes.items()]
    rows += [(stem, "not finished" if run.interrupted else "not run", "", "") for stem in run.missing]
    head = ("notebook", "status", "time", "peak memory")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print()
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if done:
        table = gather_results(run.folder, done)
        write_atomically(run.folder / "results.csv", table.to_csv(index=False))
        content = {"run": run.folder.name, "results": table.to_dict("records")}
        write_atomically(run.folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"\n{table.drop(columns='profile').map(_cell).to_string(index=False)}")
        print(f"\nresults: {short(run.folder / 'results.csv')}; executed notebooks: {short(run.folder)}")
    sys.stdout.flush()
    if run.interrupted or not run.ok:
        word = "interrupted" if run.interrupted else "not all notebooks ran"
        how = f"faithlab notebooks --resume {shlex.quote(short(run.folder))}"
        cause = "" if run.interrupted else " once the cause is mended (-p NAME VALUE changes a parameter)"
        print(f"faithlab: {word}; go on{cause} with: {how}", file=sys.stderr, flush=True)


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def _memory(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes:.0f} MB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `faithlab notebooks`. Defaults are None, so that --resume can tell what was given."""
    parser.description = __doc__.split("\n\n    from")[0]
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("names", nargs="*", metavar="NOTEBOOK", help="number, name or glob pattern; all notebooks if none is given")
    add("--profile", help=f"{', '.join(profile_names())}, or the path of a .yaml file (default: laptop)")
    add("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help="set a parameter; repeatable")
    add("--timeout", type=float, metavar="S", help="seconds for each notebook (default: the profile's, or 1800)")
    add("--keep-going", action="store_true", default=None, help="run the others when one fails")
    add("--list", action="store_true", help="list the notebooks and the values they would run with, and stop")
    add("--write-back", action="store_true", default=None, help="put outputs into the notebooks, figures into figures/")
    add("--online", action="store_true", default=None, help="let the notebooks reach a model hub (default: offline)")
    add("--resume", metavar="RUN_FOLDER", help="go on with an earlier run, with its settings where none are given")
    add("--folder", help="where the notebooks are (default: notebooks)")
    add("--output", help=f"where the run's folder is made (default: {OUTPUT})")
    add("--name", help="name of the run's folder (default: date and time)")


def command(args: argparse.Namespace) -> int:
    """Carry out `faithlab notebooks` and return its exit status. Raises `FaithlabError` for --resume with --output or
    --name, and for whatever `run_notebooks` refuses."""
    if args.resume and (args.output or args.name):
        raise FaithlabError("--resume goes on in the run's own folder; leave out --output and --name")
    saved = read_record(Path(args.resume))["settings"] if args.resume else {}
    keys = ("folder", "profile", "timeout", "keep_going", "write_back", "online")
    options = {key: value for key in keys if (value := getattr(args, key)) is not None or (value := saved.get(key))}
    options["parameters"] = {**saved.get("parameters", {}), **dict(args.parameter or [])}
    names = args.names or saved.get("names", [])
    if args.list:
        checks = ("folder", "profile", "timeout", "parameters")
        _list(make_plan(names, **{key: options[key] for key in checks if key in options}))
        return 0
    new = {"output": args.output or OUTPUT, "name": args.name}
    run = run_notebooks(names, resume=args.resume, **options, **new)
    return 130 if run.interrupted else 0 if run.ok else 1


def _list(plan: Plan) -> None:
    """One block a notebook: its title, and its parameters with the values of this plan."""
    print(
        f"{len(plan.notebooks)} notebooks in {short(plan.folder)}, profile {plan.profile.name}, at most "
        f"{duration(plan.timeout)} each"
    )
    for nb in plan.notebooks:
        print(f"\n{nb.stem}  {nb.title}")
        for key, default in nb.parameters.items():
            value = plan.values[nb.stem].get(key, default)
            print(f"    {key} = {value!r}" + ("" if value == default else f"  (its cell says {default!r})"))
