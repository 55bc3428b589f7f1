"""The exercises of the course: solved ones pass, wrong ones are told apart, copies hold what they should."""

import importlib
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from test_pages import broken_links

from faithlab import course, exercises, grading
from faithlab.cli import build_parser, main
from faithlab.course import KINDS, exercises_of, solutions_copy, student_copy, tagged, write_copies
from faithlab.errors import FaithlabError
from faithlab.exercises import Outcome, exercise, expect, judge, unanswered

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {p.stem: nbformat.read(p, 4) for p in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
EXERCISES = [(stem, e) for stem, node in NOTEBOOKS.items() for e in exercises_of(node, stem)]
IDS = [e.name for _, e in EXERCISES]
exercises.names()  # enters all checks, so that each test can be run alone


def run_cell(source, capsys):
    """The outcome that a stand-alone run of an exercise's cell reports."""
    exercises._outcomes.clear()
    exec(compile(source, "<cell>", "exec"), {})
    [outcome] = exercises.outcomes().values()
    assert outcome.message in capsys.readouterr().out
    return outcome


@pytest.mark.parametrize("name", IDS)
def test_slips_of_the_pen_are_told_without_python_s_words(name):
    """A function without `return`, a dictionary without its entries, and the one in the place of the other."""
    for answer in (lambda *a, **k: None, {}, {"nothing": 1}, 3, lambda: 3, [1, 2]):
        said = judge(name, answer)
        assert said.status == exercises.WRONG
        for word in ("KeyError", "not subscriptable", "not callable", "NoneType"):
            assert word not in said.message, (answer, said.message)


@pytest.mark.parametrize(("stem", "e"), EXERCISES, ids=IDS)
def test_an_entry_of_the_wrong_kind_is_told_without_python_s_words(stem, e):
    subject = exercises.CHECKS[e.name].__module__.rsplit(".", 1)[1]
    for answer in importlib.import_module(f"wrong_solutions.{subject}").WRONG[e.name]:
        for entry in answer if isinstance(answer, dict) else ():
            for other in (0.5, [1, 0, 1, 0], {"nothing": 1}, [], "a few"):
                said = judge(e.name, answer | {entry: other})
                assert "Error" not in said.message and "object is not" not in said.message, (entry, other, said.message)


@pytest.mark.parametrize(("stem", "e"), EXERCISES, ids=IDS)
def test_stub_is_not_done_and_solution_is_right(stem, e, capsys):
    assert run_cell(e.stub, capsys).status == exercises.OPEN
    assert run_cell(e.solution, capsys) == (exercises.RIGHT, exercises.outcomes()[e.name].message)
    assert len(e.solution.splitlines()) <= 40 and 3 <= e.minutes <= 60


@pytest.mark.parametrize(("stem", "e"), EXERCISES, ids=IDS)
def test_three_wrong_solutions_are_explained_apart(stem, e):
    subject = exercises.CHECKS[e.name].__module__.rsplit(".", 1)[1]
    answers = importlib.import_module(f"wrong_solutions.{subject}").WRONG[e.name]
    told = [judge(e.name, answer) for answer in answers]
    assert len(told) >= 3 and {o.status for o in told} == {exercises.WRONG}
    assert len({o.message for o in told}) == len(told), "each mistake has an explanation of its own"
    assert all(len(o.message.split()) >= 6 and "AttributeError" not in o.message for o in told)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_notebook_has_three_kinds_in_one_anatomy(stem):
    node = NOTEBOOKS[stem]
    mine = [e for s, e in EXERCISES if s == stem]
    assert {e.kind for e in mine} == set(KINDS) and [e.number for e in mine] == list(range(1, len(mine) + 1))
    text = "\n".join(c.source for c in node.cells if c.cell_type == "markdown")
    places = [text.find(f"\n## {part}") for part in ("What to notice", "Pitfalls", "Exercises", "References")]
    assert -1 not in places and places == sorted(places)
    assert "**The question.**" in text and "**After this notebook you can**" in text and "**Next:**" in text
    asked, section = True, ""
    for cell in node.cells:
        for part in re.finditer(
            r"^## .*|\*\*Predict", cell.source if cell.cell_type == "markdown" else "", re.MULTILINE
        ):
            if part[0].startswith("##"):
                asked, section = not re.match(r"## \d", part[0]), part[0]
            else:
                asked = True
        assert asked or not cell.get("outputs"), (
            f"{section}: a prediction is asked for before the first result is shown"
        )
    assert text.count("<summary>Hint</summary>") == text.count("<summary>Solution</summary>") == len(mine)
    assert text.count("<details>") == text.count("</details>") == 2 * len(mine)


def test_every_check_belongs_to_one_exercise_of_the_course():
    assert sorted(IDS) == sorted(exercises.names())
    assert all(exercises.CHECKS[name].__doc__ for name in IDS)


def test_student_copy_has_hints_and_neither_solutions_nor_outputs():
    for node in NOTEBOOKS.values():
        made, before = student_copy(node), json.dumps(node)
        text = "\n".join(c.source for c in made.cells)
        assert "Solution</summary>" not in text and "Hint</summary>" in text
        assert not any(c.get("outputs") or c.get("execution_count") for c in made.cells)
        assert [e.stub for e in exercises_of(node)] == [c.source for c in made.cells if tagged(c, "exercise")]
        assert json.dumps(node) == before
        nbformat.validate(solutions_copy(node))


def test_copies_do_not_overwrite_work(tmp_path, capsys):
    argv = ["course", "student", "02", "--folder", str(ROOT / "notebooks"), "--output", str(tmp_path)]
    assert main(argv) == main(argv) == 0  # the same again is no loss
    [path] = tmp_path.glob("student/*.ipynb")
    older = nbformat.read(path, as_version=4)
    older.cells[0].source += "older"
    older.metadata["faithlab"]["sources"] = course._fingerprint(older)
    nbformat.write(older, path)
    assert main(argv) == 0 and "older" not in path.read_text()  # a copy of an earlier version, not touched
    path.write_text(path.read_text().replace("raise NotImplementedError", "return 3"))
    worked = path.read_text()
    assert main(argv) == 2
    assert "may hold somebody's work" in capsys.readouterr().err and path.read_text() == worked


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (None, "not done", "None"),
        ({"a": [1, None]}, "not done", "None"),
        (lambda: {}["x"], "wrong", "KeyError: 'x', in your line"),
        (3, "wrong", "A function is asked for"),
    ],
)
def test_what_a_check_says_of_odd_answers(answer, status, words):
    outcome = judge("anchor_without_reach", answer)
    assert outcome.status == status and words in outcome.message


def test_unknown_exercise_and_twin_names():
    with pytest.raises(FaithlabError, match="did you mean 'future_attention'"):
        judge("future_atention", 1)
    with pytest.raises(ValueError, match="two exercises"):

        @exercise
        def future_attention(answer):
            expect(answer, "")

    assert unanswered(...) and not unanswered([0, False, ""])


def test_grading_counts_each_exercise_and_each_file_alone(tmp_path, capsys):
    node = solutions_copy(NOTEBOOKS["02_attention_heads"])
    done = [i for i, c in enumerate(node.cells) if tagged(c, "exercise")]
    loop = 'check("future_attention", None)\nwhile True: pass'
    node.cells[done[1]].source = node.cells[done[1]].source.split("\n")[0] + "\n" + loop
    del node.cells[done[2]]
    node.cells.insert(0, nbformat.v4.new_markdown_cell("Ada Lovelace"))
    node.metadata.kernelspec.name = "conda-env"
    nbformat.write(node, tmp_path / "ada.ipynb")
    (tmp_path / "bob.ipynb").write_text("{ no JSON")
    (tmp_path / "eve.ipynb").write_text(json.dumps(dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)))
    handed_in = [str(tmp_path / f"{name}.ipynb") for name in ("ada", "bob", "eve")]
    argv = ["course", "grade", *handed_in, "--folder", str(ROOT / "notebooks"), "--output", str(tmp_path / "out")]
    assert main([*argv, "--timeout", "12"]) == 0
    out = capsys.readouterr().out
    assert f"1 of {len(done)} right" in out and "cannot be read as a notebook" in out and "title is missing" in out
    [grades] = tmp_path.glob("out/graded/*/grades.csv")
    table = pd.read_csv(grades)
    assert table["status"].tolist() == ["right", "did not run", "did not run", "did not run", "did not run"]
    assert "12 s ran out" in table["message"][1] and 'no call of check("' in table["message"][2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["grade"], "nothing to grade"),
        (["grade", "missing.ipynb"], "no such file"),
        (["grade", str(ROOT / "lib")], "no notebook (*.ipynb) lies in the folder"),
        (["student", "99"], "unknown notebook"),
    ],
)
def test_bad_input(argv, message, capsys, tmp_path):
    given = ["course", *argv, "--folder", str(ROOT / "notebooks"), "--output", str(tmp_path)]
    assert main(given) == 2 and message in capsys.readouterr().err


def test_an_exercise_built_wrongly_is_named():
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["exercise"]})])
    with pytest.raises(FaithlabError, match="cell 1: an exercise is a text"):
        exercises_of(node)
    assert Outcome("right", "x").status == "right"


@pytest.mark.parametrize(
    "source",
    [
        "check('flow', f)",
        'check("flow", f) ',
        'check("flow", f);',
        'check("flow", f)  # mine',
        'check(\n    "flow",\n    f,\n)',
        'check( "flow", f )',
        'x = 1\r\ncheck("flow", f)\r\n',
        'exercises.check("flow", f)',
        'check(name="flow", answer=f)',
        "x = = 1\ncheck( 'flow', f )",
        '!ls\ncheck("flow", f)',
    ],
)
def test_a_check_is_found_however_it_is_written(source):
    assert grading.checked_in(source) == {"flow"}


def test_what_only_looks_like_a_check_is_none():
    for source in ('# check("flow", f)', "check(flow)", "text = 'check(\"flow\", f)'", "x = = 1\n# check('flow', f)"):
        assert grading.checked_in(source) == set()


def test_a_folder_means_its_notebooks(tmp_path):
    for name in ("b.ipynb", "a.ipynb", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in grading.files_of([str(tmp_path), "/dev/null"])] == ["a.ipynb", "b.ipynb", "null"]


def test_grades_tell_of_twin_cells_and_of_helpers_elsewhere(monkeypatch, tmp_path):
    told = "Your answer stopped with NameError: name 'helper' is not defined, in your line `return helper(p)`"
    ran = []
    monkeypatch.setattr(grading, "_run", lambda cell, *rest: ran.append(cell) or ("wrong", told))
    given = grading.HandedIn("02", "", ["def helper(p): ...", "old", "new"], {"flow": ["old", "new"]})
    status, message = grading._graded(given, "flow", tmp_path, "part", 1.0)
    assert status == "wrong" and ran == ["new"]
    assert '2 cells call check("flow", ...), and the last one counts' in message
    assert "helper stands in another cell: graded alone, this cell needs its helpers and imports in itself" in message
    alone = grading.HandedIn("02", "", ["new"], {"flow": ["new"]})
    assert grading._graded(alone, "flow", tmp_path, "part", 1.0) == ("wrong", told)


@pytest.mark.parametrize(
    "argv",
    [
        ["course", "grade", "--timeout", "30", "a.ipynb", "b.ipynb"],
        ["course", "grade", "a.ipynb", "--timeout", "30", "b.ipynb"],
        ["course", "--timeout", "30", "grade", "a.ipynb", "b.ipynb"],
        ["feedback", "agree", "--annotator", "ada", "a.ipynb", "b.ipynb"],
    ],
)
def test_options_stand_before_between_or_behind_the_files(argv):
    args = build_parser(argv[0]).parse_args(argv)
    assert args.names == ["a.ipynb", "b.ipynb"] and args.action in ("grade", "agree")
    assert getattr(args, "timeout", 30) == 30 and getattr(args, "annotator", "ada") == "ada"


def test_minutes_in_class_and_at_home_are_those_of_the_notebooks():
    text = (ROOT / "notebooks" / "TEACHING.md").read_text()
    minutes = {f"{stem[:2]}·{e.number}": e.minutes for stem, e in EXERCISES}
    row = r"^\| \d \| (\d\d·[^|]+) \| (\d+) \| ([^|]+) \| (\d+) \| (\d+) \|$"
    lessons = re.findall(row, text, re.MULTILINE)
    placed = []
    for in_class, its_minutes, at_home, more, together in lessons:
        first, second = in_class.split(", "), at_home.split(", ")
        sums = [sum(minutes[e] for e in part) for part in (first, second)]
        assert [*sums, sum(sums)] == [int(its_minutes), int(more), int(together)]
        assert len(first) <= 2 and sums[0] <= 45
        placed += first + second
    assert sorted(placed) == sorted(minutes) and len(lessons) == 4
    assert f"would take {'/'.join(row[-1] for row in lessons)} minutes" in text


MEASURES = {"auroc_mask": 0.75, "ap_mask": 0.625, "auroc_flow": 10 / 12, "ap_flow": 7 / 12}


def library_stops(*args):
    return np.linalg.inv(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("two_measures_by_hand", MEASURES | {"auroc_flow": "5/6"}, "numbers only, as 5/6 without quotes"),
        ("seeds_and_problems", {"value": "1/5"}, "numbers only, as 5/6 without quotes"),
        ("flow_by_hand", {"reachability": 0.26, "inflow": ["1/4", 0.1]}, "numbers only, as 5/6 without quotes"),
        ("two_measures_by_hand", MEASURES | {"auroc_mask": 75}, "shares are between 0 and 1, so write 75 % as 0.75"),
        ("two_measures_by_hand", MEASURES | {"auroc_mask": 3}, "Go through the 2 x 6 pairs"),
        ("future_attention", library_stops, "in your line `return np.linalg.inv(np.zeros((2, 3)))`"),
        ("coupled_gamma", lambda waad, *rest: [7.0] * len(waad), "tau_waad=1.5, tau_delta=1.0, k=3, alpha=0.5) should"),
        ("coupled_gamma", lambda waad, *rest: [7.0] * len(waad), "yours gives [7.0, 7.0, 7.0, 7.0, 7.0, 7.0]"),
    ],
)
def test_messages_lead_on(name, answer, words):
    outcome = judge(name, answer)
    assert outcome.status == "wrong" and words in outcome.message, outcome.message


@pytest.mark.parametrize("kind", ["student", "solutions"])
def test_links_and_paths_of_copies_lead_where_those_of_the_notebooks_do(tmp_path, kind):
    folder = write_copies(kind, (), ROOT / "notebooks", tmp_path / "some" / "where")
    copies = sorted(folder.glob("*.ipynb"))
    assert len(copies) == 10
    for path in copies:
        assert broken_links(path) == []
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        (output,) = re.findall(r'^output_dir = "([^"]+)"', text, re.MULTILINE)
        assert (folder / output).resolve() == ROOT / "runs" / "interactive" / path.stem
        beside = re.findall(r'^gsm8k_path = "\.\./.+"', text, re.MULTILINE)  # as seen from the repository, and so left
        assert len(re.findall(r"""["'(]\.\./[a-z]""", text)) == len(beside), "relative to the notebooks"
        assert len(beside) == path.stem.startswith("10")
