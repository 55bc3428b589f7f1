"""Causal effects of tokens and sentences against a reasoner whose truth is known (`oracle`) and against loops."""

import dataclasses
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import HINTED, nats, oracle, story, unanswered
from test_likelihood import naive_logp
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces

from faithlab import faithfulness
from faithlab.errors import FaithlabError
from faithlab.faithfulness import interventions, reasoning_effect, replacement_ids, token_effects, units_of
from faithlab.interventions import (
    KINDS,
)
from faithlab.models import load_reasoner
from faithlab.traces import build_trace

TIDY = ["trace", "unit", "start", "stop", "text", "n", "effect", "low", "high"]
SURE = 1 - 1e-9  # sampled like greedy


# --- effects of tokens, known truth ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["answer", "all"])
def test_cutting_the_one_token_that_matters_costs_exactly_its_nats_and_the_others_nothing(scope):
    reasoner = oracle()
    traces = reasoner.generate([story(3), story(17), HINTED], temperature=0)
    assert [t.answer_text for t in traces] == ["4", "18", "14"]
    table = token_effects(reasoner, traces, scope=scope)
    decisive = table[table["text"].isin([" 4", " 18"])]
    assert list(decisive["trace"]) == [0, 1]
    # Positive: without the token the answer is less likely. In nats: the logarithm is the natural one.
    assert decisive["effect"].to_numpy() == pytest.approx(nats(reasoner), abs=1e-4)
    assert table.drop(decisive.index)["effect"].abs().max() < 1e-4, "the hinted trace's numbers decide nothing either"


def test_replacing_tells_the_number_that_is_read_from_the_one_that_is_not():
    reasoner = oracle()
    traces = reasoner.generate([story(3), HINTED], temperature=0)
    table = token_effects(reasoner, traces, method="replace", n=5)
    effect = {(row.trace, row.text, row.start): row.effect for row in table.itertuples()}
    by_text = {(i, text): value for (i, text, _), value in effect.items()}
    assert by_text[0, " 4"] == pytest.approx(nats(reasoner), abs=1e-4), "the answer is read off this number"
    assert by_text[0, " 3"] == pytest.approx(0, abs=1e-4), "teacher-forced, the step behind it stays as written"
    assert by_text[1, " 5"] == by_text[1, " 6"] == pytest.approx(0, abs=1e-4), "the hint is read, not the reasoning"
    assert set(table["n"]) == {5}


def test_resampling_also_sees_what_acts_through_later_steps():
    reasoner = oracle(sure=SURE)
    traces = reasoner.generate([story(3), HINTED], temperature=0)
    table = token_effects(reasoner, traces, method="resample", n=8)
    by_text = {(row.trace, row.text): row.effect for row in table.itertuples()}
    assert by_text[0, " 4"] == 1, "share of continuations, at most 1"
    assert by_text[0, " 3"] == 1, "the model goes on from the other number, so the answer changes"
    assert by_text[1, " 5"] == by_text[1, " 6"] == 0
    assert table["effect"].between(-1, 1).all() and set(table["n"]) == {8}


def test_resampling_takes_off_what_differs_without_a_change(monkeypatch):
    """A reasoner that answers half at random: behind a change that changes nothing, the two sides share their random
    streams, so the difference is exactly 0 in every sample, not only on average."""
    [trace] = oracle().generate([story(3)], temperature=0)
    monkeypatch.setattr(faithfulness, "replacement_ids", lambda *args: {})
    table = token_effects(oracle(sure=0.6), [trace], method="resample", n=10)
    assert (table["effect"] == 0).all() and (table["low"] == -table["high"]).all() and set(table["n"]) == {10}
    # and the answers did differ from the trace's, or nothing was taken off
    rollouts = oracle(sure=0.6).generate([story(3)], n=10)
    assert len({t.answer_text for t in rollouts}) > 1


def test_effects_of_sentences_cover_their_tokens():
    reasoner = oracle()
    [trace] = reasoner.generate([story(3)], temperature=0)
    table = token_effects(reasoner, [trace], unit="sentence")
    assert list(table["text"]) == [" Ada = 3.", " Ben = 4."]
    assert table["effect"].tolist() == pytest.approx([0, nats(reasoner)], abs=1e-4)
    assert (table["start"].iloc[0], table["stop"].iloc[1]) == (trace.reasoning.start, trace.reasoning.stop)
    resampled = token_effects(oracle(sure=SURE), [trace], unit="sentence", method="resample")
    # A model that is sure writes the very same sentence again: nothing was changed, so nothing was measured.
    assert set(resampled["n"]) == {0} and resampled["effect"].isna().all()


def test_resampling_a_sentence_lets_the_model_write_another():
    """Of the sentences written in place of "Ben = 4.", those with another number change the answer; the same sentence
    again is not counted."""
    reasoner = oracle(sure=0.95)
    [trace] = reasoner.generate([story(3)], temperature=0)
    table = token_effects(reasoner, [trace], unit="sentence", method="resample", n=60, seed=1)
    assert (table["n"] < 40).all(), "most draws write what stood there"
    assert (table["n"] > 5).all() and table["effect"].between(-1, 1).all()
    assert table["effect"].iloc[1] > 0.1


def test_effect_of_the_whole_reasoning():
    reasoner = oracle()
    traces = reasoner.generate([story(3), HINTED], temperature=0)
    traces.append(unanswered(traces[0]))
    for scope in ("answer", "all"):
        table = reasoning_effect(reasoner, traces, scope=scope)
        assert list(table.columns) == ["trace", "logp", "logp_hidden", "effect"] and list(table["trace"]) == [0, 1, 2]
        assert table["logp"][0] == pytest.approx(math.log(0.9), abs=1e-5)
        assert table["effect"][0] == pytest.approx(nats(reasoner), abs=1e-4)
        assert table["effect"][1] == pytest.approx(0, abs=1e-4)
        assert table.loc[2, ["logp", "logp_hidden", "effect"]].isna().all()


# --- effects of tokens, plain loops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["answer", "all"])
@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_cut_equals_a_plain_loop(architecture, scope, unit):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    table = token_effects(reasoner, traces, scope=scope, unit=unit)
    expected = []
    for t in traces:
        for positions in units_of(t, unit):
            first = t.reasoning.stop if scope == "answer" else positions[0]
            blind = [(r, c) for c in positions for r in range(max(first, c + 1), len(t))]
            model = reasoner.model
            expected.append(naive_logp(model, t.input_ids, t.answer) - naive_logp(model, t.input_ids, t.answer, blind))
    assert table["effect"].tolist() == pytest.approx(expected, abs=4e-4)
    assert table["effect"].abs().max() > 0.01


def test_replace_equals_a_plain_loop(monkeypatch):
    reasoner = tiny_reasoner("qwen3")
    traces = tiny_traces(reasoner)
    drawn = []

    def record(reasoner, trace, positions, rng):
        drawn.append((trace, replacement_ids(reasoner, trace, positions, rng)))
        return drawn[-1][1]

    monkeypatch.setattr(faithfulness, "replacement_ids", record)
    table = token_effects(reasoner, traces, method="replace", n=3)
    losses = []
    for trace, new in drawn:
        ids = trace.input_ids.clone()
        ids[list(new)] = torch.tensor(list(new.values()))
        model = reasoner.model
        losses.append(naive_logp(model, trace.input_ids, trace.answer) - naive_logp(model, ids, trace.answer))
    losses = np.array(losses).reshape(len(table), 3)
    assert table["effect"].tolist() == pytest.approx(losses.mean(1).tolist(), abs=4e-4)
    assert (table["low"] <= table["effect"] + 1e-6).all() and (table["effect"] <= table["high"] + 1e-6).all()
    assert (table["high"] - table["low"] > 0.01).any(), "the draws differ, so their mean has an interval"


@pytest.mark.parametrize("method", ["cut", "replace", "resample"])
def test_same_seed_same_table_and_other_seed_other_draws(method):
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)[1:2]
    tables = [token_effects(reasoner, traces, method=method, seed=s) for s in (0, 0, 1)]
    assert list(tables[0].columns) == TIDY
    pd.testing.assert_frame_equal(tables[0], tables[1])
    if method == "replace":
        assert not np.allclose(tables[0]["effect"], tables[2]["effect"])


@pytest.mark.parametrize("method", ["cut", "replace", "resample"])
def test_traces_without_reasoning_or_answer_give_no_rows(method):
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    empty = [traces[3], unanswered(traces[0])]
    table = token_effects(reasoner, empty, method=method)
    assert len(table) == 0 and list(table.columns) == TIDY
    assert list(token_effects(reasoner, [], method=method).columns) == TIDY
    both = token_effects(reasoner, [*empty, traces[1]], method=method)
    assert set(both["trace"]) == {2}
    assert list(both["start"]) == list(range(traces[1].reasoning.start, traces[1].reasoning.stop))
    assert list(both["text"]) == list(traces[1].pieces[traces[1].reasoning])


def test_a_single_value_has_no_interval():
    table = token_effects(tiny_reasoner(), tiny_traces(tiny_reasoner())[:1])
    assert table["low"].isna().all() and table["high"].isna().all() and set(table["n"]) == {1}


def test_replacements_are_of_like_kind_and_never_the_token_itself():
    reasoner = tiny_reasoner()
    for trace in tiny_traces(reasoner):
        seen = {int(i) for i in trace.input_ids[trace.reasoning]}
        for positions in units_of(trace):
            for k in range(20):
                [(p, new)] = replacement_ids(reasoner, trace, positions, random.Random(k)).items()
                old, piece = int(trace.input_ids[p]), reasoner.tokenizer.decode([new])
                assert new != old
                if trace.pieces[p].strip().isdigit():
                    assert abs(int(piece) - int(trace.pieces[p])) <= 10, "another number of like size"
                    assert piece.startswith(" ") == trace.pieces[p].startswith(" ")
                else:
                    assert new in seen, "a token of this reasoning"
        new = [replacement_ids(reasoner, trace, u, random.Random(k)) for u in units_of(trace) for k in range(3)]
        assert new == [replacement_ids(reasoner, trace, u, random.Random(k)) for u in units_of(trace) for k in range(3)]


def test_replacements_hold_no_special_token_and_survive_odd_digits():
    reasoner = tiny_reasoner()
    ids, prompt = reasoner.ids(" Ada"), reasoner.ids("Ada has 3 pears.")
    end = reasoner.tokenizer.eos_token_id
    trace = build_trace([end, *prompt], [*ids, *reasoner.ids("\nAnswer: 3")], reasoner.tokenizer, ended=False)
    drawn = {replacement_ids(reasoner, trace, (trace.reasoning.start,), random.Random(k))[trace.reasoning.start]
             for k in range(60)}  # fmt: skip
    assert end not in drawn and drawn <= set(prompt) | set(ids)
    odd = dataclasses.replace(trace, pieces=tuple("²" if p == " Ada" else p for p in trace.pieces))
    assert replacement_ids(reasoner, odd, (trace.reasoning.start,), random.Random(0)), "a superscript is no decimal"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="cuts"), "unknown method 'cuts'; did you mean 'cut'"),
        (dict(unit="word"), "unknown unit 'word'"),
        (dict(scope="answers"), "unknown scope 'answers'; did you mean 'answer'"),
        (dict(method="resample", n=7), "n=7 samples a position say too little; use n >= 8"),
        (dict(method="replace", n=0), "n=0 draws"),
    ],
)
def test_bad_options_are_clear_errors_whatever_the_traces(options, message):
    reasoner = tiny_reasoner()
    for traces in ([], tiny_traces(reasoner)[:1]):
        with pytest.raises(FaithlabError, match=message):
            token_effects(reasoner, traces, **options)


@pytest.mark.smollm2
@pytest.mark.timeout(300)
def test_everything_runs_on_smollm2():
    reasoner = dataclasses.replace(load_reasoner("smollm2"), max_new_tokens=16)
    problem = dict(question="Tom has 3 pears. He buys 4 more. How many pears does Tom have?", answer="7")
    text = "Tom has 3 pears. He buys 4 more pears. So he has 3 + 4 = 7 pears."
    trace = reasoner.trace(problem, text, "7")
    assert trace.reasoning_text == text and trace.answer_text == "7"

    tokens = token_effects(reasoner, [trace], scope="all")
    assert "".join(tokens["text"]).strip() == text
    whole = reasoning_effect(reasoner, [trace])["effect"][0]
    plain = naive_logp(reasoner.model, trace.input_ids, trace.answer)
    hidden = range(trace.reasoning.start, trace.reasoning.stop)
    blind = [(r, c) for r in range(trace.reasoning.stop, len(trace)) for c in hidden]
    cut = naive_logp(reasoner.model, trace.input_ids, trace.answer, blind)
    assert whole == pytest.approx(plain - cut, abs=1e-3)
    direct = token_effects(reasoner, [trace])
    for row in direct[::9].itertuples():
        blind = [(r, row.start) for r in range(trace.reasoning.stop, len(trace))]
        one = naive_logp(reasoner.model, trace.input_ids, trace.answer, blind)
        assert row.effect == pytest.approx(plain - one, abs=1e-3)

    sentences = token_effects(reasoner, [trace], unit="sentence", method="resample", n=8)
    assert len(sentences) == 3 and sentences["effect"].between(-1, 1).all()

    asked = [reasoner.trace(problem, (" ." * (trace.reasoning.stop - trace.reasoning.start)).strip(), "7")]
    assert asked[0].reasoning.stop == trace.reasoning.stop, "filler keeps the length with a byte-level tokenizer too"
    table = interventions(reasoner, [problem], traces=[trace], per_trace=True)
    assert set(table["intervention"]) == set(KINDS)
    assert table[table["intervention"] == "paraphrase"]["setting"].tolist() == ["by the model"]
    assert (table[table["fraction"] == 1.0]["effect"] == 0).all()


@pytest.mark.parametrize("measure", [reasoning_effect, token_effects])
def test_problems_in_the_place_of_traces_are_told_apart(measure):
    with pytest.raises(FaithlabError, match="item 0 is a dict, not a trace"):
        measure(oracle(), [story()])
