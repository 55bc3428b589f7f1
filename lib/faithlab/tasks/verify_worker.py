"""The process in which math-verify runs: reads requests from stdin, writes verdicts to stdout, one JSON line each.

Run by path from `faithlab.tasks.verify`, which kills and replaces it when a comparison takes too long. It imports
nothing from faithlab, so that it starts in about a second.

Request `{"gold": str, "answer": str, "seconds": float}`; reply `{"equal": bool}` or `{"error": str}`. The first line
written is `{"ready": true}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys

MEMORY_LIMIT = 4 * 2**30  # bytes of address space; symbolic powers can ask for all there is


def limit_memory() -> None:
    """Bound this process's address space, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's deadline protects there
        return
    _lower(resource, resource.RLIMIT_AS, MEMORY_LIMIT)


def limit_time(seconds: float) -> None:
    """Make the kernel end this process after `seconds` more of work, should the parent die before its deadline."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    _lower(resource, resource.RLIMIT_CPU, allowed)


def _lower(resource, kind: int, limit: int) -> None:
    """Set the soft limit, no higher than the hard one. Where the system refuses, the parent's deadline protects."""
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main() -> None:
    """Answer requests, one line each, until stdin closes."""
    # math-verify and sympy may print; the verdicts need stdout for themselves.
    out, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    def read(text: str) -> list:
        # No timeouts inside: theirs rest on SIGALRM, which cannot interrupt one long big-integer operation.
        return parse(f"${text}$", parsing_timeout=None)

    limit_memory()
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        limit_time(request["seconds"])
        try:
            gold, answer = read(request["gold"]), read(request["answer"])
            reply = {"equal": bool(verify(gold, answer, timeout_seconds=None, raise_on_error=True))}
        except Exception as error:  # whatever sympy raises is a missing verdict, and the parent counts it
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
