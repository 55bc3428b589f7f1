"""The mask optimiser: what it finds, its ends, its company, and what it refuses."""

import dataclasses

import pytest
import torch
from oracle import unanswered
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces

from faithlab import tasks, token_scores
from faithlab.errors import FaithlabError
from faithlab.granularity import GRANULARITIES, make_layout, sentence_numbers
from faithlab.likelihood import Variant, answer_logp, reasoning_hidden_logp, variant_logp
from faithlab.masked_answer import MaskedAnswer
from faithlab.models import load_reasoner
from faithlab.planted import planted
from faithlab.saliency import Saliency, optimise_mask

TINY = dict(floor=-6.0, sparsity=0.3, steps=8)


@pytest.fixture(scope="module")
def trained():
    """abacus and 24 of its traces whose decisive token is known."""
    reasoner = load_reasoner("abacus")
    problems = tasks.load("stories", split="validation", n=40, seed=1, hops=(2, 4))
    traces = [t for t in reasoner.generate(problems, temperature=0) if t.answered and planted(t).known]
    return reasoner, traces[:24]


@pytest.mark.parametrize("scope", ["answer", "all"])
def test_it_finds_the_token_that_the_answer_is_read_from(trained, scope):
    reasoner, traces = trained
    traces = traces[:12] if scope == "all" else traces  # which takes ten times as long
    found = optimise_mask(reasoner.model, traces, scope=scope)
    hits = sum(bool(planted(t).decisive[v.argmax()]) for t, v in zip(traces, found.values, strict=True))
    assert hits >= 0.75 * len(traces), f"the most salient token is the decisive one in {hits} of {len(traces)} traces"
    assert (found.restored_logp - found.suppressed_logp).mean() > 3
    assert torch.cat(found.values).mean() < 0.2, "few tokens should be opened"


def test_a_hinted_answer_needs_no_reasoning(trained):
    reasoner, _ = trained
    problems = tasks.load("stories", split="validation", n=12, seed=1, hops=(2, 4), hint="strong", hint_right=0.0)
    traces = [t for t in reasoner.generate(problems, temperature=0) if t.answered]
    found = optimise_mask(reasoner.model, traces)
    assert torch.cat(found.values).mean() < 0.02 and (found.full_logp - found.suppressed_logp).mean() < 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["answer", "all"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_keep_their_ends_and_tell_the_truth_about_logp(architecture, scope, granularity):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    found = optimise_mask(reasoner.model, traces, scope=scope, granularity=granularity, ceiling=0.5, **TINY)
    config = reasoner.model.config
    lead = dict(head=(config.num_attention_heads,), layer_head=(config.num_hidden_layers, config.num_attention_heads))
    for t, m, v in zip(traces, found.mask, found.values, strict=True):
        length = t.reasoning.stop - t.reasoning.start
        assert m.shape == (*lead.get(granularity, ()), length) and v.shape == (length,)
        assert ((m >= -6) & (m <= 0.5)).all()
    torch.testing.assert_close(found.full_logp, answer_logp(reasoner, traces), atol=2e-4, rtol=0)
    p = MaskedAnswer(reasoner.model, traces, scope, reasoner.pad_id)
    bias = torch.zeros(len(traces), *lead.get(granularity, ()), p.valid.shape[1])
    for row, m in enumerate(found.mask):
        bias[row, ..., : m.shape[-1]] = m
    with torch.no_grad():
        torch.testing.assert_close(p.logp(bias), found.restored_logp, atol=2e-4, rtol=0)
        torch.testing.assert_close(p.logp(torch.full_like(bias, -6.0)), found.suppressed_logp, atol=2e-4, rtol=0)


def test_a_deep_floor_suppresses_as_a_cut_does():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    found = optimise_mask(reasoner.model, traces, floor=-1e4, steps=1)
    torch.testing.assert_close(found.suppressed_logp, reasoning_hidden_logp(reasoner, traces), atol=2e-4, rtol=0)
    everything = [Variant(i, tuple(range(t.reasoning.start, t.reasoning.stop))) for i, t in enumerate(traces)]
    expected = variant_logp(reasoner, traces, everything, scope="all")
    found = optimise_mask(reasoner.model, traces, floor=-1e4, steps=1, scope="all")
    torch.testing.assert_close(found.suppressed_logp, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("granularity", ["token", "hierarchical", "head"])
def test_a_trace_does_not_notice_its_company(granularity):
    reasoner = tiny_reasoner("llama")
    traces = tiny_traces(reasoner)
    together = optimise_mask(reasoner.model, traces, granularity=granularity, **TINY)
    again = optimise_mask(reasoner.model, traces, granularity=granularity, **TINY)
    backwards = optimise_mask(reasoner.model, traces[::-1], granularity=granularity, batch_size=2, **TINY)
    for i, t in enumerate(traces):
        assert torch.equal(together.mask[i], again.mask[i]), "the same call twice"
        alone = optimise_mask(reasoner.model, [t], granularity=granularity, **TINY)
        torch.testing.assert_close(alone.mask[0], together.mask[i], atol=0.02, rtol=0)
        torch.testing.assert_close(backwards.mask[-1 - i], together.mask[i], atol=0.02, rtol=0)


def test_it_works_where_the_caller_has_turned_gradients_off(trained):
    reasoner, traces = trained
    plain = optimise_mask(reasoner.model, traces[:2], **TINY)
    with torch.no_grad():
        found = optimise_mask(reasoner.model, traces[:2], **TINY)
        assert not torch.is_grad_enabled()
        assert token_scores.score("gradient_floor", reasoner, traces[:1])[0].abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(plain.values, found.values, strict=True))


def test_traces_stop_when_their_loss_does_and_the_others_go_on(trained):
    reasoner, traces = trained
    found = optimise_mask(reasoner.model, traces, steps=200)
    assert found.converged.all() and found.steps.max() < 200 and len(set(found.steps.tolist())) > 3
    assert not optimise_mask(reasoner.model, traces, steps=2).converged.any()


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("parametrisation", ["projected", "sigmoid"])
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_every_way_to_descend_restores_something(trained, optimiser, parametrisation, start):
    reasoner, traces = trained
    rate = dict(adam=0.1, sgd=0.5)[optimiser] * (10 if parametrisation == "sigmoid" else 1)
    options = dict(optimiser=optimiser, parametrisation=parametrisation, start=start, rate=rate)
    found = optimise_mask(reasoner.model, traces[:8], steps=60, patience=20, sparsity=1.0, **options)
    assert (found.restored_logp - found.suppressed_logp).mean() > 1


def test_sparsity_closes_and_a_ceiling_opens_further(trained):
    reasoner, traces = trained
    opened = [
        torch.cat(optimise_mask(reasoner.model, traces[:8], sparsity=s).values).mean() for s in (0.01, 1.0, 100.0)
    ]
    assert opened[0] > opened[1] > opened[2]
    turned_up = optimise_mask(reasoner.model, traces[:8], ceiling=4.0)
    assert torch.cat(turned_up.values).max() > 1


def test_the_published_sign_is_the_opposite():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    ours = optimise_mask(reasoner.model, traces, **TINY)
    theirs = optimise_mask(reasoner.model, traces, sign="suppressed", **TINY)
    for a, b in zip(ours.values, theirs.values, strict=True):
        torch.testing.assert_close(a, 1 - b)


def test_tables_name_tokens_and_top_breaks_ties_early():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)[:2]
    found = optimise_mask(reasoner.model, traces, **TINY)
    table = found.table()
    assert table["text"].tolist() == [p for t in traces for p in t.pieces[t.reasoning]]
    assert table["saliency"].tolist() == pytest.approx(torch.cat(found.values).tolist())
    flat = dataclasses.replace(found, mask=tuple(torch.full_like(m, -3.0) for m in found.mask))
    assert flat.top(2) == [[t.reasoning.start, t.reasoning.start + 1] for t in traces]
    assert found.summary()["steps"].tolist() == found.steps.tolist()
    high = [t.reasoning.start + int(v.argmax()) for t, v in zip(traces, found.values, strict=True)]
    assert [positions[0] for positions in found.top(1)] == high


def test_sentences_are_found_by_a_rule_that_can_be_replaced():
    reasoner = tiny_reasoner()
    t = tiny_traces(reasoner)[2]  # three sentences
    numbers = sentence_numbers(t)
    assert numbers.tolist() == sorted(numbers.tolist()) and numbers.max() == 2
    halves = sentence_numbers(t, lambda text: [(0, len(text) // 2), (len(text) // 2, len(text))])
    assert halves.max() == 1
    found = optimise_mask(reasoner.model, [t], granularity="sentence", **TINY)
    for k in range(3):
        assert found.values[0][numbers == k].unique().numel() == 1, "one value a sentence"


def test_prices_count_what_stands_for_something():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    valid = MaskedAnswer(reasoner.model, traces).valid
    for granularity in GRANULARITIES:
        layout = make_layout(granularity, traces, valid, reasoner.model.config)
        one, half = (layout.start(v, torch.float32) for v in (1.0, 0.5))
        expected = [float(t.reasoning.stop > t.reasoning.start) for t in traces]
        assert layout.price(one).tolist() == pytest.approx(expected)
        assert layout.price(half).tolist() == pytest.approx([e / 2 for e in expected])
        assert torch.equal(layout.expand(one), torch.ones_like(layout.expand(one)))


def test_no_answer_and_no_reasoning_are_defined():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    found = optimise_mask(reasoner.model, [unanswered(traces[0]), traces[3], traces[1]], **TINY)
    assert torch.isnan(found.values[0]).all() and len(found.values[0]) > 0 and torch.isnan(found.full_logp[0])
    assert found.steps[0] == 0 and not found.converged[0]
    assert len(found.values[1]) == 0 and found.full_logp[1] == pytest.approx(found.restored_logp[1].item(), abs=1e-5)
    assert torch.isfinite(found.values[2]).all()
    nothing = optimise_mask(reasoner.model, [unanswered(traces[0])], **TINY)
    assert isinstance(nothing, Saliency) and torch.isnan(nothing.restored_logp).all()


def test_a_single_reasoning_token_and_an_answer_longer_than_the_sliding_window():
    reasoner = tiny_reasoner("mistral")
    one = reasoner.trace("Ada has 3 pears. How many pears does Ada have?", "3", "3")
    long = reasoner.trace("Make 26 from 3, 5 and 7.", "3 * 7 = 21.", "(3 * 7) + 5 + 1 - 1 + 1 - 1")
    assert long.answer.stop - long.answer.start > reasoner.model.config.sliding_window
    found = optimise_mask(reasoner.model, [one, long], **TINY)
    assert len(found.values[0]) == 1 and all(torch.isfinite(v).all() for v in found.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(floor=0.0), "floor < 0"),
        (dict(ceiling=-1.0), "floor < 0"),
        (dict(floor=float("nan")), "floor < 0"),
        (dict(steps=0), "steps=0"),
        (dict(steps=30.5), "steps=30.5 .* whole number"),
        (dict(sparsity=-1.0), "sparsity=-1"),
        (dict(sparsity=float("nan")), "sparsity=nan"),
        (dict(rate=0), "rate=0"),
        (dict(start=2.0), "start=2"),
        (dict(optimiser="adamm"), "unknown optimiser 'adamm'; did you mean 'adam'"),
        (dict(sign="open"), "unknown sign"),
        (dict(parametrisation="free"), "unknown parametrisation"),
        (dict(granularity="word"), "unknown granularity"),
        (dict(scope="some"), "unknown scope"),
    ],
)
def test_bad_settings_are_clear_errors(options, message):
    reasoner = tiny_reasoner()
    with pytest.raises(FaithlabError, match=message):
        optimise_mask(reasoner.model, tiny_traces(reasoner), **options)


def test_a_sigmoid_that_starts_open_still_moves():
    reasoner = tiny_reasoner()
    found = optimise_mask(reasoner.model, tiny_traces(reasoner)[:1], parametrisation="sigmoid", start=1.0, sparsity=9.0,
                          steps=20, pad_id=reasoner.pad_id)  # fmt: skip
    assert found.values[0].min() < 0.95


def test_bad_models_and_traces_are_clear_errors():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    with pytest.raises(FaithlabError, match="no traces"):
        optimise_mask(reasoner.model, [])
    reasoner.model.config.max_position_embeddings = 16
    with pytest.raises(FaithlabError, match="window of 16"):
        optimise_mask(reasoner.model, traces)
    reasoner.model.config.max_position_embeddings = 512
    with torch.no_grad():
        reasoner.model.lm_head.weight[0] = torch.nan
    with pytest.raises(FaithlabError, match="not finite"):
        optimise_mask(reasoner.model, traces)
    assert all(p.requires_grad for p in reasoner.model.parameters())
