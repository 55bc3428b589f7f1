"""Every score through one door: shapes, laws that tie scores to each other, and the mask network."""

from types import SimpleNamespace

import pytest
import torch
from oracle import unanswered
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces
from transformers import PretrainedConfig

from faithlab import mask_network, tasks, token_scores
from faithlab.errors import FaithlabError
from faithlab.granularity import make_layout
from faithlab.likelihood import answer_logp
from faithlab.mask_network import MaskNetwork, MaskTrainer, predict_masks, read_states
from faithlab.models import load_reasoner
from faithlab.planted import planted
from faithlab.ranking import auroc
from faithlab.saliency import optimise_mask
from faithlab.traces import Trace

WITH_REASONING = [0, 1, 2, 4]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", token_scores.names())
def test_every_score_gives_one_number_a_reasoning_token_whatever_the_company(architecture, name):
    reasoner = tiny_reasoner(architecture)
    traces = [tiny_traces(reasoner)[i] for i in WITH_REASONING]
    torch.manual_seed(0)
    extra = dict(saliency_answer=dict(steps=4), saliency_all=dict(steps=4))
    options = extra.get(name, dict(network=MaskNetwork.for_model(reasoner.model)) if name == "mask_network" else {})
    together = token_scores.score(name, reasoner, traces, **options)
    for i, (t, s) in enumerate(zip(traces, together, strict=True)):
        assert s.shape == (t.reasoning.stop - t.reasoning.start,)
        assert torch.isfinite(s).any() or name == "fai", "only FAI looks further ahead than these traces are long"
        if name not in (
            "random",
            "waad",
            "fai",
        ):  # by place in the list; by head groups that all traces choose together
            alone = token_scores.score(name, reasoner, [t], **options)[0]
            torch.testing.assert_close(alone, s, atol=2e-3, rtol=1e-3, equal_nan=True), i


def test_random_scores_follow_seed_and_place():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    one, two = (token_scores.score("random", reasoner, traces, seed=s) for s in (1, 2))
    again = token_scores.score("random", reasoner, traces[:2], seed=1)
    assert torch.equal(one[1], again[1]) and not torch.equal(one[0], two[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_integrated_gradients_sum_to_what_the_floor_costs(architecture, monkeypatch):
    monkeypatch.setattr(token_scores, "PATH_POINTS", 200)
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    got = token_scores.score("integrated_gradients", reasoner, traces, floor=-3.0)
    found = optimise_mask(reasoner.model, traces, floor=-3.0, steps=1)
    expected = found.full_logp - found.suppressed_logp
    assert [float(s.sum()) for s in got] == pytest.approx(expected.tolist(), abs=2e-3)


def test_gradient_x_input_is_that_of_a_plain_pass():
    reasoner = tiny_reasoner()
    t = tiny_traces(reasoner)[2]
    embedded = reasoner.model.get_input_embeddings()(t.input_ids[None]).detach().requires_grad_(True)
    logits = reasoner.model(inputs_embeds=embedded).logits[0].log_softmax(-1)
    total = sum(logits[p - 1, t.input_ids[p]] for p in range(t.answer.start, t.answer.stop))
    product = (torch.autograd.grad(total, embedded)[0] * embedded).sum(-1).abs()[0, t.reasoning]
    got = token_scores.score("gradient_x_input", reasoner, tiny_traces(reasoner))[2]
    torch.testing.assert_close(got, product.detach(), atol=1e-4, rtol=1e-3)


def test_cuts_and_answers_that_are_missing():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    for name in ("cut_answer", "gradient_open", "saliency_answer", "last_layer", "gradient_x_input"):
        scores = token_scores.score(name, reasoner, [unanswered(traces[0]), traces[1]])
        assert torch.isnan(scores[0]).all() and torch.isfinite(scores[1]).all()


def test_names_and_groups():
    assert set(token_scores.names("mask")) == {"saliency_answer", "saliency_all", "mask_network"}
    with pytest.raises(FaithlabError, match="needs network="):
        token_scores.score("mask_network", tiny_reasoner(), [])
    assert token_scores.group_of("flow") == "attention"
    with pytest.raises(FaithlabError, match="unknown score 'flw'; did you mean 'flow'"):
        token_scores.score("flw", tiny_reasoner(), [])


@pytest.mark.parametrize("name", token_scores.names("attention") + token_scores.names("control"))
def test_a_rollout_that_ended_at_once_has_an_empty_score(name):
    reasoner = tiny_reasoner()
    whole = tiny_traces(reasoner)[0]
    n = whole.prompt.stop
    nothing = Trace(whole.input_ids[:n], whole.prompt, slice(n, n), slice(n, n), whole.pieces[:n], False, whole.problem)
    empty, full = token_scores.score(name, reasoner, [nothing, whole])
    assert not len(empty) and len(full) == whole.reasoning.stop - whole.reasoning.start
    assert [len(s) for s in token_scores.score(name, reasoner, [nothing])] == [0]


def test_misspelt_options_are_named_and_those_of_other_scores_are_not():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)[:1]
    with pytest.raises(FaithlabError, match="did you mean 'floor'"):
        token_scores.score("gradient_floor", reasoner, traces, flor=-1.0)
    for name in ("position", "saliency_answer", "flow"):
        token_scores.score(name, reasoner, traces, steps=1, horizon=(4, None), network=None)


def test_attention_scores_read_one_map_unless_they_need_more(monkeypatch):
    wanted = []
    capture = token_scores.capture
    monkeypatch.setattr(token_scores, "capture", lambda *a, **o: wanted.append(o["want"]) or capture(*a, **o))
    reasoner = tiny_reasoner()
    for name in ("last_layer", "answer_attention", "received", "flow", "rollout"):
        token_scores.score(name, reasoner, tiny_traces(reasoner))
    assert wanted == [("mean_map",)] * 4 + [("layer_maps",)]


@pytest.mark.parametrize("name", ["last_layer", "answer_attention"])
def test_scores_by_one_map_are_means_of_layer_maps(name):
    reasoner = tiny_reasoner()
    layers = [reasoner.model.config.num_hidden_layers - 1] if name == "last_layer" else "middle"
    traces = [tiny_traces(reasoner)[i] for i in WITH_REASONING]
    read = token_scores.capture(reasoner.model, traces, layers=layers, want=("layer_maps",)).traces
    for t, r, s in zip(traces, read, token_scores.score(name, reasoner, traces), strict=True):
        rows = r.layer_maps.mean(0)[t.answer.start - 1 : t.answer.stop - 1]
        torch.testing.assert_close(s, rows.mean(0)[t.reasoning], atol=1e-6, rtol=1e-5)


def test_a_model_with_a_nested_configuration_is_read_too():
    """Models that also see or hear keep the sizes of their text part one level down."""
    reasoner = tiny_reasoner()
    inner, outer = reasoner.model.config, PretrainedConfig()
    outer.get_text_config = lambda *args, **options: inner
    traces = tiny_traces(reasoner)[:1]
    layout = make_layout("layer_head", traces, torch.ones(1, 3, dtype=torch.bool), outer)
    assert layout.lead == (inner.num_hidden_layers, inner.num_attention_heads)
    assert token_scores._depth(SimpleNamespace(model=SimpleNamespace(config=outer))) == inner.num_hidden_layers


# --- the mask network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """abacus, traces to train on, traces to judge by, and a network that has seen the former for a few steps."""
    reasoner = load_reasoner("abacus")
    problems = tasks.load("stories", split="validation", n=160, seed=3, hops=(2, 3))
    traces = [t for t in reasoner.generate(problems, temperature=0) if t.answered and planted(t).known]
    torch.manual_seed(0)
    network = MaskNetwork.for_model(reasoner.model)
    trainer = MaskTrainer(network, rate=3e-3, pad_id=reasoner.pad_id)
    log = [trainer.step(reasoner.model, traces[16 * (k % 6) : 16 * (k % 6 + 1)]) for k in range(60)]
    return reasoner, traces[96:128], network, log


@pytest.mark.training
def test_the_network_learns_to_open_what_the_answer_needs(trained):
    reasoner, traces, network, log = trained
    early, late = (sum(step["loss"] for step in part) for part in (log[:6], log[-6:]))
    assert late < 0.5 * early
    scores = predict_masks(network, reasoner.model, traces, pad_id=reasoner.pad_id)
    ranked = [auroc(s, planted(t).decisive) for s, t in zip(scores, traces, strict=True)]
    assert sum(ranked) / len(ranked) > 0.85


def test_the_network_saves_loads_and_goes_on(trained, tmp_path):
    reasoner, traces, network, _ = trained
    network.save(tmp_path / "net")
    again = MaskNetwork.load(tmp_path / "net")
    before = predict_masks(network, reasoner.model, traces[:4])
    for a, b in zip(before, predict_masks(again, reasoner.model, traces[:4]), strict=True):
        assert torch.equal(a, b)
    MaskTrainer(again).step(reasoner.model, traces[:8])
    assert not torch.equal(predict_masks(again, reasoner.model, traces[:1])[0], before[0])
    weights = tmp_path / "net" / "mask_network.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FaithlabError, match="no readable mask network"):
        MaskNetwork.load(tmp_path / "net")
    with pytest.raises(FaithlabError, match="no readable mask network"):
        MaskNetwork.load(tmp_path / "nowhere")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_the_model_and_company_plays_no_part(architecture):
    reasoner = tiny_reasoner(architecture)
    traces = [tiny_traces(reasoner)[i] for i in WITH_REASONING]
    torch.manual_seed(1)
    network = MaskNetwork.for_model(reasoner.model)
    torch.nn.init.normal_(network.out[-1].weight)
    tokens, reader, valid = read_states(reasoner.model, traces, (0, 2), reasoner.pad_id)
    for row, t in enumerate(traces):
        with torch.no_grad():
            states = reasoner.model(input_ids=t.input_ids[None], output_hidden_states=True).hidden_states
        plain = torch.cat([states[0][0], states[2][0]], -1)
        torch.testing.assert_close(tokens[row, valid[row]], plain[t.reasoning], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reader[row], plain[t.answer.start - 1], atol=1e-4, rtol=1e-4)
    together = predict_masks(network, reasoner.model, traces, pad_id=reasoner.pad_id)
    for t, s in zip(traces, together, strict=True):
        torch.testing.assert_close(predict_masks(network, reasoner.model, [t])[0], s, atol=1e-4, rtol=0)


def test_a_teacher_can_be_followed_and_the_policy_gets_no_gradient():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    teacher = optimise_mask(reasoner.model, traces, floor=-6.0, sparsity=0.3, steps=10)
    torch.manual_seed(0)
    network = MaskNetwork.for_model(reasoner.model, floor=-6.0)
    trainer = MaskTrainer(network, rate=1e-2)
    losses = [trainer.step(reasoner.model, traces, teacher)["loss"] for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None and p.requires_grad for p in reasoner.model.parameters())
    assert trainer.step(reasoner.model, [unanswered(traces[0]), traces[3]]) == {}, "nothing to learn from"
    by_head = optimise_mask(reasoner.model, traces, granularity="head", steps=1)
    with pytest.raises(FaithlabError, match="granularity='token'"):
        trainer.step(reasoner.model, traces, by_head)
    nothing = predict_masks(network, reasoner.model, [unanswered(traces[0])])
    assert torch.isnan(nothing[0]).all()


def test_an_update_is_the_same_in_parts(monkeypatch):
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)

    def learnt():
        torch.manual_seed(0)
        network = MaskNetwork.for_model(reasoner.model)
        torch.nn.init.normal_(network.out[-1].weight)
        found = MaskTrainer(network).step(reasoner.model, traces)
        return found, [p.grad for p in network.parameters()]

    (whole, gradients), sizes, read = learnt(), [], mask_network.read_states
    monkeypatch.setattr(mask_network, "read_states", lambda m, t, *a: sizes.append(len(t)) or read(m, t, *a))
    monkeypatch.setattr("faithlab.saliency.TOKENS_PER_BATCH", 1)
    parts, again = learnt()
    assert max(sizes) == 1 < len(sizes)
    assert parts == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(again, gradients, atol=1e-6, rtol=1e-3)


def test_a_broken_policy_is_a_clear_error():
    reasoner = tiny_reasoner()
    network = MaskNetwork.for_model(reasoner.model)
    assert torch.isfinite(answer_logp(reasoner, tiny_traces(reasoner))).all()
    with torch.no_grad():
        reasoner.model.lm_head.weight[0] = torch.nan
    with pytest.raises(FaithlabError, match="not finite"):
        MaskTrainer(network).step(reasoner.model, tiny_traces(reasoner))
