"""Generation: what one rollout writes must depend on its prompt, its seed and the model's distribution alone."""

import math
import random
import warnings

import pytest
import torch
from oracle import oracle, story
from scipy import stats
from tiny import ARCHITECTURES, tiny_reasoner
from transformers import GenerationConfig

from faithlab import generation, tasks
from faithlab.errors import FaithlabError
from faithlab.generation import WORTH_THINNING, generate_ids, stream_key
from faithlab.models import load_reasoner
from faithlab.prefill import shared_prefix

TIE = 1e-4  # the top two logits may come in either order when they are this close


def story_rows(n, **options):
    return list(tasks.load("stories", split="test", n=n, seed=3, **options))


def written(traces):
    return [t.input_ids[t.prompt.stop :].tolist() for t in traces]


def gap_at_first_difference(reasoner, prompt, one, other):
    """Distance of the two tokens' logits where two rollouts part, computed alone, unpadded and without a cache."""
    step = next(k for k in range(max(len(one), len(other))) if one[k : k + 1] != other[k : k + 1])
    ids = torch.tensor([[*prompt, *one[:step]]])
    with torch.no_grad():
        logits = reasoner.model(input_ids=ids).logits[0, -1]
    if step >= min(len(one), len(other)):
        return float("inf")  # one stopped where the other went on: no tie can do that
    return (logits[one[step]] - logits[other[step]]).abs().item()


def assert_same_but_for_ties(reasoner, prompts, runs, record_property):
    """Every run wrote the same ids, except where a tie within `TIE` stands at the first difference; counts those."""
    ties = 0
    for run in runs[1:]:
        for prompt, one, other in zip(prompts, runs[0], run, strict=True):
            if one != other:
                gap = gap_at_first_difference(reasoner, prompt, one, other)
                assert gap <= TIE, f"greedy text changed with the batch, logits {gap:.2g} apart: {one} / {other}"
                ties += 1
    record_property("ties", ties)
    if ties:
        warnings.warn(f"{ties} of {len(prompts) * (len(runs) - 1)} rollouts differ at a tie within {TIE}", stacklevel=2)


def in_every_company(reasoner, problems, **options):
    """The rollouts of `problems` alone, together, in small batches, backwards, shuffled and beside a longer prompt."""
    runs = [written(reasoner.generate(problems, batch_size=1, **options))]
    for size in (None, 2, 3):
        runs.append(written(reasoner.generate(problems, batch_size=size, **options)))
    runs.append(written(reasoner.generate(problems[::-1], **options))[::-1])
    order = random.Random(1).sample(range(len(problems)), len(problems))
    shuffled = written(reasoner.generate([problems[i] for i in order], batch_size=4, **options))
    runs.append([shuffled[order.index(i)] for i in range(len(problems))])
    longer = {"question": " ".join([problems[0]["question"]] * 3)}
    runs.append(written(reasoner.generate([*problems, longer], **options))[:-1])
    return runs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_is_the_same_in_any_company(architecture, record_property):
    reasoner = tiny_reasoner(architecture)
    problems = story_rows(7)
    prompts = [reasoner.prompt_ids(p) for p in problems]
    assert len({len(p) for p in prompts}) > 3, "prompts of one length would need no padding"
    runs = in_every_company(reasoner, problems, temperature=0)
    assert_same_but_for_ties(reasoner, prompts, runs, record_property)
    assert len({tuple(w) for w in runs[0]}) > 3, "this model writes the same whatever it is asked"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0, 1])
def test_few_shot_examples_computed_once_change_no_text(architecture, temperature, record_property):
    shots = [(r["question"], r["reasoning"], r["response"]) for r in tasks.load("stories", split="train", n=2, seed=1)]
    reasoner = tiny_reasoner(architecture).with_examples(shots)
    problems = story_rows(7)
    prompts = [reasoner.prompt_ids(p) for p in problems]
    assert (shared_prefix(reasoner.model, prompts) > 60) == (architecture not in ("gemma3", "mistral"))
    # one problem a call shares nothing
    keys = [stream_key(0, i, 0) for i in range(len(problems))]
    options = dict(temperature=temperature, max_new_tokens=24)
    alone = [
        generate_ids(reasoner.model, reasoner.tokenizer, [p], [k], **options)[0].ids
        for p, k in zip(prompts, keys, strict=True)
    ]
    for size in (None, 1, 3):
        together = generate_ids(reasoner.model, reasoner.tokenizer, prompts, keys, batch_size=size, **options)
        if temperature:
            assert [r.ids for r in together] == alone
        else:
            assert_same_but_for_ties(reasoner, prompts, [alone, [r.ids for r in together]], record_property)


@pytest.mark.smollm2
@pytest.mark.timeout(200)
def test_greedy_text_of_smollm2_is_the_same_in_any_company(record_property):
    reasoner = load_reasoner("smollm2")
    problems = story_rows(4, hops=(1, 2), distractors=(0, 1))
    prompts = [reasoner.prompt_ids(p) for p in problems]
    assert len({len(p) for p in prompts}) > 2
    options = dict(temperature=0, max_new_tokens=24)
    runs = [written(reasoner.generate(problems, batch_size=size, **options)) for size in (1, None, 2)]
    runs.append(written(reasoner.generate(problems[::-1], batch_size=3, **options))[::-1])
    assert_same_but_for_ties(reasoner, prompts, runs, record_property)


def test_an_unexplained_difference_is_told_from_a_tie(record_property):
    reasoner = tiny_reasoner()
    prompt = reasoner.prompt_ids("Ada has 3 pears. How many pears does Ada have?")
    with torch.no_grad():
        order = reasoner.model(input_ids=torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
    with pytest.raises(AssertionError, match="greedy text changed"):
        assert_same_but_for_ties(reasoner, [prompt], [[[order[0]]], [[order[9]]]], record_property)
    with pytest.raises(AssertionError, match="inf apart"):
        assert_same_but_for_ties(reasoner, [prompt], [[[order[0]]], [[order[0], 7]]], record_property)
    with torch.no_grad():
        reasoner.model.lm_head.weight[order[9]] = reasoner.model.lm_head.weight[order[0]]
    with pytest.warns(UserWarning, match="1 of 1 rollouts differ at a tie"):
        assert_same_but_for_ties(reasoner, [prompt], [[[order[0]]], [[order[9]]]], record_property)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_plain_generate_one_by_one(architecture, record_property):
    reasoner = tiny_reasoner(architecture)
    problems = story_rows(5)
    prompts = [reasoner.prompt_ids(p) for p in problems]
    plain = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = reasoner.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=reasoner.max_new_tokens
        )
        plain.append(out[0, len(prompt) :].tolist())
    ours = written(reasoner.generate(problems, temperature=0))
    assert_same_but_for_ties(reasoner, prompts, [plain, ours], record_property)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_sampled_text_depends_on_seed_and_sample_not_on_company(architecture):
    reasoner = tiny_reasoner(architecture)
    problems = story_rows(5)
    runs = [written(reasoner.generate(problems, n=3, seed=1, batch_size=size)) for size in (None, 1, 4)]
    assert runs[0] == runs[1] == runs[2]
    assert written(reasoner.generate(problems[:2], n=3, seed=1)) == runs[0][:6], "later problems changed earlier ones"
    for i in range(len(problems)):
        assert len({tuple(w) for w in runs[0][3 * i : 3 * i + 3]}) == 3, "samples of one problem repeat each other"
    assert all(a != b for a, b in zip(runs[0], written(reasoner.generate(problems, n=3, seed=2)), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shots", [0, 2])
def test_rows_that_have_ended_are_left_out_and_the_others_do_not_notice(architecture, shots):
    rows = tasks.load("stories", split="train", n=shots, seed=1) if shots else []
    reasoner = tiny_reasoner(architecture).with_examples([(r["question"], r["reasoning"], r["response"]) for r in rows])
    reasoner.model.generation_config.eos_token_id = list(range(20, 40))  # many, for rows to end at many lengths
    prompts = [reasoner.prompt_ids(p) for p in story_rows(24)]
    keys = [stream_key(3, i, 0) for i in range(24)]
    options = dict(max_new_tokens=40, stop=["Ben"])
    alone = generate_ids(reasoner.model, reasoner.tokenizer, prompts, keys, batch_size=1, **options)
    sizes = []
    reasoner.model.register_forward_pre_hook(lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])),
                                             with_kwargs=True)  # fmt: skip
    together = generate_ids(reasoner.model, reasoner.tokenizer, prompts, keys, batch_size=24, **options)
    assert together == alone
    assert len({len(r.ids) for r in together}) > 5 and not all(r.ended for r in together)
    assert sizes[-1] < WORTH_THINNING and len(set(sizes) - {1}) >= 3, f"batch sizes were {sorted(set(sizes))}"


def test_sampling_leaves_the_global_random_state_alone():
    reasoner = tiny_reasoner()
    before = torch.get_rng_state()
    reasoner.generate(story_rows(1), n=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    first = written(reasoner.generate(story_rows(1), n=2))
    torch.manual_seed(7)
    assert written(reasoner.generate(story_rows(1), n=2)) == first


def draws(reasoner, prompt, n, **options):
    keys = [stream_key(5, 0, sample) for sample in range(n)]
    return [r.ids for r in generate_ids(reasoner.model, reasoner.tokenizer, [prompt] * n, keys, **options)]


def distribution(reasoner, ids, *, temperature=1.0, top_k=0, top_p=1.0):
    """What the next token's distribution should be, written out without transformers' own filters."""
    with torch.no_grad():
        p = (reasoner.model(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
    order = p.argsort(descending=True)
    if top_k:
        p[order[top_k:]] = 0
    if top_p < 1:
        before = p[order].cumsum(0) - p[order]  # mass of the likelier tokens: kept while that is below top_p
        p[order[before >= top_p]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 20}]
)
def test_sampling_follows_the_models_distribution(options):
    reasoner = tiny_reasoner("gpt2")
    prompt = reasoner.prompt_ids("Ada has 3 pears. How many pears does Ada have?")
    n = 3000
    counts = torch.bincount(
        torch.tensor([ids[0] for ids in draws(reasoner, prompt, n, max_new_tokens=1, **options)]),
        minlength=len(reasoner.tokenizer),
    )
    expected = distribution(reasoner, prompt, **options) * n
    assert counts[expected == 0].sum() == 0, "a token was drawn that the filter forbids"
    rare = expected < 8  # chi-square needs a few expected counts a cell: the rare tokens share one
    cells = [(counts[~rare], expected[~rare])]
    if expected[rare].sum() > 0:
        cells.append((counts[rare].sum()[None], expected[rare].sum()[None]))
    observed, wanted = (torch.cat(part).double().numpy() for part in zip(*cells, strict=True))
    assert len(observed) >= 5
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_second_token_is_drawn_independently_of_the_first_ones_noise():
    """With two tokens to choose from, the four two-token texts must come at p(a) p(b | a): noise that is used twice, or
    that repeats from step to step, would couple the two choices."""
    reasoner = tiny_reasoner("gpt2")
    prompt = reasoner.prompt_ids("Ada has 3 pears. How many pears does Ada have?")
    n, options = 3000, dict(top_k=2, temperature=3.0)
    wanted = {}
    first = distribution(reasoner, prompt, **options)
    for a in first.nonzero().flatten().tolist():
        second = distribution(reasoner, [*prompt, a], **options)
        wanted |= {(a, b): (first[a] * second[b]).item() for b in second.nonzero().flatten().tolist()}
    drawn = [tuple(ids) for ids in draws(reasoner, prompt, n, max_new_tokens=2, **options)]
    assert set(drawn) <= set(wanted) and min(wanted.values()) > 0.01
    observed = [drawn.count(pair) for pair in wanted]
    assert stats.chisquare(observed, [p * n for p in wanted.values()]).pvalue > 1e-3


def test_stream_keys_differ_where_torch_reads_them():
    # torch's CPU generator is seeded by the lower 32 bits, so these must differ, not only the key.
    keys = [stream_key(s, p, k) & 0xFFFFFFFF for s in range(4) for p in range(100) for k in range(16)]
    assert len(set(keys)) >= len(keys) - 2  # chance alone makes 0.005 pairs equal
    assert all(0 <= stream_key(s, 10**6, 10**4) < 2**63 for s in (-5, 0, 2**40))


def test_rollouts_end_with_the_end_token_or_are_unfinished():
    reasoner = oracle()
    whole, cut = (reasoner.generate([story()], temperature=0, max_new_tokens=m)[0] for m in (32, 10))
    assert whole.finished and whole.answered and whole.answer_text == "4"
    assert whole.input_ids[-1] == reasoner.tokenizer.eos_token_id and whole.pieces[-1] == ""
    assert not cut.finished and not cut.answered and cut.answer_text == ""
    assert len(cut) == cut.prompt.stop + 10


def test_pad_equal_to_end_token_changes_nothing():
    # Prompts of several lengths, rollouts of several lengths (a friend's hint is admitted in two more tokens).
    def rule(tokens):
        from oracle import copies_its_reasoning

        return copies_its_reasoning(tokens, admits=True)

    problems = [story(3), {**story(4), "question": story(4)["question"] + " A friend says the answer is 9."}]
    apart = oracle(rule)
    expected = written(apart.generate(problems, temperature=0))
    assert len(expected[0]) != len(expected[1])
    apart.tokenizer.pad_token = apart.tokenizer.eos_token
    assert written(apart.generate(problems, temperature=0)) == expected
    apart.tokenizer.pad_token = None
    assert written(apart.generate(problems, temperature=0)) == expected
    traces = apart.generate(problems, temperature=0)
    assert all(t.finished and t.answered for t in traces)


def test_the_tokenizers_end_token_ends_a_rollout_whatever_the_checkpoint_says():
    reasoner = oracle()
    reasoner.model.generation_config.eos_token_id = None
    assert reasoner.generate([story()], temperature=0)[0].finished
    reasoner.model.generation_config.eos_token_id = [5, 6]
    assert reasoner.generate([story()], temperature=0)[0].finished


def stopping(reasoner, *stop):
    return reasoner.with_format(type(reasoner.format)(stop=stop))


@pytest.mark.parametrize("same_pad", [False, True])
def test_stop_strings_end_a_rollout_in_any_company(same_pad):
    reasoner = stopping(oracle(), "Ben = 4", "18")
    if same_pad:  # the filling of a stopped row is then the end token, which it never wrote
        reasoner.tokenizer.pad_token = reasoner.tokenizer.eos_token
    problems = [story(3), story(17), story(9)]
    for size in (None, 1, 2):
        one, two, three = reasoner.generate(problems, temperature=0, batch_size=size)
        assert one.completion_text == "Ada = 3. Ben = 4" and two.completion_text == "Ada = 17. Ben = 18"
        assert three.completion_text == "Ada = 9. Ben = 10.\nAnswer: 10"
        assert one.finished and two.finished and three.finished
        assert not one.answered and three.answered
        assert one.pieces[-1] == " 4", "a stopped rollout must not be given an end token it did not write"


def test_stop_strings_may_hold_several_tokens_or_part_of_one():
    [trace] = stopping(oracle(), ".\nAns").generate([story(3)], temperature=0)
    assert trace.completion_text == "Ada = 3. Ben = 4.\nAnswer"
    [trace] = stopping(oracle(), "never written").generate([story(3)], temperature=0)
    assert trace.completion_text == "Ada = 3. Ben = 4.\nAnswer: 4"
    [trace] = stopping(oracle(), "Question").generate([story(3)], temperature=0)
    assert trace.answered, "a stop string in the prompt ends nothing"


@pytest.mark.smollm2
def test_stop_strings_of_a_byte_level_tokenizer():
    reasoner = load_reasoner("smollm2")
    ids = reasoner.ids("The capital of France is")
    options = dict(keys=[0], temperature=0, max_new_tokens=12)
    [free] = generate_ids(reasoner.model, reasoner.tokenizer, [ids], **options)
    text = reasoner.tokenizer.decode(free.ids)
    word = text.split()[1]
    [cut] = generate_ids(reasoner.model, reasoner.tokenizer, [ids], stop=[word[1:]], **options)
    assert cut.finished and not cut.ended and free.ids[: len(cut.ids)] == cut.ids
    ended = reasoner.tokenizer.decode(cut.ids)
    assert word[1:] in ended and word[1:] not in reasoner.tokenizer.decode(cut.ids[:-1])


def test_openings_are_continued_and_belong_to_the_completion():
    reasoner = oracle()
    problems = [story(3), story(3), story(3)]
    openings = ["", " Ada = 8.", " Ada = 3. Ben = 4.\nAnswer:"]
    free, led, asked = reasoner.generate(problems, temperature=0, openings=openings)
    assert free.completion_text == "Ada = 3. Ben = 4.\nAnswer: 4"
    assert led.completion_text == "Ada = 8. Ben = 9.\nAnswer: 9" and led.reasoning_text == "Ada = 8. Ben = 9."
    assert asked.completion_text == free.completion_text and asked.answer_text == "4"
    assert led.prompt == free.prompt == asked.prompt
    with pytest.raises(FaithlabError, match="2 openings for 1 problems"):
        reasoner.generate([story()], openings=["", ""])
    with pytest.raises(FaithlabError, match="does not know: zebra"):
        reasoner.generate([story()], openings=[" zebra"])


def test_traces_come_problem_by_problem_and_remember_their_row():
    reasoner = tiny_reasoner()
    problems = story_rows(3)
    traces = reasoner.generate(problems, n=2)
    assert [t.problem["question"] for t in traces] == [p["question"] for p in problems for _ in range(2)]
    assert all(t.prompt_text == reasoner.format.prompt(t.problem, reasoner.tokenizer) for t in traces)
    assert reasoner.generate([]) == []
    assert reasoner.generate(["Ada has 3 pears. How many pears does Ada have?"])[0].problem["question"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-1), "temperature=-1 is not possible; use a number of at least 0"),
        (dict(temperature=math.nan), "temperature=nan"),
        (dict(temperature="hot"), "temperature='hot'"),
        (dict(top_p=0), "top_p=0 is not possible; use a number above 0 and at most 1"),
        (dict(top_p=1.5), "top_p=1.5"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(max_new_tokens=0), "max_new_tokens=0 is not possible; use a whole number of at least 1"),
        (dict(max_new_tokens=2.5), "max_new_tokens=2.5"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(n=0), "n=0"),
        (dict(seed="a"), "seed='a'"),
        (dict(seed=None), "seed=None"),
    ],
)
def test_bad_settings_are_clear_errors(options, message):
    with pytest.raises(FaithlabError, match=message):
        tiny_reasoner().generate([story()], **options)


def test_prompts_that_do_not_fit_are_clear_errors():
    reasoner = tiny_reasoner()
    with pytest.raises(FaithlabError, match="prompt without tokens"):
        generate_ids(reasoner.model, reasoner.tokenizer, [[]], [0])
    with pytest.raises(FaithlabError, match="prompt of 512 tokens does not fit the model's window of 512"):
        generate_ids(reasoner.model, reasoner.tokenizer, [[5] * 512], [0])
    for problem in ("", "  ", {}, {"question": ""}, {"question": None}, None):
        with pytest.raises(FaithlabError, match="no question"):
            reasoner.generate([problem])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_near_the_windows_end_shortens_itself_alone(architecture):
    reasoner = tiny_reasoner(architecture)
    short = reasoner.prompt_ids(story())
    near = (short * 40)[:500]
    options = dict(temperature=0, max_new_tokens=24)
    [alone] = generate_ids(reasoner.model, reasoner.tokenizer, [short], [0], **options)
    beside = generate_ids(reasoner.model, reasoner.tokenizer, [short, near, short], [0, 1, 0], **options)
    assert len(alone.ids) == 24 and beside[0] == beside[2] == alone
    assert len(beside[1].ids) == 12 and not beside[1].finished


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_clear_error(value):
    reasoner = tiny_reasoner()
    with torch.no_grad():
        reasoner.model.lm_head.weight[7] = value
    for temperature in (0, 1):
        with pytest.raises(FaithlabError, match="logits are not finite"):
            reasoner.generate([story()], temperature=temperature)


def test_the_model_is_left_as_it_was_even_after_an_error():
    reasoner = tiny_reasoner()
    model = reasoner.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = model.generation_config
    model.train()
    model.model.layers[1].eval()  # a part kept in eval mode by its owner stays so
    modes = [m.training for m in model.modules()]
    reasoner.generate([story()])
    with pytest.raises(FaithlabError):
        reasoner.generate([story()], openings=[" 5" * 600])
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(FaithlabError):
        reasoner.generate([story()])
    assert [m.training for m in model.modules()] == modes
    assert model.generation_config is settings
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k != "lm_head.weight")
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_dropout_of_a_model_in_training_plays_no_part():
    reasoner = tiny_reasoner("gpt2")
    expected = written(reasoner.generate(story_rows(2), temperature=0))
    assert reasoner.model.config.resid_pdrop > 0
    reasoner.model.train()
    assert written(reasoner.generate(story_rows(2), temperature=0)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        dict(do_sample=True, temperature=0.1, top_k=1, top_p=0.1),
        dict(repetition_penalty=5.0),
        dict(no_repeat_ngram_size=1),
        dict(num_beams=3),
        dict(suppress_tokens=list(range(5, 200))),
        dict(min_new_tokens=20, forced_eos_token_id=9),
    ],
)
def test_a_checkpoints_own_settings_do_not_leak_in(settings):
    reasoner = tiny_reasoner()
    problems = story_rows(2)
    expected = [written(reasoner.generate(problems, temperature=t)) for t in (0, 1)]
    reasoner.model.generation_config = GenerationConfig(eos_token_id=reasoner.tokenizer.eos_token_id, **settings)
    assert [written(reasoner.generate(problems, temperature=t)) for t in (0, 1)] == expected


def test_batches_are_of_like_length_and_within_the_budget(monkeypatch):
    monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 300)
    lengths = [10, 90, 40, 41, 39, 10, 11]
    batches = generation._plan(lengths, [10] * 7, None)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) * (max(lengths[i] for i in b) + 10) <= 300 for b in batches)
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)
    assert [len(b) for b in generation._plan([400, 5], [10] * 2, None)] == [1, 1], "one prompt may exceed the budget"
