"""What people mark and rate: papers out, papers in, agreement, and a reward made of marks."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faithlab import tasks, trust
from faithlab.annotator import Annotator
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.feedback import MarksReward, agreement, between, kappa
from faithlab.marks import Marked, from_truth, load_marks, read_sheet, save_marks, write_sheet

QUESTION = "Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?"
REASONING = "Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears."


@pytest.fixture(scope="module")
def traces(abacus):
    return abacus.generate(tasks.load("stories", split="test", n=6, seed=5, hops=(2, 2)), temperature=0)


def marked(*words):
    spans = [(REASONING.rindex(w), REASONING.rindex(w) + len(w)) for w in words]
    return Marked(QUESTION, REASONING, "7", tuple(sorted(spans)))


def test_marks_find_their_tokens(abacus):
    m = marked("7", "3 + 4")
    trace = m.trace(abacus)
    texts = [trace.pieces[trace.reasoning.start + i].strip() for i in m.tokens(trace).nonzero().flatten()]
    assert texts == ["3", "+", "4", "7"] and m.phrases == ["3 + 4", "7"]


@pytest.mark.parametrize("marks", [((5, 5),), ((0, 999),), ((5, 8), (6, 9)), ((1, 2, 3),)])
def test_marks_out_of_place_are_refused(marks):
    with pytest.raises(FaithlabError, match="does not lie in order"):
        Marked(QUESTION, REASONING, "7", marks)


def test_marks_survive_the_file(tmp_path):
    path = tmp_path / "marks.jsonl"
    save_marks([marked("7"), marked()], path)
    assert load_marks(path) == [marked("7"), marked()]
    path.write_text(path.read_text() + '{"question": 1}\n')
    with pytest.raises(FaithlabError, match="line 3"):
        load_marks(path)
    with pytest.raises(FaithlabError, match="cannot read"):
        load_marks(tmp_path / "none")


def test_planted_marks_are_the_values_that_the_answer_rests_on(traces, abacus):
    for m, t in zip(from_truth(traces), traces, strict=True):
        needed = {f["value"] for f in t.problem["truth"]["facts"] if f["on_path"]}
        assert {int(p) for p in m.phrases} == needed
        assert m.tokens(t).sum() == len(m.marks)


def test_sheet_comes_back_as_it_was_marked(traces, tmp_path):
    path, _ = write_sheet(traces, tmp_path / "sheet.txt")
    text, truth = path.read_text(), from_truth(traces)
    for m in truth:  # mark by hand what the truth says
        done = m.reasoning
        for start, end in reversed(m.marks):
            done = done[:start] + "[[" + done[start:end] + "]]" + done[end:]
        text = text.replace(f"\n{m.reasoning}\n", f"\n{done}\n")
    path.write_text(text.replace("=== 2\n", "=== 2 skip\n"))
    found = read_sheet(path, "planted truth")
    assert found == [m for i, m in enumerate(truth) if i != 1]
    with pytest.raises(FaithlabError, match="may hold somebody's marks"):
        write_sheet(traces, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("pears", "plums", 3).replace("coins", "plums").replace("=== 1", "=== 1", 1),
            "was changed at",
        ),
        (lambda t: t.replace("reasoning:\n", "reasoning:\n[[", 1), "never closed"),
        (lambda t: t.replace("reasoning:\n", "reasoning:\n]]", 1), "without a [[ before it"),
        (lambda t: t.replace("reasoning:\n", "reasoning:\n[[[[", 1), "inside of another"),
        (lambda t: t.replace("=== 3", "=== 33"), "reasoning 3 is missing"),
        (lambda t: t.replace("=== 3", "=== 3 later"), "none of the sheet's"),
    ],
)
def test_a_sheet_that_was_spoilt_is_named(traces, tmp_path, change, message):
    path, keep = write_sheet(traces, tmp_path / "sheet.txt")
    if message == "was changed at":
        handed = json.loads(keep.read_text())
        path.write_text(path.read_text().replace(handed[0]["reasoning"], handed[0]["reasoning"][:-5] + "xx"))
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(FaithlabError, match=message.replace("[", r"\[")):
        read_sheet(path)


@pytest.mark.parametrize("how", ["skip", "Skip", '"skip"', ": skip", "- skipped", "(skip)"])
def test_however_skip_is_written_it_is_no_judgement(traces, tmp_path, how):
    path, _ = write_sheet(traces[:3], tmp_path / "sheet.txt")
    text = path.read_text().replace("=== 2", f"=== 2 {how}")
    head, _, tail = text.partition(f"=== 2 {how}")
    path.write_text(f"{head}=== 2 {how}\n=== 3{tail.partition('=== 3')[2]}".replace("\n", "\r\n"), newline="")
    assert [m.reasoning for m in read_sheet(path)] == [traces[0].reasoning_text, traces[2].reasoning_text]


@pytest.mark.parametrize(
    ("text", "mark", "words"),
    [
        ("3.5 + 4 pears", (0, 1), ["3.5"]),  # within a number
        ("has 7 pears", (3, 6), ["7"]),  # with white space
        ("has pears now", (5, 8), ["pears"]),  # within a word
        ("7,000 and 7", (10, 11), ["7"]),
    ],
)
def test_marks_are_whole_words(text, mark, words):
    assert Marked("q", text, "a", (mark,)).phrases == words


@given(st.text(min_size=1, max_size=20), st.text(max_size=10))
def test_any_text_survives_the_file(reasoning, question):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "marks.jsonl"
        marked_ = [Marked(question, reasoning, "7", ((0, 1),))]
        save_marks(marked_, path)
        assert load_marks(path) == marked_


def test_a_sheet_refuses_its_own_signs_and_nothing_to_mark(abacus, traces, tmp_path):
    with pytest.raises(FaithlabError, match="nothing to mark"):
        write_sheet([abacus.trace(QUESTION, "", "7")], tmp_path / "a.txt")
    odd = traces[0].__class__(**{**vars(traces[0]), "pieces": tuple("[[" for _ in traces[0].pieces)})
    with pytest.raises(FaithlabError, match="own signs"):
        write_sheet([odd], tmp_path / "b.txt")
    assert not (tmp_path / "b.json").exists()


def test_kappa_by_hand():
    # 2x2 table 20, 5, 10, 15 of the textbooks: agreement 0.7, chance 0.5
    one = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    other = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert kappa(one, other) == pytest.approx(0.4)
    assert np.isnan(kappa([], [])) and np.isnan(kappa([1, 1], [1, 1]))
    with pytest.raises(FaithlabError, match="cannot be compared"):
        kappa([1], [1, 0])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_kappa_is_symmetric_and_one_for_the_same(pairs):
    a, b = zip(*pairs, strict=True)
    assert kappa(a, b) == pytest.approx(kappa(b, a), nan_ok=True)
    assert kappa(a, a) == 1 or len(set(a)) == 1
    value, flipped = kappa(a, b), kappa(a, [not v for v in b])
    assert np.isnan(value) or value <= 1 + 1e-12
    assert np.isnan([value, flipped]).any() or value * flipped <= 1e-12  # turned round, agreement becomes dissent


def test_agreement_puts_the_truth_s_own_tokens_above_chance(abacus, traces):
    table = agreement(abacus, from_truth(traces), ["cut_answer", "random"]).set_index("score")
    assert table.loc["cut_answer", "auroc"] > table.loc["random", "auroc"]
    assert (table["n"] == len(traces)).all() and table["kappa"].between(-1, 1).all()
    with pytest.raises(FaithlabError, match="no marked reasoning"):
        agreement(abacus, [marked()])


def test_readers_of_one_text_are_no_further_evidence(traces, abacus):
    planted = from_truth(traces)
    once = agreement(abacus, planted, ["cut_answer", "flow"])
    five = agreement(
        abacus, [dataclasses.replace(m, annotator=f"r{i}") for i in range(5) for m in planted], once["score"]
    )
    pd.testing.assert_frame_equal(once, five)
    assert once["n"].tolist() == [len(planted)] * 2
    assert (once["kappa_low"] <= once["kappa"]).all() and (once["kappa"] <= once["kappa_high"]).all()


def test_other_scores_are_asked_by_name(traces, abacus, tmp_path, capsys):
    save_marks(from_truth(traces), tmp_path / "planted.jsonl")
    assert main(["feedback", "agree", str(tmp_path / "planted.jsonl"), "--scores", "rollout, last_layer"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["score", "rollout", "last_layer"]
    assert main(["feedback", "agree", str(tmp_path / "planted.jsonl"), "--scores", "rolout"]) == 2
    assert "did you mean 'rollout'" in capsys.readouterr().err


def test_words_are_whole_numbers_and_a_mark_touches_them():
    text = "Ada pays 7,000 or 3.5. Ben-2 pays."
    found = Marked("q", text, "7", ((9, 14), (23, 26))).words()
    words = ["Ada", "pays", "7,000", "or", "3.5", "Ben", "2", "pays"]
    assert dict(zip(words, found, strict=True)) | dict(pays=False) == {w: w in ("7,000", "Ben") for w in words}


def test_readers_are_compared_where_both_judged():
    texts = ["one two three four", "five six seven eight", "nine ten"]

    def by(name, *marks):
        return [Marked("q", text, "7", m, name) for text, m in zip(texts, marks, strict=False)]

    people = by("ada", ((0, 7),), ((0, 4),), ((0, 4),)) + by("ben", ((0, 3),), ((0, 4),)) + by("cy", ())[:1]
    table = between(people).set_index(["one", "other"])
    ada_ben = table.loc["ada", "ben"]
    # "one" of both, "two" of ada alone: agreement 0.75, chance 0.5, kappa 0.5; then the same, 1
    assert ada_ben["kappa"] == pytest.approx(0.75) and ada_ben["n"] == 2
    assert (ada_ben["share_one"], ada_ben["share_other"]) == (3 / 8, 2 / 8)
    assert ada_ben["low"] <= ada_ben["kappa"] <= ada_ben["high"]
    assert table.loc[("ada", "cy"), "kappa"] == 0 and len(table) == 3
    assert between(by("ada", ((0, 3),))).empty


def test_marks_reward_is_the_share_that_rests_on_marked_phrases(abacus, monkeypatch):
    reward = MarksReward(abacus, [marked("7")])
    trace = abacus.trace({"question": QUESTION}, REASONING, "7")
    s = torch.zeros(trace.reasoning.stop - trace.reasoning.start)
    sevens = [i for i, p in enumerate(trace.pieces[trace.reasoning]) if p.strip() == "7"]
    s[sevens[0]], s[0], s[1] = 3.0, 1.0, -5.0
    monkeypatch.setattr("faithlab.feedback.score", lambda name, reasoner, traces: [s for _ in traces])
    assert reward.of_traces([trace]) == [pytest.approx(0.75)]
    assert MarksReward(abacus, [marked("Ben")]).of_traces([trace]) == [0.0]
    inside = Marked(QUESTION, REASONING, "7", ((REASONING.index("pears"), REASONING.index("pears") + 2),))
    assert MarksReward(abacus, [inside]).phrases[QUESTION] == {"pears"}
    assert MarksReward(abacus, []).of_traces([trace]) == [None]


def test_marks_reward_serves_a_trl_trainer(abacus):
    reward = MarksReward(abacus, [marked("7")])
    prompt = abacus.format.prompt(QUESTION, abacus.tokenizer)
    completions = [f" {REASONING}\nAnswer: 7", f" {REASONING}", " Ada has 3 pears.\nAnswer: 3"]
    ends = [abacus.tokenizer.eos_token_id]
    ids = [abacus.ids(c) + ends for c in completions]
    values = reward([prompt] * 3, completions, ids, question=[QUESTION, QUESTION, "another"])
    assert values[0] > 0.5 and values[1:] == [None, None]
    assert reward.__name__ == "marks"
    with pytest.raises(FaithlabError, match="column 'question'"):
        reward([prompt], completions[:1], ids[:1], answer=["7"])


def test_annotator_saves_goes_on_and_joins_neighbours(traces, tmp_path):
    path = tmp_path / "deep" / "marks.jsonl"
    first = Annotator(traces, path, annotator="ada")
    for button in first.tokens[2:4] + first.tokens[6:7]:
        button.value = True
    first.next.click()
    assert first.at == 1 and len(first.box.children[2].children) == len(first.tokens)
    [saved] = load_marks(path)
    assert saved.annotator == "ada" and len(saved.marks) == 2
    assert saved.tokens(traces[0]).nonzero().flatten().tolist() == [2, 3, 6]
    again = Annotator(traces, path, annotator="ada")
    assert again.at == 1
    again.back.click()
    assert [i for i, b in enumerate(again.tokens) if b.value] == [2, 3, 6] and again.show() is again.box
    again.skip.click()
    again.skip.click()
    assert again.at == 2 and load_marks(path) == [saved]  # what is only looked at is not kept


def test_annotators_share_a_file_and_see_their_own_marks(traces, tmp_path):
    path = tmp_path / "marks.jsonl"
    for name, places in (("ada", [1]), ("bob", [4])):
        one = Annotator(traces, path, annotator=name)
        assert one.at == 0 and not any(b.value for b in one.tokens)
        for i in places:
            one.tokens[i].value = True
        one.next.click()
    assert {m.annotator: m.tokens(traces[0]).nonzero().flatten().tolist() for m in load_marks(path)} == {
        "ada": [1],
        "bob": [4],
    }
    Annotator(traces, path, annotator="eve").next.click()
    assert [len(m.marks) for m in load_marks(path)] == [1, 1, 0]  # "none of it" is a judgement
    with pytest.raises(FaithlabError, match="nothing to mark"):
        Annotator([], path)


def test_trust_form_hides_who_wrote_and_reads_back(traces, tmp_path):
    form, key = trust.write_form({"a": traces, "b": traces}, tmp_path)
    table, who = pd.read_csv(form, dtype=str), json.loads(key.read_text())["items"]
    assert "a" not in table.columns and len(table) == 12 == len(who)
    assert [who[i]["reasoner"] for i in table["id"]] != ["a"] * 6 + ["b"] * 6
    table["trust"] = [str(5 if who[i]["reasoner"] == "b" else 1 + (who[i]["problem"] % 2)) for i in table["id"]]
    table.to_csv(form, index=False)
    result = trust.trust_table(trust.read_form([form], key)).set_index("reasoner")
    assert result.loc["b", "trust"] == 5 and result.loc["a", "trust"] == 1.5
    assert result.loc["b", "difference"] == 3.5 and result.loc["b", "p_holm"] == pytest.approx(2 / 2**6)
    assert np.isnan(result.loc["a", "difference"])
    with pytest.raises(FaithlabError, match="may hold somebody's ratings"):
        trust.write_form({"a": traces}, tmp_path)
    _, other = trust.write_form({"a": traces, "b": traces}, tmp_path / "other", seed=1)
    with pytest.raises(FaithlabError, match=r"is .* the key of this form"):
        trust.read_form([form], other)
    pd.concat([table, table[:1]]).to_csv(form, index=False)
    with pytest.raises(FaithlabError, match="comes twice"):
        trust.read_form([form], key)


def ratings(*rows):
    table = pd.DataFrame(rows, columns=["reader", "reasoner", "problem", "trust"])
    return table.assign(reasoner=pd.Categorical(table["reasoner"], ["b", "a"]))


def test_a_generous_reader_favours_nobody():
    generous = [("kind", "a", i, 5) for i in range(6)]
    strict = [("strict", "b", i, 1 + i % 3) for i in range(6)]
    table = trust.trust_table(ratings(*generous, *strict))
    assert table["reasoner"].tolist() == ["b", "a"] and table["difference"].isna().all()
    both = [("strict", "a", i, 2 + i % 3) for i in range(6)]
    found = trust.trust_table(ratings(*generous, *strict, *both)).set_index("reasoner").loc["a"]
    assert found["difference"] == 1 and found["pairs"] == 6 and found["readers"] == 2


def test_form_meets_spreadsheets(abacus, tmp_path):
    trace = abacus.trace(QUESTION, REASONING, "7")
    formula = trace.__class__(**{**vars(trace), "pieces": ("=", *trace.pieces[1:])})
    shifted = trace.__class__(**{**vars(formula), "reasoning": slice(0, trace.reasoning.stop), "prompt": slice(0, 0)})
    form, key = trust.write_form({"a": [shifted]}, tmp_path)
    assert form.read_bytes().startswith(b"\xef\xbb\xbf") and "'=" in form.read_text("utf-8-sig")
    pd.read_csv(form, dtype=str, encoding="utf-8-sig").assign(trust="4").to_csv(form, index=False)  # saved without BOM
    assert trust.read_form([form], key)["trust"].tolist() == [4]


@pytest.mark.parametrize(
    ("rating", "message"), [("6", "no whole number from 1 to 5"), ("good", "no whole"), ("", "no rat")]
)
def test_ratings_that_are_none(traces, tmp_path, rating, message):
    form, key = trust.write_form({"a": traces[:1]}, tmp_path)
    pd.read_csv(form, dtype=str).assign(trust=rating).to_csv(form, index=False)
    with pytest.raises(FaithlabError, match=message):
        trust.read_form([form], key)


def test_trust_form_wants_the_same_problems(traces, tmp_path):
    for given_ in ({"a": traces, "b": traces[:2]}, {}, {"a": []}):
        with pytest.raises(FaithlabError, match="same problems"):
            trust.write_form(given_, tmp_path)


def test_commands(tmp_path, capsys):
    out = str(tmp_path)
    assert main(["feedback", "sheet", "--n", "2", "--output", out]) == 0
    sheet = tmp_path / "sheet.txt"
    handed = json.loads(sheet.with_suffix(".json").read_text())
    text = sheet.read_text()
    for row in handed:
        text = text.replace(row["reasoning"], "[[" + row["reasoning"][:8] + "]]" + row["reasoning"][8:])
    sheet.write_text(text)
    assert main(["feedback", "agree", str(sheet), "--annotator", "ada"]) == 0
    assert "saliency_answer" in capsys.readouterr().out
    assert [m.annotator for m in load_marks(tmp_path / "sheet.marks.jsonl")] == ["ada"] * len(handed)
    for suffix in (".txt", ".json"):
        shutil.copy(sheet.with_suffix(suffix), (tmp_path / "ben").with_suffix(suffix))
    assert main(["feedback", "agree", str(sheet), str(tmp_path / "ben.txt")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ *sheet +ben +1\.0 +1\.0 +1\.0 .* 2$", said, re.MULTILINE) and "saliency_answer" in said
    assert main(["feedback", "form", "abacus", "--n", "2", "--output", out]) == 0
    assert main(["feedback", "trust", str(tmp_path / trust.FORM)]) == 2
    assert "--key" in capsys.readouterr().err
    assert main(["feedback", "agree"]) == 2


def test_two_open_annotators_keep_each_other_s_marks(traces, tmp_path):
    path = tmp_path / "marks.jsonl"
    ada, bob = (Annotator(traces, path, annotator=name) for name in ("ada", "bob"))
    for one in (ada, bob, ada):
        one.next.click()
    assert sorted((m.annotator, m.question) for m in load_marks(path)) == sorted(
        [("ada", traces[0].question), ("ada", traces[1].question), ("bob", traces[0].question)]
    )
    again = Annotator(traces, path, annotator="ada")
    again.back.click()
    assert again.at == 1
    again.tokens[0].value = True
    again.next.click()
    assert len(load_marks(path)) == 3, "one's own mark of a reasoning is replaced"


def test_no_marks_are_read_back_as_none(tmp_path):
    save_marks([], tmp_path / "none.jsonl")
    assert load_marks(tmp_path / "none.jsonl") == []


def test_the_first_reasoner_of_the_form_is_the_baseline_or_it_is_an_error():
    table = ratings(*[("ada", "a", i, 2 + i % 3) for i in range(4)])
    with pytest.raises(FaithlabError, match="b has no rating"):
        trust.trust_table(table)


def test_one_rated_problem_has_a_difference_and_no_p():
    found = trust.trust_table(ratings(("ada", "a", 0, 5), ("ada", "b", 0, 2))).set_index("reasoner").loc["a"]
    assert found["difference"] == 3 and found["pairs"] == 1
    assert np.isnan(found[["d_low", "d_high", "p", "p_holm"]].astype(float)).all()


@pytest.mark.parametrize(("action", "file"), [("sheet", "sheet.txt"), ("sheet", "sheet.json"), ("form", "key.json")])
def test_what_is_there_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, action, file):
    monkeypatch.setattr("faithlab.feedback._written", lambda *args: pytest.fail("it wrote first"))
    (tmp_path / file).write_text("somebody's")
    assert main(["feedback", action, "abacus", "--output", str(tmp_path)]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
