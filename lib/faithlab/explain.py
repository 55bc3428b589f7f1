"""`faithlab explain`: a question in, a page out that shows what its answer depends on.

Writes, into a new folder, `explanation.html` (one self-contained page: open it in a browser), `explanation.json` (all
numbers) and `explanation.png` (question and reasoning coloured by four scores; of two, with --compare, one each:
`explanation-1.png` and `explanation-2.png`). The reasoner writes reasoning and answer itself, unless they are given:
then it is asked what *it* would make of them.

    faithlab explain --task stories -o hint weak -o hint_right 0.0 --index 3
    faithlab explain "Ada has 3 pears. Ben has 4 more pears than Ada. How many pears does Ben have?"
    faithlab explain QUESTION --reasoning "Ada has 3 pears. Ben has Ada + 4 = 3 + 4 = 7 pears." --answer 7
    faithlab explain QUESTION --compare OTHER_QUESTION      two prompts side by side, under one colour scale
    faithlab explain QUESTION --compare QUESTION --reasoning @one.txt --reasoning @other.txt --answer 7
    faithlab explain --reasoner smollm2 --examples gsm8k "A box holds 6 eggs. How many eggs are in 3 boxes?"
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from faithlab import tasks
from faithlab.errors import FaithlabError, check_number, first_words
from faithlab.explanation import Explanation, beyond, explain, question_words
from faithlab.explanation_files import save
from faithlab.models import load_reasoner
from faithlab.run_folder import new_folder
from faithlab.tasks.fewshot import examples, for_task
from faithlab.verdict import how_often_wrong
from faithlab.yaml_files import read_options

OUTPUT = Path("runs") / "explain"
MANY = 100  # problems of a task, which may take long to draw: a thousand of countdown take minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `faithlab explain`."""
    parser.description = __doc__
    add = parser.add_argument
    add("question", nargs="?", help="the question; or take one of a task, with --task")
    add("--reasoner", default="abacus", help="abacus, smollm2, a folder or a hub id (default: abacus)")
    text = "a given reasoning instead of the reasoner's own; @FILE reads a file; with --compare once for both or twice"
    add("--reasoning", metavar="TEXT", action="append", default=[], help=text)
    add("--answer", action="append", default=[], help="the answer to go with --reasoning; with --compare likewise")
    add("--compare", metavar="QUESTION", help="a second question, or the same again, shown beside the first")
    add("--task", help=f"take the question from a task: {', '.join(tasks.names())}")
    add("--index", type=int, help="which problem of the task's test split (default: 0)")
    add("-o", "--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="an option of the task")
    add(
        "--examples", metavar="TASK", help="show the reasoner worked examples of this task (default: of --task, if any)"
    )
    add("--gold", action="append", default=[], help="the right answer, to say whether the answer is right; likewise")
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
        if any(not value.strip() for value in _values(args, name)):
            if name == "question":
                raise FaithlabError("the question is empty; write something there")
            raise FaithlabError(f"--{name} is empty; write something there, or leave it out")
    for name in ("question", "reasoning", "answer", "compare", "gold"):
        if any("\ud800" <= c <= "\udfff" for value in _values(args, name) for c in value):
            raise FaithlabError(f"the {name} holds bytes that are no text; give it in UTF-8")
    if (args.question is None) == (args.task is None):
        raise FaithlabError("give a question, or --task with --index to take one from a task (not both)")
    if args.task is None and args.option:
        raise FaithlabError("-o sets an option of a task; without --task there is none")
    if args.task is None and args.index is not None:
        raise FaithlabError("--index chooses a problem of a task; leave it out, or give --task instead of a question")
    if args.task is not None and args.gold:
        raise FaithlabError("a task knows its right answers; leave out --gold")
    if bool(args.reasoning) != bool(args.answer):
        raise FaithlabError("--reasoning and --answer belong together; give both or neither")
    for name in ("reasoning", "answer", "gold"):
        if len(given := getattr(args, name)) > (most := 2 if args.compare else 1):
            raise FaithlabError(
                f"--{name} is there {len(given)} times for {most} question{'s' * (most > 1)}; give it once"
                + (" for both, or twice" if most > 1 else "; to see two side by side, give --compare QUESTION too")
            )
    if args.reasoning and args.temperature is not None:
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
    given = [_read(text) for text in args.reasoning]
    problems = [_problem(args)] + ([{"question": args.compare}] if args.compare else [])
    if args.gold:
        problems = [p | {"answer": gold} for p, gold in zip(problems, _for_each(args.gold, problems), strict=True)]
    reasoner = load_reasoner(args.reasoner)
    if shown := args.examples or args.task:
        examples(shown)  # an unknown task is an error for abacus too, which is shown none
        reasoner = for_task(reasoner, shown)
    quiet = not sys.stderr.isatty()
    if given:
        both = zip(problems, _for_each(given, problems), _for_each(args.answer, problems), strict=True)
        traces = [reasoner.trace(problem, text, answer) for problem, text, answer in both]
    else:
        options = dict(seed=args.seed, temperature=args.temperature or 0.0, max_new_tokens=args.max_new_tokens)
        traces = reasoner.generate(problems, progress=not quiet, **options)
    options = dict(samples=args.samples, seed=args.seed, thorough=args.thorough, progress=not quiet)
    options["max_new_tokens"] = args.max_new_tokens
    return [explain(reasoner, trace, pasted=bool(given), **options) for trace in traces]


def _problem(args: argparse.Namespace) -> dict[str, Any]:
    if args.question is not None:
        return {"question": args.question}
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


def _values(args: argparse.Namespace, name: str) -> list[Any]:
    """What was given under a name: nothing, one value, or several."""
    value = getattr(args, name)
    return value if isinstance(value, list) else [] if value is None else [value]


def _for_each(given: list[str], problems: Sequence[Any]) -> list[str]:
    """One text for each problem: what was given once is for all."""
    return given * len(problems) if len(given) == 1 else given


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
        for value in _values(args, name):
            out += [f"--{name.replace('_', '-')}", str(value)]
    for option in args.option:
        out += ["-o", *option]
    if args.thorough:
        out.append("--thorough")
    return out
