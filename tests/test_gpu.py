"""The CUDA path gives what the CPU path gives. Off by default: `python -m pytest -m gpu`."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from tiny import ARCHITECTURES, byte_reasoner, saved, tiny_reasoner, tiny_traces

from faithlab import training
from faithlab.arms import Arm
from faithlab.attention import capture
from faithlab.faithfulness import token_effects
from faithlab.flow import trace_flow, trace_flows
from faithlab.likelihood import answer_logp, reasoning_hidden_logp
from faithlab.masking import masked_answers
from faithlab.models import load_reasoner
from faithlab.rewards import SaliencyReward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_cuda(reasoner, dtype=torch.float32):
    return dataclasses.replace(reasoner, model=reasoner.model.to("cuda", dtype))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_likelihood_equals_the_cpu(architecture, scope):
    cpu = tiny_reasoner(architecture)
    traces = tiny_traces(cpu)
    expected = answer_logp(cpu, traces), reasoning_hidden_logp(cpu, traces, scope=scope)
    gpu = on_cuda(tiny_reasoner(architecture))
    got = answer_logp(gpu, traces), reasoning_hidden_logp(gpu, traces, scope=scope)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_generation_and_effects_run_in_bfloat16():
    gpu = on_cuda(tiny_reasoner("llama"), torch.bfloat16)
    written = gpu.generate(["Ada has 3 pears. How many pears does Ada have?"] * 3, n=2, seed=1)
    assert len(written) == 6
    effects = token_effects(gpu, tiny_traces(gpu), scope="all")
    assert effects["effect"].notna().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_capture_and_masking_equal_the_cpu(architecture):
    cpu, gpu = tiny_reasoner(architecture), on_cuda(tiny_reasoner(architecture))
    traces = tiny_traces(cpu)
    want = ("profiles", "maps", "mean_map", "received", "entropy")
    one, two = (capture(r.model, traces, want=want, horizon=(2, 9)) for r in (cpu, gpu))
    for a, b in zip(one.traces, two.traces, strict=True):
        for name in ("waad", "fai", "mean_map", "received", "entropy"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=2e-3, rtol=0, equal_nan=True)
    hidden = [[t.reasoning.start] if t.reasoning.stop > t.reasoning.start else [] for t in traces]
    assert masked_answers(cpu, traces, hidden) == masked_answers(gpu, traces, hidden)


def test_flow_equals_the_cpu():
    maps = torch.rand(4, 50, 50).tril()
    maps = maps / maps.sum(-1, keepdim=True)
    spans = [slice(0, 8)] * 4, [slice(45, 50)] * 4
    for a, b in zip(trace_flows(maps, *spans), trace_flows(maps.cuda(), *spans), strict=True):
        torch.testing.assert_close(a.inflow, b.inflow.cpu())
        assert a.dominant_paths()[0][0] == b.dominant_paths()[0][0] and a.hubs() == b.hubs()
    assert trace_flow(maps[0].cuda(), slice(0, 8), slice(45, 50)).table()["throughput"].notna().all()


@pytest.mark.parametrize("options", [
    dict(steps=5), dict(method="network"), dict(method="cut", reduction="drop"),
    dict(method="cut", reduction="sufficiency"),
])  # fmt: skip
def test_saliency_rewards_equal_the_cpu(options):
    found = []
    for move in (lambda r: r, on_cuda):
        reasoner = move(tiny_reasoner())
        torch.manual_seed(0)
        found.append(SaliencyReward(reasoner, **options).of_traces(tiny_traces(reasoner)))
    cpu, gpu = ([math.nan if r is None else r for r in rewards] for rewards in found)
    assert gpu == pytest.approx(cpu, abs=5e-3, nan_ok=True)


@pytest.mark.parametrize("more", [
    dict(saliency={"method": "network"}, balance={"mode": "auto"}, credit={"name": "coupled_rhythm"}),
    dict(saliency={"steps": 3}, credit={"name": "flow"}, lora=2),
    dict(credit={"name": "saliency", "saliency": {"steps": 3}}),
])  # fmt: skip
def test_a_run_in_bfloat16_learns_and_leaves_a_model_that_loads(tmp_path, more):
    saved(byte_reasoner(), tmp_path / "model")
    arm = Arm(name="small", reasoner=str(tmp_path / "model"), problems={"hops": [1, 1]}, steps=2, prompts=2, rollouts=4,
              max_completion_length=48, test_problems=2, save_every=1, **more)  # fmt: skip
    training.train(arm, 0, tmp_path / "run", quiet=True)
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert log["step"].tolist() == [1, 2] and log["grad_norm"].notna().all()
    load_reasoner(str(tmp_path / "run" / "last"))


def test_a_mask_network_follows_the_policy_to_its_device():
    """The reward is made while the model is on the CPU, as by whoever lets the trainer move it."""
    cpu = tiny_reasoner()
    reward = SaliencyReward(cpu, method="network")
    cpu.model.to("cuda").train()
    for _ in range(2):
        assert all(r is None or 0 <= r <= 1 for r in reward.of_traces(tiny_traces(cpu)))
