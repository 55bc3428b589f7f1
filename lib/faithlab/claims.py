"""The published figures, each beside ours: does it hold here?

`data/published_claims.yaml` holds one entry a figure: where it was published, for which model, whose claim it is
(`origin`: "published", or "own" for our controls, rewards and checks of published settings), and either which of our
results (`data/results/notebooks.csv`) test it, why nothing here can, or why it was not tried. A verdict compares
intervals and says

    holds          ours lies on the claimed side of what it is compared with, intervals apart; for a claim that nothing
                   changes (`near`), no difference of more than `MARGIN` is within the two intervals
    does not       it lies on the other side, intervals apart; for `near`, apart by more than `MARGIN`
    open           so many traces or seeds do not decide it
    no interval    ours, or the result that it is compared with, has no interval, so that nothing is decided
    no result      the committed results hold no such row: the runs or the notebook that it needs are not there yet
    not run        it could be tested here, and was not; `not_run` says what was done instead
    untested       it cannot be tested here; `why` says why

Where both sides were measured on the same traces or problems, `ours` is their paired difference, compared with 0: two
separate intervals can meet although each pair differs. A change that is published in per cent has `per`, the result
that ours, and its interval, are divided by (taken as exact).

A difference between two arms (unit "difference") is one of many that were looked at. "holds" and "does not" then need
its corrected p, too, below `LEVEL`: the result of the same name with `CORRECTED` behind it. Without one it stays open.

Sources are kept apart: the papers, and an article that summarises one of them with other figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from faithlab.errors import FaithlabError, unknown
from faithlab.paths import data_folder
from faithlab.yaml_files import read_mapping

SOURCES = ("paper", "notes on the paper", "summary article")
ORIGINS = ("published", "own")
TESTS = ("above", "below", "near")
MARGIN = 0.05  # of `near`
LEVEL = 0.05  # of a corrected p
CORRECTED = ", p corrected"  # behind the name of a difference between arms: its p after Holm's correction
VERDICTS = ("holds", "does not", "open", "no interval", "no result", "not run", "untested")
SAID = ("method", "source", "claim", "model", "published")  # by whoever published it
REASONS = dict(why="untested", not_run="not run")
KEYS = {*SAID, "origin", "ours", "per", *TESTS, "reasoners", *REASONS}
COLUMNS = [*SAID, "origin", "reasoner", "quantity", "unit", "ours", "low", "high", "n", "against", "verdict"]


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
        if entry.get("origin", ORIGINS[0]) not in ORIGINS:
            raise unknown(f"origin of {where}:", entry["origin"], ORIGINS)
        tests = [t for t in TESTS if t in entry]
        reasons = [key for key in REASONS if key in entry]
        if len(reasons) + len(tests) != 1 or bool(tests) != ("ours" in entry):
            raise FaithlabError(
                f"{where} needs `ours` and one of {', '.join(TESTS)}, or `why` it cannot be tested, or `not_run`"
            )
        if "per" in entry and any(entry.get(t, 0) != 0 for t in TESTS):
            raise FaithlabError(f"{where} has `per`, which is for changes: compare it with 0")
        if not all(isinstance(entry.get(key, ""), str) for key in ("ours", "per")):
            raise FaithlabError(f"`ours` and `per` of {where} must each be the name of a result")
        if tests and (isinstance(entry[tests[0]], bool) or not isinstance(entry[tests[0]], (str, int, float))):
            raise FaithlabError(f"`{tests[0]}` of {where} must be a number or the name of a result")
        if not isinstance(entry.get("reasoners", []), list):
            raise FaithlabError(f"`reasoners` of {where} must be a list, as [abacus, smollm2]")
    return entries


def verdict(ours: Mapping, other: Mapping | float, test: str, *, p: float = math.nan) -> str:
    """Compare a result (`value`, `low`, `high`) with another or with a number, which is exact; see the module's head.

    Where `ours` has the unit "difference", `p` is its corrected p-value (NaN: there is none).
    """
    least, most = _bounds(other) if isinstance(other, Mapping) else (float(other), float(other))
    low, high = _bounds(ours)
    if math.isnan(low + high + least + most):
        return "no interval"
    if test == "near":
        if max(high - least, most - low) <= MARGIN:
            return "holds"
        return "does not" if max(low - most, least - high) > MARGIN else "open"
    side = _side(low, high, least, most)
    if side is None or (ours.get("unit") == "difference" and not p < LEVEL):
        return "open"
    return "holds" if side == test else "does not"


def _side(low: float, high: float, least: float, most: float) -> str | None:
    """On which side of `least` to `most` an interval lies; None if the two meet."""
    return "above" if low > most else "below" if high < least else None


def _bounds(row: Mapping) -> tuple[float, float]:
    return tuple(math.nan if pd.isna(row.get(side)) else float(row[side]) for side in ("low", "high"))


def judge(claims: list[dict] | None = None, results: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a claim and reasoner: columns `COLUMNS`; `ours, low, high, n` are missing where there is no result.

    Args:
        claims: of `read_claims`, unless given.
        results: rows of `data/results/notebooks.csv`, unless given.

    Raises:
        FaithlabError: two results of one name and reasoner, of which a claim asks for one; a `per` that is not above 0.
    """
    claims = read_claims() if claims is None else claims
    if results is None:
        results = pd.read_csv(data_folder() / "results" / "notebooks.csv")
    found: dict[tuple, dict] = {}
    asked = {entry.get(key) for entry in claims for key in ("ours", "per", *TESTS)}
    for r in results.to_dict("records"):
        key = (r["reasoner"], r["quantity"])
        if key in found and r["quantity"] in asked:
            raise FaithlabError(f"two results are called {r['quantity']!r} for {r['reasoner']}; rename one of them")
        found[key] = r
    rows = []
    for entry in claims:
        said = {k: entry[k] for k in SAID} | dict(origin=entry.get("origin", ORIGINS[0]))
        if reason := next((key for key in REASONS if key in entry), None):
            rows.append(said | dict(against=entry[reason], verdict=REASONS[reason]))
            continue
        test = next(t for t in TESTS if t in entry)
        for reasoner in entry.get("reasoners", ["abacus"]):
            ours = found.get((reasoner, entry["ours"]))
            other = entry[test]
            other = found.get((reasoner, other)) if isinstance(other, str) else other
            per = found.get((reasoner, entry["per"])) if "per" in entry else dict(value=1.0)
            said_of = said | dict(reasoner=reasoner, quantity=entry["ours"])
            if ours is None or other is None or per is None:
                rows.append(said_of | dict(verdict="no result"))
                continue
            if not per["value"] > 0:
                raise FaithlabError(f"{entry['per']!r} is {per['value']:g}: a change relative to it means nothing")
            p = found.get((reasoner, entry["ours"] + CORRECTED), {}).get("value", math.nan)
            shown = f"{other['value']:.3g} ({entry[test]})" if isinstance(other, dict) else f"{other:g}"
            value, low, high = (ours[key] / per["value"] for key in ("value", "low", "high"))
            unit = "relative difference" if "per" in entry else ours["unit"]
            rows.append(
                said_of | dict(unit=unit, ours=value, low=low, high=high, n=ours["n"], against=f"{test} {shown}",
                               verdict=verdict(ours, other, test, p=float(p)))
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})


def tally(judged: pd.DataFrame) -> pd.DataFrame:
    """How many claims have which verdict: a row a verdict, a column an origin. A claim that is tested on several
    reasoners counts once, as "differs" where they disagree."""
    each = judged.groupby(["origin", *SAID], sort=False)["verdict"].agg(
        lambda v: v.iloc[0] if v.nunique() == 1 else "differs"
    )
    table = each.reset_index().groupby(["verdict", "origin"]).size().unstack(fill_value=0)
    return table.reindex(
        index=[v for v in (*VERDICTS, "differs") if v in table.index], columns=list(ORIGINS), fill_value=0
    )
