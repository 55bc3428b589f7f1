import torch


def end(s, hi):
    return None if hi is None else s + hi + 1


def fai_of_rows_not_columns(probs, lo, hi):
    n = len(probs)
    return [probs[s, s + lo : end(s, hi)].mean() if s + lo < n else float("nan") for s in range(n)]


def fai_summed(probs, lo, hi):
    n = len(probs)
    return [probs[s + lo : end(s, hi), s].sum() if s + lo < n else float("nan") for s in range(n)]


def fai_zero_where_nobody_looks(probs, lo, hi):
    n = len(probs)
    return [probs[s + lo : end(s, hi), s].mean() if s + lo < n else 0.0 for s in range(n)]


WRONG = {
    "waad_by_hand": [
        {"waad": [0.5, 1.0, 1.75], "distance": 1.0833333},
        {"waad": [0.5, 0.5, 1.25], "distance": 1.0833333},
        {"waad": [0.5, 1.0, 1.25], "distance": 0.9166666666},
    ],
    "future_attention": [fai_of_rows_not_columns, fai_summed, fai_zero_where_nobody_looks],
    "anchor_without_reach": [
        lambda: torch.ones(6, 6) / 6,
        lambda: torch.ones(6, 6).tril(),
        lambda: torch.ones(8, 8).tril().div(torch.arange(1, 9)[:, None]),
    ],
}
