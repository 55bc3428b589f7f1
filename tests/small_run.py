"""A small training run in a process of its own: its arm, its environment, a kill half the way, its weights."""

import os
import signal
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from faithlab import training, training_folder

ARM = """
problems: {hops: [1, 2], hint: {none: 0.5, weak: 0.5}}
steps: 6
prompts: 4
rollouts: 4
max_completion_length: 96
save_every: 2
keep_rollouts_every: 2
test_problems: 4
saliency: {method: network}
balance: {mode: auto}
credit: {name: flow}
"""


def environment(**more):
    paths = [str(Path(training.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return here | more


def kill_at_checkpoint(command: list[str], folder: Path, here: dict[str, str]) -> None:
    """Start a run, and end it and the processes it started by kill -9 once it has a checkpoint."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command, env=here, start_new_session=True, **quiet)
    while training_folder.last_checkpoint(folder) is None:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model at a run's end."""
    return load_file(folder / "last" / "model.safetensors")
