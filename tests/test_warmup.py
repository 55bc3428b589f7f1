"""The supervised warm-up: demonstrations that are right, a loss that falls, resume, and mistakes that are named."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tiny import byte_reasoner, saved

from faithlab import tasks, training_folder, warmup
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.models import load_reasoner
from faithlab.tasks import worked
from faithlab.traces import split_text
from faithlab.warmup import Warmup

pytestmark = pytest.mark.training
FEW = {"max_terms": 2, "max_digits": 1}  # hardly more than a hundred sums


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(saved(byte_reasoner(), tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def asked(folder):
    return Warmup(folder, "chain_sum", steps=6, batch=4, learning_rate=3e-3, save_every=2)


@pytest.mark.parametrize("task", worked.TASKS)
def test_a_worked_solution_ends_in_the_answer(task):
    """As a reader of rollouts finds it, in every problem; and each step of a sum is right."""
    reasoner = byte_reasoner()
    for row in tasks.load(task, n=40, seed=2):
        reasoning = worked.solution(task, row)
        text = reasoner.format.completion(reasoning, row["answer"])
        split = split_text(text)
        assert tasks.scorer(task)(text[slice(*split.answer)], row).value == 1
        assert text[slice(*split.reasoning)].strip() == reasoning
        numbers = [float(n.replace(",", "").rstrip(".")) for n in re.findall(r"-?\d[\d,.]*", reasoning)]
        assert float(row["answer"]) in numbers, "the reasoning comes to the answer; it may go on with idle facts"
        assert task != "stories" or row["truth"]["reached"] == int(row["answer"])
        if task == "chain_sum":
            steps = [step.split(" = ") for step in reasoning.removesuffix(".").split(". ")]
            assert all(eval(sum_) == int(total) for sum_, total in steps)
            assert steps[-1][1] == row["answer"] and len(steps) == len(row["expression"].split()) // 2


def test_a_mistake_does_not_take_the_folder(asked, tmp_path):
    with pytest.raises(FaithlabError, match=r"only \d+ different problems"):
        warmup.warm_up(dataclasses.replace(asked, steps=60, problems=FEW), tmp_path)
    assert not (tmp_path / "warmup.json").exists()


def test_a_task_without_worked_solutions_is_named():
    wrong = tasks.load("stories", n=60, seed=0, error_rate=0.5)
    with pytest.raises(FaithlabError, match="does not reach the answer"):
        [worked.solution("stories", row) for row in wrong]
    with pytest.raises(FaithlabError, match=r"no worked solutions are known for countdown; .* stories, chain_sum"):
        worked.solution("countdown", {})


def test_only_the_completion_is_learnt(asked):
    reasoner = load_reasoner(asked.reasoner)
    rows = tasks.load("chain_sum", n=24, seed=0)
    for row, found in zip(rows, warmup.demonstrations(reasoner, asked), strict=True):
        learnt = [i for i in found["labels"] if i != -100]
        prompt = found["input_ids"][: -len(learnt)]
        assert prompt == reasoner.prompt_ids(row) and found["labels"] == [-100] * len(prompt) + learnt
        assert learnt[-1] == reasoner.tokenizer.eos_token_id
        text = reasoner.tokenizer.decode(learnt[:-1])
        assert text == reasoner.format.completion(worked.solution("chain_sum", row), row["answer"])


def test_a_warm_up_that_was_interrupted_ends_as_one_that_was_not(asked, tmp_path, monkeypatch):
    from trl import SFTTrainer

    whole = warmup.warm_up(asked, tmp_path / "whole", quiet=True)
    step = SFTTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        warmup.warm_up(asked, tmp_path / "broken", quiet=True)
    monkeypatch.undo()
    assert training_folder.last_checkpoint(tmp_path / "broken").endswith("checkpoint-4")
    again = warmup.warm_up(asked, tmp_path / "broken", quiet=True)
    one, two, start = (load_file(f"{f}/model.safetensors") for f in (whole, again, asked.reasoner))
    assert all(torch.equal(one[k], two[k]) for k in one), "bit for bit"
    assert any(not torch.equal(one[k], start[k]) for k in one)
    assert not list((tmp_path / "broken").glob("checkpoint-*"))
    assert not list(again.glob("*.bin")), "no pickle in what is left"
    monkeypatch.setattr(warmup, "_train", lambda *a: pytest.fail("a finished warm-up is not run again"))
    assert warmup.warm_up(asked, tmp_path / "whole") == whole
    with pytest.raises(FaithlabError, match=r"another run \(other seed\)"):
        warmup.warm_up(dataclasses.replace(asked, seed=1), tmp_path / "whole")


def test_the_command_warms_a_policy_that_training_goes_on_from(folder, tmp_path, capsys):
    """From a random model, whose loss on what it has not seen falls; GRPO then begins from the folder."""
    output = tmp_path / "warm"
    call = ["warmup", folder, "--steps", "60", "--batch", "8", "--learning-rate", "3e-3", "--output", str(output)]
    assert main([*call, "-o", "max_terms", "2", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.count("groups that GRPO can learn from") == 2 and f"--reasoner {output / 'last'}" in said
    asked = Warmup(folder, "chain_sum", {"max_terms": 2}, steps=4, batch=4, seed=9)
    losses = []
    for reasoner in map(load_reasoner, (folder, str(output / "last"))):
        ids = warmup.demonstrations(reasoner, asked)
        with torch.no_grad():
            losses.append(sum(float(reasoner.model(**{k: torch.tensor([v]) for k, v in d.items()}).loss) for d in ids))
    assert losses[1] < 0.5 * losses[0]
    (tmp_path / "arm.yaml").write_text("task: chain_sum\nsteps: 1\nprompts: 2\nrollouts: 2\ntest_problems: 1\n")
    call = ["train", "--config", str(tmp_path / "arm.yaml"), "--reasoner", str(output / "last"), "--quiet"]
    assert main([*call, "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "arm.json").read_text())["arm"]["reasoner"] == str(output / "last")


@pytest.mark.parametrize(("options", "message"), [
    (dict(steps=0), "steps=0"), (dict(learning_rate=0), "learning_rate=0"), (dict(seed=-1), "seed=-1"),
    (dict(task="countdown"), "no worked solutions"), (dict(problems={"max_termz": 2}), "max_termz"),
    (dict(problems={"seed": 2}), "seed is no option"),
])  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(FaithlabError, match=message):
        Warmup("abacus", **options)
