"""The folder of a run: never of two, with a record of what was asked for, by which an interrupted run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError
from faithlab.results import write_atomically


def new_folder(output: Path, name: str | None = None) -> Path:
    """Make the run's folder in `output`: called `name`, which must be new, or after the date and time.

    Raises:
        FaithlabError: a name that is taken or cannot be a folder's, or a folder that cannot be made.
    """
    if name is not None and (not name.strip() or name in (".", "..") or Path(name).name != name):
        raise FaithlabError(
            f"--name {name!r} is no name of a folder; use letters and digits, and --output for the place"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = [name] if name else [stamp, *(f"{stamp}-{i}" for i in range(2, 100))]
    for candidate in candidates:
        path = output / candidate
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise FaithlabError(f"cannot make {path}: {error.strerror}; choose another --output") from error
    raise FaithlabError(f"{output / candidates[0]} exists; choose another --name, or continue it with --resume")


def claim(folder: Path, name: str, record: str, ours: Sequence[str] = ()) -> None:
    """Make the folder, unless it is there. Files called as `ours` in a folder without a record are somebody else's.

    Raises `FaithlabError` if that fails, for files of somebody else, or if the folder serves another run: if its file
    `name` is there and does not say what `record`, JSON of a mapping, says.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and (before := path.read_text(encoding="utf-8")) != record:
            raise FaithlabError(f"{folder} holds another run ({_other(before, record)}); give another --output")
        refuse_foreign(folder, name, ours)
    except OSError as error:
        raise FaithlabError(f"cannot make {folder}: {error.strerror}; choose another --output") from error


def refuse_foreign(folder: Path, record: str, ours: Sequence[str]) -> None:
    """Raises `FaithlabError` where files would be overwritten that no run of ours wrote: those called as `ours`,
    without the file `record` beside them."""
    if not (folder / record).exists():
        for path in (folder / name for name in ours if (folder / name).exists()):
            raise FaithlabError(f"{path} is there, and no {record} says what of; move it, or give another --output")


def _other(before: str, now: str) -> str:
    try:
        first, second = (_flat(json.loads(text)) for text in (before, now))
    except (ValueError, AttributeError):
        return "its record is damaged"
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    return "other " + ", ".join(names)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of their parts, such as of an arm, beside one another."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return out


def fresh_part(run: Path, part: str) -> Path:
    """An empty folder `run/part`; what an earlier attempt left there is kept under `run/earlier_attempts/`.

    Raises:
        FaithlabError: the folder cannot be made, or the earlier one not moved.
    """
    path = run / part
    try:
        if path.exists():
            attic = run / "earlier_attempts"
            attic.mkdir(exist_ok=True)
            number = 1 + sum(p.name.startswith(f"{part}-") for p in attic.iterdir())
            path.rename(attic / f"{part}-{number}")
        path.mkdir()
    except OSError as error:
        raise FaithlabError(f"cannot make {path}: {error.strerror}; free space, or choose another --output") from error
    return path


def save_record(run: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`, whole or not at all."""
    write_atomically(run / "run.json", json.dumps(record, indent=1, default=repr) + "\n")


def read_record(run: Path) -> dict[str, Any]:
    """The record of an earlier run, a mapping with `settings` and `parts`.

    Raises:
        FaithlabError: the folder is not that of a run, or its record is damaged.
    """
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return {"settings": dict(record["settings"]), "parts": dict(record["parts"])}
    except OSError as error:
        raise FaithlabError(f"{run} is no folder of an earlier run (no run.json there); look under runs/") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FaithlabError(f"{run / 'run.json'} is damaged; start again without --resume") from error
