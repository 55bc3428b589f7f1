"""Accuracy by lm-eval's conventions: prompts to the letter, its filters, and lm-eval itself where it is installed."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import byte_reasoner, tiny_reasoner

from faithlab import harness
from faithlab.errors import FaithlabError
from faithlab.harness import Problem

SUMS = [
    {"question": "Ann has 2 figs and buys 3. How many has she?", "answer": "2+3=<<2+3=5>>5 figs.\n#### 5"},
    {"question": "Bo pays $1,200 twice. How much?", "answer": "2*1200=$<<2*1200=2400>>2400.\n#### 2,400"},
    {"question": "Cy is 4 years older than Di, who is 6. How old is Cy?", "answer": "6+4=10\n#### 10"},
    {"question": "Ed loses 3 of 3 keys. How many are left?", "answer": "3-3=0\n#### 0"},
]
BONES = [
    {"question": " Which bone is in the arm? ", "choices": ["Femur ", "Ulna", "Tibia", "Rib"], "answer": 1},
    {"question": "How many eyes has a cat?", "choices": ["1", "2", "3", "4"], "answer": 1},
    {"question": "Which is red?", "choices": ["Bile", "Bone", "Blood", "Hair"], "answer": 2},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reasoner():
    return byte_reasoner()


@pytest.fixture
def sums(tmp_path):
    return harness.load("gsm8k", jsonl(tmp_path / "test.jsonl", SUMS))


@pytest.fixture
def bones(tmp_path):
    return harness.load("mmlu", jsonl(tmp_path / "test.jsonl", [{**row, "subject": "human_anatomy"} for row in BONES]))


# -- prompts


def test_a_gsm8k_prompt_shows_solutions_as_published(sums):
    assert harness.prompts(sums[2:3], sums[1:2], shots=1) == [
        "Question: Bo pays $1,200 twice. How much?\n"
        "Answer: 2*1200=$<<2*1200=2400>>2400.\n#### 2,400\n\n"
        "Question: Cy is 4 years older than Di, who is 6. How old is Cy?\nAnswer:"
    ]
    assert harness.prompts(sums[3:], [], shots=0) == ["Question: Ed loses 3 of 3 keys. How many are left?\nAnswer:"]


def test_gsm8k_examples_are_drawn_anew_from_one_stream(sums):
    pool = [Problem(f"q{i}", f"#### {i}") for i in range(50)]
    stream = random.Random(1234)
    for problem, text in zip(sums, harness.prompts(sums, pool, shots=3), strict=True):
        shown = [f"Question: {row.question}\nAnswer: {row.answer}\n\n" for row in stream.sample(pool, 3)]
        assert text == "".join(shown) + problem.asked
    assert harness.prompts(sums[:2], pool, 3) == harness.prompts(sums, pool, 3)[:2], "fewer is a prefix of more"
    assert harness.prompts(sums, pool, 3, seed=1) != harness.prompts(sums, pool, 3)


def test_an_mmlu_prompt_names_the_subject_and_takes_its_first_rows(bones):
    pool = [Problem("Other?", "A", ("w", "x", "y", "z"), "physics"), *bones[1:]]
    assert harness.prompts(bones[:1], pool, shots=1) == [
        "The following are multiple choice questions (with answers) about human anatomy.\n\n"
        "How many eyes has a cat?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "Which bone is in the arm?\nA. Femur \nB. Ulna\nC. Tibia\nD. Rib\nAnswer:"
    ]


def test_too_few_examples_are_named(sums, bones):
    with pytest.raises(FaithlabError, match=r"only 2 rows to take 3 examples from; lower --shots"):
        harness.prompts(sums[:1], sums[1:3], shots=3)
    with pytest.raises(FaithlabError, match=r"only 0 rows of human_anatomy to take 1 "):
        harness.prompts(bones[:1], [Problem("q", "A", ("a", "b", "c", "d"), "physics")], shots=1)
    with pytest.raises(FaithlabError, match=r"shots=-1 is not possible"):
        harness.prompts(sums, sums, shots=-1)


# -- filters


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" 2+3=5\n#### 5", "5", "5"),
        (" #### 1,200.50\n\n#### 7", "1,200.50", "7"),
        (" #### $5", "[invalid]", "$5"),
        (" ####5", "[invalid]", "5"),
        (" #### -12 of 30", "-12", "30"),
        (" The answer is 18.", "[invalid]", "18."),
        (" It costs $1,450.00.", "[invalid]", "$1,450.00."),
        (" 7 ... or so", "[invalid]", "..."),
        (" 3-4", "[invalid]", "-4"),
        (" ten", "[invalid]", "[invalid]"),
        ("", "[invalid]", "[invalid]"),
    ],
)
def test_filters(text, strict, flexible):
    assert (harness.strict(text), harness.flexible(text)) == (strict, flexible)


@pytest.mark.parametrize(
    ("answer", "published", "right"),
    [
        ("2,400", "twice\n#### 2400", True),
        ("$2400.", "twice\n#### 2,400", True),
        ("2400.00", "twice\n#### 2,400", False),  # characters are compared, not values
        ("18..", "#### 18", False),
        ("#### 18", "#### 18", True),
        ("18 ", "#### 18", False),
        ("[invalid]", "#### 18", False),
    ],
)
def test_what_is_compared(answer, published, right):
    assert (harness.normalised(answer) == harness.normalised(published)) is right


# -- data


def test_mmlu_formats_and_subjects(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "test" / "world_religions_test.csv").write_text("q,w, x ,y,z,D\n")
    (tmp_path / "dev" / "world_religions_dev.csv").write_text('"q, 2",w,x,y,z,a\n')
    assert harness.load("mmlu", tmp_path) == [Problem("q", "D", ("w", " x ", "y", "z"), "world_religions")]
    assert harness.load("mmlu", tmp_path, examples=True)[0].answer == "A"
    header = tmp_path / "x.csv"
    header.write_text('question,subject,choices,answer\nq,law,"[""a"", ""b"", ""c"", ""d""]",2\n')
    assert harness.load("mmlu", header) == [Problem("q", "C", ("a", "b", "c", "d"), "law")]


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("gsm8k", {"question": "q", "answer": "5"}, r"line 1: field 'answer' should end in '#### number'"),
        ("gsm8k", {"question": "q"}, r"line 1: field 'answer' is missing"),
        ("mmlu", {"question": "q", "choices": ["a"] * 3, "answer": 0, "subject": "s"}, r"line 1: four choices"),
        ("mmlu", {"question": "q", "answer": 0, "subject": "s"}, r"line 1: four choices"),
        ("mmlu", {"question": "q", "choices": "abcd", "answer": 0, "subject": "s"}, r"line 1: four choices"),
        ("mmlu", {"question": "q", "choices": ["a"] * 4, "answer": 4, "subject": "s"}, r"an answer A-D or 0-3"),
        ("mmlu", {"question": "q", "choices": ["a"] * 4, "answer": "AB", "subject": "s"}, r"an answer A-D or 0-3"),
        ("mmlu", {"question": "q", "choices": ["a"] * 4, "answer": 0}, r"a subject \(a field, or a file"),
    ],
)
def test_bad_rows_are_named(tmp_path, task, row, says):
    with pytest.raises(FaithlabError, match=says):
        harness.load(task, jsonl(tmp_path / "test.jsonl", [row]))


def test_bad_tasks_and_files_are_named(tmp_path):
    with pytest.raises(FaithlabError, match=r"unknown task 'gsm8'; did you mean 'gsm8k'"):
        harness.load("gsm8", tmp_path)
    with pytest.raises(FaithlabError, match=r"no such file or folder: .*gone\.jsonl"):
        harness.load("gsm8k", tmp_path / "gone.jsonl")
    with pytest.raises(FaithlabError, match=r"there is no problem in .*empty\.jsonl"):
        harness.load("gsm8k", jsonl(tmp_path / "empty.jsonl", []))


def test_the_hub_is_asked_for_the_published_splits(monkeypatch):
    import datasets

    asked = []

    def hub(hub_id, configuration, split):
        asked.append((hub_id, configuration, split))
        return datasets.Dataset.from_list(SUMS if "gsm8k" in hub_id else [{**row, "subject": "law"} for row in BONES])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert [len(harness.load(task, examples=e)) for task in ("gsm8k", "mmlu") for e in (False, True)] == [4, 4, 3, 3]
    gsm8k, mmlu = ("openai/gsm8k", "main"), ("cais/mmlu", "all")
    assert asked == [(*gsm8k, "test"), (*gsm8k, "train"), (*mmlu, "test"), (*mmlu, "dev")]


# -- what the model says


def naive_letters(reasoner, text):
    """log p of each letter behind the text, token by token, one sequence at a time."""
    context, out = reasoner.ids(text), []
    for letter in "ABCD":
        ids, total = list(context), 0.0
        for token in reasoner.ids(f"{text} {letter}")[len(context) :]:
            with torch.no_grad():
                total += reasoner.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
        out.append(total)
    return out


def test_letters_are_the_likeliest_of_a_naive_loop(reasoner, bones):
    pool = [Problem(f"Example {i}?", "ABCD"[i], ("a", "b", "c", "d"), "human_anatomy") for i in range(4)]
    texts = harness.prompts(bones, pool, shots=2)
    expected = torch.tensor([naive_letters(reasoner, text) for text in texts])
    torch.testing.assert_close(harness.letter_logp(reasoner, texts), expected, atol=1e-4, rtol=0)
    table = harness.measure(reasoner, bones, texts)
    assert table["answer_letter"].tolist() == ["ABCD"[i] for i in expected.argmax(-1)]
    assert table["right_letter"].tolist() == [a == p.answer for a, p in zip(table["answer_letter"], bones, strict=True)]


def test_a_prompt_beyond_the_window_loses_its_beginning(reasoner):
    short = byte_reasoner(window=300)
    text = "x" * 500 + "\nAnswer:"
    found = harness.letter_logp(short, [text])
    torch.testing.assert_close(found, harness.letter_logp(reasoner, [text[-299:]]), atol=1e-4, rtol=0)
    assert harness.write(short, [text]) == harness.write(reasoner, [text[-44:]])
    with pytest.raises(FaithlabError, match=r"bytes holds 256 tokens; gsm8k needs a model that holds more"):
        harness.write(byte_reasoner(window=256), [text])


def test_writing_ends_before_the_first_stop_string(reasoner, monkeypatch):
    from faithlab.generation import Rollout

    def said(*args, **kwargs):
        assert kwargs["temperature"] == 0 and kwargs["max_new_tokens"] == 256 and "Question:" in kwargs["stop"]
        return [Rollout(reasoner.ids(" 5 figs\n#### 5\n\nQuestion: 6"), False, True)]

    monkeypatch.setattr(harness, "generate_ids", said)
    assert harness.write(reasoner, ["Question: 2+3?\nAnswer:"]) == [" 5 figs\n#### 5\n\n"]


def test_words_that_a_model_does_not_know_are_named():
    with pytest.raises(FaithlabError, match=r"tiny-llama does not know: .*figs"):
        harness.letter_logp(tiny_reasoner(), ["Ann has 2 figs."])


def test_right_answers_count_by_filter(reasoner, sums, monkeypatch):
    said = [" 2+3=5\n#### 5", " It is $2,400.", " #### 11, no, 10", " none"]
    monkeypatch.setattr(harness, "write", lambda *args, **kwargs: said)
    table = harness.measure(reasoner, sums, harness.prompts(sums, [], 0))
    assert table["right_strict"].tolist() == [True, False, False, False]
    assert table["right_flexible"].tolist() == [True, True, True, False]
    assert table["target"].tolist() == ["5", "2400", "10", "0"]
    found = harness.summary(table).set_index("measure")
    assert found.loc["flexible", ["value", "n"]].tolist() == [0.75, 4]
    assert found.loc["flexible", "low"] == pytest.approx(0.3006, abs=1e-3), "Wilson's interval"
    theirs = table.assign(answer_strict=["5", "x", "11,", "[invalid]"], right_flexible=[True, True, False, False])
    checked = harness.summary(table, theirs).set_index("measure")
    assert checked["differ"].tolist() == [1, 1]
    assert checked.loc["flexible", "lm_eval"] == 0.5 and checked["prompts_differ"].tolist() == [0, 0]


# -- the command


def run(monkeypatch, *argv):
    import argparse

    monkeypatch.setattr(harness, "load_reasoner", lambda name: byte_reasoner())
    monkeypatch.setattr(harness, "identity", lambda name: "weights of bytes")
    parser = argparse.ArgumentParser()
    harness.add_arguments(parser)
    return harness.command(parser.parse_args(["bytes", "--quiet", *map(str, argv)]))


def test_the_command_writes_hashes_and_no_text(tmp_path, monkeypatch, capsys):
    paths = ["--path", jsonl(tmp_path / "test.jsonl", SUMS), "--shots-path", jsonl(tmp_path / "train.jsonl", SUMS[2:])]
    assert run(monkeypatch, *paths, "--shots", 1, "--n", 2, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "gsm8k, 2 problems, 1 examples each, bytes" in printed and "strict    0.000 [0.000, 0.658]" in printed
    folder = tmp_path / "out"
    items = pd.read_csv(folder / "items.csv", dtype=str)
    assert items["target"].tolist() == ["5", "2400"] and items["question"].str.fullmatch(r"[0-9a-f]{16}").all()
    asked = json.loads((folder / "harness.json").read_text())
    assert asked["seed"] == 1234 and asked["problems"] == 2
    assert pd.read_csv(folder / "summary.csv")["n"].tolist() == [2, 2]
    for path in folder.iterdir():
        assert not any(word in path.read_text() for word in ("figs", "pays", "2*1200", "older"))


def test_the_command_takes_the_first_of_each_subject(tmp_path, monkeypatch, capsys):
    rows = [{**row, "subject": subject} for subject in ("anatomy", "virology") for row in BONES]
    jsonl(tmp_path / "test.jsonl", rows)
    jsonl(tmp_path / "dev.jsonl", [{**row, "question": "Another?"} for row in rows])
    assert (
        run(monkeypatch, "--task", "mmlu", "--path", tmp_path, "--n", 2, "--shots", 3, "--output", tmp_path / "o") == 0
    )
    assert "mmlu, 4 problems, 3 examples each" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["gsm8k", "mmlu"])
def test_an_interrupted_command_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch, capsys, task):
    rows = SUMS if task == "gsm8k" else [row | dict(subject=name) for row in BONES for name in ("virology", "anatomy")]
    paths = ["--task", task, "--path", jsonl(tmp_path / "test.jsonl", rows), "--shots", 0]
    monkeypatch.setattr(harness, "PART", 1)
    assert run(monkeypatch, *paths, "--output", tmp_path / "whole") == 0
    whole, measure, seen = capsys.readouterr().out.replace("whole", "broken"), harness.measure, []

    def third_time_stops(reasoner, problems, texts, **options):
        seen.extend(problems)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(reasoner, problems, texts, **options)

    monkeypatch.setattr(harness, "measure", third_time_stops)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, *paths, "--output", tmp_path / "broken")
    assert run(monkeypatch, *paths, "--output", tmp_path / "broken") == 0
    assert capsys.readouterr().out == whole
    assert len(seen) == len(rows) + 1, "only the problem in which it was stopped is measured twice"
    for name in ("items.csv", "summary.csv", "harness.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "broken" / name).read_text()
    monkeypatch.setattr(harness, "measure", lambda *a, **k: pytest.fail("a finished run is not measured again"))
    assert run(monkeypatch, *paths, "--output", tmp_path / "broken") == 0
    assert capsys.readouterr().out == whole


def test_a_folder_serves_one_request(tmp_path, monkeypatch):
    paths = ["--path", jsonl(tmp_path / "test.jsonl", SUMS), "--shots", 0, "--output", tmp_path / "out"]
    run(monkeypatch, *paths, "--n", 2)
    with pytest.raises(FaithlabError, match=r"another run \(other problems, prompts, answers\); give another --output"):
        run(monkeypatch, *paths, "--n", 3)
    items = tmp_path / "out" / "items.csv"
    good = items.read_text().splitlines()
    for lines, says in (
        (["nonsense"], "'item'"),
        ([*good, good[1]], "there twice"),
        ([good[0], good[1].replace("0,", "1,", 1)], "problem 1 is another one"),
        ([good[0], good[1].replace("0,", "7,", 1)], "out of range"),
        ([line.rsplit(",", 1)[0] for line in good], "right_flexible"),
        ([*good[:-1], good[-1][:-3]], "right_flexible is neither True nor False"),
        ([*good[:-1], good[-1].replace("False", "True")], "right_strict of problem 1 does not follow"),
    ):
        items.write_text("\n".join(lines))
        with pytest.raises(FaithlabError, match=rf"is damaged \(.*{says}.*\); delete it to measure again"):
            run(monkeypatch, *paths, "--n", 2)
    items.write_text("\n".join(good))
    changed = [SUMS[0], SUMS[1] | dict(answer=SUMS[1]["answer"].replace("####", "#### 1"))]
    jsonl(tmp_path / "test.jsonl", changed)
    with pytest.raises(FaithlabError, match=r"another run \(other answers\)"):
        run(monkeypatch, *paths, "--n", 2)
    (tmp_path / "out" / "harness.json").write_text("{")
    with pytest.raises(FaithlabError, match="its record is damaged"):
        run(monkeypatch, *paths, "--n", 2)


def test_a_command_that_is_refused_does_not_take_the_folder(tmp_path, monkeypatch):
    call = ["--path", jsonl(tmp_path / "test.jsonl", SUMS), "--shots", 0, "--output", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr(harness, "write", lambda *a, **k: (_ for _ in ()).throw(FaithlabError("unknown words")))
        with pytest.raises(FaithlabError, match="unknown words"):
            run(patched, *call)
    assert run(monkeypatch, *call, "--n", 1) == 0, "with other settings, as if nothing had been"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.csv").write_text("mine")
    with pytest.raises(FaithlabError, match=r"summary.csv is there, and no harness.json says what of; move it"):
        run(monkeypatch, *call[:-1], tmp_path / "mine")
    assert (tmp_path / "mine" / "summary.csv").read_text() == "mine"


def test_a_check_may_be_added_and_is_kept(tmp_path, monkeypatch, capsys):
    call = ["--path", jsonl(tmp_path / "test.jsonl", SUMS[:2]), "--shots", 0, "--output", tmp_path / "out"]
    run(monkeypatch, *call)
    ours = pd.read_csv(tmp_path / "out" / "items.csv", dtype=str, keep_default_na=False)
    said = ours[["prompt", "answer_strict", "answer_flexible"]].assign(right_strict=False, right_flexible=False)
    said.loc[1, ["answer_flexible", "right_flexible"]] = ["5", True]
    monkeypatch.setattr(harness, "import_lm_eval", lambda: None)
    monkeypatch.setattr(harness, "by_lm_eval", lambda *a, **k: said)
    capsys.readouterr()
    assert run(monkeypatch, *call, "--check") == 0
    found = capsys.readouterr().out
    assert "lm-eval 0.500: 1 answers and 0 prompts differ" in found
    monkeypatch.setattr(harness, "by_lm_eval", lambda *a, **k: pytest.fail("it is there already"))
    for argv in ((), ("--check",)):
        assert run(monkeypatch, *call, *argv) == 0
        assert capsys.readouterr().out == found


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--shots", 1], r"give --shots-path, the rows that examples come from, or --shots 0"),
        (["--shots", 1, "--shots-path", "TEST"], r"the few-shot rows hold all the problems"),
        (["--shots", 9, "--shots-path", "TRAIN"], r"only 1 rows to take 9 examples from"),
        (["--shots", 0, "--n", 0], r"--n=0 is not possible"),
        (["--task", "mmul"], r"unknown task 'mmul'"),
        (["--shots", 0, "--check"], r"--check needs lm-eval .*pip install 'faithlab\[harness\]'"),
    ],
)
def test_bad_commands_say_what_to_do_and_leave_nothing(tmp_path, monkeypatch, argv, says):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    paths = {
        "TEST": jsonl(tmp_path / "test.jsonl", SUMS[:3]),
        "TRAIN": jsonl(tmp_path / "train.jsonl", SUMS[3:]),
    }
    argv = [paths.get(a, a) for a in argv]
    with pytest.raises(FaithlabError, match=says) as caught:
        run(monkeypatch, "--path", paths["TEST"], *argv, "--output", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


# -- lm-eval itself, and what it said when it was last asked

RECORDED = Path(__file__).parent / "recorded" / "lm_eval.json"
COLUMNS = {"gsm8k": ["prompt", "answer_strict", "right_strict", "answer_flexible", "right_flexible"],
           "mmlu": ["prompt", "answer_letter", "right_letter"]}  # fmt: skip
SAID = [  # what a model might write, and the published number
    (" 2+3=5\n#### 5", "5"), (" #### 1,200.50\n\n#### 7", "7"), (" #### $5", "5"), (" ####5", "5"),
    (" #### -12 of 30", "-12"),
    (" The answer is 18.", "18"), (" It costs $1,450.00.", "1,450"), (" It costs $1,450.", "1,450"), (" 3-4", "-4"),
    (" 7 ... or so", "7"), (" ten", "10"), ("", "0"), (" #### 2400.", "2,400"), (" so x=5=5", "5"),
    (" #### 5 #### 6", "6"),
    (" #### .5", ".5"), (" 1. 2. 3.", "3"), (" 50%", "50"), (" #### 1e3", "1"), (" \u0665", "5"), (" A#### 8", "8"),
]  # fmt: skip


def asked(task, tmp_path):
    """Problems, the pool of examples, and how many are shown."""
    rows = SUMS if task == "gsm8k" else [{**row, "subject": s} for s in ("anatomy", "bones_and_more") for row in BONES]
    problems = harness.load(task, jsonl(tmp_path / "test.jsonl", rows))
    pool = [p._replace(question=f"{i}: {p.question}") for i in range(3) for p in problems]
    return problems, pool, 2 if task == "gsm8k" else 3


def said_problems():
    return [Problem(f"Question {i}?", f"Worked.\n#### {target}") for i, (_, target) in enumerate(SAID)]


@pytest.mark.parametrize("task", ["gsm8k", "mmlu"])
def test_prompts_and_answers_are_those_that_lm_eval_gave(tmp_path, task, reasoner):
    recorded = pd.DataFrame(json.loads(RECORDED.read_text())[task])
    problems, pool, shots = asked(task, tmp_path)
    ours = harness.measure(reasoner, problems, harness.prompts(problems, pool, shots))
    pd.testing.assert_frame_equal(ours[COLUMNS[task]], recorded[COLUMNS[task]])


def test_texts_are_read_as_lm_eval_read_them(reasoner, monkeypatch):
    recorded = pd.DataFrame(json.loads(RECORDED.read_text())["said"])
    monkeypatch.setattr(harness, "write", lambda *args, **kwargs: [text for text, _ in SAID])
    ours = harness.measure(reasoner, said_problems(), harness.prompts(said_problems(), [], 0))
    pd.testing.assert_frame_equal(ours[COLUMNS["gsm8k"]], recorded[COLUMNS["gsm8k"]])
    assert 0 < ours["right_strict"].sum() < ours["right_flexible"].sum() < len(SAID)


def test_the_recording_is_what_lm_eval_says(tmp_path, reasoner, monkeypatch):
    """FAITHLAB_RECORD=1 makes it anew."""
    lm_eval = pytest.importorskip("lm_eval")
    found = {"lm_eval": lm_eval.__version__}
    for task in ("gsm8k", "mmlu"):
        problems, pool, shots = asked(task, tmp_path)
        found[task] = harness.by_lm_eval(reasoner, problems, pool, shots=shots).to_dict("list")
    model = sys.modules["lm_eval.models.huggingface"].HFLM
    monkeypatch.setattr(model, "generate_until", lambda self, requests, **_: [SAID[r.doc_id][0] for r in requests])
    found["said"] = harness.by_lm_eval(reasoner, said_problems(), shots=0).to_dict("list")
    if os.environ.get("FAITHLAB_RECORD"):
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    assert {**json.loads(RECORDED.read_text()), "lm_eval": found["lm_eval"]} == found


@pytest.mark.parametrize("task", ["gsm8k", "mmlu"])
def test_lm_eval_says_the_same_of_every_problem(tmp_path, task, reasoner):
    pytest.importorskip("lm_eval")
    problems, pool, shots = asked(task, tmp_path)
    ours = harness.measure(reasoner, problems, harness.prompts(problems, pool, shots))
    found = harness.summary(ours, harness.by_lm_eval(reasoner, problems, pool, shots=shots))
    assert found["prompts_differ"].tolist() == found["differ"].tolist() == [0] * len(found)
    assert found["lm_eval"].tolist() == found["value"].tolist()
