"""Whatever text a model writes or a person mistypes: a value or a `FaithlabError`, and never another exception.

Each check runs on some dozen examples with the fast tests and on ten thousand with the slow ones.
"""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faithlab import claims, evaluate, rewards, tasks
from faithlab.arms import Arm, read_arm
from faithlab.errors import FaithlabError
from faithlab.notebook_profiles import load_profile
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


TEXTS = [check_split, check_scorers, check_numbers, check_rewards, check_stories, check_labels]
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
