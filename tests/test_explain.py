"""`faithlab explain`: the numbers are the library's, the page holds them safely and works in a browser."""

import json
import math
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import torch

from faithlab import tasks, verdict
from faithlab.cli import main
from faithlab.errors import FaithlabError
from faithlab.explanation import SHOWN, _absent, beyond, explain, strongest
from faithlab.explanation_files import figure, save
from faithlab.faithfulness import reasoning_effect, token_effects
from faithlab.page import page
from faithlab.shown_scores import KINDS, plain
from faithlab.token_scores import score
from faithlab.units import units_of

STORY = "Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?"
NASTY = '<script>alert("x")</script><!-- & \u2028'


@pytest.fixture(scope="module")
def trace(abacus):
    problem = tasks.load("stories", split="test", n=1, seed=2, hops=(2, 2))[0]
    return abacus.generate([problem], temperature=0)[0]


@pytest.fixture(scope="module")
def explained(abacus, trace):
    return explain(abacus, trace, samples=3, seed=1)


@pytest.fixture(scope="module")
def nasty(explained):
    """The same with texts that would break out of a careless page."""
    tokens = [(NASTY if i % 5 == 0 else text, part) for i, (text, part) in enumerate(explained.tokens)]
    return replace(explained, tokens=tokens, question=NASTY, reasoning=NASTY, answer=NASTY, notes=[NASTY], gold=NASTY)


def long(explained, n=2000):
    """A page's worth of a long trace, made of the short one."""
    start, count = explained.first, len(explained.scores["effect"])
    head, body, tail = (
        explained.tokens[:start],
        explained.tokens[start : start + count],
        explained.tokens[start + count :],
    )
    values = {k: (v * (n // count + 1))[:n] for k, v in explained.scores.items()}
    sentences = [(start + i, min(start + i + 19, start + n - 1)) for i in range(0, n, 20)]
    return replace(
        explained,
        tokens=head + (body * (n // count + 1))[:n] + tail,
        scores=values,
        sentences=sentences,
        sentence_scores={k: plain(np.linspace(0, 1, len(sentences))) for k in values},
        edges=[(start + i, start + n + 1, 0.1) for i in range(40)],
    )


def test_numbers_are_those_of_the_library(abacus, trace, explained):
    whole = reasoning_effect(abacus, [trace]).iloc[0]
    assert explained.effect == pytest.approx(whole["effect"], abs=1e-4)
    single = token_effects(abacus, [trace], scope="all")["effect"]
    assert explained.scores["effect"] == pytest.approx(list(single), rel=1e-3, abs=1e-4)
    assert len(explained.scores["saliency"]) == trace.reasoning.stop - trace.reasoning.start
    assert len(explained.sentences) == len(units_of(trace, "sentence")) == len(explained.sentence_scores["flow"])
    first, last = explained.sentences[-1]
    inflow = [f / 2 for f in score("flow", abacus, [trace])[0].tolist()]
    assert explained.scores["flow"] == pytest.approx(inflow, rel=1e-3)
    flow = explained.scores["flow"][first - explained.first : last + 1 - explained.first]
    assert explained.sentence_scores["flow"][-1] == pytest.approx(np.mean(flow), rel=1e-3)


def test_the_curve_goes_from_hidden_to_seen(explained):
    assert explained.curve[0] == pytest.approx(explained.logp_hidden, abs=2e-3)
    assert explained.curve[-1] == pytest.approx(explained.logp, abs=2e-3)
    assert len(explained.curve) == len(explained.sentences) + 1


def hidden_by_hand(reasoner, trace, hidden):
    """log p(answer) from one plain forward pass in which the rows behind the reasoning do not see `hidden`."""
    n = trace.answer.stop
    visible = torch.ones(n, n).tril().bool()
    visible[trace.reasoning.stop :, hidden] = False
    bias = torch.zeros(n, n).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = reasoner.model(trace.input_ids[None, :n], attention_mask=bias[None, None]).logits[0]
    rows = range(trace.answer.start, n)
    return sum(logits[i - 1].log_softmax(-1)[trace.input_ids[i]].item() for i in rows)


def test_curve_and_sentence_effects_by_one_plain_pass_each(abacus, trace, explained):
    for k, (first, _) in enumerate(explained.sentences):
        later = list(range(first, trace.reasoning.stop))
        assert explained.curve[k] == pytest.approx(hidden_by_hand(abacus, trace, later), abs=5e-3)
    full = hidden_by_hand(abacus, trace, [])
    for (first, last), effect in zip(explained.sentences, explained.sentence_scores["direct"], strict=True):
        alone = full - hidden_by_hand(abacus, trace, list(range(first, last + 1)))
        assert effect == pytest.approx(alone, abs=5e-3)


def test_odd_texts_are_explained_too(abacus, explained, trace):
    one = abacus.trace(STORY, "Ben has Ada + 4 = 3 + 4 = 7 pears.", "7")
    assert len(explain(abacus, one, samples=0).sentences) == 1
    dollars = replace(
        explained, tokens=[("$$" if part == "reasoning" else text, part) for text, part in explained.tokens]
    )
    figure(dollars).canvas.draw()
    assert len(figure(replace(explained, scores={"waad": explained.scores["waad"]})).axes) == 2
    trimmed = trace.__class__(**{**vars(trace), "problem": {"question": f"  {trace.question} \n"}})
    parts = [part for _, part in explain(abacus, trimmed, samples=0, kinds=["fai"]).tokens]
    assert parts.count("question") == [part for _, part in explained.tokens].count("question")
    elsewhere = trace.__class__(**{**vars(trace), "problem": {"question": "Who?"}})
    assert "question" not in {part for _, part in explain(abacus, elsewhere, samples=0, kinds=["fai"]).tokens}


def test_parts_of_the_text_and_edges(trace, explained):
    text = {part: "".join(t for t, p in explained.tokens if p == part) for part in {p for _, p in explained.tokens}}
    assert text["question"].strip() == trace.problem["question"] and text["reasoning"].strip() == trace.reasoning_text
    assert text["answer"].strip() == trace.answer_text and "Question" in text["prompt"]
    flows = [flow for *_, flow in explained.edges]
    assert flows == sorted(flows, reverse=True) and all(source < target for source, target, _ in explained.edges)


def test_rollouts_say_how_far_it_holds(abacus, trace, explained):
    r = explained.rollouts
    assert r["n"] == 3 and len(r["effects"]) == r["answered"] and 0 <= r["agree"] <= r["answered"]
    assert r["mean"] == pytest.approx(np.mean(r["effects"]), rel=1e-3)
    assert explain(abacus, trace, samples=3, seed=1, kinds=["fai"]).rollouts == r
    assert explain(abacus, trace, samples=0, kinds=["fai"]).rollouts["n"] == 0


def test_long_reasonings_leave_single_causal_effects_out_and_say_so(abacus, trace, monkeypatch):
    monkeypatch.setattr("faithlab.shown_scores.OPERATIONS", 1.0)
    found = explain(abacus, trace, samples=0, kinds=["effect"])
    assert set(found.scores["effect"]) == {None} and None not in found.sentence_scores["effect"]
    assert "--thorough" in found.notes[0]
    assert None not in explain(abacus, trace, samples=0, kinds=["effect"], thorough=True).scores["effect"]


def test_what_cannot_be_explained(abacus, trace):
    with pytest.raises(FaithlabError, match="no answer here"):
        explain(abacus, abacus.generate([trace.problem], max_new_tokens=3)[0])
    with pytest.raises(FaithlabError, match="no reasoning in front"):
        explain(abacus, abacus.trace(trace.problem, "", "7"))
    with pytest.raises(FaithlabError, match="did you mean 'saliency'"):
        explain(abacus, trace, kinds=["salience"])
    with pytest.raises(FaithlabError, match="samples=-1"):
        explain(abacus, trace, samples=-1)


@pytest.mark.parametrize(
    ("seen", "hidden", "name", "words"),
    [
        (-0.1, -5.0, "needed", "4.9 nats less: the answer depends on it"),
        (-0.1, -1.1, "undecided", "1.0 nats less"),
        (-0.1, -0.2, "decoration", "0.1 nats apart: decoration"),
        (-3.0, -1.0, "against", "2.00 nats more: the answer is given in spite"),
        (-0.1, -2.06, "undecided", "1.96 nats less"),
        (-0.1, -0.58, "decoration", "0.48 nats apart"),
        (math.nan, math.nan, "none", "no answer"),
        (-0.1, -30.0, "needed", "9e-14"),
        (-0.1, -0.12, "decoration", "no difference: the answer does not depend on this reasoning"),
    ],
)
def test_verdicts(seen, hidden, name, words):
    said = verdict.judge(seen, hidden)
    assert said.name == name and words in said.text


@pytest.mark.parametrize(
    ("seen", "hidden", "name", "words"),
    [
        (
            -19.6,
            -5.0,
            "against",
            "3e-09 behind this reasoning, 0.007 without it, 14.6 nats apart; the reasoning speaks",
        ),
        (-5.0, -9.0, "needed", "speaks for it, but not enough"),
        (-5.0, -6.0, "undecided", "speaks for it a little"),
        (-5.0, -5.1, "decoration", "makes little difference"),
    ],
)
def test_an_answer_the_reader_would_hardly_ever_write_was_not_given_by_it(seen, hidden, name, words):
    said = verdict.judge(seen, hidden, reader="abacus")
    assert said.name == name == verdict.judge(seen, hidden).name and words in said.text
    assert said.text.startswith("abacus would hardly ever write this answer: probability ") and "given" not in said.text
    assert verdict.judge(-4.6, -1.0, reader="abacus") == verdict.judge(-4.6, -1.0)  # above the bound: as ever


def test_a_given_answer_that_contradicts_its_reasoning(abacus):
    reasoning = "Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears."
    found = explain(abacus, abacus.trace(STORY, reasoning, "12"), samples=0, kinds=["fai"], pasted=True)
    assert found.hardly and found.verdict == "against" and "would hardly ever write" in found.says
    assert found.notes == ["The answer's value, 12, does not occur in the reasoning as a number."]
    text = page([found])
    assert "The reasoning speaks against this answer" in text and "in spite of the reasoning</strong>" not in text
    right = explain(abacus, abacus.trace(STORY, reasoning, "7"), samples=0, kinds=["fai"], pasted=True)
    assert not right.hardly and not right.notes


@pytest.mark.parametrize(
    ("reasoning", "answer", "absent"),
    [
        ("5 - 8 = -3", "-3", False),
        ("That makes 1,200 in all.", "1200", False),
        ("6/2 pears are left", "3", False),
        ("6/2 pears are left", "6", False),
        ("half, so 50%", "50%", False),
        ("so 12 of them", "1", True),
        ("seven of them", "7", True),  # in words only: the note speaks of numbers
        ("it is (B)", "B", False),  # a letter has no value
    ],
)
def test_note_where_the_answer_s_value_is_not_in_the_reasoning(reasoning, answer, absent):
    trace = SimpleNamespace(reasoning_text=reasoning, answer_text=answer)
    assert bool(_absent(trace)) == absent


def test_the_rule_s_errors_are_counted_where_truth_is_known(abacus):
    table = verdict.calibrate(abacus, n=12)
    assert table.groupby("origin")["share"].sum().tolist() == pytest.approx([1, 1])
    shares = table.set_index(["origin", "verdict"])["share"]
    assert shares["copied", "decoration"] + shares["copied", "against"] > 0.9 and shares["reasoned", "needed"] > 0.8
    assert "copied answers" in verdict.how_often_wrong()


def test_json_has_null_for_what_is_undefined(explained):
    text = json.dumps(replace(explained, curve=[-1.0]).to_json(), allow_nan=False)
    back = json.loads(text)
    assert back["kinds"]["waad"]["unit"] == "tokens" and None in back["scores"]["fai"]  # the last tokens have no FAI
    assert plain([math.nan, 1.23456]) == [None, 1.235]
    position, value = strongest(explained, "effect", 1)[0]
    assert value == max(v for v in explained.scores["effect"] if v is not None)
    assert explained.scores["effect"][position - explained.first] == value
    assert back["beyond"] == beyond(explained) and back["how_often_wrong"] == verdict.how_often_wrong()


def test_strong_effects_are_those_of_size_for_or_against_and_noise_is_none(explained):
    n, first = len(explained.scores["effect"]), explained.first
    values = [1.0, -2.0, None, SHOWN / 2, *[1e-5] * (n - 4)]
    made = replace(explained, scores={"effect": values, "flow": values})
    assert strongest(made, "effect") == [(first + 1, -2.0), (first, 1.0)]
    assert [p - first for p, _ in strongest(made, "flow")] == [0, 3, 4, 5, 6], "a share is no smaller for being small"
    assert ">-2</td>" in page([made])
    nothing = replace(explained, scores={"effect": [1e-5] * n})
    assert strongest(nothing, "effect") == [] and f"none of {SHOWN:g} nats or more" in page([nothing])


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.text += "" if self.inside in ("script", "style") else data


def test_page_escapes_whatever_was_written(nasty):
    reader = Reader()
    reader.feed(page([nasty, nasty], command=NASTY))
    assert sum(tag == "script" for tag, _ in reader.tags) == 2  # the data and our own
    assert reader.text.count(NASTY) > 10  # as text
    assert not any(name.startswith("on") and tag != "form" for tag, given in reader.tags for name in given)


def test_page_counts_places_within_the_reasoning_and_names_every_verdict(explained):
    first = explained.first
    reader = Reader()
    end = len(explained.tokens) - 1
    reader.feed(page([replace(explained, edges=[(0, first, 0.5), (first + 2, end, 0.4)])]))
    assert "(prompt token 1)" in reader.text and "(reasoning, 1)" in reader.text
    assert "(reasoning, 3)" in reader.text and "(answer)" in reader.text
    assert reader.text.count("place in the reasoning") == len(explained.scores)
    for words in (
        "Needed: ",
        "undecided: 0.5 to less than 2",
        "decoration: less than 0.5",
        "in spite of the reasoning: ",
    ):
        assert words in reader.text


def test_an_answer_that_is_known_to_be_wrong_is_called_so(tmp_path, capsys):
    assert main(["explain", STORY, "--gold", "8", "--samples", "0", "--output", str(tmp_path)]) == 0
    assert "-> 7 (wrong: 8 is right)" in capsys.readouterr().out


def test_long_texts_are_refused_without_a_warning_of_the_tokenizers(tmp_path, capsys):
    argv = ["explain", STORY, "--reasoning", "Ada has 3 pears. " * 220, "--answer", "7", "--samples", "0"]
    assert main([*argv, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "shorten it" in said and "indexing errors" not in said


def test_the_curve_says_what_it_shows(explained):
    text = page([replace(explained, curve=[-3.0, -0.01])])
    assert "-3.0 nats with none of 1 sentence in sight, 0.0 with all" in text


def test_page_needs_nothing_from_elsewhere(explained):
    text = page([explained])
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(|https?://(?!www\.w3\.org/2000/svg)""", text)


def to_linear(rgb):
    """sRGB in 0..1 as linear light."""
    rgb = np.asarray(rgb, dtype=float)
    return np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def contrast(one, other):
    """WCAG's contrast of two sRGB colours in 0..1."""
    light = sorted(np.dot([0.2126, 0.7152, 0.0722], to_linear(rgb)) + 0.05 for rgb in (one, other))
    return light[1] / light[0]


def rgb_of(pattern, css):
    found = re.search(pattern, css)
    return np.array([int(v) / 255 for v in found.groups()[:3]])


def hexadecimal(name, css):
    digits = re.search(rf"--{name}: #(\w+)", css)[1]
    return np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])


def test_two_colours_can_be_told_apart_by_everybody_and_text_can_be_read():
    css, js = (page.__globals__["_part"](name) for name in ("page.css", "page.js"))
    deepest = float(re.search(r"\((0\.\d+) \* share\)", js)[1])
    colours = [rgb_of(rf"--{name}: (\d+), (\d+), (\d+)", css) for name in ("blue", "orange")]
    # G. Machado et al. 2009, severity 1, on linear light: protanopia, deuteranopia, tritanopia
    for matrix in (
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    ):
        seen = [np.clip(np.array(matrix) @ to_linear(rgb), 0, 1) for rgb in colours]
        assert np.abs(seen[0] - seen[1]).max() > 0.15
    ink, soft = hexadecimal("ink", css), hexadecimal("soft", css)
    for rgb in colours:  # browsers mix in sRGB
        assert contrast(ink, deepest * rgb + 1 - deepest) > 4.5
    assert contrast(soft, np.ones(3)) > 4.5
    found = re.search(r"stroke: rgba\((\d+), (\d+), (\d+), (0\.\d+)\)", css)
    alpha = float(found[4])
    assert contrast(alpha * np.array([int(v) / 255 for v in found.groups()[:3]]) + 1 - alpha, np.ones(3)) > 3


def test_figure_shows_every_strip(explained):
    fig = figure(explained)
    assert len(fig.axes) == 5 and explained.says in " ".join(fig.get_suptitle().split("\n"))
    said = " ".join(fig.get_suptitle().split("\n"))
    assert said.startswith(f"Answer {explained.judged}. ") and said.endswith(beyond(explained))
    fig.canvas.draw()
    assert fig._suptitle.get_window_extent().x1 < fig.bbox.x1  # long sentences are broken, not cut off
    empty = replace(explained, scores=explained.scores | {"effect": [None] * len(explained.scores["effect"])})
    titles = [ax.get_title(loc="left") for ax in figure(empty).axes]
    assert "not computed" in titles[0] and "(reasoning only)" in titles[1]
    none = [None] * len(explained.scores["fai"])
    short = replace(explained, scores=explained.scores | {"fai": none})
    titles = [ax.get_title(loc="left") for ax in figure(short).axes]
    assert "undefined for every token" in titles[3], "FAI of a short reasoning"


@browser.needs_browser
def test_in_a_browser_colours_follow_the_switches(explained, tmp_path):
    script = """
    const spans = [...document.querySelectorAll(".t.reasoning")];
    const shown = () => spans.map((s) => s.style.backgroundColor);
    const seen = {};
    for (const [name, value] of [["score", "effect"], ["score", "waad"], ["level", "sentence"], ["score", "fai"]]) {
      document.querySelector(`input[name=${name}][value=${value}]`).click();
      seen[`${name}=${value}`] = shown().join();
    }
    return { seen, what: document.querySelector(".what").textContent, hash: location.hash,
      hatched: document.querySelectorAll(".undefined").length,
      tables: [...document.querySelectorAll("table.top:not(.hidden)")].map((t) => t.dataset.score) };
    """
    found = browser.run(page([explained]), script, tmp_path)
    assert len(set(found["seen"].values())) == 4
    assert found["what"].startswith("FAI") and "score=fai&level=sentence" in found["hash"]
    assert found["tables"] == ["fai"]


@browser.needs_browser
def test_in_a_browser_the_backbone_is_drawn_and_the_address_keeps_the_state(explained, tmp_path):
    script = """return { arcs: document.querySelectorAll(".arcs path").length,
      score: document.querySelector("input[name=score]:checked").value }"""
    found = browser.run(page([explained, explained]), script, tmp_path, "#score=flow&level=token&backbone=1")
    assert found == {"arcs": 2 * len(explained.edges), "score": "flow"}
    odd = browser.run(page([explained]), script, tmp_path, "#score=%22%5D&level=nonsense&backbone=x")
    assert odd == {"arcs": 0, "score": next(iter(KINDS))}


@browser.needs_browser
def test_in_a_browser_sentences_are_read_one_by_one(explained, tmp_path):
    script = """
    document.querySelector('input[name="level"][value="sentence"]').click();
    const text = document.querySelector(".reasoning-list"), status = document.querySelector(".status");
    const event = (key) => new KeyboardEvent("keydown", { key, bubbles: true });
    const press = (key) => { text.dispatchEvent(event(key)); return status.textContent; };
    const said = data[0].sentences.map(() => press("ArrowRight"));
    const tables = [...document.querySelectorAll("table.top:not(.hidden)")];
    return { said, again: press("ArrowRight"), back: press("ArrowLeft"), end: press("End"), home: press("Home"),
      head: document.querySelector(".tops").textContent, levels: [...new Set(tables.map((t) => t.dataset.level))],
      rows: tables.map((t) => t.textContent).join(" ") };
    """
    found = browser.run(page([explained]), script, tmp_path)
    sentences = ["".join(t for t, _ in explained.tokens[a : b + 1]).strip() for a, b in explained.sentences]
    assert len(sentences) > 2
    for text, said in zip(sentences, found["said"], strict=True):
        assert said.startswith(f"sentence “{text}” of the reasoning: ")
    assert found["again"] == found["said"][-1] == found["end"] and found["back"] == found["said"][-2]
    assert found["home"] == found["said"][0]
    kind = next(iter(KINDS))
    best = max(range(len(sentences)), key=lambda k: abs(explained.sentence_scores[kind][k]))
    assert (
        found["head"] == "Strongest sentences" and found["levels"] == ["sentence"] and sentences[best] in found["rows"]
    )


@browser.needs_browser
def test_in_a_browser_keys_move_and_screen_readers_hear(explained, tmp_path):
    script = """
    const text = document.querySelector(".reasoning-list"), status = document.querySelector(".status");
    const event = (key) => new KeyboardEvent("keydown", { key, bubbles: true });
    const press = (key) => { text.dispatchEvent(event(key)); return status.textContent; };
    const said = [press("ArrowRight"), press("ArrowRight"), press("End"), press("ArrowRight"), press("Home")];
    const labels = [...document.querySelectorAll("input")].map((i) => i.closest("label").textContent.trim());
    return { said, active: text.getAttribute("aria-activedescendant"), role: text.getAttribute("role"),
      tab: text.tabIndex, chosen: document.querySelectorAll(".chosen").length,
      selected: [...document.querySelectorAll("[aria-selected=true]")].map((t) => t.id),
      outside: [...new Set([...document.querySelectorAll(".text > .t")].map((t) => t.classList[1]))],
      live: status.getAttribute("aria-live"), unlabelled: labels.filter((l) => !l).length };
    """
    found = browser.run(page([explained]), script, tmp_path)
    said = found["said"]
    assert len(set(said[:3])) == 3 and said[2] == said[3] and said[4] == said[0]
    words = [text.strip() for text, part in explained.tokens if part == "reasoning"]
    assert f"“{words[0]}”" in said[0] and f"“{words[1]}”" in said[1] and "rank" in said[0]
    assert found["active"] == f"t0-{explained.first}" and found["chosen"] == 1
    assert (found["role"], found["tab"], found["live"], found["unlabelled"]) == ("listbox", 0, "polite", 0)
    assert found["selected"] == [f"t0-{explained.first}"] and found["outside"] == ["marker", "answer"]


@browser.needs_browser
def test_in_a_browser_two_thousand_tokens_and_nasty_texts(explained, nasty, tmp_path):
    script = """
    const first = document.querySelectorAll(".t.reasoning");
    document.querySelector("input[value=flow]").click();
    const coloured = [...first].filter((s) => s.style.backgroundColor).length;
    return { count: first.length, coloured, title: document.title };
    """
    found = browser.run(page([long(explained)]), script, tmp_path, "#backbone=1")
    assert found["count"] == 2000 and found["coloured"] == 2000
    assert browser.run(page([nasty]), script, tmp_path)["title"] == "Does the answer depend on its reasoning?"


def test_command_writes_page_json_and_figure(tmp_path, capsys):
    argv = [
        "explain",
        "--task",
        "stories",
        "-o",
        "hint",
        "weak",
        "--index",
        "1",
        "--samples",
        "2",
        "--output",
        str(tmp_path),
    ]
    assert main([*argv, "--name", "one"]) == 0
    folder = tmp_path / "one"
    assert sorted(p.name for p in folder.iterdir()) == ["explanation.html", "explanation.json", "explanation.png"]
    content = json.loads((folder / "explanation.json").read_text())
    assert content["command"].startswith("faithlab explain --reasoner abacus --task stories")
    said = capsys.readouterr().out
    for part in ("says", "beyond", "how_often_wrong"):
        assert content["explanations"][0][part] in said
    assert main([*argv, "--name", "one"]) == 2 and "exists" in capsys.readouterr().err


def test_command_takes_a_pasted_reasoning_and_compares(tmp_path):
    text = tmp_path / "reasoning.txt"
    text.write_text("Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears.")
    common = ["--samples", "0", "--output", str(tmp_path)]
    assert (
        main(["explain", STORY, "--reasoning", f"@{text}", "--answer", "7", "--gold", "7", *common, "--name", "p"]) == 0
    )
    [found] = json.loads((tmp_path / "p" / "explanation.json").read_text())["explanations"]
    assert found["pasted"] and found["right"] and found["answer"] == "7"
    other = STORY + " A friend says the answer is 9."
    assert main(["explain", STORY, "--compare", other, *common, "--name", "c"]) == 0
    both = json.loads((tmp_path / "c" / "explanation.json").read_text())["explanations"]
    assert [e["verdict"] for e in both] == ["needed", "decoration"] and both[1]["answer"] == "9"
    assert (tmp_path / "c" / "explanation-2.png").is_file()


def test_pasted_reasonings_are_compared(tmp_path, capsys):
    """Two reasonings of one question, and one reasoning under two questions; what is kept can be typed again."""
    right, wrong = (
        "Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears.",
        "Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 8 pears.",
    )
    common = ["--samples", "0", "--output", str(tmp_path)]
    two = ["--reasoning", right, "--answer", "7", "--reasoning", wrong, "--answer", "8", "--gold", "7"]
    assert main(["explain", STORY, "--compare", STORY, *two, *common, "--name", "texts"]) == 0
    content = json.loads((tmp_path / "texts" / "explanation.json").read_text())
    one, other = content["explanations"]
    assert [e["answer"] for e in (one, other)] == ["7", "8"] and [e["right"] for e in (one, other)] == [True, False]
    assert one["pasted"] and other["pasted"] and "8 pears" in "".join(text for text, _ in other["tokens"])
    assert main([*shlex.split(content["command"])[1:], "--output", str(tmp_path), "--name", "again"]) == 0
    assert json.loads((tmp_path / "again" / "explanation.json").read_text()) == content

    friend = STORY + " A friend says the answer is 9."
    argv = [
        "explain",
        STORY,
        "--compare",
        friend,
        "--reasoning",
        right,
        "--answer",
        "7",
        *common,
        "--name",
        "questions",
    ]
    assert main(argv) == 0
    one, other = json.loads((tmp_path / "questions" / "explanation.json").read_text())["explanations"]
    assert (one["answer"], one["question"], other["question"]) == ("7", STORY, friend) and other["answer"] == "7"
    assert one["curve"] != other["curve"]  # the same words under another prompt are another trace


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a question"),
        ([STORY, "--task", "stories"], "not both"),
        ([STORY, "-o", "hint", "weak"], "without --task"),
        ([STORY, "--reasoning", "Ada has 3 pears."], "belong together"),
        ([STORY, "--reasoning", "@/no/such/file", "--answer", "7"], "cannot read /no/such/file"),
        (
            [STORY, "--reasoning", "x", "--reasoning", "y", "--answer", "7"],
            "--reasoning is there 2 times for 1 question;",
        ),
        ([STORY, "--reasoning", "x", "--answer", "7", "--answer", "8"], "give --compare QUESTION too"),
        ([STORY, "--gold", "7", "--gold", "8"], "--gold is there 2 times for 1 question;"),
        (
            [STORY, "--compare", STORY, "--reasoning", "x", *["--answer", "7"] * 3],
            "--answer is there 3 times for 2 questions",
        ),
        ([STORY, "--compare", STORY, "--reasoning", "x", "--reasoning", "y"], "belong together"),
        ([STORY, "--temperature", "1", "--reasoning", "x", "--answer", "7"], "--temperature is for a reasoning"),
        (["What colour is the moon?"], "does not know"),
        (["--task", "storys"], "did you mean 'stories'"),
        (["--task", "stories", "--index", "-1"], "--index=-1"),
        ([STORY, "--index", "3"], "--index chooses a problem of a task"),
        ([STORY, "--index", "0"], "--index chooses a problem of a task"),
        ([STORY, "--compare", ""], "--compare is empty"),
        ([STORY, "--answer", " ", "--reasoning", "Ada has 3 pears."], "--answer is empty"),
        ([STORY, "--gold", ""], "--gold is empty"),
        ([""], "the question is empty"),
        ([STORY, "--reasoner", "nobody"], "unknown reasoner"),
        ([STORY, "--examples", "poems"], "unknown task"),
    ],
)
def test_bad_input(argv, message, capsys, tmp_path):
    assert main(["explain", *argv, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["a/b", "taken", "..", "x" * 300, "file"])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(place, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("faithlab.explain.load_reasoner", lambda name: pytest.fail("minutes are lost"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "kept").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "file" / "runs" if place == "file" else tmp_path
    assert main(["explain", STORY, "--output", str(output), "--name", place]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


def test_many_problems_are_announced_before_they_are_drawn(monkeypatch, capsys, tmp_path):
    def load(task, *, n, **options):
        assert f"drawing {n} problems of stories" in capsys.readouterr().err
        raise FaithlabError("drawn")

    monkeypatch.setattr("faithlab.tasks.load", load)
    assert main(["explain", "--task", "stories", "--index", "100000", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip().endswith("drawn") and not list(tmp_path.iterdir())


def test_options_that_are_no_yaml_are_one_line(capsys):
    assert main(["explain", "--task", "stories", "-o", "hops", "[1, 2"]) == 2
    said = capsys.readouterr().err
    assert "the value of option hops cannot be read" in said and said.count("\n") == 1


def test_saving_leaves_the_backend_and_no_figure_behind(explained, tmp_path, monkeypatch):
    import matplotlib
    import matplotlib.pyplot as plt

    plt.close("all")
    before = matplotlib.get_backend()
    monkeypatch.setattr(matplotlib, "use", lambda *args, **options: pytest.fail("a notebook's figures would be gone"))
    save([explained], tmp_path)
    assert matplotlib.get_backend() == before and not plt.get_fignums()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(FaithlabError, match="No space left"):
        save([explained], tmp_path)
    assert not plt.get_fignums()


def test_letters_that_the_figure_s_font_lacks_are_no_warning(explained, tmp_path, recwarn):
    tokens = [(text.replace(".", "🍐"), part) for text, part in explained.tokens]
    save([replace(explained, tokens=tokens)], tmp_path)
    assert (tmp_path / "explanation.png").stat().st_size > 10_000
    assert "🍐" in (tmp_path / "explanation.html").read_text() and not [w for w in recwarn if "Glyph" in str(w.message)]


def test_what_is_undefined_is_grey_in_the_figure(explained):
    undefined = sum(v is None for v in explained.scores["fai"])
    fig = figure(explained)
    (ax,) = (ax for ax in fig.axes if "FAI" in ax.get_title(loc="left"))
    grey = [p for p in ax.patches if p.get_facecolor() == (0.85, 0.85, 0.85, 1.0)]
    assert 0 < len(grey) <= undefined and "grey: undefined" in ax.get_title(loc="left")


def test_rollouts_that_gave_no_answer_and_those_of_a_pasted_reasoning_are_named(explained):
    own = dict(explained.rollouts)
    few = own | dict(n=2, answered=1, agree=0, effects=[0.02], mean=0.02, low=None, high=None)
    said = beyond(replace(explained, rollouts=few))
    assert said.startswith("In 2 fresh rollouts") and "of which 1 came to an answer" in said and "is another" in said
    pasted = beyond(replace(explained, pasted=True))
    assert "own reasoning, not the given one," in pasted and "own reasoning" not in beyond(explained)
