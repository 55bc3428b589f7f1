"""Scorers: what counts as the answer, what is equal, and that no text can make them raise or hang."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faithlab.tasks import verify
from faithlab.tasks.expressions import score_expression
from faithlab.tasks.scoring import (
    Score,
    extract_letter,
    gold_of,
    same_answer,
    score_choice,
    score_number,
)

RIGHT = {
    "14": [
        "14", "$14.00", "\\boxed{14}", "The answer is 14.", "#### 14", "**14**", "14 apples", "14 = 14", "014", "+14",
        "Answer: 14\nQuestion: 3", "**Answer:** 14", "The answer is\n\n$$14$$", "<answer> 14 </answer>", "14!",
        "14kg", "\\boxed{14\\text{ apples}}", "\\boxed{7 \\times 2 = 14}", "\\boxed{\\boxed{14}}", "\\(14\\)", "x = 14",
        "(14)", "Answer: Ada has 3 pears and Ben has 14.", "The answer is 14 pears, 3 of them ripe.",
        "Answer : 14 .", "The answer is 28 pears / 2 = 14 pears", "the answer is 3. No, the answer is 14",
        "1.4 \\times 10^{1}", "3\n14", "- 3 red\n- 14 blue", "9 + 5\n= 14", "<think>3</think>14",
        "3</think> so 14", "28/2",
        "14.0000000001", "The answer is not 3 but 14", "\\frac{28}{2}", "1.4e1", "１４", "14 (fourteen)",
        "\\boxed{14} and then 3", "#### 14\nThe answer is 3", "$9 + $5 = $<<9+5=14>>14", "14^\\circ",
    ],
    "1234": ["1,234", "#### 1,234", "1{,}234", "1\\,234", "1\u202f234", "1,234.00"],
    "-3": ["-3", "\u22123", "\u20133", "-$3", "$-3$", "(-3)", "- 3", "The answer is -3."],
    "0.5": ["1/2", "\\frac12", ".5", "50%", "\\dfrac{1}{2}", "\\frac{\\sqrt{4}}{4}", "The answer is 2^{-1}."],
    "2.5": ["2 1/2", "2\\frac{1}{2}", "5/2"],
    "50": ["50%", "5000%", "50\\%", "50 percent"],
    "1/3": ["0.333333", "2/6"],
    "\\sqrt{12}": ["2\\sqrt{3}", "\\boxed{\\sqrt{12}}", "The answer is 2 \\sqrt{3}."],
    "x+1": ["1+x", "\\boxed{x+1}"],
}  # fmt: skip
WRONG = {
    "14": ["15", "3 + 11", "7*2", "\\boxed{7 \\times 2}", "14 - 0", "9 + 5 = ?",
           "the answer is 14. So the answer is 15", "The answer is blue.", "14\n15", "14x", "-14", "1.4",
           "\\boxed{none}", "14/0", "9" * 10_000],
    "1234": ["1 234", "12,34", "234"],
    "2": ["2\\sqrt{3}", "2^3", "The answer is \\sqrt{2}"],
    "50": ["0.5", "500%"],
    "1/3": ["0.33"],
    "10000000": ["10000001"],
    "x+1": ["x"],
}  # fmt: skip
UNANSWERED = ["", " \n\t", None, "The answer is", "So 3 + 4 = 7. The answer is", "\\boxed{14", "9 + 5 =",
              "<think> 14", "14</think>", "I do not know", "####", "<answer>", "x2", "(((((("]  # fmt: skip


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(gold, text) for gold, texts in table.items() for text in texts]


@pytest.mark.parametrize(("gold", "text"), cases(RIGHT))
def test_right_numbers(gold, text):
    score = score_number(text, gold)
    assert (score.status, score.value) == ("right", 1.0), score


@pytest.mark.parametrize(("gold", "text"), cases(WRONG))
def test_wrong_numbers(gold, text):
    score = score_number(text, gold)
    assert (score.status, score.value) == ("wrong", 0.0), score
    assert score.extracted


@pytest.mark.parametrize("text", UNANSWERED)
def test_unanswered_numbers(text):
    assert score_number(text, "14") == Score("unanswered", 0.0, None)


FORMATS = ["{}", "The answer is {}.", "\\boxed{{{}}}", "#### {}", "**{}**", "${}$", "Answer: {} apples", "3 + x = {}",
           "First 5, then 6.\nSo: {}", "<answer>{}</answer>"]  # fmt: skip


@given(st.integers(-(10**9), 10**9), st.sampled_from(FORMATS), st.sampled_from(["{}", "{}.0", "{}.00", "{:,}"]))
def test_the_right_integer_is_right_in_every_format_and_its_neighbour_is_wrong(value, form, numeral):
    text = form.format(numeral.format(value))
    assert score_number(text, str(value)).status == "right"
    assert score_number(text, str(value + 1)).status == "wrong"


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=50), st.sampled_from(FORMATS))
def test_fractions_are_exact(value, form):
    gold = f"{value.numerator}/{value.denominator}"
    assert score_number(form.format(gold), gold).status == "right"
    assert score_number(form.format(value + Fraction(1, 7)), gold).status == "wrong"


@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from("+-*"), st.sampled_from(["{}", "\\boxed{{{}}}", "{} ="]))
def test_repeating_the_sum_is_never_right(a, b, operator, form):
    """A model must not earn the reward of chain_sum with the question's own expression, even where a term is 0."""
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert score_number(form.format(f"{a} {operator} {b}"), str(value)).value == 0.0


LETTERS_RIGHT = ["B", "(B)", "B.", "The answer is (B)", "**B**", "B) foo", "b", "(b)", "\\boxed{B}", "$B$",
                 "\\boxed{\\text{B}}", "Answer: B. Vitamin A", "B. Vitamin A", "A dog is B",
                 "The correct option is B", "#### B",
                 "B\nbecause A is wrong", "the answer is B because A is wrong", "**B.** Paris", "Option B", "Paris",
                 "the answer is paris.", "First A, no, (B)", "\\boxed{Paris}"]  # fmt: skip


@pytest.mark.parametrize("text", LETTERS_RIGHT)
def test_right_letters(text):
    assert score_choice(text, "B", choices=["Rome", "Paris", "Oslo", "Bern"]) == Score("right", 1.0, "B")


@pytest.mark.parametrize(
    ("text", "status"),
    [("A", "wrong"), ("It's C", "wrong"), ("A is correct", "wrong"), ("The answer is a dog", "wrong"),
     ("Rome", "wrong"), ("", "unanswered"), (None, "unanswered"), ("So the answer is", "unanswered"),
     ("E", "unanswered"), ("A dog barks", "unanswered"), ("Bravo", "unanswered")],
)  # fmt: skip
def test_other_letters(text, status):
    assert score_choice(text, "B", choices=["Rome", "Paris", "Oslo", "Bern"]).status == status


@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from([*FORMATS[:5], "({})", "{}) the cat", "{}", "I say ({})."]))
def test_every_letter_is_read_in_every_format(letter, form):
    assert extract_letter(form.format(letter), "ABCDEFGHIJ") == letter


def test_two_options_with_one_text_stand_for_no_letter():
    assert score_choice("Paris", "B", choices=["Paris", "Paris", "Oslo", "Bern"]).status == "unanswered"


# -- countdown expressions


@pytest.mark.parametrize(
    "text",
    ["(3 + 4) * 2", "(3+4)*2 = 14", "14 = (3+4)*2", "Answer: ( 3 + 4 ) * 2 .", "(3+4)\\times 2",
     "<answer>(3+4)*2</answer>", "\\boxed{(3+4)\\cdot 2 = 14}", "I use 3 and 4: (3+4)*2 = 14.", "**(3+4)*2**",
     "-(-3-4)*2", "(3 + 4) × 2", "(3+4)*2 =", "Answer: (3+4)*2\nThat uses 3, 4 - and 2.", "- 3 + 4\n- (3+4)*2"],
)  # fmt: skip
def test_right_expressions(text):
    assert score_expression(text, [2, 3, 4], 14).status == "right"


@pytest.mark.parametrize(
    "text",
    ["(3+4)*2 = 15", "3*4 + 2 + 0", "2*3+4+4", "3 + 4 = 7, 7*2 = 14", "14", "3**2", "(3+4)2", "((3+4)*2",
     "Answer: none", "- (3+4)*2", "3+4*2 = 14", "(3+4)*2 = 14 = 14", "9**9**9**9", "3+" * 10_000, "2*(3+4)/0",
     "2.0*(3+4)", "3//4+2"],
)  # fmt: skip
def test_wrong_expressions(text):
    assert score_expression(text, [2, 3, 4], 14).status == "wrong"


@pytest.mark.parametrize("text", ["", None, "  ", "no idea", "Answer:", "<think>(3+4)*2", "(" * 100_000])
def test_unanswered_expressions(text):
    assert score_expression(text, [2, 3, 4], 14).status == "unanswered"


def test_division_is_exact():
    assert score_expression("8 / (3 - 8 / 3)", [3, 3, 8, 8], 24).status == "right"
    assert score_expression("7 / 2 * 4", [7, 2, 4], 12).status == "wrong", "whole-number division would say 12"


@st.composite
def expressions(draw) -> tuple[str, list[int], Fraction]:
    """A random expression over 2-5 numbers, with the numbers and its value."""
    parts = [(str(n), Fraction(n)) for n in draw(st.lists(st.integers(1, 20), min_size=2, max_size=5))]
    numbers = [int(text) for text, _ in parts]
    while len(parts) > 1:
        (left, a), (right, b) = parts.pop(), parts.pop(draw(st.integers(0, len(parts) - 1)))
        operator = draw(st.sampled_from("+-*/" if b else "+-*"))
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
        parts.append((f"({left} {operator} {right})", value))
    return parts[0][0], numbers, parts[0][1]


@given(expressions(), st.randoms(use_true_random=False))
def test_an_expression_is_right_for_its_value_and_numbers_only(drawn, rng):
    text, numbers, value = drawn
    shuffled = rng.sample(numbers, len(numbers))
    if value.denominator == 1:
        assert score_expression(text, shuffled, int(value)).status == "right"
        assert score_expression(f"{text} = {value}", shuffled, int(value)).status == "right"
    assert score_expression(text, shuffled, value.__floor__() + 1).status == "wrong"
    assert score_expression(text, shuffled[1:], int(value)).status == "wrong"
    assert score_expression(text, [*shuffled, 1], int(value)).status == "wrong"


# -- no text can make a scorer raise or hang

FRAGMENTS = ["14", "-", "+", "*", "/", "**", "=", "(", ")", ".", ",", " ", "\n", "$", "%", "^", "{", "}", "\\",
"####",
             "\\boxed{", "\\frac{", "\\frac12", "\\sqrt{", "\\text{", "<think>", "</think>", "<answer>", "answer is ",
             "B", "(A)", "x", "1,234", "1e5", "\u2212", "\x00", "０", "٣", "e", "!", "9" * 400]  # fmt: skip


def scores(text):
    problem = [2, 3, 4]
    return [score_number(text, "14"), score_choice(text, "B", choices=["14", "x"]), score_expression(text, problem, 14)]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)))
@example("1" * 5000 + "/" + "1" * 5000)
@example("\ud800")
@example("\\frac{1}{0}")
@example("(-)")
@example("= =")
def test_any_text_gets_a_score_in_time(text):
    start = time.perf_counter()
    for score in scores(text):
        assert score.status in ("right", "wrong", "unanswered")
        assert score.value == (1.0 if score.status == "right" else 0.0)
        assert (score.extracted is None) == (score.status == "unanswered")
    assert time.perf_counter() - start < verify.SECONDS + 2


@pytest.mark.parametrize(
    "unit",
    ["9", "(", "[", "{", "-", "=", "#", "$", "*", " ", "\n", "a", "'", "1 ", "1=", "1/", "1+", "1,", "1,111", "10^",
     "A ", "(A", "**", "1**", "\\boxed{", "\\frac{", "\\sqrt{{{", "\\text{", "\\a[", "<answer>", "<think>",
     "</think>", "<<",
     "answer ", "answer is ", "sqrt(", ",\\!", "1e1", "1%", "-\n", "9**9"],
)  # fmt: skip
def test_long_repetitive_texts_take_linear_time(unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    scores(text)
    scores("\\boxed{" + text)
    assert time.process_time() - start < 5, "measured: 0.1 s; a quadratic pattern takes minutes"


def test_values_that_are_no_text_are_read_as_text():
    assert score_number(14, "14").status == "right"
    assert score_number(float("nan"), "14").status == "unanswered"
    assert score_number("It is 1,234 m", "14").extracted == "1,234"


# -- math-verify in its own process


@pytest.fixture
def counted():
    """The counts since the test began."""
    before = verify.counts()
    return lambda: {name: n - before[name] for name, n in verify.counts().items()}


SLOW = "\\int_0^1 x^{99} \\sqrt{x^5+1} dx"


def test_a_slow_expression_is_given_up_and_counted_and_the_next_one_works(counted):
    assert verify.equal("4", "\\sqrt{16}")
    start = time.perf_counter()
    assert not verify.equal("1", SLOW, seconds=0.3)
    assert time.perf_counter() - start < 2
    assert counted() == {"calls": 2, "timeouts": 1, "errors": 0, "refused": 0}
    assert verify.equal("5", "\\sqrt{25}")
    assert counted() == {"calls": 3, "timeouts": 1, "errors": 0, "refused": 0}


def test_towers_of_powers_and_long_expressions_are_refused_at_once(counted):
    start = time.perf_counter()
    for text in ["9^{9^{9^9}}", "9**9**9**9", "2^{99999}", "99999!", "\\sqrt{4}+" * 100]:
        assert not verify.equal("1", text)
    assert counted()["refused"] == 5
    assert time.perf_counter() - start < 0.1


def test_a_worker_that_dies_is_counted_and_replaced(counted):
    assert verify.equal("6", "\\sqrt{36}")
    verify._worker.process.kill()
    verify._worker.process.wait()
    assert verify.equal("7", "\\sqrt{49}")
    assert counted() == {"calls": 2, "timeouts": 0, "errors": 0, "refused": 0}


def test_an_interrupted_question_leaves_no_late_verdict_behind(counted, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    assert verify.equal("10", "\\sqrt{100}")
    monkeypatch.setattr(verify._worker, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify.equal("11", "\\sqrt{121}")
    assert not verify.equal("11", "\\sqrt{122}")
    assert verify.equal("12", "\\sqrt{144}")


def test_it_works_in_threads_and_leaves_alarms_alone(counted):
    before = signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        found = []
        threads = [
            threading.Thread(target=lambda k=k: found.append(verify.equal(str(k), f"\\sqrt{{{k * k}}}")))
            for k in (8, 9)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True, True]
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 400, "math-verify's own timeout would have cancelled it"
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_forked_process_gets_a_worker_of_its_own():
    code = """
        import os
        from faithlab.tasks import verify
        assert verify.equal("2", "\\\\sqrt{4}")
        mine = verify._worker.process.pid
        if os.fork() == 0:
            ok = verify.equal("3", "\\\\sqrt{9}") and verify._worker.process.pid != mine
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        assert verify.equal("4", "\\\\sqrt{16}") and verify._worker.process.pid == mine
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("one", "other", "gold", "same"),
    [
        ("7", "7 pears", "7", True), ("$14.00", "14", "", True), ("7", "8", "7", False), ("1/2", "0.5", "", True),
        ("The answer is 7.", "7", "7", True), ("", "", "7", True), ("", "7", "7", False), (None, "7", "7", False),
        ("blue", "Blue.", "", True), ("blue", "red", "", False), ("7", "seven", "7", False),
        ("B", "(B) Paris", "C", True), ("B", "C", "C", False), ("b", "B.", "A", True), ("Paris", "B", "A", False),
        ("(3 * 7) + 5", "( 3 * 7 ) + 5", "(3 * 7) + 5", False), ("(3 * 7) + 5", "(3 * 7) + 5", "", True),
    ],
)  # fmt: skip
def test_same_answer_compares_answers_not_texts(one, other, gold, same):
    assert same_answer(one, other, gold) is same
    assert same_answer(other, one, gold) is same


def test_gold_of_a_problem_without_one_is_empty():
    assert gold_of(None) == gold_of({"question": "?"}) == "" and gold_of({"answer": 7}) == "7"
