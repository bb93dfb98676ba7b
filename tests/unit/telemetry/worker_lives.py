"""Plays gunicorn's master: forks workers, one after another, that count as real ones do.

    python worker_lives.py DIRECTORY LIVES

LIVES is a JSON list of objects with the fields of ``Life``. Like gunicorn's, the workers of a host
are forks of one process, and none of them says goodbye to its metric files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from router.telemetry.metrics import Metrics, use_worker_slot


@dataclass(frozen=True)
class Life:
    """What one worker does before it ends; ``killed`` by SIGKILL, else by a quiet exit."""

    slot: int
    calls: int = 0
    running: int = 0
    revision: int = 1
    killed: bool = False


def live(directory: Path, life: Life) -> None:
    """Count, publish, end without cleaning up."""
    use_worker_slot(life.slot, directory)
    metrics = Metrics(CollectorRegistry())
    for _ in range(life.calls):
        metrics.count_request("native.inference", 200, "completed", 0.02)
        metrics.count_usage("reported", 3, 5)
        metrics.count_attempt("primary", "none", 0.01)
        metrics.count_overhead(0.001)
        metrics.count_cost(7)
    metrics.running = life.running
    metrics.publish(life.revision)
    if life.killed:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Let all lives pass; any that ends otherwise than it should is an error."""
    directory = Path(sys.argv[1])
    for fields in json.loads(sys.argv[2]):
        life = Life(**fields)
        pid = os.fork()
        if pid == 0:
            live(directory, life)
        _, status = os.waitpid(pid, 0)
        expected = -signal.SIGKILL if life.killed else 0
        if os.waitstatus_to_exitcode(status) != expected:
            raise SystemExit(f"{life} ended with {status}")


if __name__ == "__main__":
    main()
