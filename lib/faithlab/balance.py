"""Outcome and saliency as one reward: `R = outcome + w * saliency`, w fixed, scheduled or automatic, or their product.

    fixed      w
    schedule   0 up to step `begin`, then rising in a line to w at step `full`: first learn to be right
    auto       w[t] such that within groups the saliency term varies `share` as much as the outcome does:

                   w[t]^2 V_saliency = share * V_outcome,      at most `limit`

               and 0 up to step `begin`, while a mask network learns along that at first knows nothing

    product    R = outcome * saliency: a right answer counts as far as its reasoning carries it, a wrong one not at all

GRPO only sees differences within a group, so the automatic rule compares variances there (both smoothed over steps). As
the policy becomes sure of its answers V_outcome falls and the weight falls with it: with a share below 1 saliency is
never the louder of the two for long, and where all groups agree on the outcome it is silent. That is also its guard
against TRL's scaling, which divides by each group's own standard deviation: use `scale_rewards="batch"` or "none" with
it (notebook 06).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from faithlab import processes
from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.results import write_atomically
from faithlab.rewards import group_numbers, outcome

MODES = ("fixed", "schedule", "auto", "product")


def within_variance(values: Sequence[float | None], groups: Tensor) -> float:
    """Mean over groups of the variance within the group; None counts as 0, as it does in TRL's sum of rewards."""
    v = torch.tensor([0.0 if x is None else float(x) for x in values], dtype=torch.float64)
    count = torch.bincount(groups).to(v)
    mean = torch.zeros_like(count).index_add_(0, groups, v) / count
    square = torch.zeros_like(count).index_add_(0, groups, (v - mean[groups]) ** 2) / count
    return float(square.mean()) if len(square) else math.nan


class Balanced:
    """A reward function that adds a saliency reward to an outcome reward; see the module's head.

    Args:
        saliency: the second reward, such as `rewards.SaliencyReward(...)`.
        first: the first, `rewards.outcome` unless told otherwise.
        mode, weight, begin, full, share, limit: as above; `weight` is w ("auto" finds its own). With a weight below 0
            a rollout without an answer, whose saliency counts 0, is better off than one with.
        memory: of the smoothing, the part of the old variance that is kept each step.

    Logs, where the trainer passes `log_metric`: both rewards' means, `balance/weight`, and the variances within groups.

    Raises `FaithlabError` for an unknown mode and values out of range.
    """

    def __init__(
        self,
        saliency: Callable,
        first: Callable = outcome,
        *,
        mode: str = "fixed",
        weight: float = 0.5,
        begin: int = 0,
        full: int = 0,
        share: float = 0.25,
        limit: float = 2.0,
        memory: float = 0.8,
    ):
        if mode not in MODES:
            raise unknown("balance", mode, MODES)
        check_number("weight", weight, -1e6, 1e6)
        check_number("share", share, 0)
        check_number("limit", limit, 0)
        check_number("memory", memory, 0, 1)
        check_number("begin", begin, 0, whole=True)
        check_number("full", full, 0, whole=True)
        if mode == "schedule" and full < begin:
            raise FaithlabError(f"a schedule from step {begin} to step {full} runs backwards; use full >= begin")
        self.saliency, self.first, self.mode = saliency, first, mode
        self.weight, self.begin, self.full = weight, begin, full
        self.share, self.limit, self.memory = share, limit, memory
        self.variances: dict[str, float] = {}
        self.__name__ = "balanced"

    def __call__(
        self, prompts, completions, log_metric=None, log_extra=None, trainer_state=None, **columns
    ) -> list[float | None]:
        passed = dict(prompts=prompts, completions=completions, trainer_state=trainer_state, **columns)
        right = self.first(**passed)
        salient = self.saliency(log_metric=log_metric, log_extra=log_extra, **passed)
        groups = group_numbers(prompts)
        spread = dict(outcome=within_variance(right, groups), saliency=within_variance(salient, groups))
        policy = getattr(getattr(self.saliency, "reasoner", None), "model", None)
        learns = policy is None or policy.training  # what is only evaluated must not move the weight
        step = int(trainer_state.global_step) if trainer_state is not None else 0
        weight = self.current(step, spread if learns else None)
        if log_metric is not None:
            log_metric("balance/weight", weight)
            for name, values in (("outcome", right), ("saliency", salient)):
                known = [v for v in values if v is not None]
                if known:
                    log_metric(f"balance/{name}", sum(known) / len(known))
                log_metric(f"balance/{name}_variance", spread[name])
        pairs = [(r or 0.0, s or 0.0) for r, s in zip(right, salient, strict=True)]  # None counts as 0, as in TRL's sum
        return [r * s if self.mode == "product" else r + weight * s for r, s in pairs]

    def current(self, step: int, spread: dict[str, float] | None = None) -> float:
        """The weight at a step; `spread` are this step's variances within groups, which "auto" learns from."""
        if self.mode in ("fixed", "product"):
            return self.weight
        if self.mode == "schedule":
            if step < self.begin:
                return 0.0
            if self.full == self.begin:
                return self.weight
            return self.weight * min(1.0, (step - self.begin) / (self.full - self.begin))
        for name, value in (spread or {}).items():
            value = processes.mean(value)  # one weight for all
            old = self.variances.get(name, value)
            self.variances[name] = self.memory * old + (1 - self.memory) * value
        if step < self.begin:
            return 0.0
        if not self.variances:
            return self.weight
        if self.variances["saliency"] <= 0:
            return 0.0  # nothing varies, so no weight has an effect
        return min(self.limit, math.sqrt(self.share * self.variances["outcome"] / self.variances["saliency"]))

    def save(self, folder: str | Path) -> None:
        """Keep the smoothed variances, and what the saliency reward keeps, with a checkpoint."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(folder) / "balance.json", json.dumps(self.variances) + "\n")
        if hasattr(self.saliency, "save"):
            self.saliency.save(folder)

    def load(self, folder: str | Path) -> None:
        """Take up what `save` kept. Raises `FaithlabError` for a folder without it."""
        try:
            self.variances = json.loads((Path(folder) / "balance.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FaithlabError(f"no readable balance.json in {folder}: take another checkpoint") from error
        if hasattr(self.saliency, "load"):
            self.saliency.load(folder)
