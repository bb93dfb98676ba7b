"""Records calls in the spool of this process: a usage record and its audit event as one append."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

import orjson

from router.errors import RecordsUnavailable
from router.records.audit_chain import AuditChain, Link
from router.records.dispatches import Dispatch, encode_dispatch
from router.records.open_calls import OpenCalls
from router.records.record_types import AuditEvent, degraded_usage, parse_timestamp_us
from router.spool.frames import AUDIT, DISPATCH, MAX_PAYLOAD_BYTES, SETTLED, USAGE
from router.spool.writer import SpoolWriter

REFUSALS_SHARE: Final = 0.5
"""Of the spool's size: above it refused calls are counted and not recorded."""

Entry = tuple[bytes | None, AuditEvent | None]
"""An encoded usage record and its event; ``None`` for what could not be built."""
Frames = list[tuple[int, bytes]]


class Links(NamedTuple):
    """What frames have made of the chain: its end before them and after them."""

    before: Link
    after: Link


_logger = logging.getLogger("router.records")


class Unwritten:
    """A record that the spool refused. Its call has cost something, so it must be buffered, once:
    it is written first when the disk recovers."""

    def __init__(
        self,
        error: RecordsUnavailable,
        recorder: Recorder,
        entry: Entry,
        frames: Frames,
        links: Links | None,
    ) -> None:
        self.error = error
        """What the client gets, where its answer can still be withheld."""
        self.entry = entry
        self._recorder = recorder
        self._frames = frames
        self._links = links

    @property
    def may_change(self) -> bool:
        """Whether :meth:`buffer` may still be given another content under the same ids."""
        return self._links is not None

    def buffer(self, changed: Entry | None = None) -> None:
        """Keep the record in memory, as it was or, while nothing is chained on it, as ``changed``
        says."""
        if changed is not None and self._recorder.rewind(self._links):
            self._frames, self._links = self._recorder.chained(*changed)
        if not self._recorder.spool.buffer(self._frames):
            self.drop()

    def drop(self) -> bool:
        """Take the record out of the chain, where it is nowhere else; False where it may be."""
        return self._recorder.rewind(self._links)


class Recorder:
    """Appends usage records and chained audit events to the spool of this process."""

    def __init__(self, spool: SpoolWriter) -> None:
        self.spool = spool
        self.open_calls = OpenCalls()
        spool.carried = self.open_calls.frames
        self._chain = AuditChain(spool.writer_id)
        self.taken = 0
        """Records and events that the spool accepted, or that are buffered until it can."""
        self.degraded = 0
        self.refused: Counter[str] = Counter()
        """Calls without a record, by the reason of the spool; none of them cost anything."""

    def check(self) -> None:
        """Raise ``RecordsUnavailable`` if a call that begins now could not be recorded."""
        self.spool.check()

    def admits_refusals(self) -> bool:
        """Tell whether a call that cost nothing may be recorded now; count one that may not.

        Records of any number of refused calls would use up the room of those that are served, so
        they get a share of it. And while new calls are refused, what is left on the disk and in
        memory is for calls that backends serve already.
        """
        try:
            self.spool.check()
        except RecordsUnavailable as refusal:
            self.refused[refusal.reason] += 1
            return False
        status = self.spool.status()
        if status.total_bytes > REFUSALS_SHARE * status.max_bytes:
            self.refused["reserved"] += 1
            return False
        return True

    def dispatched(self, dispatch: Dispatch) -> None:
        """Note that a call is being sent, so that it has a record should this process die. Costs no
        wait; raises ``RecordsUnavailable``, and then the call must not be sent."""
        self.spool.note(DISPATCH, encode_dispatch(dispatch))
        self.open_calls.dispatched(dispatch)

    def mark_settled(self) -> None:
        """Once a second: note that nothing which was recorded before waits to be charged."""
        if self.open_calls.may_be_marked():
            with contextlib.suppress(RecordsUnavailable):  # then more than needed is looked at
                self.spool.note(SETTLED, b"{}")

    def record(self, usage: bytes | None, event: AuditEvent | None) -> Unwritten | None:
        """Append both with one write. What the spool refused comes back and has to be buffered.

        After any exception nothing was recorded.
        """
        frames, links = self.chained(usage, event)
        self.taken += len(frames)
        refusal = self._append(frames)
        if refusal is None:
            return None
        # What may stand on the disk already must not change: nobody may ever find two contents
        # under one id. Nor what somebody else has chained on.
        may_change = refusal.nothing_written and self._chain.end is links.after
        return Unwritten(refusal, self, (usage, event), frames, links if may_change else None)

    def note(self, events: Iterable[AuditEvent]) -> None:
        """Append events that belong to no call; raises ``RecordsUnavailable``.

        With its ``nothing_written`` nothing of them is or will be anywhere, and they can be noted
        again. Without it they keep their places in the chain and must not be noted again: the
        very same bytes are buffered, and are written first when the disk recovers.
        """
        start = self._chain.end
        frames = [(AUDIT, self._link(event)) for event in events]
        links = Links(start, self._chain.end)
        refusal = self._append(frames)
        if refusal is not None:
            if not (refusal.nothing_written and self.rewind(links)):
                refusal.nothing_written = False
                self.spool.buffer(frames)
                self.taken += len(frames)
            raise refusal
        self.taken += len(frames)

    def chained(self, usage: bytes | None, event: AuditEvent | None) -> tuple[Frames, Links]:
        """The frames of an entry, chained on."""
        start = self._chain.end
        frames = [] if usage is None else [(USAGE, self._fitting(usage))]
        if event is not None:
            frames.append((AUDIT, self._link(event)))
        return frames, Links(start, self._chain.end)

    def rewind(self, links: Links | None) -> bool:
        """Take frames out of the chain that are nowhere; False when others are chained on them."""
        if links is None or self._chain.end is not links.after:
            return False
        self._chain.rewind(links.before)
        return True

    def _append(self, frames: Frames) -> RecordsUnavailable | None:
        """The spool's refusal; any other exception is a defect that clients see as
        ``disk_error``."""
        try:
            self.spool.append(frames)
        except RecordsUnavailable as refusal:
            return refusal
        except Exception as error:
            _logger.error("the spool failed", exc_info=error)
            return RecordsUnavailable("disk_error")
        return None

    def close(self) -> None:
        """Sync and close the spool; the agent ships what is in it."""
        self.mark_settled()
        self.spool.close()

    def _fitting(self, usage: bytes) -> bytes:
        """The record, or its degraded form when it is longer than a frame may be."""
        if len(usage) <= MAX_PAYLOAD_BYTES:
            return usage
        fields = orjson.loads(usage)
        self._note_degraded("usage record", fields["request_id"], len(usage))
        return degraded_usage(
            fields["request_id"],
            fields["api_key_id"],
            fields["endpoint"],
            parse_timestamp_us(fields["timestamp"]) / 1e6,
            fields["status"],
            organization_id=fields["organization_id"],
        )

    def _link(self, event: AuditEvent) -> bytes:
        """The event, linked; without its details when they cannot be encoded or are too long."""
        try:
            return self._chain.link(event, max_bytes=MAX_PAYLOAD_BYTES)
        except (TypeError, ValueError) as error:
            self._note_degraded("audit event", event.request_id or event.event_id, str(error))
            bare = dataclasses.replace(event, context={"degraded": True}, before=None, after=None)
            return self._chain.link(bare, max_bytes=MAX_PAYLOAD_BYTES)

    def _note_degraded(self, what: str, request_id: str, why: object) -> None:
        self.degraded += 1
        _logger.error(f"{what} degraded", extra={"request_id": request_id, "why": str(why)})
