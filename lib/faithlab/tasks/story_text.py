"""The language of the arithmetic stories: how a fact, a reasoning step, a hint and a filler are said, and read back.

Writing and reading stand side by side so that they cannot drift apart: whatever `reasoning_sentence` writes,
`annotate` reads back, and it also reads what a model wrote in the same language. All offsets are character offsets,
`[start, end)`.

    >>> steps = annotate("Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears.", target="Ben", on_path={"Ada", "Ben"})
    >>> [(s["kind"], s["entity"], s["value"]) for s in steps]
    [('step', 'Ada', 3), ('step', 'Ben', 7)]
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jade", "Kofi", "Lena", "Mona", "Nils",
         "Omar", "Pia")  # fmt: skip
ITEMS = ("pears", "apples", "coins", "books", "shells", "pens", "stamps", "marbles")
RELATIONS = ("more", "fewer", "twice", "half", "sum")
STYLES = ("terse", "plain", "wordy")
FILLERS = (
    "Let us think step by step.",
    "Let us look at the facts.",
    "Now we go on.",
    "So far so good.",
    "This is not hard.",
    "We are almost there.",
    "That looks right.",
    "We can now find the answer.",
)
HINTS = {"strong": "A friend says the answer is {}.", "weak": "A stranger guesses {}."}


@dataclass(frozen=True)
class Fact:
    """One sentence of a story: how many things `entity` has, by itself (`base`) or relative to its `operands`."""

    entity: str
    relation: str  # "base" or one of RELATIONS
    operands: tuple[str, ...]
    amount: int | None  # the number said in the sentence; None for twice, half and sum
    value: int  # how many `entity` really has
    on_path: bool  # the answer depends on it


def fact_sentence(fact: Fact, item: str) -> str:
    """The sentence that states `fact` in the question, e.g. "Ben has 4 more pears than Ada.". Raises ValueError for an
    unknown relation."""
    first = fact.operands[0] if fact.operands else None
    match fact.relation:
        case "base":
            return f"{fact.entity} has {fact.amount} {item}."
        case "more" | "fewer":
            return f"{fact.entity} has {fact.amount} {fact.relation} {item} than {first}."
        case "twice" | "half":
            return f"{fact.entity} has {fact.relation} as many {item} as {first}."
        case "sum":
            return f"{fact.entity} has as many {item} as {first} and {fact.operands[1]} together."
    raise ValueError(f"unknown relation {fact.relation!r}; known: base, {', '.join(RELATIONS)}")


def question_sentence(target: str, item: str) -> str:
    """What is asked, e.g. "How many pears does Ben have?"."""
    return f"How many {item} does {target} have?"


def compute(relation: str, operands: Sequence[int], amount: int | None) -> tuple[str, int]:
    """The expression a reasoner writes for one step and its right value; an odd number is halved downwards. Raises
    ValueError for any relation that is not one of `RELATIONS`."""
    match relation:
        case "more":
            return f"{operands[0]} + {amount}", operands[0] + amount
        case "fewer":
            return f"{operands[0]} - {amount}", operands[0] - amount
        case "twice":
            return f"2 * {operands[0]}", 2 * operands[0]
        case "half":
            return f"{operands[0]} / 2", operands[0] // 2
        case "sum":
            return f"{operands[0]} + {operands[1]}", operands[0] + operands[1]
    raise ValueError(f"nothing to compute for relation {relation!r}")


def reasoning_sentence(fact: Fact, item: str, style: str, expression: str | None, value: int) -> str:
    """One reasoning step in one of the three verbosity styles.

    `expression` is None for a base fact, which is restated; `value` is what the reasoner believes, right or wrong.
    """
    right = f"{expression} = {value}" if expression else f"{value}"
    if style == "terse":
        return f"{fact.entity} = {_in_names(fact)}{right}."
    if style == "plain":
        return f"{fact.entity} has {_in_names(fact)}{right} {item}."
    if fact.relation == "base":
        return f"We know that {fact.entity} has {right} {item}."
    first = fact.operands[0]
    reason = {
        "more": f"{fact.amount} more than {first}",
        "fewer": f"{fact.amount} fewer than {first}",
        "twice": f"twice as many as {first}",
        "half": f"half as many as {first}",
        "sum": f"as many as {first} and {fact.operands[-1]} together",
    }[fact.relation]
    return f"{fact.entity} has {reason}, so {fact.entity} has {right} {item}."


def _in_names(fact: Fact) -> str:
    """The step in names before it is said in numbers, e.g. "Ada + 4 = "; empty for a fact that is only restated.

    It makes each token of a step one look-up (whose fact, which number, whose value), which a small model can learn.
    """
    if fact.relation == "base":
        return ""
    first = fact.operands[0]
    said = {
        "more": f"{first} + {fact.amount}",
        "fewer": f"{first} - {fact.amount}",
        "twice": f"2 * {first}",
        "half": f"{first} / 2",
        "sum": f"{first} + {fact.operands[-1]}",
    }
    return said[fact.relation] + " = "


def plan_sentence(fact: Fact) -> str:
    """The sentence that says what must be known first, e.g. "To find Ben we need Ada."."""
    return f"To find {fact.entity} we need {' and '.join(fact.operands)}."


_NAME = "|".join(NAMES)
_STEP = re.compile(
    rf"(?:We know that |(?:{_NAME}) has [^.]*, so )?(?P<entity>{_NAME}) (?:=|has) "
    rf"(?:(?:{_NAME}|\d+) [-+*/] (?:{_NAME}|\d+) = )?"
    r"(?:(?P<left>\d+) (?P<op>[-+*/]) (?P<right>\d+) = )?(?P<value>\d+)(?: [a-z]+)?\."
)
_PLAN = re.compile(rf"To find (?P<entity>{_NAME}) we need (?:{_NAME})(?: and (?:{_NAME}))?\.")
# A stop ends a sentence where white space or nothing follows, so that 3.5 is whole; a line ends one in any case.
_SENTENCE = re.compile(r"[^\s.!?](?:[^.!?\n]|[.!?](?=\S))*[.!?]?")


def sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences of `text`, without the white space between them."""
    return [(m.start(), m.start() + len(m.group().rstrip())) for m in _SENTENCE.finditer(text)]


def annotate(reasoning: str, *, target: str, on_path: Collection[str]) -> list[dict]:
    """Read a reasoning text back into labelled sentences: the machine-readable truth about it.

    Returns one dict a sentence with `kind` (`step`: states a value the answer depends on; `distractor`: states a value
    it does not; `plan`; `filler`; `other`: not in the language of the stories), `entity`, `value` (as written),
    `arithmetic_right` (None where nothing was computed), `start`, `end`, and `value_start`, `value_end` of the written
    result (-1 where there is none). The *decisive* value is the last step about `target`: see `decisive_step`.
    """
    rows = []
    for start, end in sentences(reasoning):
        text = reasoning[start:end]
        row = dict(kind="other", entity=None, value=None, arithmetic_right=None, start=start, end=end)
        row |= dict(value_start=-1, value_end=-1)
        if match := _STEP.fullmatch(text):
            row["entity"] = match["entity"]
            row["value"] = int(match["value"])
            row["kind"] = "step" if match["entity"] in on_path or match["entity"] == target else "distractor"
            row["value_start"], row["value_end"] = start + match.start("value"), start + match.end("value")
            if match["op"]:
                left, right = int(match["left"]), int(match["right"])
                results = {"+": left + right, "-": left - right, "*": left * right}
                results["/"] = left // right if right else None
                row["arithmetic_right"] = results[match["op"]] == row["value"]
        elif match := _PLAN.fullmatch(text):
            row |= dict(kind="plan", entity=match["entity"])
        elif text in FILLERS:
            row["kind"] = "filler"
        rows.append(row)
    return rows


def decisive_step(steps: Sequence[dict], target: str) -> dict | None:
    """The last sentence that states a value for `target`: the one an answer that follows the reasoning must read."""
    about = [step for step in steps if step["kind"] == "step" and step["entity"] == target]
    return about[-1] if about else None


def vocabulary() -> list[str]:
    """Every word, number and sign of the stories and of `countdown`, without leading spaces, in a fixed order."""
    words: dict[str, None] = {}
    facts = [Fact("Ada", r, ("Ben", "Cora"), 1, 1, True) for r in ("base", *RELATIONS)]
    texts = [fact_sentence(f, "pears") for f in facts]
    texts += [reasoning_sentence(f, "pears", s, "1 + 1", 1) for f in facts for s in STYLES]
    texts += [plan_sentence(facts[-1]), question_sentence("Ada", "pears"), *FILLERS, *HINTS.values()]
    texts += ["Question: Reasoning: Answer: Make from No Yes", "The answer is so then has have we wrong guess says"]
    for text in texts:
        for word in re.findall(r"[A-Za-z]+", text):
            words.setdefault(word)
    signs = list(".,:?!+-*/=()'\"")
    return [*NAMES, *ITEMS, *(w for w in words if w not in NAMES and w not in ITEMS), *map(str, range(100)), *signs]


def restyle(reasoning: str, truth: Mapping, rng: random.Random) -> str | None:
    """The same reasoning in another verbosity style: same steps in the same order, same numbers, other sentences.

    Plans and fillers are dropped or added as the style has it. None if a sentence is not in the language of stories.
    """
    facts = {f["entity"]: Fact(f["entity"], f["relation"], tuple(f["operands"]), f["amount"], f["value"], f["on_path"])
             for f in truth["facts"]}  # fmt: skip
    steps = annotate(reasoning, target=truth["target"], on_path=[e for e, f in facts.items() if f.on_path])
    if not steps or any(s["kind"] == "other" or (s["entity"] and s["entity"] not in facts) for s in steps):
        return None
    said = [s for s in steps if s["kind"] in ("step", "distractor")]
    if not said:
        return None
    texts = [reasoning[s["start"] : s["end"]] for s in said]
    now = (
        "terse" if " has " not in texts[-1] else "wordy" if ", so " in texts[-1] or "We know" in texts[-1] else "plain"
    )
    style = rng.choice([s for s in STYLES if s != now])
    out = []
    for step, text in zip(said, texts, strict=True):
        match = _STEP.fullmatch(text)
        expression = f"{match['left']} {match['op']} {match['right']}" if match["op"] else None
        fact = facts[step["entity"]]
        if expression is None and fact.relation != "base":
            fact = Fact(fact.entity, "base", (), step["value"], step["value"], fact.on_path)
        out.append(reasoning_sentence(fact, truth["item"], style, expression, step["value"]))
    if style == "wordy":
        out.insert(0, rng.choice(FILLERS))
    return " ".join(out)
