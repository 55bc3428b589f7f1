"""Exercises of notebook 07: which tokens get the credit, and what a comparison of strategies can show."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from faithlab import credit
from faithlab.exercises import compare, exercise, expect, tensor_of

NAN = float("nan")
SPARSE = [0.0, 0.8, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, NAN, NAN]
SEED_SPREAD, PROBLEM_SPREAD, GAIN, RUNS, PROBLEMS = 0.03, 0.3, 0.04, 24, 1000  # of `fair_comparison`


@exercise
def sparse_credit(answer: dict) -> str:
    """The tokens that a sparse score amplifies, and gamma after normalisation to a mean of 1."""
    gamma = credit.weights("saliency", torch.tensor([SPARSE]), torch.ones(1, 10), normalise=True)[0]
    chosen = sorted(int(i) for i in answer["amplified"])
    expect(chosen != [2, 5], "tokens are counted from 0: the score 0.8 belongs to token 1")
    expect(not {8, 9} & set(chosen), "a token without a defined score is never amplified: leave out 8 and 9")
    eight = "40 % of the eight defined scores, rounded, are three tokens, not four"
    expect(len(chosen) != 4, f"{eight}; and is there a reason to prefer one 0 to another?")
    tied = "three tokens are wanted, but the third ties at 0 with five others: all that tie across the border stay out"
    expect(len(chosen) != 3, tied)
    right = (gamma > 1).nonzero().flatten().tolist()
    expect(chosen == right, "take the highest of the defined scores that stand clear of those left out")
    slips = {
        1.1: None,
        1.0: "not normalised yet: divide by the mean of gamma over all ten tokens",
        1.2: "a mean of 1.2 would need four amplified tokens of ten; here they are fewer",
        1.15: "a mean of 1.15 would need three amplified tokens of ten; here they are fewer",
        1.125: "the mean runs over all ten tokens of the rollout: those without a score have gamma 1 and count",
    }
    for name, size, value in (("gamma", 1.5, gamma[right[0]]), ("rest", 1.0, gamma[0])):
        known = [(size / mean, f"{name}: {why}") for mean, why in slips.items() if why]
        compare(answer[name], value, known, f"{name}: {size} divided by the mean of gamma over the ten", atol=6e-3)
    return "two of ten tokens are amplified, not four; normalised, they take their bonus from the others"


def coupled(waad, anchors, tau_waad, tau_delta, k, alpha, slip: str = "") -> list[float]:
    """gamma of coupled_rhythm, with one of the usual mistakes."""
    delta = [abs(a - b) for a, b in pairwise(waad)] + [-math.inf]
    share, introducers = [0.0] * len(waad), []
    for t in anchors:
        before = range(max(0, t - k + (slip == "itself")), t + (slip == "itself"))
        first = max(before, key=lambda i: delta[i], default=None)
        low = waad[t] < tau_waad if slip == "strict" else waad[t] <= tau_waad or slip == "any level"
        high = first is not None and (
            delta[first] > tau_delta if slip == "strict" else delta[first] >= tau_delta or slip == "any jump"
        )
        dominated = low and high
        share[t] += (alpha if slip == "swapped" else 1 - alpha) if dominated else 1
        if dominated and (slip == "twice" or first not in introducers):
            introducers.append(first)
    for i in introducers:
        own = 1 - alpha if slip == "swapped" else alpha
        share[i] = max(share[i], own) if slip == "no sum" else share[i] + own
    return [1 + s * (1 if slip == "whole bonus" else 0.5) for s in share]


SLIPS = {
    "itself": "the jump is sought among the k tokens before the anchor, t - k to t - 1, not at the anchor itself",
    "any level": "an anchor whose WAAD is above tau_waad is free, whatever jump stands before it",
    "any jump": "an anchor is dominated only if the largest D before it reaches tau_delta; otherwise it is free",
    "strict": "the thresholds belong to it: WAAD <= tau_waad and D >= tau_delta",
    "swapped": "alpha of the bonus goes to the token that introduces; the dominated anchor keeps 1 - alpha",
    "twice": "a token that introduces two anchors gets its part once",
    "no sum": "parts add up: a free anchor that introduces another one gets the whole bonus and alpha of it",
    "whole bonus": "the bonus is amplify - 1, so a free anchor has gamma = 1.5 and not 2",
}


@exercise
def coupled_gamma(function) -> str:
    """gamma of coupled_rhythm from its definition, against the library's on random profiles and on edge cases."""
    generator = torch.Generator().manual_seed(3)
    cases = [
        ([4.0, 4.5, 1.0, 1.5, 1.25, 3.0], [0, 3], 1.5, 1.0, 3, 0.5, "two anchors, of which one is the first token")
    ]
    for n, k, anchors in ((12, 3, [2, 4, 7, 11]), (16, 2, [1, 3, 8, 9, 15]), (9, 1, [0, 5, 6])):
        waad = (torch.randperm(16 * n, generator=generator)[:n] / 64).tolist()
        level, jump = sorted(waad)[n // 2], sorted(abs(a - b) for a, b in pairwise(waad))[n // 2]
        cases.append((waad, anchors, level, jump, k, 0.25, f"{n} random tokens, k = {k}, alpha = 0.25"))
    cases += [
        ([5.0, 5.25, 1.0, 1.25, 1.5, 4.0], [3, 4], 2.0, 1.0, 3, 0.5, "two anchors behind one jump"),
        ([5.0, 5.25, 1.0, 1.25, 1.5, 4.0], [1, 3], 2.0, 1.0, 3, 0.25, "a free anchor that introduces another one"),
        ([3.0, 1.0, 1.25, 1.75, 1.5, 4.0], [4], 2.0, 1.0, 2, 0.5, "an anchor behind small steps only"),
        ([2.0], [0], 2.0, 1.0, 3, 0.5, "a single token, which nothing introduces"),
        ([3.0, 1.0, 2.0], [], 2.0, 1.0, 3, 0.5, "no anchor at all"),
    ]
    for waad, anchors, tau_waad, tau_delta, k, alpha, what in cases:
        fai = torch.tensor([[1.0 + (t in anchors) for t in range(len(waad))]])
        right = credit.weights(
            "coupled_rhythm", dict(waad=torch.tensor([waad]), fai=fai), torch.ones(1, len(waad)),
            quantile=len(anchors) / len(waad), tau_waad=tau_waad, tau_delta=tau_delta, look_back=k, alpha=alpha,
        )[0]  # fmt: skip
        got = function(list(waad), list(anchors), tau_waad, tau_delta, k, alpha)
        slips = [(coupled(waad, anchors, tau_waad, tau_delta, k, alpha, slip), why) for slip, why in SLIPS.items()]
        wanted, yours = ([round(v, 3) for v in tensor_of(g).flatten().tolist()] for g in (right, got))
        call = f"coupled_gamma({waad}, {anchors}, tau_waad={tau_waad}, tau_delta={tau_delta}, k={k}, alpha={alpha})"
        compare(got, right, slips, f"{what}: {call} should give {wanted}, and yours gives {yours}")
    return "equal to the library's coupled_rhythm: shared, added up, and at the edges"


def detectable(seeds: int, problems: int, tests: int) -> float:
    """The smallest true difference found in four of five repetitions under Holm's strictest threshold."""
    from scipy.stats import t

    parts = [(SEED_SPREAD**2 / seeds, seeds - 1), (PROBLEM_SPREAD**2 / problems, problems - 1)]
    total = sum(v for v, _ in parts)
    freedom = total**2 / sum(v**2 / f for v, f in parts)
    return float((t.ppf(1 - 0.025 / tests, freedom) + t.ppf(0.8, freedom)) * math.sqrt(total))


@exercise
def fair_comparison(plan: dict) -> str:
    """A plan of the learner's: a control that differs in the choice of tokens only, and enough seeds and problems."""
    name, quantile = plan["control"]["strategy"], float(plan["control"]["quantile"])
    expect(name in credit.STRATEGIES, f"the control is one of {', '.join(credit.STRATEGIES)}, not {name!r}")
    generator = torch.Generator().manual_seed(0)
    opened = torch.where(torch.arange(100) < 5, torch.rand(8, 100, generator=generator) + 0.1, 0)
    ours = credit.weights("saliency", opened, torch.ones(8, 100))
    expect(
        name != "uniform",
        f"a gain over uniform does not say that these five matter: any five raise the mean gamma to {ours.mean():.3f}",
    )
    meant = (
        f"a gain over {name} says that saliency chooses better than {name}, not better than chance; use another control"
    )
    expect(name == "random", meant)
    lot = credit.weights("random", torch.rand(8, 100, generator=generator), torch.ones(8, 100), quantile=quantile)
    count, counts = (float((g > 1).sum(1).float().mean()) for g in (ours, lot))
    expect(
        abs(counts - count) < 0.5,
        f"of 100 tokens saliency amplifies {count:.0f} and your control {counts:.0f} (mean gamma {ours.mean():.3f} and "
        f"{lot.mean():.3f}): a difference may come from how many, not which",
    )
    expect(not any(isinstance(plan["seeds"][k], int) for k in ("saliency", "control")), "give the seeds as two lists")
    first, second = (list(plan["seeds"][k]) for k in ("saliency", "control"))
    expect(
        len({*first}) == len(first) and len({*second}) == len(second), "a seed that comes twice is the same run twice"
    )
    expect(
        set(first) == set(second),
        f"{len({*first} & {*second})} seeds are in both arms: only those can be subtracted run by run; use the same",
    )
    expect(len(first) > 1, "a single seed: such an interval is about other problems, and silent about other runs")
    others, problems = list(plan["others"]), int(plan["problems"])
    runs, tests = len(first) * (2 + len(others)), 1 + len(others)
    expect(runs <= RUNS, f"{len(first)} seeds of {2 + len(others)} arms are {runs} runs; {RUNS} can be paid")
    expect(2 <= problems <= PROBLEMS, f"there are {PROBLEMS} held-out problems; you ask for {problems}")
    found = detectable(len(first), problems, tests)
    share = SEED_SPREAD**2 / len(first) / (SEED_SPREAD**2 / len(first) + PROBLEM_SPREAD**2 / problems)
    advice = f"{share:.0%} of the variance comes from seeds, the rest from problems"
    if others:
        advice = "Every further arm takes runs and makes Holm stricter"
    expect(
        found <= GAIN,
        f"{len(first)} seeds, {problems} problems, number of tests {tests}: {found:.3f} can be detected, not {GAIN}, "
        f"so finding nothing would not mean that there is nothing. {advice}",
    )
    return f"{len(first)} pairs of runs detect {found:.3f}, and the arms differ only in which tokens are amplified"
