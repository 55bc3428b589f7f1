"""The notebook runner on small notebooks made here: what it refuses before a run, and what it leaves behind after one.

Only the tests marked `notebooks` start kernels (about two seconds each).
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from faithlab import notebook_kernel, notebooks, results
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.notebook_costs import Cost, box_lines
from faithlab.notebook_files import discover, read_notebook, select
from faithlab.notebook_outputs import EXECUTED, clean_copy, code_digest
from faithlab.notebook_profiles import convert, load_profile, profile_names
from faithlab.notebooks import gather_results, make_plan, run_notebooks, write_results
from faithlab.run_folder import new_folder

PARAMETERS = "seed = 0\nn: int = 3\nrate = 0.5\nreasoner = 'abacus'\nlimit = None\nprofile = ''\noutput_dir = '.'"
WRITE = """from faithlab.notebooks import write_results
row = {'quantity': 'accuracy', 'value': n / 4, 'low': 0.1, 'high': 0.9, 'n': n, 'reasoner': reasoner}
write_results('results.json', [row], notebook='STEM', profile=profile)"""


def make(folder, stem, cells=(), *, parameters=PARAMETERS, kernel="python3", tags=1, end=WRITE):
    """Write a notebook with a heading, `tags` parameter cells, the given code cells and an end that writes results."""
    node = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": kernel}})
    tagged = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}) for _ in range(tags)]
    code = [nbformat.v4.new_code_cell(c) for c in [*cells, *([end.replace("STEM", stem)] if end else [])]]
    node.cells = [nbformat.v4.new_markdown_cell(f"# Notebook {stem}"), *tagged, *code]
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.ipynb"
    nbformat.write(node, path)
    return path


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A working directory with an empty folder `notebooks`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def profile(text, path="my.yaml"):
    Path(path).write_text(text)
    return path


# ---- before a run -------------------------------------------------------------------------------------------------


def refuses(path, *words):
    with pytest.raises(FaithlabError) as error:
        read_notebook(path)
    for word in (path.name, *words):
        assert word in str(error.value)


def test_exactly_one_code_cell_is_tagged(book):
    refuses(make(book, "01_none", tags=0), "0 cells tagged 'parameters'")
    refuses(make(book, "02_two", tags=2), "2 cells tagged 'parameters' (cells 2, 3)")
    path = make(book, "03_text", tags=0)
    node = nbformat.read(path, as_version=4)
    node.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(node, path)
    refuses(path, "tag exactly one code cell")


@pytest.mark.parametrize(
    "source",
    ["import os", "a = b", "a, b = 1, 2", "a = f(1)", "a = 1\na = 2", "%time", "x: int", "a.b = 1"],
)
def test_the_parameter_cell_holds_plain_literals(book, source):
    refuses(make(book, "01_x", parameters=source), "name = literal")


def test_literals_over_several_lines_are_read(book):
    source = "# a comment\nmodels = [\n    'a',  # first\n    'b',\n]\nshift: float = -1.5"
    assert read_notebook(make(book, "01_x", parameters=source)).parameters == {"models": ["a", "b"], "shift": -1.5}


def test_kernel_must_be_python3(book):
    refuses(make(book, "01_x", kernel="julia-1.10"), "'julia-1.10'", "'python3'")


def test_a_leftover_injected_cell_is_refused(book):
    path = make(book, "01_x")
    node = nbformat.read(path, as_version=4)
    node.cells.insert(2, nbformat.v4.new_code_cell("n = 99", metadata={"tags": ["injected-parameters"]}))
    nbformat.write(node, path)
    refuses(path, "injected-parameters")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"cells": 3}', b'{"nbformat": 4, "cells": []}'])
def test_a_damaged_file_is_one_line(book, content):
    path = book / "01_x.ipynb"
    path.write_bytes(content)
    refuses(path, "not a valid notebook")


def test_selection(book):
    stems = ["01_alpha", "02_beta", "10_gamma"]
    for stem in stems:
        (book / f"{stem}.ipynb").touch()
    (book / "scratch.ipynb").touch()
    paths = discover(book)
    assert [p.stem for p in paths] == stems

    def chosen(*names):
        return [p.stem for p in select(paths, names)]

    assert chosen() == stems
    assert chosen("1") == chosen("01") == chosen("01_alpha") == chosen("notebooks/01_alpha.ipynb") == ["01_alpha"]
    assert chosen("10", "*_beta", "02") == ["02_beta", "10_gamma"]
    with pytest.raises(FaithlabError, match=r"notebook '02_bta'; did you mean '02_beta'\? .*01_alpha, 02_beta, 10"):
        chosen("01", "02_bta")


def test_folders_without_notebooks(book, capsys):
    assert main(["notebooks"]) == 2
    assert main(["notebooks", "--folder", "elsewhere"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and "no notebooks named like 01_name.ipynb" in err[0] and "no folder elsewhere" in err[1]


def test_values_come_from_default_section_and_hand_in_this_order(book):
    make(book, "01_a")
    make(book, "02_b", parameters="seed = 5\nprofile = ''")
    yaml = profile("timeout: 9\ndefault: {seed: 1, n: 10, rate: 1e-2, elsewhere: 3}\n01_a: {n: 20, limit: [1, 2]}\n")
    plan = make_plan(profile=yaml, parameters={"reasoner": "a/007"})
    assert plan.timeout == 9
    # YAML reads 1e-2 as text; text stays text where the default is text.
    assert plan.values["01_a"] == {"seed": 1, "n": 20, "rate": 0.01, "limit": [1, 2], "reasoner": "a/007"}
    assert plan.values["02_b"] == {"seed": 1}
    assert make_plan(profile=yaml, parameters={"n": "30"}, timeout=4).values["01_a"]["n"] == 30


def test_values_are_checked_by_what_their_names_promise_before_anything_runs(book, tmp_path, monkeypatch):
    make(book, "01_a", parameters="reasoner = 'abacus'\nsecond_reasoner = ''\nn_traces = 3\ngsm8k_path = ''")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    given = {"reasoner": "mine", "gsm8k_path": "rows.jsonl", "n_traces": "5"}
    values = make_plan(parameters=given, folder=book).values["01_a"]
    assert values["reasoner"] == str(tmp_path / "mine") and values["gsm8k_path"] == str(tmp_path / "rows.jsonl")
    assert make_plan(parameters={"second_reasoner": ""}, folder=book).values["01_a"]["second_reasoner"] == ""
    for name, value, message in (
        ("reasoner", "abacuss", "unknown reasoner 'abacuss'; did you mean 'abacus'"),
        ("second_reasoner", "./nowhere", "unknown reasoner"),
        ("gsm8k_path", "no.jsonl", f"no such file or folder: {tmp_path / 'no.jsonl'}"),
        ("n_traces", "0", "n_traces=0 leaves nothing to run"),
    ):
        with pytest.raises(FaithlabError, match=message):
            make_plan(parameters={name: value}, folder=book)


@pytest.mark.parametrize("name", ["a/b", "..", "../out", " "])
def test_a_run_stays_in_its_output_folder(tmp_path, name):
    with pytest.raises(FaithlabError, match="is no name of a folder"):
        new_folder(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_unknown_names_are_errors_that_list_what_there_is(book):
    make(book, "01_a", parameters="seed = 0")
    make(book, "02_b", parameters="n = 0\nrate = 0.1")
    with pytest.raises(FaithlabError, match=r"parameter 'sed'; parameters are: 01_a: seed; 02_b: n, rate"):
        make_plan(parameters={"sed": "1"})
    with pytest.raises(FaithlabError, match=r"'n'; parameters are: 01_a: seed$"):
        make_plan(["01"], parameters={"n": "1"})
    with pytest.raises(FaithlabError, match=r"section 01_a: 'seeds'; did you mean 'seed'"):
        make_plan(profile=profile("01_a: {seeds: 1}"))
    with pytest.raises(FaithlabError, match=r"my.yaml: '01_b'; .*there are: default, 01_a, 02_b"):
        make_plan(profile=profile("01_b: {seed: 1}"), folder=None)
    with pytest.raises(FaithlabError, match=r"unknown profile 'lapop'; did you mean 'laptop'\? .*gpu, laptop, tiny"):
        make_plan(profile="lapop")
    with pytest.raises(FaithlabError, match="'output_dir' is set by the runner"):
        make_plan(parameters={"output_dir": "/tmp"})


@pytest.mark.parametrize("text", ["- 1", "default: 3", "timeout: soon", "timeout: -1", "timeout: true", "a: [", "1"])
def test_a_wrong_profile_is_an_error(book, text):
    make(book, "01_a")
    with pytest.raises(FaithlabError, match=r"my\.yaml"):
        make_plan(profile=profile(text))


def test_values_have_the_type_of_the_default():
    good = [
        ("3", 1, 3), ("1e-4", 0.5, 1e-4), (2, 0.5, 2.0), ("true", False, True), ("[1, 2]", (0,), (1, 2)),
        ("3", "x", "3"), ("None", "x", "None"), ("none", None, None), ("text", None, "text"), ("5", None, 5),
        ([1], [], [1]),
    ]  # fmt: skip
    for value, default, expected in good:
        got = convert("p", value, default, "01_a")
        assert got == expected and type(got) is type(expected)
    wrong = [("x", 1), ("1.5", 1), (True, 1), ("1", True), ("none", 1), (3, "x"), ("nan", 0.5), ("3", [])]
    for value, default in wrong:
        with pytest.raises(FaithlabError, match="'p' of 01_a is of type"):
            convert("p", value, default, "01_a")


def test_shipped_profiles_fit_the_course():
    """Also the test that a notebook's parameters and the profiles do not drift apart."""
    assert {"tiny", "laptop", "gpu"} <= set(profile_names())
    folder = Path(notebooks.__file__).parents[2] / "notebooks"
    if not list(folder.glob("[0-9][0-9]_*.ipynb")):
        assert load_profile("laptop", []).timeout
        return
    for name in profile_names():
        make_plan(folder=folder, profile=name)


def test_list_shows_titles_and_values(book, capsys):
    make(book, "01_a")
    assert main(["notebooks", "--list", "-p", "n", "8", "--profile", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "01_a  Notebook 01_a" in out and "n = 8  (its cell says 3)" in out and "rate = 0.5\n" in out
    assert not Path("runs").exists()


def test_bad_input_is_found_before_anything_runs(book, capsys):
    make(book, "01_a")
    make(book, "02_b", tags=0)
    for args in ([], ["-p", "n", "x", "01"], ["01", "--timeout", "0"], ["--resume", "nowhere"], ["3"]):
        assert main(["notebooks", *args]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 5
    assert not Path("runs").exists()


def test_missing_kernel_and_unusable_output(book, monkeypatch, capsys):
    make(book, "01_a")
    (book / "file").touch()
    assert main(["notebooks", "--output", str(book / "file" / "x")]) == 2
    assert "cannot make" in capsys.readouterr().err
    (book / "taken").mkdir()
    assert main(["notebooks", "--output", str(book), "--name", "taken"]) == 2
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(notebook_kernel.importlib.util, "find_spec", lambda name: None)
    assert main(["notebooks"]) == 2
    assert "pip install ipykernel" in capsys.readouterr().err


# ---- results ------------------------------------------------------------------------------------------------------

ROW = {"quantity": "accuracy", "value": 0.5}


def test_results_are_written_with_every_field(tmp_path):
    rows = [
        {**ROW, "value": np.float32(0.5), "low": np.nan, "high": float("inf"), "n": np.int64(8), "reasoner": "abacus"},
        {**ROW, "value": "yes", "reasoner": "smollm2", "unit": "nats"},
        {**ROW, "value": None, "low": 0, "high": 1},
    ]
    path = write_results(tmp_path, rows, notebook="01_a", profile="tiny", seed=3)
    content = json.loads(path.read_text())
    assert path == tmp_path / "results.json" and list(tmp_path.iterdir()) == [path]
    assert (content["notebook"], content["profile"], content["seed"]) == ("01_a", "tiny", 3)
    empty = dict.fromkeys(results.FIELDS)
    assert content["results"] == [
        {**empty, **ROW, "n": 8, "reasoner": "abacus"},
        {**empty, **ROW, "value": "yes", "reasoner": "smollm2", "unit": "nats"},
        {**empty, **ROW, "value": None, "low": 0, "high": 1},
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**ROW, "valeu": 1}], "unknown field in result row 1: 'valeu'; did you mean 'value'"),
        ([ROW, {"quantity": "x"}], r"row 2 \('x'\) has no `value`"),
        ([{"value": 1}], "row 1 needs a `quantity`"),
        ([{**ROW, "quantity": " "}], "needs a `quantity`"),
        ([{**ROW, "value": float("nan")}], "finite number"),
        ([{**ROW, "value": np.inf}], "finite number"),
        ([{**ROW, "value": True}], "finite number"),
        ([{**ROW, "value": [1]}], "finite number"),
        ([{**ROW, "low": "0"}], "`low` is a number"),
        ([{**ROW, "low": 1, "high": 0}], "low 1 lies above high 0"),
        ([{**ROW, "n": 2.5}], "`n` is a whole number"),
        ([{**ROW, "n": -1}], "`n` is a whole number"),
        ([{**ROW, "unit": 3}], "`unit` is a text"),
        ([ROW, ROW], "row 2 .* appears twice"),
        (["accuracy"], "row 1 is a str"),
    ],
)
def test_wrong_rows_are_refused_and_leave_the_old_file(tmp_path, rows, said):
    path = write_results(tmp_path / "r.json", [ROW], notebook="01_a")
    before = path.read_bytes()
    with pytest.raises(FaithlabError, match=said):
        write_results(path, rows, notebook="01_a")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_results(tmp_path / "r.json", [ROW], notebook="01_a")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "replace", full)
    with pytest.raises(FaithlabError, match="No space left on device; free space"):
        write_results(path, [{**ROW, "value": 1}], notebook="01_a")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FaithlabError, match="cannot write"):
        write_results(tmp_path / "nowhere" / "r.json", [ROW], notebook="01_a")


def test_keeping_results_again_changes_nothing_and_replaces_whole_notebooks(tmp_path):
    row = dict.fromkeys(results.COLUMNS) | {"profile": "smoke", "quantity": "accuracy", "value": 0.25, "n": 4}
    gaps = [row | {"notebook": name, "low": math.nan} for name in ("01_a", "02_b")]
    path = tmp_path / "kept.csv"
    results.keep_results(pd.DataFrame(gaps, columns=list(results.COLUMNS), dtype=object), path)
    first = path.read_text()
    assert first.splitlines()[1] == "01_a,smoke,,accuracy,0.25,,,4,"
    results.keep_results(pd.DataFrame(gaps[1:], columns=list(results.COLUMNS), dtype=object), path)
    assert path.read_text() == first
    other = [gaps[1] | {"value": 0.5, "low": 0.12345678912}]
    results.keep_results(pd.DataFrame(other, columns=list(results.COLUMNS), dtype=object), path)
    assert path.read_text().splitlines()[1:] == [first.splitlines()[1], "02_b,smoke,,accuracy,0.5,0.12345678912,,4,"]


def test_gather_keeps_order_types_and_names_a_damaged_file(tmp_path):
    assert list(gather_results(tmp_path).columns) == list(results.COLUMNS) and gather_results(tmp_path).empty
    for stem, n in (("02_b", None), ("01_a", 7)):
        (tmp_path / stem).mkdir()
        write_results(tmp_path / stem, [{**ROW, "n": n}], notebook=stem, profile="tiny")
    table = gather_results(tmp_path)
    assert list(table.notebook) == ["01_a", "02_b"] and list(table.n) == [7, None] and type(table.n[0]) is int
    assert list(gather_results(tmp_path, ["02_b"]).notebook) == ["02_b"]
    (tmp_path / "02_b" / "results.json").write_text('{"notebook": "02_b", "resu')
    with pytest.raises(FaithlabError, match=r"02_b/results.json is not valid JSON"):
        gather_results(tmp_path)


# ---- a run --------------------------------------------------------------------------------------------------------

GOOD = [
    "import os, sys\nprint(os.getcwd(), sys.executable)\nprint(sys.version, file=sys.stderr)",
    "from tqdm import tqdm\nfor i in tqdm(range(3)): pass",
    """import matplotlib.pyplot as plt
os.makedirs('figures', exist_ok=True)
plt.plot([1, 2]); plt.savefig('figures/01_line.png'); plt.show()""",
    """import json
seen = dict(n=n, rate=rate, reasoner=reasoner, profile=profile, output_dir=output_dir, cwd=os.getcwd(),
            python=sys.executable, env={k: os.environ.get(k) for k in ('HF_HUB_OFFLINE', 'IPYTHONDIR')})
json.dump(seen, open('seen.json', 'w'))
n""",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run of four notebooks, three of which fail in different ways, with --keep-going and --write-back."""
    root = tmp_path_factory.mktemp("book {0} ")  # papermill formats paths: braces and blanks must survive
    book = root / "notebooks"
    sources = {"01_good": make(book, "01_good", GOOD).read_bytes()}
    raises = "raise ValueError('\\x1b[31mred\\x1b[0m line\\nsecond line')"
    make(book, "02_raises", ["def f():\n    " + raises, "f()"])
    make(book, "03_silent", end=None)
    make(book, "04_copied", end=WRITE.replace("STEM", "01_good"))
    before = Path.cwd()
    os.chdir(root)
    try:
        with pytest.MonkeyPatch.context() as patch:
            # What must not reach the kernel: a kernelspec and start-up files of somebody else.
            patch.setenv("JUPYTER_PATH", str(alien_kernel(root)))
            yaml = profile("default: {n: 4}")
            run = run_notebooks(profile=yaml, parameters={"rate": "1e-3"}, name="r", keep_going=True, write_back=True)
            assert os.environ["JUPYTER_PATH"] == str(root / "alien")
        assert Path.cwd() == root
    finally:
        os.chdir(before)
    return {"root": root, "run": run, "folder": root / "runs/notebooks/r", "sources": sources}


def alien_kernel(root):
    home = root / "alien" / "kernels" / "python3"
    home.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "x", "language": "python"}
    (home / "kernel.json").write_text(json.dumps(spec))
    return root / "alien"


@pytest.mark.notebooks
def test_the_good_notebook_ran_as_promised(ran):
    assert {s: o.status for s, o in ran["run"].outcomes.items()} == {
        "01_good": "ok", "02_raises": "failed", "03_silent": "failed", "04_copied": "failed"
    }  # fmt: skip
    assert not ran["run"].ok
    seen = json.loads((ran["folder"] / "01_good" / "seen.json").read_text())
    home = str(ran["folder"] / "01_good")
    assert (seen["n"], seen["rate"], seen["reasoner"], seen["profile"]) == (4, 0.001, "abacus", "my")
    assert seen["cwd"] == home and seen["output_dir"] == home and seen["python"] == sys.executable
    assert seen["env"]["HF_HUB_OFFLINE"] == "1" and "faithlab-kernel-" in seen["env"]["IPYTHONDIR"]


@pytest.mark.notebooks
def test_results_of_the_good_notebook_are_gathered(ran):
    table = json.loads((ran["folder"] / "results.json").read_text())["results"]
    assert [(r["notebook"], r["profile"], r["quantity"], r["value"], r["n"]) for r in table] == [
        ("01_good", "my", "accuracy", 1.0, 4)
    ]
    csv = (ran["folder"] / "results.csv").read_text().splitlines()
    assert csv[0] == ",".join(results.COLUMNS) and len(csv) == 2


@pytest.mark.notebooks
def test_a_raising_cell_leaves_copy_and_traceback(ran):
    outcome = ran["run"].outcomes["02_raises"]
    assert outcome.message == "in cell In [4]: ValueError: red line"
    text = outcome.traceback.read_text()
    assert outcome.traceback == Path("runs/notebooks/r/02_raises/02_raises.traceback.txt")
    assert "\x1b" not in text and "ValueError: red line\nsecond line" in text and "f()" in text
    copy = nbformat.read(ran["folder"] / "02_raises" / "02_raises.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in copy.cells if c.cell_type == "code" for o in c.outputs)


@pytest.fixture(autouse=True)
def in_root(request, monkeypatch):
    """The outcomes of the shared run hold paths as they were shown, relative to its root."""
    if "ran" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("ran")["root"])


@pytest.mark.notebooks
def test_notebooks_without_results_of_their_own_fail(ran):
    outcomes = ran["run"].outcomes
    assert "ended without results.json" in outcomes["03_silent"].message
    assert "says notebook '01_good'" in outcomes["04_copied"].message


@pytest.mark.notebooks
def test_timeout_ends_the_notebook_and_names_the_cell(book):
    make(book, "01_slow", ["import time\ntime.sleep(100)"])
    outcome = run_notebooks(timeout=8, name="x").outcomes["01_slow"]
    assert outcome.status == "timeout" and 8 <= outcome.seconds < 60
    assert "its 8 s ran out in cell In [" in outcome.message and "--timeout" in outcome.message
    assert "time.sleep(100)" in outcome.traceback.read_text()
    assert Path("runs/notebooks/x/01_slow/01_slow.ipynb").exists()


@pytest.mark.notebooks
def test_written_back_notebook_is_its_source_with_outputs(ran):
    path = ran["root"] / "notebooks" / "01_good.ipynb"
    text = path.read_text()
    clean, source = nbformat.reads(text, as_version=4), nbformat.reads(ran["sources"]["01_good"].decode(), as_version=4)
    for word in ("papermill", "injected", "iopub", str(ran["root"]), sys.prefix, "ipykernel_"):
        assert word not in text, word
    code = [c for c in clean.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert code[1].outputs[0].text == ". <environment>/bin/" + Path(sys.executable).name + "\n"
    assert code[2].outputs == []  # a progress bar only
    assert "image/png" in code[3].outputs[0].data
    assert code[4].outputs[0].data["text/plain"] == "4" and code[4].outputs[0].execution_count == 5
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    assert clean.metadata.pop(EXECUTED) == code_digest(source)
    assert clean == source
    figure = ran["root"] / "figures" / "01_line.png"
    assert figure.read_bytes() == (ran["folder"] / "01_good" / "figures" / "01_line.png").read_bytes()


@pytest.mark.notebooks
def test_failed_notebooks_are_not_written_back(ran):
    for stem in ("02_raises", "04_copied"):
        assert '"outputs": []' in (ran["root"] / "notebooks" / f"{stem}.ipynb").read_text()


@pytest.mark.notebooks
def test_resume_runs_only_what_is_not_done(ran, capsys, monkeypatch, tmp_path):
    """In a copy of the shared run, after one of the failures was repaired; profile and parameters come from the run."""
    shutil.copytree(ran["root"], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    # Written back, so its source is no longer that of the run: restore it, or it would rightly run again.
    Path("notebooks/01_good.ipynb").write_bytes(ran["sources"]["01_good"])
    make(Path("notebooks"), "02_raises", ["print('repaired')"])
    assert main(["notebooks", "01", "02", "--resume", "runs/notebooks/r", "--folder", "notebooks"]) == 0
    out = capsys.readouterr().out
    assert "01_good: done earlier" in out and "02_raises: done in" in out and "03_silent" not in out
    assert re.search(r"02_raises +abacus +accuracy +1 +0\.1 +0\.9 +4", out)
    assert Path("runs/notebooks/r/earlier_attempts/02_raises-1/02_raises.traceback.txt").exists()
    table = json.loads(Path("runs/notebooks/r/results.json").read_text())["results"]
    assert [r["notebook"] for r in table] == ["01_good", "02_raises"]
    # Another value, and nothing counts as done.
    assert main(["notebooks", "01", "--resume", "runs/notebooks/r", "--folder", "notebooks", "-p", "n", "5"]) == 0
    assert "01_good: done in" in capsys.readouterr().out


@pytest.mark.notebooks
def test_first_failure_ends_the_run_with_status_1(book, capsys):
    make(book, "01_raises", ["1 / 0"])
    make(book, "02_good")
    assert main(["notebooks", "--name", "x", "--profile", "tiny"]) == 1
    captured = capsys.readouterr()
    assert re.search(r"01_raises +failed", captured.out) and re.search(r"02_good +not run", captured.out)
    assert "In [3]: ZeroDivisionError: division by zero" in captured.err
    for path in re.findall(r"(?:copy|traceback): +(\S+)", captured.err):
        assert Path(path).exists()
    assert "faithlab notebooks --resume runs/notebooks/x" in captured.err
    assert not Path("runs/notebooks/x/results.csv").exists()


@pytest.mark.notebooks
def test_a_kernel_that_does_not_start_is_one_line(book, monkeypatch, capsys):
    make(book, "01_a")
    broken = book / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert main(["notebooks"]) == 2
    err = capsys.readouterr().err
    assert "kernel does not start" in err and err.count("faithlab: error:") == 1 and "Traceback" not in err


@pytest.mark.notebooks
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_kernel_and_the_run_resumes(book):
    wait = "import os, time\nfirst = not os.path.exists('../../flag')\nopen('../../flag', 'w').write(str(os.getpid()))"
    make(book, "01_a", [wait, "time.sleep(60 if first else 0)"])
    command = [sys.executable, "-m", "faithlab.cli", "notebooks", "--profile", "tiny"]
    flag = Path("runs/notebooks/flag")
    process = subprocess.Popen(
        [*command, "--name", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Under a shell's `&` the signal would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    limit = time.monotonic() + 30
    while not (flag.exists() and flag.read_text()) and time.monotonic() < limit:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert re.search(r"01_a +not finished", out)
    assert "go on with: faithlab notebooks --resume runs/notebooks/x" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(flag.read_text()), 0)
    again = subprocess.run([*command[:4], "--resume", "runs/notebooks/x"], capture_output=True, text=True)
    assert again.returncode == 0 and "01_a: done in" in again.stdout, again.stderr
    assert json.loads(Path("runs/notebooks/x/01_a/results.json").read_text())["profile"] == "tiny"


# ---- cleaning, without a kernel -----------------------------------------------------------------------------------


def executed_copy(outputs):
    source = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f()")])
    run = nbformat.from_dict(json.loads(json.dumps(source)))
    run.cells[0].outputs = [nbformat.from_dict(o) for o in outputs]
    run.cells[0].execution_count = 7
    return source, run


def test_clean_copy_merges_streams_and_drops_live_widgets():
    widget = "application/vnd.jupyter.widget-view+json"
    source, run = executed_copy([
        {"output_type": "stream", "name": "stderr", "text": " 0%\r 50%"},
        {"output_type": "stream", "name": "stderr", "text": "\r100%\nnext /home/me/lab/x\r\n"},
        {"output_type": "display_data", "metadata": {}, "data": {widget: {"model_id": "1"}, "text/plain": "bar"}},
        {"output_type": "display_data", "metadata": {}, "data": {widget: {"model_id": "2"}}},
        {"output_type": "stream", "name": "stdout", "text": "/home/me and /tmp/ipykernel_12/345.py:1"},
    ])  # fmt: skip
    clean = clean_copy(source, run, {"/home/me": "~", "/home/me/lab": "."})
    texts = [o.get("text") or o.data for o in clean.cells[0].outputs]
    assert texts == ["next ./x\r\n", {"text/plain": "bar"}, "~ and <cell>:1"]
    assert clean.cells[0].execution_count == 1 and source.cells[0].outputs == []


def test_clean_copy_refuses_other_code():
    source, run = executed_copy([])
    run.cells[0].source = "g()"
    with pytest.raises(FaithlabError, match="differs"):
        clean_copy(source, run, {})


def test_the_box_names_the_profile_that_was_measured():
    assert "(profile `gpu`)" in box_lines(Cost(61, 2100.0, 4, "gpu"))[0]
