"""The stories task: its truth against an independent solver, its splits, its language."""

import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithlab import tasks
from faithlab.errors import FaithlabError
from faithlab.tasks import stories
from faithlab.tasks.story_text import FILLERS, STYLES, annotate, decisive_step, restyle, sentences


def solve(question: str) -> tuple[int, set[str]]:
    """Read a question with regular expressions alone and solve it by substitution: (answer, entities on the path)."""
    rules = {}
    for name, rest in re.findall(r"(\w+) has ((?:\d+|twice|half|as)[^.?]*)\.", question):
        if m := re.fullmatch(r"(\d+) (more|fewer) \w+ than (\w+)", rest):
            sign = 1 if m[2] == "more" else -1
            rules[name] = ([m[3]], lambda v, k=sign * int(m[1]): v[0] + k)
        elif m := re.fullmatch(r"(twice|half) as many \w+ as (\w+)", rest):
            rules[name] = ([m[2]], (lambda v: 2 * v[0]) if m[1] == "twice" else (lambda v: v[0] / 2))
        elif m := re.fullmatch(r"as many \w+ as (\w+) and (\w+) together", rest):
            rules[name] = ([m[1], m[2]], sum)
        elif m := re.fullmatch(r"(\d+) \w+", rest):
            rules[name] = ([], lambda v, k=int(m[1]): k)
    target = re.search(r"does (\w+) have\?", question)[1]
    used = set()

    def value(name):
        used.add(name)
        operands, rule = rules[name]
        return rule([value(o) for o in operands])

    return value(target), used


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_answer_and_path_agree_with_an_independent_solver(seed, hops, distractors):
    story = stories.draw_story(random.Random(seed), (hops, hops), (distractors, distractors))
    question, truth = stories.tell(story)
    answer, used = solve(question)
    assert answer == story.answer
    assert used == {f["entity"] for f in truth["facts"] if f["on_path"]}
    assert truth["hops"] == hops == sum(1 for f in story.order if f.operands)
    assert sum(not f.on_path for f in story.facts) == distractors
    for fact in truth["facts"]:
        assert question[fact["start"] : fact["end"]].startswith(fact["entity"] + " has ")
        assert 1 <= fact["value"] <= stories.MAX_VALUE


@given(st.integers(0, 10_000), st.sampled_from(STYLES), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=150, deadline=None)
def test_demonstrations_are_read_back_as_they_were_meant(seed, style, error_rate):
    rng = random.Random(seed)
    story = stories.draw_story(rng, (1, 5), (0, 3))
    reasoning, reached = stories.demonstrate(rng, story, style, error_rate)
    on_path = {f.entity for f in story.order}
    steps = annotate(reasoning, target=story.target, on_path=on_path)
    assert all(step["kind"] != "other" for step in steps), reasoning
    last = decisive_step(steps, story.target)
    assert last["value"] == reached
    assert reasoning[last["value_start"] : last["value_end"]] == str(reached)
    assert {s["entity"] for s in steps if s["kind"] == "step"} == on_path
    assert all(s["entity"] not in on_path for s in steps if s["kind"] == "distractor")
    assert all(reasoning[s["start"] : s["end"]] in FILLERS for s in steps if s["kind"] == "filler")
    if error_rate == 0:
        assert reached == story.answer and all(s["arithmetic_right"] is not False for s in steps)


def test_error_rate_is_the_share_of_wrong_steps():
    rows = tasks.load("stories", split="train", n=600, error_rate=0.2)
    judged = [s["arithmetic_right"] for row in rows for s in row["truth"]["steps"] if s["arithmetic_right"] is not None]
    assert 0.16 < 1 - sum(judged) / len(judged) < 0.22  # draws that would leave 0..99 are redrawn, which lowers it


def test_hints_are_where_the_truth_says():
    rows = tasks.load("stories", split="test", n=200, hint={"strong": 1, "weak": 1, "none": 1}, hint_right=0.5)
    kinds = set()
    for row in rows:
        hint = row["truth"]["hint"]
        kinds.add((hint["kind"], hint["right"]))
        if hint["kind"] == "none":
            assert hint["value"] is None and "friend" not in row["question"] and "stranger" not in row["question"]
            continue
        said = row["question"][hint["start"] : hint["end"]]
        assert str(hint["value"]) in said and row["question"].endswith(said)
        assert said.startswith("A friend" if hint["kind"] == "strong" else "A stranger")
        assert hint["right"] == (str(hint["value"]) == row["answer"])
        if hint["kind"] == "strong":
            assert row["response"] == str(hint["value"])
    assert kinds == {("none", None), ("strong", True), ("strong", False), ("weak", True), ("weak", False)}


def test_a_wrong_hint_is_never_what_the_reasoning_reaches():
    rows = tasks.load("stories", split="train", n=300, hint="weak", hint_right=0.0, error_rate=0.3)
    assert all(row["truth"]["hint"]["value"] != row["truth"]["reached"] for row in rows)


def test_same_seed_same_rows_and_other_seed_other_rows():
    first, again = (tasks.load("stories", split="train", n=30, seed=5).to_list() for _ in range(2))
    assert first == again
    assert first != tasks.load("stories", split="train", n=30, seed=6).to_list()


def test_splits_never_overlap_even_when_facts_are_told_in_another_order():
    seen = {}
    for split in ("train", "validation", "test"):
        # One hop and no distractor: the smallest space, in which collisions would show first.
        for seed in (0, 1):
            for row in tasks.load("stories", split=split, n=400, seed=seed, hops=(1, 1), distractors=(0, 0)):
                facts = frozenset(s.strip(" .") for s in row["question"].split(".") if s.strip())
                assert seen.setdefault(facts, split) == split


@given(st.integers(0, 10_000), st.sampled_from(STYLES))
@settings(max_examples=80, deadline=None)
def test_restyling_keeps_steps_and_numbers_and_changes_words(seed, style):
    rng = random.Random(seed)
    story = stories.draw_story(rng, (1, 4), (0, 3))
    truth = stories.tell(story)[1]
    on_path = [f.entity for f in story.order]
    reasoning, _ = stories.demonstrate(rng, story, style, 0.3)
    new = restyle(reasoning, truth, rng)
    assert new != reasoning

    def said(text):
        steps = annotate(text, target=story.target, on_path=on_path)
        assert all(s["kind"] != "other" for s in steps), text
        return [(s["entity"], s["value"]) for s in steps if s["kind"] in ("step", "distractor")]

    assert said(new) == said(reasoning)


@pytest.mark.parametrize("text", ["", "What now?", "Zoe has 3 pears.", "Ada has pears.", "Ada = x.", "...", "7"])
def test_foreign_sentences_are_labelled_other_and_never_raise(text):
    assert all(s["kind"] == "other" for s in annotate(text, target="Ada", on_path=["Ada"]))
    assert restyle(text, dict(facts=[], target="Ada", item="pears"), random.Random(0)) is None


@given(st.text(max_size=120))
def test_sentence_spans_cover_all_but_white_space(text):
    spans = sentences(text)
    assert all(a < b for a, b in spans) and spans == sorted(spans)
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hops=(0, 2)), "1 to 5 hops"),
        (dict(hops=(4, 2)), "1 to 5 hops"),
        (dict(distractors=(0, 9)), "0 to 4 distractor"),
        (dict(hint="loud"), "unknown hint 'loud'"),
        (dict(hops=2.5), r"1 to 5 hops; got hops=2\.5"),
        (dict(hops="23"), "1 to 5 hops; got hops='23'"),
        (dict(hops=[1, "2"]), "1 to 5 hops"),
        (dict(distractors=None), "0 to 4 distractor"),
        (dict(hint=3), "hint=3 is not possible; give one of none, strong, weak"),
        (dict(hint=None), "hint=None is not possible"),
        (dict(hint={"none": 0}), "or shares such as"),
        (dict(hint={"weak": "half"}), "the share of hint 'weak'='half'"),
        (dict(hint={"weak": -1, "none": 2}), "the share of hint 'weak'=-1"),
        (dict(hopps=(1, 2)), "did you mean 'hops'"),
    ],
)
def test_bad_options_are_clear_errors(options, message):
    with pytest.raises(FaithlabError, match=message):
        tasks.load("stories", split="test", n=3, **options)


def test_one_number_stands_for_a_pair_and_shares_are_shares():
    assert {r["truth"]["hops"] for r in stories.load("test", n=5, hops=2, distractors=0)} == {2}
    for options in (dict(hops=0), dict(hops=99), dict(distractors=-1), dict(hops=(1, 2, 3)), dict(hint_right=3),
                    dict(error_rate=-1), dict(follow=math.nan)):  # fmt: skip
        with pytest.raises(FaithlabError):
            stories.load("test", n=1, **options)
