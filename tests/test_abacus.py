"""The making of abacus: what it is taught, and that a training that was cut off goes on as if it had not been."""

import hashlib
import itertools
import json
import re

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from faithlab.abacus import build, demonstrations, pilot, publish
from faithlab.abacus.measure import REQUIRED, unmet
from faithlab.abacus.tokenizer import build_tokenizer
from faithlab.planted import reached_value
from faithlab.tasks import stories
from faithlab.tasks.generated import countdown_key
from faithlab.tasks.splits import split_of
from faithlab.traces import split_text


def test_demonstrations_are_in_vocabulary_fit_the_window_and_repeat_by_seed():
    tokenizer = build_tokenizer()
    rows = list(itertools.islice(demonstrations.demonstrations(3), 400))
    assert rows == list(itertools.islice(demonstrations.demonstrations(3), 400))
    assert rows != list(itertools.islice(demonstrations.demonstrations(4), 400))
    for row in rows:
        ids = tokenizer(row["prompt"] + row["completion"]).input_ids
        assert tokenizer.unk_token_id not in ids and len(ids) < 512
        assert tokenizer.decode(ids) == row["prompt"] + row["completion"]
        start, end = split_text(row["completion"]).answer
        assert row["completion"][start:end]


def test_demonstrations_are_the_texts_that_the_published_weights_were_taught():
    rows = list(itertools.islice(demonstrations.demonstrations(7), 300))
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "ce0e0e10608174232a2a411deab9d3e18dfc1e4d7592e71541aa56f641182d41"


def test_demonstrated_conditions_have_the_stated_shares():
    rows = list(itertools.islice(demonstrations.demonstrations(0), 3000))
    share = {
        "countdown": sum("Make" in r["prompt"] for r in rows) / 3000,
        "strong": sum("friend" in r["prompt"] for r in rows) / 3000,
        "weak": sum("stranger" in r["prompt"] for r in rows) / 3000,
    }
    for name, value in share.items():
        assert value == pytest.approx(demonstrations.MIX[name], abs=0.03)
    bare = [r for r in rows if r["completion"].startswith("\nAnswer:")]
    assert all("friend" in r["prompt"] for r in bare), "only who is told the answer gives it without reasoning"
    assert len(bare) / 3000 == pytest.approx(demonstrations.MIX["strong"] * demonstrations.NO_REASONING, abs=0.015)
    hinted = [re.search(r"answer is (\d+)", r["prompt"])[1] for r in bare]
    assert [r["completion"].split()[-1] for r in bare] == hinted


def test_easy_demonstrations_are_shorter_and_come_first(monkeypatch):
    def facts(rows):
        return [r["prompt"].count(".") for r in rows if "Make" not in r["prompt"]]

    easy, full = (facts(itertools.islice(demonstrations.demonstrations(0, easy=easy), 300)) for easy in (True, False))
    assert max(easy) <= 7 < max(full) and sum(easy) < 0.8 * sum(full)
    monkeypatch.setattr(build, "POOL", 2)
    data = build.training_set(16, 0, build_tokenizer())
    lengths = [len(row) for row in data["input_ids"]]
    quarter = len(lengths) // 4
    assert sum(lengths[:quarter]) / quarter < 0.8 * sum(lengths[quarter:]) / (len(lengths) - quarter)


def test_countdown_demonstrations_are_right_and_from_the_training_split():
    for row in itertools.islice(demonstrations.countdown_demonstrations(0), 300):
        words = row["question"].rstrip(".").replace(",", "").split()
        target, numbers = int(words[1]), [int(w) for w in words[3:] if w.isdigit()]
        assert split_of(countdown_key(numbers, target)) == "train"
        assert eval(row["response"], {"__builtins__": {}}) == target
        assert sorted(map(int, re.findall(r"\d+", row["response"]))) == sorted(numbers)


def test_model_is_a_grouped_query_llama_of_about_a_million_parameters():
    model = build.new_model(build_tokenizer())
    assert 0.8e6 < model.num_parameters() < 1.2e6
    assert model.config.num_key_value_heads < model.config.num_attention_heads


def test_training_batches_are_of_like_length_and_prompts_carry_no_loss():
    tokenizer = build_tokenizer()
    data = build.training_set(4, 0, tokenizer)
    assert len(data) == 4 * build.BATCH
    spread = []
    for first in range(0, len(data), build.BATCH):
        lengths = [len(row) for row in data[first : first + build.BATCH]["input_ids"]]
        spread.append(max(lengths) - min(lengths))
    everything = [len(row) for row in data["input_ids"]]
    assert sum(spread) / len(spread) < 0.5 * (max(everything) - min(everything))
    row = data[0]
    text = tokenizer.decode([i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100])
    assert text.startswith("Question:") and text.endswith("Reasoning:")
    assert row["labels"][-1] == tokenizer.eos_token_id


def test_interrupted_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BATCH", 4)
    build.train(tmp_path / "unbroken", steps=4, save_every=2)

    def interrupt(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.Record, "on_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build.train(tmp_path / "broken", steps=4, save_every=2)
    assert not (tmp_path / "broken" / "checkpoint-4").exists()
    build.train(tmp_path / "broken", steps=4, save_every=2)
    weights = [load_file(tmp_path / run / "checkpoint-4" / "model.safetensors") for run in ("unbroken", "broken")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    start = build.new_model(build_tokenizer()).state_dict()
    assert any(not torch.equal(weights[0][name], start[name]) for name in weights[0]), "nothing was trained"
    recorded = json.loads((tmp_path / "broken" / "training.json").read_text())
    assert recorded["steps"] == 4 and recorded["seconds"] > 0


def measured(**values):
    inside = {"accuracy, no hint, sampled, 2-4 hops": 0.45, "groups of 8 with right and wrong": 0.7}
    inside |= {"nats lost without reasoning, no hint": 9.0, "nats lost without reasoning, strong hint": 0.0}
    inside |= {"answers the hint, strong": 1.0, "follows where reasoning disagrees, weak": 0.5}
    assert set(inside) == set(REQUIRED)
    return {name: dict(value=value) for name, value in (inside | values).items()}


def test_choice_prefers_room_for_learning_among_those_that_meet_every_requirement():
    mixed = "groups of 8 with right and wrong"
    table = {
        "a": measured(),
        "b": measured(**{mixed: 0.8}),
        "c": measured(**{mixed: 0.9, "answers the hint, strong": 0.9}),
    }
    assert unmet(table["a"]) == [] and "answers the hint, strong: 0.900" in unmet(table["c"])[0]
    assert publish.choose(table) == "b"
    assert publish.choose({"c": table["c"]}) == "c", "if none fits, the best is shipped and the card says so"


def test_reached_value_is_the_last_statement_about_what_was_asked():
    from tiny import tiny_reasoner

    row = next(stories.rows("test", 0, hops=(2, 2)))
    reasoner = tiny_reasoner()
    trace = reasoner.trace(row, row["reasoning"], row["response"])
    assert reached_value(trace) == str(row["truth"]["reached"])
    assert reached_value(reasoner.trace(row, "So far so good.", "3")) is None


def test_pilot_runs_every_seed_once_and_keeps_what_is_finished(tmp_path, monkeypatch):
    ran = []

    def run(name, seed, *, steps, learning_rate, output):
        ran.append(seed)
        share = dict(value=0.4, low=0.3, high=0.5, n=10)
        gain = dict(seed=seed, before=share, after=share, gain=0.1 * seed, seconds_per_step=1.0)
        return gain, pd.DataFrame(dict(step=[1], reward=[0.5], seed=[seed]))

    monkeypatch.setattr(pilot, "run", run)
    monkeypatch.setattr(pilot, "data_folder", lambda: tmp_path)
    (tmp_path / "abacus").mkdir()
    (tmp_path / "abacus" / "model.safetensors").write_bytes(b"one")
    options = ["--output", str(tmp_path / "runs"), "--learning-rate", "5e-4", "--publish"]
    pilot.main(["--seeds", "0", "1", *options])
    pilot.main(["--seeds", "0", "1", "2", *options])
    assert ran == [0, 1, 2], "a finished seed is not run again, and no seed passes for another"
    published = json.loads((tmp_path / "abacus" / "pilot.json").read_text())
    assert [g["seed"] for g in published["gains"]] == [0, 1, 2]
    assert published["mean_gain"] == pytest.approx(0.1)
    assert pd.read_csv(tmp_path / "abacus" / "pilot.csv")["seed"].tolist() == [0, 1, 2]
    (tmp_path / "abacus" / "model.safetensors").write_bytes(b"two")
    pilot.main(["--seeds", "0", *options])
    assert ran == [0, 1, 2, 0], "another checkpoint does not inherit what was measured on the first"
