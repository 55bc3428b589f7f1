"""The output folder of `faithlab evaluate`: what it is for, what of it is finished, and what may go on in it.

    evaluation.json     the settings, a digest of the problems, the reasoners; and the summary when all is done
    NAME.problems.csv   one row a problem, of one reasoner (`faithlab.measures`); written a part at a time

Task, options, split, groups, samples, temperature and seed must be those of the folder. Reasoners may be added, for
each has a table of its own, and so may problems, if those measured are the first of them. A checkpoint that changed
since is another reasoner. What the folder is for is noted with the first problems that are saved, so that a mistake in
the command costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from faithlab.errors import FaithlabError, first_words
from faithlab.evaluation import support_of
from faithlab.measures import GROUPS
from faithlab.results import write_atomically
from faithlab.run_folder import refuse_foreign

RECORD = "evaluation.json"


class EvaluationFolder:
    """The tables of one evaluation. `settings` are those of the command, with the number `n` of problems; `rows` are
    the problems; `reasoners` says of each label the `source` (a name, folder or hub id) and the `weights`, which tell
    one state of it from another, or None.

    Raises `FaithlabError` if the folder cannot be made, is damaged, or is for something else.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping], reasoners: Mapping[str, Mapping]
    ):
        self.path, self.record_path = path, path / RECORD
        self.settings = json.loads(json.dumps(settings, default=str))  # as JSON gives them back
        self.rows, self.digest = rows, digest_of(rows)
        self.columns = [column for group in settings["groups"] for column in GROUPS[group].columns]
        self.sources = {name: dict(said) for name, said in reasoners.items()}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FaithlabError(f"cannot make {path}: {error.strerror}; choose another --output") from error
        refuse_foreign(path, RECORD, ("summary.csv", "comparison.csv"))
        self._checked(reasoners)

    def table_path(self, name: str) -> Path:
        """Where a reasoner's problems are."""
        return self.path / f"{name}.problems.csv"

    def finished(self, name: str) -> pd.DataFrame:
        """A reasoner's problems so far; no rows if there are none.

        Raises `FaithlabError` for a table that cannot be read or is damaged.
        """
        path = self.table_path(name)
        if not path.is_file():
            return pd.DataFrame()
        try:
            table = pd.read_csv(path)
            _refuse_damaged(table, path.read_bytes())
            if table["problem"].tolist() != list(range(min(len(table), len(self.rows)))):
                raise ValueError("problems are missing, double, or more than there are")
        except OSError as error:
            raise FaithlabError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
            raise FaithlabError(
                f"{path} is damaged ({first_words(error)}): delete it to measure {name} again, or give another --output"
            ) from error
        if lacking := set(self.columns) - set(table.columns):
            raise FaithlabError(
                f"{path} was made by another version, without {', '.join(sorted(lacking))}; give another --output"
            )
        return table

    def measured_in(self, name: str, dtype: str) -> None:
        """Note the dtype in which a reasoner is measured. Raises `FaithlabError` if its problems so far were measured
        in another: rows of the two would not be of one reasoner."""
        before = self._record().get("reasoners", {}).get(name, {}).get("dtype", dtype)
        if before != dtype:
            raise FaithlabError(
                f"{self.path} holds {name} in {before}, and this would go on in {dtype}; give --dtype {before}, or "
                "another --output"
            )
        self.sources[name]["dtype"] = dtype

    def save(self, name: str, table: pd.DataFrame) -> None:
        """Write a reasoner's problems so far, and what the folder is for."""
        with FileLock(f"{self.record_path}.lock"):
            record = self._checked([name])  # again: another command may have come here since
            reasoners = record.get("reasoners", {}) | {name: self.sources[name]}
            record = dict(settings=self.settings, problems=self.digest, reasoners=reasoners)
            write_atomically(self.record_path, json.dumps(record, indent=1) + "\n")
        write_atomically(self.table_path(name), table.to_csv(index=False, float_format="%.6g"))

    def _checked(self, names: Iterable[str]) -> dict[str, Any]:
        """The record as it is now; these reasoners may be saved in this folder. Raises `FaithlabError` if not so."""
        record = self._record()
        if record:
            self._refuse_another(record["settings"], record["problems"], self.rows)
        for name in names:
            self._refuse_other_weights(name, record.get("reasoners", {}))
        return record

    def _record(self) -> dict[str, Any]:
        if not self.record_path.is_file():
            return {}
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
            known = record["reasoners"].values()
            if not (
                isinstance(record["settings"]["n"], int)
                and isinstance(record["problems"], str)
                and all(isinstance(r["source"], str) and isinstance(r.get("weights"), str | None) for r in known)
            ):
                raise TypeError("not what this command writes")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FaithlabError(
                f"{self.record_path} is damaged or of another version; give another --output"
            ) from error
        return record

    def _refuse_another(self, before: Mapping[str, Any], digest: str, rows: Sequence[Mapping]) -> None:
        names = dict.fromkeys([*self.settings, *before])
        other = [name for name in names if name != "n" and self.settings.get(name) != before.get(name)]
        if other:
            raise FaithlabError(
                f"{self.path} holds another evaluation (other {', '.join(other)}); give another --output"
            )
        n, now = before["n"], len(rows)
        if now < n:
            raise FaithlabError(f"{self.path} is for {n} problems; give --n {n} or more, or another --output")
        if digest_of(rows[:n]) != digest:
            task = self.settings["task"]
            raise FaithlabError(
                f"the {n} problems of {self.path} are not the first of these {now}, so they do not count among them: "
                f"{task} chooses others for each n; give --n {n}, or another --output"
                if now > n
                else f"{self.path} is for other problems of {task}: its data have changed since; give another --output"
            )

    def _refuse_other_weights(self, name: str, known: Mapping[str, Mapping]) -> None:
        if name not in known:
            if self.table_path(name).exists():
                raise FaithlabError(
                    f"{self.table_path(name)} is there, and {self.record_path.name} does not say what of; move it, or "
                    "give another --output"
                )
            return
        # the same weights in another place are the same reasoner; some have no fingerprint
        key = "weights" if self.sources[name]["weights"] and known[name].get("weights") else "source"
        if known[name][key] != self.sources[name][key]:
            raise FaithlabError(
                f"{self.path} holds another {name}, from {known[name]['source']} or of other weights; give another "
                "--output"
            )


def _refuse_damaged(table: pd.DataFrame, written: bytes) -> None:
    """Raise `ValueError` for a table that is cut short, and for cells that no measure writes."""
    if not written.endswith(b"\n"):
        raise ValueError("its last line is cut short")
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"{column} holds what is no number")
        low, high = support_of(column) or (-float("inf"), float("inf"))
        if not table[column].dropna().between(low, high).all():
            raise ValueError(f"{column} lies beyond {low:g} and {high:g}")
    if {"right", "rights", "samples"} <= {*table}:
        share = table["rights"] / table["samples"]
        if not ((table["right"] - share).abs().le(1e-5) | (table["right"].isna() & share.isna())).all():
            raise ValueError("right is not the share of the samples that are")


def note(folder: Path, added: Mapping[str, Any]) -> None:
    """Write what was found over all reasoners into a folder's record, beside what another command may have written
    into it meanwhile, and in the place of what was found before."""
    path = folder / RECORD
    with FileLock(f"{path}.lock"):
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: record[name] for name in ("settings", "problems", "reasoners")}
        write_atomically(path, json.dumps(kept | dict(added), indent=1) + "\n")


def digest_of(rows: Sequence[Mapping]) -> str:
    """Twelve hexadecimal digits that change with any problem or their order."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True, default=str).encode()).hexdigest()[:12]
