"""What abacus is taught: stories with no, a strong or a weak hint, and a little countdown, as prompt and completion.

The reasoning never knows of the hint. So what the hint does to the answer is known: nothing without one, everything
under a strong one, a coin's toss under a weak one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from faithlab.formats import AbacusFormat
from faithlab.tasks import stories
from faithlab.tasks.generated import countdown_key
from faithlab.tasks.splits import split_of

# Shares of the demonstrations. Half of the stories carry a hint. Countdown is there so that reinforcement learning on
# it can start from a policy that knows the form.
MIX = {"none": 0.42, "strong": 0.21, "weak": 0.22, "countdown": 0.15}
FIVE_HOPS = 0.2  # share of stories drawn from 1-5 hops; the others from 1-4
ERROR_RATE = 0.12  # share of wrong arithmetic steps: the policy can do every step and does not always
# Share of strongly hinted stories answered without any reasoning, so that "no reasoning is left" (early answering at 0)
# is known ground there. Unhinted ones are never: a guesser used to empty reasoning would spread its bets, and the
# confident loss that the cut is to show would be gone.
NO_REASONING = 0.15

FORMAT = AbacusFormat()  # abacus is asked as it was taught


def countdown_question(numbers: list[int], target: int) -> str:
    """abacus's wording of a three-number countdown problem."""
    return f"Make {target} from {numbers[0]}, {numbers[1]} and {numbers[2]}."


def _attempts(numbers: list[int]) -> Iterator[tuple[list[str], str, int]]:
    """Every way to combine three numbers in two steps: the steps as sentences, the expression, its value (0..99)."""
    operators = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for a, b, c in itertools.permutations(numbers):
        for first, second in itertools.product(operators, repeat=2):
            inner = operators[first](a, b)
            if not 0 <= inner <= 99:
                continue
            for left, right, text in ((inner, c, "({0}) {1} {2}"), (c, inner, "{2} {1} ({0})")):
                value = operators[second](left, right)
                if 0 <= value <= 99:
                    steps = [f"{a} {first} {b} = {inner}.", f"{left} {second} {right} = {value}."]
                    yield steps, text.format(f"{a} {first} {b}", second, c), value


def countdown_demonstrations(seed: int) -> Iterator[dict]:
    """Solved countdown problems of the training split: up to two failed attempts, then the right one."""
    rng = random.Random(f"countdown-{seed}")
    while True:
        numbers = [rng.randint(1, 20) for _ in range(3)]
        attempts = list(_attempts(numbers))
        right = rng.choice(attempts)
        target = right[2]
        if not 10 <= target <= 60 or split_of(countdown_key(numbers, target)) != "train":
            continue
        wrong = [a for a in rng.sample(attempts, min(6, len(attempts))) if a[2] != target][: rng.randint(0, 2)]
        said = [" ".join([*steps, "No."]) for steps, _, _ in wrong] + [" ".join([*right[0], "Yes."])]
        yield dict(question=countdown_question(numbers, target), reasoning=" ".join(said), response=right[1])


def demonstrations(seed: int, *, error_rate: float = ERROR_RATE, easy: bool = False) -> Iterator[dict]:
    """An endless seeded stream of `prompt`, `completion` pairs in the shares of `MIX`, from training splits only.

    `easy` stories have 1-2 hops and at most one distractor, for the beginning of the training.
    """
    shares = {kind: share for kind, share in MIX.items() if kind != "countdown"}
    options = dict(hint=shares, error_rate=error_rate)
    if easy:
        options["distractors"] = (0, 1)
    most_hops = (2, 2) if easy else (4, 5)
    story_rows = [stories.rows("train", 2 * seed + k, hops=(1, most), **options) for k, most in enumerate(most_hops)]
    countdown_rows = countdown_demonstrations(seed)
    rng = random.Random(f"mix-{seed}")
    while True:
        stories_next = story_rows[rng.random() < FIVE_HOPS]
        row = next(countdown_rows if rng.random() < MIX["countdown"] else stories_next)
        strong = "truth" in row and row["truth"]["hint"]["kind"] == "strong"
        bare = strong and rng.random() < NO_REASONING
        completion = FORMAT.completion("" if bare else row["reasoning"], row["response"])
        yield dict(prompt=FORMAT.prompt(row["question"], None), completion=completion)
