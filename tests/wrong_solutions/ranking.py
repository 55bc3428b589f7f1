import numpy as np

RIGHT = {"auroc_mask": 0.75, "ap_mask": 0.625, "auroc_flow": 10 / 12, "ap_flow": 7 / 12}
LENGTHS = [2, 4, 8, 16, 32]
RISING = [0.01, 0.04, 0.12, 0.36, 1.0]


def values_correlated(scores, effects):
    known = ~(np.isnan(scores) | np.isnan(effects))
    return np.corrcoef(scores[known], effects[known])[0, 1]


def ties_ranked_by_place(scores, effects):
    known = ~(np.isnan(scores) | np.isnan(effects))
    return np.corrcoef(scores[known].argsort().argsort(), effects[known].argsort().argsort())[0, 1]


def unknown_ranked_lowest(scores, effects):
    from scipy.stats import rankdata

    ranks = [rankdata(np.where(np.isnan(v), -np.inf, v)) for v in (scores, effects)]
    return np.corrcoef(*ranks)[0, 1]


WRONG = {
    "two_measures_by_hand": [
        RIGHT | {"auroc_mask": 1.0},
        RIGHT | {"ap_mask": 1.0},
        RIGHT | {"ap_flow": 5 / 12},
        RIGHT | {"ap_mask": 2 / 3},
    ],
    "rank_agreement": [values_correlated, ties_ranked_by_place, unknown_ranked_lowest],
    "chance_by_length": [
        {"lengths": [8] * 5, "effects": RISING, "summary": np.mean},
        {"lengths": LENGTHS, "effects": RISING, "summary": sum},
        {"lengths": LENGTHS, "effects": RISING, "summary": np.median},
        {"lengths": LENGTHS, "effects": [n / 40 for n in LENGTHS], "summary": np.mean},
    ],
}
