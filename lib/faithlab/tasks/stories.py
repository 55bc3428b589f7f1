"""`stories`: seeded arithmetic stories whose needed facts, reasoning steps, distractors and hints are known.

A story is a dependency graph said in English. The *hops* are the derived facts on the path from the question's subject
back to facts that stand by themselves. Everything else is a distractor. Each row carries the question, the right
answer, a demonstration of a reasoner (which may err at a known rate and, with a hint, may answer the hint), and the
truth about all of it as character spans.

    >>> row = load("test", n=1, seed=0, hops=(2, 2))[0]
    >>> row["truth"]["hops"]
    2
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import datasets

from faithlab.errors import FaithlabError, check_number, unknown
from faithlab.tasks import scoring
from faithlab.tasks.splits import SPLITS, split_of
from faithlab.tasks.story_text import (
    FILLERS,
    HINTS,
    ITEMS,
    NAMES,
    RELATIONS,
    STYLES,
    Fact,
    annotate,
    compute,
    fact_sentence,
    plan_sentence,
    question_sentence,
    reasoning_sentence,
)

MAX_VALUE = 50  # values of a story are 1..MAX_VALUE; one token each for abacus, and a table it can learn

# How likely each ornament is in a demonstration of the three styles: a plan before the steps, a filler sentence at
# each gap, a step about a distractor fact.
ORNAMENTS = {"terse": (0.5, 0.0, 0.1), "plain": (0.7, 0.1, 0.3), "wordy": (0.9, 0.4, 0.6)}


@dataclass(frozen=True)
class Story:
    """One problem without hint: its facts in told order, in dependency order, what is counted, and whose is asked."""

    facts: tuple[Fact, ...]  # in the order of the telling
    order: tuple[Fact, ...]  # on-path facts, operands first
    item: str
    target: str

    @property
    def key(self) -> str:
        """Canonical text: the same for every order of telling, so that splits cannot share a reshuffled problem."""
        return "|".join(sorted(fact_sentence(f, self.item) for f in self.facts)) + self.target

    @property
    def answer(self) -> int:
        """How many of `item` the target has, in 1..`MAX_VALUE`."""
        return self.order[-1].value


def _derived(rng: random.Random, operands: Sequence[Fact], relation: str, on_path: bool) -> Fact | None:
    """A fact, yet without a name, in the given relation to others, or None if its value is not in 1..MAX_VALUE."""
    a = operands[0].value
    amount = rng.randint(1, 9) if relation in ("more", "fewer") else None
    if relation == "half" and a % 2:
        return None
    value = compute(relation, [f.value for f in operands], amount)[1]
    if not 1 <= value <= MAX_VALUE:
        return None
    return Fact("", relation, tuple(f.entity for f in operands), amount, value, on_path)


def draw_story(rng: random.Random, hops: tuple[int, int], distractors: tuple[int, int]) -> Story:
    """A random story with hops[0]..hops[1] derived facts on the path and the given number of distractor facts."""
    free = rng.sample(NAMES, len(NAMES))  # names are taken from the end, and only once a fact is accepted

    def base(on_path: bool) -> Fact:
        value = rng.randint(1, 20)
        return Fact(free[-1], "base", (), value, value, on_path)

    path = [base(True)]
    free.pop()
    wanted = rng.randint(*hops)
    n_hops = 0
    while n_hops < wanted:
        relation = rng.choice(RELATIONS)
        operands = [path[-1]]  # each hop builds on the one before, so the depth is the number of hops
        extra = None
        if relation == "sum":
            earlier = path[:-1]
            extra = rng.choice(earlier) if earlier and rng.random() < 0.5 else base(True)
            operands.append(extra)
            rng.shuffle(operands)
        fact = _derived(rng, operands, relation, True)
        if fact is None:
            continue
        if extra is not None and extra not in path:
            free.pop()
            path.insert(len(path) - 1, extra)
        path.append(replace(fact, entity=free.pop()))
        n_hops += 1
    others: list[Fact] = []
    for _ in range(rng.randint(*distractors)):
        relation = rng.choice(("base", "base", "more", "fewer", "twice", "half", "sum"))
        fact = None
        if relation != "base":
            operands = rng.sample([*path, *others], 2 if relation == "sum" else 1)
            fact = _derived(rng, operands, relation, False)
        others.append(replace(fact or base(False), entity=free.pop()))
    facts = [*path, *others]
    rng.shuffle(facts)
    return Story(tuple(facts), tuple(path), rng.choice(ITEMS), path[-1].entity)


def _believe(rng: random.Random, todo: Sequence[Fact], error_rate: float) -> dict[str, int]:
    """The value a reasoner writes for each entity, wrong at `error_rate`, later values built on earlier ones.

    Errors that would lead out of 0..99 are drawn again; after 50 draws the right values are taken.
    """
    for _ in range(50):
        believed: dict[str, int] = {}
        for fact in todo:
            value = fact.value
            if fact.relation != "base":
                value = compute(fact.relation, [believed[n] for n in fact.operands], fact.amount)[1]
                if rng.random() < error_rate:
                    value += rng.choice((-10, -2, -1, 1, 2, 10))
            if not 0 <= value <= 99:
                break
            believed[fact.entity] = value
        else:
            return believed
    return {fact.entity: fact.value for fact in todo}


def demonstrate(rng: random.Random, story: Story, style: str, error_rate: float) -> tuple[str, int]:
    """A reasoning text in `style` and the value it reaches.

    Each computed step is wrong with probability `error_rate` (by 1, 2 or 10, either way), and later ones build on it.
    """
    plan_rate, filler_rate, distractor_rate = ORNAMENTS[style]
    plan = [plan_sentence(f) for f in reversed(story.order) if f.operands] if rng.random() < plan_rate else []
    todo = list(story.order)
    for fact in story.facts:  # a distractor step goes somewhere after the last of its operands
        if not fact.on_path and rng.random() < distractor_rate:
            known = [f.entity for f in todo]
            if all(name in known for name in fact.operands):
                earliest = max((known.index(name) + 1 for name in fact.operands), default=0)
                todo.insert(rng.randint(earliest, len(todo)), fact)
    believed = _believe(rng, todo, error_rate)
    steps = []
    for fact in todo:
        expression = None
        if fact.relation != "base":
            expression = compute(fact.relation, [believed[n] for n in fact.operands], fact.amount)[0]
        steps.append(reasoning_sentence(fact, story.item, style, expression, believed[fact.entity]))
    parts = []
    for sentence in [*plan, *steps]:
        if rng.random() < filler_rate:
            parts.append(rng.choice(FILLERS))
        parts.append(sentence)
    if rng.random() < filler_rate:
        parts.append(rng.choice(FILLERS))
    return " ".join(parts), believed[story.target]


def tell(story: Story, hint: str = "none", hint_value: int | None = None) -> tuple[str, dict]:
    """The question's text and the truth about it: facts with their spans, and the hint with its span."""
    text, facts = "", []
    for fact in story.facts:
        start = len(text)
        text += fact_sentence(fact, story.item) + " "
        row = dict(entity=fact.entity, relation=fact.relation, operands=list(fact.operands), amount=fact.amount)
        facts.append(row | dict(value=fact.value, on_path=fact.on_path, start=start, end=len(text) - 1))
    text += question_sentence(story.target, story.item)
    said = dict(kind=hint, value=hint_value, right=None, start=-1, end=-1)
    if hint != "none":
        said |= dict(right=hint_value == story.answer, start=len(text) + 1)
        text += " " + HINTS[hint].format(hint_value)
        said["end"] = len(text)
    hops = sum(f.relation != "base" for f in story.order)
    return text, dict(hops=hops, target=story.target, item=story.item, facts=facts, hint=said)


def wrong_value(rng: random.Random, *avoid: int) -> int:
    """A value that a story could have, other than those in `avoid`."""
    return rng.choice([v for v in range(1, MAX_VALUE + 1) if v not in avoid])


def make_row(
    rng: random.Random, story: Story, *, hint: str, hint_right: float, error_rate: float, follow: float
) -> dict:
    """One data row: the problem, a demonstration of abacus's behaviour under this hint, and the truth about both.

    The demonstrated reasoning does not know of the hint. The demonstrated answer is the reasoning's value without a
    hint, always the hint under a strong one, and the hint with probability `follow` under a weak one.
    """
    style = rng.choices(STYLES, weights=(0.3, 0.4, 0.3))[0]
    reasoning, reached = demonstrate(rng, story, style, error_rate)
    hint_value = None
    if hint != "none":
        hint_value = story.answer if rng.random() < hint_right else wrong_value(rng, story.answer, reached)
    question, truth = tell(story, hint, hint_value)
    on_path = [f.entity for f in story.order]
    truth["steps"] = annotate(reasoning, target=story.target, on_path=on_path)
    truth["style"], truth["reached"] = style, reached
    follows = hint == "strong" or (hint == "weak" and rng.random() < follow)
    response = f"{hint_value if follows else reached}"
    return dict(question=question, answer=str(story.answer), reasoning=reasoning, response=response, truth=truth)


def _ends(name: str, value: object, low: int, high: int, says: str) -> tuple[int, int]:
    """A number, or a pair of numbers in order, as a pair; anything else is an error."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    whole = all(isinstance(v, Integral) and not isinstance(v, bool) for v in pair)
    if not whole or len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise FaithlabError(f"{says}; got {name}={value!r}. Give a whole number, or a pair such as {name}=(1, 3).")
    return pair


def _shares(hint: object) -> dict[str, float]:
    """The shares of the kinds of hints, at least one of them above 0."""
    mix = {hint: 1.0} if isinstance(hint, str) else hint
    kinds = ("none", *HINTS)
    for kind in mix if isinstance(mix, Mapping) else ():
        if kind not in kinds:
            raise unknown("hint", kind, kinds)
        check_number(f"the share of hint {kind!r}", mix[kind], 0)
    if not isinstance(mix, Mapping) or not any(mix.values()):
        raise FaithlabError(
            f"hint={hint!r} is not possible; give one of {', '.join(kinds)}, or shares such as {{'none': 1, 'weak': 1}}"
        )
    return dict(mix)


def rows(
    split: str,
    seed: int,
    *,
    hops: int | tuple[int, int] = (1, 5),
    distractors: int | tuple[int, int] = (0, 3),
    hint: str | Mapping[str, float] = "none",
    hint_right: float = 0.5,
    error_rate: float = 0.0,
    follow: float = 0.5,
) -> Iterator[dict]:
    """An endless stream of rows of one split, the same for the same arguments. Raises as `load`, at the first row."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    hops = _ends("hops", hops, 1, 5, "stories have 1 to 5 hops")
    distractors = _ends("distractors", distractors, 0, 4, "stories have 0 to 4 distractor facts")
    for name, share in (("hint_right", hint_right), ("error_rate", error_rate), ("follow", follow)):
        check_number(name, share, 0, 1)
    mix = _shares(hint)
    rng = random.Random(f"stories-{seed}")
    while True:
        story = draw_story(rng, hops, distractors)
        kind = rng.choices(list(mix), weights=list(mix.values()))[0]
        # The row is made before it is sorted by split, so that every split reads the same stream.
        row = make_row(rng, story, hint=kind, hint_right=hint_right, error_rate=error_rate, follow=follow)
        if split_of(story.key) == split:
            yield row


def load(split: str = "train", n: int | None = None, seed: int = 0, **options) -> datasets.Dataset:
    """`n` (default 1,000) different problems of a split as a `datasets.Dataset`.

    Options: `hops`, `distractors` (a number, or a pair, inclusive), `hint` ("none", "weak", "strong" or shares),
    `hint_right` (share of hints that are right), `error_rate` (wrong steps in demonstrations), `follow` (share of weak
    hints that the demonstration follows). Columns: `question` (with the hint), `answer`, `reasoning` and `response`
    (the demonstration), `truth`. Splits cannot overlap: see `Story.key`.

    Raises `FaithlabError` for an unknown split, option or hint, or numbers out of range.
    """
    n = 1000 if n is None else n
    known = ("hops", "distractors", "hint", "hint_right", "error_rate", "follow")
    for name in options:
        if name not in known:
            raise unknown("option of stories", name, known)
    out: dict[str, dict] = {}
    for drawn, row in enumerate(rows(split, seed, **options)):
        out.setdefault(row["question"], row)
        if len(out) >= n:
            break
        if drawn > 1000 + 100 * n:
            raise FaithlabError(f"only {len(out)} different stories of this kind exist; ask for fewer than n={n}.")
    return datasets.Dataset.from_list(list(out.values())[:n])


def score(prediction: str | None, problem: Mapping) -> scoring.Score:
    """Whether the number in `prediction` is the problem's answer."""
    return scoring.score_number(prediction, problem["answer"])
