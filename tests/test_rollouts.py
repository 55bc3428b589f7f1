"""Rollouts as traces and back: spans, padding, and scores that equal those of the traces one by one."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from tiny import byte_reasoner, byte_tokenizer, tiny_reasoner, tiny_traces
from tokenizers.processors import TemplateProcessing

from faithlab import rollouts, tasks
from faithlab.attention import capture
from faithlab.batches import pad_rows
from faithlab.errors import FaithlabError
from faithlab.flow import trace_flow
from faithlab.formats import ChatFormat, PlainFormat
from faithlab.heads import fai, waad
from faithlab.models import load_reasoner
from faithlab.rollouts import SCORES, prompt_ids, read_rollouts, rollouts_of, score_rollouts
from faithlab.token_scores import score
from faithlab.training import prompts_of


def as_tensors(traces, pad_id=0):
    """What a trainer holds: prompts padded on the left, completions on the right."""
    prompts = pad_rows([t.input_ids[t.prompt] for t in traces], pad_id=pad_id, side="left")[:2]
    completions = pad_rows([t.input_ids[t.prompt.stop :] for t in traces], pad_id=pad_id, side="right")[:2]
    return (*prompts, *completions)


def test_generated_traces_come_back_as_they_were():
    reasoner = load_reasoner("abacus")
    rows = tasks.load("stories", split="validation", n=6, seed=3, hops=(1, 4))
    traces = reasoner.generate(rows, n=2, seed=1, max_new_tokens=60)  # some are cut off
    assert {t.finished for t in traces} == {True, False}, "the case needs both kinds"
    for pad_id in (reasoner.pad_id, reasoner.tokenizer.eos_token_id, 7):
        again = read_rollouts(reasoner, *as_tensors(traces, pad_id), [t.problem for t in traces])
        for a, b in zip(traces, again, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert (a.prompt, a.reasoning, a.answer, a.finished) == (b.prompt, b.reasoning, b.answer, b.finished)
            assert a.problem == b.problem and a.pieces == b.pieces


def test_a_stop_string_ends_a_rollout_as_an_end_token_does():
    reasoner = byte_reasoner().with_format(PlainFormat(stop=("\nQuestion:",)))
    texts = [
        " 1 + 2 = 3.\nAnswer: 3\nQuestion:",
        " 1 + 2 = 3.\nAnswer: 3",
        "\nQuestion: 1?\nAnswer: 3 and so on",
    ]
    prompts = [reasoner.prompt_ids("What is 1 + 2?")] * len(texts)
    traces = rollouts_of(reasoner, prompts, [reasoner.ids(text) for text in texts])
    assert [t.finished for t in traces] == [True, False, False], "the others were cut off"
    assert [t.answered for t in traces] == [True, False, False]
    assert traces[0].answer_text == "3"


def test_an_empty_completion_is_a_trace_without_reasoning_or_answer():
    reasoner = tiny_reasoner()
    (trace,) = rollouts_of(reasoner, [reasoner.prompt_ids("Ada has 3 pears.")], [[]])
    assert not trace.answered and trace.reasoning.start == trace.reasoning.stop
    found, _ = score_rollouts(tuple(SCORES), reasoner, [trace], 4)
    assert all(v.isnan().all() and v.shape == (1, 4) for v in found.values())


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_scores_are_those_of_each_trace_alone_in_its_columns(architecture):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    width = max(len(t) - t.prompt.stop for t in traces) + 3
    found, groups = score_rollouts(tuple(SCORES), reasoner, traces, width, seed=5, horizon=(2, 6))
    again, _ = score_rollouts(("flow", "fai"), reasoner, traces[::-1], width, groups=groups, horizon=(2, 6))
    assert torch.allclose(again["flow"].flip(0), found["flow"], atol=1e-5, equal_nan=True)
    for i, t in enumerate(traces):
        alone = capture(reasoner.model, [t], want=("profiles", "mean_map", "entropy"), groups=groups, horizon=(2, 6))
        (read,) = alone.traces
        flow = trace_flow(read.mean_map, t.prompt, t.answer).throughput
        before = slice(t.response.start - t.prompt.stop, t.response.stop - t.prompt.stop)
        inner = slice(before.start, t.answer.start - t.prompt.stop)
        for name in ("waad", "fai", "entropy"):
            assert torch.allclose(found[name][i, before], getattr(read, name), atol=1e-5, equal_nan=True), name
        assert torch.allclose(found["flow"][i, inner].double(), flow[t.reasoning.start : t.answer.start], atol=1e-5)
        assert found["flow"][i, inner.stop :].isnan().all() and found["waad"][i, before.stop :].isnan().all()
        reasoning = slice(before.start, t.reasoning.stop - t.prompt.stop)
        for name, full in (("gradient", "gradient_x_input"), ("saliency", "saliency_answer")):
            expected = score(full, reasoner, [t])[0]
            assert torch.allclose(found[name][i, reasoning], expected, atol=2e-3, equal_nan=True), name


def test_scores_and_heads_are_the_same_in_parts(monkeypatch):
    """A batch that memory does not hold is read in parts, for which local and global heads are chosen together."""
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    width = max(len(t) - t.prompt.stop for t in traces)
    names = ("waad", "fai", "entropy", "received")
    whole, groups = score_rollouts(names, reasoner, traces, width, horizon=(2, 6))
    calls, read = [], rollouts.capture
    monkeypatch.setattr(rollouts, "capture", lambda m, t, **k: calls.append(len(t)) or read(m, t, **k))
    monkeypatch.setattr(rollouts, "TOKENS_PER_PASS", 2 * max(map(len, traces)))
    parts, again = score_rollouts(names, reasoner, traces, width, horizon=(2, 6))
    assert max(calls) == 2 < len(traces)
    assert groups.local.tolist() == again.local.tolist() and groups.global_.tolist() == again.global_.tolist()
    torch.testing.assert_close(groups.distance, again.distance)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_a_fraction_of_one_reads_all_heads():
    reasoner = tiny_reasoner("llama")
    traces = tiny_traces(reasoner)
    width = max(len(t) - t.prompt.stop for t in traces)
    found, _ = score_rollouts(("fai", "waad"), reasoner, traces, width, horizon=(2, 6), fraction=1)
    maps = capture(reasoner.model, traces, want=("mean_map",), pad_id=reasoner.pad_id).traces
    for i, (t, read) in enumerate(zip(traces, maps, strict=True)):
        place = slice(t.response.start - t.prompt.stop, t.response.stop - t.prompt.stop)
        for name, expected in (
            ("fai", fai(read.mean_map, t.response, 2, 6)),
            ("waad", waad(read.mean_map, t.response)),
        ):
            assert found[name][i, place].tolist() == pytest.approx(expected.tolist(), nan_ok=True, abs=1e-5)


def test_random_scores_follow_the_seed():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    one, two, other = (score_rollouts(("random",), reasoner, traces, 40, seed=s)[0]["random"] for s in (1, 1, 2))
    assert torch.equal(one.nan_to_num(-1), two.nan_to_num(-1)) and not torch.equal(
        one.nan_to_num(-1), other.nan_to_num(-1)
    )


def test_an_unknown_score_is_named():
    with pytest.raises(FaithlabError, match="did you mean 'flow'"):
        score_rollouts(("flows",), tiny_reasoner(), [], 4)


# -- the token that begins a text


@pytest.mark.parametrize("adds", [True, False], ids=["added by the tokenizer", "not added"])
@pytest.mark.parametrize("writes", [True, False], ids=["written by the template", "not written"])
def test_a_prompt_begins_once_however_it_is_made(adds, writes):
    """As in Llama's chats, where both the template and the tokenizer put the same token first."""
    template = "{{ '<s>' }}" * writes + "{% for m in messages %}{{ m['content'] }}\n{% endfor %}Reasoning:"
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if adds:
        begin = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    reasoner = dataclasses.replace(tiny_reasoner(), tokenizer=tokenizer)
    for form in (ChatFormat(), PlainFormat()):
        once = int(adds or (writes and isinstance(form, ChatFormat)))
        asked = reasoner.with_format(form)
        ids = asked.prompt_ids("2 + 3?")
        assert ids.count(tokenizer.bos_token_id) == once == ids[:1].count(tokenizer.bos_token_id)
        assert prompt_ids(tokenizer, form.prompt("2 + 3?", tokenizer)) == ids
        rows = prompts_of(asked, Dataset.from_list([{"question": "2 + 3?"}]), "chain_sum")
        assert tokenizer(rows[0]["prompt"]).input_ids == ids, "as TRL reads it"
