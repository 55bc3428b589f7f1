"""What credit and saliency add to a step of GRPO, in forward passes of the same rollouts, and our trainer beside TRL's.

A ratio r against the forward pass means 1/r forward passes: an aim of 1.25 is 0.8 of one.
"""

import functools
import statistics
import tempfile

import harness
import pytest
import torch
from bench_reasoners import reasoner
from transformers import PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from faithlab import credit, tasks
from faithlab.attention import capture
from faithlab.batches import collate
from faithlab.flow import trace_flows
from faithlab.grpo import FaithfulGRPOConfig, FaithfulGRPOTrainer, quick_rollouts
from faithlab.mask_network import MaskNetwork, MaskTrainer, predict_masks
from faithlab.models import load_reasoner
from faithlab.rewards import SaliencyReward, outcome
from faithlab.rollouts import score_rollouts
from faithlab.training import prompts_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
PROMPTS, ROLLOUTS = 16, 8
PAIRS = 12  # of whole runs: one pair's ratio varies by a tenth


@functools.cache
def rollouts():
    """A generation batch as training sees it."""
    r = reasoner("abacus")
    problems = tasks.load("stories", split="train", n=PROMPTS, seed=0, hops=(2, 4))
    return r.generate(list(problems), ROLLOUTS, seed=0)


@torch.no_grad()
def forward() -> int:
    """One plain forward pass of the rollouts, logits of all tokens included."""
    r, traces = reasoner("abacus"), rollouts()
    b = collate(traces, pad_id=r.pad_id, device=r.device)
    r.model(input_ids=b.input_ids, attention_mask=b.attention_mask, position_ids=b.position_ids, use_cache=False)
    return len(traces)


@pytest.mark.parametrize("name", [s for s in credit.STRATEGIES if s != "uniform"])
def test_credit(bench, name):
    r, traces = reasoner("abacus"), rollouts()
    width = max(len(t) - t.prompt.stop for t in traces)
    mask = torch.tensor([[float(c < len(t) - t.prompt.stop) for c in range(width)] for t in traces])

    def ours():
        scores, _ = score_rollouts(credit.NEEDS[name], r, traces, width)
        credit.weights(name, scores, mask)
        return len(traces)

    attention = name in ("received_attention", "local_chunk", "global_anchor", "coupled_rhythm", "flow")
    bench(f"credit {name} / forward pass", ours, forward, unit="rollouts/s", aim=1 / 0.8 if attention else None)


def test_flow_after_capture(bench):
    r, traces = reasoner("abacus"), [t for t in rollouts() if t.answered]
    read = capture(r.model, traces, want=("mean_map",), pad_id=r.pad_id).traces

    def ours():
        for t, found in zip(traces, read, strict=True):
            trace_flows(found.mean_map[None], [t.prompt], [t.answer])
        return len(traces)

    bench("flow from maps at hand / forward pass", ours, forward, unit="rollouts/s", aim=1 / 0.1)


@pytest.mark.parametrize(
    ("label", "options", "aim"),
    [
        ("optimiser", dict(), 1 / 5),
        ("cut, drop", dict(method="cut", reduction="drop"), None),
        ("cut, sufficiency", dict(method="cut", reduction="sufficiency"), None),
        ("network, learning along", dict(method="network"), None),
    ],
)
def test_saliency_reward(bench, label, options, aim):
    r, traces = reasoner("abacus"), rollouts()
    reward = SaliencyReward(r, **options)
    r.model.train(label.endswith("along"))

    def ours():
        reward.of_traces(traces)
        return len(traces)

    bench(f"saliency reward, {label} / forward pass", ours, forward, unit="rollouts/s", aim=aim)
    r.model.eval()


def test_mask_network_predicts(bench):
    r, traces = reasoner("abacus"), [t for t in rollouts() if t.answered]
    network = MaskNetwork.for_model(r.model)
    MaskTrainer(network, pad_id=r.pad_id).step(r.model, traces[:8])

    def ours():
        predict_masks(network, r.model, traces, pad_id=r.pad_id)
        return len(traces)

    bench("mask network's prediction / forward pass", ours, forward, unit="rollouts/s", aim=1 / 1.1)


def step_times(kind, steps: int = 4) -> list[float]:
    """Seconds of each step of a fresh trainer, the first left out."""
    set_seed(0)
    r = load_reasoner("abacus")
    options = dict(
        max_steps=steps + 1, per_device_train_batch_size=64, num_generations=8, max_completion_length=160,
        use_cpu=not torch.cuda.is_available(), bf16=False, save_strategy="no", report_to="none", logging_steps=1,
        disable_tqdm=True, scale_rewards="group", learning_rate=1e-5,
    )  # fmt: skip
    rows = tasks.load("stories", split="train", n=8 * (steps + 1), seed=0, hops=(2, 3))
    passed = dict(model=r.model, reward_funcs=outcome, train_dataset=prompts_of(r, rows, "stories"),
                  processing_class=r.tokenizer, rollout_func=quick_rollouts)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if kind is GRPOTrainer:
            trainer = GRPOTrainer(args=GRPOConfig(output_dir=folder, **options), **passed)
            trainer.reasoner = r  # which `quick_rollouts` asks for
        else:
            trainer = FaithfulGRPOTrainer(args=FaithfulGRPOConfig(output_dir=folder, **options), reasoner=r, **passed)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [row["step_time"] for row in trainer.state.log_history if "step_time" in row][1:]


def test_uniform_credit_costs_nothing(bench_row):
    """Whole runs in turn, ours and TRL's, on the same rollouts; the median step of each, and the median of the
    pairs' ratios. Which of the two goes first changes from pair to pair: the second finds memory at hand that the first
    had to ask for."""
    step_times(GRPOTrainer)
    pairs = []
    for number in range(PAIRS):
        kinds = (FaithfulGRPOTrainer, GRPOTrainer)[:: 1 - 2 * (number % 2)]
        found = {kind: step_times(kind) for kind in kinds}
        pairs.append((found[FaithfulGRPOTrainer], found[GRPOTrainer]))
    ours, plain = (statistics.median(t for pair in pairs for t in pair[k]) for k in (0, 1))
    ratios = [statistics.median(b) / statistics.median(a) for a, b in pairs]
    bench_row(
        harness.Row("trainer, credit uniform / TRL's GRPOTrainer", "steps/s", 1 / ours, 1 / plain,
                    statistics.median(ratios), min(ratios), max(ratios), len(pairs), 0.97)
    )  # fmt: skip
