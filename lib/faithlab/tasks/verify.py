"""Whether two mathematical expressions are equal, by math-verify, in a process of its own that can be killed.

math-verify guards itself with SIGALRM. That fails silently in threads, cannot interrupt one long big-integer operation
(`9**9**9**9`), and cancels the alarms of others (pytest-timeout's, for one). So it runs in a worker process with a
deadline kept from outside. The worker starts at the first call and is replaced when a deadline passes.

No function here raises. A comparison without a verdict counts as unequal and is counted in `counts()`:

    >>> equal(r"\\frac{1}{2}", "0.5")
    True
    >>> counts()["timeouts"]
    0
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

MAX_CHARS = 200  # longer expressions are refused: no final answer of the tasks here comes near
SECONDS = 3.0
START_SECONDS = 60.0  # importing sympy on a cold, busy disk

_WORKER = Path(__file__).with_name("verify_worker.py")
# Powers of powers, exponents and factorials of four digits: never an answer, always a wait for the deadline.
_POWER = r"(?:\^|\*\*)[\s{(]*"
_HOPELESS = re.compile(rf"{_POWER}-?[0-9]{{4}}|{_POWER}[0-9.]{{1,9}}[\s}})]*(?:\^|\*\*)|[0-9]{{4}}\s?!")

_counts = {"calls": 0, "timeouts": 0, "errors": 0, "refused": 0}


def counts() -> dict[str, int]:
    """How many comparisons were asked for in this process, and how many of them got no verdict and why.

    `calls` all; `timeouts` the deadline passed; `errors` math-verify raised or its process died; `refused` too long or
    a tower of powers, never sent.
    """
    return dict(_counts)


def unjudged() -> str:
    """What to tell whoever reads a share of right answers: how many comparisons got no verdict; "" for none."""
    none = {name: n for name, n in _counts.items() if name in ("timeouts", "errors") and n}
    if not none:
        return ""
    listing = ", ".join(f"{n} {name}" for name, n in none.items())
    return (
        f"{sum(none.values())} of {_counts['calls']} comparisons of answers count as unequal without a verdict of "
        f"math-verify ({listing})"
    )


def equal(gold: str, answer: str, *, seconds: float = SECONDS) -> bool:
    """Whether `answer` equals `gold` as mathematics; False, and counted, where no verdict comes in `seconds`.

    The order matters little: math-verify reads an answer "x = 14" as 14.
    """
    _counts["calls"] += 1
    if max(len(gold), len(answer)) > MAX_CHARS or _HOPELESS.search(gold) or _HOPELESS.search(answer):
        _counts["refused"] += 1
        return False
    try:
        return _ask(gold, answer, seconds)
    except TimeoutError:
        _counts["timeouts"] += 1
    except (OSError, ValueError, RuntimeError):
        _counts["errors"] += 1
    return False


class _Worker:
    """The running process, and the thread that carries its lines into a queue (select does not work on pipes
    everywhere)."""

    def __init__(self) -> None:
        # -P keeps this folder, whose modules have short names, off the worker's import path. A session of its own
        # keeps Ctrl-C in a notebook from ending it.
        command = [sys.executable, "-P", str(_WORKER)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._carry, args=(self.process.stdout, self.lines), daemon=True).start()
        try:
            self._read(START_SECONDS)
        except TimeoutError as error:  # not the fault of the expression
            raise RuntimeError("the math-verify process did not start") from error

    @staticmethod
    def _carry(stream, lines: queue.Queue[str]) -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put("")  # the process has ended

    def _read(self, seconds: float) -> dict:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            self.kill()
            raise TimeoutError from None
        if not line:
            self.kill()
            raise RuntimeError("the math-verify process ended")
        return json.loads(line)

    def ask(self, gold: str, answer: str, seconds: float) -> dict:
        self.process.stdin.write(json.dumps({"gold": gold, "answer": answer, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return self._read(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # the buffer may hold a request that the dead process will never read
            self.process.stdin.close()


_lock = threading.Lock()
_worker: _Worker | None = None
_retry_at = 0.0  # after a failed start, do not pay for another at once


@functools.lru_cache(maxsize=4096)
def _ask(gold: str, answer: str, seconds: float) -> bool:
    """The verdict; only verdicts are cached. Raises TimeoutError, or RuntimeError or OSError where there is none."""
    global _worker, _retry_at
    with _lock:
        if _worker is None or _worker.process.poll() is not None:
            if time.monotonic() < _retry_at:
                raise RuntimeError("the math-verify process did not start a moment ago")
            _retry_at = time.monotonic() + 60
            if _worker is not None:  # died by itself: its pipes are closed
                _worker.kill()
            _worker = _Worker()
            _retry_at = 0.0
        try:
            reply = _worker.ask(gold, answer, seconds)
        except BaseException:  # also Ctrl-C: a late verdict must not be read as the next question's
            _worker.kill()
            _worker = None
            raise
    if "error" in reply:
        raise ValueError(reply["error"])
    return reply["equal"]


def _stop() -> None:
    if _worker is not None:
        _worker.kill()


def _forget() -> None:
    """In a forked child the worker belongs to the parent: sharing its pipes would mix up verdicts."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
