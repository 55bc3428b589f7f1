"""Capture against eager attention maps, on five architectures, whatever the backend, the padding and the chunks."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces

from faithlab import attention, heads
from faithlab.attention import capture, read_layers
from faithlab.batches import collate
from faithlab.errors import FaithlabError
from faithlab.likelihood import answer_logp
from faithlab.memory import capture_bytes
from faithlab.recorder import hidden_states
from faithlab.traces import Trace

EVERYTHING = ("profiles", "maps", "mean_map", "layer_maps", "received", "entropy")


def eager_maps(architecture, trace):
    """Every layer's attention probabilities [layer, head, query, key], by transformers' own eager attention."""
    model = tiny_reasoner(architecture, attention="eager").model
    with torch.no_grad():
        out = model(input_ids=trace.input_ids[None], output_attentions=True)
    return torch.stack([a[0] for a in out.attentions]), out.logits[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_equal_to_eager_maps(architecture, backend, side):
    reasoner = tiny_reasoner(architecture, attention=backend)
    traces = tiny_traces(reasoner)
    found = capture(reasoner.model, traces, layers="all", want=EVERYTHING, side=side, pad_id=reasoner.pad_id,
                    horizon=(2, 9))  # fmt: skip
    maps, distances = [], []
    for t in traces:
        probs, _ = eager_maps(architecture, t)
        maps.append(probs)
        distances.append(heads.backward_distance(probs, t.response))
    close = dict(abs=1e-5)
    for got, expected in zip(found.traces, distances, strict=True):
        assert got.distance.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-4)
    local, far = heads.split_heads(torch.stack(distances).mean(0))
    assert torch.equal(found.local, local) and torch.equal(found.global_, far)
    for t, got, probs in zip(traces, found.traces, maps, strict=True):
        flat = probs.flatten(0, 1)
        for ours, theirs in (
            (got.mean_map, flat.mean(0)),
            (got.local_map, flat[local].mean(0)),
            (got.global_map, flat[far].mean(0)),
            (got.layer_maps, probs.mean(1)),
        ):
            assert ours.flatten().tolist() == pytest.approx(theirs.flatten().tolist(), **close)
        assert got.waad.tolist() == pytest.approx(heads.waad(flat[local].mean(0), t.response).tolist(), abs=1e-4)
        fai = heads.fai(flat[far].mean(0), t.response, 2, 9)
        assert got.fai.tolist() == pytest.approx(fai.tolist(), nan_ok=True, **close)
        received = heads.fai(probs, t.response, 10, None)
        assert got.received.flatten().tolist() == pytest.approx(received.flatten().tolist(), nan_ok=True, **close)
        known = ~received[0, 0].isnan()
        if known.sum() > 2:
            seen = received[..., known].double().numpy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scipy on heads that give these tokens nothing
                expected = np.nan_to_num(stats.kurtosis(seen, axis=-1), nan=-2.0)
            assert got.kurtosis.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=2e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_entropy_is_that_of_the_row_before(architecture):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)
    found = capture(reasoner.model, traces, want=("entropy",))
    for t, got in zip(traces, found.traces, strict=True):
        _, logits = eager_maps(architecture, t)
        rows = range(t.response.start - 1, t.response.stop - 1)
        assert got.entropy.tolist() == pytest.approx(heads.entropy(logits)[list(rows)].tolist(), abs=1e-4)
        assert got.waad is None and got.mean_map is None


@pytest.mark.parametrize("bytes_", [1, 3000, 10**8])
def test_chunks_change_nothing(monkeypatch, bytes_):
    reasoner = tiny_reasoner("qwen3")
    traces = tiny_traces(reasoner)
    whole = capture(reasoner.model, traces, want=EVERYTHING, horizon=(2, 9))
    monkeypatch.setattr(attention, "CHUNK_BYTES", bytes_)
    parts = capture(reasoner.model, traces, want=EVERYTHING, horizon=(2, 9))
    for one, two in zip(whole.traces, parts.traces, strict=True):
        for name, value in dataclasses.asdict(one).items():
            assert torch.allclose(value, getattr(two, name), atol=1e-4, equal_nan=True), name


def test_company_and_order_change_nothing_once_heads_are_frozen():
    reasoner = tiny_reasoner("llama")
    traces = tiny_traces(reasoner)
    together = capture(reasoner.model, traces, want=EVERYTHING, horizon=(2, 9))
    backwards = capture(reasoner.model, traces[::-1], want=EVERYTHING, horizon=(2, 9), groups=together)
    assert torch.equal(backwards.local, together.local) and backwards.layers == together.layers
    alone = [capture(reasoner.model, [t], want=EVERYTHING, horizon=(2, 9), groups=together).traces[0] for t in traces]
    for one, two, three in zip(together.traces, backwards.traces[::-1], alone, strict=True):
        for name, value in dataclasses.asdict(one).items():
            for other in (two, three):
                assert torch.allclose(value, getattr(other, name), atol=1e-5, equal_nan=True), name


def test_later_tokens_never_change_earlier_rows():
    reasoner = tiny_reasoner("mistral")
    t = tiny_traces(reasoner)[2]
    changed = t.input_ids.clone()
    changed[-4:] = 11
    other = dataclasses.replace(t, input_ids=changed)
    groups = capture(reasoner.model, [t], want=("maps",))
    one, two = (capture(reasoner.model, [x], want=("profiles", "maps"), groups=groups).traces[0] for x in (t, other))
    assert torch.equal(one.global_map[:-4], two.global_map[:-4])
    upto = len(t) - 4 - t.response.start
    assert torch.allclose(one.waad[:upto], two.waad[:upto], atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was_even_after_an_error(architecture, backend, monkeypatch):
    reasoner = tiny_reasoner(architecture, attention=backend)
    model, traces = reasoner.model, tiny_traces(reasoner)
    model.train()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    ids = traces[0].input_ids[None]
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    model.train()
    capture(model, traces)

    def broken(*args, **options):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(type(model.base_model), "forward", broken)
        with pytest.raises(RuntimeError, match="stop"):
            capture(model, traces)
    assert model.training and model.config._attn_implementation == backend
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, before)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_bfloat16_is_near_float32():
    reasoner = tiny_reasoner("llama")
    traces = tiny_traces(reasoner)
    exact = capture(reasoner.model, traces, want=("mean_map",))
    rough = capture(reasoner.model.to(torch.bfloat16), traces, want=("mean_map",))
    for one, two in zip(exact.traces, rough.traces, strict=True):
        assert two.mean_map.dtype == torch.float32
        assert (one.mean_map - two.mean_map).abs().max() < 0.03


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ("middle", 30, (10, 12, 15, 18, 20)), ("middle", 6, (2, 3, 4)), ("middle", 1, (0,)), ("middle", 2, (0, 1)),
        ("bottom", 30, (0, 2, 5, 8, 10)), ("top", 30, (20, 22, 24, 27, 29)), ("all", 3, (0, 1, 2)),
        ([2, 0, 2], 3, (0, 2)), ("middle", 28, (9, 11, 14, 16, 18)),
    ],
)  # fmt: skip
def test_layer_ranges(layers, depth, expected):
    assert read_layers(layers, depth) == expected


def test_names_of_heads():
    reasoner = tiny_reasoner("llama")
    found = capture(reasoner.model, tiny_traces(reasoner), layers=[0, 2])
    every = found.names(torch.arange(8))
    assert every == ["0.0", "0.1", "0.2", "0.3", "2.0", "2.1", "2.2", "2.3"]


def test_bad_requests_are_clear_errors():
    reasoner = tiny_reasoner("llama")
    traces = tiny_traces(reasoner)
    for options, message in (
        (dict(layers="midle"), "unknown layer range 'midle'; did you mean 'middle'"),
        (dict(layers=[7]), "layers 0 to 2"),
        (dict(layers=[]), "do not exist"),
        (dict(want=("map",)), "unknown thing to capture 'map'; did you mean 'maps'"),
    ):
        with pytest.raises(FaithlabError, match=message):
            capture(reasoner.model, traces, **options)
    t = traces[0]
    silent = Trace(t.input_ids[: t.prompt.stop], t.prompt, *[slice(t.prompt.stop, t.prompt.stop)] * 2)
    with pytest.raises(FaithlabError, match="trace 1 has no response"):
        capture(reasoner.model, [t, silent])
    with pytest.raises(FaithlabError, match="no traces"):
        capture(reasoner.model, [])


def test_what_cannot_fit_is_refused_with_the_remedy(monkeypatch, capsys):
    from faithlab import memory

    reasoner = tiny_reasoner("llama")
    traces = tiny_traces(reasoner)
    capture(reasoner.model, traces, quiet=False)
    assert "5 traces of up to" in capsys.readouterr().out
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    with pytest.raises(FaithlabError, match="capture fewer traces at once"):
        capture(reasoner.model, traces)


def test_not_a_number_is_a_clear_error():
    reasoner = tiny_reasoner("llama")
    with torch.no_grad():
        reasoner.model.model.layers[0].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(FaithlabError, match="not finite"):
        capture(reasoner.model, tiny_traces(reasoner))


# -- hidden states


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [(0,), (1,), (2, 0), (1, 3), (3,)])
def test_hidden_states_are_transformers_own(architecture, layers):
    reasoner = tiny_reasoner(architecture)
    r = reasoner.model
    batch = collate(tiny_traces(reasoner), pad_id=reasoner.pad_id)
    inputs = dict(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    with torch.no_grad():
        states = r(**inputs, output_hidden_states=True).hidden_states
    for i, found in zip(layers, hidden_states(r, batch, layers), strict=True):
        torch.testing.assert_close(found, states[i], equal_nan=True)
    assert not any(m._forward_pre_hooks for m in r.modules())


def test_hidden_states_end_where_no_more_is_read(monkeypatch):
    reasoner = tiny_reasoner()
    r, batch = reasoner.model, collate(tiny_traces(reasoner), pad_id=reasoner.pad_id)
    monkeypatch.setattr(r.model.layers[1], "forward", None)
    assert hidden_states(r, batch, (1, 0))[0].shape[:2] == batch.input_ids.shape
    for layers in ((), (4,), (-1,)):
        with pytest.raises(FaithlabError, match="the model has 0 to 3"):
            hidden_states(r, batch, layers)


def test_one_long_trace_is_not_counted_as_many():
    """Parts of like length are run one after the other, so that only one part's activations are alive."""
    model = tiny_reasoner().model
    apart, together = (capture_bytes(model, parts, 2, (), 0) for parts in ([[400], [20] * 50], [[400] + [20] * 50]))
    assert apart < together / 10


def test_traces_beyond_the_window_are_refused():
    reasoner = tiny_reasoner("gpt2")
    reasoner.model.config.max_position_embeddings = 16
    with pytest.raises(FaithlabError, match="does not fit the model's window of 16"):
        capture(reasoner.model, tiny_traces(reasoner), pad_id=reasoner.pad_id)
    with pytest.raises(FaithlabError, match="does not fit the model's window of 16"):
        answer_logp(reasoner, tiny_traces(reasoner))
