"""Whatever text a model writes or a person mistypes: a value or a `FaithlabError`, and never another exception.

Each check runs on some dozen examples with the fast tests and on ten thousand with the slow ones.
"""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faithlab import claims, evaluate, rewards, tasks
from faithlab.arms import Arm, read_arm
from faithlab.errors import FaithlabError
from faithlab.evaluation_folder import EvaluationFolder
from faithlab.harness import _finished
from faithlab.harness_conventions import Problem, flexible, short_hash, strict
from faithlab.notebook_profiles import load_profile
from faithlab.tasks import files as data_files
from faithlab.tasks.numerals import read_number
from faithlab.tasks.scoring import same_answer
from faithlab.tasks.story_text import annotate, sentences
from faithlab.traces import split_text
from faithlab.words import shares

# What answers are made of, beside any text at all.
PIECES = (
    "Answer:", "answer is", "####", "\\boxed{", "}", "<think>", "</think>", "\n", " ", "1,234", "-7", "½", "٣",
    "1e999", "0/0", "(3+4)*2", "= 7", "$", "%", "**", "A", "(B)", "Ada has 3 pears.", "To find Ben we need Ada.",
    "\x00", "．",
)  # fmt: skip
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
leaves = st.one_of(st.none(), st.booleans(), st.integers(-5, 200), st.floats(allow_nan=True), st.text(max_size=8))
keys = st.one_of(
    st.sampled_from([*Arm.__dataclass_fields__, "timeout", "default", "claims", "06_grpo"]), st.text(max_size=8)
)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
files = st.one_of(trees.map(yaml.safe_dump), st.dictionaries(keys, trees, max_size=4).map(yaml.safe_dump), texts)

# Files of published data: rows as published, of which some fields are damaged or missing; and any bytes at all.
GOOD = {
    "gsm8k": dict(question="How many pears?", answer="3 + 4 = 7.\n#### 7"),
    "mmlu": dict(question="Which is a bird?", choices=["Cod", "Owl", "Bee", "Elm"], answer=1, subject="zoology"),
}
ODD = ("#### 1,234", "####", "#### x", "12", "B", "E", " ", '"', "\ud800", 0, 3, 4, 11, True, None, [], ["Owl"])
cells = st.one_of(st.sampled_from(ODD), leaves, texts, st.lists(st.one_of(texts, leaves), max_size=5))


def damaged(row):
    changes = st.dictionaries(st.sampled_from([*row, "else"]), cells, max_size=2)
    return st.one_of(st.just(row), changes.map(lambda changed: {k: v for k, v in (row | changed).items() if v != []}))


def as_jsonl(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def as_csv(rows):
    """With a header; or, from the first row's answer on, as MMLU was released: a line without names."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    for i, row in enumerate(rows):
        texts = [json.dumps(v) if isinstance(v, list) else v for v in row.values()]
        if "choices" in row and isinstance(row["choices"], list) and row.get("answer") != 1:
            texts = [row.get("question"), *row["choices"], row.get("answer")]
        elif i == 0:
            writer.writerow(row)
        writer.writerow(texts)
    return stream.getvalue().encode("utf-8", "replace")


def as_parquet(rows):
    """What Parquet cannot hold is left as damaged bytes."""
    stream = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    except (pyarrow.ArrowException, TypeError, UnicodeError, OverflowError):
        return b"PAR1" + repr(rows).encode("utf-8", "replace")
    return stream.getvalue()


WRITERS = {".jsonl": as_jsonl, ".json": as_jsonl, ".csv": as_csv, ".parquet": as_parquet}


def published(kind):
    """Strategy of (suffix, content)."""
    suffixes, rows = st.sampled_from(list(WRITERS)), st.lists(damaged(GOOD[kind]), min_size=1, max_size=3)
    written = st.tuples(suffixes, rows).map(lambda pair: (pair[0], WRITERS[pair[0]](pair[1])))
    lines = st.lists(trees, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)).encode())
    return st.one_of(
        written, written, written, st.tuples(suffixes, st.binary(max_size=60)), st.tuples(st.just(".jsonl"), lines)
    )


PROBLEMS = {
    "stories": dict(answer="7"), "chain_sum": dict(answer="-3"), "gsm8k": dict(answer="1234"),
    "mmlu": dict(answer="B", choices=["1", "2", "3", "4"]),
    "countdown": dict(answer="(3+4)*2", numbers=[3, 4, 2], target=14),
}  # fmt: skip


def check_split(text):
    split = split_text(text)
    (a, b), (c, d) = split.reasoning, split.answer
    assert 0 <= a <= b <= len(text) and 0 <= c <= d <= len(text) and (b <= c or c == d)


def check_scorers(text):
    for task, problem in PROBLEMS.items():
        found = tasks.scorer(task)(text, problem)
        assert found.value in (0.0, 1.0) and (found.status == "right") == (found.value == 1.0)


def check_numbers(text):
    read_number(text)
    assert isinstance(same_answer(text, text, "7"), bool)


def check_rewards(text):
    (right,), (form,) = rewards.outcome([text], answer=["7"]), rewards.format_reward([text])
    assert right in (0.0, 1.0) and form in (0.0, 1.0)
    assert all(math.isnan(v) or 0 <= v <= 1 for v in shares(text).values())


def check_stories(text):
    steps = annotate(text, target="Ada", on_path=("Ben",))
    assert [(s["start"], s["end"]) for s in steps] == list(sentences(text))


def check_labels(text):
    (label,) = evaluate.labels([text])
    assert label and "/" not in label and "\\" not in label and label not in (".", "..")


def read(reader):
    def check(content, folder):
        path = folder / "some.yaml"
        path.write_text(content, encoding="utf-8", errors="replace")
        try:
            reader(path)
        except FaithlabError as error:
            assert str(error)

    return check


def check_rows(file):
    """The reader below both tasks: every row, and every error, names its file."""
    try:
        found = list(data_files.read(file))
    except FaithlabError as error:
        assert str(file) in str(error)
    else:
        assert all(row.where.startswith(str(file)) for row in found)


def check_task(name, file):
    try:
        problems = list(tasks.load(name, split="test", path=str(file)))
    except FaithlabError as error:
        assert str(file) in str(error) or "there is no problem in this data" in str(error)
        return
    for problem in problems:
        assert problem["question"].strip()
        assert tasks.scorer(name)(problem["answer"], problem).status == "right", "its own answer is right"


def check_harness(text):
    assert isinstance(strict(text), str) and isinstance(flexible(text), str)


# Tables that a command goes on from, as they were written, with a cell replaced or the end cut off.
ASKED = [Problem(f"How many pears are {i} and 4?", f"4 + {i} = {i + 4}\n#### {i + 4}") for i in range(3)]
PROMPTS = [problem.question for problem in ASKED]
SETTINGS = dict(task="stories", options={}, split="test", n=3, groups=["accuracy", "reasoning"], samples=4,
                temperature=1.0, max_new_tokens=None, seed=0)  # fmt: skip
TABLES = {
    "items": pd.DataFrame(
        dict(item=range(3), subject="", question=list(map(short_hash, PROMPTS)), prompt=list(map(short_hash, PROMPTS)),
             target=["4", "5", "6"], answer_strict=["4", "[invalid]", "7"], right_strict=[True, False, False],
             answer_flexible=["4", "5", "7"], right_flexible=[True, True, False])
    ),
    "problems": pd.DataFrame(
        dict(problem=range(3), right=[0.25, 1.0, np.nan], answered=[1.0, 1.0, np.nan], rights=[1.0, 4.0, np.nan],
             samples=[4.0, 4.0, np.nan], nats=[2.5, -0.1, np.nan])
    ),
}  # fmt: skip
damages = st.one_of(
    st.tuples(
        st.integers(0, 3), st.integers(0, 8), st.one_of(texts, st.sampled_from(["True", "1", "-1", "nan", "inf"]))
    ),
    st.integers(0, 300),
)


def damaged_table(kind, damage):
    if isinstance(damage, int):
        return TABLES[kind].to_csv(index=False)[:damage]
    rows = list(csv.reader(io.StringIO(TABLES[kind].to_csv(index=False))))
    row, column, text = damage
    rows[row][column % len(rows[row])] = text
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def test_whole_tables_are_read(tmp_path):
    for name, kind in (("items.csv", "items"), ("one.problems.csv", "problems")):
        TABLES[kind].to_csv(tmp_path / name, index=False)
    assert len(_finished(tmp_path / "items.csv", ASKED, PROMPTS)) == 3
    rows = [dict(question=q, answer="7") for q in PROMPTS]
    assert len(EvaluationFolder(tmp_path, SETTINGS, rows, {}).finished("one")) == 3


def check_items(content, folder):
    """Nothing that is read says of a problem what was not found."""
    path = folder / "items.csv"
    path.write_text(content, encoding="utf-8", errors="replace")
    try:
        found = _finished(path, ASKED, PROMPTS)
    except FaithlabError as error:
        assert str(path) in str(error)
        return
    for row in found.itertuples():
        assert (row.right_strict, row.right_flexible) == ([True, False, False][row.item], [True, True, False][row.item])


def check_problems(content, folder):
    path = folder / "one.problems.csv"
    path.write_text(content, encoding="utf-8", errors="replace")
    rows = [dict(question=q, answer="7") for q in PROMPTS]
    try:
        found = EvaluationFolder(folder, SETTINGS, rows, {}).finished("one")
    except FaithlabError as error:
        assert str(path) in str(error)
    else:
        assert len(found) <= 3 and found.drop(columns="problem").map(np.isreal).all().all()


TEXTS = [check_harness, check_split, check_scorers, check_numbers, check_rewards, check_stories, check_labels]
FILES = {
    "arm": read(read_arm),
    "profile": read(lambda path: load_profile(str(path), ["06_grpo"])),
    "claims": read(claims.read_claims),
}


def examples(count: int):
    return settings(
        max_examples=count, deadline=None, derandomize=count < 1000, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip


SIZES = [
    pytest.param(40, id="some"),
    pytest.param(10_000, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("check", TEXTS, ids=lambda c: c.__name__)
def test_any_text(check, count):
    examples(count)(given(texts)(check))()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", FILES)
def test_any_file(kind, count, tmp_path: Path):
    examples(count)(given(files)(lambda content: FILES[kind](content, tmp_path)))()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(("kind", "check"), [("items", check_items), ("problems", check_problems)])
def test_any_damaged_table(kind, check, count, tmp_path: Path):
    examples(count)(given(damages)(lambda damage: check(damaged_table(kind, damage), tmp_path)))()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", GOOD)
def test_any_published_data(kind, count, tmp_path: Path):
    def check(content):
        suffix, data = content
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        check_rows(path)
        check_task(kind, path)

    examples(count)(given(published(kind))(check))()
