"""Reward functions for `reward_funcs` of any TRL trainer: plain callables, one value a rollout.

    outcome          1 where the stated answer is right
    format_reward    1 where there is a reasoning and then an answer
    length_reward    0 up to a length, then falling to -1 (TRL's soft overlong punishment)
    SaliencyReward   how much the answer needs the reasoning that stands before it (AtManRL, arXiv 2604.16158)

Two rewards are balanced by `faithlab.balance.Balanced`, which is such a callable too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from faithlab import processes, tasks
from faithlab.errors import FaithlabError, check_known, check_number, unknown
from faithlab.likelihood import prompt_hidden_logp, with_and_without_reasoning
from faithlab.mask_network import MaskNetwork, MaskTrainer, States, predict_masks
from faithlab.models import policy_of
from faithlab.rollouts import completion_text, rewarded_rollouts
from faithlab.saliency import OPTIONS, check_options, optimise_mask
from faithlab.traces import Trace, split_text

METHODS = ("optimiser", "network", "cut")
REDUCTIONS = ("mean", "sum", "topk", "drop", "shift", "sufficiency")
TARGETS = ("own", "gold")
METHOD_OPTIONS = dict(
    optimiser=OPTIONS,
    network={"scope", "sparsity"},
    cut={"scope"},
)
NATS = 10.0  # of `drop`: a loss of so many nats is worth the whole reward
KEPT_BYTES = 2**28  # of hidden states that the mask network learns from, until it predicts from them


def outcome(completions, answer: Sequence[str], task: str | Sequence[str] = "stories", **columns) -> list[float]:
    """1.0 where the stated answer is right, 0.0 where it is wrong or missing.

    `answer` and, where the data set has it, `task` are data-set columns, as TRL passes them; further columns (such as
    countdown's `numbers` and `target`) reach the task's scorer. The answer is what follows the last answer marker.
    """
    kinds = [task] * len(completions) if isinstance(task, str) else task
    rows = problems_of(dict(answer=answer, **columns), len(completions))
    rewards = []
    for completion, kind, row in zip(completions, kinds, rows, strict=True):
        text = completion_text(completion)
        start, end = split_text(text).answer
        rewards.append(tasks.scorer(kind)(text[start:end], row).value)
    return rewards


def format_reward(completions, **columns) -> list[float]:
    """1.0 where a reasoning stands before an answer marker and an answer behind it, else 0.0.

    Templates that begin the completion with an open `<think>` for the model are no obstacle: the tag itself is no
    reasoning, and need not be in the completion.
    """
    rewards = []
    for completion in completions:
        text = completion_text(completion)
        split = split_text(text)
        reasoning = text[slice(*split.reasoning)].removeprefix("<think>").strip()
        rewards.append(float(bool(reasoning) and split.answer[1] > split.answer[0]))
    return rewards


def length_reward(limit: int, tail: int) -> Callable[..., list[float]]:
    """TRL's soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13): 0 for completions of up to `limit - tail`
    tokens, falling to -1 at `limit`. Raises `FaithlabError` unless both are whole and 1 <= tail <= limit."""
    from trl.rewards import get_soft_overlong_punishment  # late: importing TRL takes seconds

    check_number("limit", limit, 1, whole=True)
    check_number("tail", tail, 1, limit, whole=True)
    return get_soft_overlong_punishment(limit, tail)


def problems_of(columns: Mapping, count: int) -> list[dict]:
    """The problem of each rollout, from the data-set columns that TRL passes as lists."""
    lists = {k: v for k, v in columns.items() if isinstance(v, Sequence) and not isinstance(v, str) and len(v) == count}
    return [{k: v[i] for k, v in lists.items()} for i in range(count)]


def check_reward(
    *,
    method: str = "optimiser",
    target: str = "own",
    reduction: str = "mean",
    k: int = 5,
    gate: str | None = None,
    network_rate: float = 3e-3,
    train_network: bool = True,
    **options,
) -> None:
    """Raise `FaithlabError` for settings that `SaliencyReward` would refuse; no model is needed for that."""
    for kind, name, known in (
        ("method of the saliency reward", method, METHODS), ("target", target, TARGETS),
        ("reduction", reduction, REDUCTIONS), ("gate", gate or "correct", ("correct",)),
        ("train_network", train_network, (True, False)),
    ):  # fmt: skip
        if name not in known:
            raise unknown(kind, name, known)
    if (method == "cut") < (reduction == "sufficiency"):
        raise FaithlabError("reduction 'sufficiency' hides the prompt and asks for no mask; use method='cut' with it")
    if method == "cut" and reduction not in ("drop", "sufficiency"):
        raise FaithlabError("method 'cut' finds no mask to reduce; use reduction='drop' or 'sufficiency' with it")
    if method == "network" and reduction in ("drop", "shift"):
        raise FaithlabError(f"reduction {reduction!r} asks for log p, which the network does not give: use 'cut'")
    if reduction == "sufficiency" and options:
        raise FaithlabError(f"reduction 'sufficiency' has no options; leave {', '.join(options)} out")
    check_number("k", k, 1, whole=True)
    check_number("network_rate", network_rate, 0, above=True)
    check_known(f"option of the saliency method {method}:", options, sorted(METHOD_OPTIONS[method]))
    check_options(options)


class SaliencyReward:
    """How much a rollout's answer needs its reasoning, under the policy as it is now; in [0, 1] but for "sum" and for
    masks with a ceiling above 0.

    Args:
        reasoner: the policy with its tokenizer and format, or a trainer that is there already, whose policy it reads.
            Its model is the very object that is trained. So load the model first and give it to both: a trainer that is
            given a name would load another one of its own.
        method: "optimiser" (`optimise_mask` on every rollout), "network" (a mask network, trained along with the
            policy unless `train_network=False`), or "cut" (no mask: log p with the reasoning or the prompt hidden).
        target: whose likelihood: the rollout's "own" answer, or the "gold" one (column `answer`) in its place.
        reduction: from the saliencies s[j] of the reasoning to one number. The paper's is not public; ours are choices.
            "mean" of s; "sum" of s, which pays for length; "topk", the `k` highest over k;
            "drop", `clip((log p - log p_hidden) / 10 nats, 0, 1)`;
            "shift", `(p_restored - p_hidden) / max(1, sum s)`, the rise of p(answer) per token that was opened;
            "sufficiency", p(answer) where the answer sees the reasoning and not the prompt. All others ask whether the
            answer *needs* the reasoning, and are near 0 where a hint says the same; this asks whether the reasoning
            is *enough* (comprehensiveness and sufficiency: DeYoung et al. 2020, arXiv 1911.03429).
        gate: "correct" gives 0 where the answer is wrong (columns `answer`, `task`).
        network, network_rate: the mask network (made for the policy if None) and its learning rate.
        chat_template_kwargs: of the trainer's configuration, where its prompts are chats.
        options: of `optimise_mask`, such as `steps`, `floor`, `sparsity`, `scope`; a network takes `scope` and
            `sparsity`, a cut `scope`.

    A rollout without a whole answer gets None: beside another reward TRL counts it as 0 in their sum, alone it gets no
    advantage, and the mean that is logged leaves it out. One without any reasoning gets 0: nothing stands there that
    could matter.

    Called by hand without `completion_ids`, texts are taken as written to their end.

    The model is left as it was, and only the mask gets gradient. Mean saliency, the mask network's loss, seconds and
    their share of the time since the call before (`saliency/time_share`; a trainer calls once a generation batch) go to
    `log_metric`, where the trainer passes it.

    Raises `FaithlabError` for unknown names, for combinations that have no meaning, for what is neither reasoner nor
    trainer, and when it is called without the column `answer` that `gate` or `target` needs.
    """

    def __init__(
        self,
        reasoner: Any,  # a Reasoner or a trainer
        *,
        method: str = "optimiser",
        target: str = "own",
        reduction: str = "mean",
        k: int = 5,
        gate: str | None = None,
        network: MaskNetwork | None = None,
        train_network: bool = True,
        network_rate: float = 3e-3,
        chat_template_kwargs: Mapping | None = None,
        **options,
    ):
        check_reward(
            method=method, target=target, reduction=reduction, k=k, gate=gate, network_rate=network_rate,
            train_network=train_network, **options,
        )  # fmt: skip
        reasoner = policy_of(reasoner)
        self.reasoner, self.method, self.target, self.reduction, self.k = reasoner, method, target, reduction, k
        self.gate, self.options, self.mask_trainer = gate, options, None
        self.chat_template_kwargs = chat_template_kwargs
        self._called: float | None = None  # when the last call ended
        self.__name__ = "saliency"  # what TRL logs it as
        if method == "network":
            network = network or MaskNetwork.for_model(reasoner.model)
            self.network = network
            if train_network:
                self.mask_trainer = MaskTrainer(network, rate=network_rate, pad_id=reasoner.pad_id, **options)

    def __call__(
        self, prompts, completions, completion_ids=None, log_metric=None, log_extra=None, **columns
    ) -> list[float | None]:
        start = time.perf_counter()
        if self.gate == "correct" and "answer" not in columns:
            raise FaithlabError("gate='correct' needs the right answer of each rollout: a data-set column 'answer'")
        problems = problems_of(columns, len(completions))
        traces = rewarded_rollouts(
            self.reasoner, prompts, completions, completion_ids, problems, self.chat_template_kwargs
        )
        with processes.whole_weights(self.reasoner.model):
            rewards = self.of_traces(traces, log_metric=log_metric)
        if self.gate == "correct":
            right = outcome(completions, **columns)
            rewards = [None if r is None else r * float(x > 0) for r, x in zip(rewards, right, strict=True)]
        if log_metric is not None:
            end = time.perf_counter()
            log_metric("saliency/seconds", end - start)
            if self._called is not None:
                log_metric("saliency/time_share", (end - start) / (end - self._called))
            self._called = end
            known = [r for r in rewards if r is not None]
            if known:
                log_metric("saliency/mean", sum(known) / len(known))
        if log_extra is not None:
            log_extra("saliency", rewards)
        return rewards

    def of_traces(self, traces: Sequence[Trace], *, log_metric=None) -> list[float | None]:
        """The reward of each trace, before any gate. Raises `FaithlabError` for target "gold" if the `problem` of a
        trace has no answer."""
        if self.target == "gold":
            if any("answer" not in (t.problem or {}) for t in traces):
                raise FaithlabError("target='gold' needs the right answer of each rollout: a data-set column 'answer'")
            traces = [self.reasoner.answering(t, t.problem["answer"]) if t.answered else t for t in traces]
        usable = [i for i, t in enumerate(traces) if t.answered and t.reasoning.stop > t.reasoning.start]
        rewards: list[float | None] = [0.0 if t.answered else None for t in traces]
        states = None
        if self.method == "network":
            self.network.to(self.reasoner.device)  # a trainer may have moved the policy since
            room = KEPT_BYTES if self.mask_trainer is not None else 0  # only what learns reads twice
            states = States(self.reasoner.model, self.network.config.layers, self.reasoner.pad_id, room)
        if self.mask_trainer is not None and self.reasoner.model.training:  # evaluation must not move the network
            learnt = self.mask_trainer.step(self.reasoner.model, traces, states=states)  # by every process
            for name, value in learnt.items():
                if log_metric is not None:
                    log_metric(f"mask_network/{name}", value)
        if usable:
            for i, value in zip(usable, self._values([traces[i] for i in usable], log_metric, states), strict=True):
                rewards[i] = value
        return rewards

    def _values(self, traces: list[Trace], log_metric, states: States | None) -> list[float]:
        model, pad_id = self.reasoner.model, self.reasoner.pad_id
        if self.reduction == "sufficiency":
            return prompt_hidden_logp(self.reasoner, traces).exp().tolist()
        if self.method == "cut":
            full, hidden = with_and_without_reasoning(self.reasoner, traces, **self.options)
            return ((full - hidden) / NATS).clamp(0, 1).tolist()
        if self.method == "network":
            masks = predict_masks(self.network, model, traces, pad_id=pad_id, states=states)
            return [self._reduce(u) for u in masks]
        found = optimise_mask(model, traces, pad_id=pad_id, **self.options)
        if log_metric is not None:
            log_metric("saliency/steps", float(found.steps.float().mean()))
        if self.reduction == "drop":
            return ((found.full_logp - found.suppressed_logp) / NATS).clamp(0, 1).tolist()
        if self.reduction == "shift":
            rise = found.restored_logp.exp() - found.suppressed_logp.exp()
            return [max(0.0, float(r / s.sum().clamp(min=1))) for r, s in zip(rise, found.values, strict=True)]
        return [self._reduce(s) for s in found.values]

    def _reduce(self, s: Float[Tensor, " token"]) -> float:
        if self.reduction == "sum":
            return float(s.sum())
        # over k also where there are fewer tokens: leaving tokens out must not pay
        return float(s.mean() if self.reduction == "mean" else s.topk(min(self.k, len(s))).values.sum() / self.k)

    def save(self, folder: str | Path) -> None:
        """Keep the mask network and its optimiser with a checkpoint, so that training can go on from there."""
        if self.method == "network":
            self.network.save(folder)
            if self.mask_trainer is not None:
                self.mask_trainer.save(folder)

    def load(self, folder: str | Path) -> None:
        """Take up what `save` kept. Raises `FaithlabError` for a folder without it."""
        if self.method == "network":
            kept = MaskNetwork.load(folder, self.reasoner.device)
            self.network.to(self.reasoner.device)  # before the optimiser's state, which follows it
            self.network.load_state_dict(kept.state_dict())
            if self.mask_trainer is not None:
                self.mask_trainer.load(folder)


def group_numbers(prompts: Sequence) -> Tensor:
    """The number of each rollout's group: neighbours with the same prompt are of one group."""
    numbers, current = [], -1
    for i, prompt in enumerate(prompts):
        current += i == 0 or prompt != prompts[i - 1]
        numbers.append(current)
    return torch.tensor(numbers, dtype=torch.long)
