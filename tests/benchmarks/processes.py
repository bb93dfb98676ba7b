"""Processes of a benchmark run: pinned to a core, watched through /proc, ended by their own id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_TERM_GRACE_S = 8.0
# All that a subject inherits. `requests` walks the whole environment on each call in search of
# proxies, so that the control's figures would depend on how much the caller has exported.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")


class BenchmarkError(Exception):
    """The run cannot give figures that mean anything."""


@dataclass(frozen=True)
class Cores:
    """Which cores the gateway and everything else run on; None means not pinned."""

    gateway: frozenset[int] | None
    others: frozenset[int] | None

    @property
    def pinned(self) -> bool:
        """Whether the gateway has a core for itself."""
        return self.gateway is not None


def plan_cores() -> Cores:
    """One core for the gateway and the rest for everything else, where the system allows it."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(None, None)
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return Cores(None, None)
    return Cores(frozenset(allowed[:1]), frozenset(allowed[1:]))


def pin_current_process(cores: frozenset[int] | None) -> None:
    """Confine this process, and what it starts from now on, to `cores`."""
    if cores is not None:
        os.sched_setaffinity(0, cores)


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def python_of(tree: Path) -> str:
    """The interpreter that has a checkout installed: ours, or that of its virtual environment."""
    return sys.executable if tree == ROOT else str(tree / ".venv" / "bin" / "python")


def small_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """The few variables that every process needs, plus additions."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | {**additions}


class Child:
    """One started process, leader of its own session so that a Ctrl-C is ours to pass on."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        cores: frozenset[int] | None,
        log: Path,
        environment: Mapping[str, str] | None = None,
        piped: bool = False,
        tree: Path = ROOT,
    ) -> None:
        self.name = name
        self.log = log
        pipe = subprocess.PIPE if piped else subprocess.DEVNULL
        with log.open("ab") as log_file:
            self.popen = subprocess.Popen(
                [python_of(tree), *arguments],
                cwd=tree,
                env=small_environment(environment or {}),
                stdin=pipe,
                stdout=subprocess.PIPE if piped else log_file,
                stderr=log_file,
                start_new_session=True,
                preexec_fn=lambda: pin_current_process(cores),
            )
        print(f"# started {name} pid={self.popen.pid}", file=sys.stderr, flush=True)

    def fail_if_ended(self) -> None:
        """Raise BenchmarkError with the end of the log when the process is gone."""
        if self.popen.poll() is not None:
            raise BenchmarkError(
                f"{self.name} ended with status {self.popen.returncode}:\n{self.log_tail()}"
            )

    def wait(self, timeout_s: float) -> int:
        """The exit status of a process that ends by itself; BenchmarkError when it does not."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(
                f"{self.name} did not end within {timeout_s:.0f} s:\n{self.log_tail()}"
            ) from None

    def log_tail(self) -> str:
        """The last lines that the process wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        """End the process and whatever is left of its session; returns when it is gone."""
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(_TERM_GRACE_S)
        # The group outlives its leader when the leader was killed before its children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def stopped_at_the_end() -> Iterator[list[Child]]:
    """A list of children, all of which are stopped, last one first, when the block is left.

    A second Ctrl-C does not interrupt the stopping.
    """
    children: list[Child] = []
    try:
        yield children
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for child in reversed(children):
            child.stop()
        signal.signal(signal.SIGINT, before)


def worker_pids(master_pid: int) -> list[int]:
    """The gunicorn workers of a master: its children that were forked and not executed.

    Empty where there is no /proc. A worker keeps its master's command line, or says `worker` in
    it where setproctitle is installed; an agent that the master executes does neither.
    """
    master_command = _read(f"/proc/{master_pid}/cmdline")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if _stat_fields(int(entry.name))[1:2] != [str(master_pid)]:
            continue
        command = _read(f"/proc/{entry.name}/cmdline")
        if command == master_command or "worker" in command:
            found.append(int(entry.name))
    return sorted(found)


def cpu_s(pids: Sequence[int]) -> float | None:
    """CPU time that the processes have used so far, user plus system; None where unknown."""
    fields = [_stat_fields(pid) for pid in pids]
    if not fields or not all(fields):
        return None
    ticks = sum(int(each[11]) + int(each[12]) for each in fields)
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Sequence[int]) -> float | None:
    """Resident memory of the processes together, shared pages counted in each; None if unknown."""
    pages = [_read(f"/proc/{pid}/statm").split() for pid in pids]
    if not pages or not all(pages):
        return None
    return sum(int(each[1]) for each in pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _stat_fields(pid: int) -> list[str]:
    """Fields 3 and following of /proc/<pid>/stat; the name before them may hold blanks."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
