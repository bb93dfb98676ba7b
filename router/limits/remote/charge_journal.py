"""Charges that a budget service has not taken: on disk until it has, whoever dies meanwhile."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.breaker import Refused, Unavailable
from router.limits.budgets.windows import Amounts, Reservation, Settlement, ThresholdEvent
from router.limits.remote.charge_file import ChargeFile, adopt_files
from router.limits.retry_queue import MOST_FAILURES

log = logging.getLogger(__name__)

MAX_BYTES: Final = 32 * 1024 * 1024
"""About 40 000 charges for each worker."""
RESERVE_BYTES: Final = 4 * 1024 * 1024
"""For the calls that run when the journal is full."""
ROTATE_BYTES: Final = 1024 * 1024
ADOPT_EVERY_S: Final = 10.0
LONGEST_PAUSE_S: Final = 60.0

Send = Callable[[Reservation, Amounts], Settlement]
"""Settles at the service, once by lease id; raises :class:`Unavailable` if that was not taken."""


@dataclass(slots=True)
class Charge:
    """One charge on disk: where it is, and when it is tried again."""

    file: ChargeFile
    offset: int
    length: int
    refusals: int = 0
    due_s: float = 0.0


class ChargeJournal:
    """The charges of one worker that wait, and those of dead workers that it has taken over.

    A charge is written before the service is asked, and kept when that does not take it. Those that
    wait are tried again about once a second, for as long as it takes; one that the service refuses
    is tried less often and holds up no other. Beyond ``max_bytes`` the journal
    :attr:`is_full`: no new call may be admitted, so that no charge is dropped. Not thread-safe.
    """

    def __init__(
        self,
        directory: Path,
        send: Send,
        *,
        max_bytes: int = MAX_BYTES,
        on_threshold: Callable[[str, ThresholdEvent], None] = lambda _organization_id, _event: None,
        offload: Callable[[Callable[[], None]], None] = lambda work: work(),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``offload`` runs what waits for the disk."""
        self._directory = directory
        self._send = send
        self._max_bytes = max_bytes
        self._on_threshold = on_threshold
        self._offload = offload
        self._monotonic_s = monotonic_s
        self._own: ChargeFile | None = None
        self._unsynced: set[ChargeFile] = set()
        self._waiting: deque[Charge] = deque()
        self._running = False
        self._disk_refuses = False
        self._adopt_at_s = float("-inf")
        self.waiting_bytes = 0
        self.kept = 0
        """How many the service did not take when their call ended, since the worker began."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether new calls have to wait until some charges are taken."""
        return self.waiting_bytes >= self._max_bytes

    def write(self, body: Mapping[str, Any]) -> Charge | None:
        """Put a charge on disk, the body of a request to settle; then :meth:`taken` or
        :meth:`keep` it. ``None`` when the disk refuses it, or the room for calls that were running
        is used up too."""
        if self.waiting_bytes >= self._max_bytes + RESERVE_BYTES:
            return None
        try:
            file = self._writable()
            offset, length = file.append(body)
        except OSError as error:
            if not self._disk_refuses:
                log.error("charges cannot be put on disk; they wait in memory: %s", error)
            self._disk_refuses = True
            return None
        self._disk_refuses = False
        self.waiting_bytes += length
        return Charge(file, offset, length)

    def taken(self, charge: Charge) -> None:
        """The service has taken it."""
        self.waiting_bytes -= charge.length
        try:
            charge.file.note_done(charge.offset)
        except OSError as error:  # it is sent once more, should this worker die now
            log.warning("a charge that was taken cannot be noted: %s", error)
        if charge.file is not self._own and not charge.file.left:
            charge.file.close()

    def keep(self, charge: Charge) -> None:
        """Send it until it is taken."""
        self._unsynced.add(charge.file)
        self._waiting.append(charge)
        self.kept += 1

    def run(self) -> int:
        """Sync what is new, take over what dead workers left, and try all that is due; returns how
        many charges were taken. Raises nothing; to be called about once a second."""
        if self._running:
            return 0
        self._running = True
        try:
            while self._unsynced:
                self._offload(self._unsynced.pop().sync)
            self._adopt()
            return self._send_all()
        except OSError as error:
            log.error("the charges on disk cannot be read: %s", error)
            return 0
        finally:
            self._running = False

    def close(self) -> None:
        """Close all files; whoever comes next takes them over."""
        for file in {id(charge.file): charge.file for charge in self._waiting}.values():
            file.close()
        if self._own is not None:
            self._own.close()
        self._own = None
        self._waiting.clear()
        self.waiting_bytes = 0

    def _writable(self) -> ChargeFile:
        own = self._own
        if own is not None and own.size < ROTATE_BYTES:
            return own
        self._own = ChargeFile.create(self._directory / f"{uuid.uuid4()}.charges")
        if own is not None and not own.left:
            own.close()
        return self._own

    def _adopt(self) -> None:
        now_s = self._monotonic_s()
        if now_s < self._adopt_at_s or self.is_full:
            return
        self._adopt_at_s = now_s + ADOPT_EVERY_S
        for file in adopt_files(self._directory):
            for offset, length in file.left.items():
                self._waiting.append(Charge(file, offset, length))
            self.waiting_bytes += file.left_bytes
            if file.left:
                log.warning("took over %d charges of a worker that has ended", len(file.left))

    def _send_all(self) -> int:
        taken = failed = 0
        for _ in range(len(self._waiting)):
            if not self._waiting or failed == MOST_FAILURES:
                break
            charge = self._waiting.popleft()
            done = False
            try:
                if charge.due_s > self._monotonic_s():
                    continue
                try:
                    self._settle(charge)
                    done = True
                except (Refused, ValueError) as error:
                    self._put_off(charge, error)
                except Unavailable:
                    failed += 1
            finally:  # a killed greenlet does not take it along
                if done:
                    taken += 1
                else:
                    self._waiting.append(charge)
        return taken

    def _settle(self, charge: Charge) -> None:
        """Send it; raises ``ValueError`` for one that cannot be read."""
        reservation, amounts = charge.file.read(charge.offset, charge.length)
        settlement = self._send(reservation, amounts)
        self.taken(charge)
        for event in settlement.threshold_events:
            self._on_threshold(reservation.organization_id, event)

    def _put_off(self, charge: Charge, error: Exception) -> None:
        """Try it again after a longer pause; it keeps no file that is nearly done with."""
        if charge.refusals == 0:
            log.error("the budget service refuses a charge; it is tried again: %s", error)
        charge.due_s = self._monotonic_s() + min(LONGEST_PAUSE_S, 2.0 ** min(charge.refusals, 10))
        charge.refusals += 1
        file = charge.file
        if file is not self._own and 2 * file.left_bytes < file.size and isinstance(error, Refused):
            moved = self.write(file.body(charge.offset, charge.length))
            if moved is not None:
                self._unsynced.add(moved.file)
                self.taken(charge)
                charge.file, charge.offset, charge.length = moved.file, moved.offset, moved.length
