"""Reward functions for `reward_funcs` of any TRL trainer: plain callables, one value a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from faithlab import tasks
from faithlab.traces import split_text


def completion_text(completion: str | Sequence[Mapping]) -> str:
    """The text of a completion in either of TRL's forms: a string, or a list of chat messages."""
    return completion if isinstance(completion, str) else "".join(m.get("content") or "" for m in completion)


def outcome(completions, answer: Sequence[str], task: str | Sequence[str] = "stories", **columns) -> list[float]:
    """1.0 where the stated answer is right, 0.0 where it is wrong or missing.

    `answer` and, where the data set has it, `task` are data-set columns, as TRL passes them; further columns (such as
    countdown's `numbers` and `target`) reach the task's scorer. The answer is what follows the last answer marker.
    """
    kinds = [task] * len(completions) if isinstance(task, str) else task
    rewards = []
    for i, (completion, kind) in enumerate(zip(completions, kinds, strict=True)):
        text = completion_text(completion)
        start, end = split_text(text).answer
        per_row = {k: v[i] for k, v in columns.items() if isinstance(v, Sequence) and len(v) == len(completions)}
        rewards.append(tasks.scorer(kind)(text[start:end], {**per_row, "answer": answer[i]}).value)
    return rewards
