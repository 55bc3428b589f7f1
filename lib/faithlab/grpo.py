"""GRPO with token credit: TRL's trainer, with one step more between scoring rollouts and learning from them.

TRL gives every token of a rollout the rollout's advantage. `FaithfulGRPOTrainer` multiplies it by gamma[t]
(`faithlab.credit`), which TRL's loss takes as an advantage a token. Rewards, clipping, KL, loss types, logging and
checkpoints are TRL's. With `credit="uniform"` nothing is computed at all: it is TRL's GRPOTrainer.

`SoundGradients` is a callback for any trainer, which stops it before NaN spoils the weights; `faithlab train` has it.

Reward functions that have `save` and `load` (a mask network that learns along, an automatic balance) are kept with each
checkpoint and taken up again on resume.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from faithlab import credit as token_credit
from faithlab import processes
from faithlab.attention import AttentionSummary, read_layers
from faithlab.errors import FaithlabError, NotFinite, check_number
from faithlab.generation import generate_ids, stream_key
from faithlab.heads import FRACTION, HORIZON, check_fraction
from faithlab.models import Reasoner, as_reasoner, base_model
from faithlab.results import write_atomically
from faithlab.rollouts import prompt_ids, read_rollouts, score_rollouts
from faithlab.saliency import check_options

# TRL, which is pinned, calls transformers by names that will go; the advice is not for our users.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

HEADS = "credit_heads.json"  # in a checkpoint: the local and global heads that were frozen


@dataclass
class FaithfulGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` and what says how credit is given; see `faithlab.credit.weights`."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *GRPOConfig._VALID_DICT_FIELDS,
        "credit_saliency",
    ]  # by command line as JSON

    credit: str = field(default="uniform", metadata={"help": f"One of {', '.join(token_credit.STRATEGIES)}."})
    credit_quantile: float = field(default=token_credit.QUANTILE, metadata={"help": "Share of the tokens amplified."})
    credit_amplify: float = field(default=token_credit.AMPLIFY, metadata={"help": "gamma of these tokens."})
    credit_bottom: bool = field(default=False, metadata={"help": "Amplify the lowest scores instead (ablation)."})
    credit_sign: str = field(default="both", metadata={"help": "Amplify both, positive or negative advantages."})
    credit_normalise: bool = field(default=False, metadata={"help": "Divide gamma by its mean over each rollout."})
    credit_layers: str = field(default="middle", metadata={"help": "Layers read: middle, bottom, top or all."})
    credit_fraction: float = field(
        default=FRACTION, metadata={"help": "Share of the heads read that are local, and global; 1: all are both."}
    )
    credit_freeze_heads: bool = field(
        default=False, metadata={"help": "Keep the first batch's local and global heads."}
    )
    credit_saliency: dict | str | None = field(
        default=None, metadata={"help": "Options of optimise_mask for credit='saliency'."}
    )
    credit_horizon: int = field(default=HORIZON[1], metadata={"help": "How far ahead FAI looks (version 1: 50)."})
    credit_look_back: int = field(default=token_credit.LOOK_BACK, metadata={"help": "k of coupled_rhythm."})
    credit_alpha: float = field(default=token_credit.ALPHA, metadata={"help": "What an introducing token gets."})
    credit_compare: list[str] = field(default_factory=list, metadata={"help": "Strategies whose overlap is logged."})


def quick_rollouts(prompts, trainer) -> dict:
    """A `rollout_func` for TRL that samples with `faithlab.generation`: rollouts that have ended leave the batch, and
    each has a random stream of its own, keyed by the run's seed, the step and its place. For models whose weights fit
    one device; vLLM serves larger ones.

    A rollout that ends with a stop string of the format has no end token: TRL counts it as cut off in
    `completions/clipped_ratio`, and with `mask_truncated_completions` would leave it out.
    """
    reasoner, args = trainer.reasoner, trainer.args
    ids = [prompt_ids(reasoner.tokenizer, p, args.chat_template_kwargs) for p in prompts]
    first = trainer.accelerator.process_index * len(prompts)
    with processes.whole_weights(reasoner.model):
        rollouts = generate_ids(
            reasoner.model, reasoner.tokenizer, ids,
            [stream_key(args.seed, trainer.state.global_step, first + i) for i in range(len(ids))],
            temperature=args.temperature, top_p=args.top_p, top_k=max(0, args.top_k or 0),
            max_new_tokens=args.max_completion_length, stop=reasoner.format.stop,
        )  # fmt: skip
    return dict(prompt_ids=ids, completion_ids=[r.ids for r in rollouts], logprobs=None)


class FaithfulGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with token credit.

    Args:
        credit: overrides `args.credit`.
        reasoner: how completions are read (where the reasoning ends and the answer stands). By default it follows from
            the tokenizer, as in `load_reasoner`; its model is the policy in any case.
        others: as in TRL.

    Logs under `credit/`: `gamma_mean`, `share` (of the tokens amplified), `seconds`, `overlap_<strategy>`.

    All of TRL's loss types take an advantage a token, as long as ratios are of tokens
    (`importance_sampling_level="token"`): where a rollout has one ratio (GSPO, and LUSPO as TRL advises it), its tokens
    share one gradient, gamma acts by its mean alone, and any strategy but "uniform" is refused. VESPO has its own
    weights and takes credit at either level. In evaluation nothing is amplified.

    Warns where a saliency reward is added to another and each group's own standard deviation scales their sum, which
    is TRL's default: notebook 06 shows what that does.

    Raises `FaithlabError` for an unknown strategy, settings of credit out of range, a loss that cannot carry it, and a
    reward function whose `reasoner` holds another model than the one that is trained.
    """

    def __init__(self, *args, credit: str | None = None, reasoner: Reasoner | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        own = [f for f in fields(FaithfulGRPOConfig) if f.name.startswith("credit")]  # which a plain GRPOConfig lacks
        defaults = {f.name: f.default_factory() if f.default is MISSING else f.default for f in own}
        self.credit_settings = {name: getattr(self.args, name, default) for name, default in defaults.items()}
        if credit is not None:
            self.credit_settings["credit"] = credit
        self._options = {name: self.credit_settings[f"credit_{name}"] for name in token_credit.SETTINGS}
        if self.credit == "uniform" and self.credit_settings["credit_compare"]:
            raise FaithlabError("credit='uniform' computes no scores to compare with: leave credit_compare out")
        # a mistake shows now, not after a rollout
        token_credit.check((self.credit, *self.credit_settings["credit_compare"]), self._options)
        read_layers(self.credit_settings["credit_layers"], self.model.config.get_text_config().num_hidden_layers)
        check_fraction(self.credit_settings["credit_fraction"])
        check_number("credit_horizon", self.credit_settings["credit_horizon"], HORIZON[0], whole=True)
        check_options(self.credit_settings["credit_saliency"] or {})
        if self.credit != "uniform" and self.args.importance_sampling_level != "token" and self.loss_type != "vespo":
            raise FaithlabError(
                f"importance_sampling_level={self.args.importance_sampling_level!r} gives a rollout's tokens one ratio "
                f"and one gradient, so credit={self.credit!r} could not tell them apart: use 'token' (with another "
                "loss than luspo), or credit='uniform'"
            )
        self._format = reasoner
        self._groups: AttentionSummary | None = None
        for function in self.reward_funcs:  # a balance reads the policy through the rewards that it weighs
            inner = [getattr(function, name, function) for name in ("saliency", "first")]
            read = [r for f in inner if isinstance(r := getattr(f, "reasoner", None), Reasoner)]
            if any(base_model(r.model) is not self.reasoner.model for r in read):
                raise FaithlabError(
                    f"the reward {function.__name__!r} reads another model than the one that is trained, which would "
                    "never learn: load the model once, and give that very object to the reward and to the trainer"
                )
            weighed = len(self.reward_funcs) > 1 or hasattr(function, "saliency")
            summed = self.args.multi_objective_aggregation == "sum_then_normalize"
            if read and weighed and summed and self.scale_rewards == "group":
                warnings.warn(
                    f"scale_rewards='group', TRL's default, gives the reward {function.__name__!r} full strength in "
                    "groups whose outcomes agree, however small its weight: set scale_rewards='batch' (notebook 06)",
                    stacklevel=2,
                )

    @property
    def credit(self) -> str:
        """The name of the strategy in use: the argument `credit` if it was given, else `args.credit`."""
        return self.credit_settings["credit"]

    @property
    def reasoner(self) -> Reasoner:
        """The policy as it is now, with its tokenizer and format."""
        policy = base_model(self.accelerator.unwrap_model(self.model))
        if self._format is None:
            return as_reasoner(policy, self._tokenizer)
        return Reasoner("policy", policy, self._tokenizer, self._format.format, self._format.max_new_tokens)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.credit != "uniform" and self.model.training:
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
        with processes.whole_weights(self.reasoner.model):
            scores, groups = score_rollouts(
                needs, self.reasoner, traces, mask.shape[1], layers=s["credit_layers"], groups=self._groups,
                seed=stream_key(self.args.seed, self.state.global_step, self.accelerator.process_index),
                saliency=s["credit_saliency"], horizon=(HORIZON[0], s["credit_horizon"]), fraction=s["credit_fraction"],
            )  # fmt: skip
        if s["credit_freeze_heads"] and self._groups is None:
            self._groups = processes.of_the_first(groups and replace(groups, traces=()))
        gamma = token_credit.weights(self.credit, scores, mask, advantages=output["advantages"], **self._options)
        # which tokens a strategy chose, whatever becomes of them by amplification, sign and normalisation
        plain = self._options | dict(amplify=2.0, sign="both", normalise=False)
        chosen = {name: token_credit.weights(name, scores, mask, **plain) > 1 for name in names}
        ours = chosen.pop(self.credit)
        self._note("credit/gamma_mean", float(gamma[mask > 0].mean()))
        self._note("credit/share", float(ours[mask > 0].float().mean()))
        for name, other in chosen.items():
            self._note(f"credit/overlap_{name}", token_credit.overlap(ours, other))
        return gamma.to(output["advantages"].device)

    def _note(self, name: str, value: float) -> None:
        """Log a metric of this process's part, as a mean over processes."""
        mode = "train" if self.model.training else "eval"
        part = torch.tensor(value, device=self.accelerator.device, dtype=torch.float32)
        self._metrics[mode][name].append(self.accelerator.gather(part).nanmean().item())

    def _keepers(self):
        return [(i, f) for i, f in enumerate(self.reward_funcs) if hasattr(f, "save") and hasattr(f, "load")]

    def save_rewards(self, folder: str | Path) -> None:
        """Save what reward functions have learnt into `folder/reward-I`."""
        for i, function in self._keepers():
            function.save(Path(folder) / f"reward-{i}")

    def _save_checkpoint(self, model, trial):
        # First, so that a checkpoint whose state file is there, which TRL writes last, is whole.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.save_rewards(folder)
            if self._groups is not None:
                folder.mkdir(parents=True, exist_ok=True)
                heads = dict(layers=self._groups.layers, local=self._groups.local.tolist())
                heads |= dict(global_=self._groups.global_.tolist(), distance=self._groups.distance.tolist())
                write_atomically(folder / HEADS, json.dumps(heads) + "\n")
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        for i, function in self._keepers() if checkpoint is not None else ():
            function.load(Path(checkpoint) / f"reward-{i}")
        if checkpoint is not None and (path := Path(checkpoint) / HEADS).is_file():
            heads = json.loads(path.read_text(encoding="utf-8"))
            tensors = {name: torch.tensor(heads[name]) for name in ("distance", "local", "global_")}
            self._groups = AttentionSummary(tuple(heads["layers"]), **tensors, traces=())


class SoundGradients(TrainerCallback):
    """Stops any of transformers' trainers, by `NotFinite`, before the optimiser's step if a gradient is not finite, in
    all processes together, while the weights are still sound. Where FSDP shares gradients out, each process sees its
    own part. DeepSpeed takes its step before this is asked, so it stops nothing there."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Look at the norm of all gradients: NaN or infinite where one of them is, and read from the device once.
        Raises `NotFinite`."""
        gradients = (p.grad for p in model.parameters() if p.grad is not None)
        parts = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
        if not processes.agree(math.isfinite(float(torch.nn.utils.get_total_norm(parts)))):
            raise NotFinite(
                f"a gradient is not finite at step {state.global_step + 1}: lower the learning rate, or look for NaN "
                "in the rewards; the weights before this step are sound"
            )
