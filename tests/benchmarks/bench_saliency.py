"""The mask optimiser against the published recipe done plainly: one trace at a time, 200 full passes there and back."""

import functools

import harness
import pytest
import torch
from bench_reasoners import reasoner

from faithlab import tasks
from faithlab.arms import Arm
from faithlab.attention import causal_bias
from faithlab.biases import frozen
from faithlab.mask_network import MaskNetwork, MaskTrainer, predict_masks
from faithlab.memory_peaks import peak
from faithlab.planted import planted
from faithlab.ranking import auroc, spearman
from faithlab.saliency import FLOOR, RATE, SPARSITY, optimise_mask
from faithlab.tasks.fewshot import for_task
from faithlab.training import make_trainer

pytestmark = pytest.mark.timeout(2400)
STEPS = 200  # of the published recipe


def plain_mask(model, trace, scope: str, steps: int = STEPS):
    """Saliency by the same objective without any saving: the whole trace forward and back at every step."""
    ids, n, span = trace.input_ids[None], len(trace), trace.reasoning
    ones, rows = torch.ones_like(ids), torch.arange(trace.answer.start - 1, trace.answer.stop - 1)
    felt = torch.zeros(n, span.stop - span.start, dtype=torch.bool)
    for j in range(span.stop - span.start):
        felt[span.stop if scope == "answer" else span.start + j + 1 :, j] = True
    u = torch.full((span.stop - span.start,), 0.5, requires_grad=True)
    optimiser, best, found = torch.optim.Adam([u], lr=RATE), torch.inf, None
    with frozen(model):
        for _ in range(steps):
            bias = torch.zeros(n, n).index_add(1, torch.arange(span.start, span.stop), felt * (FLOOR * (1 - u)))
            masks = causal_bias(ones, dtype=torch.float32, bias=bias[None])
            logits = model(input_ids=ids, attention_mask=masks).logits[0, rows].log_softmax(-1)
            loss = SPARSITY * u.mean() - logits.gather(1, trace.input_ids[trace.answer][:, None]).sum()
            optimiser.zero_grad()
            loss.backward()
            if loss.item() < best:
                best, found = loss.item(), u.detach().clone()
            optimiser.step()
            with torch.no_grad():
                u.clamp_(0, 1)
    return found


def judged_by(r, hops, n=96, seed=1):
    """Traces whose decisive token is known."""
    rows = tasks.load("stories", split="test", n=n, seed=seed, hops=hops)
    return [t for t in r.generate(list(rows), temperature=0) if t.answered and planted(t).known]


@functools.cache
def traces(name: str, n: int):
    r = for_task(reasoner(name), "stories")
    if name == "abacus":
        return judged_by(r, (2, 4), n, seed=0)
    rows = tasks.load("stories", split="test", n=n, seed=0, hops=(1, 1), distractors=(0, 1))
    return [r.trace(row, row["reasoning"], row["response"]) for row in rows]


@pytest.mark.parametrize(("scope", "aim"), [("answer", 100), ("all", 3)])
def test_masks_on_smollm2(bench, scope, aim):
    model, batch = reasoner("smollm2").model, traces("smollm2", 16 if scope == "answer" else 4)
    length = sum(map(len, batch)) / len(batch)

    def plain():  # 2 traces x 10 steps, counted as the share of 200 steps a trace that they are
        for t in batch[:2]:
            plain_mask(model, t, scope, steps=10)
        return 2 * 10 / STEPS

    name = f"mask, smollm2, {length:.0f} tokens, scope {scope}, plain extrapolated"
    bench(name, lambda: len(optimise_mask(model, batch, scope=scope).mask), plain, unit="traces/s", aim=aim, rounds=2)


def test_where_scope_all_saves(bench):
    """Caching alone; caching and batching; and both with early stopping, each against the plain recipe."""
    model, batch = reasoner("abacus").model, traces("abacus", 48)
    every = dict(scope="all", steps=STEPS, patience=STEPS)
    ways = {
        "cache": lambda: optimise_mask(model, batch[:2], batch_size=1, **every),
        "cache, batch": lambda: optimise_mask(model, batch, **every),
        "cache, batch, early stop": lambda: optimise_mask(model, batch, scope="all"),
    }

    def plain():
        plain_mask(model, batch[0], "all", steps=40)
        return 40 / STEPS

    for name, way in ways.items():
        aim = 3 if name.endswith("stop") else None
        bench(
            f"mask, abacus, scope all: {name}",
            lambda way=way: len(way().mask),
            plain,
            unit="traces/s",
            aim=aim,
            rounds=2,
        )


@pytest.mark.parametrize(("name", "n", "aim"), [("abacus", 60, (0.95, 0.9)), ("smollm2", 4, (None, None))])
def test_the_quick_mask_is_the_plain_one(bench_row, name, n, aim):
    model, some = reasoner(name).model, traces(name, 64 if name == "abacus" else 16)[:n]
    ours = optimise_mask(model, some).values
    steps = STEPS if name == "abacus" else 40
    plain = [plain_mask(model, t, "answer", steps) for t in some]
    same = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(ours, plain, strict=True)) / len(some)
    rank = [r for a, b in zip(ours, plain, strict=True) if (r := spearman(a, b)) == r]
    rank = sum(rank) / max(1, len(rank))
    label = f"mask, {name}, n = {len(some)}, {steps} plain steps"
    bench_row(harness.single(f"{label}: same highest token", "share", same, 1, same, aim[0]))
    bench_row(harness.single(f"{label}: rank correlation", "rho", rank, 1, rank, aim[1]))


def trained_network(hops) -> MaskNetwork:
    """A mask network for abacus, by eight passes over 320 stories."""
    r = reasoner("abacus")
    rows = list(tasks.load("stories", split="validation", n=320, seed=0, hops=hops))
    lessons = [t for t in r.generate(rows, temperature=0) if t.answered]
    torch.manual_seed(0)
    network = MaskNetwork.for_model(r.model)
    trainer = MaskTrainer(network, rate=3e-3, pad_id=r.pad_id)
    for _ in range(8):
        for first in range(0, len(lessons), 16):
            trainer.step(r.model, lessons[first : first + 16])
    return network


def found_decisive(scores, judged) -> float:
    """Mean AUROC of the decisive token."""
    truth = [planted(t).decisive for t in judged]
    return sum(auroc(s, t) for s, t in zip(scores, truth, strict=True)) / len(judged)


def beside_the_optimiser(bench_row, what, networks, r, judged):
    """A row for each network: its AUROC over the optimiser's on the same traces."""
    best = found_decisive(optimise_mask(r.model, judged).values, judged)
    for label, network in networks.items():
        own = found_decisive(predict_masks(network, r.model, judged, pad_id=r.pad_id), judged)
        name = f"mask network{label}, {what}, n = {len(judged)}: AUROC over optimiser's (aim: 0.03 below)"
        bench_row(harness.single(name, "AUROC", own, best, own / best, aim=(best - 0.03) / best))


def test_mask_network(bench, bench_row):
    r, judged = reasoner("abacus"), traces("abacus", 96)
    network = trained_network((2, 4))
    beside_the_optimiser(bench_row, "abacus", {"": network}, r, judged)
    bench(
        "mask network against the optimiser, abacus, scope answer",
        lambda: len(predict_masks(network, r.model, judged, pad_id=r.pad_id)),
        lambda: len(optimise_mask(r.model, judged).mask),
        unit="traces/s",
        aim=10,
    )


def test_mask_network_on_longer_reasoning(bench_row):
    r = reasoner("abacus")
    beside_the_optimiser(bench_row, "2-3 hops learnt, 5 judged", {"": trained_network((2, 3))}, r, judged_by(r, (5, 5)))


def test_mask_network_after_drift(bench_row, tmp_path):
    """Forty steps of GRPO: one network stays as it was, another learns along."""
    stale = trained_network((2, 4))
    arm = Arm(problems=dict(hops=(2, 4)), steps=40, saliency=dict(method="network"), balance=dict(weight=0.0))
    trainer = make_trainer(arm, 0, tmp_path, quiet=True, save=False)
    along = trainer.reward_funcs[0].saliency.network
    along.load_state_dict(stale.state_dict())
    trainer.train()
    r = trainer.reasoner
    r.model.eval()
    networks = {", as it was": stale, ", learning along": along}
    beside_the_optimiser(bench_row, "policy after 40 steps of GRPO", networks, r, judged_by(r, (2, 4)))


def test_memory_of_the_mask(bench_row):
    ours, plain = peak("mask, scope answer", 256, traces=16), peak("forward pass", 256, traces=16)
    name = "extra memory, smollm2, 16 x 256 tokens, plain forward pass / mask"
    bench_row(harness.single(name, "MB", ours / 2**20, plain / 2**20, plain / ours, aim=1 / 1.5))
