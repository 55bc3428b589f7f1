"""`faithlab harness`: accuracy on GSM8K and MMLU by the conventions of lm-eval, to lay beside published numbers.

The conventions are those of the tasks `gsm8k` (version 3) and `mmlu` (version 2) of EleutherAI's lm-evaluation-harness
0.4.9.2 to 0.4.13, without a chat template. Accuracy is the share of right answers, with Wilson's 95 % interval.

gsm8k   The prompt is worked solutions as published, drawn anew for every problem, then the question. The model writes
        up to 256 tokens greedily, up to a stop string. "strict" reads the first number behind `####`, "flexible" the
        last number of all; it must equal the published one to the letter, but for `$`, commas and a last full stop.
mmlu    The prompt is a line that names the subject, its first `dev` questions with their letters, then the question.
        "letter" is the option whose letter is the likeliest next text; nothing is written.

The ordinary `faithlab evaluate` gives other numbers. There the model is asked in this repository's own format (its chat
template where it has one), after two worked examples of our own, the same for every problem; it samples, by default
four answers of up to 320 tokens at temperature 1; a tolerant reader takes a marked answer before the last number and
compares values, so that 5.0 is 5; an MMLU letter is read from written reasoning; and a seed chooses the problems. Here
`--n` takes the first ones (of each subject, for mmlu), as `--limit` does in lm-eval.

What still differs from lm-eval:

* a checkpoint's own settings for writing, such as a repetition penalty, count there and are left out here;
* five examples are the default here for both tasks, there for gsm8k alone (published MMLU numbers mostly have five);
* batches and padding round otherwise: a near-tie can fall to another token; and in half precision log-probabilities of
  letters are rounded there to the model's dtype, where a tie goes to the first letter;
* versions before 0.4.9.2 leave out the begin-of-text token that a tokenizer may put before the prompt.

`--check` runs lm-eval itself (0.4.12 or later) on the same model and rows, with its own task files and its own drawing
of examples, and counts the answers that differ.

In the output folder, which serves one model, data and settings:

    harness.json    what was asked for
    items.csv       one row a problem (`measure`), written after every 16; no text of the data
    summary.csv     accuracy by measure

The same command again goes on where it was stopped: problems that are finished are not run again. `--check` may be
added to a finished run, and what it found is kept.

    faithlab harness smollm2 --task gsm8k --path test.jsonl --shots-path train.jsonl --n 200
    faithlab harness path/to/model --task mmlu --path mmlu/data --n 20 --check
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from faithlab.biases import context_window
from faithlab.errors import FaithlabError, check_number
from faithlab.generation import generate_ids
from faithlab.harness_check import MEASURES, by_lm_eval, import_lm_eval
from faithlab.harness_conventions import (
    LETTERS,
    NEW_TOKENS,
    SEED,
    STOP,
    TASKS,
    Problem,
    by_subject,
    flexible,
    load,
    normalised,
    prompts,
    short_hash,
    strict,
)
from faithlab.intervals import share_interval
from faithlab.likelihood import answer_logp
from faithlab.models import Reasoner, identity, load_reasoner
from faithlab.paths import make_folder, user_path
from faithlab.results import write_atomically
from faithlab.run_folder import claim
from faithlab.traces import Trace

PART = 16  # problems between two savings
THEIRS = "lm_eval_"  # in front of the columns of what lm-eval found


def _ids(reasoner: Reasoner, text: str) -> list[int]:
    """Token ids with what the tokenizer itself puts before a text; unknown words are an error naming them."""
    ids = reasoner.tokenizer(text).input_ids
    if reasoner.tokenizer.unk_token_id in ids:
        reasoner.ids(text)
    return ids


def _window(reasoner: Reasoner) -> int:
    return context_window(reasoner.model) or 2048


def write(reasoner: Reasoner, texts: Sequence[str], *, progress: bool = False) -> list[str]:
    """What the model writes after each text: greedily, up to 256 tokens or a stop string. A text that leaves no room
    for them loses its beginning. Raises `FaithlabError` for a model with a window of 256 tokens or less."""
    tokenizer, room = reasoner.tokenizer, _window(reasoner) - NEW_TOKENS
    if room < 1:
        raise FaithlabError(f"{reasoner.name} holds {room + NEW_TOKENS} tokens; gsm8k needs a model that holds more")
    stop = [*STOP, *filter(None, [tokenizer.eos_token])]
    rollouts = generate_ids(
        reasoner.model, tokenizer, [_ids(reasoner, text)[-room:] for text in texts], [0] * len(texts), temperature=0,
        max_new_tokens=NEW_TOKENS, stop=stop, progress=f"{reasoner.name} writes" if progress else None,
    )  # fmt: skip
    written = [tokenizer.decode(rollout.ids, skip_special_tokens=True) for rollout in rollouts]
    return [re.split("|".join(map(re.escape, stop)), text, maxsplit=1)[0] for text in written]


def letter_logp(reasoner: Reasoner, texts: Sequence[str], *, progress: bool = False) -> Float[Tensor, "texts letters"]:
    """log p(" A"), … log p(" D") behind each text, in nats. A text that does not fit the window loses its beginning."""
    traces = []
    for text in texts:
        for letter in LETTERS:
            ids = _ids(reasoner, f"{text} {letter}")
            cut = max(0, len(ids) - _window(reasoner) - 1)  # the last token is predicted and never read
            here = len(_ids(reasoner, text)) - cut
            spans = (slice(0, here), slice(here, here), slice(here, len(ids) - cut))  # there is no reasoning
            traces.append(Trace(torch.tensor(ids[cut:]), *spans))
    return answer_logp(reasoner, traces, progress=progress).reshape(len(texts), len(LETTERS))


def measure(reasoner: Reasoner, problems: Sequence[Problem], texts: Sequence[str], *, progress=False) -> pd.DataFrame:
    """One row a problem: `item` (its place), `subject`, `target`, `question` and `prompt` (hashes, for the texts are
    not ours to hand on), and for each measure M (strict and flexible, or letter) `answer_M` and `right_M`.

    `texts` are their `prompts`. Raises `FaithlabError` for a model that cannot read or hold them.
    """
    if problems[0].choices:
        letters = {}
        for places in by_subject(problems).values():  # what a subject's prompts share is computed once
            logp = letter_logp(reasoner, [texts[i] for i in places], progress=progress)
            letters |= {i: LETTERS[best] for i, best in zip(places, logp.argmax(-1).tolist(), strict=True)}
        found = dict(letter=[letters[i] for i in range(len(problems))])
    else:
        written = write(reasoner, texts, progress=progress)
        found = dict(strict=list(map(strict, written)), flexible=list(map(flexible, written)))
    table = pd.DataFrame(dict(item=range(len(problems)), subject=[p.subject for p in problems]))
    table["question"], table["prompt"] = (
        [short_hash(p.question) for p in problems],
        [short_hash(text) for text in texts],
    )
    table["target"] = [p.answer if p.choices else normalised(p.answer) for p in problems]
    for name, answers in found.items():
        table[f"answer_{name}"] = answers
        table[f"right_{name}"] = [normalised(a) == normalised(p.answer) for a, p in zip(answers, problems, strict=True)]
    return table


def measure_on(
    reasoner: Reasoner, problems: Sequence[Problem], texts: Sequence[str], path: Path, *, progress: bool = False,
    begin: Callable[[], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`measure` in parts of up to `PART` problems of one subject, each added to the table at `path` when it is done;
    `begin` is called before the first is written. Problems that are there already are not measured again. What lm-eval
    said of them stands in columns `lm_eval_…`.

    Raises `FaithlabError` as `measure` does, and for a table that is damaged or cannot be written.
    """
    done = _finished(path, problems, texts)
    for places in by_subject(problems).values():
        left = sorted(set(places) - set(done["item"]))
        for part in (left[i : i + PART] for i in range(0, len(left), PART)):
            found = measure(reasoner, [problems[i] for i in part], [texts[i] for i in part], progress=progress)
            found["item"] = part
            done = pd.concat([done, found] if len(done) else [found]).sort_values("item", ignore_index=True)
            if begin is not None:
                begin()
            write_atomically(path, done.to_csv(index=False))
            if progress:
                print(f"{reasoner.name}: {len(done)} of {len(problems)} problems", flush=True)
    return done


def _finished(path: Path, problems: Sequence[Problem], texts: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(dict(item=[]))
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).astype(dict(item=int))
        for name in (c for c in table if "right_" in c):
            if not table[name].isin(["True", "False"]).all():
                raise ValueError(f"{name} is neither True nor False")
            table[name] = table[name] == "True"
        names = [m for m in MEASURES if (m == "letter") == bool(problems[0].choices)]
        table[[f"{column}_{name}" for name in names for column in ("answer", "right")]]
        if table["item"].duplicated().any():
            raise ValueError("problems are there twice")
        for row in table.to_dict("records"):
            problem = problems[row["item"]]
            if (row["question"], row["prompt"]) != (short_hash(problem.question), short_hash(texts[row["item"]])):
                raise ValueError(f"problem {row['item']} is another one")
            for name in names:
                if row[f"right_{name}"] != (normalised(row[f"answer_{name}"]) == normalised(problem.answer)):
                    raise ValueError(f"right_{name} of problem {row['item']} does not follow from its answer")
    except OSError as error:
        raise FaithlabError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, AttributeError) as error:  # pandas' own errors are ValueErrors
        raise FaithlabError(
            f"{path} is damaged ({error}); delete it to measure again, or give another --output"
        ) from error
    return table


def summary(table: pd.DataFrame, theirs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Accuracy by measure: `value, low, high, n`; with what lm-eval found also `lm_eval` (its accuracy) and how many
    problems have another answer (`differ`) or prompt (`prompts_differ`) there."""
    rows = []
    for name in (m for m in MEASURES if f"right_{m}" in table):
        answer, right = f"answer_{name}", f"right_{name}"
        rows.append(dict(measure=name, **share_interval(int(table[right].sum()), len(table))._asdict()))
        if theirs is not None:
            other = (theirs[[answer, right]] != table[[answer, right]]).any(axis=1)
            prompts_differ = int((theirs["prompt"] != table["prompt"]).sum())
            rows[-1] |= dict(lm_eval=theirs[right].mean(), differ=int(other.sum()), prompts_differ=prompts_differ)
    return pd.DataFrame(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `faithlab harness`."""
    parser.description = __doc__
    add = parser.add_argument
    add("reasoner", help="a name (smollm2), a folder, or a hub id")
    add("--task", default="gsm8k", help=f"one of {', '.join(TASKS)}")
    add("--path", help="file or folder of the problems in the published format (default: from the hub)")
    add("--shots-path", help="of the rows that few-shot examples come from (default: the folder --path)")
    add("--n", type=int, help="problems, the first ones (mmlu: of each subject); default: all")
    add("--shots", type=int, default=5, help="few-shot examples in each prompt")
    add("--seed", type=int, default=SEED, help=f"draws gsm8k's examples; lm-eval's own is {SEED}")
    add("--check", action="store_true", help="run lm-eval too, and count the answers that differ")
    add("--output", type=Path, help="the run's folder (default: runs/harness/REASONER-TASK)")
    add("--quiet", action="store_true", help="no progress")


def command(args: argparse.Namespace) -> int:
    """`faithlab harness`: measure, or go on, print accuracy, write the tables."""
    if args.check:
        import_lm_eval()  # before the work, not after it
    problems, pool = _data(args)
    texts = prompts(problems, pool, args.shots, args.seed)
    folder = args.output or Path("runs/harness") / f"{Path(args.reasoner).name}-{args.task}"
    make_folder(folder)  # where that cannot be, it shows before the work
    reasoner = load_reasoner(args.reasoner)
    asked = dict(
        reasoner=args.reasoner, weights=identity(args.reasoner), task=args.task, problems=len(problems),
        shots=args.shots, seed=args.seed, prompts=short_hash("\0".join(texts)),
        answers=short_hash("\0".join(problem.answer for problem in problems)),
        dtype=str(reasoner.model.dtype).removeprefix("torch."),
    )  # fmt: skip
    record = json.dumps(asked, indent=1) + "\n"
    claim(folder, "harness.json", record, ours=("items.csv", "summary.csv"))
    table = measure_on(
        reasoner, problems, texts, folder / "items.csv", progress=not args.quiet,
        begin=lambda: write_atomically(folder / "harness.json", record),
    )  # fmt: skip
    mine = ~table.columns.str.startswith(THEIRS)
    table, theirs = table.loc[:, mine], table.loc[:, ~mine].rename(columns=lambda name: name.removeprefix(THEIRS))
    if args.check and theirs.empty:
        theirs = by_lm_eval(reasoner, problems, pool, shots=args.shots, seed=args.seed)
        write_atomically(folder / "items.csv", table.join(theirs.add_prefix(THEIRS)).to_csv(index=False))
    found = summary(table, None if theirs.empty else theirs)
    write_atomically(folder / "summary.csv", found.to_csv(index=False))
    print(f"{args.task}, {len(table)} problems, {args.shots} examples each, {reasoner.name}")
    for row in found.itertuples():
        line = f"{row.measure:<9} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
        if not theirs.empty:
            line += f"   lm-eval {row.lm_eval:.3f}: {row.differ} answers and {row.prompts_differ} prompts differ"
        print(line)
    print(f"written: {folder / 'items.csv'}, {folder / 'summary.csv'}")
    return 0


def _data(args: argparse.Namespace) -> tuple[list[Problem], list[Problem]]:
    """The problems asked for, and the rows that their few-shot examples come from."""
    problems, pool = load(args.task, args.path), []
    if args.shots:
        if args.path and not args.shots_path and not user_path(args.path).is_dir():
            raise FaithlabError("--path is one file: give --shots-path, the rows that examples come from, or --shots 0")
        pool = load(args.task, args.shots_path or args.path, examples=True)
        shared = len(set(problems) & set(pool))
        if shared == len(set(problems)):
            raise FaithlabError("the few-shot rows hold all the problems, answers included: give another --shots-path")
        if shared:
            print(f"note: {shared} of the problems are also few-shot rows, so their answers may stand in a prompt")
    if args.n is not None:
        check_number("--n", args.n, 1, whole=True)
        kept = {place for places in by_subject(problems).values() for place in places[: args.n]}
        problems = [problem for place, problem in enumerate(problems) if place in kept]
    return problems, pool
