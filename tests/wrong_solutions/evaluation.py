import numpy as np


def errors(**changed):
    right = {"value": 0.2, "error_problems": 0.0577, "error_seeds": 0.1155, "error": 0.1291, "low": -0.2108}
    return right | changed


def bonferroni(p):
    m = sum(v == v for v in p)
    return [min(1, v * m) if v == v else v for v in p]


def without_running_maximum(p):
    order = np.argsort(p)
    out = np.array(p, dtype=float)
    for i, k in enumerate(order):
        out[k] = min(1, p[k] * (len(p) - i))
    return out


def left_sorted(p):
    p = np.sort(p)
    return np.minimum(1, np.maximum.accumulate(p * (len(p) - np.arange(len(p)))))


def counts_gaps(p):
    order = np.argsort(p)
    out, high = np.array(p, dtype=float), 0.0
    for i, k in enumerate(order):
        if out[k] == out[k]:
            high = max(high, min(1.0, out[k] * (len(p) - i)))
            out[k] = high
    return out


WRONG = {
    "seeds_and_problems": [
        errors(error_problems=0.05),
        errors(error_seeds=0.2),
        errors(error=0.0577),
        errors(error=0.1732),
        errors(low=-0.053),
    ],
    "step_down": [bonferroni, without_running_maximum, left_sorted, counts_gaps],
    "sharper_not_abler": [
        lambda: ([3] * 40, [5] * 40),
        lambda: ([3] * 40, [8] * 20 + [0] * 20),
        lambda: ([4] * 40, [1] * 40),
        lambda: ([1] * 8, [8] * 4 + [0] * 4),
    ],
}
