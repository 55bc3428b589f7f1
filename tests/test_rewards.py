"""Rewards: what they pay for, what they leave alone, and their balance."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_reasoner

from faithlab import mask_network, rewards, tasks
from faithlab.balance import Balanced, within_variance
from faithlab.errors import FaithlabError
from faithlab.likelihood import answer_logp, prompt_hidden_logp, reasoning_hidden_logp
from faithlab.models import load_reasoner
from faithlab.rewards import SaliencyReward
from faithlab.rollouts import prompt_ids
from faithlab.saliency import optimise_mask
from faithlab.training import prompts_of

# --- outcome, form, length -------------------------------------------------------------------------------------------


def test_outcome_reads_the_last_answer_in_both_of_trls_forms():
    texts = [" 3 + 4 = 7. Answer: 7", " Answer: 8", " no marker 7", [dict(role="assistant", content="Answer: 7")], ""]
    assert rewards.outcome(texts, answer=["7"] * 5) == [1, 0, 0, 1, 0]


def test_outcome_passes_columns_on_to_the_tasks_scorer():
    texts = ["21 + 5. Answer: (3 * 7) + 5", "Answer: 3 + 7"]
    columns = dict(answer=["(3 * 7) + 5"] * 2, task=["countdown"] * 2, numbers=[[3, 5, 7]] * 2, target=[26, 26])
    assert rewards.outcome(texts, **columns) == [1, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 = 7. Answer: 7", 1), ("Answer: 7", 0), ("3 + 4 = 7.", 0), ("3 + 4 = 7. Answer:", 0), ("", 0),
        ("3 + 4 = 7.</think> 7", 1), ("<think>3 + 4 = 7.</think> 7", 1), ("<think></think> 7", 0), ("</think> 7", 0),
    ],
)  # fmt: skip
def test_form(text, value):
    assert rewards.format_reward([text]) == [value]


def test_length():
    assert rewards.length_reward(10, 5)(completion_ids=[[0] * 5, [0] * 8, [0] * 12]) == [0, -0.6, -1]
    with pytest.raises(FaithlabError, match="tail=20"):
        rewards.length_reward(10, 20)


# --- saliency --------------------------------------------------------------------------------------------------------


def test_a_saliency_reward_reads_a_reasoner_or_a_trainer_and_refuses_the_rest():
    reasoner = load_reasoner("abacus")
    assert rewards.SaliencyReward(reasoner).reasoner is reasoner
    assert rewards.SaliencyReward(SimpleNamespace(reasoner=reasoner)).reasoner is reasoner, "our trainer has one"
    inside = SimpleNamespace(unwrap_model=lambda wrapped: wrapped.module)
    wrapper = SimpleNamespace(get_base_model=lambda: reasoner.model)  # as of adapters
    others = SimpleNamespace(
        accelerator=inside, model=SimpleNamespace(module=wrapper), processing_class=reasoner.tokenizer
    )
    found = rewards.SaliencyReward(others).reasoner
    assert found.model is reasoner.model and type(found.format) is type(reasoner.format)
    for wrong in ("abacus", reasoner.model, None):
        with pytest.raises(FaithlabError, match=f"not {type(wrong).__name__}: give it"):
            rewards.SaliencyReward(wrong)


@pytest.fixture(scope="module")
def rollouts():
    """abacus, traces with and without a strong hint, and what TRL would pass to a reward function for them."""
    reasoner = load_reasoner("abacus")
    rows = [
        *tasks.load("stories", split="validation", n=4, seed=5, hops=(2, 3)),
        *tasks.load("stories", split="validation", n=4, seed=5, hops=(2, 3), hint="strong", hint_right=0.0),
    ]
    traces = reasoner.generate(rows, temperature=0)
    assert all(t.answered for t in traces)
    return reasoner, traces, as_passed(traces)


def as_passed(traces):
    ids = [t.input_ids[t.prompt.stop :].tolist() for t in traces]
    columns = {k: [t.problem[k] for t in traces] for k in ("question", "answer")}
    return dict(prompts=[t.prompt_text for t in traces], completions=[t.text_of("response") for t in traces],
                completion_ids=ids, **columns)  # fmt: skip


def test_each_reduction_is_what_it_says(rollouts):
    reasoner, traces, passed = rollouts
    found = optimise_mask(reasoner.model, traces, steps=10)
    drop = ((found.full_logp - found.suppressed_logp) / 10).clamp(0, 1)
    rise = found.restored_logp.exp() - found.suppressed_logp.exp()
    expected = dict(
        mean=[float(s.mean()) for s in found.values],
        sum=[float(s.sum()) for s in found.values],
        topk=[float(s.sort(descending=True).values[:3].sum()) / 3 for s in found.values],
        drop=drop.tolist(),
        shift=[max(0.0, float(r) / max(1.0, float(s.sum()))) for r, s in zip(rise, found.values, strict=True)],
    )
    for reduction, values in expected.items():
        reward = SaliencyReward(reasoner, reduction=reduction, k=3, steps=10)
        assert reward(**passed) == pytest.approx(values, abs=1e-4), reduction
    cut = SaliencyReward(reasoner, method="cut", reduction="drop")(**passed)
    lost = answer_logp(reasoner, traces) - reasoning_hidden_logp(reasoner, traces)
    assert cut == pytest.approx((lost / 10).clamp(0, 1).tolist(), abs=1e-5)
    enough = SaliencyReward(reasoner, method="cut", reduction="sufficiency")(**passed)
    assert enough == pytest.approx(prompt_hidden_logp(reasoner, traces).exp().tolist(), abs=1e-5)


def test_needed_reasoning_is_paid_and_decoration_is_not(rollouts):
    reasoner, _, passed = rollouts
    cuts = [dict(method="cut", reduction=r) for r in ("drop", "sufficiency")]
    for options in (dict(), dict(reduction="drop"), dict(reduction="shift"), *cuts):
        values = SaliencyReward(reasoner, **options)(**passed)
        assert min(values[:4]) > max(values[4:]), options


def test_a_right_hint_hides_need_but_not_sufficiency():
    """Where hint and reasoning agree the answer is overdetermined: cutting the reasoning changes nothing."""
    reasoner = load_reasoner("abacus")
    rows = tasks.load("stories", split="validation", n=8, seed=5, hops=(1, 2), hint="weak", hint_right=1.0)
    traces = [reasoner.trace(r, r["reasoning"], r["answer"]) for r in rows]
    passed = as_passed(traces)
    needed, enough = (SaliencyReward(reasoner, method="cut", reduction=r)(**passed) for r in ("drop", "sufficiency"))
    assert max(needed) < 0.1 and min(enough) > 0.5


def test_what_is_unfinished_or_without_reasoning_is_defined(rollouts):
    reasoner, traces, _ = rollouts
    whole = traces[0]
    cut_off = whole.input_ids[whole.prompt.stop : whole.reasoning.stop].tolist()
    bare = reasoner.trace(whole.problem, "", whole.answer_text)
    passed = as_passed([whole, whole, bare])
    passed["completion_ids"][1] = cut_off
    values = SaliencyReward(reasoner, steps=5)(**passed)
    assert values[0] > 0 and values[1] is None and values[2] == 0.0
    assert SaliencyReward(reasoner, steps=5)([], []) == []


def test_the_gold_answer_takes_the_place_of_the_own(rollouts):
    reasoner, traces, passed = rollouts
    own, gold = (SaliencyReward(reasoner, target=t, reduction="drop", steps=1)(**passed) for t in ("own", "gold"))
    for t, a, b in zip(traces, own, gold, strict=True):
        if t.answer_text == t.problem["answer"]:
            assert a == pytest.approx(b, abs=1e-5)
    # the hint is wrong: the gold answer stands in the reasoning only, and is lost without it
    assert min(gold[4:]) > max(own[4:])
    other = reasoner.answering(traces[4], traces[4].problem["answer"])
    assert other.answer_text == traces[4].problem["answer"] and other.reasoning_text == traces[4].reasoning_text
    with pytest.raises(FaithlabError, match="column 'answer'"):
        SaliencyReward(reasoner, target="gold")(**{k: v for k, v in passed.items() if k != "answer"})


def test_the_gate_asks_for_the_right_answers(rollouts):
    reasoner, _, passed = rollouts
    with pytest.raises(FaithlabError, match=r"gate='correct' needs .* column 'answer'"):
        SaliencyReward(reasoner, gate="correct")(**{k: v for k, v in passed.items() if k != "answer"})


def test_the_gate_pays_right_answers_only(rollouts):
    reasoner, _, passed = rollouts
    open_, gated = (SaliencyReward(reasoner, gate=g, steps=5)(**passed) for g in (None, "correct"))
    right = rewards.outcome(passed["completions"], answer=passed["answer"])
    assert 0 < sum(right) < len(right), "the case needs both kinds"
    assert gated == pytest.approx([a * b for a, b in zip(open_, right, strict=True)])


@pytest.mark.parametrize("options", [dict(steps=3), dict(method="network"), dict(method="cut", reduction="drop")])
def test_the_policy_is_left_as_it_was(rollouts, options):
    reasoner, _, passed = rollouts
    model = reasoner.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model.lm_head.weight.requires_grad_(False)
    noted = {}
    try:
        SaliencyReward(reasoner, **options)(**passed, log_metric=lambda k, v: noted.__setitem__(k, v))
        assert model.training and not model.lm_head.weight.requires_grad
        assert model.model.layers[0].mlp.up_proj.weight.requires_grad
        assert all(p.grad is None for p in model.parameters())
    finally:
        model.lm_head.weight.requires_grad_(True)
        model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert noted["saliency/seconds"] > 0


def test_the_network_predicts_from_the_states_that_it_learnt_from(rollouts, monkeypatch):
    """They are read once, and the rewards are those of two readings to the last bit; also where nothing can be kept."""
    reasoner, traces, _ = rollouts
    reads, read = [], mask_network.read_states
    monkeypatch.setattr(mask_network, "read_states", lambda *args: reads.append(0) or read(*args))

    def rewards(room):
        monkeypatch.setattr("faithlab.rewards.KEPT_BYTES", room)
        torch.manual_seed(0)
        reward = SaliencyReward(reasoner, method="network")
        reasoner.model.train()
        try:
            return [reward.of_traces(traces) for _ in range(3)]
        finally:
            reasoner.model.eval()

    kept, once = rewards(2**28), len(reads)
    assert kept == rewards(0) and len(reads) == 3 * once
    assert kept[0] != kept[1], "the network learns"


def test_the_network_learns_in_training_only_and_goes_on_where_it_was_saved(rollouts, tmp_path):
    reasoner, _, passed = rollouts
    torch.manual_seed(1)
    reward = SaliencyReward(reasoner, method="network")
    start = [p.detach().clone() for p in reward.network.parameters()]

    def moved(a):
        return any(not torch.equal(x, y) for x, y in zip(start, a.network.parameters(), strict=True))

    reward(**passed)
    assert not moved(reward), "a model in eval mode is being evaluated"
    reasoner.model.train()
    try:
        for _ in range(3):
            reward(**passed)
        assert moved(reward)
        reward.save(tmp_path)
        torch.manual_seed(2)
        again = SaliencyReward(reasoner, method="network")
        again.load(tmp_path)
        assert again(**passed) == pytest.approx(reward(**passed), abs=1e-6)
        for a, b in zip(reward.network.parameters(), again.network.parameters(), strict=True):
            assert torch.equal(a, b), "the optimiser's state was taken up too"
    finally:
        reasoner.model.eval()
    with pytest.raises(FaithlabError, match="no readable mask"):
        again.load(tmp_path / "nowhere")


def test_chat_prompts_go_through_the_template():
    class Chat:
        def apply_chat_template(self, messages, **options):
            assert options["add_generation_prompt"] and options["tokenize"]
            return [len(messages), 2]

    assert prompt_ids(Chat(), [dict(role="user", content="x")]) == [1, 2]


def test_chats_are_read_with_the_trainers_options_of_the_template(rollouts):
    """Saliency is that of the prompt that was sampled from, and not of another one."""
    reasoner, _, passed = rollouts
    seen = []

    class Chat:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, *args, **options):
            return self.tokenizer(*args, **options)

        def apply_chat_template(self, messages, *, enable_thinking=True, **options):
            seen.append(enable_thinking)
            return self.tokenizer(messages[0]["content"], add_special_tokens=False).input_ids

    chat = dataclasses.replace(reasoner, tokenizer=Chat(reasoner.tokenizer))
    asked = passed | dict(prompts=[[dict(role="user", content=p)] for p in passed["prompts"]])
    options = dict(method="cut", reduction="drop", chat_template_kwargs={"enable_thinking": False})
    found = SaliencyReward(chat, **options)(**asked)
    assert set(seen) == {False}
    assert found == pytest.approx(SaliencyReward(reasoner, method="cut", reduction="drop")(**passed), abs=1e-4)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_without_ids_texts_are_taken_as_whole(rollouts, form):
    reasoner, _, passed = rollouts
    reward = SaliencyReward(reasoner, method="cut", reduction="drop")
    texts = passed["completions"]
    if form == "chat":
        texts = [[dict(role="assistant", content=text)] for text in texts]
    by_hand = reward(passed["prompts"], texts)
    assert max(by_hand) > 0 and by_hand == pytest.approx(reward(**passed), abs=1e-3)


def test_it_serves_another_of_trls_trainers_and_logs_its_share_of_the_time(tmp_path):
    from trl import RLOOConfig, RLOOTrainer

    reasoner = load_reasoner("abacus")
    rows = prompts_of(reasoner, tasks.load("stories", split="train", n=4, seed=0, hops=(1, 1)), "stories")
    args = RLOOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=2, use_cpu=True,
        bf16=False, max_completion_length=60, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    reward = SaliencyReward(reasoner, method="cut", reduction="drop")
    trainer = RLOOTrainer(model=reasoner.model, args=args, reward_funcs=[rewards.outcome, reward], train_dataset=rows,
                          processing_class=reasoner.tokenizer)  # fmt: skip
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/saliency/mean" in row]
    assert len(logged) == 2 and logged[0]["saliency/seconds"] > 0
    assert 0 < logged[1]["saliency/time_share"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="mask"), "unknown method"), (dict(target="golden"), "did you mean 'gold'"),
        (dict(reduction="avg"), "unknown reduction"), (dict(gate="right"), "unknown gate"),
        (dict(method="cut"), "use reduction='drop'"), (dict(reduction="sufficiency"), "use method='cut'"),
        (dict(method="cut", reduction="sufficiency", scope="all"), "has no options"),
        (dict(method="network", reduction="drop"), "use 'cut'"),
        (dict(k=0), "k=0"), (dict(stepz=3), "did you mean 'steps'"),
        (dict(method="network", floor=-4.0), "unknown option"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(options, message):
    with pytest.raises(FaithlabError, match=message):
        SaliencyReward(tiny_reasoner(), **options)


# --- balance ---------------------------------------------------------------------------------------------------------


def saliency(*values):
    def reward(prompts, completions, **others):
        return list(values)

    return reward


def right(*values):
    return lambda prompts, completions, **others: list(values)


PROMPTS = ["a", "a", "b", "b"]


def test_variance_within_groups():
    groups = rewards.group_numbers(PROMPTS)
    assert groups.tolist() == [0, 0, 1, 1]
    assert within_variance([0, 1, 5, 5], groups) == pytest.approx(0.125)
    assert within_variance([None, 1, 5, 5], groups) == pytest.approx(0.125), "None counts as 0, as TRL does"


def test_fixed_and_scheduled_weights():
    both = dict(prompts=PROMPTS, completions=[""] * 4)
    fixed = Balanced(saliency(0.5, None, 0, 1), right(1, 0, 1, 0), weight=0.4)
    assert fixed(**both) == pytest.approx([1.2, 0, 1, 0.4])
    product = Balanced(saliency(0.5, None, 0, 1), right(1, 1, 1, 0), mode="product")
    assert product(**both) == pytest.approx([0.5, 0, 0, 0])
    undefined = Balanced(saliency(0.5, 1, 0, 1), right(None, 1, 0, None), weight=0.4)  # as TRL's rewards may be
    assert undefined(**both) == pytest.approx([0.2, 1.4, 0, 0.4])
    plan = Balanced(saliency(1, 1, 1, 1), right(0, 0, 0, 0), mode="schedule", weight=2.0, begin=10, full=20)
    values = [plan(**both, trainer_state=SimpleNamespace(global_step=s))[0] for s in (0, 9, 10, 15, 20, 99)]
    assert values == pytest.approx([0, 0, 0, 1, 2, 2])


def test_the_automatic_weight_keeps_the_variances_in_proportion():
    noted = {}
    auto = Balanced(saliency(0.1, 0.3, 0.2, 0.2), right(1, 0, 1, 0), mode="auto", share=0.25, limit=9)
    got = auto(prompts=PROMPTS, completions=[""] * 4, log_metric=lambda k, v: noted.__setitem__(k, v))
    w = noted["balance/weight"]
    assert w**2 * noted["balance/saliency_variance"] == pytest.approx(0.25 * noted["balance/outcome_variance"])
    assert got == pytest.approx([1 + 0.1 * w, 0.3 * w, 1 + 0.2 * w, 0.2 * w])
    agreed = Balanced(saliency(0.1, 0.3, 0.2, 0.2), right(1, 1, 0, 0), mode="auto")
    assert agreed(prompts=PROMPTS, completions=[""] * 4) == [1, 1, 0, 0], "no spread of outcome: saliency is silent"
    still = Balanced(saliency(0.2, 0.2, 0.2, 0.2), right(1, 0, 1, 0), mode="auto")
    assert still(prompts=PROMPTS, completions=[""] * 4) == [1, 0, 1, 0], "nothing varies, no division by zero"


def test_the_automatic_weight_is_smoothed_limited_and_kept(tmp_path):
    auto = Balanced(saliency(), mode="auto", share=1.0, limit=3.0, memory=0.5)
    assert auto.current(0, dict(outcome=0.16, saliency=0.04)) == pytest.approx(2)
    assert auto.current(1, dict(outcome=0.0, saliency=0.04)) == pytest.approx(math.sqrt(0.08 / 0.04))
    auto.save(tmp_path)
    again = Balanced(saliency(), mode="auto", share=1.0, limit=3.0, memory=0.5)
    again.load(tmp_path)
    assert again.variances == auto.variances == json.loads((tmp_path / "balance.json").read_text())
    assert again.current(2, dict(outcome=0.16, saliency=0.0)) == pytest.approx(
        auto.current(2, dict(outcome=0.16, saliency=0.0))
    )
    assert Balanced(saliency(), mode="auto", limit=3.0).current(0, dict(outcome=1.0, saliency=1e-9)) == 3.0
    late = Balanced(saliency(), mode="auto", share=1.0, limit=3.0, memory=0.5, begin=2)
    assert [late.current(s, dict(outcome=0.16, saliency=0.04)) for s in range(3)] == [0, 0, pytest.approx(2)]
    with pytest.raises(FaithlabError, match=r"no readable balance\.json"):
        again.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="autom"), "did you mean 'auto'"), (dict(mode="schedule", begin=5, full=2), "runs backwards"),
        (dict(memory=2), "memory=2"), (dict(weight=math.nan), "weight=nan"), (dict(share=-1), "share=-1"),
    ],
)  # fmt: skip
def test_bad_balances_are_named(options, message):
    with pytest.raises(FaithlabError, match=message):
        Balanced(saliency(), **options)


def test_topk_does_not_pay_for_leaving_tokens_out(rollouts):
    reasoner, _, passed = rollouts
    whole = SaliencyReward(reasoner, reduction="sum", steps=5)(**passed)
    few = SaliencyReward(reasoner, reduction="topk", k=1000, steps=5)(**passed)  # more than any of them has
    assert few == pytest.approx([value / 1000 for value in whole])
