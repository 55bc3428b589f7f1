"""One HTML page for one or several explanations, self-contained: no network, no script from elsewhere.

The text is written as plain HTML, so that it can be read, printed and searched without scripts; `page_parts/page.js`
colours it. Everything that a model or a user wrote is escaped, and a content security policy keeps the page from
loading or sending anything.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from importlib import resources
from string import Template

from faithlab.explanation import SHOWN, Explanation, beyond, question_words, strongest
from faithlab.shown_scores import KINDS, Kind
from faithlab.units import PARTS, Part
from faithlab.verdict import DECORATION, NEEDED, how_often_wrong

HEADINGS = {
    "needed": "The reasoning is needed",
    "decoration": "The reasoning is decoration",
    "undecided": "Undecided",
    "against": "The answer is given in spite of the reasoning",
}
HARDLY_HEADINGS = {  # of a given answer that the reasoner would hardly ever write: nobody "gives" it
    "needed": "An unlikely answer, which the reasoning makes less unlikely",
    "decoration": "An unlikely answer, with and without the reasoning",
    "undecided": "An unlikely answer, which the reasoning makes a little less unlikely",
    "against": "The reasoning speaks against this answer",
}
LIMITS = (
    "Hiding the reasoning is an input that no model was trained on; part of an effect can be the surprise of that.",
    "All effects keep the reasoning as written: a word of the question that only decided what was written shows none.",
    "One trace says something about one trace. The fresh rollouts say how far it holds for this question.",
    "Direct effects ask the answer's own view; what reaches it by way of other tokens shows in the causal effect.",
    "Attention scores (flow, WAAD, FAI) are correlates, not causes; notebook 05 of the course says how well each does.",
    "A reasoning that is needed can still be wrong, and one that is right can be decoration.",
)


LISTBOX = (
    '<span class="{0}-list" role="listbox" tabindex="0" aria-orientation="horizontal" '
    'aria-label="the {0}; arrow keys go from token to token">'
)


def page(explanations: Sequence[Explanation], *, command: str = "") -> str:
    """The page. Several explanations stand side by side under the same switches and colour scale.

    `command` is shown at the end, as what the page was made with.
    """
    kinds = list(explanations[0].scores)
    data = json.dumps([e.to_json() for e in explanations], ensure_ascii=False, allow_nan=False)
    rule = (
        f"Needed: hiding the reasoning takes {NEEDED:g} nats and more off log p(answer); undecided: {DECORATION:g} to "
        f"less than {NEEDED:g}; decoration: less than {DECORATION:g} nats either way; in spite of the reasoning: "
        f"hiding it adds more than {DECORATION:g}. {how_often_wrong()}"
    )
    return _fill(
        "page.html",
        css=_part("page.css"),
        js=_part("page.js"),
        scores="".join(_radio("score", k, KINDS[k].label, k == kinds[0]) for k in kinds),
        levels=_radio("level", "sentence", "sentences", False) + _radio("level", "token", "tokens", True),
        articles="\n".join(_article(e, number, kinds) for number, e in enumerate(explanations)),
        definitions="".join(_definition(KINDS[k]) for k in kinds),
        trust=_text(rule),
        limits="".join(f"<li>{_text(line)}</li>" for line in LIMITS),
        made=f"<p>Made with: <code>{_text(command)}</code></p>" if command else "",
        # "</script>" and "<!--" in a text must not end or hide the data.
        data=data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )


def _part(name: str) -> str:
    return (resources.files("faithlab") / "page_parts" / name).read_text(encoding="utf-8")


def _fill(name: str, **values: object) -> str:
    return Template(_part(name)).substitute(values)


def _text(text: object) -> str:
    return html.escape(str(text))


def _radio(name: str, value: str, label: str, checked: bool) -> str:
    tick = " checked" if checked else ""
    return f'<label><input type="radio" name="{name}" value="{value}"{tick}> {_text(label)}</label>'


def _definition(kind: Kind) -> str:
    of = "question and reasoning" if kind.asked else "the reasoning only"
    return f"<dt>{_text(kind.label)} ({of})</dt><dd>{_text(kind.meaning)}.</dd>"


def _article(e: Explanation, number: int, kinds: Sequence[str]) -> str:
    whose = "a given reasoning, read by" if e.pasted else "written by"
    return _fill(
        "article.html",
        number=number,
        heading=_text(f"Answer {e.judged}, {whose} {e.reasoner}"),
        question=_text(e.question),
        verdict=e.verdict,
        word=(HARDLY_HEADINGS if e.hardly else HEADINGS)[e.verdict],
        says=_text(e.says),
        beyond=_text(beyond(e)),
        words=_text(question_words(e)),
        tokens=_tokens(e, number),
        notes="".join(f"<p>{_text(note)}</p>" for note in e.notes),
        curve=_curve(e),
        tops="".join(_top(e, kind, of, level) for kind in kinds for level in ("token", "sentence") for of in PARTS),
        edges=_edges(e),
    )


def _tokens(e: Explanation, number: int) -> str:
    """The text as one element a token; what of the prompt is not the question is one mark. Question and reasoning are
    lists of options for the arrow keys and screen readers, and the rest plain text."""
    out, rest, inside = [], 0, ""
    for i, (piece, part) in enumerate(e.tokens):
        if inside and part != inside:
            out.append("</span>")
            inside = ""
        if part == "prompt":
            rest += 1
            continue
        if rest:
            ends = f'data-first="{i - rest}" data-last="{i - 1}"'
            out.append(f'<span class="rest" {ends}>{rest} more prompt tokens</span> ')
            rest = 0
        if part in PARTS and not inside:
            inside = part
            out.append(LISTBOX.format(part))
        role = ""
        if inside:
            empty = "" if piece.strip() else ' aria-hidden="true"'
            role = f' role="option" aria-selected="false" id="t{number}-{i}"{empty}'
        out.append(f'<span class="t {part}" data-i="{i}"{role}>{_text(piece)}</span>')
    return "".join(out) + ("</span>" if inside else "")


def _where(e: Explanation, position: int) -> str:
    """The part that a token belongs to, and its place: in question and reasoning counted within it, as everywhere on
    the page, else named as the prompt's."""
    part = e.tokens[position][1]
    if part in PARTS:
        return f"{part}, {_place(e, position, part)}"
    return f"prompt token {position + 1}" if position < e.first else part


def _place(e: Explanation, position: int, of: Part) -> int:
    return position - (e.first if of == "reasoning" else e.in_question.first) + 1


def _top(e: Explanation, kind: str, of: Part, level: str) -> str:
    """The strongest tokens or sentences of a part, as a table; nothing where the part does not have the score."""
    if of == "question" and kind not in e.in_question.scores:
        return ""
    rows = []
    sentences = dict(e.sentences if of == "reasoning" else e.in_question.sentences)
    for position, value in strongest(e, kind, 8, of=of, level=level):
        pieces = e.tokens[position : sentences[position] + 1 if level == "sentence" else position + 1]
        word, place = _text("".join(text for text, _ in pieces).strip() or "space"), _place(e, position, of)
        rows.append(f'<tr><td>{word}</td><td class="number">{place}</td><td class="number">{value:.3g}</td></tr>')
    signed = KINDS[kind].unit == "nats"
    if not rows:
        none = f"none of {SHOWN:g} nats or more" if signed else "none above 0"
        rows = [f'<tr><td colspan="3">{none}</td></tr>']
    value = _text(f"{KINDS[kind].label} {KINDS[kind].unit}")
    place = "first token" if level == "sentence" else "place"
    head = f"<tr><th>{level}</th><th>{place} in the {of}</th><th>{value}</th></tr>"
    label = _text(f"{level}s of the {of} with the {'largest' if signed else 'highest'} {KINDS[kind].label}")
    kept = f'data-score="{kind}" data-level="{level}"'
    return f'<table class="top" {kept} aria-label="{label}">{head}{"".join(rows)}</table>'


def _edges(e: Explanation) -> str:
    """The strongest edges of the backbone in words, for those who do not see the arcs."""
    rows = []
    for source, target, flow in e.edges[:10]:
        ends = [_text(f"{e.tokens[i][0].strip() or 'space'} ({_where(e, i)})") for i in (source, target)]
        rows.append(f'<tr><td>{ends[0]}</td><td>{ends[1]}</td><td class="number">{flow:.3g}</td></tr>')
    head = "<tr><th>from token (part, place in it)</th><th>to token</th><th>flow</th></tr>"
    return f'<table aria-label="strongest edges of the flow">{head}{"".join(rows)}</table>'


def _curve(e: Explanation) -> str:
    """log p(answer) against how many sentences the answer may look at, as an SVG with words for screen readers."""
    low, steps = min([*e.curve, -1.0]), max(1, len(e.curve) - 1)
    places = [(52 + 396 * k / steps, 8 + 134 * value / low, k, value) for k, value in enumerate(e.curve)]
    sentences = "sentence" if steps == 1 else "sentences"
    none, all_ = f"{e.curve[0]:z.1f} nats with none of {steps} {sentences} in sight", f"{e.curve[-1]:z.1f} with all"
    dot = '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="rgb(1,115,178)"><title>{} sentences: p = {:.3g}</title></circle>'
    return _fill(
        "curve.svg",
        label=_text(f"log probability of the answer: {none}, {all_}"),
        low=f"{low:.1f}",
        steps=steps,
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in places),
        dots="".join(dot.format(x, y, k, math.exp(value)) for x, y, k, value in places),
    )
