"""Masked answers and forced tokens, on a reasoner whose rule is known (`oracle`) and against plain loops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from oracle import HINTED, oracle, story
from tiny import ARCHITECTURES, hand_made_masks, tiny_reasoner, tiny_traces

from faithlab import perturbation, tasks
from faithlab.errors import FaithlabError
from faithlab.masking import extremes, masked_answers, masking_test
from faithlab.perturbation import alternatives, jaccard, perturb
from faithlab.words import content_words


def positions_of(trace, text):
    return [p for p in range(trace.reasoning.start, trace.reasoning.stop) if trace.pieces[p] == text]


def test_hiding_the_number_that_is_read_changes_the_answer_and_hiding_another_does_not():
    reasoner = oracle()
    traces = reasoner.generate([story(3), story(17), HINTED], temperature=0)
    assert masked_answers(reasoner, traces, [[], [], []]) == ["4", "18", "14"]
    last = [positions_of(t, " " + t.answer_text) for t in traces[:2]]
    assert masked_answers(reasoner, traces, [*last, positions_of(traces[2], " 6")]) == ["3", "17", "14"]
    first = [positions_of(traces[0], " 3"), positions_of(traces[1], " 17"), []]
    assert masked_answers(reasoner, traces, first) == ["4", "18", "14"]


def plain_answer(reasoner, trace, hidden, steps=16):
    """One trace, no batch, no cache: every step is a whole forward pass under a hand-made mask."""
    ids = trace.input_ids[: trace.answer.start]
    for _ in range(steps):
        masks = hand_made_masks(reasoner.model, len(ids), [(r, p) for p in hidden for r in range(p + 1, len(ids))])
        with torch.no_grad():
            logits = reasoner.model(input_ids=ids[None], attention_mask=masks).logits[0, -1]
        token = logits.argmax()
        ids = torch.cat([ids, token[None]])
        if token == reasoner.tokenizer.eos_token_id:
            break
    return ids[trace.answer.start :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shots", [0, 2])
def test_masked_answers_equal_a_plain_loop(architecture, shots, monkeypatch):
    examples = [(r["question"], r["reasoning"], r["response"]) for r in tasks.load("stories", n=2, seed=1)]
    reasoner = tiny_reasoner(architecture).with_examples(examples[:shots])
    traces = tiny_traces(reasoner)
    rng = np.random.default_rng(0)
    hidden = [[p for p in range(t.reasoning.start, t.reasoning.stop) if rng.random() < 0.4] for t in traces]
    seen = []
    read = type(reasoner).read

    def spy(self, prompt, rollout, problem):
        seen.append([*prompt, *rollout.ids])
        return read(self, prompt, rollout, problem)

    monkeypatch.setattr(type(reasoner), "read", spy)
    masked_answers(reasoner, traces, hidden)
    by_length = sorted(range(len(traces)), key=lambda i: -len(traces[i]))
    for i, ids in zip(by_length, seen, strict=True):
        t, dark = traces[i], hidden[i]
        assert ids[t.answer.start :] == plain_answer(reasoner, t, dark)


def test_extremes_take_the_ends_and_break_ties_at_random():
    rng = np.random.default_rng(0)
    scores = [0.1, math.nan, 0.9, 0.5, 0.7]
    assert extremes(scores, 0.4, "top", rng) == [2, 4] and extremes(scores, 0.4, "bottom", rng) == [0, 3]
    assert extremes([1.0], 0.2, "top", rng) == [0], "at least one"
    ties = {tuple(extremes([0.0] * 10, 0.2, "top", np.random.default_rng(s))) for s in range(20)}
    assert len(ties) > 5
    assert len(extremes(range(10), 0.3, "random", rng)) == 3
    with pytest.raises(FaithlabError, match="unknown kind of masking"):
        extremes(scores, 0.4, "best", rng)


def test_masking_by_a_score_that_knows_beats_one_that_knows_not():
    reasoner = oracle()
    traces = reasoner.generate([story(s) for s in range(2, 14)], temperature=0)
    knows = [[float(t.pieces[p] == " " + t.answer_text) for p in range(t.reasoning.start, t.reasoning.stop)]
             for t in traces]  # fmt: skip
    table = masking_test(reasoner, traces, knows, tasks.scorer("stories"), share=0.1)
    means = table.groupby("masked")[["changed", "flipped"]].mean()
    assert means.loc["top"].tolist() == [1, 1] and means.loc["bottom"].tolist() == [0, 0]
    assert 0 <= means.loc["random", "changed"] < 0.6 and set(table["hidden"]) == {1}
    assert table["right"].all() and len(table) == 36
    again = masking_test(reasoner, traces, knows, tasks.scorer("stories"), share=0.1)
    assert table.equals(again)
    hinted = reasoner.generate([HINTED], temperature=0)
    wrong = masking_test(reasoner, hinted, [[0.0] * (hinted[0].reasoning.stop - hinted[0].reasoning.start)],
                         tasks.scorer("stories"))  # fmt: skip
    assert not wrong["right"].any() and wrong["flipped"].isna().all() and (wrong["changed"] == 0).all()
    with pytest.raises(FaithlabError, match="scores for"):
        masking_test(reasoner, hinted, [[0.0]], tasks.scorer("stories"))


def test_bad_masks_are_clear_errors():
    reasoner = tiny_reasoner()
    t = tiny_traces(reasoner)[0]
    with pytest.raises(FaithlabError, match="only reasoning positions"):
        masked_answers(reasoner, [t], [[0]])
    silent = dataclasses.replace(t, answer=slice(len(t), len(t)))
    with pytest.raises(FaithlabError, match="without an answer"):
        masked_answers(reasoner, [silent], [[]])


# --- perturbation -----------------------------------------------------------------------------------------------------


def test_content_words_and_jaccard_by_hand():
    assert content_words("So Ben has 3 + 4 = 7 pears, and the pears are Ada's.") == {
        "ben",
        "3",
        "4",
        "7",
        "pears",
        "ada",
        "s",
    }
    assert jaccard("ab", "bc") == pytest.approx(1 / 3) and jaccard("", "") == 1 and jaccard("a", "") == 0


def test_forcing_another_number_changes_what_is_built_on_it(monkeypatch):
    reasoner = oracle(sure=0.9)
    [trace] = reasoner.generate([story(3)], temperature=0)
    [first], [last] = positions_of(trace, " 3"), positions_of(trace, " 4")
    nine = reasoner.tokenizer(" 9").input_ids
    with monkeypatch.context() as patch:
        patch.setattr(perturbation, "alternatives", lambda r, t, positions, k: [nine for _ in positions])
        known = perturb(reasoner, [trace], [(0, last), (0, first)])
    assert list(known["position"]) == [last, first], "in the order of the places"
    assert list(known["answer"]) == ["9", "10"] and set(known["before"]) == {"4"} and set(known["changed"]) == {1.0}
    # behind the last number: {answer, 9} against {answer, 4}
    assert known["jaccard"][0] == pytest.approx(1 / 3) and known["jaccard"][1] < 1
    table = perturb(reasoner, [trace], [(0, first), (0, last)], seed=1)
    assert list(table["position"]) == [first, last] and list(table["text"]) == [" 3", " 4"]
    assert (table["forced"] != table["text"]).all() and set(table["before"]) == {"4"}
    assert table["jaccard"].between(0, 1).all()
    same = perturb(reasoner, [trace], [(0, first), (0, last)], seed=1)
    assert table.equals(same)


def test_alternatives_are_the_models_own_top_k_without_what_was_written():
    reasoner = tiny_reasoner()
    t = tiny_traces(reasoner)[0]
    p = t.reasoning.start + 3
    with torch.no_grad():
        ranked = reasoner.model(input_ids=t.input_ids[None]).logits[0, p - 1].argsort(descending=True).tolist()
    special = reasoner.tokenizer.all_special_ids
    expected = [i for i in ranked if i != int(t.input_ids[p]) and i not in special][:4]
    assert alternatives(reasoner, t, [p], 4) == [expected]


def test_places_outside_the_reasoning_are_clear_errors():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    for place in ((0, 0), (9, 5), (0, traces[0].answer.start)):
        with pytest.raises(FaithlabError, match="is not in the reasoning"):
            perturb(reasoner, traces, [place])
    assert len(perturb(reasoner, traces, [])) == 0
    with pytest.raises(FaithlabError, match="k=0"):
        perturb(reasoner, traces, [(0, traces[0].reasoning.start)], k=0)
