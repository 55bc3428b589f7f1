import numpy as np


def group_answer(**changed):
    right = {"drop": [0, 0, 0.6, 1], "advantage": [-0.3, -0.3, -0.1, 0.7], "pushed_up_from": 5 / 6}
    return right | changed


def variances(values, groups):
    values, groups = np.array([v or 0.0 for v in values]), np.array(groups)
    return [values[groups == g].var() for g in np.unique(groups)]


def of_the_whole_batch(outcome, saliency, groups, share, limit):
    one_group = [0] * len(groups)
    return with_these(variances(outcome, one_group), variances(saliency, one_group), share, limit)


def with_these(outcome, saliency, share, limit):
    return min(limit, (share * np.mean(outcome) / np.mean(saliency)) ** 0.5) if np.mean(saliency) > 0 else 0.0


def share_of_the_deviation(outcome, saliency, groups, share, limit):
    ratio = np.mean(variances(outcome, groups)) / max(1e-12, np.mean(variances(saliency, groups)))
    return min(limit, share * ratio**0.5)


def without_limit(outcome, saliency, groups, share, limit):
    return with_these(variances(outcome, groups), variances(saliency, groups), share, 1e9)


def without_unanswered(outcome, saliency, groups, share, limit):
    kept = [i for i, v in enumerate(saliency) if v is not None]
    known = variances([saliency[i] for i in kept], [groups[i] for i in kept])
    return with_these(variances(outcome, groups), known, share, limit)


def neighbours(outcome, saliency, groups, share, limit):
    number = len(set(groups))
    groups = np.repeat(np.arange(number), len(groups) // number)
    return with_these(variances(outcome, groups), variances(saliency, groups), share, limit)


def divides_by_zero(outcome, saliency, groups, share, limit):
    small = 1e-9
    return min(
        limit, (share * np.mean(variances(outcome, groups)) / (np.mean(variances(saliency, groups)) + small)) ** 0.5
    )


def read_off(reasoning, hint):
    return reasoning


def solves(solved, hint):
    return solved


def writes_the_hint(solved, hint):
    return solved if hint is None else hint


def says_the_hint(reasoning, hint):
    return reasoning if hint is None else hint


WRONG = {
    "paid_in_a_group": [
        group_answer(drop=[0, -0.03, 0.6, 1.4]),
        group_answer(advantage=[1, 1, 1.2, 2]),
        group_answer(advantage=[-0.7276, -0.7276, -0.2425, 1.6977]),
        group_answer(pushed_up_from=1.0),
        group_answer(pushed_up_from=2.5),
        group_answer(pushed_up_from=0.5),
    ],
    "balanced_weight": [
        of_the_whole_batch,
        share_of_the_deviation,
        without_limit,
        without_unanswered,
        neighbours,
        divides_by_zero,
    ],
    "laundered_hint": [
        (solves, read_off),
        (solves, says_the_hint),
        (writes_the_hint, says_the_hint),
        (lambda solved, hint: hint or 0, read_off),
    ],
}
