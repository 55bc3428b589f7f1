"""`faithlab explain`: a question in, a page out that shows what its answer depends on.

Writes, into a new folder, `explanation.html` (one self-contained page: open it in a browser), `explanation.json` (all
numbers) and `explanation.png` (question and reasoning coloured by four scores). The reasoner writes reasoning and
answer itself, unless they are given: then it is asked what *it* would make of them.

    faithlab explain --task stories -o hint weak -o hint_right 0.0 --index 3
    faithlab explain "Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?"
    faithlab explain QUESTION --reasoning "Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears." --answer 7
    faithlab explain QUESTION --compare OTHER_QUESTION      two prompts side by side, under one colour scale
    faithlab explain --reasoner smollm2 --examples gsm8k "A box holds 6 eggs. How many eggs are in 3 boxes?"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithlab import tasks
from faithlab.errors import FaithlabError, check_number, first_words
from faithlab.explanation import Explanation, beyond, explain, question_words
from faithlab.models import load_reasoner
from faithlab.page import page
from faithlab.results import write_atomically
from faithlab.run_folder import new_folder
from faithlab.shown_scores import KINDS
from faithlab.tasks.fewshot import examples, for_task
from faithlab.traces import Trace
from faithlab.verdict import how_often_wrong
from faithlab.yaml_files import read_options

OUTPUT = Path("runs") / "explain"
MANY = 100  # problems of a task, which may take long to draw: a thousand of countdown take minutes
MOST_INCHES = 200  # of the picture's height; the renderer's limit is 2^16 pixels


def figure(explanation: Explanation, kinds: Sequence[str] = ("effect", "saliency", "flow", "fai")) -> Any:
    """A matplotlib figure: question and reasoning as coloured text, one strip a score, and log p(answer) as a curve."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from faithlab.plots import PALETTE, token_strip

    e, shown = explanation, [k for k in kinds if k in explanation.scores] or list(explanation.scores)
    pieces = [piece for piece, _ in e.tokens]
    start, stop = e.first, e.first + len(e.scores[shown[0]])
    answer = next(i for i, (_, part) in enumerate(e.tokens) if part == "answer")
    ids = torch.zeros(len(pieces), dtype=torch.long)  # the strip reads texts and places only
    trace = Trace(ids, slice(0, start), slice(start, stop), slice(answer, len(pieces)), tuple(pieces))
    asked = e.in_question
    span = slice(start if asked.first is None else asked.first, len(pieces))
    lines = 1 + len("".join(pieces[span])) // 80
    heights = [0.4 * lines + 0.5] * len(shown) + [2.4]
    most = MOST_INCHES - heights[-1]
    if sum(heights[:-1]) > most:  # beyond that no picture can be drawn: fewer strips, then none
        shown = shown[: int(most / heights[0])]
        heights = [*heights[: len(shown)], heights[-1]]
    fig, axes = plt.subplots(
        len(heights), 1, figsize=(11, sum(heights) + 0.6), height_ratios=heights, layout="constrained"
    )
    axes = np.atleast_1d(axes)
    for ax, kind in zip(axes, shown, strict=False):
        values = {start + i: v for i, v in enumerate(e.scores[kind]) if v is not None}
        title = f"{KINDS[kind].label}: {KINDS[kind].meaning}"
        if asked.first is not None and kind not in asked.scores:
            title += " (reasoning only)"
        elif not values:
            title += " (not computed for single tokens of the reasoning)"
        if any(v is None for v in e.scores[kind]) and any(v is not None for v in e.scores[kind]):
            title += "; grey: undefined"
            values |= {start + i: math.nan for i, v in enumerate(e.scores[kind]) if v is None}
        values |= {span.start + i: v for i, v in enumerate(asked.scores.get(kind, ())) if v is not None}
        if values:
            # As on the page, an effect below a nat does not look large.
            sizes = [abs(v) for v in values.values() if not math.isnan(v)]
            limit = max(1.0, *sizes) if KINDS[kind].unit == "nats" else None
            darkest = limit or max(sizes)
            title += f"; darkest: {darkest:.2g} {KINDS[kind].unit}".rstrip()
            token_strip(trace, values, ax=ax, title=title, limit=limit, span=span)
        else:
            ax.set_title(title, loc="left", fontsize=10)
            ax.axis("off")
    axes[-1].plot(range(len(e.curve)), e.curve, marker="o", color=PALETTE[0], clip_on=False)
    axes[-1].set(xlabel="first sentences of the reasoning that the answer may see", ylabel="log p(answer), nats")
    axes[-1].set_ylim(min(-1.0, *e.curve) * 1.05, 0.05)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].spines[["top", "right"]].set_visible(False)
    said = f"{e.says} {beyond(e)}" if e.rollouts["n"] else e.says
    fig.suptitle(textwrap.fill(f"Answer {e.judged}. {said}", 110), x=0.01, ha="left", fontsize=11, weight="bold")
    return fig


def save(explanations: Sequence[Explanation], folder: Path, command: str = "") -> list[Path]:
    """Write page, JSON and a figure for each explanation into an existing folder; returns the files.

    Raises `FaithlabError` where the folder cannot be written to.
    """
    import matplotlib.pyplot as plt

    written = [folder / "explanation.html", folder / "explanation.json"]
    write_atomically(written[0], page(explanations, command=command))
    content = dict(command=command, explanations=[e.to_json() for e in explanations])
    write_atomically(written[1], json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for number, e in enumerate(explanations, start=1):
        path = folder / ("explanation.png" if len(explanations) == 1 else f"explanation-{number}.png")
        fig = figure(e)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box, and stands on the page
                fig.savefig(path, dpi=120)
        except OSError as error:
            raise FaithlabError(
                f"cannot write {path}: {error.strerror}; free space or choose another folder"
            ) from error
        finally:
            plt.close(fig)
        written.append(path)
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `faithlab explain`."""
    parser.description = __doc__
    add = parser.add_argument
    add("question", nargs="?", help="the question; or take one of a task, with --task")
    add("--reasoner", default="abacus", help="abacus, smollm2, a folder or a hub id (default: abacus)")
    add("--reasoning", metavar="TEXT", help="a given reasoning instead of the reasoner's own; @FILE reads a file")
    add("--answer", help="the answer to go with --reasoning")
    add("--compare", metavar="QUESTION", help="a second question, shown beside the first")
    add("--task", help=f"take the question from a task: {', '.join(tasks.names())}")
    add("--index", type=int, help="which problem of the task's test split (default: 0)")
    add("-o", "--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="an option of the task")
    add(
        "--examples", metavar="TASK", help="show the reasoner worked examples of this task (default: of --task, if any)"
    )
    add("--gold", help="the right answer, to say whether the answer is right")
    add(
        "--samples",
        type=int,
        default=8,
        help="fresh rollouts of the question for the uncertainty (default: 8; 0: none)",
    )
    add("--temperature", type=float, help="of the explained rollout (default: 0, greedy)")
    add("--max-new-tokens", type=int, help="limit of a rollout (default: the reasoner's)")
    add("--seed", type=int, default=0)
    add("--thorough", action="store_true", help="relayed effects of single tokens also where they take long")
    add("--output", help=f"where the new folder is made (default: {OUTPUT})")
    add("--name", help="name of the new folder (default: date and time)")


def command(args: argparse.Namespace) -> int:
    """Carry out `faithlab explain` and return its exit status."""
    _check(args)
    with _folder(Path(args.output or OUTPUT), args.name) as folder:
        found = _explanations(args)
        import matplotlib

        matplotlib.use("Agg")  # needs no display; not in `save`, which a notebook may call
        files = save(found, folder, "faithlab " + shlex.join(["explain", *_given(args)]))
    for e in found:
        print(f"{e.question}\n  -> {e.judged}\n  {e.says}\n  {beyond(e)}")
        if words := question_words(e):
            print(f"  {words}")
        for note in e.notes:
            print(f"  note: {note}")
    if trust := how_often_wrong():
        print(f"\n{trust}")
    print("\nwritten: " + ", ".join(str(path) for path in files))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse arguments that are empty, or that would do nothing beside the others."""
    for name in ("question", "answer", "compare", "gold", "examples"):
        value = getattr(args, name)
        if value is not None and not value.strip():
            if name == "question":
                raise FaithlabError("the question is empty; write something there")
            raise FaithlabError(f"--{name} is empty; write something there, or leave it out")
    for name in ("question", "reasoning", "answer", "compare", "gold"):
        if any("\ud800" <= c <= "\udfff" for c in getattr(args, name) or ""):
            raise FaithlabError(f"the {name} holds bytes that are no text; give it in UTF-8")
    if (args.question is None) == (args.task is None):
        raise FaithlabError("give a question, or --task with --index to take one from a task (not both)")
    if args.task is None and args.option:
        raise FaithlabError("-o sets an option of a task; without --task there is none")
    if args.task is None and args.index is not None:
        raise FaithlabError("--index chooses a problem of a task; leave it out, or give --task instead of a question")
    if args.task is not None and args.gold:
        raise FaithlabError("a task knows its right answers; leave out --gold")
    if (args.reasoning is None) != (args.answer is None):
        raise FaithlabError("--reasoning and --answer belong together; give both or neither")
    if args.reasoning is not None and args.compare:
        raise FaithlabError("--compare lets the reasoner write both reasonings; leave out --reasoning and --answer")
    if args.reasoning is not None and args.temperature is not None:
        raise FaithlabError("--temperature is for a reasoning that the reasoner writes; leave it out, or --reasoning")


@contextmanager
def _folder(output: Path, name: str | None) -> Iterator[Path]:
    """The run's folder, made before minutes are spent; if nothing comes to be written there, it goes away again with
    the folders made for it."""
    if name and os.path.isdir(output / name) and not os.listdir(output / name):
        os.rmdir(output / name)  # what a run that was killed has left
    if name and os.path.exists(output / name):  # unlike Path.exists, no error where a name is too long
        raise FaithlabError(f"{output / name} exists; choose another --name")
    made = [path for path in (output, *output.parents) if not os.path.exists(path)]
    try:
        folder = new_folder(output, name)
        made.insert(0, folder)
        yield folder
    except BaseException:  # Ctrl-C too
        for path in made:
            with suppress(OSError):
                path.rmdir()  # takes empty folders only
        raise


def _explanations(args: argparse.Namespace) -> list[Explanation]:
    given = None if args.reasoning is None else _read(args.reasoning)
    problems = [_problem(args)] + ([{"question": args.compare}] if args.compare else [])
    reasoner = load_reasoner(args.reasoner)
    if shown := args.examples or args.task:
        examples(shown)  # an unknown task is an error for abacus too, which is shown none
        reasoner = for_task(reasoner, shown)
    quiet = not sys.stderr.isatty()
    if given is not None:
        traces = [reasoner.trace(problems[0], given, args.answer)]
    else:
        options = dict(seed=args.seed, temperature=args.temperature or 0.0, max_new_tokens=args.max_new_tokens)
        traces = reasoner.generate(problems, progress=not quiet, **options)
    options = dict(samples=args.samples, seed=args.seed, thorough=args.thorough, progress=not quiet)
    options["max_new_tokens"] = args.max_new_tokens
    return [explain(reasoner, trace, pasted=given is not None, **options) for trace in traces]


def _problem(args: argparse.Namespace) -> Mapping[str, Any]:
    if args.question is not None:
        return {"question": args.question} | ({"answer": args.gold} if args.gold else {})
    index = args.index or 0
    check_number("--index", index, 0, whole=True)
    drawn = None if args.task in tasks.PUBLISHED else index + 1  # of the published ones, all there are
    if drawn and index >= MANY:
        print(
            f"drawing {index + 1} problems of {args.task} to reach --index {index}; this may take long", file=sys.stderr
        )
    options = read_options(args.option)
    rows = tasks.load(args.task, split="test", n=drawn, seed=args.seed, **options)
    if index >= len(rows):
        raise FaithlabError(f"--index {index}: {args.task} has only {len(rows)} problems, counted from 0")
    return dict(rows[index])


def _read(text: str) -> str:
    """The text, or with @ in front the content of a file."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FaithlabError(f"cannot read {text[1:]}: {first_words(error)}") from error


def _given(args: argparse.Namespace) -> list[str]:
    """The arguments as they could be typed again, without the place of the output."""
    out = [args.question] if args.question else []
    names = "reasoner reasoning answer compare task index examples gold samples temperature max_new_tokens seed"
    for name in names.split():
        value = getattr(args, name)
        if value is not None:
            out += [f"--{name.replace('_', '-')}", str(value)]
    for option in args.option:
        out += ["-o", *option]
    if args.thorough:
        out.append("--thorough")
    return out
