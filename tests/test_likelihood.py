"""log p(answer) under cuts and replacements, against a plain one-by-one forward pass."""

import math

import pytest
import torch
from oracle import unanswered
from tiny import ARCHITECTURES, hand_made_masks, tiny_reasoner, tiny_traces

from faithlab import tasks
from faithlab.errors import FaithlabError
from faithlab.likelihood import Variant, answer_logp, prompt_hidden_logp, reasoning_hidden_logp, variant_logp
from faithlab.prefill import shared_prefix


def naive_logp(model, ids, answer, blind=()):
    """One trace, no padding, no cache: log p of the answer; `blind` are (query row, key column) pairs that are cut."""
    n = len(ids)
    masks = hand_made_masks(model, n, blind)
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=masks, position_ids=torch.arange(n)[None]).logits[0]
    rows = torch.arange(answer.start - 1, answer.stop - 1)
    return logits.log_softmax(-1)[rows, ids[answer.start : answer.stop]].sum().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_likelihood_is_that_of_the_unmodified_model(architecture, attention):
    reasoner = tiny_reasoner(architecture, attention=attention)
    traces = tiny_traces(reasoner)
    got = answer_logp(reasoner, traces)
    for value, t in zip(got, traces, strict=True):
        with torch.no_grad():
            logits = reasoner.model(input_ids=t.input_ids[None]).logits[0].log_softmax(-1)
        rows = torch.arange(t.answer.start - 1, t.answer.stop - 1)
        assert value.item() == pytest.approx(logits[rows, t.input_ids[t.answer]].sum().item(), abs=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_cuts_equal_a_plain_masked_forward(architecture, scope):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    variants, expected = [], []
    for i, t in enumerate(traces):
        span = range(t.reasoning.start, t.reasoning.stop)
        for hidden in [(p,) for p in span][::3] + [tuple(span)] * bool(span):
            variants.append(Variant(i, hidden))
            if scope == "answer":
                blind = [(r, c) for r in range(t.reasoning.stop, len(t)) for c in hidden]
            else:
                blind = [(r, c) for c in hidden for r in range(c + 1, len(t))]
            expected.append(naive_logp(reasoner.model, t.input_ids, t.answer, blind))
    got = variant_logp(reasoner, traces, variants, scope=scope)
    assert got.tolist() == pytest.approx(expected, abs=2e-4)
    changed = [
        abs(g - a)
        for g, a in zip(got.tolist(), [answer_logp(reasoner, traces)[v.trace] for v in variants], strict=True)
    ]
    assert max(changed) > 0.01, "in this model no cut matters, so the test would see nothing"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hiding_the_prompt_equals_a_plain_masked_forward(architecture):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    expected = []
    for t in traces:
        blind = [(r, c) for r in range(t.reasoning.stop, len(t)) for c in range(t.prompt.start + 1, t.prompt.stop)]
        expected.append(naive_logp(reasoner.model, t.input_ids, t.answer, blind))
    assert prompt_hidden_logp(reasoner, traces).tolist() == pytest.approx(expected, abs=2e-4)
    assert (prompt_hidden_logp(reasoner, traces) - answer_logp(reasoner, traces)).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hiding_a_shared_prompt_hides_all_of_it(architecture):
    """What prompts share stands in the first columns, whatever the padding behind it."""
    reasoner = tiny_reasoner(architecture)
    question = "Ada has 3 pears. " + "Ben has 4 more pears than Ada. " * 3 + "How many pears does Ben have?"
    long = "Ada = 3. " * 12
    traces = [reasoner.trace(question, "Ada = 3.", "7"), reasoner.trace(question, long, "7")]
    shared = shared_prefix(reasoner.model, [t.input_ids[t.prompt].tolist() for t in traces])
    assert (shared > 32) == (architecture not in ("gemma3", "mistral"))
    expected = []
    for t in traces:
        blind = [(r, c) for r in range(t.reasoning.stop, len(t)) for c in range(t.prompt.start + 1, t.prompt.stop)]
        expected.append(naive_logp(reasoner.model, t.input_ids, t.answer, blind))
    assert prompt_hidden_logp(reasoner, traces).tolist() == pytest.approx(expected, abs=2e-4)


def test_replacing_reruns_every_later_row():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    t = traces[0]
    new = reasoner.ids(" 9")[0]
    for position in range(t.reasoning.start, t.reasoning.stop, 4):
        got = variant_logp(reasoner, traces, [Variant(0, replaced={position: new})]).item()
        ids = t.input_ids.clone()
        ids[position] = new
        assert got == pytest.approx(naive_logp(reasoner.model, ids, t.answer), abs=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_a_shared_prefix_is_computed_once_and_changes_nothing(architecture, scope, monkeypatch):
    """Few-shot examples before every question; gemma3 and mistral, whose windows count columns, go without sharing."""
    shots = [(r["question"], r["reasoning"], r["response"]) for r in tasks.load("stories", split="train", n=2, seed=1)]
    reasoner = tiny_reasoner(architecture).with_examples(shots)
    traces = tiny_traces(reasoner)
    shared = shared_prefix(reasoner.model, [t.input_ids[t.prompt].tolist() for t in traces])
    assert (shared > 60) == (architecture not in ("gemma3", "mistral"))
    variants, expected = [], []
    for i, t in enumerate(traces):
        for p in range(t.reasoning.start, t.reasoning.stop, 2):
            after = t.reasoning.stop if scope == "answer" else p + 1
            blind = [(row, p) for row in range(after, len(t))]
            variants.append(Variant(i, hidden=(p,)))
            expected.append(naive_logp(reasoner.model, t.input_ids, t.answer, blind))
            changed = t.input_ids.clone()
            changed[p] = 7
            variants.append(Variant(i, replaced={p: 7}))
            expected.append(naive_logp(reasoner.model, changed, t.answer))
    rows = []
    reasoner.model.get_input_embeddings().register_forward_pre_hook(lambda module, args: rows.append(args[0].numel()))
    got = variant_logp(reasoner, traces, variants, scope=scope)
    assert got.tolist() == pytest.approx(expected, abs=2e-4)
    assert not shared or rows[0] == shared, "the first call computes the shared tokens of one row"


def test_result_does_not_depend_on_company_or_order():
    reasoner = tiny_reasoner("gemma3")
    traces = tiny_traces(reasoner)
    together = reasoning_hidden_logp(reasoner, traces)
    alone = torch.cat([reasoning_hidden_logp(reasoner, [t]) for t in traces])
    backwards = reasoning_hidden_logp(reasoner, traces[::-1]).flip(0)
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
    torch.testing.assert_close(together, backwards, atol=2e-4, rtol=0)


def test_empty_reasoning_loses_nothing_and_no_answer_is_nan():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    assert answer_logp(reasoner, traces)[3] == pytest.approx(
        reasoning_hidden_logp(reasoner, traces)[3].item(), abs=1e-5
    )
    t = traces[0]
    values = answer_logp(reasoner, [unanswered(t), t])
    assert math.isnan(values[0]) and not math.isnan(values[1])


def test_model_is_left_as_it_was():
    reasoner = tiny_reasoner()
    before = {k: v.clone() for k, v in reasoner.model.state_dict().items()}
    reasoning_hidden_logp(reasoner, tiny_traces(reasoner))
    assert all(torch.equal(v, before[k]) for k, v in reasoner.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in reasoner.model.parameters())


def test_bad_input_is_a_clear_error():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    with pytest.raises(FaithlabError, match="unknown scope 'answers'; did you mean 'answer'"):
        variant_logp(reasoner, traces, [Variant(0)], scope="answers")
    with pytest.raises(FaithlabError, match="only reasoning positions"):
        variant_logp(reasoner, traces, [Variant(0, hidden=(0,))], scope="all")
    for variant in (Variant(0, hidden=(traces[0].answer.start,)), Variant(0, replaced={0: 1})):
        with pytest.raises(FaithlabError, match="only reasoning positions"):
            variant_logp(reasoner, traces, [variant])
    with torch.no_grad():
        reasoner.model.lm_head.weight[:] = float("nan")
    with pytest.raises(FaithlabError, match="not finite"):
        answer_logp(reasoner, traces)
