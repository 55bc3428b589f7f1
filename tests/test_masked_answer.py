"""log p(answer) under a bias, against the untouched model, plain masks, and central differences."""

import pytest
import torch
from tiny import ARCHITECTURES, hand_made_masks, tiny_reasoner, tiny_traces
from torch import nn

from faithlab.biases import frozen
from faithlab.errors import FaithlabError
from faithlab.likelihood import Variant, answer_logp, variant_logp
from faithlab.masked_answer import MaskedAnswer

SCOPES = ("answer", "all")


def problem(architecture="llama", scope="answer", attention="sdpa", traces=None):
    reasoner = tiny_reasoner(architecture, attention=attention)
    traces = tiny_traces(reasoner) if traces is None else traces
    return reasoner, traces, MaskedAnswer(reasoner.model, traces, scope, reasoner.pad_id)


def plain_logp(model, trace, bias, scope):
    """One trace, one whole forward pass under a hand-made float mask with `bias` [head, token] on its columns."""
    n, start = len(trace), trace.reasoning.start
    extra = torch.zeros(len(bias), n, n)
    for j in range(bias.shape[1]):
        first = trace.reasoning.stop if scope == "answer" else start + j + 1
        extra[:, first:, start + j] = bias[:, j, None]
    masks = hand_made_masks(model, n)
    masks = {k: m + extra for k, m in masks.items()} if isinstance(masks, dict) else masks + extra
    with torch.no_grad():
        options = dict(attention_mask=masks, position_ids=torch.arange(n)[None])
        logits = model(input_ids=trace.input_ids[None], **options).logits[0].log_softmax(-1)
    rows = torch.arange(trace.answer.start - 1, trace.answer.stop - 1)
    return logits[rows, trace.input_ids[trace.answer]].sum().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_bias_it_is_the_models_own_likelihood(architecture, scope, attention):
    reasoner, traces, p = problem(architecture, scope, attention)
    with torch.no_grad():
        expected = answer_logp(reasoner, traces)
        torch.testing.assert_close(p.logp(), expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(p.logp(torch.zeros(p.valid.shape)), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_very_low_bias_is_a_cut(architecture, scope):
    reasoner, traces, p = problem(architecture, scope)
    for offset in (0, 3, 7):
        bias = torch.zeros(p.valid.shape)
        bias[:, offset] = -1e4
        variants = [Variant(i, (t.reasoning.start + offset,) if t.reasoning.stop > t.reasoning.start + offset else ())
                    for i, t in enumerate(traces)]  # fmt: skip
        with torch.no_grad():
            expected = variant_logp(reasoner, traces, variants, scope=scope)
            torch.testing.assert_close(p.logp(bias), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("per_head", [False, True])
def test_any_bias_equals_a_plain_forward_pass_under_a_float_mask(architecture, scope, per_head):
    reasoner, traces, p = problem(architecture, scope)
    heads = reasoner.model.config.num_attention_heads if per_head else 1
    shape = (len(traces), heads, p.valid.shape[1])
    bias = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = [plain_logp(reasoner.model, t, bias[i, :, : t.reasoning.stop - t.reasoning.start], scope)
                for i, t in enumerate(traces)]  # fmt: skip
    with torch.no_grad():
        got = p.logp(bias if per_head else bias[:, 0])
        layers = reasoner.model.config.num_hidden_layers
        every = p.logp(bias[:, None].expand(-1, layers, -1, -1))
    torch.testing.assert_close(got, torch.tensor(expected), atol=2e-4, rtol=0)
    torch.testing.assert_close(every, got, atol=1e-5, rtol=0)


def test_a_bias_of_one_layer_acts_in_that_layer_only():
    """In layer 1 of 2 of a model whose second layer's attention output is silenced nothing can be felt."""
    reasoner, traces, p = problem("llama")
    with torch.no_grad():
        reasoner.model.model.layers[1].self_attn.o_proj.weight.zero_()
    p = MaskedAnswer(reasoner.model, traces, "answer", reasoner.pad_id)
    layers = reasoner.model.config.num_hidden_layers
    bias = torch.zeros(len(traces), layers, 1, p.valid.shape[1])
    with torch.no_grad():
        plain = p.logp()
        bias[:, 1] = -5.0
        torch.testing.assert_close(p.logp(bias), plain, atol=1e-6, rtol=0)
        bias[:, 0] = -5.0
        assert (p.logp(bias) - plain)[:3].abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lead", ["token", "head", "layer_head"])
def test_gradient_equals_central_differences(architecture, scope, attention, lead):
    reasoner, traces, p = problem(architecture, scope, attention)
    config = reasoner.model.config
    extra = dict(token=(), head=(config.num_attention_heads,),
                 layer_head=(config.num_hidden_layers, config.num_attention_heads))[lead]  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    bias = -torch.rand(len(traces), *extra, p.valid.shape[1], generator=generator)
    direction = torch.randn(bias.shape, generator=generator) * p.valid.reshape(len(traces), *[1] * len(extra), -1)
    with frozen(reasoner.model):
        leaf = bias.clone().requires_grad_(True)
        gradient = torch.autograd.grad(p.logp(leaf).sum(), leaf)[0]
        slope = (gradient * direction).flatten(1).sum(1)
        h = 2e-3
        with torch.no_grad():
            difference = (p.logp(bias + h * direction) - p.logp(bias - h * direction)) / (2 * h)
    scale = difference.abs().max()
    assert scale > 1e-3, "in this model the bias does nothing, so the test would see nothing"
    torch.testing.assert_close(slope, difference, rtol=1e-2, atol=1e-2 * scale.item())


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_is_exact_in_float64_where_nothing_is_normalised(scope):
    reasoner = tiny_reasoner("llama", attention="eager")
    model = reasoner.model.double()
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
    model.model.norm = nn.Identity()
    traces = tiny_traces(reasoner)
    p = MaskedAnswer(model, traces, scope, reasoner.pad_id)
    bias = -torch.rand(p.valid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with frozen(model):
        leaf = bias.clone().requires_grad_(True)
        gradient = torch.autograd.grad(p.logp(leaf).sum(), leaf)[0]
        for row, j in ((0, 0), (0, 5), (1, 2), (2, 4)):
            step = torch.zeros_like(bias)
            step[row, j] = 1e-5
            with torch.no_grad():
                difference = (p.logp(bias + step)[row] - p.logp(bias - step)[row]) / 2e-5
            assert gradient[row, j].item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-10)
    assert gradient[p.valid].abs().max() > 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("scope", SCOPES)
def test_neither_company_nor_leaving_it_changes_a_trace(architecture, scope):
    reasoner, traces, p = problem(architecture, scope)
    bias = -3 * torch.rand(p.valid.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = p.logp(bias)
        for i, t in enumerate(traces):
            alone = MaskedAnswer(reasoner.model, [t], scope, reasoner.pad_id)
            assert alone.logp(bias[i : i + 1, : alone.valid.shape[1]]).item() == pytest.approx(
                together[i].item(), abs=2e-4
            )
        kept = [2, 0]
        p.keep(kept)
        torch.testing.assert_close(p.logp(bias[kept]), together[kept], atol=2e-4, rtol=0)


def test_only_the_bias_gets_gradient_and_the_model_is_left_as_it_was():
    reasoner = tiny_reasoner()
    reasoner.model.train()
    before = {k: v.clone() for k, v in reasoner.model.state_dict().items()}
    p = MaskedAnswer(reasoner.model, tiny_traces(reasoner), "answer", reasoner.pad_id)
    with frozen(reasoner.model):
        bias = torch.zeros(p.valid.shape, requires_grad=True)
        p.logp(bias).sum().backward()
    assert bias.grad[p.valid].abs().max() > 0 and bias.grad[~p.valid].abs().max() == 0
    assert all(q.grad is None and q.requires_grad for q in reasoner.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in reasoner.model.state_dict().items())
    assert reasoner.model.training and reasoner.model.config._attn_implementation == "sdpa"


def test_bad_input_is_a_clear_error():
    reasoner, traces, p = problem()
    with pytest.raises(FaithlabError, match="unknown scope"):
        MaskedAnswer(reasoner.model, traces, "everything")
    with pytest.raises(FaithlabError, match="a bias must be"):
        p.logp(torch.zeros(len(traces), p.valid.shape[1] + 1))
    with pytest.raises(FaithlabError, match="no traces"):
        MaskedAnswer(reasoner.model, [])
    with torch.no_grad():
        reasoner.model.lm_head.weight[0] = torch.nan
    with pytest.raises(FaithlabError, match="not finite"):
        p.logp()
