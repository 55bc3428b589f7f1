"""The CUDA path gives what the CPU path gives. Off by default: `python -m pytest -m gpu`."""

import dataclasses

import pytest
import torch
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces

from faithlab.faithfulness import token_effects
from faithlab.likelihood import answer_logp, reasoning_hidden_logp

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
