"""What dead workers leave behind, in one place: records of interrupted calls, and open leases."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from router.agent.adoption import dead_writers, lease_settler
from router.agent.adoption.dead_writers import Adoption
from router.agent.adoption.lease_settler import KeepCharges, LeaseSettler, charges_of
from router.agent.adoption.unsent_reservations import UnsentReservations, WindowsOf
from router.breaker import Unavailable
from router.clock import Clock
from router.limits.audit_outbox import AuditOutbox
from router.limits.leases.unsettled_leases import UnsettledLeases
from router.records.open_calls import Unsettled
from router.records.recorder import Recorder
from router.redis.client import RedisClient
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.reader import SpoolReader
from router.spool.writer import SpoolWriter

UNSETTLED_NAME: Final = "unsettled"
UNSENT_NAME: Final = "unsent"
_UNLIMITED: Final = 1 << 62
"""A full spool must not keep dead writers from being adopted: that is what makes room."""
_SEGMENT_BYTES: Final = 32 * 1024
"""What is shipped of them stays until the next one: too little to be in the way of any worker."""
_RESERVE_BYTES: Final = 1024 * 1024
_END_S: Final = 2.0

_logger = logging.getLogger("router.agent")


class Inheritance:
    """Adopts dead writers once a second, and settles leases in a thread of its own."""

    def __init__(
        self,
        data_dir: Path,
        reader: SpoolReader,
        *,
        open_redis: Callable[[], RedisClient] | None,
        keep_charges: KeepCharges | None = None,
        lease_s: float,
        clock: Clock,
        windows_of: WindowsOf = lambda _organization_id, _key_id: (),
    ) -> None:
        """Where a budget service has the leases, ``keep_charges`` is given what it is to be
        told."""
        self._reader = reader
        self._keep_charges = keep_charges
        self._clock = clock
        self._recorder: Recorder | None = None
        self._leases = UnsettledLeases(data_dir / UNSETTLED_NAME, lease_s, clock=clock)
        self._outbox = AuditOutbox(clock)
        self._adoption = Adoption(
            reader,
            Checkpoints(checkpoint_path(data_dir, dead_writers.NAME)),
            self._open_recorder,
            self._hand_over,
            lambda: str(uuid.uuid4()),
            UnsentReservations(data_dir / UNSENT_NAME, windows_of),
            clock=clock,
        )
        self._redis = None if open_redis is None else open_redis()
        self._settler: LeaseSettler | None = None
        if self._redis is not None:
            self._settler = LeaseSettler(
                self._redis,
                SpoolReader(data_dir / UNSETTLED_NAME),
                Checkpoints(checkpoint_path(data_dir, lease_settler.NAME)),
                self._outbox,
                clock=clock,
            )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def interrupted(self) -> int:
        """Calls that were found interrupted since the agent began."""
        return self._adoption.interrupted

    def is_adopted(self, writer_id: str) -> bool:
        """Whether the files of a dead writer may go."""
        return self._adoption.is_adopted(writer_id)

    def is_own(self, writer_id: str) -> bool:
        """Whether this process itself writes there."""
        return self._recorder is not None and writer_id.startswith(self._recorder.spool.writer_id)

    def start(self) -> None:
        """Settle leases from now on."""
        if self._settler is not None:
            settler = self._settler
            self._thread = threading.Thread(
                target=lambda: settler.run(self._stop), name="leases", daemon=True
            )
            self._thread.start()

    def step(self) -> None:
        """Adopt what has died. Raises ``OSError`` or ``RecordsUnavailable``."""
        self._adoption.step()
        if len(self._outbox):
            self._outbox.flush(self._open_recorder())

    def end(self) -> None:
        """The writers have ended: adopt them, and end our own, so that it is shipped as well."""
        try:
            self.step()
        finally:
            if self._recorder is not None:
                self._recorder.close()
                self._recorder = None
        self._adoption.step()

    def close(self) -> None:
        """Settle what can be settled at once, and give back files and connections."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_END_S)
        if self._settler is not None and (self._thread is None or not self._thread.is_alive()):
            with contextlib.suppress(Unavailable, OSError):
                self._settler.step()
        self._leases.close()
        if self._redis is not None:
            self._redis.close()

    def _open_recorder(self) -> Recorder:
        if self._recorder is None:
            spool = SpoolWriter(
                self._reader.path,
                max_bytes=_UNLIMITED,
                mode="durable",
                segment_bytes=_SEGMENT_BYTES,
                reserve_bytes=_RESERVE_BYTES,
                clock=self._clock,
            )
            self._recorder = Recorder(spool)
        return self._recorder

    def _hand_over(self, leases: list[Unsettled]) -> None:
        if self._keep_charges is None:
            self._leases.put_all(leases, wait=True)
        else:
            self._keep_charges(charges_of(leases))
