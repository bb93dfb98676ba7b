"""The pen of one process: a usage record and its audit event, chained and appended as one."""

from __future__ import annotations

from router.accounting.audit import AuditChain
from router.accounting.records import AuditEvent
from router.accounting.spool import SpoolWriter
from router.accounting.spool_format import AUDIT, USAGE


class Recorder:
    """Writes what happened to the spool of this process."""

    def __init__(self, spool: SpoolWriter) -> None:
        self.spool = spool
        self._chain = AuditChain(spool.writer_id)

    def check(self) -> None:
        """Raises ``RecordsUnavailable`` if what begins now could not be recorded."""
        self.spool.check()

    def record(self, usage: bytes | None, event: AuditEvent, *, answered: bool) -> None:
        """Append both with one write; raises ``RecordsUnavailable``.

        What was refused is kept in memory to be written first once the disk recovers: the call has
        cost something, whether its reply goes out or not. With ``answered`` nobody can take the
        reply back, so nothing is raised either.
        """
        frames = [] if usage is None else [(USAGE, usage)]
        frames.append((AUDIT, self._chain.link(event)))
        try:
            self.spool.append(frames)
        except Exception:
            self.spool.hold(frames)
            if not answered:
                raise

    def close(self) -> None:
        """Sync and let go; the agent ships what is there."""
        self.spool.close()
