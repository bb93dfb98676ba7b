"""Where records are safe before a call is answered: one append-only log for each process.

Frames that :meth:`SpoolWriter.append` accepted survive the death of the process at once, and a
power failure within 100 ms (``fast``) or at once (``durable``). It raises for all other frames.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from router.clock import Clock
from router.errors import RecordsUnavailable
from router.spool import commits
from router.spool.commits import STALLED_S, Commit, Commits
from router.spool.directory import SpoolDirectory, SpoolRoom
from router.spool.disk import DiskThread, Offload, SpoolIO
from router.spool.frame_buffer import FrameBuffer
from router.spool.frames import encode_frame
from router.spool.segment_log import SegmentLog, reason_of
from router.spool.segments import SegmentFiles, new_writer_id

Mode = Literal["fast", "durable"]

SEGMENT_BYTES: Final = 16 * 1024 * 1024
RESERVE_BYTES: Final = 2 * 1024 * 1024
"""Disk space reserved for the records of running calls when the disk fills."""
UNSYNCED_BYTES: Final = 32 * 1024 * 1024

SYNC_DELAY_S: Final = 0.05
"""Gathers appends for one sync; half of what ``fast`` promises, the disk has the other half."""
RETRY_S: Final = 0.2
MEASURE_S: Final = 1.0
CLOSE_WAIT_S: Final = 3.0

_logger = logging.getLogger("router.spool")


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """The state of one writer, for metrics and readiness."""

    refusal: str | None
    total_bytes: int
    """Of all writers of the spool, as measured last."""
    max_bytes: int
    """The limit for ``total_bytes``."""
    unsynced_bytes: int
    buffered_bytes: int
    lost_frames: int
    """Buffered in memory and never written: the buffer was full, or the process had to end."""
    write_errors: int
    sync_errors: int


class SpoolWriter:
    """Appends frames to this process's own log. Create it after fork, close it at exit.

    It starts also when the disk refuses everything, and refuses appends until the disk recovers.
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
        """``directory`` is the spool of all writers, ``max_bytes`` the limit for all together. Only
        closed segments can be removed, so ``segment_bytes`` of each writer are to be a small part.

        ``offload`` runs what waits for the disk. Under gevent it is
        ``gevent.threadpool.ThreadPool(1).apply``: a pool of its own, so that nothing else delays a
        sync. Without ``background`` the caller has to call :meth:`tick`.
        """
        self._clock = clock or Clock()
        self._disk = DiskThread(offload, self._clock)
        io = io or SpoolIO()
        self.writer_id = new_writer_id(self._clock)
        self._durable = mode == "durable"
        self._room = SpoolRoom(SpoolDirectory(directory, io), max_bytes, 2 * reserve_bytes)
        # Held during a write, never during a sync.
        self._lock = threading.Lock()
        files = SegmentFiles(io, directory, self.writer_id, reserve_bytes)
        self._log = SegmentLog(files, segment_bytes=segment_bytes, reserve_bytes=reserve_bytes)
        self._buffer = FrameBuffer()
        self._commits = Commits()
        self._unsynced_since_s: float | None = None
        """What the disk had worked when the oldest unsynced frame was appended."""
        self._refusal: str | None = None
        self._logged_refusal: str | None = None
        self._no_room: str | None = None
        self._closing = False
        self.carried: Callable[[], Iterable[tuple[int, bytes]]] = tuple
        """Frames that each new segment begins with: those about calls that still run. So the last
        segment alone tells what a writer that died has left open."""
        self._carried_into: object = None
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

        Makes no system call. It refuses while there is still room for calls that passed before.
        """
        refusal = self._refusal
        if refusal is not None:
            raise RecordsUnavailable(refusal)
        since_s = self._unsynced_since_s
        if since_s is not None and self._disk.worked_s() - since_s > STALLED_S:
            raise RecordsUnavailable("disk_slow")

    def append(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Append frames (kind, payload) with one write; raises :class:`RecordsUnavailable`.

        In ``durable`` mode it returns when they are synced. After an exception the frames may be
        delivered all the same, some or all: append or :meth:`buffer` exactly the same bytes again,
        never other bytes under the same id, unless the error says ``nothing_written``. Raises
        ``ValueError`` for a payload over 1 MiB.
        """
        data = b"".join([encode_frame(kind, payload) for kind, payload in frames])
        with self._lock:
            self._write_new(data)
            commit = self._expect_sync()
        if commit is not None:
            self._await(commit)

    def note(self, kind: int, payload: bytes) -> None:
        """Append one frame and wait for no sync, in neither mode; raises
        :class:`RecordsUnavailable`. It survives the death of the process."""
        data = encode_frame(kind, payload)
        with self._lock:
            self._write_new(data)
            self._expect_sync(wait=False)

    def buffer(self, frames: Iterable[tuple[int, bytes]]) -> bool:
        """Keep refused frames in memory, to be written first when the disk recovers.

        For calls whose backend has answered already. Never raises; False, and counted as lost, for
        what would make it more than 8 MiB and for what comes after the end.
        """
        encoded = [encode_frame(kind, payload) for kind, payload in frames]
        with self._lock:
            if self._refusal == "closed":
                self._buffer.lost += len(encoded)
                return False
            kept = self._buffer.add(encoded)
        self._wake.set()
        return kept

    def status(self) -> SpoolStatus:
        """The writer's state now."""
        with self._lock:
            return SpoolStatus(
                self._refusal,
                self._room.used_bytes,
                self._room.max_bytes,
                self._log.unsynced_bytes(),
                self._buffer.size,
                self._buffer.lost,
                self._log.write_errors,
                self._log.sync_errors,
            )

    def _write_new(self, data: bytes) -> None:
        if not self._room.has(len(data)):
            raise RecordsUnavailable("spool_full", nothing_written=True)
        self._write(data)

    def _write(self, data: bytes) -> None:
        buffered = self._buffer.content() if self._buffer.size else []
        try:
            self._log.put(b"".join((*buffered, data)) if buffered else data)
        except RecordsUnavailable as refused:
            self._refusal = refused.reason
            self._wake.set()
            raise
        if buffered:
            self._buffer.written(len(buffered))
        self._room.used_bytes += len(data)

    def _expect_sync(self, *, wait: bool = True) -> Commit | None:
        if self._unsynced_since_s is None:
            self._unsynced_since_s = self._disk.worked_s()
            self._wake.set()
        if not (self._durable and wait):
            return None
        self._wake.set()
        return self._commits.join()

    def _await(self, commit: Commit) -> None:
        since_s = self._disk.worked_s()
        if self._thread is None:
            self.tick()
        if not commits.is_synced(commit, self._disk, since_s):
            raise RecordsUnavailable(self._refusal or "disk_error")

    # --- in the background ------------------------------------------------------------------

    def tick(self) -> None:
        """Sync, recover, reserve room and measure, once. From one thread at a time."""
        is_synced = self._sync()
        if self._log.broken is not None:
            is_synced = not self._recover()
        if not is_synced:
            self._sync()
        if self._log.broken is None:
            for _ in range(2):  # once more before calls are refused for want of room
                self._next_segment()
                self._reserve_room()
                if self._no_room is None:
                    break
        is_filling = self._room.is_full() and self._refusal is None  # or it has been emptied since
        if is_filling or self._clock.monotonic_s() >= self._measure_at_s:
            self._measure()
        self._update_refusal()

    def close(self) -> None:
        """Sync what was appended, release the files, and refuse from now on."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_WAIT_S)
            if self._thread.is_alive():
                # The disk hangs. The kernel has what was appended, and writes it without us.
                self._refusal = "closed"
                return
        self._retry_at_s = 0.0
        self.tick()
        self._sync()  # what the tick has written from the buffer
        with self._lock:
            self._log.close()
            self._refusal = self._log.broken
            self._buffer.give_up()
        if self._buffer.lost:
            _logger.error("records lost", extra={"frames": self._buffer.lost})

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
                _logger.exception("spool maintenance failed")
                time.sleep(RETRY_S)
                self._wake.set()

    def _sync(self) -> bool:
        """Sync once; False when it failed: the appends that it covers wait for the next sync."""
        with self._lock:
            covered = self._log.begin_sync()
            waiting = self._commits.take()
            began_s = self._disk.worked_s()
        try:
            empty = covered.is_empty()
            error = None if empty else self._disk.attempt(lambda: self._log.sync(covered))
        except BaseException:
            with self._lock:
                self._commits.put_back(waiting)
            raise
        with self._lock:
            if not self._log.end_sync(covered, error):
                self._commits.put_back(waiting)
                return False
            more = self._log.unsynced_bytes() > 0
            self._unsynced_since_s = began_s if more else None
        if more:
            self._wake.set()
        commits.end(waiting, is_synced=True)
        return True

    def _recover(self) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s < self._retry_at_s:
            return False
        self._retry_at_s = now_s + RETRY_S
        with self._lock:
            replayed, buffered = self._log.begin_recovery(), self._buffer.content()
        segment = self._disk.attempt(lambda: self._log.recover(b"".join((*replayed, *buffered))))
        with self._lock:
            if isinstance(segment, OSError):
                self._log.broken = reason_of(segment)
                return False
            self._log.begin_again(segment, len(replayed))
            self._buffer.written(len(buffered))
            return True

    def _next_segment(self) -> None:
        """Go on in another segment when it is time, and begin it with the frames about calls that
        still run: an agent that finds this worker dead reads its last segments only."""
        is_needed = self._no_room is not None or self._room.is_full()
        with self._lock:
            self._log.rotate(self._clock.monotonic_s(), room_is_needed=is_needed)
            active = self._log.active
            if active is None or active is self._carried_into:
                return
            first = self._carried_into is None
            data = b"".join([] if first else [encode_frame(*frame) for frame in self.carried()])
            if data:
                try:
                    self._log.carry(data)
                except RecordsUnavailable:
                    return  # the next segment gets them
                self._room.used_bytes += len(data)
                self._expect_sync(wait=False)
            self._carried_into = active

    def _reserve_room(self) -> None:
        with self._lock:
            if self._buffer.size and (self._closing or self._room.has(1)):
                with contextlib.suppress(RecordsUnavailable):  # then they stay buffered
                    self._write(b"")
            if not self._log.needs_room():
                self._no_room = None
                return
        made = self._disk.attempt(self._log.make_room)
        preallocated, error = (None, made) if isinstance(made, OSError) else made
        self._no_room = None if error is None else reason_of(error)
        with self._lock:
            self._log.set_preallocated(preallocated)

    def _measure(self) -> None:
        found = self._disk.attempt(lambda: (self._room.measure(), self._log.is_gone()))
        with self._lock:
            if isinstance(found, OSError):
                self._room.take(found)
                return
            self._room.take(found[0])
            if found[1]:
                self._log.abandon_files()
                self._retry_at_s = 0.0
                self._wake.set()

    def _update_refusal(self) -> None:
        before, now_s = self._logged_refusal, self._clock.monotonic_s()
        with self._lock:
            self._refusal = self._logged_refusal = after = self._reason_to_refuse()
            failed = [] if self._log.broken is None else self._commits.take()
        if now_s >= self._measure_at_s or after is not None:
            self._measure_at_s = now_s + (MEASURE_S if after is None else RETRY_S)
        commits.end(failed, is_synced=False)
        if before is None and after is not None:
            _logger.error("calls are refused, they could not be recorded", extra={"reason": after})
        elif before is not None and after is None:
            _logger.warning("calls are recorded again", extra={"reason": before})

    def _reason_to_refuse(self) -> str | None:
        if self._log.broken is not None:
            return self._log.broken
        if self._room.is_full():
            return "spool_full"
        if self._log.unsynced_bytes() > UNSYNCED_BYTES:
            return "disk_slow"
        return self._no_room
