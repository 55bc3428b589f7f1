"""Marks by people (`faithlab.marks`) beside the scores: do they agree, and can a policy be paid for agreeing?

    agreement     how well each score finds what people marked: AUROC and Cohen's kappa
    between       how well people agree with one another: Cohen's kappa of every two of them
    MarksReward   the share of an answer's dependence that rests on what people marked, for `reward_funcs` of TRL

`faithlab feedback` hands out the papers and reads them back; `faithlab feedback --help` shows how.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from faithlab import processes, ranking, tasks, trust
from faithlab.errors import FaithlabError, check_number
from faithlab.intervals import mean_interval
from faithlab.marks import Marked, from_truth, load_marks, read_sheet, save_marks, write_sheet
from faithlab.models import load_reasoner
from faithlab.paths import make_folder
from faithlab.rewards import problems_of
from faithlab.rollouts import rewarded_rollouts
from faithlab.tasks.fewshot import for_task
from faithlab.token_scores import names, score
from faithlab.traces import Trace

DESCRIPTION = """Papers for people, and what comes of them.

  sheet    reasonings to mark: OUTPUT/sheet.txt, on which a reader puts [[ ]] around what the answer depends on, and
           OUTPUT/sheet.json, which says what was handed out. A second reader gets a copy of both files.
  agree    reads marked sheets (or .jsonl files of marks), keeps their marks beside them, and prints which scores agree,
           and of several readers how well they agree with one another
  planted  the marks of a reader who knows the stories' truth: OUTPUT/planted.jsonl
  form     reasonings to rate from 1 to 5 without knowing who wrote them: OUTPUT/readers/form.csv to hand out, and
           OUTPUT/key.json to keep
  trust    reads filled-in forms with their key and compares the reasoners

examples:
  faithlab feedback sheet --n 10 --output marks
  faithlab feedback agree marks/sheet.txt --annotator ada
  faithlab feedback agree marks/ada.txt marks/ben.txt
  faithlab feedback form abacus runs/train/shortcut_100_sufficiency-1/last --n 20 --output trust
  faithlab feedback trust trust/readers/form.csv --key trust/key.json"""
SCORES = ("saliency_answer", "cut_answer", "flow", "fai", "waad", "received", "random")


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Cohen's kappa of two yes-or-no judgements of the same items: (agreement - chance) / (1 - chance), at most 1.

    0 is what chance gives. NaN for no items, or where both say the same of everything. Raises `FaithlabError` for
    unlike numbers of judgements.
    """
    a, b = (np.asarray(v, dtype=bool) for v in (one, other))
    if a.shape != b.shape:
        raise FaithlabError(f"{a.shape} and {b.shape} judgements cannot be compared; give one each")
    if not a.size:
        return float("nan")
    agreement = (a == b).mean()
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float((agreement - chance) / (1 - chance)) if chance < 1 else float("nan")


def agreement(reasoner, marked: Sequence[Marked], scores: Sequence[str] = SCORES, *, seed: int = 0) -> pd.DataFrame:
    """How well scores of the reasoner find what people marked: one row a score, mean over marked reasonings. Where
    several readers marked a reasoning it counts once, with the mean of what they give.

    `auroc`: the chance that a marked token scores above an unmarked one (0.5 by chance), with a bootstrap interval.
    `kappa`, `kappa_low`, `kappa_high`: Cohen's kappa of the marks and as many tokens with the highest scores. Marks of
    nothing, or of everything, are left out, and `n` says how many reasonings remained.

    Raises `FaithlabError` if none remains, and for an unknown score.
    """
    traces = [m.trace(reasoner) for m in marked]
    truth = [m.tokens(t) for m, t in zip(marked, traces, strict=True)]
    usable = [i for i, t in enumerate(truth) if t.any() and not t.all() and traces[i].answered]
    if not usable:
        raise FaithlabError("no marked reasoning to compare with: mark some tokens, and not all, of at least one")
    same = [(marked[i].question, marked[i].reasoning) for i in usable]  # which reasoning a reader marked
    rows = []
    for name in scores:
        values = score(name, reasoner, [traces[i] for i in usable], seed=seed)
        found = pd.DataFrame(
            dict(
                auroc=[ranking.auroc(v, truth[i]) for v, i in zip(values, usable, strict=True)],
                kappa=[kappa(_highest(v, int(truth[i].sum())), truth[i]) for v, i in zip(values, usable, strict=True)],
            )
        )
        found = found.groupby(pd.factorize(pd.Series(same))[0]).mean()  # readers of one text are no further evidence
        where, agree = (mean_interval(found[column], seed=seed) for column in ("auroc", "kappa"))
        row = dict(score=name, auroc=where.value, low=where.low, high=where.high, kappa=agree.value)
        rows.append(row | dict(kappa_low=agree.low, kappa_high=agree.high, n=where.n))
    return pd.DataFrame(rows)


def between(marked: Sequence[Marked], *, seed: int = 0) -> pd.DataFrame:
    """How well every two readers agree: one row a pair, over the reasonings that both of them judged.

    Columns `one, other`; `kappa`, Cohen's, of which words are marked, mean over reasonings with a bootstrap interval
    `low, high` (reasonings in which both mark nothing, or everything, have none); `share_one, share_other`, of the
    words that each of them marks; `n`, reasonings. No rows where no two readers judged the same reasoning.
    """
    judged: dict[str, dict[tuple[str, str], list[bool]]] = {}
    for m in marked:
        judged.setdefault(m.annotator, {})[m.question, m.reasoning] = m.words()
    rows = []
    for (one, first), (other, second) in itertools.combinations(judged.items(), 2):
        both = first.keys() & second.keys()
        if not both:
            continue
        pairs = [(first[key], second[key]) for key in sorted(both)]
        where = mean_interval([kappa(a, b) for a, b in pairs], seed=seed)
        row = dict(one=one, other=other, kappa=where.value, low=where.low, high=where.high)
        shares = [float(np.concatenate(own).mean()) for own in zip(*pairs, strict=True)]
        rows.append(row | dict(share_one=shares[0], share_other=shares[1], n=where.n))
    return pd.DataFrame(rows, columns=["one", "other", "kappa", "low", "high", "share_one", "share_other", "n"])


def _highest(values: Tensor, k: int) -> Bool[Tensor, " token"]:
    """The k tokens with the highest score."""
    out = torch.zeros(len(values), dtype=torch.bool)
    out[ranking.highest_first(values)[:k]] = True
    return out


class MarksReward:
    """A reward of people's marks: the share of the answer's dependence that rests on what they marked; in [0, 1].

    For a rollout of a question that has marks: `sum_{j in M} s[j] / sum_j s[j]`, s the score of its reasoning tokens
    under the policy as it is now (negative ones count 0), M the tokens that belong to a marked phrase, wherever that
    stands in this rollout. 0 where none of the phrases occurs or nothing is depended on; None (not scorable) for
    questions without marks and for rollouts without an answer or a reasoning.

    Args: `reasoner`, the policy (the very model that is trained) with its tokenizer; `marked`, of which several may
    be of one question; `score`, one of `token_scores.names()`; `chat_template_kwargs`, the trainer's. Questions are
    matched by the data-set column `question`.

    A call raises `FaithlabError` without that column, and for an unknown score.
    """

    def __init__(
        self,
        reasoner,
        marked: Sequence[Marked],
        *,
        score: str = "cut_answer",
        chat_template_kwargs: Mapping | None = None,
    ):
        self.reasoner, self.score, self.__name__ = reasoner, score, "marks"
        self.chat_template_kwargs = chat_template_kwargs
        self.phrases: dict[str, set[str]] = {}
        for m in marked:
            self.phrases.setdefault(m.question, set()).update(filter(None, m.phrases))

    def __call__(self, prompts, completions, completion_ids=None, **columns) -> list[float | None]:
        problems = problems_of(columns, len(completions))
        if any("question" not in p for p in problems):
            raise FaithlabError("MarksReward finds marks by the question: the data set needs a column 'question'")
        traces = rewarded_rollouts(
            self.reasoner, prompts, completions, completion_ids, problems, self.chat_template_kwargs
        )
        with processes.whole_weights(self.reasoner.model):
            return self.of_traces(traces)

    def of_traces(self, traces: Sequence[Trace]) -> list[float | None]:
        """The reward of each trace, whose `problem` holds the question."""
        rewards: list[float | None] = [None] * len(traces)
        usable = [i for i, t in enumerate(traces) if self._phrases(t.problem) and t.explained]
        values = score(self.score, self.reasoner, [traces[i] for i in usable]) if usable else []
        for i, s in zip(usable, values, strict=True):
            s = torch.nan_to_num(s).clamp(min=0)
            marked = self._marked(traces[i])
            total = float(s.sum())
            rewards[i] = float(s[marked].sum()) / total if total > 0 else 0.0
        return rewards

    def _phrases(self, problem: Mapping | None) -> set[str]:
        return self.phrases.get((problem or {}).get("question", ""), set())

    def _marked(self, trace: Trace) -> list[int]:
        """The reasoning tokens that belong to a marked phrase."""
        found: set[int] = set()
        for phrase in self._phrases(trace.problem):
            # as whole words: a marked 7 is not the 7 of 17, 3.7 or 7,000
            whole = rf"(?<!\w)(?<!\d[.,]){re.escape(phrase)}(?!\w|[.,]\d)"
            for match in re.finditer(whole, trace.reasoning_text):
                found.update(trace.tokens_between(*match.span()))
        return sorted(p - trace.reasoning.start for p in found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `faithlab feedback`."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("action", choices=list(ACTIONS), help="what to do")
    add("names", nargs="*", metavar="REASONER|FILE", help="reasoners that write (sheet, form), or files to read")
    add("--task", default="stories", help="which problems (default: stories)")
    add("--n", type=int, default=20, help="how many problems (default: 20)")
    add("--seed", type=int, default=0)
    add("--reasoner", default="abacus", help="agree: whose scores (default: abacus)")
    add("--annotator", help="agree: whose marks a sheet holds (default: the name of its file)")
    add("--scores", help="agree: which, with commas, or 'all' (default: " + ", ".join(SCORES) + ")")
    add("--key", help="trust: the form's key.json")
    add("--output", default="runs/feedback", help="sheet, form: folder for the files (default: runs/feedback)")


def _written(name: str, args: argparse.Namespace) -> list[Trace]:
    reasoner = for_task(load_reasoner(name), args.task)
    problems = tasks.load(args.task, split="test", n=args.n, seed=args.seed)
    return reasoner.generate(problems, seed=args.seed, progress=True)


def _refuse_existing(*paths: Path) -> None:
    """Before minutes are spent on writing: what is there may hold somebody's marks."""
    for path in paths:
        if path.exists():
            raise FaithlabError(f"{path} exists; choose another --output")


def _sheet(args: argparse.Namespace) -> None:
    folder = Path(args.output)
    _refuse_existing(folder / "sheet.txt", folder / "sheet.json")
    make_folder(folder)
    traces = [t for name in args.names or ["abacus"] for t in _written(name, args)]
    print("written: " + ", ".join(map(str, write_sheet(traces, folder / "sheet.txt"))))


def _planted(args: argparse.Namespace) -> None:
    path = Path(args.output) / "planted.jsonl"
    _refuse_existing(path)
    make_folder(path.parent)
    marked = from_truth([t for name in args.names or ["abacus"] for t in _written(name, args)])
    save_marks(marked, path)
    print(f"written: {path}, {len(marked)} reasonings")


def _agree(args: argparse.Namespace) -> None:
    marked: list[Marked] = []
    for name in args.names:
        path = Path(name)
        found = load_marks(path) if path.suffix == ".jsonl" else read_sheet(path, args.annotator or path.stem)
        if path.suffix != ".jsonl":
            save_marks(found, path.with_suffix(".marks.jsonl"))
        marked += found
    people = between(marked, seed=args.seed)
    if len(people):
        print(f"readers with one another:\n{people.round(3).to_string(index=False)}\n\nscores with readers:")
    scores = SCORES if args.scores is None else [name.strip() for name in args.scores.split(",")]
    if args.scores == "all":
        scores = [name for name in names() if name != "mask_network"]  # which has to be trained first
    print(agreement(load_reasoner(args.reasoner), marked, scores, seed=args.seed).round(3).to_string(index=False))


def _form(args: argparse.Namespace) -> None:
    _refuse_existing(Path(args.output) / trust.FORM, Path(args.output) / "key.json")
    make_folder(args.output)
    traces = {name: _written(name, args) for name in args.names}
    print("written: " + ", ".join(map(str, trust.write_form(traces, args.output, seed=args.seed))))


def _trust(args: argparse.Namespace) -> None:
    if args.key is None:
        raise FaithlabError("the form does not say who wrote what: give its --key key.json")
    print(trust.trust_table(trust.read_form(args.names, args.key), seed=args.seed).round(3).to_string(index=False))


ACTIONS = {"sheet": _sheet, "planted": _planted, "agree": _agree, "form": _form, "trust": _trust}


def command(args: argparse.Namespace) -> int:
    """Carry out `faithlab feedback` and return its exit status.

    Raises:
        FaithlabError: no names for an action that needs some, and whatever the action itself refuses.
    """
    if not args.names and args.action not in ("sheet", "planted"):
        raise FaithlabError(f"nothing to {args.action}; see faithlab feedback --help for examples")
    check_number("--seed", args.seed, 0, whole=True)
    ACTIONS[args.action](args)
    return 0
