"""Exercises of notebook 04: what a mask is charged for, how it descends, and how deep its floor has to be."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from faithlab.exercises import compare, exercise, expect, tensor_of
from faithlab.granularity import Layout


@exercise
def mask_by_hand(answer: dict) -> str:
    """Objective, break-even sparsity, saliency and the slope of the smooth parametrisation, for four tokens."""
    shut, one, opened, n = 6.0, 0.8, 0.1, 4  # -log p of the answer under each mask, tokens
    slips = [
        (one + 4, "sparsity is charged on the mean of u, not on its sum: one token of four costs a quarter of it"),
        (-one + 4 / n, "the objective is minimised, so log p enters with a minus"),
        (one, "that is -log p alone; the price of the opened token is missing"),
    ]
    compare(answer["loss"], one + 4 / n, slips, "the objective is -log p plus sparsity times the mean of u", atol=5e-3)
    slips = [
        (shut - one, "that is the gain in log p; one opened token of four pays only a quarter of the sparsity for it"),
        (shut * n, "opening A does not bring log p back to 0: what is gained is 6 - 0.8 nats"),
        (shut - opened, "there the shut mask overtakes the open one; the question is when it overtakes A alone"),
        ((one - opened) / (1 - 1 / n), "there A alone overtakes all open; the question is when shut overtakes A alone"),
    ]
    compare(
        answer["shut_from"], (shut - one) * n, slips, "set 6 equal to 0.8 plus a quarter of the sparsity", atol=0.02
    )
    slips = [
        (0.75, "that is m / c, the sign as printed: 1 where a token stayed shut. Opened again is 1 - m / c"),
        (3.0, "that is how far the bias rose, in units of a score; saliency is the share of the way from c to 0"),
    ]
    compare(answer["saliency"], 0.25, slips, "saliency is 1 - m / c with m = -9 and c = -12", atol=5e-3)
    slips = [
        (-5.0, "that is the slope in u; to get to theta it is multiplied by du / dtheta = u (1 - u)"),
        (-5 * 0.02, "nearly: du / dtheta is u (1 - u), and you left out 1 - u"),
        (0.098, "the right size, but with the other sign: both slopes point the same way"),
        (-5 * 0.25, "that is the slope half open, at u = 0.5; the question is asked at u = 0.02"),
    ]
    slope = -5 * 0.02 * 0.98
    compare(answer["slope"], slope, slips, "the slope in theta is that in u times u (1 - u)", atol=1e-3)
    return "a price on the mean lets few tokens pay; near the floor the smooth mask passes on hardly any gradient"


class ToyAnswer:
    """A row looks at n reasoning tokens and at itself; p(answer) is its attention on the needed ones. In the library's
    descent it takes the place of `masked_answer.MaskedAnswer`, and keeps the biases that were tried."""

    def __init__(self, scores: Tensor, needed: Tensor, direction: int = 1):
        self.scores, self.needed, self.direction = scores.double(), needed, direction
        self.model, self.ids = SimpleNamespace(dtype=torch.float64), scores
        self.targets, self.tried = torch.zeros(1, 1), []

    def __len__(self) -> int:
        return 1

    def of(self, bias) -> Tensor:
        """log p(answer) under the biases [token]."""
        seen = torch.cat([self.scores + torch.as_tensor(bias).double(), torch.zeros(1).double()]).softmax(0)
        return torch.log(0.02 + 0.96 * seen[:-1][self.needed].sum())

    def logp(self, bias: Tensor | None = None) -> Tensor:
        """As `MaskedAnswer.logp`, of a batch of one."""
        self.tried.append(None if bias is None else bias[0].detach())
        return self.direction * self.of(torch.zeros(len(self.scores)) if bias is None else bias[0])[None]


def descended(toy: ToyAnswer, floor: float, sparsity: float, start: float, rate: float, steps: int) -> Tensor:
    """The library's own descent on a toy answer; returns u."""
    from faithlab.saliency import _descend

    n = len(toy.scores)
    layout = Layout(("token",), (), torch.ones(1, n).bool(), torch.zeros(1, n).long(), torch.tensor([n]))
    limits = dict(steps=steps, normalise=False, patience=steps + 1, tolerance=0.0)
    settings = dict(floor=floor, ceiling=0.0, sparsity=sparsity, **limits)
    return 1 - _descend(toy, layout, torch.optim.SGD, rate, "projected", start, **settings)["bias"][0] / floor


@exercise
def mask_descent(function) -> str:
    """The projected descent on a mask, against the library's on toy answers."""
    generator = torch.Generator().manual_seed(0)
    for n, floor, sparsity, start, rate, steps in (
        (1, -6.0, 1.0, 0.5, 0.05, 6),
        (4, -6.0, 2.0, 0.5, 0.05, 8),
        (6, -12.0, 4.0, 0.5, 0.1, 12),
        (5, -8.0, 0.0, 0.25, 0.02, 6),
        (5, -12.0, 4.0, 0.5, 0.3, 5),  # overshoots: neither the last mask nor the one behind it is the best
    ):
        scores, needed = 3 * torch.rand(n, generator=generator), torch.arange(n) == n // 2
        scores[needed] += 4
        toy = ToyAnswer(scores, needed)
        given = dict(toy=toy, floor=floor, sparsity=sparsity, start=start, rate=rate, steps=steps)

        def run(given=given, **change):
            return descended(**{**given, **change})

        want = run()
        last = 1 - toy.tried[-1] / floor
        where = f"n={n}, floor {floor:g}, sparsity {sparsity:g}, rate {rate:g}, {steps} steps: "
        got = tensor_of(function(toy.of, n, floor, sparsity, start, rate, steps))
        expect(got.shape == (n,), f"{where}one saliency a token, not shape {tuple(got.shape)}")
        if torch.allclose(got, run(steps=steps + 1), atol=1e-3):
            continue  # who evaluates behind the last step, too, is right
        downhill = ToyAnswer(scores, needed, direction=-1)
        slips = [
            (floor * (1 - want), "those are the biases m; the saliency is u = 1 - m / c"),
            (1 - want, "that is m / c, 1 where a token stayed shut; the saliency is u = 1 - m / c"),
            (run(sparsity=sparsity * n), "sparsity is charged on the mean of u; you charged it on the sum"),
            (run(toy=downhill), "the loss has -log p in it: you drove the answer's likelihood down"),
            (run(rate=rate / floor**2), "the steps are too small: the gradient is that in u, not that in m"),
            (last, "that is the mask of the last step; a descent can overshoot, so keep the one with the lowest loss"),
        ]
        j = int((got - want).abs().argmax())
        more = f"u of token {j} is {want[j]:.3f}, yours {got[j]:.3f}. Evaluate, note the best, step, put back"
        if not (got.min() >= 0 and got.max() <= 1):
            more = "a value lies outside 0 to 1: put u back after every step, before it is evaluated again"
        compare(got, want, [(wrong, where + why) for wrong, why in slips], where + more, atol=1e-3)
    return "the library's descent, on five toy answers"


def attention_on(lead: float, floor: float) -> float:
    """Attention on a needed token at the floor, whose score leads three positions that no mask reaches."""
    return 1 / (1 + 3 * math.exp(-lead - floor))


@exercise
def floor_without_truth(function) -> str:
    """A rule of the learner's design for the floor, on models whose attention is soft, sharp, and hardly of use."""
    for lead, base in ((2, 0.02), (6.5, 0.02), (14.2, 0.02), (22, 0.02), (9, 0.7)):

        def logp(floor: float, lead=lead, base=base) -> float:  # base is p(answer) without the needed token
            return math.log(base + (0.98 - base) * attention_on(lead, floor))

        cut = logp(0) - math.log(base)
        floor = function(lambda c, logp=logp: logp(0) - logp(float(c)), cut)
        if cut < 1:
            expect(
                floor is None,
                f"on a model that hardly needs its reasoning, where the cut costs {cut:.1f} nats, your rule gives the "
                f"floor {floor}: there is next to nothing to restore, so no mask should be read",
            )
            continue
        told = f"on a model with a lead of {lead:g} and a cut that costs {cut:.1f} nats, "
        expect(floor is not None, f"{told}your rule finds no floor: look further down")
        c = float(floor)
        expect(c < 0, f"{told}your floor is {c:g}: a floor is a bias below 0, or it suppresses nothing")
        lost, seen = logp(0) - logp(c), attention_on(lead, c)
        expect(
            lost >= 0.9 * cut - 0.01,
            f"{told}your floor {c:g} takes only {lost:.1f} of them: the answer hardly leaves, and a mask has nothing "
            "to restore. Go deeper",
        )
        slope = (0.98 - base) * seen * (1 - seen) / math.exp(logp(c))
        expect(
            slope >= 0.01,
            f"{told}your floor {c:g} leaves a gradient of {slope:.0e} on the needed token: a descent that starts there "
            "stays there. Take the shallowest floor that does",
        )
    return (
        "deep enough that the answer leaves, shallow enough that a gradient comes back, and none where nothing is lost"
    )
