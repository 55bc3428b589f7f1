"""Benchmarks are collected when this folder is named (`make bench`), never by a plain `pytest`.

`BENCH_DRY=1 make bench` prints the table and leaves `data/results/bench.json` as it is: for a machine that is busy.
"""

import dataclasses
import os
import shlex
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DRY = bool(os.environ.get("BENCH_DRY"))
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")  # before anything was measured
sys.path.insert(0, str(HERE.parent))  # for the tiny models and oracles of the tests

import harness  # noqa: E402


def pytest_collect_file(file_path, parent):
    asked = [Path(str(a).split("::")[0]).resolve() for a in parent.config.args]
    # a file that is named itself is collected by pytest anyway
    if (
        file_path not in asked
        and file_path.name.startswith("bench_")
        and any(a == HERE or HERE in a.parents for a in asked)
    ):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture(scope="session")
def rows(request):
    """The rows of this run; the table follows at its end. A run of all benchmarks, in which none failed, leaves no rows
    of earlier ones: what is not measured any more has no command."""
    measured = []
    yield measured
    everything = [Path(str(a)).resolve() for a in request.config.args] == [HERE]
    if everything and not (DRY or request.config.option.keyword or request.session.testsfailed):
        harness.keep_only({row.name for row in measured})
    if measured:
        print(f"\n\n{harness.table(measured)}\n")
        print(f"machine: {harness.machine()}; load before: {LOAD:.1f}")
        if LOAD > 0.5:
            print("other programs were running, so the rates are too low; the ratios suffer less")
        if not DRY:
            print(f"written to {harness.RESULTS.relative_to(HERE.parents[1])}")


@pytest.fixture
def bench_row(rows, request):
    """`bench_row(row)` takes a row that was measured by other means than time."""
    node = request.node
    test = f"{Path(node.path).relative_to(HERE.parents[1])}::{node.name}"
    command = f"python -m pytest {shlex.quote(test)} -m '' -s"  # by -k, names with commas cannot be asked for

    def keep(row: harness.Row) -> None:  # at once, so that a run cut short loses nothing that it has measured
        row = dataclasses.replace(row, command=command)
        rows.append(row)
        print(f"\n{row.name}: {row.ratio:.3g}x, {row.verdict}", flush=True)
        if not DRY:
            harness.write(row, LOAD)

    return keep


@pytest.fixture
def bench(bench_row):
    """`bench(name, ours, plain, unit=, aim=)` times one comparison."""
    return lambda *args, **options: bench_row(harness.compare(*args, **options))
