"""The published figures, each beside ours: does it hold here?

`data/published_claims.yaml` holds one entry a figure: where it was published, for which model, and either which of our
results (`data/results/notebooks.csv`) test it or why nothing here can. A verdict compares intervals and says

    holds      ours lies on the claimed side of what it is compared with, intervals apart; for a claim that nothing
               changes (`near`), no difference of more than `MARGIN` is within the two intervals
    does not   it lies on the other side, intervals apart; for `near`, apart by more than `MARGIN`
    open       so many traces or seeds do not decide it, or there is no interval to decide by
    no result  the notebooks' results hold no such row (yet)
    untested   it cannot be tested here; `why` says why

Sources are kept apart: the papers, and an article that summarises one of them with other figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from faithlab.errors import FaithlabError, unknown
from faithlab.models import data_folder
from faithlab.yaml_files import read_mapping

SOURCES = ("paper", "notes on the paper", "summary article")
TESTS = ("above", "below", "near")
MARGIN = 0.05  # of `near`
SAID = ("method", "source", "claim", "model", "published")  # by whoever published it
KEYS = {*SAID, "ours", *TESTS, "reasoners", "why"}
COLUMNS = [*SAID, "reasoner", "ours", "low", "high", "n", "against", "verdict"]


def read_claims(path: str | Path | None = None) -> list[dict]:
    """The entries of the claims' file, checked.

    Raises `FaithlabError` for an unknown key or source, or an entry that has neither one test nor a reason.
    """
    path = Path(path) if path is not None else data_folder() / "published_claims.yaml"
    entries = read_mapping(path, "claims").get("claims") or []
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise FaithlabError(f"`claims` in {path} must be a list of `key: value` entries")
    for number, entry in enumerate(entries, start=1):
        where = f"claim {number} of {path.name}"
        for key in entry:
            if key not in KEYS:
                raise unknown(f"key in {where}:", key, sorted(KEYS))
        missing = set(SAID) - set(entry)
        if missing:
            raise FaithlabError(f"{where} lacks {', '.join(sorted(missing))}")
        if entry["source"] not in SOURCES:
            raise unknown(f"source of {where}:", entry["source"], SOURCES)
        tests = [t for t in TESTS if t in entry]
        if ("why" in entry) == bool(tests) or len(tests) > 1 or bool(tests) != ("ours" in entry):
            raise FaithlabError(f"{where} needs `ours` and one of {', '.join(TESTS)}, or `why` it cannot be tested")
        if not isinstance(entry.get("reasoners", []), list):
            raise FaithlabError(f"`reasoners` of {where} must be a list, as [abacus, smollm2]")
    return entries


def verdict(ours: Mapping, other: Mapping | float, test: str) -> str:
    """Compare a result (`value`, `low`, `high`) with another or with a number. A result without an interval can be
    compared with one that has one, such as the range of a null distribution; two without decide nothing."""
    low, high = _bounds(ours)
    least, most = _bounds(other) if isinstance(other, Mapping) else (float(other), float(other))
    if low == high and least == most:
        return "open"
    if test == "near":
        if max(high - least, most - low) <= MARGIN:
            return "holds"
        return "does not" if max(low - most, least - high) > MARGIN else "open"
    apart = "above" if low > most else "below" if high < least else None
    return "open" if apart is None else "holds" if apart == test else "does not"


def _bounds(row: Mapping) -> tuple[float, float]:
    return tuple(float(row["value"] if pd.isna(row.get(side)) else row[side]) for side in ("low", "high"))


def judge(claims: list[dict] | None = None, results: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a claim and reasoner: columns `COLUMNS`; `ours, low, high, n` are NaN where there is no result."""
    claims = read_claims() if claims is None else claims
    if results is None:
        results = pd.read_csv(data_folder() / "results" / "notebooks.csv")
    found: dict[tuple, dict] = {}
    asked = {entry.get(key) for entry in claims for key in ("ours", *TESTS)}
    for r in results.to_dict("records"):
        key = (r["reasoner"], r["quantity"])
        if key in found and r["quantity"] in asked:
            raise FaithlabError(f"two results are called {r['quantity']!r} for {r['reasoner']}; rename one of them")
        found[key] = r
    rows = []
    for entry in claims:
        said = {k: entry[k] for k in SAID}
        if "why" in entry:
            rows.append(said | dict(against=entry["why"], verdict="untested"))
            continue
        test = next(t for t in TESTS if t in entry)
        for reasoner in entry.get("reasoners", ["abacus"]):
            ours = found.get((reasoner, entry["ours"]))
            other = entry[test]
            other = found.get((reasoner, other)) if isinstance(other, str) else other
            if ours is None or other is None:
                rows.append(said | dict(reasoner=reasoner, against=entry["ours"], verdict="no result"))
                continue
            shown = f"{other['value']:.3g} ({entry[test]})" if isinstance(other, dict) else f"{other:g}"
            rows.append(
                said | dict(reasoner=reasoner, ours=ours["value"], low=ours["low"], high=ours["high"], n=ours["n"],
                            against=f"{test} {shown}", verdict=verdict(ours, other, test))
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
