"""The code that the README shows runs as it stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_ten_lines_for_your_own_trl_pipeline(tmp_path, monkeypatch, capsys):
    [block] = [b for b in BLOCKS if "FaithfulGRPOTrainer" in b]
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert "rewards/saliency/mean" in capsys.readouterr().out
    statements = re.sub(r"\n +", " ", block).strip().splitlines()
    assert sum(not line.startswith(("from", "import")) and bool(line) for line in statements) <= 10


def test_first_steps_in_python(capsys):
    [block] = [b for b in BLOCKS if "reasoning_effect" in b]
    exec(compile(block.replace("n=50", "n=3"), "README.md", "exec"), {})
    assert "early_answering" in capsys.readouterr().out
