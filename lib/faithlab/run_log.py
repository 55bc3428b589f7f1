"""What a training run leaves behind while it goes on: a log of every step, sample rollouts, and the best model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
from transformers import TrainerCallback

from faithlab import processes
from faithlab.results import write_atomically


def save_whole(trainer, folder: Path) -> None:
    """Save the policy as a model that loads by itself. LoRA adapters are merged into a copy of their model, for which
    there must be memory; checkpoints, which training goes on from, hold the adapters alone. All processes must call
    it."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(policy, "merge_and_unload"):
        trainer.save_model(str(folder))
        return
    if trainer.is_fsdp_enabled:  # no copy can be made of the model, but within, the weights are copies
        with processes.whole_weights(policy):
            policy.merge_adapter()
            if trainer.args.should_save:
                base = policy.get_base_model()
                weights = {k.replace(".base_layer", ""): p for k, p in base.named_parameters() if ".lora_" not in k}
                base.save_pretrained(folder, state_dict=weights)
            policy.unmerge_adapter()
    elif trainer.args.should_save:
        copy.deepcopy(policy).merge_and_unload().save_pretrained(folder)
    if trainer.args.should_save:
        trainer.processing_class.save_pretrained(folder)


class RunLog(TrainerCallback):
    """Writes `log.csv`, `log.json`, `rollouts.jsonl` and `best/` into the run's folder; see `faithlab.training`.

    The log is the trainer's own history, which a checkpoint holds, so a resumed run's log has every step once.
    """

    def __init__(self, trainer, folder: Path, keep_every: int):
        self.trainer, self.folder, self.keep_every = trainer, Path(folder), keep_every

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop rollouts of steps that will come again; in a resumed run, keep the model if it is the best so far."""
        if state.is_world_process_zero and (path := self.folder / "rollouts.jsonl").is_file():
            lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold other line ends
            kept = [line for line in lines if _step(line) <= state.global_step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))  # what came after the checkpoint comes again
        if state.global_step:
            self.on_save(args, state, control)  # the run may have been killed between a checkpoint and this

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write both logs anew, a row for each step so far; every `keep_every` steps, and at step 1, keep rollouts.

        Only steps that begin with new rollouts have a reward; with several iterations over them the others have the
        loss and how often it was clipped, and the rollouts of step `keep_every` may have been written before it."""
        if not state.is_world_process_zero or "step_time" not in (logs or {}):
            return
        rows = [row for row in state.log_history if "step_time" in row]
        table = pd.DataFrame(rows).drop(columns="epoch", errors="ignore")
        if len(table):
            # in the order of the last whole row: a checkpoint's are sorted by name
            whole = next((row for row in reversed(rows) if "reward" in row), rows[-1])
            names = dict.fromkeys(["step", *whole, *table.columns])
            table = table[[name for name in names if name in table.columns]]
            for part in ("saliency", "credit"):
                if f"{part}/seconds" in table:
                    table[f"{part}/time_share"] = table[f"{part}/seconds"] / table["step_time"]
            write_atomically(self.folder / "log.csv", table.to_csv(index=False, float_format="%.5g"))
            write_atomically(self.folder / "log.json", table.to_json(orient="records", indent=1) + "\n")
        serves = -state.global_step % self.keep_every < args.num_iterations or state.global_step == 1
        if "reward" in logs and serves:
            self._keep_rollouts(state.global_step, args.num_generations)

    def on_save(self, args, state, control, **kwargs):
        """Keep the model if the mean reward since the last checkpoint is the highest so far. Where the weight of the
        second reward moves, all rewards are taken at the weight as it is now, or the scale would choose the model."""
        rows = [row for row in state.log_history if "reward" in row]
        every = min(int(args.save_steps), int(args.max_steps))
        if not rows or state.global_step % every:  # not a whole stretch of steps
            return
        stretch = [(row["step"] - 1) // every for row in rows]
        means = pd.Series(rewards_alike(rows)).groupby(stretch).mean()
        if means.iloc[-1] == means.max():
            save_whole(self.trainer, self.folder / "best")

    def _keep_rollouts(self, step: int, count: int) -> None:
        """Append one group of the rollouts that this step learned from."""
        logs = self.trainer._logs
        columns = dict(prompt=logs["prompt"], completion=logs["completion"], advantage=logs["advantages"])
        columns |= {f"reward_{k}": v for k, v in logs["rewards"].items()} | dict(logs["extra"])
        columns = {k: list(v)[:count] for k, v in columns.items()}
        lines = []
        for i in range(min(map(len, columns.values()), default=0)):
            row = {k: v[i] for k, v in columns.items()}
            lines.append(json.dumps(dict(step=step, **row), ensure_ascii=False, default=str) + "\n")
        with (self.folder / "rollouts.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(lines)


def rewards_alike(rows: list[dict]) -> list[float]:
    """The mean reward of each logged step, on one scale: `outcome + w * saliency` with the last step's w, where w is
    not the same in all of them."""
    names = ("balance/weight", "balance/outcome", "balance/saliency")
    if len({row.get(names[0]) for row in rows}) < 2:
        return [row["reward"] for row in rows]
    weight = rows[-1][names[0]]
    return [row.get(names[1], 0.0) + weight * row.get(names[2], 0.0) for row in rows]


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # a line that a killed run left half written
