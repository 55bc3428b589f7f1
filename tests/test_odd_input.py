"""Odd things that people type and files hold: a clear error, and nothing lost."""

import argparse
import json
import ntpath

import pandas as pd
import pytest
from tiny import tiny_reasoner

from faithlab import grading, paths, tasks
from faithlab.attention import read_layers
from faithlab.balance import Balanced
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.explain import _problem, add_arguments
from faithlab.grading import HandedIn
from faithlab.heads import check_fraction
from faithlab.kept import kept_or_measured
from faithlab.results import write_atomically
from faithlab.rewards import SaliencyReward
from faithlab.run_log import RunLog
from faithlab.sweep import read_plan
from faithlab.tasks import verify, verify_worker

ODD_PATHS = ("~nosuchuser/model", "/" + "x" * 300)


@pytest.mark.parametrize("text", ODD_PATHS)
def test_a_path_that_is_none_is_named(text, capsys):
    with pytest.raises(FaithlabError, match="no such file or folder"):
        paths.user_path(text)
    with pytest.raises(FaithlabError, match="no such file or folder"):
        tasks.load("gsm8k", split="test", path=text)
    assert main(["evaluate", text, "--n", "1"]) == 2 and "no such file or folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FaithlabError, match=r"cannot make the folder .*file: .*; choose another one"):
        paths.make_folder(file)
    for call in (["feedback", "sheet", "--n", "1"], ["feedback", "form", "abacus", "--n", "1"]):
        assert main([*call, "--output", str(file)]) == 2 and "cannot make the folder" in capsys.readouterr().err
    problems = tmp_path / "h.jsonl"
    problems.write_text(json.dumps(dict(question="Tom has 2 pears. How many?", answer="#### 2")) + "\n")
    call = ["harness", "smollm2", "--path", str(problems), "--shots", "0", "--output", str(file)]
    assert main(call) == 2 and "cannot make the folder" in capsys.readouterr().err


def test_another_drive_of_windows_is_shown_whole(monkeypatch):
    monkeypatch.setattr(paths.os.path, "relpath", lambda path: ntpath.relpath(str(path), "C:\\repo"))
    assert paths.short("D:\\runs\\x") == "D:\\runs\\x"


def test_half_a_character_is_named(tmp_path, capsys):
    with pytest.raises(FaithlabError, match="holds half a character"):
        write_atomically(tmp_path / "x", "a\ud83d")
    assert not list(tmp_path.iterdir())
    assert main(["explain", "How \udcff?", "--output", str(tmp_path)]) == 2
    assert "the question holds bytes that are no text" in capsys.readouterr().err


def test_an_index_of_published_problems_is_that_problem(tmp_path, capsys):
    file = tmp_path / "test.jsonl"
    rows = [json.dumps(dict(question=f"Tom has {i} pears. How many?", answer=f"#### {i}")) + "\n" for i in range(60)]
    file.write_text("".join(rows))
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    def asked(index):
        call = ["--task", "gsm8k", "--index", str(index), "-o", "path", str(file)]
        return _problem(parser.parse_args(call))["answer"]

    assert [asked(i) for i in range(4)] == ["0", "1", "2", "3"] and asked(59) == "59"
    with pytest.raises(FaithlabError, match="--index 60: gsm8k has only 60 problems"):
        asked(60)


def test_one_exercise_that_cannot_be_graded_costs_no_other(tmp_path, monkeypatch):
    given = HandedIn("06_grpo", "", [], {"a": ['check("a", 1)  # \ud83d'], "b": ['check("b", 1)']})
    status, message = grading._graded(given, "a", tmp_path, "part", 5.0)
    assert status == "did not run" and "It cannot be graded: " in message

    def left_nonsense(*args):
        raise FaithlabError("results.json: damaged")

    monkeypatch.setattr(grading, "_run", left_nonsense)
    assert grading._graded(given, "b", tmp_path, "part", 5.0)[0] == "did not run"


def test_grades_are_kept_when_grading_is_broken_off(tmp_path, monkeypatch):
    node = json.dumps(dict(cells=[], metadata=dict(faithlab=dict(of="06_grpo")), nbformat=4, nbformat_minor=5))
    files = [tmp_path / f"{name}.ipynb" for name in ("ada", "ben")]
    for file in files:
        file.write_text(node)
    seen = []

    def graded(given, name, output, part, timeout):
        seen.append(part)
        if "ben" in part:
            raise KeyboardInterrupt
        return "right", ""

    monkeypatch.setattr(grading, "_graded", graded)
    with pytest.raises(KeyboardInterrupt):
        grading.grade(files, tmp_path, folder=paths.data_folder().parent / "notebooks")
    kept = (tmp_path / "grades.csv").read_text()
    assert kept.count("right") == len(seen) - 1 > 0 and "ben" not in kept


def test_a_line_end_within_a_text_is_no_end_of_a_row(tmp_path):
    class State:
        is_world_process_zero, global_step = True, 0

    lines = [json.dumps(dict(step=s, completion="a\u2028b\x85c"), ensure_ascii=False) + "\n" for s in (0, 3)]
    (tmp_path / "rollouts.jsonl").write_text("".join(lines), encoding="utf-8")
    RunLog(None, tmp_path, 1).on_train_begin(None, State, None)
    assert (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8") == lines[0]


@pytest.mark.parametrize(("content", "says"), [
    (b"arm,seed\ncredit_flow,\xff\n", "is no CSV"), ("arm,seed\ncredit_flow,²\n".encode(), "no whole number"),
])  # fmt: skip
def test_a_plan_that_is_no_text_is_named(tmp_path, content, says):
    (tmp_path / "plan.csv").write_bytes(content)
    with pytest.raises(FaithlabError, match=says):
        read_plan(tmp_path / "plan.csv")


def test_settings_of_the_wrong_kind_are_named_before_anything_runs(capsys):
    for wrong, says in (
        (lambda: SaliencyReward(tiny_reasoner(), floor=3), "floor < 0"),
        (lambda: SaliencyReward(tiny_reasoner(), floor="x"), "floor < 0"),
        (lambda: SaliencyReward(tiny_reasoner(), method="cut", reduction="drop", scope="some"), "unknown scope"),
        (lambda: Balanced(print, mode="schedule", full="x"), "full='x'"),
        (lambda: check_fraction("x"), "fraction=x"),
        (lambda: read_layers(["x"], 6), "are no layers; use middle"),
    ):
        with pytest.raises(FaithlabError, match=says):
            wrong()
    assert main(["feedback", "trust", "form.csv", "--key", "key.json", "--seed", "-1"]) == 2
    assert "--seed=-1" in capsys.readouterr().err


def test_a_name_that_is_a_folder_makes_a_file_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FAITHLAB_DATA", str(tmp_path / "data"))
    measure = lambda: pd.DataFrame(dict(x=[1]))  # noqa: E731
    kept_or_measured("05_judged_/home/ada/model", [], measure, output_dir=tmp_path / "run")
    [file] = (tmp_path / "run").iterdir()
    assert file.name.startswith("05_judged_-home-ada-model.")


def test_limits_that_the_system_refuses_leave_the_worker_running():
    class Resource:
        RLIM_INFINITY, asked = -1, []

        @staticmethod
        def getrlimit(kind):
            return (10, {"low": 10, "none": -1, "refused": -1}[kind])

        @classmethod
        def setrlimit(cls, kind, limits):
            if kind == "refused":
                raise ValueError("current limit exceeds maximum limit")
            cls.asked.append(limits)

    for kind in ("low", "none", "refused"):
        verify_worker._lower(Resource, kind, 99)
    assert Resource.asked == [(10, 10), (99, -1)]


def test_comparisons_without_a_verdict_are_told(monkeypatch):
    monkeypatch.setattr(verify, "_counts", dict(calls=7, timeouts=1, errors=2, refused=3))
    assert verify.unjudged().startswith("3 of 7 comparisons of answers count as unequal without a verdict")
    monkeypatch.setattr(verify, "_counts", dict(calls=7, timeouts=0, errors=0, refused=3))
    assert verify.unjudged() == ""
