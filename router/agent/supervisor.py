"""The agent's supervisor: each worker has one, and together they keep one agent running."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from router.agent.lock import SUPERVISOR_LOCK, AgentLock
from router.clock import Clock
from router.config.settings import child_environment

LONGEST_PAUSE_S: Final = 30.0
END_POLL_S: Final = 0.05
NICE: Final = 5
"""When workers and the agent compete for a core, the agent gets about a quarter of it."""

_logger = logging.getLogger("router.agent")


Child = subprocess.Popen[bytes]


class AgentSupervisor:
    """Starts an agent where there is none. Any number of supervisors may watch a data directory.

    The agent's lock guarantees that there is one agent at most. The supervisors' own lock only
    avoids vain starts: of many workers that begin together one starts an agent.
    """

    def __init__(
        self, data_dir: Path, spawn: Callable[[], Child], *, clock: Clock | None = None
    ) -> None:
        self._lock = AgentLock(data_dir)
        self._supervisor_lock = AgentLock(data_dir, SUPERVISOR_LOCK)
        """Held by the supervisor whose child lives."""
        self._spawn = spawn
        self._clock = clock or Clock()
        self._child: Child | None = None
        self._failures = 0
        self._not_before_s = 0.0

    def tick(self) -> None:
        """Start an agent if none runs. Quick; to be called about once a second."""
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            self._child = None
            self._supervisor_lock.release()
            self._note_end(code)
        if self._clock.monotonic_s() >= self._not_before_s and not self._lock.is_held():
            self._start()

    def _start(self) -> None:
        try:
            if not self._supervisor_lock.take_at_once():
                return
            self._child = self._spawn()
        except OSError as error:
            self._supervisor_lock.release()
            _logger.error("agent not started", extra={"reason": str(error)})
            self._note_end(1)
        else:
            _logger.info("agent spawned", extra={"agent_pid": self._child.pid})

    def _note_end(self, code: int) -> None:
        """Restart a killed agent at once, one that failed after a growing pause."""
        self._failures = self._failures + 1 if code > 0 else 0
        pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(self._failures - 1, 10)) if self._failures else 0
        self._not_before_s = self._clock.monotonic_s() + pause_s
        if code != 0:
            _logger.error("agent died", extra={"code": code, "next_start_in_s": pause_s})


def spawn_agent(master_pid: int) -> Child:
    """Start ``routerctl agent`` in a session of its own; raises ``OSError``.

    It outlives the worker that starts it, and no signal to the gateway's process group reaches it:
    workers that end write until the last moment, and the agent ships that too. The worker's binding
    to a core does not apply to the agent.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "agent", "--master-pid", str(master_pid)],
        env=child_environment(settings=True),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    _lower_priority(child.pid)
    return child


def _lower_priority(pid: int) -> None:
    """Let the agent run on every core, but behind processes that clients wait for."""
    try:
        if sys.platform == "linux":
            # The kernel ignores cores that the container may not use.
            os.sched_setaffinity(pid, range(os.sysconf("SC_NPROCESSORS_CONF")))
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
    except OSError as error:
        # It has ended already, or the worker itself has a lower priority: it ships all the same.
        _logger.debug("agent priority unchanged", extra={"reason": str(error)})


def end_agent(
    data_dir: Path,
    timeout_s: float,
    *,
    master_pid: int,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Tell this gateway's agent to ship the rest and to end; True when it has, or none runs.

    What it cannot ship in time stays on disk for the next agent.
    """
    lock = AgentLock(data_dir)
    pid = lock.holder()
    if pid is None or not _serves(pid, master_pid):
        return True
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:  # it has ended meanwhile, or it is another user's
        return not lock.is_held()
    for _ in range(max(1, round(timeout_s / END_POLL_S))):
        if not lock.is_held():
            return True
        pause(END_POLL_S)
    return False


def _serves(pid: int, master_pid: int) -> bool:
    """Tell whether the agent belongs to this gateway, not to another one and not to an operator."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # the system does not tell
    return (b"--master-pid", b"%d" % master_pid) in itertools.pairwise(arguments)
