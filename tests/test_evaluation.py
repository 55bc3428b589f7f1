"""Evaluation: quantities against their definitions, pass@k against enumeration, and a command that loses nothing."""

import dataclasses
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import unanswered
from tiny import saved

from faithlab import comparison, evaluate, evaluation, tasks
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.evaluation import Work, measure, pass_at_k, summary, with_pass
from faithlab.evaluation_folder import EvaluationFolder, note
from faithlab.faithfulness import reasoning_effect, token_effects
from faithlab.interventions import interventions
from faithlab.likelihood import prompt_hidden_logp
from faithlab.models import load_reasoner
from faithlab.saliency import optimise_mask


@pytest.fixture(scope="module")
def measured():
    """abacus on six hinted stories, everything measured."""
    reasoner = load_reasoner("abacus")
    rows = list(tasks.load("stories", split="test", n=6, seed=0, hops=(1, 2), hint="weak", hint_right=0.0))
    options = dict(samples=2, seed=3)
    return reasoner, rows, options, measure(reasoner, "stories", rows, groups=tuple(evaluation.GROUPS), **options)


# --- pass@k ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    right = [i < c for i in range(n)]
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k([c], [n], k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_at_its_ends():
    assert pass_at_k([1, 3], [4, 4], 1) == pytest.approx([0.25, 0.75])
    assert math.isnan(pass_at_k([1], [2], 4)[0]), "fewer samples than k"
    assert pass_at_k([1], [10**6], 1000)[0] == pytest.approx(0.001)
    for bad in (([3], [2], 1), ([-1], [2], 1), ([1], [2], 0)):
        with pytest.raises(FaithlabError):
            pass_at_k(*bad)


def test_passes_go_up_to_the_number_of_samples():
    table = pd.DataFrame(dict(right=[0.5], rights=[3], samples=[6]))
    found = with_pass(table)
    assert [c for c in found if c.startswith("pass@")] == ["pass@2", "pass@4"]
    assert found["pass@2"][0] == pytest.approx(1 - 3 / 15)
    assert "pass@2" in set(summary(table)["quantity"])


# --- quantities ------------------------------------------------------------------------------------------------------


def test_every_group_gives_the_columns_it_promises(measured):
    *_, table = measured
    assert table["problem"].tolist() == list(range(6))
    assert set(evaluation.QUANTITIES) <= set(table.columns)
    for name, (low, high) in evaluation.SUPPORT.items():
        assert table[name].dropna().between(low - 1e-6, high + 1e-6).all(), name


def test_quantities_are_those_of_the_functions_they_come_from(measured):
    reasoner, rows, options, table = measured
    sampled = reasoner.generate(rows, options["samples"], seed=options["seed"])
    greedy = reasoner.generate(rows, temperature=0)
    score = tasks.scorer("stories")
    right = np.array([score(t.answer_text, t.problem).value for t in sampled]).reshape(6, 2)
    assert table["right"].tolist() == pytest.approx(right.mean(1)) and table["rights"].tolist() == right.sum(1).tolist()
    hinted = [float(t.answer_text == str(t.problem["truth"]["hint"]["value"])) for t in sampled]
    assert table["follows"].tolist() == pytest.approx(np.reshape(hinted, (6, 2)).mean(1))
    first = sampled[::2]
    assert all(t.answered for t in first), "else the rows below would have to be matched"
    close = dict(abs=1e-4)
    assert table["nats"].tolist() == pytest.approx(reasoning_effect(reasoner, first)["effect"].tolist(), **close)
    assert table["sufficiency"].tolist() == pytest.approx(prompt_hidden_logp(reasoner, first).exp().tolist(), **close)
    masks = optimise_mask(reasoner.model, first, pad_id=reasoner.pad_id).values
    assert table["mask"].tolist() == pytest.approx([float(s.mean()) for s in masks], abs=1e-3)
    early = interventions(reasoner, rows, kinds=("early_answering",), traces=greedy, per_trace=True)
    assert table["early"].tolist() == pytest.approx(early.groupby("trace")["effect"].mean().tolist())
    again = token_effects(reasoner, greedy, method="resample", unit="sentence", seed=options["seed"])
    assert table["resampled"].tolist() == pytest.approx(again.groupby("trace")["effect"].mean().tolist())


def test_means_over_samples_leave_out_what_was_not_measured():
    work = Work(None, "stories", [{}, {}], 2, 1.0, 0, False)
    assert work.by_problem([1.0, math.nan, 0.0, 1.0]).tolist() == [1.0, 0.5]
    assert work.spread([1], [4.0]).tolist()[1] == 4.0 and math.isnan(work.spread([1], [4.0])[0])


def test_what_has_no_answer_or_is_no_story_is_nan(monkeypatch):
    reasoner = load_reasoner("abacus")
    rows = list(tasks.load("stories", split="test", n=2, seed=0, hops=(1, 1)))
    write = type(reasoner).generate
    monkeypatch.setattr(type(reasoner), "generate", lambda *a, **k: [unanswered(t) for t in write(*a, **k)])
    table = measure(reasoner, "stories", rows, groups=tuple(g for g in evaluation.GROUPS if g != "hint"), samples=1)
    for name in ("nats", "sufficiency", "mask", "relayed", "early", "mistake", "filler", "paraphrase", "resampled"):
        assert table[name].isna().all(), name
    assert table["right"].tolist() == [0, 0]
    other = measure(reasoner, "chain_sum", [dict(question="3 + 4 = ?", answer="7")], groups=("reading", "text"))
    assert other["length"].notna().all()
    assert other[["follows", "reasoned", "agrees", "fillers"]].isna().all().all(), "no story to read them from"


def test_greedy_results_do_not_depend_on_company():
    reasoner = load_reasoner("abacus")
    rows = list(tasks.load("stories", split="test", n=5, seed=2, hops=(1, 2)))
    options = dict(samples=1, temperature=0, groups=("accuracy", "text", "reasoning"))
    together = measure(reasoner, "stories", rows, **options)
    alone = pd.concat([measure(reasoner, "stories", [r], **options) for r in rows], ignore_index=True)
    columns = [c for c in together if c != "problem"]
    pd.testing.assert_frame_equal(together[columns], alone[columns], atol=1e-4, rtol=0)


def test_bad_settings_are_named():
    reasoner = load_reasoner("abacus")
    rows = list(tasks.load("stories", split="test", n=1, seed=0))
    for options, message in (
        (dict(groups=("accurazy",)), "did you mean 'accuracy'"), (dict(samples=0), "samples=0"),
        (dict(temperature=-1), "temperature=-1"),
    ):  # fmt: skip
        with pytest.raises(FaithlabError, match=message):
            measure(reasoner, "stories", rows, **options)
    with pytest.raises(FaithlabError, match="unknown task"):
        measure(reasoner, "storys", rows)
    with pytest.raises(FaithlabError, match="no problems"):
        measure(reasoner, "stories", [])


# --- the command -----------------------------------------------------------------------------------------------------

SMALL = dict(n=5, groups=("accuracy", "text"), samples=2, options=dict(hops=[1, 1]))


@pytest.fixture
def parts_of_two(monkeypatch):
    monkeypatch.setattr(evaluate, "PART", 2)


def test_a_stopped_evaluation_goes_on_and_counts_nothing_twice(tmp_path, monkeypatch, parts_of_two):
    whole = evaluate.evaluate(["abacus"], tmp_path / "whole", **SMALL)["abacus"]
    calls = []

    def stops(*args, **options):
        calls.append(len(args[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(evaluation, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(["abacus"], tmp_path / "broken", **SMALL)
    resumed = evaluate.evaluate(["abacus"], tmp_path / "broken", **SMALL)["abacus"]
    assert calls == [2, 2, 2, 1], "the first part is not run again"
    pd.testing.assert_frame_equal(whole, resumed)
    evaluate.evaluate(["abacus"], tmp_path / "broken", **SMALL)
    assert calls == [2, 2, 2, 1], "what is finished is only read"


@pytest.fixture
def copy(tmp_path):
    """abacus in a folder of its own."""
    return str(saved(load_reasoner("abacus"), tmp_path / "copy"))


def test_parts_draw_random_numbers_of_their_own(tmp_path, monkeypatch, parts_of_two):
    """The same problem in two parts is answered by other samples."""
    seen = []

    def measured(reasoner, task, rows, *, seed, **options):
        seen.append(seed)
        return pd.DataFrame(dict(problem=range(len(rows)), nats=1.0))

    monkeypatch.setattr(evaluate.evaluation, "measure", measured)
    evaluate.evaluate(["abacus"], tmp_path, n=6, seed=3, groups=("reasoning",))
    assert seen[0] == 3 and len(seen) == len(set(seen)) == 3


@pytest.fixture
def measured_rows(monkeypatch, parts_of_two):
    """Which problems were measured for whom, in the order of the calls; parts are of two problems."""
    calls = []

    def spy(reasoner, task, rows, **options):
        calls.append((Path(reasoner.name).name, [r["question"] for r in rows]))
        return measure(reasoner, task, rows, **options)

    monkeypatch.setattr(evaluation, "measure", spy)
    return calls


def parts(calls):
    return [(name, len(rows)) for name, rows in calls]


def test_every_name_is_resolved_before_anything_is_measured(copy, tmp_path, measured_rows):
    broken = tmp_path / "broken"
    shutil.copytree(copy, broken)
    (broken / "config.json").write_text("{")
    for bad, message in (
        ("abacuss", "unknown reasoner 'abacuss'; did you mean 'abacus'"), ("./nowhere", "no such folder"),
        ("nobody-here/no-such-model", "cannot load nobody-here/no-such-model"), (str(tmp_path), "holds no config.json"),
        (str(broken), "cannot load"),
    ):  # fmt: skip
        with pytest.raises(FaithlabError, match=message):
            evaluate.evaluate(["abacus", bad], tmp_path / "out", **SMALL)
    assert not measured_rows and not (tmp_path / "out").exists()


def test_a_corrected_or_added_reasoner_keeps_what_is_finished(copy, tmp_path, measured_rows):
    """Weights that turn out to be damaged are seen when they are loaded, after others were measured."""
    damaged = tmp_path / "damaged"
    shutil.copytree(copy, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(FaithlabError, match="cannot load"):
        evaluate.evaluate(["abacus", str(damaged)], tmp_path / "out", **SMALL)
    abacus = [("abacus", 2), ("abacus", 2), ("abacus", 1)]
    assert parts(measured_rows) == abacus
    before = (tmp_path / "out" / "abacus.problems.csv").read_bytes()
    found = evaluate.evaluate(["abacus", copy], tmp_path / "out", **SMALL)
    assert parts(measured_rows) == [*abacus, ("copy", 2), ("copy", 2), ("copy", 1)]
    assert (tmp_path / "out" / "abacus.problems.csv").read_bytes() == before
    pd.testing.assert_frame_equal(found["abacus"], found["copy"])
    again = evaluate.evaluate([copy, "abacus"], tmp_path / "out", **SMALL)  # in another order
    assert list(again) == ["copy", "abacus"] and len(measured_rows) == 6
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(record["reasoners"]) == ["abacus", "copy"] and record["reasoners"]["copy"]["weights"]
    assert record["reasoners"]["abacus"] | dict(source=copy) == record["reasoners"]["copy"], (
        "the same weights and dtype"
    )


def test_more_problems_go_on_behind_those_that_are_finished(copy, tmp_path, measured_rows):
    few, more = {**SMALL, "n": 3}, {**SMALL, "n": 5}
    whole = evaluate.evaluate(["abacus"], tmp_path / "whole", **more)["abacus"]
    del measured_rows[:]
    evaluate.evaluate(["abacus", copy], tmp_path / "grown", **few)
    grown = evaluate.evaluate(["abacus"], tmp_path / "grown", **more)["abacus"]
    first = [("abacus", 2), ("abacus", 1), ("copy", 2), ("copy", 1)]
    assert parts(measured_rows) == [*first, ("abacus", 2), ("abacus", 1)], "the part that was not full is done again"
    pd.testing.assert_frame_equal(grown, whole)
    beside = evaluate.evaluate(["abacus", copy], tmp_path / "grown", **more)["copy"]
    pd.testing.assert_frame_equal(beside, whole)
    with pytest.raises(FaithlabError, match="is for 5 problems; give --n 5 or more"):
        evaluate.evaluate(["abacus"], tmp_path / "grown", **few)


def test_more_problems_are_refused_where_the_first_would_be_others(tmp_path, monkeypatch):
    data = tmp_path / "test.jsonl"
    lines = [json.dumps(dict(question=f"Tom has {i} pears. How many?", answer=f"#### {i}")) for i in range(9)]
    data.write_text("\n".join(lines))
    monkeypatch.setattr(
        evaluation, "measure", lambda r, t, rows, **o: pd.DataFrame(dict(problem=range(len(rows)), nats=0))
    )
    options = dict(task="gsm8k", options=dict(path=str(data)), groups=("reasoning",))
    evaluate.evaluate(["abacus"], tmp_path / "out", n=3, **options)
    with pytest.raises(FaithlabError, match=r"not the first of these 4.*gsm8k chooses others for each n; give --n 3"):
        evaluate.evaluate(["abacus"], tmp_path / "out", n=4, **options)
    data.write_text("\n".join(lines[::-1]))
    with pytest.raises(FaithlabError, match="other problems of gsm8k: its data have changed since"):
        evaluate.evaluate(["abacus"], tmp_path / "out", n=3, **options)


@pytest.mark.parametrize("task", ["stories", "countdown", "chain_sum", "gsm_symbolic"])
def test_fewer_problems_are_the_first_of_more(task):
    """What `--help` says of raising n."""
    few, many = (list(tasks.load(task, split="test", n=n, seed=1)) for n in (4, 9))
    assert many[:4] == few


def test_the_command_prints_and_writes_tables(copy, tmp_path, capsys):
    call = ["evaluate", "abacus", copy, "--n", "3", "--samples", "2", "--quiet", "-o", "hops", "[1, 1]"]
    assert main([*call, "--groups", "accuracy,early", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "pass@2" in out and "difference to abacus" in out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {row["reasoner"] for row in record["summary"]} == {"abacus", "copy"}
    found = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert (found["value"] == 0).all() and (found["p_holm"] == 1).all(), "a copy does not differ"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "abacus.problems.csv", "comparison.csv", "copy.problems.csv", "evaluation.json",
        "evaluation.json.lock", "summary.csv",
    ]  # fmt: skip


def test_what_another_command_noted_meanwhile_stays(tmp_path):
    """Two commands add a reasoner each; the slower one ends with its summary."""
    settings, rows = dict(n=1, task="stories", groups=["reasoning"]), [dict(question="?")]
    said = dict(source="abacus", weights="1")
    one, two = (EvaluationFolder(tmp_path, settings, rows, {name: said}) for name in ("one", "two"))
    table = pd.DataFrame(dict(problem=[0], nats=[1.0]))
    one.save("one", table)
    two.save("two", table)
    note(tmp_path, dict(summary=[1], comparison=[2]))
    note(tmp_path, dict(summary=[3]))
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(record["reasoners"]) == {"one", "two"} and record["summary"] == [3] and "comparison" not in record
    EvaluationFolder(tmp_path, settings, rows, {"two": said})


@pytest.mark.parametrize(
    "change",
    [
        dict(reasoners=dict(abacus=3)), dict(reasoners=[]), dict(reasoners=dict(abacus=dict(source=None))),
        dict(settings=dict(n="x")), dict(settings=3), dict(problems=7), dict(problems=None),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(change, tmp_path):
    settings, rows, said = (
        dict(n=1, groups=["reasoning"]),
        [dict(question="?")],
        dict(abacus=dict(source="abacus", weights="1")),
    )
    EvaluationFolder(tmp_path, settings, rows, said).save("abacus", pd.DataFrame(dict(problem=[0], nats=[1.0])))
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FaithlabError, match="is damaged or of another version; give another --output"):
        EvaluationFolder(tmp_path, settings, rows, said)


def test_a_finished_folder_is_of_its_dtype_too(tmp_path):
    options = dict(n=1, groups=("accuracy",), samples=1)
    first = evaluate.evaluate(["abacus"], tmp_path, **options)["abacus"]
    again = evaluate.evaluate(["abacus"], tmp_path, dtype="float32", **options)["abacus"]
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(FaithlabError, match=r"holds abacus in float32.*give --dtype float32"):
        evaluate.evaluate(["abacus"], tmp_path, dtype="bfloat16", **options)
    with pytest.raises(FaithlabError, match="'bogus' cannot be used here"):
        evaluate.evaluate(["abacus"], tmp_path / "other", device="bogus", **options)
    assert not (tmp_path / "other").exists()


def test_two_commands_cannot_share_a_folder_for_different_things(tmp_path):
    """Both begin while it is empty; the one that saves second is told so, and what the first saved stays."""
    rows, said = [dict(question=str(i)) for i in range(3)], dict(source="abacus", weights="1")

    def begun(name, seed=0, n=2):
        return EvaluationFolder(
            tmp_path, dict(n=n, task="stories", groups=["reasoning"], seed=seed), rows[:n], {name: said}
        )

    table = pd.DataFrame(dict(problem=[0, 1], nats=[1.0, 2.0]))
    first, other_seed, fewer, other_weights = begun("one", n=3), begun("two", seed=1), begun("three"), begun("one", n=3)
    other_weights.sources["one"]["weights"] = "2"
    first.save("one", table)
    before = (tmp_path / "evaluation.json").read_text()
    for folder, name, why in (
        (other_seed, "two", "other seed"),
        (fewer, "three", "give --n 3"),
        (other_weights, "one", "other weights"),
    ):
        with pytest.raises(FaithlabError, match=why):
            folder.save(name, table)
    assert (tmp_path / "evaluation.json").read_text() == before and len(list(tmp_path.glob("*.csv"))) == 1
    first.measured_in("one", "float32")
    first.save("one", table)
    with pytest.raises(FaithlabError, match=r"holds one in float32.*give --dtype float32"):
        begun("one", n=3).measured_in("one", "bfloat16")
    first.save("one", table.drop(columns="nats"))
    with pytest.raises(FaithlabError, match="another version, without nats"):
        first.finished("one")


def test_a_table_with_a_damaged_cell_is_not_counted(tmp_path, parts_of_two):
    evaluate.evaluate(["abacus"], tmp_path, **SMALL)
    path = tmp_path / "abacus.problems.csv"
    good, table = path.read_text(), pd.read_csv(path)
    right = table.columns.get_loc("right")
    cells = good.splitlines()[1].split(",")

    def with_right(text):
        return good.replace(",".join(cells), ",".join([*cells[:right], text, *cells[right + 1 :]]), 1)

    for damaged, says in (
        (with_right("abc"), "right holds what is no number"),
        (with_right("a\0"), "right holds what is no number"),
        (with_right("-5"), "right lies beyond 0 and 1"),
        (with_right(""), "right is not the share"),
        (with_right("0.25" if cells[right] != "0.25" else "0.75"), "right is not the share"),
        (good[:-4], "its last line is cut short"),
    ):
        path.write_text(damaged)
        with pytest.raises(FaithlabError, match=rf"is damaged \({says}.*\): delete it"):
            evaluate.evaluate(["abacus"], tmp_path, **SMALL)
    path.write_text(good)
    evaluate.evaluate(["abacus"], tmp_path, **SMALL)


@pytest.mark.parametrize("name", ["summary.csv", "comparison.csv"])
def test_files_of_somebody_else_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FaithlabError, match=rf"{name} is there, and no evaluation.json says what of; move it"):
        evaluate.evaluate(["abacus"], tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_mistakes_cost_nothing_and_are_named(tmp_path, capsys, parts_of_two):
    evaluate.evaluate(["abacus"], tmp_path / "one", **SMALL)
    for other, named in ((dict(seed=1), "seed"), (dict(groups=("text",), samples=3), "groups, samples")):
        with pytest.raises(FaithlabError, match=f"another evaluation .other {named}.; give another --output"):
            evaluate.evaluate(["abacus"], tmp_path / "one", **{**SMALL, **other})
    stray = tmp_path / "stray" / "abacus.problems.csv"
    stray.parent.mkdir()
    stray.write_text("mine")
    with pytest.raises(FaithlabError, match="does not say what of"):
        evaluate.evaluate(["abacus"], tmp_path / "stray", **SMALL)
    assert stray.read_text() == "mine"
    for damage in (
        b"",
        b"nonsense\n1\n",
        b"problem,right\nx,1\n",
        b"problem,right\n0,1\n1,1,1,1\n",
        b"\xff\xfe\x00",
        b"problem,right\n0,1\n1,1\n1,1\n3,1\n",
        b"problem,right\n0,1\n2,1\n",
    ):
        (tmp_path / "one" / "abacus.problems.csv").write_bytes(damage)
        with pytest.raises(FaithlabError, match=r"problems\.csv is damaged \(.+\): delete it to measure abacus again"):
            evaluate.evaluate(["abacus"], tmp_path / "one", **SMALL)
    (tmp_path / "one" / "evaluation.json").write_text("{")
    with pytest.raises(FaithlabError, match=r"evaluation\.json is damaged"):
        evaluate.evaluate(["abacus"], tmp_path / "one", **SMALL)
    for call, message in (
        (["abacus", "--groups", "accurracy"], "did you mean 'accuracy'"), (["abacus", "abacus"], "both be called"),
        (["abacus", "-o", "seed", "1"], "give --seed"), (["abacus", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["abacus", "-o", "hops", "[1"], "cannot be read"), (["abacus", "--n", "0"], "n=0"),
        (["abacus", "-o", "hopz", "1"], "hopz"), (["nonesuch"], "nonesuch"),
        (["abacus", "--groups", ""], "unknown group"), (["abacus", "--temperature", "-1"], "temperature=-1"),
        (["abacus", "--temperature", "0"], "all 4 samples are the same: ask for 1"),
    ):  # fmt: skip
        assert main(["evaluate", *call, "--quiet", "--output", str(tmp_path / "two")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "two").exists() or not list((tmp_path / "two").iterdir()), "the folder is still free"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FaithlabError, match="choose another --output"):
        evaluate.evaluate(["abacus"], file, **SMALL)


def test_a_checkpoint_that_changed_is_another(copy, tmp_path):
    evaluate.evaluate([copy], tmp_path / "out", **SMALL)
    changed = load_reasoner("abacus")
    changed.model.lm_head.weight.data.mul_(1.5)
    saved(changed, copy)
    with pytest.raises(FaithlabError, match="other weights"):
        evaluate.evaluate([copy], tmp_path / "out", **SMALL)


def test_what_a_reasoner_has_nothing_of_is_left_empty(copy, tmp_path, capsys):
    call = ["evaluate", "abacus", copy, "--task", "countdown", "--n", "1", "--samples", "1", "--quiet"]
    assert main([*call, "--groups", "paraphrase", "--output", str(tmp_path / "out")]) == 0
    assert pd.read_csv(tmp_path / "out" / "comparison.csv").empty
    said = capsys.readouterr().out
    assert "nothing could be measured" in said and "paraphrase is empty for abacus, copy: it needs" in said


def test_labels_are_names_of_files():
    def called(*reasoners):
        return list(evaluate.labels(reasoners))

    assert called("abacus", "runs/train/arm-1/last", "org/Model 3B") == ["abacus", "arm-1", "Model_3B"]
    assert called("../../..") == ["reasoner"]
    assert called("run/last", "run/best", "abacus") == ["run_last", "run_best", "abacus"], "as much as tells them apart"
    assert called("a/checkpoint-10", "b/checkpoint-10") == ["a_checkpoint-10", "b_checkpoint-10"]
    assert called("org1/M", "org2/M", "abacus", "x/abacus") == ["org1_M", "org2_M", "abacus", "x_abacus"]
    assert evaluate.labels(["before=run/last", "run/last"]) == {"before": "run/last", "run": "run/last"}
    assert evaluate.labels(["odd name=x", "=y"]) == {"odd_name_x": "odd name=x", "_y": "=y"}
    with pytest.raises(FaithlabError, match="no reasoner"):
        evaluate.labels([])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_problems_survive_kills(tmp_path):
    """kill -9 again and again, the same command again and again: nothing lost, nothing counted twice."""
    command = [sys.executable, "-m", "faithlab.cli", "evaluate", "abacus", "--n", "2000", "--samples", "1", "--quiet",
               "--temperature", "0", "--groups", "accuracy,text", "--output", str(tmp_path)]  # fmt: skip
    path, seen, kills = tmp_path / "abacus.problems.csv", 0, 0
    while kills < 4:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not path.is_file() or len(pd.read_csv(path)) < seen + 200):
            time.sleep(0.2)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = len(pd.read_csv(path))
        assert now >= seen + 200, "what was saved is still there"
        seen, kills = now, kills + 1
    subprocess.run(command, check=True, capture_output=True)
    found = pd.read_csv(path)
    assert found["problem"].tolist() == list(range(2000))
    rows = list(tasks.load("stories", split="test", n=2000, seed=0))
    for first in (0, evaluate.PART * 40):  # the same as measured in one go
        some = rows[first : first + evaluate.PART]
        part = measure(load_reasoner("abacus"), "stories", some, groups=("accuracy", "text"), samples=1, temperature=0)
        again = found[first : first + evaluate.PART].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            part.drop(columns="problem"), again.drop(columns="problem"), atol=1e-4, check_dtype=False
        )


def test_problems_that_do_not_fit_the_window_are_left_empty(tmp_path, monkeypatch, capsys):
    """One that is too long must not stop the others, now or when the command is given again."""
    reasoner, rows = load_reasoner("abacus"), list(tasks.load("stories", split="test", n=4, seed=0, hops=(1, 4)))
    lengths = [len(reasoner.prompt_ids(r)) for r in rows]
    most = max(lengths)
    monkeypatch.setattr("faithlab.reasoner.context_window", lambda model: most + evaluation.ROOM - 1)
    fitting = [i for i, n in enumerate(lengths) if n < most]
    assert 0 < len(fitting) < 4
    options = dict(groups=("accuracy", "reasoning"), samples=2, seed=1)
    found = measure(reasoner, "stories", rows, **options)
    alone = measure(reasoner, "stories", [rows[i] for i in fitting], **options)
    assert found["problem"].tolist() == [0, 1, 2, 3]
    assert found.drop(columns="problem").isna().all(axis=1).tolist() == [i not in fitting for i in range(4)]
    kept = found.iloc[fitting].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.drop(columns="problem"), alone.drop(columns="problem"), check_dtype=False)
    assert summary(found).set_index("quantity").loc["pass@2", "n"] == len(fitting)
    call = [
        "evaluate",
        "abacus",
        "--n",
        "4",
        "--samples",
        "2",
        "--groups",
        "accuracy",
        "-o",
        "hops",
        "[1, 4]",
        "--quiet",
    ]
    for _ in range(2):
        assert main([*call, "--output", str(tmp_path / "out")]) == 0
        assert f"{4 - len(fitting)} of 4 problems do not fit the window of abacus" in capsys.readouterr().out
    monkeypatch.setattr("faithlab.reasoner.context_window", lambda model: 1)
    assert measure(reasoner, "stories", rows, **options).drop(columns="problem").isna().all(axis=None)


def test_answers_that_are_cut_off_are_counted(tmp_path):
    call = dict(n=3, groups=("accuracy",), samples=2, options=dict(hops=[2, 2]))
    whole = evaluate.evaluate(["abacus"], tmp_path / "whole", **call)["abacus"]
    cut = evaluate.evaluate(["abacus"], tmp_path / "cut", max_new_tokens=4, dtype="float32", **call)["abacus"]
    assert whole["answered"].mean() > 0.9 and (cut["answered"] == 0).all() and (cut["right"] == 0).all()
    with pytest.raises(FaithlabError, match="other max_new_tokens"):
        evaluate.evaluate(["abacus"], tmp_path / "cut", max_new_tokens=5, **call)


def test_many_quantities_do_not_blur_a_plain_difference():
    """A p that cannot fall below 2 / 10,001, times some hundred tests, would never stand."""
    rng = np.random.default_rng(0)
    base = pd.DataFrame(dict(problem=range(40)) | {q: rng.random(40) for q in evaluation.QUANTITIES})
    others = {
        f"better{k}": base.assign(**{q: base[q] + 5 + 0.1 * rng.random(40) for q in evaluation.QUANTITIES})
        for k in range(12)
    }
    found = evaluate.compare(dict(base=base) | others)
    assert len(found) > 250 and (found["p_holm"] < 0.05).all()


def test_side_by_side_comparison_is_paired_and_corrected():
    rng = np.random.default_rng(0)
    base = pd.DataFrame(dict(problem=range(50), right=rng.random(50), nats=rng.random(50)))
    better = base.assign(right=base["right"] + 0.3)
    found = evaluate.compare(dict(base=base, better=better)).set_index("quantity")
    assert found.loc["right", "value"] == pytest.approx(0.3) and found.loc["right", "p_holm"] < 0.01
    assert found.loc["nats", "p_holm"] == 1
    assert found["p_holm"].tolist() == comparison.holm(found["p"]).tolist()


def test_one_unreadable_trace_leaves_nan_and_aborts_nothing():
    reasoner = load_reasoner("abacus")
    rows = list(tasks.load("stories", split="test", n=1, hops=(1, 1)))
    work = Work(reasoner, "stories", rows, 1, 0.0, 0, False)
    (trace,) = work.sampled
    pieces = ["Grmbl" if i == trace.reasoning.start else p for i, p in enumerate(trace.pieces)]
    work.__dict__["sampled"] = [dataclasses.replace(trace, pieces=tuple(pieces))]
    assert np.isnan(evaluation.GROUPS["filler"].measure(work)["filler"]).all()
