"""Splitting text and ids into prompt, reasoning and answer; batches whose padding is known by position."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer, tiny_reasoner, tiny_traces

from faithlab.batches import collate
from faithlab.errors import FaithlabError
from faithlab.tasks.story_text import vocabulary
from faithlab.traces import Split, Trace, build_trace, split_text, token_pieces

ABACUS = tiny_reasoner()


BYTES = byte_tokenizer()


def parts(text):
    split = split_text(text)
    return text[slice(*split.reasoning)], text[slice(*split.answer)]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("3 + 4 = 7.\nAnswer: 7", "3 + 4 = 7.", "7"),
        (" Ada has 3.\nAnswer: 7\n\nQuestion: next?", "Ada has 3.", "7"),
        ("no marker at all", "no marker at all", ""),
        ("", "", ""),
        ("   \n ", "", ""),
        ("\nAnswer: 14", "", "14"),
        ("cut off\nAnswer:", "cut off", ""),
        ("cut off\nAnswer:  \n", "cut off", ""),
        ("The answer is 5? No. The answer is 7.", "The answer is 5? No.", "7"),
        ("Answer: 5\nWait.\nAnswer: 6\nAnswer:", "Answer: 5\nWait.", "6"),
        ("2 + 2 = 4\n#### 4", "2 + 2 = 4", "4"),
        ("<think>maybe 3</think>4", "<think>maybe 3", "4"),
        ("So the answer is: \\boxed{1.5}.", "", "\\boxed{1.5}"),
        ("I ask for an answer. ANSWER: (B)", "I ask for an answer.", "(B)"),
        ("Answer: .", "", "."),
    ],
)
def test_split_text(text, reasoning, answer):
    assert parts(text) == (reasoning, answer)


@given(st.text(max_size=200))
def test_split_spans_are_ordered_and_inside_for_any_text(text):
    split = split_text(text)
    edges = [*split.reasoning, *split.marker, *split.answer]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= len(text)
    assert isinstance(split, Split)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=200)
def test_byte_level_round_trip_is_exact(prompt, completion):
    ids = BYTES(completion, add_special_tokens=False).input_ids
    prompt_ids = BYTES(prompt, add_special_tokens=False).input_ids
    trace = build_trace(prompt_ids, [*ids, BYTES.eos_token_id], BYTES, ended=True)
    assert trace.text == prompt + completion
    assert trace.prompt_text == prompt
    reasoning, answer = parts(completion)
    # A character of several bytes is carried by its first token, so spans at token level hold whole characters.
    assert trace.reasoning_text == reasoning.strip() and trace.answer_text == answer.strip()


@given(st.lists(st.sampled_from([*vocabulary(), "\n", "  ", "123"]), max_size=40), st.randoms())
def test_abacus_round_trip_is_exact_on_its_vocabulary(words, rng: random.Random):
    text = "".join(w + rng.choice(["", " "]) if not w[-1].isalnum() else w + " " for w in words)
    assert "".join(token_pieces(ABACUS.tokenizer, ABACUS.ids(text))) == text


def test_abacus_names_the_words_it_does_not_know():
    with pytest.raises(FaithlabError, match="does not know: giraffes, zebra"):
        ABACUS.trace("How many giraffes has the zebra?", "Ada = 3.", "3")


def test_pad_equal_to_end_token_does_no_harm():
    end = BYTES.eos_token_id
    assert end == BYTES.pad_token_id
    prompt, completion = BYTES("Q: ").input_ids, BYTES("a.\nAnswer: 7").input_ids
    long = build_trace(prompt, [*completion, end], BYTES, ended=True)
    short = build_trace(prompt, BYTES("\nAnswer: 7").input_ids, BYTES, ended=False)
    batch = collate([long, short], pad_id=end)
    assert batch.attention_mask.sum(1).tolist() == [len(long), len(short)]
    assert batch.attention_mask[0].all(), "the real end token is no padding"
    for row, trace in enumerate((long, short)):
        assert BYTES.decode(batch.input_ids[row][batch.mask("answer")[row]]) == "7"
        assert batch.mask("reasoning")[row].sum() == trace.reasoning.stop - trace.reasoning.start


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_places_spans_and_positions(side):
    traces = tiny_traces(ABACUS)
    batch = collate(traces, pad_id=0, side=side)
    for row, trace in enumerate(traces):
        for span in ("prompt", "reasoning", "answer"):
            got = batch.input_ids[row][batch.mask(span)[row]]
            assert torch.equal(got, trace.input_ids[getattr(trace, span)])
        seen = batch.attention_mask[row].bool()
        assert batch.position_ids[row][seen].tolist() == list(range(len(trace)))


def test_an_answer_that_the_length_limit_may_have_cut_is_no_answer():
    def cut_off(text, finished=False):
        return build_trace(BYTES("Q").input_ids, BYTES(text).input_ids, BYTES, ended=False, finished=finished)

    assert not cut_off("so\nAnswer: 1").answered, "it may have been going to say 14"
    assert cut_off("so\nAnswer: 1").answer_text == "1", "what was written can still be read"
    assert cut_off("so\nAnswer: 14\nQ").answered and cut_off("so\nAnswer: 1", finished=True).answered


def test_unfinished_and_empty_are_spans_not_errors():
    unfinished = build_trace(BYTES("Q").input_ids, BYTES("one two").input_ids, BYTES, ended=False, finished=False)
    assert not unfinished.answered and unfinished.reasoning_text == "one two" and not unfinished.finished
    nothing = build_trace(BYTES("Q").input_ids, [], BYTES, ended=False)
    assert nothing.reasoning == slice(1, 1) and nothing.answer == slice(1, 1)


def test_tokens_between_finds_the_tokens_of_a_character_span():
    trace = ABACUS.trace("Ada has 3 pears. How many pears does Ada have?", "Ada = 3. Ben = 3 + 4 = 7.", "7")
    text = trace.reasoning_text
    start = text.index("7")
    [position] = trace.tokens_between(start, start + 1)
    assert trace.pieces[position] == " 7"
    assert "".join(trace.pieces[p] for p in trace.tokens_between(0, 8)) == " Ada = 3."


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ((slice(0, 2), slice(1, 3), slice(3, 4)), "span reasoning=1:3"),
        ((slice(0, 2), slice(2, 3), slice(3, 9)), "span answer=3:9"),
        ((slice(0, 2), slice(2, 3, 2), slice(3, 4)), "span reasoning"),
    ],
)
def test_impossible_spans_are_refused(spans, message):
    with pytest.raises(FaithlabError, match=message):
        Trace(torch.arange(4), *spans)


def test_wrong_ids_are_refused():
    with pytest.raises(FaithlabError, match="one row of token ids"):
        Trace(torch.zeros(2, 2, dtype=torch.long), slice(0, 1), slice(1, 1), slice(1, 1))
    with pytest.raises(FaithlabError, match="one row of token ids"):
        Trace(torch.zeros(2), slice(0, 1), slice(1, 1), slice(1, 1))
    with pytest.raises(FaithlabError, match="no traces"):
        collate([], pad_id=0)
    with pytest.raises(FaithlabError, match="padding side"):
        collate(tiny_traces(ABACUS), pad_id=0, side="middle")
