"""Keeps an agent running from inside a worker, for routers that run theirs themselves."""

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
from typing import Final, Protocol

from router.agent.lock import KEEPER_FILE_NAME, AgentLock
from router.clock import Clock
from router.config.settings import child_environment

LONGEST_PAUSE_S: Final = 30.0
ENDING_LOOK_S: Final = 0.05
NICE: Final = 5
"""Where workers and the agent want the same core, the agent gets a quarter of it."""

_logger = logging.getLogger("router.agent")


class Child(Protocol):
    """A process that we started."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit code, or ``None`` while it runs; an ended one is reaped by this."""


class AgentSupervisor:
    """Starts an agent where there is none. Any number of keepers may watch one data directory.

    That there is never more than one agent is the lock's doing; a keeper only avoids vain starts.
    So of many workers that begin together one starts an agent, and the others need not.
    """

    def __init__(
        self, data_dir: Path, spawn: Callable[[], Child], *, clock: Clock | None = None
    ) -> None:
        self._lock = AgentLock(data_dir)
        self._turn = AgentLock(data_dir, KEEPER_FILE_NAME)
        """Held by the keeper whose child lives."""
        self._spawn = spawn
        self._clock = clock or Clock()
        self._child: Child | None = None
        self._failures = 0
        self._not_before_s = 0.0

    def tick(self) -> None:
        """See to it that an agent runs. Quick; to be called about once a second."""
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            self._child = None
            self._turn.release()
            self._note_end(code)
        if self._clock.monotonic_s() >= self._not_before_s and not self._lock.is_held():
            self._start()

    def _start(self) -> None:
        try:
            if not self._turn.take_at_once():
                return
            self._child = self._spawn()
        except OSError as error:
            self._turn.release()
            _logger.error("agent not started", extra={"reason": str(error)})
            self._note_end(1)
        else:
            _logger.info("agent spawned", extra={"agent_pid": self._child.pid})

    def _note_end(self, code: int) -> None:
        """An agent that was killed comes back at once; one that gave up, after a growing pause."""
        self._failures = self._failures + 1 if code > 0 else 0
        pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(self._failures - 1, 10)) if self._failures else 0
        self._not_before_s = self._clock.monotonic_s() + pause_s
        if code != 0:
            _logger.error("agent died", extra={"code": code, "next_start_in_s": pause_s})


def spawn_agent(master_pid: int) -> Child:
    """Start ``routerctl agent`` in a session of its own; raises ``OSError``.

    It outlives the worker that starts it, and no signal to the gateway's group reaches it: workers
    that end write until the last moment, and the agent ships that too. What binds the worker to a
    core does not bind the agent.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "agent", "--master-pid", str(master_pid)],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    _set_apart(child.pid)
    return child


def _set_apart(pid: int) -> None:
    """Let it run wherever the machine lets it, behind those whom a client waits for."""
    try:
        if sys.platform == "linux":
            # Of cores that a container may not use the kernel takes no notice.
            os.sched_setaffinity(pid, range(os.sysconf("SC_NPROCESSORS_CONF")))
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
    except OSError as error:
        # It has ended already, or the worker itself stands further behind: it ships all the same.
        _logger.debug("agent not set apart", extra={"reason": str(error)})


def end_agent(
    data_dir: Path,
    longest_s: float,
    *,
    master_pid: int,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Tell this gateway's agent to ship what is left and to end; True when it has, or none is.

    What it cannot ship in time stays on the disk for the next one.
    """
    lock = AgentLock(data_dir)
    pid = lock.holder()
    if pid is None or not _serves(pid, master_pid):
        return True
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:  # it has ended meanwhile, or it is another user's
        return not lock.is_held()
    for _ in range(max(1, round(longest_s / ENDING_LOOK_S))):
        if not lock.is_held():
            return True
        pause(ENDING_LOOK_S)
    return False


def _serves(pid: int, master_pid: int) -> bool:
    """Tell whether this is the agent of this gateway, and not another's or one started by hand."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # nobody can tell on this system
    return (b"--master-pid", b"%d" % master_pid) in itertools.pairwise(words)
