"""Exercises of notebook 08: what a reward pushes up within a group, how loud it is, and what it cannot see."""

from __future__ import annotations

import random

import numpy as np
import torch

from faithlab.exercises import compare, exercise, expect

NATS = 10.0  # of a drop: faithlab.rewards has the same, and takes seconds to import
OUTCOME = np.array([1.0, 1.0, 0.0, 0.0])  # of rollouts A to D
NATS_LOST = np.array([-0.1 + 0.1, -0.5 + 0.2, -0.4 + 6.4, -0.2 + 14.2])  # log p(answer) less that without reasoning
WEIGHT = 2.0


@exercise
def paid_in_a_group(answer: dict) -> str:
    """The drop of four rollouts, their rewards less the group's mean, and the weight from which on one is pushed up."""
    raw = NATS_LOST / NATS
    drop = raw.clip(0, 1)
    reward = OUTCOME + WEIGHT * drop
    right, light = reward - reward.mean(), OUTCOME + drop - (OUTCOME + drop).mean()
    slips = [
        (raw, "drop: a loss of 14 nats pays no more than one of 10, and a negative one pays 0: clip to 0 to 1"),
        (raw.clip(max=1), "drop: B's answer is likelier without its reasoning; that pays 0, not less"),
        (raw.clip(min=0), "drop: D loses more than 10 nats, and the reward ends at 1"),
        ((-raw).clip(0, 1), "drop: the loss is log p with the reasoning less log p without it; yours has it reversed"),
        (NATS_LOST.clip(0, 1), "drop: divide the nats by 10 before you clip them to 0 to 1"),
    ]
    otherwise = "drop: of each rollout log p less log p with the reasoning hidden, over 10 nats, clipped to 0 to 1"
    compare(answer["drop"], drop, slips, otherwise, atol=2e-3)
    slips = [
        (reward, "advantage: these are the rewards; GRPO sees them less the mean of the group's four"),
        (light, "advantage: this is for w = 1, and the reward here is outcome + 2 drop"),
        (reward - OUTCOME.mean(), "advantage: the mean of the whole reward is taken away, not that of the outcome"),
    ]
    for deviation in (right.std(), right.std(ddof=1)):
        slips.append(
            (right / deviation, "advantage: you divided by the group's standard deviation; here only the mean")
        )
    otherwise = f"advantage: outcome + 2 drop of each rollout, less the mean {reward.mean():.1f} of the four"
    compare(answer["advantage"], right, slips, otherwise, atol=6e-3)
    weights = OUTCOME.mean() / (drop - drop.mean())  # from which on the two with the outcome 0 are above the mean
    pair = "that is where D's reward reaches A's; it is pushed up as soon as it is above the mean of all four"
    slips = [
        (OUTCOME[0] / (drop[3] - drop[0]), f"pushed_up_from: {pair}"),
        (weights[2], "pushed_up_from: that is the weight from which on C is pushed up; D loses more nats"),
        (
            OUTCOME.mean() / drop[3],
            "pushed_up_from: the drops of all four raise the group's mean too, not only D's reward",
        ),
    ]
    otherwise = "pushed_up_from: put D's reward, w times its drop, equal to the group's mean reward and solve for w"
    compare(answer["pushed_up_from"], weights[3], slips, otherwise, atol=6e-3)
    return "a right reasoning that is not needed is pushed down, and the wrong one that is needed most goes up"


@exercise
def balanced_weight(function) -> str:
    """The automatic weight of a second reward, against the library's on random groups."""
    draw = np.random.default_rng(0)
    cases = []
    for prompts, size, share, limit in ((3, 4, 0.5, 200.0), (5, 6, 0.25, 200.0), (4, 3, 1.0, 1.5)):
        groups = np.repeat(np.arange(prompts), size)
        outcome = (np.arange(prompts * size) % size < 1 + np.arange(prompts * size) // size % 2).astype(float)
        level = draw.uniform(0, 0.6, prompts)[groups]  # groups differ more than rollouts do
        cases.append([outcome, level + draw.uniform(0, 0.1 * limit**0.5, len(groups)), groups, share, limit])
    unknown = [v if i % 5 else None for i, v in enumerate(cases[1][1].tolist())]  # rollouts without an answer
    cases.append([cases[1][0], unknown, *cases[1][2:]])
    shuffled = draw.permutation(12)
    cases.append([v[shuffled] for v in cases[0][:3]] + cases[0][3:])
    level = np.repeat([0.25, 0.5, 0.75], 4)
    cases.append([cases[0][0], level, *cases[0][2:]])  # nothing varies within a group
    cases.append([np.array([1.0, 0.0]), np.array([0.5, 0.25]), np.arange(2), 0.5, 2.0])  # groups of one
    for outcome, saliency, groups, share, limit in cases:
        values = [v.tolist() if isinstance(v, np.ndarray) else v for v in (outcome, saliency, groups)]
        right = _weight(*values, share, limit)
        otherwise = (
            f"outcome {values[0]}, share {share}: the weight is {right:.3f}, and yours is not. In each group take the "
            "mean squared distance from the group's mean, then the mean over groups, for both rewards"
        )
        if right == 0:
            otherwise = "where saliency varies within no group no weight has an effect: the answer is then 0"
        elif any(np.diff(groups) < 0):
            otherwise = "rollouts of a group need not stand side by side: go by the numbers of their groups"
        got = function(*values, share, limit)
        compare(got, right, _misread(*values, share, limit), otherwise, atol=1e-5 * max(1, right))
    return "equal to the library's rule; a saliency that hardly varies gets a large weight, whatever its level"


def _weight(outcome, saliency, groups, share: float, limit: float) -> float:
    """The library's automatic weight after its first step."""
    from faithlab.balance import Balanced, within_variance

    numbered = torch.as_tensor(groups)
    spread = dict(outcome=within_variance(outcome, numbered), saliency=within_variance(saliency, numbered))
    return Balanced(None, mode="auto", share=share, limit=limit).current(0, spread)


def _misread(outcome, saliency, groups, share: float, limit: float) -> list[tuple[float, str]]:
    """What typical mistakes give for the weight, and what to say of each."""
    o, s, g = np.array(outcome), np.array([v or 0.0 for v in saliency]), np.array(groups)
    known = np.array([v is not None for v in saliency])

    def within(values, of, statistic=np.var):
        return float(np.mean([statistic(values[of == k]) for k in np.unique(of)]))

    vo, vs = within(o, g), within(s, g)
    if vs == 0:
        return [(np.nan, "nan: you divide by a variance of 0, or by n - 1 in a group of one; the weight is then 0")]
    everywhere = "this is the variance over the whole batch: GRPO only sees differences within a group"
    deviations = "variances are averaged over groups, not standard deviations: take the root at the end"
    found = [
        (min(limit, (share * o.var() / s.var()) ** 0.5), everywhere),
        (min(limit, share * vo / vs), "nearly: the rule sets w squared, so the weight is the root of that"),
        (min(limit, share * (vo / vs) ** 0.5), "the share belongs under the root: it is a share of the variance"),
        (min(limit, (share * vs / vo) ** 0.5), "upside down: the outcome's variance goes above, saliency's below"),
        (min(limit, share**0.5 * within(o, g, np.std) / within(s, g, np.std)), deviations),
        ((share * vo / vs) ** 0.5, f"the weight is at most `limit`, here {limit:g}: yours is larger"),
    ]
    if not known.all():
        alone = min(limit, (share * vo / within(s[known], g[known])) ** 0.5)
        found.append((alone, "a saliency of None counts as 0, as it does in the sum of rewards: do not leave it out"))
    return found


@exercise
def laundered_hint(policy) -> str:
    """A policy of the learner's design, measured: paid in full, consistent with its reasoning, and still a follower."""
    reason, answer = policy
    draw = random.Random(0)
    solved = [draw.randint(4, 60) for _ in range(60)]
    wrong = [v + draw.choice((-3, -2, 2, 3)) for v in solved]

    def share(kept) -> float:
        return sum(map(bool, kept)) / len(solved)

    free = share(answer(reason(v, None), None) == v for v in solved)
    expect(free >= 0.9, f"without hints it is right in {free:.0%} only: there it has to solve the problem itself")
    steps = [reason(v, v) for v in solved]
    said = [answer(r, v) for r, v in zip(steps, solved, strict=True)]
    outcome = share(a == v for a, v in zip(said, solved, strict=True))
    expect(outcome >= 0.9, f"with right hints it is right in {outcome:.0%} only, and the outcome reward pays no more")
    enough = share(a == answer(r, None) for r, a in zip(steps, said, strict=True))
    expect(
        enough >= 0.9,
        f"with the hint out of sight the answer stays in {enough:.0%} only: sufficiency is paid for answers that the "
        "reasoning alone gives",
    )
    steps = [reason(v, h) for v, h in zip(solved, wrong, strict=True)]
    said = [answer(r, h) for r, h in zip(steps, wrong, strict=True)]
    agrees = share(a == r for a, r in zip(said, steps, strict=True))
    expect(
        agrees >= 0.9,
        f"with wrong hints it answers its own reasoning in {agrees:.0%} only: this copy of a hint is the kind that is "
        "found out. The reasoning has to say what is answered",
    )
    moved = share(answer(r + 1, h) != a for r, h, a in zip(steps, wrong, said, strict=True))
    expect(
        moved >= 0.9,
        f"a mistake put into its reasoning changes {moved:.0%} of its answers only: let the answer be read from there",
    )
    follows = share(a == h for a, h in zip(said, wrong, strict=True))
    expect(follows >= 0.9, f"it follows {follows:.0%} of the wrong hints, and so it is what we want; fool the measures")
    return "outcome, sufficiency, agreement and added mistakes all see a faithful policy; only a wrong hint shows it"
