"""Published data sets as rows: from a local file or folder in the published format, or from the Hugging Face hub.

Local files are JSON lines (`.jsonl`, `.json`), `.csv` or `.parquet`. They are read here rather than by `datasets`, so
that a bad row can be named by file and line. Nothing is unpickled, and no code from a data set is ever run.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError, first_words
from faithlab.paths import user_path

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for error messages: "test.jsonl, line 3"."""

    fields: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """The field as a string. Raises `FaithlabError` if it is missing, no text, blank, or not valid Unicode."""
        value = self.value(name)
        if not isinstance(value, str) or not value.strip():
            raise FaithlabError(f"{self.where}: field {name!r} should be text; got {value!r:.60}.")
        return self.whole(name, value)

    def whole(self, name: str, text: str) -> str:
        """A text of the field. Raises `FaithlabError` if it is not valid Unicode."""
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            raise FaithlabError(f"{self.where}: field {name!r} holds half a character (a lone surrogate).")
        return text

    def value(self, name: str) -> Any:
        """The field as it is. Raises `FaithlabError` if the row lacks it or holds None."""
        if name not in self.fields or self.fields[name] is None:
            there = ", ".join(map(str, self.fields)) or "none"
            raise FaithlabError(f"{self.where}: field {name!r} is missing; fields of this row: {there}.")
        return self.fields[name]


def find(
    path: str | Path, names: Sequence[str], configuration: str | None = None, exclude: str | None = None
) -> list[Path]:
    """The data files that `path` stands for: itself, or the files of one split in a folder.

    In a folder, a file belongs to the split if its name is one of `names`, starts with one and a dash
    ("test-00000-of-00001"), ends with an underscore and one ("anatomy_test"), or if its folder is called one of them.

    Args:
        path: a file, or a folder in the layout of the hub or of the original release.
        names: what the split is called there; the first name for which there are files is taken.
        configuration: a sub-folder to prefer if it exists, as the hub has one per configuration.
        exclude: files with this word in their path below `path` are left out.

    Raises:
        FaithlabError: nothing there, a file of another kind, or no file of this split.
    """
    root = user_path(path)
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise FaithlabError(f"{root}: files of this kind are not read; use {', '.join(SUFFIXES)}.")
        return [root]
    if not root.is_dir():
        raise FaithlabError(f"no such file or folder: {root}.")
    if configuration and (root / configuration).is_dir():
        root = root / configuration
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    for name in names:
        found = []
        for file in files:
            below = file.relative_to(root)
            named = file.stem == name or file.stem.startswith(f"{name}-") or file.stem.endswith(f"_{name}")
            if (named or name in below.parts[:-1]) and not (exclude and exclude in str(below)):
                found.append(file)
        if found:
            return found
    wanted = " or ".join(f"{name}{suffix}" for name in names[:1] for suffix in (".jsonl", ".csv", ".parquet"))
    raise FaithlabError(f"{root}: no file for this split; looked for {wanted} (also {', '.join(names)} as a folder).")


def has(path: str | Path, names: Sequence[str], configuration: str | None = None, exclude: str | None = None) -> bool:
    """Whether `path` is a folder with files of a split called one of `names`."""
    try:
        return user_path(path).is_dir() and bool(find(path, names, configuration, exclude))
    except FaithlabError:
        return False


def read(file: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of one file.

    Args:
        file: JSON lines, CSV or Parquet.
        columns: for CSV: the names of the columns of a file without a header. A first line that holds the first of
            these names is a header all the same.

    Raises:
        FaithlabError: with file and line, for a line that cannot be read.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _read_parquet(file)
        elif suffix == ".csv":
            yield from _read_csv(file, columns)
        else:
            yield from _read_json_lines(file)
    except UnicodeDecodeError as error:
        raise FaithlabError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise FaithlabError(f"{file}: cannot be read ({error.strerror or error}).") from error


def _read_json_lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                fields = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                raise FaithlabError(f"{where}: not valid JSON ({reason}); one object a line is expected.") from error
            if not isinstance(fields, dict):
                raise FaithlabError(f"{where}: a JSON object is expected; got {type(fields).__name__}.")
            yield Row(fields, where)


def _read_csv(file: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, strict=True)
        header: Sequence[str] | None = None
        while True:
            start = lines.line_num + 1  # a quoted field can span lines; the first of them is named
            try:
                cells = next(lines, None)
            except csv.Error as error:
                raise FaithlabError(f"{file}, line {start}: not valid CSV ({error}).") from error
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = cells if columns is None or columns[0] in cells else columns
                if header is cells:
                    continue
            if len(cells) != len(header):
                raise FaithlabError(
                    f"{file}, line {start}: {len(header)} cells are expected ({', '.join(header)}); got {len(cells)}."
                )
            yield Row(dict(zip(header, cells, strict=True)), f"{file}, line {start}")


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise FaithlabError(f"{file}: not a readable Parquet file ({first_words(error)}).") from error
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield Row(fields, f"{file}, row {number}")


def from_hub(task: str, hub_id: str, configuration: str, split: str) -> Iterator[Row]:
    """The rows of one split of a data set on the Hugging Face hub (or in its cache).

    Raises:
        FaithlabError: whatever goes wrong, with the advice to pass `path=`.
    """
    import datasets

    try:
        # Repositories with code are refused by `datasets` itself, which no longer runs any.
        table = datasets.load_dataset(hub_id, configuration, split=split)
    except Exception as error:  # offline, no such id, rate limits, proxies: each has its own class
        raise FaithlabError(
            f"{task}: {hub_id} ({configuration}, {split}) could not be read from the hub: {first_words(error)}. "
            f"Pass path= with a local file or folder ({', '.join(SUFFIXES)})."
        ) from error
    for number, fields in enumerate(table, start=1):
        yield Row(fields, f"{hub_id}, {split} row {number}")


def take(task: str, rows: list[dict], n: int | None, seed: int) -> list[dict]:
    """`n` of the rows, chosen by `seed` and in their own order; all for None.

    Raises:
        FaithlabError: there are fewer than `n`, or none at all.
    """
    if not rows:
        raise FaithlabError(f"{task}: there is no problem in this data.")
    if n is None:
        return rows
    if n > len(rows):
        raise FaithlabError(f"{task}: there are only {len(rows)} problems; n={n} asked for.")
    return [rows[i] for i in sorted(random.Random(f"{task}-{seed}").sample(range(len(rows)), n))]
