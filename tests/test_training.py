"""Training from end to end: what a run leaves, and that interrupting it changes nothing."""

import dataclasses
import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import requests
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_run import ARM, environment, kill_at_checkpoint, weights

from faithlab import held_out, sweep, training, training_folder
from faithlab.arms import Arm
from faithlab.cli import main
from faithlab.errors import FaithlabError, NotFinite
from faithlab.mask_network import MaskNetwork
from faithlab.models import load_reasoner

pytestmark = pytest.mark.training

SMALL = Arm(
    name="small", problems={"hops": [1, 2], "hint": {"none": 0.5, "weak": 0.5}}, steps=4, prompts=4, rollouts=4,
    max_completion_length=96, save_every=2, keep_rollouts_every=2, test_problems=4,
    saliency={"method": "network"}, balance={"mode": "auto"}, credit={"name": "flow"},
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "small-3"
    return folder, training.train(SMALL, 3, folder, quiet=True)


def test_a_run_leaves_log_rollouts_models_and_measures(finished):
    folder, found = finished
    log = pd.read_csv(folder / "log.csv")
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert {"reward", "balance/weight", "balance/saliency", "credit/gamma_mean", "mask_network/loss"} <= set(
        log.columns
    )
    assert log[["saliency/time_share", "credit/time_share"]].stack().between(0, 1).all()
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in rows}) == [1, 2, 4] and len(rows) == 3 * SMALL.rollouts
    assert len({row["prompt"] for row in rows if row["step"] == 2}) == 1, "a group is of one prompt"
    assert {"completion", "advantage", "saliency", "reward_balanced"} <= rows[0].keys()
    assert set(found["condition"]) == set(held_out.CONDITIONS)
    assert {"right", "nats", "early"} <= set(found["quantity"])
    for name in ("last", "best"):
        assert load_reasoner(str(folder / name)).model.num_parameters() == load_reasoner().model.num_parameters()
    start, end = load_reasoner().model.state_dict(), load_file(folder / "last" / "model.safetensors")
    assert any(not torch.equal(start[k], v) for k, v in end.items()), "it was trained"
    assert MaskNetwork.load(folder / "last" / "reward-0").config.layers, "the network that learnt along"
    assert not list(folder.glob("checkpoint-*")), "a finished run needs no state to go on from"


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    folder, found = finished
    monkeypatch.setattr(training, "make_trainer", lambda *a, **k: pytest.fail("it must not be made again"))
    again = training.train(SMALL, 3, folder, quiet=True)
    pd.testing.assert_frame_equal(found, again, rtol=1e-3)


def test_a_folder_serves_one_arm_and_seed(finished):
    folder, _ = finished
    for arm, seed, other in ((SMALL, 4, "seed"), (dataclasses.replace(SMALL, steps=5), 3, "steps")):
        with pytest.raises(FaithlabError, match=rf"another run \(other {other}\); give another --output"):
            training.train(arm, seed, folder)


def interrupted(arm, seed, folder, at, monkeypatch):
    """A run that Ctrl-C ends in the middle of the step behind step `at`."""
    from faithlab.grpo import FaithfulGRPOTrainer

    step = FaithfulGRPOTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(FaithfulGRPOTrainer, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        training.train(arm, seed, folder, quiet=True)
    monkeypatch.undo()


@pytest.mark.parametrize("at", [2, 3])
def test_so_it_is_with_several_iterations_and_accumulated_parts(tmp_path, monkeypatch, at):
    """The checkpoint stands where a batch of rollouts has been used up, so that none has to be made again."""
    arm = dataclasses.replace(SMALL, iterations=2, accumulation=2, keep_rollouts_every=2, test_problems=1)
    training.train(arm, 1, tmp_path / "whole", quiet=True)
    interrupted(arm, 1, tmp_path / "broken", at, monkeypatch)
    training.train(arm, 1, tmp_path / "broken", quiet=True)
    whole, resumed = (load_file(tmp_path / f / "last" / "model.safetensors") for f in ("whole", "broken"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole), "bit for bit"
    kept = [(tmp_path / f / "rollouts.jsonl").read_text() for f in ("whole", "broken")]
    assert kept[0] == kept[1]
    assert {json.loads(line)["step"] for line in kept[0].splitlines()} == {1, 3}, "what steps 2 and 4 learned from, too"
    log = pd.read_csv(tmp_path / "broken" / "log.csv")
    assert log["step"].tolist() == [1, 2, 3, 4] and log["grad_norm"].notna().all(), "a row for every step"
    assert log["reward"].notna().tolist() == [True, False, True, False], "new rollouts every other step"
    assert (tmp_path / "broken" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(("rewards", "saved"), [([1, 2, 3, 4], [4, 8]), ([3, 4, 1, 2], [4]), ([3, 1, 1, 3], [4, 8])])
def test_the_best_model_is_of_the_best_stretch_between_two_checkpoints(tmp_path, monkeypatch, rewards, saved):
    """Two iterations over each batch, so that every other step has a reward; checkpoints every four steps."""
    from faithlab import run_log

    kept, history = [], [dict(step=2 * i + 1, reward=r) for i, r in enumerate(rewards)]
    monkeypatch.setattr(run_log, "save_whole", lambda trainer, folder: kept.append(state.global_step))
    log = run_log.RunLog(None, tmp_path, 1)
    for step in range(1, 10):  # the ninth begins a stretch that is not whole
        state = SimpleNamespace(global_step=step, log_history=[row for row in history if row["step"] <= step])
        log.on_save(SimpleNamespace(save_steps=4, max_steps=9), state, None)
    assert kept == saved


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(finished, tmp_path, monkeypatch):
    folder, _ = finished
    interrupted(SMALL, 3, tmp_path, 3, monkeypatch)
    assert training_folder.last_checkpoint(tmp_path).endswith("checkpoint-2")
    training.train(SMALL, 3, tmp_path, quiet=True)
    whole, resumed = (load_file(f / "last" / "model.safetensors") for f in (folder, tmp_path))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole), "bit for bit"
    assert (folder / "held_out.csv").read_text() == (tmp_path / "held_out.csv").read_text()
    assert len(json.loads((folder / "log.json").read_text())) == len(pd.read_csv(folder / "log.csv"))
    columns = ["step", "reward", "balance/weight", "credit/gamma_mean"]
    logs = [pd.read_csv(f / "log.csv")[columns] for f in (folder, tmp_path)]
    pd.testing.assert_frame_equal(*logs)
    kept = [(f / "rollouts.jsonl").read_text() for f in (folder, tmp_path)]
    assert kept[0] == kept[1], "rollouts of a step stand there once"


def test_a_loss_that_is_no_number_stops_with_the_last_sound_weights(tmp_path, monkeypatch):
    from faithlab.grpo import FaithfulGRPOTrainer

    loss = FaithfulGRPOTrainer.compute_loss
    monkeypatch.setattr(
        FaithfulGRPOTrainer,
        "compute_loss",
        lambda self, *a, **k: loss(self, *a, **k) * (float("nan") if self.state.global_step == 1 else 1),
    )
    with pytest.raises(FaithlabError, match="a gradient is not finite at step 2"):
        training.train(SMALL, 3, tmp_path, quiet=True)
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / "stopped" / "model.safetensors").values())


def test_what_else_is_not_finite_stops_with_the_weights_and_what_rewards_have_learnt(tmp_path, monkeypatch):
    """A mask network that breaks in the second step: the error names the folder that can be gone on from."""
    from faithlab import mask_network

    learn = mask_network.MaskTrainer._update

    def breaks(self):
        if self.optimiser.state:
            raise NotFinite("the mask network's loss is not finite")
        learn(self)

    monkeypatch.setattr(mask_network.MaskTrainer, "_update", breaks)
    with pytest.raises(FaithlabError, match=r"not finite; to begin anew from there, name .*stopped as `reasoner`"):
        training.train(SMALL, 3, tmp_path, quiet=True)
    monkeypatch.undo()
    assert MaskNetwork.load(tmp_path / "stopped" / "reward-0").config.layers
    on = dataclasses.replace(SMALL, reasoner=str(tmp_path / "stopped"), steps=2, test_problems=1)
    training.train(on, 3, tmp_path / "on", quiet=True)


@pytest.mark.parametrize(("error", "says"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory. Set accumulation"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory. Set acc"),
    (RuntimeError("PytorchStreamReader failed reading zip archive"), "delete the last checkpoint-N"),
    (SafetensorError("Error while serializing: I/O error: Disk quota exceeded"), "cannot write to .*quota"),
    (SafetensorError("Error while deserializing header"), "delete the last checkpoint-N"),
    (OSError(errno.EACCES, "Permission denied"), "cannot write to .*: Permission denied"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
     "Connection refused .*leave any --report-to out"),
    (requests.ConnectionError("no such host"), "no such host .ConnectionError.; if a connection failed"),
    (RuntimeError("shapes do not match"), None),
])  # fmt: skip
def test_errors_of_other_libraries_are_explained_where_anybody_can(tmp_path, monkeypatch, capsys, error, says):
    """In a sweep an arm that fails so does not keep the others waiting; a bug does."""

    def fails(*args, **options):
        raise error

    monkeypatch.setattr("transformers.Trainer.train", fails)
    (tmp_path / "quick.yaml").write_text("steps: 1\ntest_problems: 2\n")
    (tmp_path / "plan.csv").write_text(f"arm,seed\n{tmp_path / 'quick.yaml'},0\n{tmp_path / 'quick.yaml'},1\n")
    call = ["sweep", "--plan", str(tmp_path / "plan.csv"), "--output", str(tmp_path / "runs")]
    if says is None:
        with pytest.raises(RuntimeError, match="shapes do not match"):
            main(call)
        return
    assert main(call) == 1
    assert len(re.findall(f"FAILED: .*{says}", capsys.readouterr().out)) == 2


def _half_a_model(path):
    """What safetensors leaves and says when the disk is full."""
    path.write_bytes(b"x" * 100)
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _half_an_optimizer(path):
    """What torch leaves and says."""
    path.write_bytes(b"x" * 100)
    raise RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/2")


@pytest.mark.parametrize(("where", "fails", "says"), [
    ("faithlab.grpo.FaithfulGRPOTrainer.save_rewards", None, "No space left on device"),
    ("transformers.modeling_utils.safe_save_file", _half_a_model, "Error while serializing: I/O error: No space left"),
    ("torch.save", _half_an_optimizer, "PytorchStreamWriter failed writing file"),
])  # fmt: skip
def test_a_full_disk_says_so_and_the_run_can_go_on(tmp_path, monkeypatch, where, fails, says):
    """Full before the second checkpoint is begun, half the way through its model, and through its optimiser."""
    arm = dataclasses.replace(SMALL, steps=3, save_every=1, test_problems=1)
    *module, owner, name = where.split(".")
    save = getattr(getattr(pytest.importorskip(".".join(module)), owner), name) if module else getattr(torch, name)

    def full(*args, **options):
        path = next((p for p in map(Path, [a for a in args if isinstance(a, str | Path)])), Path())
        path = path if path.suffix else Path(options.get("filename", path))
        if not any(part == "checkpoint-2" for part in path.parts):
            return save(*args, **options)
        if fails is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fails(path)

    monkeypatch.setattr(where, full)
    monkeypatch.setattr(training_folder, "FULL", 2**62)  # as little is left as a full disk has
    with pytest.raises(FaithlabError, match=f"{says}.*; free space and give the same command again"):
        training.train(arm, 0, tmp_path, quiet=True)
    monkeypatch.undo()
    assert training_folder.last_checkpoint(tmp_path).endswith("checkpoint-1"), "half of the second does not count"
    training.train(arm, 0, tmp_path, quiet=True)
    assert pd.read_csv(tmp_path / "log.csv")["step"].tolist() == [1, 2, 3]


def test_half_a_checkpoint_is_passed_over(tmp_path):
    for number, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 1')  # the disk was full
    assert training_folder.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert training_folder.last_checkpoint(tmp_path / "none") is None


def test_two_processes_cannot_train_in_one_folder(tmp_path, capsys):
    arm = tmp_path / "quick.yaml"
    arm.write_text("steps: 1\ntest_problems: 2\n")
    (tmp_path / "plan.csv").write_text(f"arm,seed\n{arm},0\n")
    (tmp_path / "runs" / "quick-0").mkdir(parents=True)
    with FileLock(tmp_path / "runs" / "quick-0" / "run.lock"):
        call = ["--output", str(tmp_path / "runs" / "quick-0"), "--config", str(arm)]
        assert main(["train", *call]) == 2 and "another process trains in" in capsys.readouterr().err
        assert main(["sweep", "--plan", str(tmp_path / "plan.csv"), "--output", str(tmp_path / "runs")]) == 0
    assert "another process is at it" in capsys.readouterr().out


def test_the_best_model_is_not_chosen_by_a_weight_that_moves():
    from faithlab.run_log import rewards_alike

    def row(weight, outcome, saliency):
        return {"reward": outcome + weight * saliency, "balance/weight": weight, "balance/outcome": outcome,
                "balance/saliency": saliency}  # fmt: skip

    falling = [row(200.0, 0.3, 0.5), row(2.0, 0.6, 0.5), row(1.0, 0.7, 0.5)]
    assert rewards_alike(falling) == pytest.approx([0.8, 1.1, 1.2])
    assert rewards_alike([row(0.5, 0.2, 1.0), row(0.5, 0.4, 0.0)]) == pytest.approx([0.7, 0.4])
    assert rewards_alike([{"reward": 0.25}, {"reward": 0.5}]) == [0.25, 0.5]


def test_a_tracker_is_by_choice_and_a_missing_one_is_named(tmp_path, monkeypatch, capsys):
    arm = dataclasses.replace(SMALL, steps=1)
    assert training.make_trainer(arm, 0, tmp_path, quiet=True, save=False).args.report_to == []
    with pytest.raises(FaithlabError, match="did you mean 'trackio'"):
        training.make_trainer(arm, 0, tmp_path, report_to="trackIO")
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    call = ["train", "--config", "credit_uniform", "--output", str(tmp_path / "run"), "--report-to", "trackio"]
    assert main(call) == 2 and "trackio is not installed: pip install trackio" in capsys.readouterr().err


def test_lora_trains_a_few_weights_goes_on_and_leaves_a_model_that_loads_by_itself(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    arm = dataclasses.replace(SMALL, lora=2, steps=2, save_every=1, prompts=2, test_problems=1)
    training.train(arm, 0, tmp_path / "whole", quiet=True)
    interrupted(arm, 0, tmp_path / "broken", 1, monkeypatch)
    adapters = load_file(tmp_path / "broken" / "checkpoint-1" / "adapter_model.safetensors")
    assert sum(v.numel() for v in adapters.values()) < 0.1 * load_reasoner().model.num_parameters()
    training.train(arm, 0, tmp_path / "broken", quiet=True)
    whole, resumed = (load_file(tmp_path / f / "last" / "model.safetensors") for f in ("whole", "broken"))
    start = load_reasoner(str(tmp_path / "whole" / "last")).model.state_dict()
    assert set(whole) <= set(load_reasoner().model.state_dict()), "a plain model, without names of adapters"
    assert any(not torch.equal(v, whole[k]) for k, v in load_reasoner().model.state_dict().items() if k in whole)
    assert all(torch.equal(start[k], v) and torch.equal(resumed[k], v) for k, v in whole.items())


def test_memory_and_time_are_estimated_first(tmp_path, monkeypatch, capsys):
    arm = dataclasses.replace(SMALL, steps=1, saliency=None, balance={}, credit={}, test_problems=1)
    training.train(arm, 0, tmp_path / "a")
    said = capsys.readouterr().out
    assert "estimate for small: weights, gradients and optimiser 0.0" in said and re.search(
        r"; 1 steps: \S+ s or more", said
    )
    monkeypatch.setattr(training, "available_bytes", lambda device: 2**20)
    with pytest.raises(FaithlabError, match=r"does not fit.*Set accumulation higher"):
        training.train(arm, 0, tmp_path / "b", quiet=True)
    monkeypatch.undo()
    mended = dataclasses.replace(arm, accumulation=2)
    training.train(mended, 0, tmp_path / "b", quiet=True)  # the folder was not taken


def test_matrix_products_in_bfloat16_are_by_choice(tmp_path):
    """The policy's logits are rounded to bfloat16 and its weights are not; nothing is rounded unless asked for."""
    arm = dataclasses.replace(SMALL, steps=1, saliency=None, balance={}, credit={}, test_problems=1)
    rounded = {}
    for bf16 in (None, False, True):
        trainer = training.make_trainer(
            dataclasses.replace(arm, bf16=bf16), 0, tmp_path / str(bf16), quiet=True, save=False
        )
        ids = torch.tensor([trainer.reasoner.ids("so")])
        logits = trainer.accelerator.prepare(trainer.reasoner.model)(input_ids=ids).logits
        assert logits.dtype == next(trainer.reasoner.model.parameters()).dtype == torch.float32
        rounded[bf16] = torch.equal(logits, logits.bfloat16().float())
    assert rounded == {None: False, False: False, True: True}


@pytest.mark.parametrize(("limit", "measured"), [(400, 400), (96, 256)])
def test_held_out_texts_may_be_as_long_as_those_of_training(tmp_path, monkeypatch, limit, measured):
    seen, measure = [], held_out.measure
    monkeypatch.setattr(held_out, "measure", lambda r, *a, **k: seen.append(r.max_new_tokens) or measure(r, *a, **k))
    training.train(Arm(steps=0, test_problems=1, max_completion_length=limit), 0, tmp_path, quiet=True)
    assert seen == [measured]


def test_no_steps_means_to_measure_only(tmp_path):
    found = training.train(
        Arm(name="still", steps=0, test_problems=3, problems={"hops": [1, 1]}), 0, tmp_path, quiet=True
    )
    assert set(found["condition"]) == {"no hint"} and not (tmp_path / "last").exists()


def test_a_sweep_runs_what_is_not_finished(tmp_path, capsys):
    arm = tmp_path / "quick.yaml"
    arm.write_text("steps: 1\nprompts: 2\nrollouts: 2\nmax_completion_length: 32\ntest_problems: 2\n")
    plan = tmp_path / "plan.csv"
    plan.write_text(f"arm,seed\n{arm},0\n{arm},1\n")
    call = ["sweep", "--plan", str(plan), "--output", str(tmp_path / "runs")]
    assert main([*call, "--minutes", "0"]) == 0 and "not begun" in capsys.readouterr().out
    assert main(call) == 0
    capsys.readouterr()
    assert main([*call, "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    log, held = sweep.load_runs(tmp_path)
    assert set(log["seed"]) == set(held["seed"]) == {0, 1} and "reward" in log.columns


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(tmp_path):
    """kill -9 in the middle, the same command again, and a run that was never killed: the same weights."""
    arm = tmp_path / "arm.yaml"
    arm.write_text(ARM)

    def command(folder):
        return [sys.executable, "-m", "faithlab.cli", "train", "--config", str(arm), "--quiet", "--output", str(folder)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, env=environment(), capture_output=True)
    kill_at_checkpoint(command(broken), broken, environment())
    assert not (broken / "held_out.csv").exists()
    subprocess.run(command(broken), check=True, env=environment(), capture_output=True)
    a, b = weights(whole), weights(broken)
    assert all(torch.equal(a[k], b[k]) for k in a)
