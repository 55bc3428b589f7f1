"""Execute one notebook: our own kernel, one deadline for the whole notebook, the traceback on disk when it fails.

The kernel is described afresh for every run, because the kernelspec named `python3` that Jupyter would find may belong
to another Python. Its environment closes the model hub, and keeps the user's IPython start-up files out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faithlab.errors import FaithlabError
from faithlab.results import read_results, write_atomically


@dataclass(frozen=True)
class Outcome:
    """How the execution of a notebook ended: status "ok", "failed" or "timeout"."""

    status: str
    seconds: float
    peak_mb: float | None
    message: str = ""
    traceback: Path | None = None


@contextlib.contextmanager
def kernel_of_this_python(*, online: bool) -> Iterator[None]:
    """Within the block, the kernel `python3` is the interpreter that runs faithlab, with the environment of a run.

    Args:
        online: leave the model hub open; otherwise HF_HUB_OFFLINE=1 stands in the kernel's environment.

    Raises:
        FaithlabError: ipykernel is not installed beside faithlab.
    """
    if importlib.util.find_spec("ipykernel") is None:
        raise FaithlabError(f"no Jupyter kernel here; install one with: {sys.executable} -m pip install ipykernel")
    offline = "0" if online else "1"
    with tempfile.TemporaryDirectory(prefix="faithlab-kernel-", ignore_cleanup_errors=True) as folder:
        # Log level 50: the kernel's own log would mix into ours; what a cell prints goes into the notebook anyway.
        launcher = ["ipykernel_launcher", "--IPKernelApp.log_level=50"]
        spec = {
            "argv": [sys.executable, "-m", *launcher, "-f", "{connection_file}"],
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "env": {
                "HF_HUB_OFFLINE": offline,
                "HF_DATASETS_OFFLINE": offline,
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONHASHSEED": "0",
                # A caller's MPLBACKEND=Agg would leave every figure out of the notebook.
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                "IPYTHONDIR": str(Path(folder) / "ipython"),
                # tqdm's advice to install widgets would stand in every notebook; text bars are what we want.
                "PYTHONWARNINGS": "ignore:IProgress not found",
            },
        }
        home = Path(folder) / "kernels" / "python3"
        home.mkdir(parents=True)
        (home / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


class _Watch(threading.Thread):
    """Samples the memory of the kernels that this process started, and ends those that are left over."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()
        self._others: set[int] = set()
        self._others = {kernel.pid for kernel in self._kernels()}

    def _kernels(self) -> list[Any]:
        import psutil  # a dependency of ipykernel

        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.pid not in self._others and "ipykernel_launcher" in child.cmdline():
                    found.append(child)
        return found

    def run(self) -> None:
        import psutil

        while not self._done.wait(0.5):
            with contextlib.suppress(psutil.Error):
                tree = [p for kernel in self._kernels() for p in [kernel, *kernel.children(recursive=True)]]
                self.peak = max(self.peak, sum(p.memory_info().rss for p in tree))

    def stop(self) -> float | None:
        """Stop sampling; the peak in megabytes, or None if the run was too short for a sample."""
        self._done.set()
        self.join()
        for kernel in self._kernels():  # only after a second Ctrl-C, which cuts the orderly end short
            with contextlib.suppress(Exception):
                for process in [*kernel.children(recursive=True), kernel]:
                    process.kill()
        return self.peak / 1e6 or None


def execute(source: Path, working: Path, parameters: Mapping[str, Any], timeout: float) -> Outcome:
    """Run a checked notebook with papermill in `working`, its executed copy being `working/<stem>.ipynb`.

    Call it inside `kernel_of_this_python`. It does not raise for what happens inside the notebook; the outcome says it.
    On KeyboardInterrupt the kernel is ended first.

    Args:
        source: the notebook.
        working: an existing, empty folder.
        parameters: the values to inject, of names that the notebook has.
        timeout: seconds for the whole notebook.

    Raises:
        FaithlabError: the kernel does not start, or the executed copy cannot be written.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # What papermill logs as an error reaches the caller as an outcome; without a handler Python would print it too.
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    copy = working / source.name
    start = time.monotonic()
    deadline = start + timeout
    watch = _Watch()
    watch.start()
    status, message, text = "ok", "", ""
    try:
        papermill.execute_notebook(
            # papermill formats paths with str.format: braces in a folder's name must survive.
            *(str(path.absolute()).replace("{", "{{").replace("}", "}}") for path in (source, copy)),
            dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(working.absolute()),
            progress_bar=sys.stderr.isatty(),
            # nbclient counts per cell and takes 0 for "no limit".
            timeout_func=lambda cell: max(0.1, deadline - time.monotonic()),
            # Its default of 4 s fails at random on a busy machine.
            iopub_timeout=60,
        )
    except KeyboardInterrupt:
        # The cell's abandoned task would be reported when it is collected, long after the user knows.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except PapermillExecutionError as error:
        status = "failed"
        message = f"in cell In [{error.exec_count}]: {_last_line(error.ename, error.evalue)}"
        text = f"{message}\n\n{error.source}\n\n" + "\n".join(error.traceback)
    except CellTimeoutError:
        cell = _running_cell(copy)
        status, message = (
            "timeout",
            f"its {timeout:g} s ran out in cell In [{cell[0]}]; allow more with --timeout SECONDS",
        )
        text = f"{message}\n\n{cell[1]}"
    except DeadKernelError:
        cell = _running_cell(copy)
        status, message = (
            "failed",
            f"the kernel died in cell In [{cell[0]}], often for lack of memory; try --profile tiny",
        )
        text = f"{message}\n\n{cell[1]}"
    except OSError as error:
        why = error.strerror or error
        raise FaithlabError(f"cannot work in {working}: {why}; free space, or choose another --output") from error
    except RuntimeError as error:
        # jupyter_client's words for a kernel that ends, or stays silent, before the first cell.
        if not str(error).startswith(("Kernel died before", "Kernel didn't respond")):
            raise
        trial = f"{sys.executable} -m ipykernel_launcher --version"
        raise FaithlabError(f"the Jupyter kernel does not start ({error}); find out why with: {trial}") from error
    finally:
        peak = watch.stop()
    seconds = time.monotonic() - start
    if status == "ok":
        status, message = _check_results(source.stem, working)
    traceback = None
    if text:
        traceback = working / f"{source.stem}.traceback.txt"
        write_atomically(traceback, f"{source.name} {strip_ansi(text).rstrip()}\n")
    return Outcome(status, seconds, peak, message, traceback)


def _check_results(stem: str, working: Path) -> tuple[str, str]:
    """Status and message: a notebook that ends without a sound results.json of its own has failed."""
    path = working / "results.json"
    if not path.exists():
        return "failed", "ended without results.json; let its last cell call faithlab.notebooks.write_results"
    try:
        content = read_results(path)
    except FaithlabError as error:
        return "failed", str(error)
    if content.get("notebook") != stem:
        return "failed", f"its results.json says notebook {content.get('notebook')!r}; write notebook={stem!r}"
    return "ok", ""


def _running_cell(copy: Path) -> tuple[int | str, str]:
    """The last cell that was started in an executed copy: its number, as in its `In [..]`, and its source."""
    import nbformat

    with contextlib.suppress(OSError, ValueError):
        cells = nbformat.read(copy, as_version=4).cells
        code = [c for c in cells if c.cell_type == "code"]
        started = [(i, c.source) for i, c in enumerate(code, 1) if c.metadata.get("papermill", {}).get("start_time")]
        if started:
            return started[-1]
    return "?", ""


def strip_ansi(text: str) -> str:
    """Text without terminal colours and other escape sequences."""
    return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])", "", text)


def _last_line(name: str, value: str) -> str:
    """`ValueError: what` as the last line of a traceback has it; the first line only of a long message."""
    first = strip_ansi(value).strip().splitlines()[0] if value.strip() else ""
    return f"{name}: {first}" if first else name


@contextlib.contextmanager
def terminate_like_ctrl_c() -> Iterator[None]:
    """Within the block, SIGTERM (a cancelled CI job) ends a run as cleanly as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
