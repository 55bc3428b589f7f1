"""The one door into a model's attention: masks against a double loop, gradients against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces

from faithlab.attention import causal_bias, cut_bias, frozen, layer_windows, lowest, model_mask
from faithlab.batches import collate
from faithlab.errors import FaithlabError
from faithlab.prefill import prefill

LOW = lowest(torch.float32)
BACKENDS = ("sdpa", "eager")


def naive_causal_bias(attention_mask, first_query, window, bias):
    """The rule as one would say it: no future, no padding, no key behind the window; a query always sees itself."""
    batch, keys = attention_mask.shape
    heads = 1 if bias is None or bias.ndim == 3 else bias.shape[1]
    out = torch.full((batch, heads, keys - first_query, keys), LOW)
    for b in range(batch):
        for h in range(heads):
            for row, q in enumerate(range(first_query, keys)):
                for k in range(keys):
                    near = window is None or q - k < window
                    if k == q or (k < q and near and attention_mask[b, k]):
                        if bias is None:
                            value = 0.0
                        else:
                            value = float(bias[b, row, k] if bias.ndim == 3 else bias[b, h, row, k])
                        out[b, h, row, k] = max(value, LOW / 2)
    return out


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_causal_bias_equals_a_double_loop(data):
    batch, keys = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    first_query = data.draw(st.integers(0, keys - 1))
    window = data.draw(st.one_of(st.none(), st.integers(1, keys + 1)))
    side = data.draw(st.sampled_from(["left", "right"]))
    mask = torch.ones(batch, keys, dtype=torch.long)
    for b in range(batch):
        padding = data.draw(st.integers(0, keys - 1))
        if padding:
            mask[b, slice(0, padding) if side == "left" else slice(keys - padding, keys)] = 0
    heads = data.draw(st.sampled_from([None, 0, 1, 2]))
    bias = None
    if heads is not None:
        shape = (batch, keys - first_query, keys) if heads == 0 else (batch, heads, keys - first_query, keys)
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
        bias[bias > 1.5] = float("-inf")
        bias[bias < -1.5] = LOW
    got = causal_bias(mask, dtype=torch.float32, first_query=first_query, window=window, bias=bias)
    assert torch.equal(got, naive_causal_bias(mask, first_query, window, bias))
    assert torch.isfinite(got).all()


def test_gradient_reaches_the_bias_only_where_a_key_may_be_seen():
    mask = torch.tensor([[0, 1, 1, 1]])
    bias = torch.zeros(1, 1, 4, 4, requires_grad=True)
    causal_bias(mask, dtype=torch.float32, window=2, bias=bias).clamp(min=-1).sum().backward()
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert bias.grad[0, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinities_stay_out_of_every_dtype(dtype):
    bias = torch.full((1, 3, 3), float("-inf"))
    got = causal_bias(torch.ones(1, 3, dtype=torch.long), dtype=dtype, bias=bias)
    assert got.dtype == dtype and torch.isfinite(got).all()


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 4, 4), (2, 1, 4, 4), (2, 1, 3, 3), (2, 4), (2, 1, 1, 3, 4)])
def test_bias_of_a_wrong_shape_is_a_clear_error(shape):
    mask = torch.ones(2, 4, dtype=torch.long)
    if shape == (2, 3, 4):  # right for one cached column
        causal_bias(mask, dtype=torch.float32, first_query=1, bias=torch.zeros(shape))
        shape = (2, 4, 3)
    with pytest.raises(FaithlabError, match=r"must have shape \(batch 2, heads or 1, queries 3, keys 4\); got"):
        causal_bias(mask, dtype=torch.float32, first_query=1, bias=torch.zeros(shape))


def test_windows_are_read_from_the_models_configuration():
    windows = {name: layer_windows(tiny_reasoner(name).model.config) for name in ARCHITECTURES}
    assert windows == {
        "llama": {"full_attention": None},
        "qwen3": {"full_attention": None},
        "gemma3": {"sliding_attention": 8, "full_attention": None},
        "gpt2": {"full_attention": None},
        "mistral": {"full_attention": 8},
    }
    config = tiny_reasoner("gemma3").model.config
    config.layer_types = ["linear_attention", *config.layer_types[1:]]
    with pytest.raises(FaithlabError, match=r"layers of type .'linear_attention'.; supported"):
        layer_windows(config)


@pytest.mark.parametrize("backend", ["flash_attention_2", "flex_attention"])
def test_backends_without_a_float_mask_are_refused(backend):
    model = tiny_reasoner().model
    model.config._attn_implementation_internal = backend
    assert model.config._attn_implementation == backend
    with pytest.raises(FaithlabError, match="takes no additive bias; load the model with attn_implementation='sdpa'"):
        model_mask(model, torch.ones(1, 4, dtype=torch.long))


def batch_of(reasoner, side="left"):
    return collate(tiny_traces(reasoner), pad_id=reasoner.pad_id, side=side)


def logits_of(model, batch, bias=None, input_ids=None):
    return model(
        input_ids=batch.input_ids if input_ids is None else input_ids,
        attention_mask=model_mask(model, batch.attention_mask, bias=bias),
        position_ids=batch.position_ids,
    ).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_bias_the_model_is_as_it_was(architecture, backend, side):
    reasoner = tiny_reasoner(architecture, attention=backend)
    batch = batch_of(reasoner, side)
    with torch.no_grad():
        got = logits_of(reasoner.model, batch)
        for row, (trace, start) in enumerate(zip(batch.traces, batch.starts.tolist(), strict=True)):
            plain = reasoner.model(input_ids=trace.input_ids[None]).logits[0]
            torch.testing.assert_close(got[row, start : start + len(trace)], plain, atol=2e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_bias_equals_finite_differences(architecture, backend):
    # Norms and the eager softmax compute in float32 even in a float64 model, so the step must be this large.
    step = 2e-3
    reasoner = tiny_reasoner(architecture, attention=backend)
    batch = batch_of(reasoner)
    width = batch.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    heads = reasoner.model.config.num_attention_heads

    def loss(bias):
        logp = logits_of(reasoner.model, batch, bias)[:, -2].float().log_softmax(-1)
        return logp.gather(-1, batch.input_ids[:, -1:]).sum()

    with frozen(reasoner.model):
        for shape in ((len(batch.traces), 1, width, width), (len(batch.traces), heads, width, width)):
            bias = (0.5 * torch.randn(shape, generator=generator)).requires_grad_()
            loss(bias).backward()
            direction = torch.randn(shape, generator=generator)
            with torch.no_grad():
                slope = (loss(bias + step * direction) - loss(bias - step * direction)) / (2 * step)
            expected = (bias.grad * direction).sum().item()
            assert abs(expected) > 0.05, "a gradient this small would prove nothing"
            assert slope.item() == pytest.approx(expected, rel=0.02, abs=5e-3)
    assert all(p.grad is None for p in reasoner.model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_token_tells_the_rows_that_lost_it_nothing(architecture, backend):
    """Whatever stands at the cut position, the later rows are the same to the last bit that matters: nothing leaks."""
    reasoner = tiny_reasoner(architecture, attention=backend)
    batch = batch_of(reasoner)
    column = int(batch.input_ids.shape[1]) - 8  # inside every trace, and inside the window of every layer
    rows = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    rows[:, column + 1 :] = True
    columns = torch.zeros_like(rows)
    columns[:, column] = True
    bias = cut_bias(rows, columns, torch.float32)
    other = batch.input_ids.clone()
    other[:, column] = (other[:, column] + 17) % len(reasoner.tokenizer)
    with torch.no_grad():
        cut = [logits_of(reasoner.model, batch, bias, ids)[:, column + 1 :] for ids in (batch.input_ids, other)]
        seen = [logits_of(reasoner.model, batch, None, ids)[:, column + 1 :] for ids in (batch.input_ids, other)]
    assert (seen[0] - seen[1]).abs().max() > 0.01, "the token matters to nobody, so hiding it proves nothing"
    torch.testing.assert_close(cut[0], cut[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_whose_every_key_is_cut_sees_neither_future_nor_padding(architecture, backend):
    reasoner = tiny_reasoner(architecture, attention=backend)
    batch = batch_of(reasoner)
    row = batch.input_ids.shape[1] - 6
    everything = torch.ones_like(batch.input_ids, dtype=torch.bool)
    rows = torch.zeros_like(everything)
    rows[:, row] = True
    bias = cut_bias(rows, everything, torch.float32)
    other = batch.input_ids.clone()
    other[:, row + 1 :] = (other[:, row + 1 :] + 17) % len(reasoner.tokenizer)
    other[batch.attention_mask == 0] = 9
    with torch.no_grad():
        one, two = (logits_of(reasoner.model, batch, bias, ids)[:, row] for ids in (batch.input_ids, other))
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_cut_bias_cuts_these_rows_from_these_columns_alone():
    rows, columns = torch.tensor([[False, True, True]]), torch.tensor([[True, False, True, False]])
    got = cut_bias(rows, columns, torch.float32)[0]
    assert got.tolist() == [[0, 0, 0, 0], [LOW, 0, LOW, 0], [LOW, 0, LOW, 0]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_prefill_and_tail_equal_the_full_forward_pass(architecture, backend):
    reasoner = tiny_reasoner(architecture, attention=backend)
    batch = batch_of(reasoner)
    width = batch.input_ids.shape[1]
    bias = torch.randn(len(batch.traces), 1, width, width)
    with torch.no_grad():
        for upto in (1, 9, width - 1):
            # The prefix is computed without a bias, so the comparison gives its rows none.
            bias[:, :, :upto] = 0
            full = logits_of(reasoner.model, batch, bias)[:, upto:]
            cache = prefill(reasoner.model, batch.input_ids, batch.attention_mask, batch.position_ids, upto)
            assert all(keys.shape[2] == upto for keys, *_ in cache), "a sliding window must not drop cached columns"
            tail = reasoner.model(
                input_ids=batch.input_ids[:, upto:],
                attention_mask=model_mask(
                    reasoner.model, batch.attention_mask, first_query=upto, bias=bias[:, :, upto:]
                ),
                position_ids=batch.position_ids[:, upto:],
                past_key_values=cache,
            ).logits
            torch.testing.assert_close(tail, full, atol=2e-4, rtol=0)


def test_frozen_restores_every_flag_also_after_an_error():
    model = tiny_reasoner("gpt2").model
    model.train()
    model.transformer.h[1].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), frozen(model) as inside:
        assert inside is model
        assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
