"""Exercises of notebook 06: from rewards to advantages, and through the clipped loss."""

from __future__ import annotations

import torch
from torch import Tensor

from faithlab.exercises import Wrong, compare, exercise, expect

CLIP = 0.2
PROBLEMS = torch.tensor([[1.0, 0.0], [1.04, 1.0], [0.03, 0.03]])  # R = o + 0.1 s of `scaling_by_hand`


def advantages(rewards: Tensor, scale: str = "group") -> Tensor:
    """TRL's advantages of rewards [problem, rollout]."""
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    return centred / ((rewards.std(1, keepdim=True) if scale == "group" else rewards.std()) + 1e-4)


def clipped(ratio: Tensor, advantage: Tensor) -> Tensor:
    """Minus the clipped objective of every token."""
    return -torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)


@exercise
def scaling_by_hand(answer: dict) -> str:
    """Advantages under three scalings where the outcome, only the second reward, or nothing varies."""
    none, group, batch = (advantages(PROBLEMS, scale)[:, 0] for scale in ("none", "group", "batch"))
    overall = PROBLEMS[:, 0] - PROBLEMS.mean()
    population = (PROBLEMS - PROBLEMS.mean(1, keepdim=True)) / (PROBLEMS.std(1, keepdim=True, correction=0) + 1e-4)
    for scale in ("none", "group"):
        given = torch.as_tensor(answer[scale], dtype=torch.float64)
        expect(given.shape == (3,), f"{scale}: three numbers are asked, the first rollout's of A, B and C")
        expect(not given.isnan().any(), f"{scale}: where all rollouts are paid alike the advantage is 0, never 0 / 0")
    slips = [
        (PROBLEMS[:, 0], "none: these are the rewards; subtract the mean of the problem's two rollouts"),
        (overall, "none: you subtracted the mean of all six; the baseline is the mean of the same problem's rollouts"),
    ]
    compare(answer["none"], none, slips, "none: R is o + 0.1 s; from it goes the mean over the two rollouts", atol=3e-3)
    slips = [
        (population[:, 0], "group: that divides by the standard deviation with n; TRL's has n - 1, so two give 0.707"),
        (none, "group: you did not divide by the problem's own standard deviation"),
        (batch, "group: you divided by the standard deviation of all six rewards; each problem has its own"),
        (group * torch.tensor([1, 0.04, 1]), "group: B's small spread is in numerator and denominator, and cancels"),
        (group * torch.tensor([1, 0.1, 1]), "group: the weight 0.1 is in numerator and denominator, and cancels"),
    ]
    otherwise = "group: divide what `none` gives by the problem's own standard deviation, of a sample (n - 1)"
    compare(answer["group"], group, slips, otherwise, atol=6e-3)
    slips = [
        (1.0, "batch_ratio: that is the ratio under group scaling; here both are divided by the same number"),
        (25.0, "batch_ratio: the other way round; B's advantage divided by A's"),
        (0.4, "batch_ratio: the saliency still has its weight of 0.1 in it"),
    ]
    otherwise = "batch_ratio: one number divides all advantages, so the ratio is that of the unscaled ones"
    compare(answer["batch_ratio"], batch[1] / batch[0], slips, otherwise, atol=3e-3)
    return "two rollouts that differ at all get 0.707 under group scaling; batch and none keep the proportion"


def _loss_slips(logp, old, advantage, gamma, mask) -> list[tuple]:
    """What usual mistakes give for the loss."""
    ratio, count = (logp - old).exp(), mask.sum().clamp(min=1)
    credited = advantage[:, None] * gamma
    tokens, bounded = clipped(ratio, credited), ratio.clamp(1 - CLIP, 1 + CLIP)

    def mean(values):
        return (values * mask).sum() / count

    apart = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
    return [
        (-mean(tokens), "the sign: a loss is minimised, so it is minus what the policy should have more of"),
        ((tokens * mask).sum(), "a sum, where the loss is a mean over the tokens written"),
        (tokens.mean(), "padding counts as well: mask it out, and divide by the number of tokens written"),
        (mean(tokens) * count / mask.numel(), "divide by the number of tokens written, not by the size of the table"),
        (
            apart.mean(),
            "you took each rollout's mean first: a token of a short rollout then weighs more. Pool all tokens",
        ),
        (
            mean(clipped(ratio, advantage[:, None].expand_as(gamma))),
            "gamma is missing: it scales each token's advantage",
        ),
        (
            mean(clipped(ratio * gamma, advantage[:, None])),
            "gamma is in the ratio and gets clipped; scale the advantage",
        ),
        (mean(-ratio * credited), "nothing is clipped: beyond 1 - eps to 1 + eps a token should gain no more"),
        (mean(-bounded * credited), "the minimum is missing: clipping alone also forgives tokens that got worse"),
        (mean(-torch.max(ratio * credited, bounded * credited)), "the larger of the two; the objective is the smaller"),
        (mean(clipped(logp - old, credited)), "the ratio is of probabilities: take exp of the difference of log p"),
        (mean(clipped(1 / ratio, credited)), "the ratio is upside down: the new policy over the old one"),
    ]


@exercise
def credited_loss(function) -> str:
    """The clipped loss with token credit, pooled over the tokens written, on random rollouts and odd masks."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 2, 4, 1), (1,), (6, 0, 3), (0, 0)]
    for lens in lengths:
        n, width = len(lens), max(1, *lens)
        logp, old = (-3 * torch.rand(n, width, generator=generator) for _ in range(2))
        gamma = 1 + 0.5 * (torch.rand(n, width, generator=generator) > 0.5)
        advantage = torch.randn(n, generator=generator)
        mask = (torch.arange(width) < torch.tensor(lens)[:, None]).float()
        tokens = clipped((logp - old).exp(), advantage[:, None] * gamma)
        right = (tokens * mask).sum() / mask.sum().clamp(min=1)
        if not any(lens):
            slips = [(float("nan"), "where nothing was written at all the loss is 0, not 0 / 0")]
        else:
            slips = _loss_slips(logp, old, advantage, gamma, mask)
        got = function(*(x.clone() for x in (logp, old, advantage, gamma, mask)))
        otherwise = f"rollouts of {', '.join(map(str, lens))} tokens: the loss is {right:.4f}, and yours is not; "
        compare(got, right, slips, otherwise + "take it token by token from the formula, then the mean")
    return "the clipped loss, pooled over tokens; credit scales the advantage and leaves the clipping alone"


@exercise
def value_against_gradient(cases: dict) -> str:
    """Two groups of the learner's design: loss 0 with a gradient everywhere, and a loss far from 0 with none."""
    found = {}
    for name in ("learns", "stuck"):
        rewards, ratio = (torch.as_tensor(cases[name][k], dtype=torch.float32) for k in ("rewards", "ratios"))
        expect(rewards.shape == ratio.shape == (4,), f"{name}: give four rewards and four ratios")
        expect(((rewards == 0) | (rewards == 1)).all(), f"{name}: outcome rewards are 0 or 1")
        expect((ratio > 0).all(), f"{name}: a ratio of two probabilities is above 0")
        near = ((ratio - 1).abs() < 0.0499).nonzero().flatten()
        if len(near):
            raise Wrong(f"{name}: rollout {near[0]} has the ratio {ratio[near[0]]:.2f}; keep all at least 0.05 from 1")
        same = f"{name}: all four rewards are alike, so all advantages are 0: neither loss nor gradient says anything"
        expect(rewards.std() > 0, same)
        logp = ratio.log().requires_grad_()
        advantage = advantages(rewards[None])[0]
        loss = clipped(logp.exp(), advantage).mean()
        loss.backward()
        found[name] = loss.item(), logp.grad.abs(), advantage
    loss, gradient, _ = found["learns"]
    expect(abs(loss) < 5e-3, f"learns: the loss is {loss:.3f}, not 0. Its four terms are minus ratio times advantage")
    still = int(gradient.argmin())
    expect(gradient[still] > 0, f"learns: rollout {still} has no gradient, since its ratio is clipped; all four should")
    loss, gradient, advantage = found["stuck"]  # -0.15 or -0.17 wherever nothing moves
    moved = int(gradient.argmax())
    side = "above 1.2" if advantage[moved] > 0 else "below 0.8"
    expect(
        gradient[moved] == 0,
        f"stuck: rollout {moved} still has a gradient. Its advantage is {advantage[moved]:+.2f}, and clipping stops "
        f"such a token only at ratios {side}",
    )
    return f"loss 0 and every rollout moves, loss {loss:.2f} and none does: the value is no measure of progress"
