"""What the records say of a budget window that Redis has lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from router.breaker import Unavailable
from router.config.settings import Settings
from router.errors import RouterError
from router.exports.comparison import STORE
from router.limits.budgets.rebuilding import SumRecords
from router.limits.budgets.windows import LostWindow, Unit
from router.records.record_types import parse_timestamp_us
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import USAGE, Position
from router.spool.reader import SpoolReader, read_batches
from router.store.failures import StoreAbsent, StoreUnavailable
from router.store.query_pool import Queries
from router.store.record_queries import MOST_LEFT_OUT
from router.store.record_store import RecordStore
from router.store.usage_totals import SERVED, Spend

MOST_UNSTORED_BYTES: Final = 16 * 1024 * 1024
"""Of the spool; reading more would take longer than calls wait."""

_TRIES: Final = 3
_NOTHING: Final = Spend(0, 0, 0, 0)

Fields = Mapping[str, Any]


def sum_records_of(queries: Queries, settings: Settings, *, may_be_new: bool = True) -> SumRecords:
    """Sums over the records of a window's period, each record once, orphans left out.

    Added up are the record store and those records of this host's spool that the store has not
    acknowledged. A record that another host has not shipped yet is missing. A call that is settled
    at this very moment may count twice, by its record and by its settlement. The result raises
    :class:`Unavailable` when the store does not answer, or lacks more than can be read in time.

    ``may_be_new``: a store that was not made yet, and to which this host has shipped nothing, is
    empty. Only a router may assume that: a command may look in the wrong place.
    """
    tail = SpoolTail(settings.data_dir, settings.spool_dir, may_be_new)

    def sum_records(organization_id: str, lost: LostWindow) -> int:
        try:
            return queries.run(lambda store: _sum(store, tail, organization_id, lost))
        except RouterError as error:
            raise _unavailable(error.message) from None

    return sum_records


@dataclass(frozen=True, slots=True)
class SpoolTail:
    """What of a host's spool the record store has not acknowledged."""

    data_dir: Path
    spool_dir: Path
    may_be_new: bool

    def may_lack_store(self) -> bool:
        """Whether a store that is not there yet is no loss: nothing was shipped to it from here."""
        return self.may_be_new and not self._acknowledged()

    def records(self, choose: Callable[[Fields], bool]) -> dict[str, Fields]:
        """Usage records by their ids; raises :class:`Unavailable` for too many."""
        # Before the spool is read: what was acknowledged by now is in the store.
        acknowledged = self._acknowledged()
        reader = SpoolReader(self.spool_dir, observe=True)
        found = {}
        try:
            if reader.backlog_bytes(acknowledged) > MOST_UNSTORED_BYTES:
                raise _unavailable("too far behind the spool")
            for info in reader.writers():
                start = acknowledged.get(info.writer_id)
                for record in _usage_records(reader, info.writer_id, start):
                    if choose(record):
                        found[str(record.get("record_id"))] = record
        except OSError as error:
            raise _unavailable(f"the spool: {error.strerror}") from None
        return found

    def _acknowledged(self) -> dict[str, Position]:
        return Checkpoints(checkpoint_path(self.data_dir, STORE)).load()


def _usage_records(reader: SpoolReader, writer_id: str, start: Position | None) -> Iterator[Fields]:
    for batch in read_batches(reader, writer_id, start):
        for frame in batch.frames:
            if frame.kind == USAGE:
                try:
                    record = orjson.loads(frame.payload)
                except ValueError:
                    continue  # no sink takes it either
                if isinstance(record, dict):
                    yield record


def _sum(store: RecordStore, tail: SpoolTail, organization_id: str, lost: LostWindow) -> int:
    """Runs on a native thread."""
    unstored = tail.records(lambda record: _is_of(record, organization_id, lost))
    left_out = unstored.keys() | set(lost.orphans)
    if len(left_out) > MOST_LEFT_OUT:
        raise _unavailable("too far behind the spool")
    settled = _amount(_stored(store, tail, organization_id, lost, left_out), lost.window.unit)
    for record_id, record in unstored.items():
        if record_id not in lost.orphans:
            settled += _amount(_spend(record), lost.window.unit)
    return max(0, settled)


def _stored(
    store: RecordStore,
    tail: SpoolTail,
    organization_id: str,
    lost: LostWindow,
    without: set[str],
) -> Spend:
    start_ms, end_ms = lost.period
    for tries_left in reversed(range(_TRIES)):
        try:
            return store.spend(
                organization_id,
                lost.window.subject or None,
                from_s=start_ms / 1000,
                to_s=None if end_ms is None else end_ms / 1000,
                without=without,
            )
        except StoreUnavailable as error:
            may_lack = tail.may_lack_store()
            if may_lack and store.is_new():
                break  # a new router: nothing is recorded yet, or all of it is in the spool
            # An agent that has just begun may have made it in between: then it can be queried.
            if not tries_left or not (may_lack or isinstance(error, StoreAbsent)):
                raise
    return _NOTHING


def _is_of(record: Fields, organization_id: str, lost: LostWindow) -> bool:
    if record.get("organization_id") != organization_id:
        return False
    if lost.window.subject and record.get("api_key_id") != lost.window.subject:
        return False
    start_ms, end_ms = lost.period
    try:
        at_us = parse_timestamp_us(record["timestamp"])
    except (KeyError, TypeError, ValueError):
        return False  # no sink takes it either
    return start_ms * 1000 <= at_us and (end_ms is None or at_us < end_ms * 1000)


def _spend(record: Fields) -> Spend:
    outcome = record.get("outcome")
    served = outcome is None or (record.get("backend_id") is not None and outcome in SERVED)
    return Spend(
        int(served),
        record.get("tokens_input") or 0,
        record.get("tokens_output") or 0,
        record.get("cost_nanos") or 0,
    )


def _amount(spend: Spend, unit: Unit) -> int:
    if unit == "usd":
        return spend.cost_nanos
    return spend.requests if unit == "requests" else spend.tokens_input + spend.tokens_output


def _unavailable(reason: str) -> Unavailable:
    return Unavailable("record store", "lost", reason)
