RIGHT = {"none": [0.5, 0.02, 0], "group": [0.707, 0.707, 0], "batch_ratio": 0.04}
LEARNS = {"rewards": [1, 0, 1, 0], "ratios": [1.1, 1.1, 0.9, 0.9]}
STUCK = {"rewards": [1, 0, 1, 0], "ratios": [1.3, 0.7, 1.3, 0.7]}


def clipped_tokens(logp, old, advantages, gamma):
    ratio = (logp - old).exp()
    credited = advantages[:, None] * gamma
    return -(ratio * credited).minimum(ratio.clamp(0.8, 1.2) * credited)


def each_rollout_first(logp, old, advantages, gamma, mask, eps=0.2):
    tokens = clipped_tokens(logp, old, advantages, gamma)
    return ((tokens * mask).sum(1) / mask.sum(1)).mean()


def without_the_minimum(logp, old, advantages, gamma, mask, eps=0.2):
    ratio = (logp - old).exp().clamp(1 - eps, 1 + eps)
    return -(ratio * advantages[:, None] * gamma * mask).sum() / mask.sum()


def nothing_written(logp, old, advantages, gamma, mask, eps=0.2):
    return (clipped_tokens(logp, old, advantages, gamma) * mask).sum() / mask.sum()


WRONG = {
    "scaling_by_hand": [
        RIGHT | {"group": [1, 1, 0]},
        RIGHT | {"group": [0.707, 0.0283, 0]},
        RIGHT | {"batch_ratio": 1},
        RIGHT | {"none": [1, 1.04, 0.03]},
    ],
    "credited_loss": [each_rollout_first, without_the_minimum, nothing_written],
    "value_against_gradient": [
        {"learns": LEARNS, "stuck": {"rewards": [1, 1, 1, 1], "ratios": [1.3] * 4}},
        {"learns": LEARNS, "stuck": {"rewards": [1, 0, 1, 0], "ratios": [1.3] * 4}},
        {"learns": {"rewards": [1, 0, 1, 0], "ratios": [1.1, 0.9, 1.1, 0.9]}, "stuck": STUCK},
        {"learns": STUCK, "stuck": STUCK},
    ],
}
