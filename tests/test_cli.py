"""The command line: quick help, one-line errors, a table of commands that is easy to extend."""

import subprocess
import sys
import time
import types

import pytest

from faithlab import cli
from faithlab.errors import FaithlabError, unknown


def run(*args):
    return subprocess.run([sys.executable, "-m", "faithlab.cli", *args], capture_output=True, text=True)


def test_help_is_quick_and_lists_the_commands():
    start = time.monotonic()
    done = run("--help")
    assert done.returncode == 0
    assert time.monotonic() - start < 1.5
    for name, (_, summary) in cli.COMMANDS.items():
        assert name in done.stdout and summary.split()[0] in done.stdout


def test_help_imports_nothing_heavy():
    code = "import sys; from faithlab.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print('heavy:', [m for m in ('torch', 'pandas', 'papermill', 'transformers') if m in sys.modules])"
    for args in (["--help"], ["notebooks", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert done.stdout.rstrip().endswith("heavy: []")


def test_notebooks_help_has_examples():
    out = run("notebooks", "--help").stdout
    for word in ("--profile", "--resume", "--write-back", "--keep-going", "--timeout", "--online", "examples:"):
        assert word in out


def test_unknown_command_is_one_line(capsys):
    assert cli.main(["notebook"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("faithlab: error: unknown command 'notebook'; did you mean 'notebooks'?")
    assert err.count("\n") == 1


def test_no_command_and_unknown_option_exit_2():
    assert run().returncode == 2
    done = run("notebooks", "--nonsense")
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.fixture
def extra(monkeypatch):
    """A command registered as a later part would do it; what it does is set by the test."""
    module = types.ModuleType("faithlab_extra")
    module.add_arguments = lambda parser: parser.add_argument("--seed", type=int, default=0)
    module.command = lambda args: args.seed
    monkeypatch.setitem(sys.modules, "faithlab_extra", module)
    monkeypatch.setitem(cli.COMMANDS, "extra", ("faithlab_extra", "an example"))
    return module


def test_a_command_is_one_line_and_two_functions(extra):
    assert cli.main(["extra", "--seed", "7"]) == 7


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FaithlabError("no such\nfile; give another"), 2, "faithlab: error: no such file; give another\n"),
        (KeyboardInterrupt(), 130, "faithlab: interrupted\n"),
    ],
)
def test_errors_become_exit_status_and_one_line(extra, capsys, error, status, said):
    def command(args):
        raise error

    extra.command = command
    assert cli.main(["extra"]) == status
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(extra):
    def command(args):
        raise ZeroDivisionError

    extra.command = command
    with pytest.raises(ZeroDivisionError):
        cli.main(["extra"])


def test_unknown_lists_and_suggests():
    assert str(unknown("reasoner", "abcus", ["abacus", "smollm2"])) == (
        "unknown reasoner 'abcus'; did you mean 'abacus'? there are: abacus, smollm2"
    )
    assert str(unknown("task", "zzz", ["stories"])) == "unknown task 'zzz'; there are: stories"
    assert str(unknown("task", "zzz", [])) == "unknown task 'zzz'; there are none"
