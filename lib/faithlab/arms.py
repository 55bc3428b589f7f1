"""An experiment's arm: one YAML file that says what is trained, on what, for which reward and credit.

    task: stories                        # see faithlab.tasks
    problems: {hops: [2, 4], hint: weak} # options of the task, for training
    steps: 100
    saliency: {method: optimiser}        # options of rewards.SaliencyReward; left out: outcome alone
    balance: {mode: fixed, weight: 0.5}  # options of balance.Balanced
    credit: {name: flow, quantile: 0.4}  # see faithlab.credit; left out: uniform

Everything has a default (`Arm`), and nothing unknown is passed over: a misspelt key is an error that names the nearest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faithlab import credit, tasks
from faithlab.attention import read_layers
from faithlab.balance import Balanced
from faithlab.errors import FaithlabError, check_known, check_number, keyword_options, unknown
from faithlab.heads import FRACTION, HORIZON, check_fraction
from faithlab.rewards import METHOD_OPTIONS, METHODS, SaliencyReward, check_reward, outcome
from faithlab.saliency import check_options
from faithlab.yaml_files import read_mapping

ARMS = Path(__file__).parent / "configs" / "arms"
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
SCALES = ("group", "batch", "none")
CREDIT_KEYS = (
    "name",
    "quantile",
    "amplify",
    "bottom",
    "sign",
    "normalise",
    "layers",
    "fraction",
    "freeze_heads",
    "horizon",
    "look_back",
    "alpha",
    "compare",
    "saliency",
)


@dataclass(frozen=True)
class Arm:
    """What one run trains; see the module's head. Numbers of prompts and rollouts are per step.

    Raises:
        FaithlabError: a number out of range, an unknown name or key, rollouts that do not split into `accumulation`
            parts, `save_every` or `steps` that are no multiples of `iterations`, settings that the saliency reward, its
            balance, the credit or the task would refuse, or `balance` without `saliency`.
    """

    name: str = "unnamed"
    reasoner: str = "abacus"
    task: str = "stories"
    problems: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 60
    prompts: int = 8
    rollouts: int = 8
    learning_rate: float = 5e-4
    warmup: int = 5
    temperature: float = 1.0
    max_completion_length: int = 224
    beta: float = 0.0
    loss: str = "dapo"
    scale_rewards: str | None = None  # left out: "batch" beside a saliency reward (notebook 06 says why), else "group"
    iterations: int = 1
    accumulation: int = 1
    saliency: Mapping[str, Any] | None = None
    balance: Mapping[str, Any] = field(default_factory=dict)
    credit: Mapping[str, Any] = field(default_factory=dict)
    lora: int = 0  # rank; 0: all weights are trained
    bf16: bool | None = None  # of matrix products; weights stay in float32. Left out: on CUDA, but for abacus
    save_every: int = 20
    keep_rollouts_every: int = 20
    test_problems: int = 120  # of each condition, measured at the end

    def __post_init__(self):
        if self.scale_rewards is None:
            object.__setattr__(self, "scale_rewards", "group" if self.saliency is None else "batch")
        check_number("steps", self.steps, 0, whole=True)  # 0: only measure
        for key in ("prompts", "max_completion_length", "iterations", "accumulation", "save_every",
                    "keep_rollouts_every", "test_problems"):  # fmt: skip
            check_number(key, getattr(self, key), 1, whole=True)
        check_number("rollouts", self.rollouts, 2, whole=True)
        check_number("warmup", self.warmup, 0, whole=True)
        check_number("lora", self.lora, 0, whole=True)
        if self.bf16 is not None and not isinstance(self.bf16, bool):
            raise FaithlabError(f"bf16 must be true or false, not {self.bf16!r}; left out, it is true on CUDA")
        check_number("learning_rate", self.learning_rate, 0, above=True)
        check_number("temperature", self.temperature, 0, above=True)
        check_number("beta", self.beta, 0)
        for kind, name, known in (
            ("loss", self.loss, LOSSES), ("scaling of rewards", self.scale_rewards, SCALES),
            ("task", self.task, tuple(tasks.names())),
            ("credit strategy", self.credit.get("name", "uniform"), credit.STRATEGIES),
        ):  # fmt: skip
            if name not in known:
                raise unknown(kind, name, known)
        if self.prompts * self.rollouts % self.accumulation:
            raise FaithlabError(
                f"{self.prompts} x {self.rollouts} rollouts do not split into {self.accumulation} parts"
            )
        for key in ("save_every", "steps"):
            if getattr(self, key) % self.iterations:
                raise FaithlabError(
                    f"{key}={getattr(self, key)} is no multiple of iterations={self.iterations}: a checkpoint between "
                    "the iterations over one batch of rollouts could not go on with them"
                )
        method = (self.saliency or {}).get("method", "optimiser")
        if not isinstance(method, str) or method not in METHOD_OPTIONS:
            raise unknown("method of the saliency reward", method, METHODS)
        options = keyword_options(SaliencyReward) | METHOD_OPTIONS[method]
        in_a_file = options - {"network", "split", "chat_template_kwargs"}  # the others are no words
        _known_keys("saliency", self.saliency or {}, in_a_file)
        check_reward(**(self.saliency or {}))
        _known_keys("balance", self.balance, keyword_options(Balanced))
        Balanced(outcome, **self.balance)  # refuses what is out of range
        _known_keys("credit", self.credit, set(CREDIT_KEYS))
        self._check_credit(**self.credit)
        if self.loss == "luspo" and self.credit.get("name", "uniform") != "uniform":
            raise FaithlabError(
                "loss luspo gives a rollout's tokens one ratio and one gradient: use another, or no credit"
            )
        tasks.check_options(self.task, self.problems)
        if self.problems and self.task not in tasks.PUBLISHED:
            tasks.load(self.task, n=1, **self.problems)  # refuses what no problem can be drawn with
        if self.balance and self.saliency is None:
            raise FaithlabError("there is nothing to balance: give `saliency` too, or leave `balance` out")

    @staticmethod
    def _check_credit(
        name="uniform", compare=(), layers="middle", fraction=FRACTION, horizon=HORIZON[1], saliency=None,
        freeze_heads=False, **settings,
    ) -> None:  # fmt: skip
        """Refuse what the trainer would refuse, but for layers by number, for which it has to know the model."""
        if not isinstance(compare, list | tuple):
            raise FaithlabError(f"compare={compare!r} in credit is no list of strategies")
        if name == "uniform" and compare:
            raise FaithlabError("credit uniform computes no scores to compare with: leave compare out")
        credit.check((name, *compare), settings)
        if isinstance(layers, str):
            read_layers(layers, depth=1)
        check_fraction(fraction)
        check_number("horizon", horizon, HORIZON[0], whole=True)
        check_options(saliency or {})


def read_arm(source: str | Path) -> Arm:
    """An arm from a YAML file, or by the name of one that is shipped (`arm_names`).

    Raises `FaithlabError` for a missing file, one that is no mapping, an unknown key or a value out of range.
    """
    path = Path(source)
    if not path.is_file() and path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        path = ARMS / f"{source}.yaml"
        if not path.is_file():
            raise unknown("arm", source, arm_names())
    content = read_mapping(path)
    _known_keys(str(path.name), content, {f.name for f in dataclasses.fields(Arm)})
    for f in dataclasses.fields(Arm):
        if f.name in content and "Mapping" in str(f.type) and not isinstance(content[f.name], dict | None):
            raise FaithlabError(f"{f.name} in {path.name} must hold `key: value` lines, not {content[f.name]!r}")
        odd = [k for k in (content.get(f.name) or {} if "Mapping" in str(f.type) else ()) if not isinstance(k, str)]
        if odd:
            raise FaithlabError(f"{f.name} in {path.name}: {odd[0]!r} is no key; a key is a word")
    return Arm(**{"name": path.stem} | {k: v for k, v in content.items() if v is not None})


def arm_names() -> list[str]:
    """The arms that are shipped."""
    return sorted(p.stem for p in ARMS.glob("*.yaml"))


def _known_keys(where: str, given: Mapping, known: set[str]) -> None:
    check_known(f"key in {where}:", given, sorted(known))
