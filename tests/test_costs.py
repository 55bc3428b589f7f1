"""Estimated costs: a forward pass, a pass back and the steps of the mask against torch's own counter of operations,
weights and cache against what tensors hold. The other rows are sums of these and are tested for their direction."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from tiny import ARCHITECTURES, tiny_reasoner
from torch.utils.flop_counter import FlopCounterMode

from faithlab import costs
from faithlab.costs import SHAPES, Lengths, Shape, flops, memory, table, training_bytes, writing_seconds
from faithlab.errors import FaithlabError
from faithlab.models import load_reasoner
from faithlab.saliency import optimise_mask


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def eager():
    """abacus with eager attention, whose products the counter sees."""
    reasoner = load_reasoner("abacus")
    reasoner.model.set_attn_implementation("eager")
    return reasoner


def test_the_examples_of_the_docstring():
    assert doctest.testmod(costs).failed == 0 and doctest.testmod(costs).attempted > 2


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
    row = dict(question="Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?", answer="7")
    reasoning = " ".join(["Ada has 3 pears.", "Ben has Ada + 4 = 3 + 4 = 7 pears."] * 6)
    t = eager.trace(row, reasoning, "7")
    shape, n = Shape.of(eager.model.config), len(t)

    def one(scope, steps):
        options = dict(steps=steps, patience=steps, scope=scope, pad_id=eager.pad_id)
        return counted(lambda: optimise_mask(eager.model, [t], **options))

    for scope, rows in (("answer", t.answer.stop - 1 - t.reasoning.stop), ("all", t.answer.stop - 1 - t.prompt.stop)):
        step = (one(scope, 9) - one(scope, 3)) / 6
        expected = shape.back_and_forth(rows, n, logits=t.answer.stop - t.answer.start)
        assert expected == pytest.approx(step, rel=0.15), scope


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "gpt2"])  # its feed-forward is not gated
def test_parameters_of_every_architecture(architecture):
    model = tiny_reasoner(architecture).model
    assert Shape.of(model.config).parameters == pytest.approx(model.num_parameters(), rel=0.05)


def test_published_shapes_have_the_published_sizes():
    billions = {"smollm2-135m": 0.1345, "llama-3.2-3b": 3.21, "qwen3-4b": 4.02, "llama-3.1-8b": 8.03,
                "llama-3.1-70b": 70.6}  # fmt: skip
    assert {k: s.parameters / 1e9 for k, s in SHAPES.items()} == pytest.approx(billions, rel=0.005)


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


def test_longer_costs_more_and_the_table_is_in_forward_passes():
    shape = SHAPES["llama-3.2-3b"]
    short, long = Lengths(200, 800, 10), Lengths(200, 8000, 10)
    assert all(flops(shape, long)[name] > value for name, value in flops(shape, short).items())
    assert all(memory(shape, long)[name] > value for name, value in memory(shape, short).items())
    found = table(shape, short)
    assert found.loc["forward pass", "forwards"] == 1 and set(memory(shape, short)) <= set(found.index)
    assert found.loc["mask as published", "forwards"] > 100 * found.loc["mask, scope answer", "forwards"]


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
    assert twice.activations == pytest.approx(2 * found.activations) and twice.learning == found.learning
    assert "a step takes at least" in str(found)
    assert costs.measured_rate("cpu", size=128, rounds=2) > 1e6


def test_mistakes_are_named():
    for call, message in (
        (lambda: Lengths(0, 1, 1), "prompt=0"), (lambda: training_bytes(SHAPES["qwen3-4b"], lora=-1), "lora=-1"),
        (lambda: training_bytes(SHAPES["qwen3-4b"], size=3), "3 bytes"),
        (lambda: writing_seconds(SHAPES["qwen3-4b"], Lengths(1, 1, 1), 1, bandwidth=0), "bandwidth"),
    ):  # fmt: skip
        with pytest.raises(FaithlabError, match=message):
            call()
    config = SimpleNamespace(
        num_hidden_layers=2, hidden_size=8, num_attention_heads=2, vocab_size=10, tie_word_embeddings=True
    )
    config.get_text_config = lambda: config
    assert Shape.of(config).inner == 32, "what a configuration leaves out is as transformers has it"
