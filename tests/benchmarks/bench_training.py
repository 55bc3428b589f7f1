"""What credit and saliency add to a step of GRPO, in forward passes of the same rollouts, and our trainer beside TRL's.

A ratio r against the forward pass means 1/r forward passes: an aim of 1.25 is 0.8 of one.
"""

import functools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import harness
import pytest
import torch
from bench_reasoners import reasoner
from transformers import PrinterCallback, TrainerCallback
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
PAIRS = 40  # of steps: one pair's ratio varies by a tenth


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
    maps, prompts, answers = [f.mean_map for f in read], [t.prompt for t in traces], [t.answer for t in traces]

    def ours():
        return len(trace_flows(maps, prompts, answers))

    bench("flow from maps at hand / forward pass", ours, forward, unit="rollouts/s", aim=1 / 0.1)


@pytest.mark.parametrize(
    ("label", "options", "aim"),
    [
        ("optimiser", dict(), 1 / 5),
        ("cut, drop", dict(method="cut", reduction="drop"), None),
        ("cut, sufficiency", dict(method="cut", reduction="sufficiency"), None),
        ("network", dict(method="network", train_network=False), 1 / 1.1),
        ("network, learning along", dict(method="network"), 1 / 1.1),
    ],
)
def test_saliency_reward(bench, label, options, aim):
    r, traces = reasoner("abacus"), rollouts()
    reward = SaliencyReward(r, **options)
    r.model.train(label.endswith("along"))

    def ours():
        reward.of_traces(traces)
        return len(traces)

    # single rounds lie far apart, on both sides of an aim: see the range that is printed
    bench(f"saliency reward, {label} / forward pass", ours, forward, unit="rollouts/s", aim=aim, rounds=11)
    r.model.eval()


def test_mask_network_predicts(bench):
    r, traces = reasoner("abacus"), [t for t in rollouts() if t.answered]
    network = MaskNetwork.for_model(r.model)
    MaskTrainer(network, pad_id=r.pad_id).step(r.model, traces[:8])

    def ours():
        predict_masks(network, r.model, traces, pad_id=r.pad_id)
        return len(traces)

    bench("mask network's prediction / forward pass", ours, forward, unit="rollouts/s")


class InTurn(TrainerCallback):
    """Lets two trainers, each in a thread, take steps in a fixed order, one at a time, and times the steps."""

    def __init__(self, name: str, order: list[str], free: threading.Condition):
        self.name, self.order, self.free, self.seconds = name, order, free, []

    def on_step_begin(self, args, state, control, **kwargs):
        with self.free:
            if not self.free.wait_for(lambda: self.order[0] == self.name, timeout=300):
                raise RuntimeError("the other trainer has stopped")
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)
        with self.free:
            self.order.pop(0)
            self.free.notify_all()


def trainer_of(kind, turn: InTurn, steps: int, folder: str):
    """Ours or TRL's trainer, ready to run on the same prompts."""
    r = load_reasoner("abacus")
    options = dict(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=64, num_generations=8,
        max_completion_length=160, use_cpu=not torch.cuda.is_available(), bf16=False, save_strategy="no",
        report_to="none", logging_steps=1, disable_tqdm=True, scale_rewards="group", learning_rate=1e-5,
    )  # fmt: skip
    rows = tasks.load("stories", split="train", n=8 * steps, seed=0, hops=(2, 3))
    passed = dict(model=r.model, reward_funcs=outcome, train_dataset=prompts_of(r, rows, "stories"),
                  processing_class=r.tokenizer, rollout_func=quick_rollouts, callbacks=[turn])  # fmt: skip
    if kind is GRPOTrainer:
        trainer = GRPOTrainer(args=GRPOConfig(**options), **passed)
        trainer.reasoner = r  # which `quick_rollouts` asks for
    else:
        trainer = FaithfulGRPOTrainer(args=FaithfulGRPOConfig(**options), reasoner=r, **passed)
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_uniform_credit_costs_nothing(bench_row, tmp_path):
    """Ours and TRL's trainer take steps in turn on the same prompts, now one first, now the other. On a shared machine
    the same step takes a tenth more or less from minute to minute, so only neighbouring steps are compared; two pairs,
    one in each order, make one ratio, their geometric mean."""
    order = ["ours", "TRL", "TRL", "ours"] * (PAIRS // 2)
    order = ["ours", "TRL", *order, ""]  # a first step each, which is not counted, and nobody's turn at the end
    free = threading.Condition()
    turns = [InTurn(name, order, free) for name in ("ours", "TRL")]
    kinds = (FaithfulGRPOTrainer, GRPOTrainer)
    trainers = [trainer_of(k, t, PAIRS + 1, str(tmp_path / t.name)) for k, t in zip(kinds, turns, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(trainer.train) for trainer in trainers]:
            run.result()
    ours, plain = (turn.seconds[1:] for turn in turns)
    each = [b / a for a, b in zip(ours, plain, strict=True)]
    ratios = [statistics.geometric_mean(pair) for pair in zip(each[::2], each[1::2], strict=True)]
    bench_row(
        harness.Row("trainer, credit uniform / TRL's GRPOTrainer", "steps/s",
                    1 / statistics.median(ours), 1 / statistics.median(plain),
                    statistics.median(ratios), min(ratios), max(ratios), len(ratios), 0.97)
    )  # fmt: skip
