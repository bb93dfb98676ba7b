"""Where records are safe before a call is answered: one append-only log for each process.

What :meth:`SpoolWriter.append` took survives the death of the process at once, and a power failure
within 100 ms (``fast``) or at once (``durable``). What it did not take it has refused.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from router.clock import Clock
from router.errors import RecordsUnavailable
from router.spool.disk import SpoolIO
from router.spool.frames import encode_frame
from router.spool.segment_log import SpoolLog, reason_of
from router.spool.segments import SegmentFiles
from router.spool.size import spool_bytes

T = TypeVar("T")
Mode = Literal["fast", "durable"]
Offload = Callable[[Callable[[], Any]], Any]

SEGMENT_BYTES: Final = 16 * 1024 * 1024
RESERVE_BYTES: Final = 2 * 1024 * 1024
"""Room that is set aside for the records of calls that are in flight when the disk fills."""
HELD_BYTES: Final = 8 * 1024 * 1024
UNSYNCED_BYTES: Final = 32 * 1024 * 1024

SYNC_DELAY_S: Final = 0.05
"""Gathers appends for one sync; half of what ``fast`` promises, the disk has the other half."""
STALLED_S: Final = 2.0
COMMIT_WAIT_S: Final = 5.0
RETRY_S: Final = 0.2
MEASURE_S: Final = 1.0
CLOSE_WAIT_S: Final = 3.0

_logger = logging.getLogger("router.spool")


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """One writer's state, for metrics and readiness."""

    refusal: str | None
    total_bytes: int
    """Of all writers of the directory, as last seen."""
    max_bytes: int
    """What it may come to."""
    unsynced_bytes: int
    held_bytes: int
    lost_frames: int
    """Held back and never written: for want of memory, or because the process had to end."""
    write_errors: int
    sync_errors: int


class SpoolWriter:
    """Appends frames to this process's own log. Make it after fork, close it at exit.

    Starts also when the disk refuses everything; nothing can be appended then until it recovers.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        mode: Mode = "fast",
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        io: SpoolIO | None = None,
        offload: Offload | None = None,
        clock: Clock | None = None,
        background: bool = True,
    ) -> None:
        """``directory`` is the spool of all writers, ``max_bytes`` the limit for all together.

        ``offload`` runs what waits for the disk and returns what it returns. Under gevent it is
        ``gevent.threadpool.ThreadPool(1).apply``: a pool of its own, so that nothing else delays a
        sync. Without ``background`` somebody has to call :meth:`tick`.
        """
        self._clock = clock or Clock()
        self._io = io or SpoolIO()
        self.writer_id = _new_writer_id(self._clock)
        self._spool = directory
        self._durable = mode == "durable"
        self._max_bytes = max_bytes
        self._headroom_bytes = min(max_bytes // 8, 2 * reserve_bytes)
        self._offload: Offload = _run_here if offload is None else offload
        # Held for as long as a write takes and never while waiting for a sync.
        self._lock = threading.Lock()
        files = SegmentFiles(self._io, directory, self.writer_id, reserve_bytes)
        self._log = SpoolLog(files, segment_bytes=segment_bytes, reserve_bytes=reserve_bytes)
        self._held: list[bytes] = []
        self._commits: list[_Commit] = []
        self._oldest_unsynced_s: float | None = None
        self._refusal: str | None = None
        self._told: str | None = None
        self._no_room: str | None = None
        self._total_bytes = 0
        self._lost_frames = 0
        self._measured = True
        self._closing = False
        self._retry_at_s = self._measure_at_s = 0.0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self.tick()
        if background:
            self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
            self._thread.start()

    # --- the path of a call -----------------------------------------------------------------

    def check(self) -> None:
        """Raise :class:`RecordsUnavailable` if a call that begins now could not be recorded.

        Costs no system call. It refuses while there is still room for calls that passed before.
        """
        refusal = self._refusal
        if refusal is not None:
            raise RecordsUnavailable(refusal)
        oldest_s = self._oldest_unsynced_s
        if oldest_s is not None and self._clock.monotonic_s() - oldest_s > STALLED_S:
            raise RecordsUnavailable("disk_slow")

    def ready(self) -> bool:
        """Tell whether :meth:`check` passes."""
        try:
            self.check()
        except RecordsUnavailable:
            return False
        return True

    def append(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Take frames (kind, payload) with one write; raises :class:`RecordsUnavailable`.

        In ``durable`` mode it returns when they are on the disk. Frames of an append that raised
        may still be delivered, some or all: append or :meth:`hold` the very same bytes again, not
        other bytes under the same id, unless the error says ``nothing_written``. Raises
        ``ValueError`` for a payload over 1 MiB.
        """
        data = b"".join([encode_frame(kind, payload) for kind, payload in frames])
        with self._lock:
            if self._total_bytes + len(data) > self._max_bytes:
                raise RecordsUnavailable("spool_full", nothing_written=True)
            self._put(data)
            commit = self._expect_sync()
        if commit is not None:
            self._await(commit)

    def hold(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Keep in memory what could not be appended, to be written first once the disk recovers.

        For what has happened already: a call whose reply has begun. Never raises; beyond 8 MiB it
        gives up and counts.
        """
        held = [encode_frame(kind, payload) for kind, payload in frames]
        with self._lock:
            if self._closing or sum(map(len, self._held + held)) > HELD_BYTES:
                self._lost_frames += len(held)
                return
            self._held += held
        self._wake.set()

    def status(self) -> SpoolStatus:
        """How the writer is doing."""
        with self._lock:
            return SpoolStatus(
                self._refusal,
                self._total_bytes,
                self._max_bytes,
                self._log.unsynced_bytes(),
                sum(map(len, self._held)),
                self._lost_frames,
                self._log.write_errors,
                self._log.sync_errors,
            )

    def _put(self, data: bytes) -> None:
        try:
            self._log.put(b"".join((*self._held, data)) if self._held else data)
        except RecordsUnavailable as refused:
            self._refusal = refused.reason
            self._wake.set()
            raise
        self._held.clear()
        self._total_bytes += len(data)

    def _expect_sync(self) -> _Commit | None:
        if self._oldest_unsynced_s is None:
            self._oldest_unsynced_s = self._clock.monotonic_s()
            self._wake.set()
        if not self._durable:
            return None
        if not self._commits:
            self._commits.append(_Commit())
            self._wake.set()
        return self._commits[-1]

    def _await(self, commit: _Commit) -> None:
        if self._thread is None:
            self.tick()
        if not commit.done.wait(COMMIT_WAIT_S):
            raise RecordsUnavailable("disk_slow")
        if commit.failed:
            raise RecordsUnavailable(self._refusal or "disk_error")

    # --- beside it --------------------------------------------------------------------------

    def tick(self) -> None:
        """Sync what was appended, recover, and look after room, once. From one thread at a time."""
        settled = self._sync()
        if self._log.broken is not None:
            settled = not self._recover()
        if not settled:
            self._sync()
        if self._log.broken is None:
            self._look_after_room()
        if self._clock.monotonic_s() >= self._measure_at_s:
            self._measure()
        self._judge()

    def close(self) -> None:
        """Sync what was appended, let the agent finish the rest, and refuse from now on."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_WAIT_S)
            if self._thread.is_alive():
                # The disk hangs. What was appended is in the system's hands, also without us.
                self._refusal = "closed"
                return
        self._retry_at_s = 0.0
        self.tick()
        self._sync()  # what the tick has written that was held until now
        with self._lock:
            self._log.close()
            self._refusal = self._log.broken
            self._lost_frames += len(self._held)
            self._held.clear()
        if self._lost_frames:
            _logger.error("records lost", extra={"frames": self._lost_frames})

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(MEASURE_S if self._refusal is None else RETRY_S)
            if self._wake.is_set() and not self._durable and not self._closing:
                time.sleep(SYNC_DELAY_S)
            self._wake.clear()
            try:
                self.tick()
            except Exception:
                # Without this thread nothing is synced and nothing recovers.
                _logger.exception("spool upkeep failed")
                time.sleep(RETRY_S)
                self._wake.set()

    def _sync(self) -> bool:
        """One round; False when it failed, and what it was to cover waits for the next one."""
        with self._lock:
            covered = self._log.begin_sync()
            commits, self._commits = self._commits, []
            began_s = self._clock.monotonic_s()
        try:
            error = None if covered.is_empty() else self._slowly(lambda: self._log.sync(covered))
        except BaseException:
            with self._lock:
                self._commits = commits + self._commits
            raise
        with self._lock:
            if not self._log.end_sync(covered, error):
                self._commits = commits + self._commits
                return False
            more = self._log.unsynced_bytes() > 0
            self._oldest_unsynced_s = began_s if more else None
        if more:
            self._wake.set()
        for commit in commits:
            commit.settle(failed=False)
        return True

    def _recover(self) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s < self._retry_at_s:
            return False
        self._retry_at_s = now_s + RETRY_S
        with self._lock:
            replayed, held = self._log.begin_recovery(), list(self._held)
        segment = self._slowly(lambda: self._log.recover(b"".join((*replayed, *held))))
        with self._lock:
            if isinstance(segment, OSError):
                self._log.broken = reason_of(segment)
                return False
            self._log.begin_again(segment, len(replayed))
            del self._held[: len(held)]
            return True

    def _look_after_room(self) -> None:
        with self._lock:
            self._log.rotate()
            if self._held and (self._closing or self._total_bytes < self._max_bytes):
                self._put_held()
            wanted = self._log.wants_room()
        if not wanted:
            self._no_room = None
            return
        spare, error = self._offload(self._log.make_room)
        self._no_room = None if error is None else reason_of(error)
        with self._lock:
            self._log.give_spare(spare)

    def _put_held(self) -> None:
        try:
            self._put(b"")
        except RecordsUnavailable:
            pass  # they are held on

    def _measure(self) -> None:
        found = self._slowly(lambda: (spool_bytes(self._io, self._spool), self._log.is_gone()))
        if isinstance(found, OSError):
            if self._measured:
                _logger.error("size of the spool unknown", extra={"reason": str(found)})
            self._measured = False
            return
        self._measured = True
        with self._lock:
            self._total_bytes, gone = found
            if gone:
                self._log.lose_files()
                self._retry_at_s = 0.0
                self._wake.set()

    def _judge(self) -> None:
        before, now_s = self._told, self._clock.monotonic_s()
        with self._lock:
            self._refusal = self._told = after = self._verdict()
            commits = self._commits if self._log.broken is not None else []
            self._commits = [] if commits else self._commits
        if now_s >= self._measure_at_s or after is not None:
            self._measure_at_s = now_s + (MEASURE_S if after is None else RETRY_S)
        for commit in commits:
            commit.settle(failed=True)
        if before is None and after is not None:
            _logger.error("calls are refused, they could not be recorded", extra={"reason": after})
        elif before is not None and after is None:
            _logger.warning("calls are recorded again", extra={"reason": before})

    def _verdict(self) -> str | None:
        if self._log.broken is not None:
            return self._log.broken
        if self._total_bytes >= self._max_bytes - self._headroom_bytes:
            return "spool_full"
        if self._log.unsynced_bytes() > UNSYNCED_BYTES:
            return "disk_slow"
        return self._no_room

    def _slowly(self, work: Callable[[], T]) -> T | OSError:
        def attempt() -> T | OSError:
            try:
                return work()
            except OSError as error:  # as a value: gevent prints what a pool's thread raises
                return error

        result: T | OSError = self._offload(attempt)
        return result


class _Commit:
    """What appends in ``durable`` mode wait for: one sync, shared by all that came before it."""

    __slots__ = ("done", "failed")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.failed = False

    def settle(self, *, failed: bool) -> None:
        self.failed = failed
        self.done.set()


def _new_writer_id(clock: Clock) -> str:
    """Sorts by time of birth and is never given twice."""
    return f"{int(clock.now_s() * 1000):012x}-{os.getpid()}-{secrets.token_hex(4)}"


def _run_here(work: Callable[[], Any]) -> Any:
    return work()
