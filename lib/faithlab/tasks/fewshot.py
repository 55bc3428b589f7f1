"""Worked examples that show a general language model the form in which each task wants its reasoning and answer.

All are written for this repository (stories' are drawn from its generator); none comes from a test set.
"""

from __future__ import annotations

import random

from faithlab.errors import unknown
from faithlab.formats import AbacusFormat, Example
from faithlab.tasks import stories

WRITTEN: dict[str, tuple[Example, ...]] = {
    "chain_sum": (
        ("State the final answer to the following arithmetic problem: 6 + 3 - 4 =", "6 + 3 = 9. 9 - 4 = 5.", "5"),
        ("State the final answer to the following arithmetic problem: 12 - 5 + 8 =", "12 - 5 = 7. 7 + 8 = 15.", "15"),
    ),
    "gsm8k": (
        (
            "A baker fills 4 trays with 6 rolls each and sells 9 of the rolls. How many rolls are left?",
            "The baker makes 4 * 6 = 24 rolls. After selling 9 there are 24 - 9 = 15 rolls.",
            "15",
        ),
        (
            "Lena reads 12 pages a day for 5 days. The book has 80 pages. How many pages has she still to read?",
            "Lena reads 12 * 5 = 60 pages. She still has to read 80 - 60 = 20 pages.",
            "20",
        ),
    ),
    "mmlu": (
        (
            "Which of these is a prime number?\nA. 9\nB. 15\nC. 17\nD. 21",
            "9 = 3 * 3, 15 = 3 * 5 and 21 = 3 * 7. 17 has no divisor but 1 and itself.",
            "C",
        ),
        (
            "Water at sea level boils at\nA. 50 degrees Celsius\nB. 100 degrees Celsius\nC. 150 degrees Celsius\n"
            "D. 200 degrees Celsius",
            "At the pressure of sea level water boils at 100 degrees Celsius.",
            "B",
        ),
    ),
    "countdown": (
        (
            "Calculate 24 using all of these numbers: 3, 5, 9. Each number may be used at most once.",
            "3 * 5 = 15. 15 + 9 = 24.",
            "3 * 5 + 9",
        ),
    ),
}
WRITTEN["gsm_symbolic"] = WRITTEN["gsm8k"]


def for_task(reasoner, task: str):
    """The reasoner, shown worked examples of the task; abacus, which was trained on the form, as it is."""
    return reasoner if isinstance(reasoner.format, AbacusFormat) else reasoner.with_examples(examples(task))


def examples(task: str) -> tuple[Example, ...]:
    """One or two worked examples for a task, as `Reasoner.with_examples` takes them.

    Raises `FaithlabError` for an unknown task.
    """
    if task == "stories":
        rng = random.Random("examples")
        shown = []
        for _ in range(2):
            story = stories.draw_story(rng, (1, 1), (0, 1))
            reasoning, reached = stories.demonstrate(rng, story, "plain", 0.0)
            shown.append((stories.tell(story)[0], reasoning, str(reached)))
        return tuple(shown)
    if task not in WRITTEN:
        raise unknown("task", task, ("stories", *WRITTEN))
    return WRITTEN[task]
