from itertools import pairwise

RIGHT = {"amplified": [1, 4], "gamma": 1.364, "rest": 0.909}
PLAN = {
    "control": {"strategy": "random", "quantile": 0.05},
    "others": [],
    "seeds": {"saliency": list(range(12)), "control": list(range(12))},
    "problems": 1000,
}


def gamma_of(waad, anchors, tau_waad, tau_delta, k, alpha, *, itself=False, level=True, once=True):
    delta = [abs(a - b) for a, b in pairwise(waad)] + [-1.0]
    share, introducers = [0.0] * len(waad), []
    for t in anchors:
        before = list(range(max(0, t - k + itself), t + itself))
        first = max(before, key=lambda i: delta[i]) if before else None
        if first is not None and delta[first] >= tau_delta and (waad[t] <= tau_waad or not level):
            share[t] += 1 - alpha
            introducers.append(first)
        else:
            share[t] += 1
    for i in set(introducers) if once else introducers:
        share[i] += alpha
    return [1 + 0.5 * s for s in share]


WRONG = {
    "sparse_credit": [
        RIGHT | {"amplified": [0, 1, 4]},
        RIGHT | {"amplified": [0, 1, 2, 4]},
        RIGHT | {"gamma": 1.5, "rest": 1.0},
        RIGHT | {"gamma": 1.333, "rest": 0.889},
    ],
    "coupled_gamma": [
        lambda *args: gamma_of(*args, itself=True),
        lambda *args: gamma_of(*args, level=False),
        lambda *args: gamma_of(*args, once=False),
    ],
    "fair_comparison": [
        PLAN | {"control": {"strategy": "uniform", "quantile": 0.4}},
        PLAN | {"control": {"strategy": "random", "quantile": 0.4}},
        PLAN | {"seeds": {"saliency": [0, 1, 2], "control": [0, 1, 2]}},
        PLAN | {"seeds": {"saliency": list(range(12)), "control": list(range(12, 24))}},
        PLAN | {"others": ["uniform"], "seeds": {"saliency": list(range(8)), "control": list(range(8))}},
    ],
}
