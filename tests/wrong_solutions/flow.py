import torch


def inflow(weights, prompt, answer, step, unit):
    f = torch.zeros(len(weights))
    for k in range(len(weights)):
        f[k] = unit * (k in prompt) + sum(f[i] * step[i, k] for i in range(k) if i not in answer)
    return f


def reachability(weights, answer):
    h = torch.zeros(len(weights))
    for i in reversed(range(len(weights))):
        h[i] = 1 if i in answer else weights[i + 1 :, i] @ h[i + 1 :]
    return h


def unconditioned(weights, prompt, answer):
    out = weights.tril(-1).T
    return inflow(weights, prompt, answer, out / out.sum(1, keepdim=True).clamp(min=1e-9), 1 / len(prompt))


def a_unit_each(weights, prompt, answer):
    h = reachability(weights, answer)
    step = torch.where(h[:, None] > 0, weights.tril(-1).T * h / h[:, None], 0.0)
    return inflow(weights, prompt, answer, step, 1)


def divided_by_zero(weights, prompt, answer):
    h = reachability(weights, answer)
    return inflow(weights, prompt, answer, weights.tril(-1).T * h / h[:, None], 1 / len(prompt))


WRONG = {
    "flow_by_hand": [
        {"reachability": 1.0, "inflow": [0.4, 0.1], "throughput": 0.2, "delivered": 0.5},
        {"reachability": 0.26, "inflow": [0.4, 0.1], "throughput": 0.2, "delivered": 0.5},
        {"reachability": 0.26, "inflow": [0.308, 0.692], "throughput": 1.385, "delivered": 1.0},
        {"reachability": 0.26, "inflow": [0.154, 0.346], "throughput": 0.346, "delivered": 0.5},
    ],
    "answer_bound_flow": [unconditioned, a_unit_each, divided_by_zero],
    "position_matched_control": [
        lambda top, scores, rng: rng.choice([i for i in range(len(scores)) if i not in top], len(top), replace=False),
        lambda top, scores, rng: scores.argsort()[::-1][len(top) : 2 * len(top)],  # the next in rank
        lambda top, scores, rng: [i for i in range(len(scores)) if i not in top][-len(top) :],  # the last ones
        lambda top, scores, rng: [max(0, i - 1) for i in top],  # the token before each
    ],
}
