"""Exercises of notebook 05: what measures of a ranking reward, and what chance gives."""

from __future__ import annotations

import numpy as np

from faithlab.exercises import compare, exercise, expect

MASK = [0, 0, 0, 0, 0, 0, 1, 0]
FLOW = [0.1, 0.2, 0.6, 0.3, 0.5, 0.4, 0.8, 0.9]
NEEDED = [0, 0, 1, 0, 0, 0, 1, 0]
DRAWS = 150  # of random scores in `chance_by_length`


@exercise
def two_measures_by_hand(answer: dict) -> str:
    """AUROC and average precision of a sparse mask and of a score that ranks a full stop first."""
    from faithlab import ranking  # which takes seconds to import: here, for those who need it

    pairs = "Go through the 2 x 6 pairs of a needed and an idle token; a tie counts half"
    at_least = (
        "at each needed token: among all tokens that score at least as high, the share of needed ones; then the mean"
    )
    slips = {
        "auroc_mask": [
            (1.0, "auroc_mask: the needed token at 0 ties with six idle ones; you count these ties as won"),
            (0.5, "auroc_mask: the needed token at 0 ties with six idle ones; you count these ties as lost"),
        ],
        "ap_mask": [
            (1.0, "ap_mask: the mask does not put the 3 second. It ties with six idle tokens: all eight score >= 0"),
            (0.5, "ap_mask: the 3 counts too, though the mask is 0 there: two of the eight tokens that score >= 0"),
            (2 / 3, "ap_mask: you broke the tie by place in the text; count all eight tokens that score >= 0"),
        ],
        "auroc_flow": [
            (11 / 12, "auroc_flow: the full stop stands before both needed tokens, so two pairs are lost"),
        ],
        "ap_flow": [
            (5 / 12, "ap_flow: that is the mean of 1 / rank. At the second needed token, two of three are needed"),
            (2 / 3, "ap_flow: that is the precision at the last needed token only; take the mean over both"),
        ],
    }
    for name, known in slips.items():
        measure = ranking.auroc if name.startswith("auroc") else ranking.average_precision
        right = measure(MASK if name.endswith("mask") else FLOW, NEEDED)
        compare(answer[name], right, known, f"{name}: {pairs if 'auroc' in name else at_least}", atol=6e-3)
    return "AUROC prefers flow, average precision the mask: one asks about all pairs, the other about the top"


def _agreement_slips(scores, effects) -> list[tuple]:
    """What usual mistakes give for a rank correlation."""
    from scipy.stats import rankdata

    def correlation(x, y):
        return np.corrcoef(x, y)[0, 1]

    known = ~(np.isnan(scores) | np.isnan(effects))
    x, y, n = scores[known], effects[known], int(known.sum())
    formula = 1 - 6 * ((rankdata(x) - rankdata(y)) ** 2).sum() / (n**3 - n)
    filled = [rankdata(np.where(np.isnan(v), -np.inf, v)) for v in (scores, effects)]
    zeroed = [rankdata(np.nan_to_num(v)) for v in (scores, effects)]
    order = correlation(x.argsort(), y.argsort())
    apart = "leave out the tokens where score or effect is unknown first, and rank what remains"
    return [
        (correlation(x, y), "that is Pearson's correlation of the values; replace both by their ranks first"),
        (order, "argsort lists tokens in order; a token's rank is its place in that list"),
        (formula, "1 - 6 sum d^2 / (n^3 - n) is right only without ties; correlate the ranks instead"),
        (correlation(*filled), f"a token of unknown score or effect was ranked lowest: {apart}"),
        (correlation(*zeroed), f"an unknown score or effect was taken for 0: {apart}"),
        (correlation(filled[0][known], filled[1][known]), f"unknown tokens took up ranks: {apart}"),
    ]


@exercise
def rank_agreement(function) -> str:
    """Spearman's rank correlation from its definition, against the library's on scores with ties and gaps."""
    from faithlab import ranking

    rng, nan = np.random.default_rng(0), np.nan
    skewed = np.exp(2 * rng.normal(size=(2, 9)))
    sparse = np.array([0, 0, 0, 0.9, 0, 0.4, 0, 0])
    gaps = np.array([0.3, nan, 0.1, 0.9, 0.2, 0.8, nan, 0.5]), np.array([2.0, -1.1, nan, 0.4, -1.5, 0.1, 0.2, 0.7])
    cases = [
        (*skewed, "nine tokens without ties"),
        (sparse, rng.random(8), "a sparse mask, 0 at six of eight tokens"),
        (*gaps, "eight tokens, of which three lack a score or an effect"),
        (np.zeros(6), rng.random(6), "a score that is 0 everywhere, which ranks nothing and has no correlation"),
        (np.array([0.1, 0.2, nan]), np.arange(3.0), "two known tokens, which always agree or disagree completely"),
        (np.array([]), np.array([]), "no tokens at all"),
    ]
    for scores, effects, what in cases:
        right = ranking.spearman(scores, effects)
        slips = [] if np.isnan(right) else _agreement_slips(scores, effects)
        got, turned = function(scores.copy(), effects.copy()), function(scores[::-1].copy(), effects[::-1].copy())
        if got is not None and abs(float(got) - float(turned)) > 1e-4:
            slips.append(
                (got, "the same tokens in another order give another value: tied tokens share their mean rank")
            )
        mine = "nothing" if got is None else f"{float(got):.3f}"
        compare(got, right, slips, f"{what}: the rank correlation is {right:.3f}, and yours is {mine}")
    return "equal to ranking.spearman: ties share a rank, unknown tokens are left out"


@exercise
def chance_by_length(plan: dict) -> str:
    """Sentences of the learner's design on which random scores correlate with effects, and a summary that mends it."""
    from faithlab import ranking

    lengths, effects = [int(n) for n in plan["lengths"]], np.array([float(e) for e in plan["effects"]])
    expect(len(lengths) == len(effects), "one length and one effect for each sentence: two lists as long as each other")
    expect(5 <= len(lengths) <= 12, f"use 5 to 12 sentences; yours are {len(lengths)}")
    sound = all(1 <= n <= 40 for n in lengths) and all(0 <= e <= 1 for e in effects)
    expect(sound, "a sentence has 1 to 40 tokens, and an effect is a share of changed answers, from 0 to 1")
    rng = np.random.default_rng(0)

    def agreement(summary, score) -> float:
        """Mean rank correlation of the summed-up scores with the effects; a summary that ranks nothing counts 0."""
        found = [[float(summary(score(n, e))) for n, e in zip(lengths, effects, strict=True)] for _ in range(DRAWS)]
        return float(np.nan_to_num([ranking.spearman(f, effects) for f in found]).mean())

    def by_lot(n: int, effect: float) -> np.ndarray:
        return rng.random(n)

    def knowing(n: int, effect: float) -> np.ndarray:
        return effect * (np.arange(n) == rng.integers(n))

    summary = plan["summary"]
    largest = agreement(max, by_lot)
    expect(
        largest >= 0.4,
        f"by their largest token random scores reach a mean rank correlation of {largest:.2f}; 0.4 is asked. In which "
        "sentences does chance alone produce a large maximum?",
    )
    mended = agreement(summary, by_lot)
    expect(
        abs(mended) <= 0.15,
        f"with your summary random scores still reach {mended:.2f}: what it gives for them changes with the length",
    )
    single = [summary(knowing(n, 1.0)) for n in lengths for _ in range(20)]
    blind = float(np.mean([v == summary(np.zeros(2)) for v in single]))
    expect(blind < 0.2, f"in {blind:.0%} of sentences your summary misses the one token that stands out: let all count")
    kept = agreement(summary, knowing)
    expect(
        kept >= 0.9,
        f"a score that puts each sentence's effect on one of its tokens falls to {kept:.2f} with your summary, which "
        "thins it out in long sentences. Let the effects rise faster than that",
    )
    return f"random scores: {largest:.2f} by the largest token, {mended:.2f} by your summary: chance has to be computed"
