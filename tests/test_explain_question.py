"""What the words of a question do to the answer: measured against loops and known truth, and shown on the page."""

import json
import math
from dataclasses import replace

import browser
import pytest
from oracle import HINTED, nats, oracle, story
from test_explain import NASTY, STORY, Reader
from test_likelihood import naive_logp
from tiny import ARCHITECTURES, tiny_reasoner, tiny_traces

from faithlab.attention import capture
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.explanation import explain, question_words, strongest
from faithlab.explanation_files import figure
from faithlab.faithfulness import token_effects
from faithlab.flow import trace_flow
from faithlab.page import page
from faithlab.prefill import shared_prefix
from faithlab.shown_scores import KINDS
from faithlab.traces import Trace
from faithlab.units import question_positions, units_of

FRIEND = f"{STORY} A friend says the answer is 9."


@pytest.fixture(scope="module")
def copied(abacus):
    """The trace of an answer that abacus copies from the question."""
    [trace] = abacus.generate([FRIEND], temperature=0)
    assert trace.answer_text == "9"
    return trace


def quickly(reasoner, trace):
    """An explanation with a made-up mask in the place of the optimised one, which takes seconds."""
    found = explain(reasoner, trace, samples=0, kinds=[kind for kind in KINDS if kind != "saliency"])
    mask = {"saliency": [0.5] * len(found.scores["fai"])}, {"saliency": [0.5] * len(found.sentences)}
    return replace(found, scores=found.scores | mask[0], sentence_scores=found.sentence_scores | mask[1])


@pytest.fixture(scope="module")
def explained(abacus, copied):
    return quickly(abacus, copied)


@pytest.fixture(scope="module")
def pair(abacus, explained):
    [plain] = abacus.generate([STORY], temperature=0)
    return [quickly(abacus, plain), explained]


def words_of(explanation):
    return [text for text, part in explanation.tokens if part == "question"]


# --- where the question stands --------------------------------------------------------------------------------------


def test_units_of_the_question_are_those_of_its_text(copied):
    assert "".join(copied.pieces[p] for p in question_positions(copied)).strip() == FRIEND
    assert [p for (p,) in units_of(copied, of="question")] == question_positions(copied)
    sentences = ["".join(copied.pieces[p] for p in u).strip() for u in units_of(copied, "sentence", of="question")]
    assert sentences[0] == "Ada has 3 pears." and sentences[-1] == "A friend says the answer is 9."
    with pytest.raises(FaithlabError, match="did you mean 'question'"):
        units_of(copied, of="questions")


def test_the_last_place_counts_and_a_reworded_question_has_none(abacus, copied):
    shown = tiny_reasoner().with_examples([(STORY, "Ada has 3 pears.", "7")])
    trace = shown.trace(STORY, "Ada has 3 pears.", "7")
    at = question_positions(trace)
    assert trace.pieces[at[-1] + 1] == "\n" and at[-1] + 4 == trace.prompt.stop
    elsewhere = replace(copied, problem={"question": "Who?"})
    assert question_positions(elsewhere) == units_of(elsewhere, of="question") == []
    assert token_effects(abacus, [elsewhere], of="question").empty


def bare(trace):
    """The same trace with the question alone as its prompt."""
    question = question_positions(trace)
    first, ids = question[0], trace.input_ids
    keep = [*question, *range(trace.prompt.stop, len(trace))]
    shift = len(trace) - len(keep)
    spans = [slice(s.start - shift, s.stop - shift) for s in (trace.reasoning, trace.answer)]
    assert first == 2
    pieces = tuple(trace.pieces[p] for p in keep)
    return Trace(ids[keep], slice(0, len(question)), *spans, pieces, True, {"question": trace.question})


def test_the_first_token_of_the_prompt_is_not_measured_and_not_zero(abacus, copied):
    trace = bare(copied)
    assert question_positions(trace)[0] == 0 and units_of(trace, of="question")[0] == (1,)
    assert units_of(trace, "sentence", of="question")[0][0] == 1
    found = explain(abacus, trace, samples=0, kinds=["effect", "direct", "flow"]).in_question
    assert found.first == 0 and found.scores["effect"][0] is found.scores["direct"][0] is None
    assert None not in found.scores["effect"][1:] + found.scores["flow"]


# --- effects --------------------------------------------------------------------------------------------------------


def by_hand(reasoner, trace, positions, scope):
    after = trace.reasoning.stop if scope == "answer" else None
    blind = [(row, p) for p in positions for row in range(after or p + 1, len(trace))]
    plain = naive_logp(reasoner.model, trace.input_ids, trace.answer)
    return plain - naive_logp(reasoner.model, trace.input_ids, trace.answer, blind)


@pytest.mark.parametrize("unit", ["token", "sentence"])
@pytest.mark.parametrize("scope", ["answer", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_effects_equal_a_plain_loop(architecture, scope, unit):
    reasoner = tiny_reasoner(architecture)
    traces = tiny_traces(reasoner)[:3]
    table = token_effects(reasoner, traces, scope=scope, unit=unit, of="question")
    cuts = [(t, u) for t in traces for u in units_of(t, unit, of="question")]
    assert table["text"].tolist() == ["".join(t.pieces[p] for p in u) for t, u in cuts]
    checked = range(0, len(cuts), 5 if unit == "token" else 1)
    expected = [by_hand(reasoner, *cuts[k], scope) for k in checked]
    assert table["effect"].iloc[list(checked)].tolist() == pytest.approx(expected, abs=4e-4)
    if (architecture, scope) == ("mistral", "answer"):
        assert not any(expected), "its windows are too short for the answer to see the question"
    else:
        assert max(map(abs, expected)) > 0.01, "in this model no cut matters, so the test would see nothing"


def test_effects_where_prompts_share_their_beginning():
    """Shared columns stand before the padding: a cut there reruns and blinds the right rows."""
    reasoner = tiny_reasoner()
    question = "Ada has 3 pears. " + "Ben has 4 more pears than Ada. " * 3 + "How many pears does Ben have?"
    traces = [reasoner.trace(question, "Ada = 3.", "7"), reasoner.trace(question, "Ada = 3. " * 5, "7")]
    assert shared_prefix(reasoner.model, [t.input_ids[t.prompt].tolist() for t in traces]) > 32
    for scope in ("all", "answer"):
        table = token_effects(reasoner, traces, scope=scope, of="question")
        some = table.iloc[::7]
        expected = [by_hand(reasoner, traces[row.trace], [row.start], scope) for row in some.itertuples()]
        assert some["effect"].tolist() == pytest.approx(expected, abs=4e-4)


@pytest.mark.parametrize("scope", ["answer", "all"])
def test_known_truth_of_a_scripted_copier(scope):
    reasoner = oracle()
    traces = reasoner.generate([story(3), HINTED], temperature=0)
    table = token_effects(reasoner, traces, scope=scope, of="question")
    read = table[table["effect"].abs() > 1e-4]
    assert list(read["trace"]) == [1, 1] and list(read["text"]) == [" is", " 14"]  # the rule reads what follows " is"
    assert read["effect"].to_numpy() == pytest.approx(nats(reasoner), abs=1e-4)


def test_in_abacus_the_hint_s_number_has_by_far_the_largest_effect(explained):
    effects = dict(zip(words_of(explained), explained.in_question.scores["effect"], strict=True))
    others = [abs(v) for word, v in effects.items() if word != " 9"]
    assert effects[" 9"] > 3 and effects[" 9"] > 3 * max(others) and max(others) == effects[" friend"]
    assert max(map(abs, explained.scores["effect"])) < 0.1, "the reasoning is decoration"


def test_only_cutting_is_offered():
    reasoner = tiny_reasoner()
    traces = tiny_traces(reasoner)
    for method in ("replace", "resample"):
        with pytest.raises(FaithlabError, match="would ask another question"):
            token_effects(reasoner, traces, method=method, of="question")
    with pytest.raises(FaithlabError, match="unknown part 'prompt'"):
        token_effects(reasoner, traces, of="prompt")


# --- the explanation ------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_library(abacus, copied, explained):
    found = explained.in_question
    assert list(found.scores) == list(found.sentence_scores) == ["effect", "direct", "flow"]
    for kind, scope in (("effect", "all"), ("direct", "answer")):
        for unit, values in (("token", found.scores[kind]), ("sentence", found.sentence_scores[kind])):
            table = token_effects(abacus, [copied], scope=scope, unit=unit, of="question")
            assert values == pytest.approx(table["effect"].tolist(), rel=1e-3, abs=1e-6)
    read = capture(abacus.model, [copied], want=("mean_map",), pad_id=abacus.pad_id).traces[0].mean_map
    inflow = trace_flow(read, copied.prompt, copied.answer).inflow
    assert found.scores["flow"] == pytest.approx(inflow[question_positions(copied)].tolist(), rel=1e-3)
    assert min(found.scores["flow"]) >= 1 / copied.prompt.stop - 1e-4, "its own part begins at each"
    back = json.loads(json.dumps(explained.to_json(), allow_nan=False))["in_question"]
    assert back["first"] == found.first and back["scores"]["effect"] == found.scores["effect"]
    assert strongest(explained, "effect", 1, of="question")[0][0] == found.first + words_of(explained).index(" 9")


def test_long_questions_leave_single_effects_out_and_say_so(abacus, copied, monkeypatch):
    monkeypatch.setattr("faithlab.shown_scores.OPERATIONS", 1.0)
    found = explain(abacus, copied, samples=0, kinds=["effect"])
    assert set(found.in_question.scores["effect"]) == {None} and question_words(found) == ""
    assert None not in found.in_question.sentence_scores["effect"]
    assert sum("the question's single tokens was left out" in note for note in found.notes) == 1
    whole = explain(abacus, copied, samples=0, kinds=["effect"], thorough=True)
    assert None not in whole.in_question.scores["effect"]


def test_a_question_that_is_not_in_the_prompt_is_said_to_be_unmeasured(abacus, copied):
    found = explain(abacus, replace(copied, problem={"question": "Who?"}), samples=0, kinds=["direct", "fai"])
    assert found.in_question.first is None and found.in_question.scores == {} and question_words(found) == ""
    assert any("no word of the question could be measured" in note for note in found.notes)
    assert 'class="question-list"' not in page([found])
    figure(found).canvas.draw()


def test_words_are_named_whole_with_their_strongest_token(explained):
    assert question_words(explained) == (
        "Hidden from all that follows, these words of the question matter most to log p(answer): "
        "“9.” takes off 9.6 nats, “friend” takes off 2.4 nats."
    )
    part = explained.in_question
    quiet = [0.4] * len(part.scores["effect"])

    def said(**scores):
        return question_words(replace(explained, in_question=replace(part, scores=scores)))

    assert "no single word of the question changes log p(answer) by 0.5 nats" in said(effect=quiet)
    assert said(effect=[None] * len(quiet), direct=[-3.0, *quiet[1:]]).startswith("Hidden from the answer, these")
    assert "“Ada” adds 3.0 nats." in said(direct=[-3.0, *quiet[1:]])
    assert said(flow=quiet) == ""
    joined = [(text.replace(" ", ""), p) if p == "question" else (text, p) for text, p in explained.tokens]
    unspaced = replace(explained, tokens=joined)
    assert "“9” takes off 9.6 nats." in question_words(unspaced) and "friend" not in question_words(unspaced)


# --- the page -------------------------------------------------------------------------------------------------------


def test_page_holds_the_question_as_a_list_and_escapes_it(explained):
    tokens = [(NASTY, part) for _, part in explained.tokens]
    text = page([replace(explained, tokens=tokens, question=NASTY)], command=NASTY)
    reader = Reader()
    reader.feed(text)
    assert sum(tag == "script" for tag, _ in reader.tags) == 2
    given = [attributes for tag, attributes in reader.tags if tag == "span" and attributes.get("role")]
    lists = [a["aria-label"].split(";")[0] for a in given if a["role"] == "listbox"]
    assert lists == ["the question", "the reasoning"]
    options = [a for a in given if a["role"] == "option" and a["class"] == "t question"]
    assert len(options) == len(words_of(explained)) and options[0]["id"] == f"t0-{explained.in_question.first}"
    inside = text.split('<span class="reasoning-list"')[1].split('<span class="t marker"')[0]
    assert "more prompt tokens" not in inside, "a list holds options only"


def test_page_says_in_words_which_scores_the_question_has(explained):
    reader = Reader()
    reader.feed(page([explained]))
    assert question_words(explained) in reader.text
    assert reader.text.count("place in the question") == sum(kind.asked for kind in KINDS.values()) == 3
    for label in ("causal effect", "direct effect", "flow"):
        assert f"{label} (question and reasoning)" in reader.text
    for label in ("saliency", "WAAD", "FAI"):
        assert f"{label} (the reasoning only)" in reader.text
    at = explained.in_question.first
    edge = Reader()
    edge.feed(page([replace(explained, edges=[(at + 2, explained.first, 0.5)])]))
    assert "(question, 3)" in edge.text


COLOURS = """
const shown = (a, of) => [...document.querySelectorAll("article")[a].querySelectorAll(`.t.${of}`)]
  .map((s) => [s.textContent.trim(), s.style.backgroundColor, s.classList.contains("undefined")]);
const click = (name, value) => document.querySelector(`input[name=${name}][value=${value}]`).click();
const what = () => document.querySelector(".what").textContent;
"""


def deepest(tokens):
    """The token with the deepest colour."""
    return max(tokens, key=lambda token: 1.0 if "rgb(" in token[1] else float(token[1].split(",")[-1].strip(" )")))[0]


@browser.needs_browser
def test_in_a_browser_both_questions_are_coloured_under_one_scale(pair, tmp_path):
    script = f"""{COLOURS}
    const effect = [0, 1].map((a) => shown(a, "question")), high = document.querySelector(".legend .high").textContent;
    click("level", "sentence");
    return {{ effect, high, sentence: shown(1, "question"), what: what() }};
    """
    found = browser.run(page(pair), script, tmp_path)
    assert deepest(found["effect"][1]) == "9" and "0.75" in dict(t[:2] for t in found["effect"][1])["9"]
    assert all(colour.endswith(" 0.000)") for _, colour, _ in found["effect"][0]), "far below the scale's end"
    top = max(v for e in pair for v in e.in_question.scores["effect"] + e.scores["effect"])
    assert float(found["high"].split()[0]) == pytest.approx(top, rel=1e-2)
    coloured = [word for word, colour, _ in found["sentence"] if not colour.endswith(" 0.000)")]
    assert coloured == ["A", "friend", "says", "the", "answer", "is", "9", "."]
    assert "Of question and reasoning." in found["what"]


@browser.needs_browser
@pytest.mark.parametrize("kind", ["saliency", "waad", "fai"])
def test_in_a_browser_what_is_not_measured_has_no_colour_and_no_number(kind, pair, tmp_path):
    script = f"""{COLOURS}
    const before = shown(1, "question");
    click("score", "{kind}");
    const list = document.querySelectorAll(".question-list")[1];
    list.dispatchEvent(new KeyboardEvent("keydown", {{ key: "End", bubbles: true }}));
    return {{ before, after: shown(1, "question"), what: what(),
      said: document.querySelectorAll(".status")[1].textContent,
      tables: document.querySelectorAll("table.top:not(.hidden)").length }};
    """
    found = browser.run(page(pair), script, tmp_path)
    assert all(colour for _, colour, _ in found["before"])
    assert not any(colour or undefined for _, colour, undefined in found["after"])
    assert "Of the reasoning only" in found["what"] and found["tables"] == 2
    assert found["said"] == f"token “.” of the question: {KINDS[kind].label} is not measured of the question"


@browser.needs_browser
def test_in_a_browser_keys_move_in_question_and_reasoning(explained, tmp_path):
    part = explained.in_question
    undefined = [None, *part.scores["effect"][1:]]
    page_text = page([replace(explained, in_question=replace(part, scores=part.scores | {"effect": undefined}))])
    script = """
    const [question, reasoning] = document.querySelectorAll("[role=listbox]");
    const status = document.querySelector(".status");
    const press = (list, key) => {
      list.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      return status.textContent;
    };
    const said = [press(question, "Home"), press(question, "End"), press(question, "ArrowLeft"),
      press(reasoning, "ArrowRight"), press(question, "ArrowRight")];
    document.querySelectorAll(".t.question")[1].click();
    return { said, clicked: status.textContent,
      active: [question, reasoning].map((l) => l.getAttribute("aria-activedescendant")),
      selected: [...document.querySelectorAll("[aria-selected=true]")].map((t) => t.id), tab: question.tabIndex,
      hatched: document.querySelectorAll(".t.question.undefined").length };
    """
    found = browser.run(page_text, script, tmp_path)
    said = found["said"]
    assert said[0] == "token “Ada” of the question: causal effect undefined nats" and found["hatched"] == 1
    assert said[2] == "token “9” of the question: causal effect 9.58 nats, rank 1 in the question"
    assert said[3].startswith("token “To” of the reasoning") and said[3].endswith("in the reasoning")
    assert said[4] == said[0] and found["clicked"].startswith("token “has” of the question")
    assert found["active"] == [f"t0-{part.first + 1}", None] and found["selected"] == [f"t0-{part.first + 1}"]
    assert found["tab"] == 0


def test_figure_colours_the_question(explained):
    axes = figure(explained).axes
    for ax, depth in ((axes[0], True), (axes[3], False)):  # the causal effect and FAI
        place = next(i for i, text in enumerate(ax.texts) if text.get_text() == " 9")
        assert (sum(ax.patches[place].get_facecolor()[:3]) < 2.5) == depth


def test_command_names_the_words_and_writes_the_values(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("faithlab.explain.explain", lambda reasoner, trace, **options: quickly(reasoner, trace))
    argv = ["explain", STORY, "--compare", FRIEND, "--samples", "0", "--output", str(tmp_path), "--name", "two"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "no single word of the question" in said and "“9.” takes off 9.6 nats" in said
    content = json.loads((tmp_path / "two" / "explanation.json").read_text())["explanations"]
    scores = content[1]["in_question"]["scores"]
    assert set(scores) == {"effect", "direct", "flow"} and math.isclose(max(scores["effect"]), 9.58, abs_tol=0.05)
    assert content[1]["kinds"]["flow"]["asked"] and not content[1]["kinds"]["fai"]["asked"]
