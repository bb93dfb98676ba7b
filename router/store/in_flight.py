"""What calls of this host have reserved and not settled yet, as the spools on its disk tell it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from router.breaker import Unavailable
from router.limits.budgets.lease_notation import reservation_of
from router.limits.budgets.windows import InFlight, LostWindow, WindowSpec
from router.records.dispatches import Dispatch, decode_dispatch, record_id_of
from router.spool.frames import DISPATCH, UNSETTLED, USAGE, Position
from router.spool.reader import SpoolReader, read_batches

_POSITIONS: Final = {"usd": 0, "tokens": 1, "requests": 2}
"""Where a dispatch has what it has reserved in windows of a unit."""


def in_flight(spool_dir: Path, organization_id: str, lost: LostWindow) -> list[InFlight]:
    """The calls of an organization that were sent to a backend and have no record yet, each with
    what it has reserved in a window. Raises :class:`Unavailable`.

    Of each worker the last segment is read: it begins with the calls that ran then.
    """
    found = []
    try:
        for dispatch in _open_dispatches(spool_dir, organization_id.encode()):
            if dispatch.organization_id == organization_id and dispatch.lease is not None:
                call = _reserved(dispatch, lost)
                if call is not None:
                    found.append(call)
    except OSError as error:
        raise Unavailable("record store", "lost", f"the spool: {error.strerror}") from None
    return found


def unsettled_calls(unsettled_dir: Path, organization_id: str) -> set[str]:
    """The ids of an organization's calls that have ended on this host and are to be settled later,
    some of which are settled by now. Raises :class:`Unavailable`."""
    reader, found = SpoolReader(unsettled_dir, observe=True), set()
    needle = organization_id.encode()
    try:
        for info in reader.writers():
            for batch in read_batches(reader, info.writer_id):
                for frame in batch.frames:
                    if frame.kind == UNSETTLED and needle in frame.payload:
                        found.add(record_id_of(frame.payload))
    except OSError as error:
        raise Unavailable("record store", "lost", f"the spool: {error.strerror}") from None
    return found


def _open_dispatches(spool_dir: Path, needle: bytes) -> Iterable[Dispatch]:
    reader = SpoolReader(spool_dir, observe=True)
    calls: dict[str, bytes] = {}
    for info in reader.writers():
        if not info.segments:
            continue
        start = Position(info.writer_id, info.segments[-1], 0)
        for batch in read_batches(reader, info.writer_id, start):
            for kind, payload, _ in batch.frames:
                if kind == DISPATCH and needle in payload:
                    calls[record_id_of(payload)] = payload
                elif kind == USAGE and calls:
                    calls.pop(record_id_of(payload), None)
    for payload in calls.values():
        try:
            yield decode_dispatch(payload)
        except ValueError:
            continue  # written by another version


def _reserved(dispatch: Dispatch, lost: LostWindow) -> InFlight | None:
    """What the call has reserved in the window, or would have if it had been there."""
    assert dispatch.lease is not None
    reservation = reservation_of(dispatch.record_id, dispatch.organization_id, dispatch.lease)
    began_ms = reservation.reserved_at_ms or int(dispatch.timestamp * 1000)
    expires_at_ms = began_ms + int(dispatch.lease[2])
    for held in reservation.windows:
        if held.window.identity == lost.window.identity and held.period == lost.period:
            return InFlight(dispatch.record_id, held.amount, expires_at_ms)
    if not _counts(lost.window, dispatch) or not lost.period.holds(began_ms):
        return None
    reserved = dispatch.reserved
    amount = 0 if reserved is None else reserved[_POSITIONS[lost.window.unit]]
    return InFlight(dispatch.record_id, amount, expires_at_ms)


def _counts(window: WindowSpec, dispatch: Dispatch) -> bool:
    return window.scope == "org" or window.subject == dispatch.api_key_id
