"""The trainer's contract with the pinned TRL: credit of one is TRL bit for bit, and gamma reaches the right tokens."""

import copy
import dataclasses
import re
import warnings
from collections import Counter

import pytest
import torch
from tiny import tiny_reasoner
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from faithlab import credit, rewards
from faithlab.abacus.pilot import training_problems
from faithlab.arms import CREDIT_KEYS, LOSSES
from faithlab.balance import Balanced
from faithlab.errors import FaithlabError
from faithlab.feedback import MarksReward
from faithlab.formats import AbacusFormat
from faithlab.grpo import FaithfulGRPOConfig, FaithfulGRPOTrainer, quick_rollouts
from faithlab.marks import Marked
from faithlab.models import load_reasoner


def length_of(completions, completion_ids, **columns):
    """A reward with spread, whatever a random model writes."""
    return [float(len(ids) % 5) + ids[0] / 100 for ids in completion_ids]


def trainer(folder, kind=FaithfulGRPOTrainer, reasoner=None, reward=length_of, steps=2, problems=None, **options):
    """A trainer of a tiny random model on 4 prompts x 2 rollouts a step, everything seeded."""
    reasoner = reasoner or tiny_reasoner()
    own = {k: options.pop(k) for k in ("credit",) if k in options}
    config = GRPOConfig if kind is GRPOTrainer else FaithfulGRPOConfig
    settings = dict(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, num_generations=2,
        max_completion_length=24, learning_rate=1e-2, use_cpu=True, bf16=False, logging_steps=1, save_strategy="no",
        report_to="none", seed=3, disable_tqdm=True, beta=0.0,
    )  # fmt: skip
    set_seed(3)
    problems = problems or training_problems(reasoner, 16, 0, hops=(1, 2))
    args = config(**settings | options, **own)
    return kind(model=reasoner.model, args=args, reward_funcs=reward, train_dataset=problems,
                processing_class=reasoner.tokenizer)  # fmt: skip


def generated(folder, **options):
    """A trainer that has not learnt yet, and the batch that its first step would learn from."""
    run = trainer(folder, **options)
    run.create_optimizer_and_scheduler(2)
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    return run, run._generate_and_score_completions([run.train_dataset[i // 2] for i in range(8)])


def gradient_of(run, inputs, advantages):
    """The gradient of the trainer's own loss, flat, with other advantages."""
    run.model.zero_grad()
    run._compute_loss(run.model, {**inputs, "advantages": advantages}).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


def weights_after(run):
    run.train()
    return {k: v.clone() for k, v in run.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("loss", LOSSES)
def test_credit_of_one_is_trl_bit_for_bit(tmp_path, loss):
    plain = weights_after(trainer(tmp_path, GRPOTrainer, loss_type=loss))
    assert same(plain, weights_after(trainer(tmp_path, credit="uniform", loss_type=loss)))
    assert same(plain, weights_after(trainer(tmp_path, credit="flow", credit_amplify=1.0, loss_type=loss)))
    assert not same(plain, weights_after(trainer(tmp_path, credit="random", loss_type=loss)))


@pytest.mark.parametrize("options", [
    dict(num_iterations=2), dict(gradient_accumulation_steps=2, per_device_train_batch_size=4),
    dict(gradient_accumulation_steps=2, per_device_train_batch_size=4, steps_per_generation=4, num_iterations=2),
    dict(top_entropy_quantile=0.5), dict(mask_truncated_completions=True, max_completion_length=60),
])  # fmt: skip
def test_so_it_is_with_several_iterations_accumulation_and_the_rest(tmp_path, options):
    options = dict(steps=3) | options
    plain = weights_after(trainer(tmp_path, GRPOTrainer, **options))
    assert same(plain, weights_after(trainer(tmp_path, credit="random", credit_amplify=1.0, **options)))
    assert not same(plain, weights_after(trainer(tmp_path, credit="random", **options)))


def test_it_holds_with_a_reference_model_too(tmp_path):
    def weights(kind, **options):
        reasoner = load_reasoner("abacus")  # TRL loads the reference from where the policy came from
        return weights_after(trainer(tmp_path, kind, reasoner, beta=0.1, **options))

    plain = weights(GRPOTrainer)
    assert same(plain, weights(FaithfulGRPOTrainer, credit="flow", credit_amplify=1.0))
    assert not same(plain, weights(FaithfulGRPOTrainer, credit="flow", credit_amplify=3.0))


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "vespo"])
def test_a_ratio_of_whole_sequences_cannot_carry_credit_and_says_so(tmp_path, loss):
    options = dict(importance_sampling_level="sequence", loss_type=loss)
    with pytest.raises(FaithlabError, match="one ratio and one gradient, so credit='flow' could not tell them apart"):
        trainer(tmp_path, credit="flow", **options)
    trainer(tmp_path, credit="uniform", **options)


@pytest.mark.parametrize(("loss", "level"), [("vespo", "sequence"), ("luspo", "token"), ("dapo", "token")])
def test_what_is_not_refused_tells_tokens_apart(tmp_path, loss, level):
    """Another gradient from gamma than from the same numbers in another order, which a rollout's mean would not see."""
    run, inputs = generated(tmp_path, loss_type=loss, importance_sampling_level=level)
    gamma = 1 + torch.rand(inputs["completion_mask"].shape)
    flat = inputs["advantages"].unsqueeze(1)
    length = int(inputs["completion_mask"].sum(1).min())
    turned = torch.cat([gamma[:, :length].flip(1), gamma[:, length:]], dim=1)
    one, other = (gradient_of(run, inputs, flat * g) for g in (gamma, turned))
    assert float((one - other).norm() / one.norm()) > 0.01


class Counted(TorchDispatchMode):
    """Counts tensor operations by name, in the thread that entered it."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("reward", [
    lambda r: rewards.SaliencyReward(r, steps=1), lambda r: Balanced(rewards.SaliencyReward(r, steps=1)),
    lambda r: MarksReward(r, [Marked("q", "r", "1", ((0, 1),))]),
], ids=["saliency", "balanced", "marks"])  # fmt: skip
def test_a_reward_that_reads_another_model_is_refused(tmp_path, reward):
    reasoner = tiny_reasoner()
    trainer(tmp_path, reasoner=reasoner, reward=[length_of, reward(reasoner)], scale_rewards="batch")
    with pytest.raises(FaithlabError, match="reads another model than the one that is trained"):
        trainer(tmp_path, reasoner=reasoner, reward=[length_of, reward(tiny_reasoner())])


@pytest.mark.parametrize(("options", "warned"), [
    ({}, True), (dict(scale_rewards="batch"), False), (dict(scale_rewards="none"), False),
    (dict(multi_objective_aggregation="normalize_then_sum"), False),
])  # fmt: skip
def test_a_second_reward_under_group_scaling_is_warned_of(tmp_path, options, warned):
    """TRL's default; alone, a reward has no weight that could be cancelled."""
    reasoner = tiny_reasoner()
    saliency = rewards.SaliencyReward(reasoner, steps=1)
    for reward, expected in (([length_of, saliency], warned), (Balanced(saliency), warned), (saliency, False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(tmp_path, reasoner=reasoner, reward=reward, **options)
        assert any("notebook 06" in str(w.message) for w in caught) == expected


def test_rollouts_end_where_the_format_says(tmp_path):
    """A stop string ends them in training as it does in evaluation."""
    abacus = load_reasoner("abacus").with_format(AbacusFormat(stop=(".",)))
    run = trainer(tmp_path, reasoner=abacus)
    run._format = abacus
    found = quick_rollouts(["Question: Ada has 3 pears. How many pears does Ada have?\nReasoning:"] * 4, run)
    texts = [abacus.tokenizer.decode(ids) for ids in found["completion_ids"]]
    assert all(text.count(".") == 1 and text.rstrip().endswith(".") for text in texts), texts


def test_uniform_computes_nothing(tmp_path):
    """A step takes the very tensor operations that TRL's trainer takes, and as many; another strategy takes more."""

    def operations(kind, **options):
        run = trainer(tmp_path, kind, steps=2, **options)
        with Counted() as counted:
            run.train()
        assert any(key.startswith("credit") for row in run.state.log_history for key in row) == bool(options)
        return counted.seen

    plain = operations(GRPOTrainer)
    assert sum(plain.values()) > 1000 and operations(FaithfulGRPOTrainer) == plain
    assert sum(operations(FaithfulGRPOTrainer, credit="random").values()) > sum(plain.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_scaled_advantages(tmp_path, loss):
    """With the old policy the present one, every loss's gradient is that of -sum_t w A gamma[t] log p[t], with a weight
    w of the loss type that does not depend on gamma: compare with TRL's own gradient of each token alone."""
    run, inputs = generated(tmp_path, loss_type=loss)
    gamma = 1 + torch.rand(inputs["completion_mask"].shape)
    flat = inputs["advantages"].unsqueeze(1)
    total = gradient_of(run, inputs, flat * gamma)
    parts = torch.zeros_like(total)
    for t in range(gamma.shape[1]):
        only = torch.zeros_like(gamma)
        only[:, t] = gamma[:, t]
        parts += gradient_of(run, inputs, flat * only)
    assert torch.allclose(total, parts, atol=1e-5 * float(total.abs().max())), loss
    assert float((total - gradient_of(run, inputs, inputs["advantages"])).abs().max()) > 0


@pytest.mark.parametrize("name", [n for n in credit.STRATEGIES if n != "uniform"])
def test_every_strategy_trains_and_is_logged(tmp_path, name):
    run = trainer(tmp_path, credit=name, steps=1, credit_compare=["random", "entropy"],
                  credit_saliency=dict(steps=3), max_completion_length=32)  # fmt: skip
    run.train()
    row = next(r for r in run.state.log_history if "reward" in r)
    assert row["credit/seconds"] > 0 and {"credit/gamma_mean", "credit/share"} <= row.keys()
    if name in ("random", "entropy", "local_chunk", "received_attention"):  # defined without an answer
        assert row["credit/gamma_mean"] > 1 and 0 < row["credit/share"] <= 0.6
        assert 0 <= row["credit/overlap_random" if name == "entropy" else "credit/overlap_entropy"] <= 1
    assert row.keys() >= {"reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length"}


def test_gamma_stands_at_the_tokens_it_was_made_for(tmp_path):
    """abacus, whose answers exist: advantages after TRL's shuffling are gamma times one number a rollout."""
    run = trainer(
        tmp_path, reasoner=load_reasoner("abacus"), credit="flow", credit_amplify=3.0, max_completion_length=160
    )
    run.model.train()
    output = run._generate_and_score_completions([run.train_dataset[i // 2] for i in range(8)])
    mask, advantages = output["completion_mask"].bool(), output["advantages"]
    assert advantages.shape == mask.shape
    from faithlab.rollouts import read_rollouts, score_rollouts

    rows = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    traces = read_rollouts(run.reasoner, *(output[r] for r in rows))
    scores, _ = score_rollouts(("flow",), run.reasoner, traces, mask.shape[1])
    for i, t in enumerate(traces):
        values = advantages[i].abs().unique()
        if not t.answered or advantages[i].abs().max() == 0:
            continue
        assert len(values) == 2 and values[1] / values[0] == pytest.approx(3.0)
        amplified = (advantages[i].abs() == values[1]).nonzero().flatten()
        defined = (~scores["flow"][i].isnan()).nonzero().flatten()
        best = defined[scores["flow"][i][defined].argsort(descending=True)[: len(amplified)]]
        assert set(amplified.tolist()) == set(best.tolist()), "the tokens with the highest throughput"
        assert amplified.max() < t.answer.start - t.prompt.stop


def test_tool_tokens_get_no_credit(tmp_path):
    run = trainer(tmp_path, credit="random", credit_quantile=1.0)
    run.model.train()
    output = run._generate_and_score_completions([run.train_dataset[i // 2] for i in range(8)])
    output["advantages"] = output["advantages"].amax(1)
    tools = torch.ones_like(output["completion_mask"])
    tools[:, 3:6] = 0  # what a tool wrote
    gamma = run._token_credit({**output, "tool_mask": tools})
    assert (gamma[:, 3:6] == 1).all() and (gamma > 1).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_tool_wrote_has_no_part_in_the_loss(tmp_path, loss):
    run, inputs = generated(tmp_path, loss_type=loss)
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][:, 3:6] = 0
    gamma = 1 + torch.rand(inputs["completion_mask"].shape)
    flat, elsewhere = inputs["advantages"].unsqueeze(1), gamma.clone()
    elsewhere[:, 3:6] = 1e3
    one, other = (gradient_of(run, inputs, flat * g) for g in (gamma, elsewhere))
    assert torch.equal(one, other)
    del inputs["tool_mask"]
    assert not torch.equal(one, gradient_of(run, inputs, flat * gamma))


def test_positive_credit_leaves_negative_advantages_alone(tmp_path):
    run = trainer(tmp_path, credit="random", credit_sign="positive", credit_quantile=0.5)
    run.model.train()
    output = run._generate_and_score_completions([run.train_dataset[i // 2] for i in range(8)])
    signs = set()
    for row, mask in zip(output["advantages"], output["completion_mask"].bool(), strict=True):
        positive = bool(row[mask].max() > 0)
        assert len(row[mask].unique()) == (2 if positive else 1)
        signs.add(positive)
    assert signs == {True, False}, "the case needs both signs"


def test_evaluation_gives_no_credit_and_moves_nothing(tmp_path):
    run = trainer(tmp_path, credit="global_anchor", credit_freeze_heads=True)
    run.model.eval()
    output = run._generate_and_score_completions([run.train_dataset[i // 2] for i in range(8)])
    assert output["advantages"].ndim == 1 and run._groups is None


def test_frozen_heads_are_kept_with_a_checkpoint(tmp_path):
    options = dict(credit="global_anchor", credit_freeze_heads=True, steps=1, save_strategy="steps", save_steps=1)
    run = trainer(tmp_path, **options)
    run.train()
    again = trainer(tmp_path, **options)
    again.create_optimizer_and_scheduler(1)
    again._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-1"))
    assert torch.equal(run._groups.local, again._groups.local) and run._groups.layers == again._groups.layers


def test_a_cut_reward_works_inside_a_trainer_with_checkpointing_on(tmp_path):
    reasoner = load_reasoner("abacus")
    reward = rewards.SaliencyReward(reasoner, method="cut", reduction="drop")
    run = trainer(tmp_path, reasoner=reasoner, reward=reward, steps=1, activation_checkpointing=True,
                  max_completion_length=160)  # fmt: skip
    run.train()
    assert next(r for r in run.state.log_history if "reward" in r)["reward"] > 0


def test_a_mask_network_is_kept_with_the_checkpoint_and_taken_up(tmp_path):
    reasoner = load_reasoner("abacus")
    torch.manual_seed(0)
    start = copy.deepcopy(reasoner.model.state_dict())

    def make(folder, steps, **options):
        reasoner.model.load_state_dict(start)
        torch.manual_seed(7)
        reward = Balanced(rewards.SaliencyReward(reasoner, method="network"), mode="auto")
        made = trainer(folder, reasoner=reasoner, reward=reward, steps=steps, max_completion_length=160,
                       scale_rewards="batch", save_strategy="steps", save_steps=1,
                       lr_scheduler_type="constant", **options)  # fmt: skip
        return made, reward

    whole, reward = make(tmp_path / "whole", 2)
    whole.train()
    expected = {k: v.clone() for k, v in reasoner.model.state_dict().items()}
    kept = [p.detach().clone() for p in reward.saliency.network.parameters()]

    broken, _ = make(tmp_path / "broken", 1)
    broken.train()
    again, reward = make(tmp_path / "broken", 2)
    again.train(resume_from_checkpoint=True)
    assert same(expected, reasoner.model.state_dict()), "resumed equals unbroken"
    assert all(torch.equal(a, b) for a, b in zip(kept, reward.saliency.network.parameters(), strict=True))


def test_an_arm_can_set_whatever_the_config_has():
    fields = {f.name.removeprefix("credit_") for f in dataclasses.fields(FaithfulGRPOConfig) if "credit" in f.name}
    assert fields - {"credit"} | {"name"} == set(CREDIT_KEYS)


def test_problems_are_named(tmp_path):
    with pytest.raises(FaithlabError, match="did you mean 'flow'"):
        trainer(tmp_path, credit="flows")
    with pytest.raises(FaithlabError, match="unknown credit strategy 'rythm'"):
        trainer(tmp_path, credit="flow", credit_compare=["rythm"])
    with pytest.raises(FaithlabError, match="leave credit_compare out"):
        trainer(tmp_path, credit="uniform", credit_compare=["flow"])
    with pytest.raises(FaithlabError, match="has no bottom"):
        trainer(tmp_path, credit="coupled_rhythm", credit_bottom=True)
    with pytest.raises(FaithlabError, match="quantile=2"):
        trainer(tmp_path, credit="flow", credit_quantile=2)
    with pytest.raises(FaithlabError, match="unknown layer range 'midle'"):
        trainer(tmp_path, credit="flow", credit_layers="midle")
    with pytest.raises(FaithlabError, match="of the heads is not possible"):
        trainer(tmp_path, credit="global_anchor", credit_fraction=0.7)
    with pytest.raises(FaithlabError, match="credit_horizon=5"):
        trainer(tmp_path, credit="global_anchor", credit_horizon=5)
    with pytest.raises(FaithlabError, match="option of a mask: 'stepz'"):
        trainer(tmp_path, credit="saliency", credit_saliency={"stepz": 3})


def test_mask_options_can_come_from_a_command_line(tmp_path):
    assert trainer(tmp_path, credit="saliency", credit_saliency='{"steps": 3}').args.credit_saliency == {"steps": 3}


def test_marks_of_a_person_train_a_policy(tmp_path):
    """`MarksReward` as a trainer's reward: marks on the last number of each reasoning, one step on these questions."""
    reasoner = load_reasoner("abacus")
    problems = training_problems(reasoner, 4, 0, hops=(1, 2))
    written = reasoner.generate([dict(row) for row in problems], temperature=0)
    marked = []
    for t in written:
        last = list(re.finditer(r"\d+", t.reasoning_text))[-1]
        marked.append(Marked(t.problem["question"], t.reasoning_text, t.answer_text, (last.span(),)))
    run = trainer(tmp_path, reasoner=reasoner, reward=MarksReward(reasoner, marked), steps=1, problems=problems,
                  max_completion_length=160)  # fmt: skip
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.train()
    (logged,) = [entry for entry in run.state.log_history if "reward" in entry]
    assert 0 < logged["rewards/marks/mean"] <= 1 and not same(before, run.model.state_dict())
