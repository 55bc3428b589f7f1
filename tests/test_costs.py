"""Estimated costs: arithmetic against torch's own counter of operations, memory against the tensors that are alive
while each method works, weights and cache against what tensors hold."""

import doctest
import math
import shutil
import weakref
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny import ARCHITECTURES, tiny_reasoner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from faithlab import attention, costs, footprints, likelihood, memory_peaks, saliency, shapes
from faithlab.attention import capture
from faithlab.biases import causal_bias, frozen
from faithlab.costs import SHAPES, Lengths, Shape, flops, memory, table, training_bytes, writing_seconds
from faithlab.errors import FaithlabError
from faithlab.faithfulness import token_effects
from faithlab.flow import trace_flows
from faithlab.generation import TOKENS_PER_BATCH
from faithlab.likelihood import with_and_without_reasoning
from faithlab.mask_network import MaskNetwork, predict_masks
from faithlab.models import data_folder, load_reasoner
from faithlab.saliency import optimise_mask
from faithlab.token_scores import gradient_open
from faithlab.traces import Trace
from faithlab.units import units_of


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class Alive(TorchDispatchMode):
    """The highest number of bytes of tensors made inside that were alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if storage._cdata not in given | self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def alive(work) -> int:
    with Alive() as mode:
        work()
    return mode.peak


@pytest.fixture(scope="module")
def eager():
    """abacus with eager attention, whose products the counter sees."""
    reasoner = load_reasoner("abacus")
    reasoner.model.set_attn_implementation("eager")
    return reasoner


def a_trace(reasoner):
    row = dict(question="Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?", answer="7")
    reasoning = " ".join(["Ada has 3 pears.", "Ben has Ada + 4 = 3 + 4 = 7 pears."] * 6)
    return reasoner.trace(row, reasoning, "7")


def lengths_of(t) -> Lengths:
    return Lengths(t.prompt.stop, t.reasoning.stop - t.prompt.stop, t.answer.stop - t.reasoning.stop)


def test_the_examples_of_the_docstrings():
    for module in (costs, shapes):
        assert doctest.testmod(module).failed == 0 and doctest.testmod(module).attempted > 1


def test_limits_are_those_of_the_methods():
    for depth in (1, 2, 6, 28, 80):
        read = attention.read_layers("middle", depth)
        shape = Shape(depth, 8, 2, 1, 4, 16, 10, True)
        assert footprints.layers_read(shape) == (len(read), read[-1])
    assert footprints.READ_LAYERS == attention.READ and footprints.CHUNK == attention.CHUNK_BYTES
    assert (footprints.SLOT, footprints.COPIES) == (likelihood.PACKED_ROWS, likelihood.CACHE_BYTES_PER_CALL)
    assert footprints.WRITTEN == TOKENS_PER_BATCH
    assert costs.MASKED == {"answer": saliency.TOKENS_BEFORE_ANSWERS, "all": saliency.TOKENS_PER_BATCH}


def test_steps_of_the_mask_are_those_that_notebook_04_counted():
    found = pd.read_csv(data_folder() / "results" / "notebooks.csv").set_index("quantity")["value"]
    name = "mean steps of a mask, default"
    counted = {"answer": found[name], "all": found[f"{name}, scope all"]}
    assert counted == pytest.approx(costs.STEPS, rel=0.15)


# --- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [16, 200])
def test_a_forward_pass(eager, n):
    ids = torch.zeros(1, n, dtype=torch.long)
    with torch.no_grad():
        seen = counted(lambda: eager.model(input_ids=ids, use_cache=False))
    assert Shape.of(eager.model.config).rows(n, n) == pytest.approx(seen, rel=0.01)


def test_a_pass_there_and_back(eager):
    n = 100
    ids = torch.zeros(1, n, dtype=torch.long)
    shape = Shape.of(eager.model.config)
    seen = counted(lambda: eager.model(input_ids=ids, labels=ids, use_cache=False).loss.backward())
    eager.model.zero_grad()
    assert 3 * shape.rows(n, n) == pytest.approx(seen, rel=0.03)


def test_steps_of_the_mask(eager):
    """The marginal cost of a step, both scopes, with weights frozen."""
    t = a_trace(eager)
    shape, n = Shape.of(eager.model.config), len(t)

    def one(scope, steps):
        options = dict(steps=steps, patience=steps, scope=scope, pad_id=eager.pad_id)
        return counted(lambda: optimise_mask(eager.model, [t], **options))

    for scope, rows in (("answer", t.answer.stop - 1 - t.reasoning.stop), ("all", t.answer.stop - 1 - t.prompt.stop)):
        step = (one(scope, 5) - one(scope, 2)) / 3
        expected = shape.back_and_forth(rows, n, logits=t.answer.stop - t.answer.start)
        assert expected == pytest.approx(step, rel=0.15), scope


WHOLE = {  # method -> how it is run
    "capture of attention": lambda r, ts: capture(r.model, ts, want=("profiles",)),
    "one-step gradient of the mask": gradient_open,
    "mask, scope answer": lambda r, ts: optimise_mask(
        r.model, ts, steps=costs.STEPS["answer"], patience=costs.STEPS["answer"]
    ),
    "mask, scope all": lambda r, ts: optimise_mask(
        r.model, ts, steps=costs.STEPS["all"], patience=costs.STEPS["all"], scope="all"
    ),
    "mask network": lambda r, ts: predict_masks(MaskNetwork.for_model(r.model), r.model, ts),
    "drop or sufficiency": with_and_without_reasoning,
    "every token cut, scope answer": token_effects,
}


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_method(eager, method, monkeypatch):
    monkeypatch.setattr(costs, "STEPS", dict(answer=4, all=6))
    t = a_trace(eager)
    expected = flops(Shape.of(eager.model.config), lengths_of(t))[method]
    assert expected == pytest.approx(counted(lambda: WHOLE[method](eager, [t])), rel=0.15)


def test_a_step_of_the_mask_as_published(eager, monkeypatch):
    t = a_trace(eager)
    monkeypatch.setattr(costs, "PUBLISHED_STEPS", 1)
    expected = flops(Shape.of(eager.model.config), lengths_of(t))["mask as published"]
    assert expected == pytest.approx(counted(lambda: published(eager, t)), rel=0.15)


@pytest.mark.parametrize("n", [200, 1000])
def test_flow_after_capture(n):
    """Below the diagonal only; torch's counter is told what a triangular system takes, which it does not know."""

    def system(matrix, right, *args, **kwargs):
        return math.prod(matrix) * right[-1]

    solve = torch.ops.aten.linalg_solve_triangular
    with FlopCounterMode(display=False, custom_mapping={solve: system}) as counter:
        trace_flows(torch.rand(1, n, n).tril_().div_(n), [slice(0, 50)], [slice(n - 10, n)])
    expected = flops(SHAPES["llama-3.2-3b"], Lengths(50, n - 60, 10))["flow, after capture"]
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_resampling(eager, monkeypatch):
    """How long the continuations are is the model's choice; the formula takes half the reasoning, and the answer."""
    t = a_trace(eager)
    lengths = lengths_of(t)
    monkeypatch.setattr(footprints, "SENTENCE", lengths.reasoning / len(units_of(t, "sentence")))
    seen = counted(lambda: token_effects(eager, [t], method="resample", unit="sentence"))
    expected = flops(Shape.of(eager.model.config), lengths)["every sentence resampled 8 times"]
    assert expected == pytest.approx(seen, rel=0.25)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "gpt2"])  # its feed-forward is not gated
def test_parameters_of_every_architecture(architecture):
    model = tiny_reasoner(architecture).model
    assert Shape.of(model.config).parameters == pytest.approx(model.num_parameters(), rel=0.05)


def test_published_shapes_have_the_published_sizes():
    billions = {"smollm2-135m": 0.1345, "llama-3.2-3b": 3.21, "qwen3-4b": 4.02, "llama-3.1-8b": 8.03,
                "llama-3.1-70b": 70.6}  # fmt: skip
    assert {k: s.parameters / 1e9 for k, s in SHAPES.items()} == pytest.approx(billions, rel=0.005)


# --- memory ---------------------------------------------------------------------------------------------------------

LENGTHS = Lengths(120, 400, 16)


def small(dtype, vocabulary=1000, **more):
    """A small Llama of four query heads that share two key heads, and a trace of random tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=176, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    n, ids = LENGTHS.total, torch.randint(10, vocabulary, (LENGTHS.total,))
    ends = LENGTHS.prompt, n - LENGTHS.answer
    trace = Trace(ids, slice(0, ends[0]), slice(*ends), slice(ends[1], n))
    model = LlamaForCausalLM(config).eval().to(dtype)
    return SimpleNamespace(model=model, pad_id=0, device=torch.device("cpu")), trace


def published(r, t):
    """A step of the recipe done plainly: the whole trace there and back, by torch's own attention."""
    n, ids = len(t), t.input_ids[None]
    mask = torch.zeros(n, requires_grad=True)
    with frozen(r.model):
        masks = causal_bias(torch.ones_like(ids), dtype=r.model.dtype, bias=mask.expand(1, n, n).to(r.model.dtype))
        r.model(input_ids=ids, attention_mask=masks).logits.float().log_softmax(-1).sum().backward()


def learnt(r, t):
    """The gradient of all weights, with TRL's own way of making logits."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(r.model)
    ids = t.input_ids[None]
    out = r.model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)
    out.log_probs.sum().backward()


HELD = {name: lambda r, t, way=way: way(r, [t]) for name, way in WHOLE.items()} | {
    "forward pass": lambda r, t: r.model(input_ids=t.input_ids[None], use_cache=False),
    "GRPO's gradient": learnt,
    "flow, after capture": lambda r, t: trace_flows(
        torch.rand(1, len(t), len(t)).tril_().div_(len(t)), [t.prompt], [t.answer]
    ),
    "mask as published": published,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", HELD)
def test_memory_is_that_of_the_tensors_alive(method, dtype, monkeypatch):
    monkeypatch.setattr(likelihood, "CPU_CACHE_BYTES_PER_CALL", footprints.COPIES)  # the limit of a GPU
    monkeypatch.setattr(costs, "STEPS", dict(answer=2, all=2))
    r, t = small(dtype)
    shape, size = Shape.of(r.model.config), torch.finfo(dtype).bits // 8
    torch.manual_seed(0)
    network = MaskNetwork.for_model(r.model)  # a model of its own, which is there before
    monkeypatch.setattr(MaskNetwork, "for_model", lambda model: network)
    with torch.set_grad_enabled(method in ("GRPO's gradient", "mask as published")):
        seen = alive(lambda: HELD[method](r, t))
    if method == "GRPO's gradient":  # counted with the weights; and a tile is wider than this vocabulary
        seen -= size * (shape.parameters + (len(t) - 1) * (footprints.TILE[1] - shape.vocabulary))
    assert memory(shape, LENGTHS, size)[method] == pytest.approx(seen, rel=0.2)


def test_memory_of_resampling(monkeypatch):
    reasoner = load_reasoner("abacus")
    t = a_trace(reasoner)
    lengths, shape = lengths_of(t), Shape.of(reasoner.model.config)
    monkeypatch.setattr(footprints, "SENTENCE", lengths.reasoning / len(units_of(t, "sentence")))
    seen = alive(lambda: token_effects(reasoner, [t], method="resample", unit="sentence"))
    assert memory(shape, lengths, 4)["every sentence resampled 8 times"] == pytest.approx(seen, rel=0.35)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("vocabulary", [1000, 32_000])
def test_activations_of_a_padded_batch_are_what_a_training_step_holds(autocast, vocabulary):
    """Rows of different lengths, as rollouts are, with TRL's own way of making logits."""
    r, t = small(torch.float32, vocabulary)
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(r.model)
    rows, n, shape = 4, 200, Shape.of(r.model.config)
    ids, mask = t.input_ids[:n].expand(rows, n), torch.ones(rows, n, dtype=torch.long)
    for row in range(rows):
        mask[row, : 20 * row] = 0

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = r.model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
        out.log_probs.sum().backward()

    size, copies = (2, 2 * shape.layers * shape.layer) if autocast else (4, 0)
    seen = alive(step) - 4 * shape.parameters - copies  # the weights' gradients
    seen -= size * rows * (n - 1) * (footprints.TILE[1] - shape.vocabulary)  # a tile is wider than this vocabulary
    found = costs.grpo_step(shape, Lengths(50, 100, 50), rows, at_once=rows, rate=1.0, size=4, autocast=autocast)
    assert found.activations == pytest.approx(seen, rel=0.05)
    assert found.weights == training_bytes(shape, size=4) + copies


def test_cache_is_what_a_cache_holds(eager):
    ids = torch.zeros(3, 40, dtype=torch.long)
    with torch.no_grad():
        cache = eager.model(input_ids=ids, use_cache=True).past_key_values
    held = sum(k.nbytes + v.nbytes for k, v, *_ in cache)
    assert 3 * Shape.of(eager.model.config).cache_bytes(40, size=4) == held


def test_training_holds_weights_gradients_and_adam():
    model = load_reasoner("abacus").model
    shape = Shape.of(model.config)
    assert training_bytes(shape, size=4) == pytest.approx(16 * model.num_parameters(), rel=0.01)
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert training_bytes(shape, lora=4, size=4) == pytest.approx(4 * shape.parameters + 16 * trained, rel=0.001)


@pytest.mark.skipif(not memory_peaks.Path("/proc/self/status").is_file(), reason="an allocator of another kind")
def test_a_process_holds_what_the_formula_says():
    """A forward pass whose logits are large beside the noise of a MB, of an allocator that keeps nothing."""
    shape = Shape.of(load_reasoner("abacus").model.config)
    expected = 64 * memory(shape, Lengths(64, 184, 8), 4)["forward pass"]
    seen = memory_peaks.peak("forward pass", 256, traces=64, reasoner="abacus", keeping=False)
    assert seen == pytest.approx(expected, rel=0.1)


# --- directions, time, a step of training ---------------------------------------------------------------------------


def test_longer_costs_more_and_the_table_is_in_forward_passes():
    shape = SHAPES["llama-3.2-3b"]
    short, long = Lengths(200, 800, 10), Lengths(200, 8000, 10)
    assert all(flops(shape, long)[name] > value for name, value in flops(shape, short).items())
    held, limited = memory(shape, short), "every sentence resampled 8 times"  # to so many tokens at once
    assert all(memory(shape, long)[name] > value for name, value in held.items() if name != limited)
    found = table(shape, short)
    assert found.loc["forward pass", "forwards"] == 1 and list(found.index) == list(memory(shape, short))
    assert found.notna().all(axis=None), "every method has TFLOP, forward passes and GB"
    assert found.loc["mask as published", "forwards"] > 100 * found.loc["mask, scope answer", "forwards"]


def test_time_is_arithmetic_and_starts():
    shape, lengths = SHAPES["llama-3.2-3b"], Lengths(200, 800, 10)
    work, free = flops(shape, lengths), costs.seconds(shape, lengths, rate=1e12, start=0)
    assert free == pytest.approx({name: value / 1e12 for name, value in work.items()})
    started = costs.seconds(shape, lengths, rate=1e12, start=1e-3)
    extra = {name: (started[name] - free[name]) / 1e-3 for name in work}
    assert extra["forward pass"] == pytest.approx(1) and extra["GRPO's gradient"] == pytest.approx(3)
    assert extra["mask, scope answer"] == pytest.approx(1 + 2 + 2 * costs.STEPS["answer"]), (
        "prefix, both ends, there and back"
    )
    assert extra["mask as published"] == pytest.approx(400) and extra["flow, after capture"] == 0
    assert extra["every sentence resampled 8 times"] > 13 * 410, (
        "a call a token, for 640 continuations of 410, 48 at once"
    )
    many = costs.seconds(shape, lengths, rate=1e12, start=1e-3, traces=8)
    assert many["mask, scope answer"] == pytest.approx(8 * free["mask, scope answer"] + 63e-3), "starts are shared"
    assert costs.measured_start(load_reasoner("abacus").model, rounds=2) < 5


def test_writing_is_bound_by_memory():
    shape, lengths = SHAPES["llama-3.1-8b"], Lengths(100, 990, 10)
    alone = writing_seconds(shape, lengths, 1, bandwidth=1e12)
    assert alone == pytest.approx(1000 * 2 * shape.parameters / 1e12, rel=0.02)
    assert writing_seconds(shape, lengths, 64, bandwidth=1e12) < 64 * alone / 10, "a batch shares the weights"


def test_a_grpo_step_is_writing_and_three_passes():
    shape, lengths = SHAPES["smollm2-135m"], Lengths(60, 130, 10)
    found = costs.grpo_step(shape, lengths, 64, at_once=16, rate=1e12, size=4)
    assert found.learning == pytest.approx(3 * 64 * flops(shape, lengths)["forward pass"] / 1e12)
    assert found.weights == training_bytes(shape, size=4) and found.writing < found.learning
    twice = costs.grpo_step(shape, lengths, 64, at_once=32, rate=1e12, size=4)
    tiles = footprints.tiles(shape, 3200, 4), footprints.tiles(shape, 6400, 4)
    assert twice.activations - tiles[1] == pytest.approx(2 * (found.activations - tiles[0]))
    assert twice.learning == found.learning
    started = costs.grpo_step(shape, lengths, 64, at_once=16, rate=1e12, size=4, start=0.01)
    assert started.writing - found.writing == pytest.approx(140 * 0.01), "a call for every token, all rollouts together"
    assert started.learning - found.learning == pytest.approx(3 * 4 * 0.01)
    assert "a step takes at least" in str(found)
    assert costs.measured_rate("cpu", size=128, rounds=2) > 1e6


def test_mistakes_are_named(monkeypatch):
    monkeypatch.setattr(memory_peaks.sys, "executable", shutil.which("false"))
    shape, lengths = SHAPES["qwen3-4b"], Lengths(1, 1, 1)
    for call, message in (
        (lambda: Lengths(0, 1, 1), "prompt=0"), (lambda: training_bytes(shape, lora=-1), "lora=-1"),
        (lambda: training_bytes(shape, size=3), "3 bytes"),
        (lambda: writing_seconds(shape, lengths, 1, bandwidth=0), "bandwidth"),
        (lambda: costs.seconds(shape, lengths, rate=0, start=0), "rate"),
        (lambda: costs.seconds(shape, lengths, rate=1, start=-1), "start=-1"),
        (lambda: memory_peaks.peak("forwards", 64), "unknown work 'forwards'"),
        (lambda: memory_peaks.peak("mask network", 4), "tokens=4"),
        (lambda: memory_peaks.peak("mask network", 32), r"failed \(1\): no message"),
    ):  # fmt: skip
        with pytest.raises(FaithlabError, match=message):
            call()
    config = SimpleNamespace(
        num_hidden_layers=2, hidden_size=8, num_attention_heads=2, vocab_size=10, tie_word_embeddings=True
    )
    config.get_text_config = lambda: config
    assert Shape.of(config).inner == 32, "what a configuration leaves out is as transformers has it"
