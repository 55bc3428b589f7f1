"""Measurements that take many minutes, kept in the repository and read back where they are of these very traces.

A kept table is `data/results/NAME.DIGEST.csv`. The digest is of the traces' tokens and of the settings, so a
table of other traces (another model, seed or number) is never taken for this one: it is simply not found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from faithlab.paths import data_folder, make_folder
from faithlab.results import write_atomically
from faithlab.traces import Trace


def trace_digest(traces: Sequence[Trace], settings: Mapping[str, Any] | None = None) -> str:
    """Ten hexadecimal digits that change with any token, span or setting."""
    spans = [[t.input_ids.tolist(), *([s.start, s.stop] for s in (t.prompt, t.reasoning, t.answer))] for t in traces]
    text = json.dumps([spans, dict(settings or {})], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def kept_or_measured(
    name: str,
    traces: Sequence[Trace],
    measure: Callable[[], pd.DataFrame],
    *,
    output_dir: str | Path,
    settings: Mapping[str, Any] | None = None,
    again: bool = False,
) -> pd.DataFrame:
    """The table of `measure()`: read from `data/results` if it is kept there, else (or with `again`) measured, and left
    in `output_dir` under the name that it would have there. Both ways the numbers are those of the file, which has five
    digits."""
    name = re.sub(r"[^\w.-]+", "-", name)  # a reasoner's name may be a folder
    file = f"{name}.{trace_digest(traces, settings)}.csv"
    path = data_folder() / "results" / file
    if again or not path.is_file():
        path = Path(output_dir) / file
        make_folder(path.parent)
        write_atomically(path, measure().to_csv(index=False, float_format="%.5g"))
        print(f"measured; to keep it: copy {file} from the run's folder to data/results")
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
