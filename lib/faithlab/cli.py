"""The command `faithlab`: a table of subcommands, each carried out by the module that owns its subject.

A new subcommand is one line in `COMMANDS` and two functions in its module:

    add_arguments(parser)   describes the arguments
    command(args) -> int    does the work and returns the exit status

A module is imported only when its subcommand is called, so that `faithlab --help` answers at once.
Exit status: 0 all well, 1 the work failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from faithlab.errors import FaithlabError, unknown

# name -> (module, one line for `faithlab --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "explain": (
        "faithlab.explain",
        "one question in, a page out that says whether its answer depends on its reasoning",
    ),
    "warmup": ("faithlab.warmup", "supervised training on worked solutions, to begin reinforcement learning from"),
    "train": ("faithlab.training", "train one arm of an experiment with one seed, and measure it"),
    "sweep": ("faithlab.sweep", "train the arms and seeds of a plan one after the other"),
    "evaluate": ("faithlab.evaluate", "measure reasoners or checkpoints side by side on the same problems"),
    "feedback": ("faithlab.feedback", "papers for people: mark what matters, rate trust; and what comes of them"),
    "harness": ("faithlab.harness", "accuracy by the conventions of lm-eval, and a cross-check against it"),
    "notebooks": ("faithlab.notebooks", "run the notebooks of the course headless, with checks"),
    "course": ("faithlab.course", "copies for students and teachers; grade what was handed in"),
}


class AnyOrder(argparse.ArgumentParser):
    """A parser of options before, between and behind the positional arguments: argparse alone takes `action names...`
    only in one piece, and refuses the names in `action --option x names`."""

    _inside = False  # `parse_known_intermixed_args` calls back

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, in any order."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def build_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The argument parser, with the arguments of the subcommand `name` only (the others stay unimported)."""
    parser = argparse.ArgumentParser(
        prog="faithlab",
        description="Does a model's answer depend on the reasoning it shows, and can we train it so that it does?",
        epilog="`faithlab COMMAND --help` describes a command and gives examples.",
    )
    commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True, parser_class=AnyOrder)
    for command, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(command, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if command == name:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. What raises `FaithlabError`, such as an unknown command, gives
    one line on stderr, no traceback, and the status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = next((a for a in argv if not a.startswith("-")), None)
    if not argv:
        build_parser().print_help()
        return 2
    try:
        if name is not None and name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        args = build_parser(name).parse_args(argv)
        return importlib.import_module(COMMANDS[args.command_name][0]).command(args)
    except FaithlabError as error:
        print(f"faithlab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("faithlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `faithlab ... | head`: point stdout elsewhere, or Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
