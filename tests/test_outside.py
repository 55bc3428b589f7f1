"""Commands write into their output folder and nowhere else: not into the package, the data, the home or the place
where they were called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ARM, environment
from tiny import byte_reasoner, saved

from faithlab import paths

COMMANDS = {
    "explain": ["explain", "Ada has 3 pears. Ben has 4 pears more than Ada. How many pears does Ben have?", "--samples",
                "2", "--output", "{OUT}"],
    "evaluate": ["evaluate", "abacus", "--n", "2", "--groups", "accuracy,text", "--output", "{OUT}"],
    "train": ["train", "--config", "{ARM}", "--output", "{OUT}", "--quiet"],
    "notebooks": ["notebooks", "06", "--profile", "tiny", "--output", "{OUT}"],
    "course": ["course", "student", "06", "--output", "{OUT}"],
    "feedback": ["feedback", "sheet", "--n", "1", "--output", "{OUT}"],
    "sweep": ["sweep", "--plan", "{PLAN}", "--results", "{OUT}/results", "--output", "{OUT}"],
    "harness": ["harness", "{MODEL}", "--path", "{ROWS}", "--shots", "0", "--output", "{OUT}", "--quiet"],
}  # fmt: skip
OURS = (Path(paths.__file__).parent, paths.data_folder())


def files(folder: Path) -> set[str]:
    """Files below a folder, by their path in it."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def state() -> dict[Path, float]:
    """When each file of the package and of its data was last written; compiled code is Python's own."""
    found = (p for folder in OURS for p in folder.rglob("*") if "__pycache__" not in p.parts)
    return {p: p.stat().st_mtime for p in found if p.is_file()}


@pytest.mark.training
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_written_outside_the_output_folder(name, tmp_path):
    out, home, called, temporary = (tmp_path / n for n in ("out", "home", "called from", "temporary"))
    for folder in (home, called, temporary):
        folder.mkdir()
    given = dict(OUT=out, ARM=tmp_path / "arm.yaml", PLAN=tmp_path / "plan.csv", ROWS=tmp_path / "rows.jsonl",
                 MODEL=tmp_path / "model")  # fmt: skip
    given["ARM"].write_text(ARM.replace("steps: 6", "steps: 1"))
    given["PLAN"].write_text(f"arm,seed\n{given['ARM']},1\n")
    given["ROWS"].write_text(json.dumps(dict(question="Tom has 2 pears. How many?", answer="#### 2")) + "\n")
    saved(byte_reasoner(), given["MODEL"])
    command = [word.format(**given) for word in COMMANDS[name]]
    here = environment(HOME=str(home), TMPDIR=str(temporary), PYTHONDONTWRITEBYTECODE="1")
    for kept in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "FAITHLAB_CACHE", "HF_HOME", "IPYTHONDIR",
                 "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):  # fmt: skip
        here.pop(kept, None)
    before = state()
    done = subprocess.run([sys.executable, "-m", "faithlab.cli", *command], cwd=called, env=here, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert files(out), "the command must have written something"
    assert state() == before
    assert not files(called) and not files(temporary)
    # what libraries and the documented cache of converted weights keep in a home, and no more
    allowed = (".cache/faithlab/", ".cache/huggingface/", ".cache/matplotlib/", ".cache/torch/", ".config/matplotlib/",
               ".local/share/jupyter/", ".ipython/", ".triton/")  # fmt: skip
    assert not [f for f in files(home) if not f.startswith(allowed)]
