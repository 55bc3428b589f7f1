import math


def cut(scores, rows, columns):
    scores[rows, columns] = -math.inf
    return scores.softmax(-1)


def zeroed_after_the_softmax(scores, start, stop):
    probs = scores.softmax(-1)
    probs[stop:, start:stop] = 0
    return probs


WRONG = {
    "worth_by_hand": [
        {"nats": 0.69, "area": 2 / 6},  # difference of probabilities
        {"nats": 1.589, "area": 2 / 6},  # mean over tokens
        {"nats": 3.178, "area": 5 / 6},  # against the right answer
        {"nats": 3.178, "area": 4 / 6},  # agreement
    ],
    "hide_reasoning": [
        zeroed_after_the_softmax,
        lambda scores, start, stop: cut(scores, slice(start, stop), slice(stop, None)),  # rows and columns swapped
        lambda scores, start, stop: cut(scores, slice(stop + 1, None), slice(start, stop)),  # the answer's own rows
    ],
    "hidden_redundancy": [
        lambda visible: 0.9 if visible[5] else 0.01,
        lambda visible: 0.9,
        lambda visible: 0.9 if any(visible) else 0.01,
    ],
}
