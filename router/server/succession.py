"""A reload ends old workers when new ones serve, and not before."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gunicorn.arbiter import Arbiter

from router.server.worker import RouterWorker

BOOT_LIMIT_S: Final = 30.0
"""How long the old workers stay for new ones that do not come up."""

SUCCEEDED: Final = signal.SIGWINCH
"""Tells a worker, before TERM does, that others serve in its place; gunicorn's own ignore it."""

_POLL_S: Final = 0.05
_ENDS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


def await_successors(server: Arbiter) -> None:
    """Make ``server`` wait, when it has more workers than it needs, until the newest ones serve.

    gunicorn itself ends the old workers as soon as the new processes exist. While those load the
    application nobody would accept connections, and with another reload in that time they are
    ended before they have served at all.
    """
    manage_workers: Callable[[], None] = server.manage_workers

    def manage() -> None:
        if _await_newest(server):
            for worker in _by_age(server)[: -server.num_workers]:
                server.kill_worker(worker.pid, SUCCEEDED)
        manage_workers()

    server.manage_workers = manage


def _by_age(server: Arbiter) -> list[RouterWorker]:
    return sorted(server.WORKERS.values(), key=lambda worker: worker.age)


def _await_newest(server: Arbiter) -> bool:
    """Whether the newest workers serve."""
    deadline_s = time.monotonic() + BOOT_LIMIT_S
    pending: list[int] = []
    while _has_successors_to_come(server) and time.monotonic() < deadline_s:
        with suppress(queue.Empty):
            while True:
                pending.append(server.SIG_QUEUE.get_nowait())
        if not _ENDS.isdisjoint(pending):
            break  # all of them are to end
        time.sleep(_POLL_S)
        server.reap_workers()
    for each in pending:
        server.SIG_QUEUE.put_nowait(each)
    return not _has_successors_to_come(server)


def _has_successors_to_come(server: Arbiter) -> bool:
    """Whether there are old workers to end and new ones that do not serve yet."""
    workers = _by_age(server)
    surplus = len(workers) - server.num_workers
    # A worker begins to note its heartbeat when it listens.
    return surplus > 0 and any(
        worker.tmp.last_update() == worker.forked_s for worker in workers[surplus:]
    )
