"""Tasks: splits that cannot overlap, seeds that mean something, published formats, and errors that say what to do."""

from __future__ import annotations

import collections
import csv
import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faithlab import tasks
from faithlab.errors import FaithlabError
from faithlab.tasks import generated
from faithlab.tasks.expressions import score_expression
from faithlab.tasks.splits import SPLITS, position_of, split_of

GENERATED = ["countdown", "chain_sum", "gsm_symbolic"]


def key_of(name: str, row: dict) -> str:
    """The canonical text of a data row, from its public columns alone."""
    if name == "countdown":
        return generated.countdown_key(row["numbers"], row["target"])
    if name == "chain_sum":
        return generated.chain_sum_key(row["expression"])
    return generated.text_key(name, row["question"])


# -- splits


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("countdown|3 4 5|17", "train"),
        ("countdown|2 5 9|23", "validation"),
        ("countdown|2 3 21|20", "test"),
        ("", "train"),
    ],
)
def test_the_split_of_a_key_never_changes(key, split):
    """Written down, so that a change of the hash, which would leak old test problems into training, is seen."""
    assert split_of(key) == split


def test_splits_get_their_shares():
    n = 20_000
    counts = collections.Counter(split_of(str(i)) for i in range(n))
    assert set(counts) == set(SPLITS)
    assert counts["test"] / n == pytest.approx(0.1, abs=0.01)
    assert counts["validation"] / n == pytest.approx(0.1, abs=0.01)


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_positions_lie_in_the_unit_interval(key):
    assert 0 <= position_of(key) < 1


@given(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.integers(1, 999), st.randoms(use_true_random=False))
def test_the_order_of_countdown_numbers_does_not_change_the_problem(numbers, target, rng):
    shuffled = rng.sample(numbers, len(numbers))
    assert generated.countdown_key(numbers, target) == generated.countdown_key(shuffled, target)
    assert generated.countdown_key(numbers, target) != generated.countdown_key(numbers, target + 1)
    assert generated.countdown_key(numbers, target) != generated.countdown_key([*numbers[1:], numbers[0] + 1], target)


@given(st.lists(st.integers(-99, 99).filter(bool), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_terms_does_not_change_a_sum(terms, rng):
    def written(terms):
        return " ".join([str(terms[0]), *(f"{'+' if t > 0 else '-'} {abs(t)}" for t in terms[1:])])

    shuffled = rng.sample(terms, len(terms))
    assert generated.chain_sum_key(written(terms)) == generated.chain_sum_key(written(shuffled))
    assert generated.chain_sum_key(written(terms)) != generated.chain_sum_key(written([terms[0] + 1, *terms[1:]]))


# -- generated tasks


@pytest.mark.parametrize("name", GENERATED)
def test_splits_never_share_a_problem_whatever_the_seed_and_options(name):
    wide = {"countdown": {"max_value": 9}, "chain_sum": {"max_terms": 2, "max_digits": 1}, "gsm_symbolic": {}}[name]
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        small = [tasks.load(name, split=split, n=12, seed=seed, **options) for seed in (0, 1) for options in ({}, wide)]
        seen[split] = {key_of(name, row) for data in small for row in data}
        assert {split_of(key) for key in seen[split]} == {split}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not seen[a] & seen[b]


@pytest.mark.parametrize("name", GENERATED)
def test_rows_are_different_right_and_repeatable(name):
    data = tasks.load(name, split="train", n=60, seed=3)
    assert data.features["question"].dtype == data.features["answer"].dtype == "string"
    assert len({key_of(name, row) for row in data}) == len(data) == 60
    scorer = tasks.scorer(name)
    for row in data:
        assert scorer(row["answer"], row).status == "right"
        assert scorer(f"I think so. The answer is {row['answer']}.", row).status == "right"
        assert scorer("", row).status == "unanswered"
        assert scorer("The answer is 987654321.", row).status == "wrong"
    assert tasks.load(name, split="train", n=60, seed=3).to_list() == data.to_list()
    assert tasks.load(name, split="train", n=20, seed=3).to_list() == data.to_list()[:20], "fewer is a prefix of more"


@pytest.mark.parametrize("name", GENERATED)
def test_neighbouring_seeds_draw_other_problems(name):
    """reasoning-gym's own seeds 0 and 1 share all problems but one."""
    drawn = [{key_of(name, row) for row in tasks.load(name, n=60, seed=seed)} for seed in (0, 1)]
    assert len(drawn[0] & drawn[1]) < 12


def test_another_process_draws_the_same_problems():
    code = "import json; from faithlab import tasks; print(json.dumps(tasks.load('chain_sum', n=5, seed=9).to_list()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(run.stdout.splitlines()[-1]) == tasks.load("chain_sum", n=5, seed=9).to_list()


def test_countdown_defaults():
    for row in tasks.load("countdown", split="test", n=25, seed=0):
        assert len(row["numbers"]) == 3
        assert all(1 <= number <= 20 for number in row["numbers"])
        assert 10 <= row["target"] <= 60
        assert ", ".join(map(str, row["numbers"])) in row["question"]
        assert score_expression(row["answer"], row["numbers"], row["target"]).status == "right"


def test_chain_sum_defaults_and_options():
    for row in tasks.load("chain_sum", n=50, seed=0):
        numbers = [int(token) for token in row["expression"].split() if token not in "+-"]
        assert 2 <= len(numbers) <= 3 and max(numbers) <= 99
        assert f"{row['expression']} =" in row["question"]
    long = tasks.load("chain_sum", n=20, seed=0, min_terms=5, max_terms=5, min_digits=3, max_digits=3)
    assert all(len(row["expression"].split()) == 9 for row in long)


def test_gsm_symbolic_keeps_the_worked_solution_without_its_mark():
    rows = tasks.load("gsm_symbolic", n=30, seed=0)
    assert all(row["rationale"] and "####" not in row["rationale"] for row in rows)


def test_a_small_space_is_drawn_to_its_last_problem_and_then_an_error():
    sums = [f"{a} {op} {b}" for a in range(10) for op in "+-" for b in range(10)]
    there = {key for key in map(generated.chain_sum_key, sums) if split_of(key) == "validation"}
    small = dict(split="validation", max_terms=2, max_digits=1)
    found = tasks.load("chain_sum", n=len(there), **small)
    assert {key_of("chain_sum", row) for row in found} == there
    with pytest.raises(FaithlabError, match=rf"only {len(there)} different problems in split 'validation'.*max_digits"):
        tasks.load("chain_sum", n=len(there) + 1, **small)


# -- names and numbers that do not work


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tasks.load("countdwn"), r"unknown task 'countdwn'.*countdown, chain_sum, gsm_symbolic, gsm8k, mmlu"),
        (lambda: tasks.scorer("nothing"), r"unknown task 'nothing'.*stories"),
        (lambda: tasks.load("countdown", split="dev"), r"unknown split 'dev'.*train, validation, test"),
        (lambda: tasks.load("countdown", max_number=3), r"option of countdown 'max_number'.*max_numbers.*operators"),
        (lambda: tasks.load("countdown", size=3), r"option of countdown 'size'"),
        (lambda: tasks.load("gsm8k", file="x"), r"option of gsm8k 'file'.*path"),
        (lambda: tasks.load("mmlu", topic="x"), r"option of mmlu 'topic'.*path, subject"),
        (lambda: tasks.load("countdown", n=0), r"n must be a whole number.*n=0"),
        (lambda: tasks.load("countdown", n=2.5), r"n must be a whole number.*n=2.5"),
        (lambda: tasks.load("countdown", min_value=0), r"countdown: these options do not work: min_value"),
        (lambda: tasks.load("chain_sum", max_terms="2"), r"chain_sum: these options do not work"),
    ],
)
def test_bad_names_and_numbers(call, says):
    with pytest.raises(FaithlabError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bounds_without_a_problem_end_in_an_error(monkeypatch):
    monkeypatch.setattr(generated, "PATIENCE", 100)
    with pytest.raises(FaithlabError, match=r"only 0 different problems"):
        tasks.load("countdown", n=1, max_value=2, min_target=100, max_target=101)


# -- gsm8k

GSM8K = [
    {"question": f"Mia has {a} kites and finds {b} more. How many has she?", "answer": f"{a}+{b}=<<{a}+{b}={a + b}>>"
     f"{a + b}\n#### {a + b:,}"} for a in (2, 30, 1400) for b in range(1, 21)
]  # fmt: skip


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path, rows, header=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        if header:
            writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
    return path


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("write", "name"), [(write_jsonl, "x.jsonl"), (write_csv, "x.csv"), (write_parquet, "x.parquet")]
)
def test_gsm8k_reads_each_format_and_a_file_is_the_split_asked_for(tmp_path, write, name):
    file = write(tmp_path / name, GSM8K)
    for split in SPLITS:
        data = tasks.load("gsm8k", split=split, path=file)
        assert data["question"][:] == [row["question"] for row in GSM8K]
    assert data[-1] == {
        "question": GSM8K[-1]["question"], "answer": "1420", "rationale": "1400+20=<<1400+20=1420>>1420"
    }  # fmt: skip
    scorer = tasks.scorer("gsm8k")
    assert all(scorer(published["answer"], row).status == "right" for published, row in zip(GSM8K, data, strict=True))


def test_gsm8k_takes_its_validation_split_from_the_training_file_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", GSM8K)
    write_jsonl(tmp_path / "train_socratic.jsonl", [{"question": "other wording", "answer": "#### 1"}])
    write_jsonl(tmp_path / "test.jsonl", [{"question": "one", "answer": "#### 1"}])
    found = {split: set(tasks.load("gsm8k", split=split, path=tmp_path)["question"]) for split in SPLITS}
    assert found["test"] == {"one"}
    assert found["train"] | found["validation"] == {row["question"] for row in GSM8K}
    assert not found["train"] & found["validation"]
    assert 0 < len(found["validation"]) < 15


def test_gsm8k_reads_the_folder_layout_of_the_hub(tmp_path):
    write_parquet(tmp_path / "main" / "test-00000-of-00001.parquet", GSM8K[:3])
    write_parquet(tmp_path / "socratic" / "test-00000-of-00001.parquet", GSM8K)
    assert len(tasks.load("gsm8k", split="test", path=tmp_path)) == 3
    with pytest.raises(FaithlabError, match=r"no file for this split; looked for train\.jsonl or train\.csv"):
        tasks.load("gsm8k", split="train", path=tmp_path)


def test_n_chooses_by_seed_and_keeps_the_order(tmp_path):
    file = write_jsonl(tmp_path / "test.jsonl", GSM8K)
    some = [tasks.load("gsm8k", split="test", path=file, n=8, seed=seed)["question"][:] for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    order = [row["question"] for row in GSM8K]
    assert some[0] == sorted(some[0], key=order.index)
    with pytest.raises(FaithlabError, match=r"gsm8k: there are only 60 problems; n=61 asked for"):
        tasks.load("gsm8k", split="test", path=file, n=61)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"question": "q", "answer": "#### 1"}\n\n{"question": "q"}\n',
            r"line 3: field 'answer' is missing.*question",
        ),
        ('{"question": "q", "answer": "#### 1"}\n{"question": "q", "ans', r"line 2: not valid JSON"),
        ("[1, 2]\n", r"line 1: a JSON object is expected; got list"),
        ('{"question": "", "answer": "#### 1"}\n', r"line 1: field 'question' should be text"),
        ('{"question": "\\ud800", "answer": "#### 1"}\n', r"line 1: field 'question' holds half a character"),
        ('{"question": 7, "answer": "#### 1"}\n', r"line 1: field 'question' should be text; got 7"),
        ('{"question": "q", "answer": null}\n', r"line 1: field 'answer' is missing"),
        ('{"question": "q", "answer": "it is 5"}\n', r"line 1: field 'answer' should end in '#### number'"),
        ('{"question": "q", "answer": "#### five"}\n', r"line 1: field 'answer' should end in '#### number'"),
        ("[" * 100_000 + "\n", r"line 1: not valid JSON"),
        ("", r"there is no problem in this data"),
        (b"\xff\xfe\x00", r"not UTF-8 text"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, says):
    file = tmp_path / "test.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FaithlabError, match=says) as caught:
        tasks.load("gsm8k", split="test", path=file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", "question,answer\nq,#### 1\nq\n", r"x\.csv, line 3: 2 cells are expected"),
        ("x.csv", 'question,answer\n"q\nq",#### 1\nq,none\n', r"x\.csv, line 4: field 'answer' should end"),
        ("x.csv", 'question,answer\n"q"x,#### 1\n', r"x\.csv, line 2: not valid CSV"),
        ("x.parquet", "no parquet", r"x\.parquet: not a readable Parquet file"),
        ("x.pkl", "", r"x\.pkl: files of this kind are not read; use \.jsonl"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(FaithlabError, match=says) as caught:
        tasks.load("gsm8k", split="test", path=file)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(FaithlabError, match=r"no such file or folder: .*gone\.jsonl"):
        tasks.load("gsm8k", split="test", path=tmp_path / "gone.jsonl")


@pytest.mark.parametrize("name", ["gsm8k", "mmlu"])
def test_without_a_hub_the_error_says_to_pass_a_path(name, monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        FaithlabError, match=rf"{name}: .* could not be read from the hub: Couldn't.*Pass path="
    ) as caught:
        tasks.load(name, split="test")
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_the_published_splits(monkeypatch):
    import datasets

    asked = []

    def hub(hub_id, configuration, split):
        asked.append((hub_id, configuration, split))
        return datasets.Dataset.from_list(GSM8K if "gsm8k" in hub_id else MMLU)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert len(tasks.load("gsm8k", split="validation")) + len(tasks.load("gsm8k")) == len(GSM8K)
    assert len(tasks.load("gsm8k", split="test", n=5)) == 5
    for split in SPLITS:
        assert len(tasks.load("mmlu", split=split)) == len(MMLU)
    assert {a[0] for a in asked} == {"openai/gsm8k", "cais/mmlu"}
    assert [a[2] for a in asked] == ["train", "train", "test", "auxiliary_train", "validation", "test"]


# -- mmlu

MMLU = [
    {"question": " Which is a bird? ", "subject": "zoology", "choices": ["Cod", "Owl", "Bee", "Elm"], "answer": 1},
    {"question": "What is 2 + 2?", "subject": "sums", "choices": ["0", "2", "3", "4"], "answer": 3},
]


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "x.jsonl"), (write_parquet, "x.parquet")])
def test_mmlu_reads_the_format_of_the_hub(tmp_path, write, name):
    data = tasks.load("mmlu", split="test", path=write(tmp_path / name, MMLU))
    assert data[0] == {
        "question": "Which is a bird?\nA. Cod\nB. Owl\nC. Bee\nD. Elm", "answer": "B",
        "choices": ["Cod", "Owl", "Bee", "Elm"], "subject": "zoology",
    }  # fmt: skip
    score = tasks.scorer("mmlu")
    for text, status in [
        ("(B)", "right"),
        ("The answer is owl.", "right"),
        ("C", "wrong"),
        ("Who knows?", "unanswered"),
    ]:
        assert score(text, data[0]).status == status
    assert score("4", data[1]).status == "right", "the text of an option stands for its letter"


def test_mmlu_reads_the_original_release(tmp_path):
    def original(question, *cells):
        return dict(zip(["question", "a", "b", "c", "d", "answer"], [question, *cells], strict=True))

    write_csv(tmp_path / "test" / "college_maths_test.csv", [original("1+1?", "1", "2", "3", "4", "B")], header=False)
    write_csv(tmp_path / "test" / "zoology_test.csv", [original('A "bird",\nsay?', *"wxyz", "D")], header=False)
    write_csv(tmp_path / "val" / "zoology_val.csv", [original("Fish?", *"wxyz", "A")], header=False)
    write_csv(tmp_path / "dev" / "zoology_dev.csv", [original("Not this one", *"wxyz", "A")], header=False)
    data = tasks.load("mmlu", split="test", path=tmp_path)
    assert data["subject"][:] == ["college_maths", "zoology"]
    assert data["answer"][:] == ["B", "D"]
    assert tasks.load("mmlu", split="validation", path=tmp_path)["question"][0].startswith("Fish?")
    assert len(tasks.load("mmlu", split="test", path=tmp_path, subject="zoology")) == 1
    assert tasks.load("mmlu", split="test", path=tmp_path / "test" / "zoology_test.csv")["subject"][:] == ["zoology"]
    with pytest.raises(FaithlabError, match=r"unknown subject 'botany'.*college_maths, zoology"):
        tasks.load("mmlu", split="test", path=tmp_path, subject="botany")


def test_mmlu_reads_csv_with_a_header(tmp_path):
    rows = [{**row, "choices": json.dumps(row["choices"])} for row in MMLU]
    data = tasks.load("mmlu", split="test", path=write_csv(tmp_path / "x.csv", rows))
    assert data["answer"][:] == ["B", "D"] and data["subject"][:] == ["zoology", "sums"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": 4}, r"line 2: field 'answer' should be a letter A-D or a number 0-3; got 4"),
        ({"answer": "E"}, r"line 2: field 'answer'.*got 'E'"),
        ({"answer": True}, r"line 2: field 'answer'.*got True"),
        ({"answer": -1}, r"line 2: field 'answer'.*got -1"),
        ({"choices": "A, B"}, r"line 2: field 'choices' should be a list"),
        ({"choices": "[" * 100_000}, r"line 2: field 'choices' should be a list"),
        ({"choices": ["one"]}, r"line 2: field 'choices' should be a list"),
        ({"choices": None}, r"line 2: field 'choices' is missing"),
        ({"choices": ["Cod", "\ud800"]}, r"line 2: field 'choices' holds half a character"),
        ({"subject": "\ud800"}, r"line 2: field 'subject' holds half a character"),
        ({"question": " "}, r"line 2: field 'question' should be text"),
    ],
)
def test_bad_mmlu_rows_are_named(tmp_path, change, says):
    file = write_jsonl(tmp_path / "x.jsonl", [MMLU[0], {**MMLU[1], **change}])
    with pytest.raises(FaithlabError, match=says):
        tasks.load("mmlu", split="test", path=file)


def test_a_short_row_of_the_original_release_is_named(tmp_path):
    file = tmp_path / "zoology_test.csv"
    file.write_text("q,1,2,3,4,A\nq,1,2,3,A\n")
    with pytest.raises(FaithlabError, match=r"zoology_test\.csv, line 2: 6 cells are expected .*; got 5"):
        tasks.load("mmlu", split="test", path=file)


def test_more_problems_than_can_be_drawn_are_refused_at_once():
    with pytest.raises(FaithlabError, match="n=100000000 problems are more than the 1000000"):
        tasks.load("stories", n=10**8)
