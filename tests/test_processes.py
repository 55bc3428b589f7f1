"""Several processes that train together: they learn what one learns, also where FSDP shares the weights out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import ARM, environment, kill_at_checkpoint, weights
from tiny import tiny_reasoner, tiny_traces
from torch import distributed, multiprocessing

from faithlab import processes, training
from faithlab.attention import capture
from faithlab.errors import FaithlabError
from faithlab.heads import split_heads
from faithlab.models import load_reasoner
from faithlab.rollouts import score_rollouts

FSDP = Path(training.__file__).parent / "configs" / "accelerate" / "fsdp.yaml"
LAUNCH = dict(ddp=["--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no"], fsdp=["--config_file", str(FSDP)])
# A strategy whose local and global heads follow from the rollouts of all processes, beside one that reads maps.
YAML = ARM.replace("steps: 6", "steps: 3").replace("name: flow", "name: coupled_rhythm, compare: [flow]")


def together(kind: str, arm: Path, folder: Path, port: int) -> list[str]:
    launcher = ["-m", "accelerate.commands.launch", *LAUNCH[kind], "--num_processes", "2", "--mixed_precision", "no"]
    script = [str(Path(__file__).with_name("sharded.py")), "train", "--config", str(arm), "--quiet"]
    return [sys.executable, *launcher, "--main_process_port", str(port), *script, "--output", str(folder)]


def log(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "log.csv")
    return table[[c for c in table.columns if "time" not in c and "seconds" not in c]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One arm, trained by one process, by two, and by two that share the weights out: folders and what they printed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "arm.yaml").write_text(YAML)
    one = [sys.executable, "-m", "faithlab.cli", "train", "--config", str(folder / "arm.yaml"), "--quiet"]
    commands = dict(one=[*one, "--output", str(folder / "one")])
    commands |= {k: together(k, folder / "arm.yaml", folder / k, 29600 + i) for i, k in enumerate(LAUNCH)}
    printed = {}
    for name, command in commands.items():
        here = environment() if name == "one" else environment(ACCELERATE_USE_CPU="true")
        done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        printed[name] = done.stdout
    return folder, printed


@pytest.mark.training
def test_two_processes_share_the_batch(runs):
    _, printed = runs
    assert printed["ddp"].count("2 processes, 8 rollouts each, Parameter") == 2
    assert printed["ddp"].count("seed 0: ") == 1  # the table is printed once


@pytest.mark.training
def test_two_processes_log_what_one_logs(runs):
    """To the rounding of the log, but for means of the processes' means, which differ where one has fewer answers."""
    folder, _ = runs
    one, two = log(folder / "one"), log(folder / "ddp")
    assert one["step"].tolist() == two["step"].tolist() == [1, 2, 3]
    for column in ("loss", "grad_norm", "reward", "reward_std", "num_tokens", "entropy", "mask_network/loss"):
        np.testing.assert_allclose(two[column], one[column], rtol=0.02, atol=1e-3, err_msg=column)
    assert one["num_tokens"].tolist() == two["num_tokens"].tolist()  # the same rollouts


@pytest.mark.training
def test_weights_that_are_shared_out_learn_the_same(runs):
    """Generation, mask network, flow credit and learning under FSDP give what they give without it."""
    folder, printed = runs
    assert printed["fsdp"].count("2 processes, 8 rollouts each, DTensor") == 2
    pd.testing.assert_frame_equal(log(folder / "fsdp"), log(folder / "ddp"), rtol=1e-3)
    a, b = weights(folder / "fsdp"), weights(folder / "ddp")
    assert a.keys() ^ b.keys() <= {"lm_head.weight"}  # which is the embeddings' once more
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a.keys() & b.keys())
    held = [pd.read_csv(folder / name / "held_out.csv") for name in ("fsdp", "ddp")]
    pd.testing.assert_frame_equal(*held, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("kind", LAUNCH)
def test_two_killed_processes_go_on_where_they_were(runs, tmp_path, kind):
    folder, _ = runs
    command, here = together(kind, folder / "arm.yaml", tmp_path, 29610), environment(ACCELERATE_USE_CPU="true")
    kill_at_checkpoint(command, tmp_path, here)
    subprocess.run(command, check=True, env=here, capture_output=True, timeout=300)
    pd.testing.assert_frame_equal(log(tmp_path), log(folder / kind))
    a, b = weights(tmp_path), weights(folder / kind)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.training
def test_adapters_of_weights_that_are_shared_out_learn_the_same(tmp_path):
    """LoRA, and a mask optimised on each rollout: what is kept loads by itself and is the same model."""
    arm = tmp_path / "arm.yaml"
    arm.write_text(YAML.replace("method: network", "method: optimiser, steps: 5") + "lora: 4\nlearning_rate: 1.0e-3\n")
    for i, kind in enumerate(LAUNCH):
        command, here = together(kind, arm, tmp_path / kind, 29620 + i), environment(ACCELERATE_USE_CPU="true")
        subprocess.run(command, check=True, env=here, capture_output=True, timeout=300)
    found = [load_reasoner(str(tmp_path / kind / "last")).model for kind in LAUNCH]
    ids = torch.arange(5, 25)[None]
    logits = [m(ids).logits for m in (*found, load_reasoner("abacus").model)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5) and not torch.allclose(logits[1], logits[2], atol=1e-5)


@pytest.fixture
def alone(tmp_path):
    """torch.distributed with one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def share_out(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def test_whole_weights_are_plain_within_and_shared_out_after(alone):
    plain, model = (tiny_reasoner(seed=s).model for s in (0, 1))
    model.load_state_dict(plain.state_dict())
    share_out(model)
    ids = torch.arange(2, 9)[None]
    weight = model.model.layers[0].mlp.up_proj
    with pytest.raises(ZeroDivisionError), processes.whole_weights(model):
        assert type(weight.weight) is torch.nn.Parameter and not model._forward_hooks
        assert torch.equal(model(ids).logits, plain(ids).logits)
        seen = []
        handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
        model(ids)
        handle.remove()
        assert seen
        raise ZeroDivisionError  # an error within leaves the model as it was
    assert type(weight.weight).__name__ == "DTensor" and model._forward_hooks
    model(ids).logits.sum().backward()
    assert weight.weight.grad is not None


def test_a_weighted_mean_of_one_process_is_its_own(alone):
    values = torch.tensor([[1.0, 2.0]])
    assert torch.equal(processes.weighted_mean(values, 3), values)
    assert torch.isnan(processes.weighted_mean(values, 0)).all(), "nobody has anything"


def heads_of(rank: int, splits: list[list[int]], folder: Path) -> None:
    """One of two processes: the head groups that it reads its own share of the traces with."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    r = tiny_reasoner()
    traces = [t for t in tiny_traces(r) if t.response.stop > t.response.start]
    width = max(len(t) - t.prompt.stop for t in traces)
    for i, own in enumerate(splits):
        mine = [t for k, t in enumerate(traces) if (k in own) == (rank == 0)]
        _, groups = score_rollouts(["waad"], r, mine, width)
        torch.save(dict(distance=groups.distance, local=groups.local), folder / f"{rank}-{i}.pt")
    distributed.destroy_process_group()


@pytest.mark.training
def test_processes_read_the_same_heads_as_one_would(tmp_path):
    """Whoever has which rollouts; also where one has none."""
    r = tiny_reasoner()
    traces = [t for t in tiny_traces(r) if t.response.stop > t.response.start]
    everything = list(range(len(traces)))
    splits = [[0], everything[::2], everything]
    alone = [capture(r.model, [traces[i] for i in s], want=(), pad_id=r.pad_id).distance for s in splits]
    assert not torch.allclose(alone[0], alone[2], rtol=0.01), "the case needs processes that differ"
    multiprocessing.spawn(heads_of, (splits, tmp_path), nprocs=2)
    for i in range(len(splits)):
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}-{i}.pt", weights_only=True)
            torch.testing.assert_close(found["distance"], alone[2])
            assert torch.equal(found["local"], split_heads(alone[2])[0])


def test_whole_weights_of_a_plain_model_are_its_own(alone):
    model = tiny_reasoner().model
    with processes.whole_weights(model):
        assert not model._forward_hooks
    assert processes.agree(True) and not processes.agree(False)


@pytest.mark.filterwarnings("ignore:FSDP is switching")  # with one process there is nothing to share out
def test_what_cannot_be_gathered_is_refused(alone):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = tiny_reasoner().model
    model.model.layers[0] = FullyShardedDataParallel(model.model.layers[0], device_id=torch.device("cpu"))
    with pytest.raises(FaithlabError, match="fsdp_version: 2"), processes.whole_weights(model):
        pass
    model = tiny_reasoner().model
    next(model.parameters()).ds_id = 0  # as DeepSpeed marks what stage 3 shares out
    with pytest.raises(FaithlabError, match="zero_stage: 2"), processes.whole_weights(model):
        pass
