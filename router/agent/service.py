"""The agent process: a thread for each sink, a tick once a second, and an orderly end."""

from __future__ import annotations

import dataclasses
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.agent.adoption.inheritance import Inheritance
from router.agent.adoption.lease_settler import KeepCharges
from router.agent.adoption.unsent_reservations import WindowsOf
from router.agent.dead_letters import DeadLetters
from router.agent.kafka.producer import KafkaConfig, limit_library_log
from router.agent.kafka.sink import KafkaSink
from router.agent.reading.merge import MergedFrames
from router.agent.reading.read_ahead import ReadAhead
from router.agent.shipper import Shipper, sink_report
from router.agent.sinks import LogSink, Sink, StoreSink
from router.agent.status import write_report
from router.clock import Clock
from router.errors import RecordsUnavailable
from router.records.record_types import format_timestamp
from router.redis.client import RedisClient
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import Position
from router.spool.reader import SpoolReader
from router.store.record_store import RecordStore

TICK_S: Final = 1.0
_POLL_S: Final = 0.05
_THREADS_END_S: Final = 4.0
SPOOL_NAME: Final = "spool"

_logger = logging.getLogger("router.agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What an agent ships, where to, and how long it may take to end."""

    data_dir: Path
    record_store_url: str
    audit_key: bytes
    """Signs the tips of audit chains."""
    kafka: KafkaConfig | None = None
    audit_retention_days: int = 90
    writers_wait_s: float = 30.0
    """How long an ending agent waits for workers that still write."""
    drain_s: float = 10.0
    """How long it then ships what they left."""
    master_pid: int | None = None
    """The agent ends with this process, after its writers have ended or had the time to."""
    open_redis: Callable[[], RedisClient] | None = None
    """Where leases are settled that workers left open; ``None`` where a budget service has them."""
    keep_charges: KeepCharges | None = None
    """Where a budget service has the leases: has workers tell it of those that were left open."""
    lease_s: float = 900.0
    windows_of: WindowsOf = lambda _organization_id, _key_id: ()
    """The budgets in which calls may have been killed before they were sent."""


class Agent:
    """Ships what is spooled until it is told to stop. The caller holds the agent's lock."""

    def __init__(self, config: AgentConfig, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or Clock()
        self._reader = SpoolReader(config.data_dir / SPOOL_NAME)
        self._ending = threading.Event()
        self._shorten_deadline = threading.Event()
        self._stop = threading.Event()
        sinks = self._sinks()
        read_ahead = ReadAhead(len(sinks))
        self._shippers = [self._shipper(sink, read_ahead) for sink in sinks]
        self._logged_damage = dataclasses.asdict(self._reader.damage)
        self._inheritance = Inheritance(
            config.data_dir,
            self._reader,
            open_redis=config.open_redis,
            keep_charges=config.keep_charges,
            lease_s=config.lease_s,
            clock=self._clock,
            windows_of=config.windows_of,
        )
        self._troubles: set[str] = set()
        self._logged_unreadable: set[str] = set()

    def stop(self) -> None:
        """Begin to end; called twice, do not wait for writers. Signal handlers may call it."""
        if self._ending.is_set():
            self._shorten_deadline.set()
        self._ending.set()

    def run(self) -> None:
        """Ship until :meth:`stop` or the end of the master, then end in order."""
        threads = [
            threading.Thread(target=shipper.run, name=shipper.sink.name, daemon=True)
            for shipper in self._shippers
        ]
        for thread in threads:
            thread.start()
        self._inheritance.start()
        sinks = [shipper.sink.name for shipper in self._shippers]
        _logger.info("agent started", extra={"sinks": sinks})
        master = _Master(self._config.master_pid)
        self._tick()
        while not self._ending.wait(TICK_S):
            self._tick()
            if master.is_gone():
                # Writers that still live are draining, or they belong to another master. That one
                # starts an agent with its own settings as soon as this one has ended.
                break
        self._end(threads)

    def _sinks(self) -> list[Sink]:
        config = self._config
        store = RecordStore(config.record_store_url, audit_key=config.audit_key)
        days = config.audit_retention_days
        store_sink = StoreSink(store, audit_retention_days=days, clock=self._clock)
        if config.kafka is None:
            return [store_sink, LogSink()]
        limit_library_log()
        return [store_sink, KafkaSink(config.kafka, stop=self._stop, clock=self._clock)]

    def _shipper(self, sink: Sink, read_ahead: ReadAhead) -> Shipper:
        data_dir = self._config.data_dir
        checkpoints = Checkpoints(checkpoint_path(data_dir, sink.name))
        merged = MergedFrames(
            self._reader, checkpoints.load(), clock=self._clock, read_ahead=read_ahead
        )
        dead_letters = DeadLetters(data_dir, sink.name, self._clock)
        return Shipper(sink, merged, checkpoints, dead_letters, stop=self._stop, clock=self._clock)

    def _end(self, threads: list[threading.Thread]) -> None:
        """Wait for the writers, ship what they left, leave the rest on disk."""
        _logger.info("agent is ending")
        self._wait(self._config.writers_wait_s, self._have_writers_ended, self._shorten_deadline)
        self._attempt("adopt", self._inheritance.end)
        self._wait(self._config.drain_s, self._is_all_shipped, threading.Event())
        self._stop.set()
        ends_s = self._clock.monotonic_s() + _THREADS_END_S
        for thread, shipper in zip(threads, self._shippers, strict=True):
            thread.join(max(0.0, ends_s - self._clock.monotonic_s()))
            if not thread.is_alive():
                shipper.sink.close()
        self._inheritance.close()
        self._tick(state="ended")
        try:
            left_bytes: int | None = self._behind_bytes()
        except OSError:
            left_bytes = None
        self._reader.close()
        _logger.info("agent ended", extra={"left_bytes": left_bytes})

    def _wait(self, timeout_s: float, done: Callable[[], bool], cut: threading.Event) -> None:
        ends_s = self._clock.monotonic_s() + timeout_s
        tick_at_s = 0.0
        while not _holds(done) and self._clock.monotonic_s() < ends_s:
            if self._clock.monotonic_s() >= tick_at_s:
                tick_at_s = self._clock.monotonic_s() + TICK_S
                self._tick(state="ending")
            if cut.wait(_POLL_S):
                return

    def _have_writers_ended(self) -> bool:
        """An unreadable writer counts as ended: what it writes is for the next agent."""
        return not any(
            info.alive and info.trouble is None and not self._inheritance.is_own(info.writer_id)
            for info in self._reader.writers()
        )

    def _is_all_shipped(self) -> bool:
        """Including the ends of dead writers, for which sinks finish the writers' chains."""
        return self._behind_bytes() == 0 and all(
            position.segment > max(info.segments)
            for info in self._reader.writers()
            if info.segments and not info.alive
            for position in self._saved_of(info.writer_id)
        )

    def _saved_of(self, writer_id: str) -> list[Position]:
        start = Position(writer_id, 0, 0)
        return [shipper.saved.get(writer_id, start) for shipper in self._shippers]

    def _behind_bytes(self) -> int:
        """How far the slowest sink is behind, by the checkpoints on disk."""
        return max(self._reader.backlog_bytes(shipper.saved) for shipper in self._shippers)

    # --- once a second -----------------------------------------------------------------------

    def _tick(self, state: str = "running") -> None:
        """Free room and report. Shipping goes on when the disk refuses either."""
        self._attempt("adopt", self._inheritance.step)
        self._attempt("remove", self._remove)
        self._attempt("report", lambda: write_report(self._config.data_dir, self._report(state)))
        self._log_damage()
        self._log_unreadable()

    def _remove(self) -> None:
        remove_acknowledged(
            self._reader,
            [shipper.saved for shipper in self._shippers],
            may_remove=self._inheritance.is_adopted,
        )

    def _attempt(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, ValueError, RecordsUnavailable) as error:
            if what not in self._troubles:
                self._troubles.add(what)
                _logger.error("maintenance failed", extra={"step": what, "reason": str(error)})
        else:
            self._troubles.discard(what)

    def _report(self, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "pid": os.getpid(),
            "updated_at": format_timestamp(self._clock.now_s()),
            "sinks": {shipper.sink.name: self._sink_report(shipper) for shipper in self._shippers},
            "interrupted": self._inheritance.interrupted,
            "damage": dataclasses.asdict(self._reader.damage),
            "unreadable": sorted(self._reader.troubles),
        }

    def _sink_report(self, shipper: Shipper) -> dict[str, Any]:
        report = sink_report(shipper.progress, self._reader.backlog_bytes(shipper.saved))
        if isinstance(shipper.sink, LogSink):
            report["dropped"] = shipper.sink.dropped
        return report

    def _log_damage(self) -> None:
        damage = dataclasses.asdict(self._reader.damage)
        if damage != self._logged_damage:
            self._logged_damage = damage
            _logger.error("spool damaged, the rest is delivered", extra={"damage": damage})

    def _log_unreadable(self) -> None:
        troubles = self._reader.troubles
        for name in sorted(troubles.keys() - self._logged_unreadable):
            facts = {"writer_id": name, "reason": troubles[name]}
            _logger.error("spool unreadable", extra=facts)
        self._logged_unreadable = set(troubles)


def remove_acknowledged(
    spool: SpoolReader,
    saved: Sequence[Mapping[str, Position]],
    *,
    may_remove: Callable[[str], bool] = lambda _writer_id: True,
) -> int:
    """Remove the segments that every sink has passed; how many. Raises ``OSError``. Those of a dead
    writer stay until it ``may_remove`` them.

    ``saved`` are the checkpoints on disk: one that exists only in memory would be older after a
    power failure than what was removed. A writer whose segments cannot be removed does not keep
    others from being removed; the first error is raised in the end.
    """
    removed = 0
    fault: OSError | None = None
    for info in spool.writers():
        if not info.alive and not may_remove(info.writer_id):
            continue
        start = Position(info.writer_id, 0, 0)
        passed = min(positions.get(info.writer_id, start).segment for positions in saved)
        try:
            for number in info.segments:
                if number < passed:
                    spool.remove_segment(info.writer_id, number)
                    removed += 1
        except OSError as error:
            fault = fault or error
    if fault is not None:
        raise fault
    return removed


def _holds(condition: Callable[[], bool]) -> bool:
    """False when the disk does not tell: the wait then ends by its timeout."""
    try:
        return condition()
    except OSError:
        return False


class _Master:
    """The process that the agent serves, identified by a pidfd where possible: pids are reused."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._fd: int | None = None
        if pid is not None and sys.platform == "linux":
            try:
                self._fd = os.pidfd_open(pid)
            except OSError:
                pass  # it is gone already, or the kernel is old: the pid has to do

    def is_gone(self) -> bool:
        """Tell whether the process has ended; never true without a pid."""
        if self._pid is None:
            return False
        if self._fd is not None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return bool(poll.poll(0))
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
