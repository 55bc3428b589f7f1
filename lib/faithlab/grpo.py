"""GRPO with token credit: TRL's trainer, with one step more between scoring rollouts and learning from them.

TRL gives every token of a rollout the rollout's advantage. `FaithfulGRPOTrainer` multiplies it by gamma[t]
(`faithlab.credit`), which TRL's loss takes as an advantage a token. Rewards, clipping, KL, loss types, logging and
checkpoints are TRL's. With `credit="uniform"` nothing is computed at all: it is TRL's GRPOTrainer.

Reward functions that have `save` and `load` (a mask network that learns along, an automatic balance) are kept with each
checkpoint and taken up again on resume.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from faithlab import credit as token_credit
from faithlab.attention import AttentionSummary
from faithlab.errors import FaithlabError, unknown
from faithlab.generation import stream_key
from faithlab.models import Reasoner, as_reasoner
from faithlab.rollouts import read_rollouts, score_rollouts


@dataclass
class FaithfulGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` and what says how credit is given; see `faithlab.credit.weights`."""

    credit: str = field(default="uniform", metadata={"help": f"One of {', '.join(token_credit.STRATEGIES)}."})
    credit_quantile: float = field(default=token_credit.QUANTILE, metadata={"help": "Share of the tokens amplified."})
    credit_amplify: float = field(default=token_credit.AMPLIFY, metadata={"help": "gamma of these tokens."})
    credit_bottom: bool = field(default=False, metadata={"help": "Amplify the lowest scores instead (ablation)."})
    credit_sign: str = field(default="both", metadata={"help": "Amplify both, positive or negative advantages."})
    credit_normalise: bool = field(default=False, metadata={"help": "Divide gamma by its mean over each rollout."})
    credit_layers: str = field(default="middle", metadata={"help": "Layers read: middle, bottom, top or all."})
    credit_freeze_heads: bool = field(
        default=False, metadata={"help": "Keep the first batch's local and global heads."}
    )
    credit_saliency: dict | str | None = field(
        default=None, metadata={"help": "Options of optimise_mask for credit='saliency'."}
    )
    credit_compare: list[str] = field(default_factory=list, metadata={"help": "Strategies whose overlap is logged."})


class FaithfulGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with token credit.

    Args:
        credit: overrides `args.credit`.
        reasoner: how completions are read (where the reasoning ends and the answer stands). By default it follows from
            the tokenizer, as in `load_reasoner`; its model is the policy in any case.
        others: as in TRL.

    Logs under `credit/`: `gamma_mean`, `share` (of the tokens amplified), `seconds`, `overlap_<strategy>`.

    Raises `FaithlabError` for an unknown strategy, and for settings of TRL whose loss takes no advantage a token.
    """

    def __init__(self, *args, credit: str | None = None, reasoner: Reasoner | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        own = [f for f in fields(FaithfulGRPOConfig) if f.name.startswith("credit")]  # which a plain GRPOConfig lacks
        defaults = {f.name: f.default_factory() if f.default is MISSING else f.default for f in own}
        self.credit_settings = {name: getattr(self.args, name, default) for name, default in defaults.items()}
        if credit is not None:
            self.credit_settings["credit"] = credit
        for name in (self.credit, *self.credit_settings["credit_compare"]):
            if name not in token_credit.STRATEGIES:
                raise unknown("credit strategy", name, token_credit.STRATEGIES)
        if self.credit != "uniform" and self.args.use_liger_kernel:
            raise FaithlabError(
                "the Liger loss takes one advantage a rollout and cannot carry token credit; leave it off"
            )
        self._format = reasoner
        self._groups: AttentionSummary | None = None

    @property
    def credit(self) -> str:
        return self.credit_settings["credit"]

    @property
    def reasoner(self) -> Reasoner:
        """The policy as it is now, with its tokenizer and format."""
        policy = self.accelerator.unwrap_model(self.model)
        policy = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # LoRA layers stay in place
        if self._format is None:
            return as_reasoner(policy, self._tokenizer)
        return Reasoner("policy", policy, self._tokenizer, self._format.format, self._format.max_new_tokens)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.credit != "uniform":
            start = time.perf_counter()
            gamma = self._token_credit(output)
            output["advantages"] = output["advantages"].unsqueeze(1) * gamma
            self._note("credit/seconds", time.perf_counter() - start)
        return output

    def _token_credit(self, output: Mapping[str, Tensor]) -> Float[Tensor, "batch completion"]:
        """gamma of every completion token of a generation batch."""
        s = self.credit_settings
        names = (self.credit, *s["credit_compare"])
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        rows = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        traces = read_rollouts(self.reasoner, *(output[name] for name in rows))
        needs = tuple(dict.fromkeys(n for name in names for n in token_credit.NEEDS[name]))
        scores, groups = score_rollouts(
            needs, self.reasoner, traces, mask.shape[1], layers=s["credit_layers"], groups=self._groups,
            seed=stream_key(self.args.seed, self.state.global_step, self.accelerator.process_index),
            saliency=s["credit_saliency"],
        )  # fmt: skip
        if s["credit_freeze_heads"]:
            self._groups = groups
        options = {name: s[f"credit_{name}"] for name in ("quantile", "amplify", "bottom", "sign", "normalise")}
        gammas = {}
        for name in names:
            if name == "coupled_rhythm":
                options = options | dict(bottom=False)
            gammas[name] = token_credit.weights(name, scores, mask, advantages=output["advantages"], **options)
        gamma = gammas.pop(self.credit)
        inside = mask > 0
        for name, value in (("gamma_mean", gamma[inside].mean()), ("share", (gamma != 1)[inside].float().mean())):
            self._note(f"credit/{name}", float(value))
        for name, other in gammas.items():
            self._note(f"credit/overlap_{name}", token_credit.overlap(gamma, other))
        return gamma.to(output["advantages"].device)

    def _note(self, name: str, value: float) -> None:
        """Log a metric of this process's part, as a mean over processes."""
        mode = "train" if self.model.training else "eval"
        part = torch.tensor(value, device=self.accelerator.device, dtype=torch.float32)
        self._metrics[mode][name].append(self.accelerator.gather(part).nanmean().item())

    def _keepers(self):
        return [(i, f) for i, f in enumerate(self.reward_funcs) if hasattr(f, "save") and hasattr(f, "load")]

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):  # before the optimiser's step, so the weights are still sound
            raise FaithlabError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower the learning rate, or look for "
                "NaN in the rewards; the last checkpoint is sound"
            )
        return loss

    def _save_checkpoint(self, model, trial):
        # First, so that a checkpoint whose state file is there, which TRL writes last, is whole.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            for i, function in self._keepers():
                function.save(folder / f"reward-{i}")
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        for i, function in self._keepers() if checkpoint is not None else ():
            function.load(Path(checkpoint) / f"reward-{i}")
