"""A blind form: readers rate how far they trust a reasoning, without knowing who wrote it.

    reasoners --write_form--> readers/form.csv, to fill in; key.json, who wrote what --read_form--> ratings

Differences are taken within a reader and a problem, so that a generous reader favours nobody.

Published for such a rating by people: 4.2 of 5 for a trained model against 3.5 for its baseline (see methods in
notebook 09). The form asks for a whole number from 1 (not at all) to 5 (fully). Every question appears once a reasoner,
in an order of its own, so that neither name nor place tells who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from faithlab.comparison import holm
from faithlab.errors import FaithlabError
from faithlab.intervals import mean_interval
from faithlab.results import write_atomically
from faithlab.traces import Trace

LOWEST, HIGHEST = 1, 5
FORM = Path("readers") / "form.csv"  # in a folder of its own, which can be handed on without the key
COLUMNS = ["id", "question", "reasoning", "answer", "trust"]


def write_form(traces: Mapping[str, Sequence[Trace]], folder: str | Path, *, seed: int = 0) -> list[Path]:
    """Write `readers/form.csv`, to be handed out and filled in, and beside that folder `key.json`, to be kept from the
    readers. Returns the two paths.

    Args:
        traces: the name of each reasoner or checkpoint and what it wrote, on the same problems in the same order.

    Raises:
        FaithlabError: lists of unlike length, nothing with a reasoning, or a form that is there already.
    """
    folder = Path(folder)
    counts = {name: len(t) for name, t in traces.items()}
    if len(set(counts.values())) != 1 or not max(counts.values(), default=0):
        raise FaithlabError(f"every reasoner writes on the same problems, at least one; got {counts or 'none'}")
    items = [(name, i, t) for name, some in traces.items() for i, t in enumerate(some) if t.explained]
    if not items:
        raise FaithlabError("none of these traces has a reasoning and an answer, so there is nothing to rate")
    random.Random(f"trust-{seed}").shuffle(items)
    rows, key = [], {}
    for number, (name, i, t) in enumerate(items, start=1):
        texts = [_cell(text) for text in (t.question, t.reasoning_text, t.answer_text)]
        rows.append((number, *texts, ""))
        key[str(number)] = dict(reasoner=name, problem=i, text=_hash(texts))
    paths = [folder / FORM, folder / "key.json"]
    for path in paths:
        if path.exists():
            raise FaithlabError(f"{path} exists and may hold somebody's ratings; choose another folder")
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FaithlabError(f"cannot make {paths[0].parent}: {error.strerror}; choose another folder") from error
    content = dict(reasoners=list(traces), items=key)
    write_atomically(paths[1], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    # with the mark by which spreadsheets know UTF-8
    write_atomically(paths[0], pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False).encode("utf-8-sig"))
    return paths


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _hash(texts: Sequence[str]) -> str:
    """Says which texts an item had, however line ends were saved."""
    return hashlib.sha256(" ".join(" ".join(texts).split()).encode()).hexdigest()[:16]


def read_form(forms: Sequence[str | Path], key: str | Path) -> pd.DataFrame:
    """The ratings of one or more filled-in copies of a form, one a reader: `reader, reasoner, problem, trust`. Blanks
    are left out, and `reasoner` is a category in the order in which the form was made.

    Raises `FaithlabError`, naming file and row, for a rating that is no whole number from 1 to 5, an id that is unknown
    or comes twice, and a form that this key does not belong to.
    """
    try:
        content = json.loads(Path(key).read_text(encoding="utf-8"))
        order, who = list(content["reasoners"]), dict(content["items"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FaithlabError(f"cannot read the key {key}: {error}") from error
    rows = []
    for path in forms:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise FaithlabError(f"cannot read the form {path}: {error}") from error
        if not set(COLUMNS) <= set(table.columns):
            raise FaithlabError(f"{path} lacks columns of a form ({', '.join(COLUMNS)}); is it a filled-in form.csv?")
        if table["id"].duplicated().any():
            raise FaithlabError(f"{path}: id {table['id'][table['id'].duplicated()].iloc[0]} comes twice")
        for row in table.itertuples():
            rating = row.trust.strip()
            if row.id in who and who[row.id]["text"] != _hash([row.question, row.reasoning, row.answer]):
                raise FaithlabError(f"{path}, id {row.id}: another text than the key's; is {key} the key of this form?")
            if not rating:
                continue
            if row.id not in who or rating not in {str(v) for v in range(LOWEST, HIGHEST + 1)}:
                raise FaithlabError(
                    f"{path}, id {row.id}: {rating!r} is no whole number from 1 to 5, or the id is unknown"
                )
            item = {name: who[row.id][name] for name in ("reasoner", "problem")}
            rows.append(dict(reader=str(path), **item, trust=int(rating)))
    if not rows:
        raise FaithlabError("no ratings in these forms: fill in the column 'trust'")
    return pd.DataFrame(rows).assign(reasoner=lambda t: pd.Categorical(t["reasoner"], order))


def trust_table(ratings: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean rating by reasoner, and its paired difference to the first reasoner of the form.

    Columns `reasoner, trust, low, high, n, readers, difference, d_low, d_high, pairs, p, p_holm`. A difference is taken
    within a reader and a problem; a problem's value is the mean over its readers. Intervals are bootstraps over
    problems, and p is of a sign-flip permutation test over problems, so that both speak of these readers; p_holm is
    corrected for the number of reasoners. A single pair has neither interval nor p.

    Raises `FaithlabError` if the first reasoner of the form has no rating.
    """
    wide = ratings.pivot_table(
        index=["reader", "problem"], columns="reasoner", values="trust", aggfunc="mean", observed=True, sort=True
    )
    first, rows = pd.Categorical(ratings["reasoner"]).categories[0], []
    if first not in wide:
        raise FaithlabError(f"{first} has no rating, and the others are compared with it; rate some of its reasonings")
    for name in wide.columns:
        mean = mean_interval(wide[name].groupby("problem").mean(), seed=seed)
        readers = wide[name].dropna().index.get_level_values("reader").nunique()
        row = dict(reasoner=name, trust=mean.value, low=mean.low, high=mean.high, n=mean.n, readers=readers)
        pairs = (wide[name] - wide[first]).dropna().groupby("problem").mean().to_numpy()
        if name != first and len(pairs):
            where = mean_interval(pairs, seed=seed)
            row |= dict(difference=where.value, d_low=where.low, d_high=where.high, pairs=where.n)
            if len(pairs) > 1:
                test = stats.permutation_test((pairs,), np.mean, permutation_type="samples", n_resamples=9999, rng=seed)
                row["p"] = float(test.pvalue)
        rows.append(row)
    columns = ["reasoner", "trust", "low", "high", "n", "readers", "difference", "d_low", "d_high", "pairs", "p"]
    return pd.DataFrame(rows, columns=columns).assign(p_holm=lambda table: holm(table["p"]))
