"""Arms as YAML: every shipped one is sound, and every mistake is named."""

import dataclasses
import inspect
import re

import pandas as pd
import pytest

from faithlab.arms import ARMS, Arm, arm_names, read_arm
from faithlab.errors import FaithlabError
from faithlab.paths import data_folder
from faithlab.saliency import optimise_mask
from faithlab.sweep import load_runs, read_plan, say_missing, seeds_done
from faithlab.yaml_files import read_mapping


def test_arms_on_gsm8k_find_problems_enough():
    """The published training split has 7,473 problems, of which a tenth is kept for validation."""
    arms = [read_arm(name) for name in arm_names() if name.startswith("gsm8k")]
    assert arms and all(arm.prompts * arm.steps <= 6_600 for arm in arms)


@pytest.mark.parametrize("name", arm_names())
def test_shipped_arms_are_sound_and_say_what_they_are_for(name):
    arm = read_arm(name)
    assert arm.name == name and (ARMS / f"{name}.yaml").read_text().startswith("# ")
    if arm.saliency is not None and arm.credit:
        assert arm.credit.get("name"), "two things at once must say which"


@pytest.mark.parametrize("share", [50, 75, 100])
def test_arms_of_one_comparison_differ_in_nothing_but_the_reward(share):
    arms = [read_arm(name) for name in arm_names() if name.startswith(f"shortcut_{share}_")]
    alike = {repr(dataclasses.replace(a, name="", saliency=None, balance={})) for a in arms}
    assert len(arms) >= 4 and len(alike) == 1


def test_a_second_reward_is_not_scaled_by_the_group():
    """Notebook 06: a group's own standard deviation would give the smallest second reward full strength."""
    assert Arm().scale_rewards == "group"
    assert Arm(saliency={}).scale_rewards == Arm(saliency={}, balance={"mode": "auto"}).scale_rewards == "batch"
    assert Arm(saliency={}, scale_rewards="group").scale_rewards == "group"


def test_what_is_left_out_has_a_default(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 3\nproblems: {hops: [1, 2]}\nsaliency:\n")
    assert read_arm(path) == Arm(name="mine", steps=3, problems={"hops": [1, 2]})
    path.write_text("")
    assert read_arm(str(path)) == Arm(name="mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "did you mean 'steps'"), ("- 3", "must hold `key: value` lines"), ("a: [1", "is no YAML"),
        ("steps: three", "steps='three'"), ("steps: -1", "steps=-1"), ("rollouts: 1", "rollouts=1"),
        ("loss: grpoo", "did you mean 'grpo'"), ("task: storys", "did you mean 'stories'"),
        ("scale_rewards: std", "unknown scaling"), ("learning_rate: 0", "learning_rate=0"),
        ("credit: {name: flo}", "did you mean 'flow'"), ("credit: {quantil: 0.2}", "did you mean 'quantile'"),
        ("credit: flow", "must hold `key: value` lines"), ("saliency: {methd: cut}", "did you mean 'method'"),
        ("saliency: {floor: -4, steps: 9, wiegt: 1}", "unknown key in saliency"),
        ("balance: {mode: auto}", "nothing to balance"),
        ("iterations: 2\nsave_every: 5", "no multiple of iterations"), ("saliency: {method: ct}", "did you mean 'cut'"),
        ("saliency: {method: cut, floor: -4}", "unknown key in saliency"),
        ("saliency: {method: [cut]}", "unknown method"), ("saliency: {floor: 3}", "floor < 0"),
        ("saliency: {floor: x}", "floor < 0"), ("saliency: {scope: some}", "unknown scope"),
        ("saliency: {method: cut, reduction: drop, scope: some}", "unknown scope"),
        ("saliency: {optimiser: adamm}", "did you mean 'adam'"), ("credit: {saliency: {floor: x}}", "floor < 0"),
        ("problems: {1: 2}", "1 is no key"), ("task: [stories]", "unknown task"),
        ("saliency: {}\nbalance: {wait: 1}", "unknown key in balance"), ("accumulation: 7", "do not split into 7"),
        ("saliency: {method: cut}", "finds no mask to reduce"), ("saliency: {reduction: avg}", "unknown reduction"),
        ("saliency: {k: 0}", "k=0"), ("saliency: {method: network, network_rate: -1}", "network_rate=-1"),
        ("saliency: {}\nbalance: {mode: autom}", "did you mean 'auto'"), ("credit: {quantile: 2}", "quantile=2"),
        ("saliency: {}\nbalance: {share: -1}", "share=-1"), ("credit: {sign: plus}", "unknown sign"),
        ("credit: {name: flow, compare: [randon]}", "did you mean 'random'"), ("credit: {layers: midle}", "'middle'"),
        ("credit: {fraction: 0}", "fraction=0"), ("credit: {horizon: 2}", "horizon=2"),
        ("problems: {hpos: 3}", "did you mean 'hops'"), ("steps: 5\niterations: 2", "steps=5 is no multiple"),
        ("problems: {seed: 3}", "seed is no option of a task"), ("problems: {n: 5}", "n is no option"),
        ("credit: {compare: [random]}", "no scores to compare with"), ("credit: {compare: random}", "no list"),
        ("loss: luspo\ncredit: {name: flow}", "one ratio"), ("credit: {name: flow, compare: null}", "no list"),
        ("problems: {hops: [4, 2]}", "hops"), ("task: countdown\nproblems: {numbrs: 3}", "numbrs"),
        ("task: mmlu\nproblems: {pth: x}", "did you mean 'path'"),
        ("bf16: 1", "bf16 must be true or false"), ("bf16: auto", "not 'auto'"),
        ("steps: 3\nsteps: 4", "the key 'steps' comes twice"), ("credit: {sign: both, sign: both}", "comes twice"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(FaithlabError, match=message):
        read_arm(path)


def test_keys_of_a_block_may_be_taken_over_and_changed(tmp_path):
    (tmp_path / "list.yaml").write_text("x: &b {mode: auto, share: 1}\ny: {<<: *b, share: 2}\n")
    assert read_mapping(tmp_path / "list.yaml")["y"] == {"mode": "auto", "share": 2}


def test_names_and_files_that_do_not_exist(tmp_path):
    with pytest.raises(FaithlabError, match="unknown arm"):
        read_arm("no_such_arm")
    with pytest.raises(FaithlabError, match="cannot read"):
        read_arm(tmp_path / "missing.yaml")


def test_every_option_of_the_mask_that_a_file_can_hold_can_be_given():
    options = {
        p.name: p.default for p in inspect.signature(optimise_mask).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    Arm(saliency={name: value for name, value in options.items() if name not in ("pad_id", "progress", "split")})


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_in_order(tmp_path):
    path = tmp_path / "plan.csv"
    path.write_text("arm,seed\ncredit_flow,1\ncredit_uniform,0\n")
    assert read_plan(path) == [("credit_flow", 1), ("credit_uniform", 0)]


def test_seeds_of_the_plan_are_counted(tmp_path, capsys):
    path = tmp_path / "plan.csv"
    path.write_text("arm,seed\ncredit_flow,1\ncredit_flow,2\ncredit_uniform,1\n")
    held = pd.DataFrame(dict(arm=["credit_flow", "credit_flow", "both"], seed=[1, 1, 1]))
    found = seeds_done(held, path)
    assert found.to_dict("index") == {
        "credit_flow": dict(planned=2, done=1, whole=False), "credit_uniform": dict(planned=1, done=0, whole=False),
    }, "a run is counted once, and what the plan does not name is left out"  # fmt: skip
    say_missing(found, ["credit_flow", "both"])
    assert capsys.readouterr().out == "not run yet and left out (faithlab sweep): credit_flow (1 of 2 seeds)\n"
    held.loc[2] = ("credit_uniform", 7)
    assert seeds_done(held, path)["done"]["credit_uniform"] == 0, "a seed beside the plan is none of its"
    held.loc[2] = ("credit_uniform", 1)
    assert seeds_done(held, path)["whole"].to_dict() == {"credit_flow": False, "credit_uniform": True}
    say_missing(seeds_done(held, path), ["credit_uniform"])
    assert capsys.readouterr().out == "", "nothing is missing, nothing is said"
    assert seeds_done(load_runs(tmp_path)[1], path)["done"].tolist() == [0, 0], "no run at all"
    assert seeds_done(load_runs()[1])["planned"].sum() == len(read_plan(data_folder() / "results/training/plan.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm\nx", "needs the columns arm and seed"), ("", "is no CSV"), ("arm,seed\nnone,0", "unknown arm"),
        ("arm,seed\ncredit_flow,x", "line 2 .* no whole number"),
        ("arm,seed\ncredit_flow,0\ncredit_flow,0", "line 3 .* comes twice"),
    ],
)  # fmt: skip
def test_mistakes_in_plans_are_named(tmp_path, text, message):
    path = tmp_path / "plan.csv"
    path.write_text(text)
    with pytest.raises(FaithlabError, match=message):
        read_plan(path)
    with pytest.raises(FaithlabError, match="cannot read"):
        read_plan(tmp_path / "missing.csv")


@pytest.mark.parametrize("of", ["training", "smollm2"])
def test_the_committed_plan_and_results_fit_together(of):
    folder = data_folder() / "results" / of
    runs = read_plan(folder / "plan.csv")
    log, held = load_runs(folder)
    assert len(log) and len(held)
    assert {(a, s) for a, s in zip(held["arm"], held["seed"], strict=True)} <= set(runs), "every result is of the plan"
    for name, part in held.groupby("arm"):
        arm = read_arm(name)
        assert part.groupby(["seed", "condition"]).size().eq(arm.test_problems).all()
    trained = log.groupby(["arm", "seed"])["step"].max().groupby("arm").agg(["min", "max"])
    assert all(fewest == most == read_arm(arm).steps for arm, fewest, most in trained.itertuples())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("credit: {name: saliency, saliency: {stepz: 3}}", "unknown option of a mask: 'stepz'; did you mean 'steps'"),
        ("credit: {name: saliency, saliency: {steps: 0}}", "steps=0"),
        ("saliency: {method: network, network: x}", "unknown key in saliency: 'network'"),
        ("saliency: {method: optimiser, split: x}", "unknown key in saliency: 'split'"),
    ],
)
def test_options_of_masks_are_checked_before_anything_runs(tmp_path, text, says):
    (tmp_path / "arm.yaml").write_text(text + "\n")
    with pytest.raises(FaithlabError, match=re.escape(says)):
        read_arm(tmp_path / "arm.yaml")
