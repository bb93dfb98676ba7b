"""What the records say of a budget window that Redis has lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from router.breaker import Unavailable
from router.clock import Clock
from router.config.settings import Settings
from router.errors import RouterError
from router.limits.budgets.maintenance import REMEMBER_CORRECTION_S
from router.limits.budgets.rebuilding import SumRecords
from router.limits.budgets.windows import LostWindow, Past, Unit
from router.records.record_types import parse_timestamp_us
from router.store.corrections import Correction
from router.store.failures import StoreAbsent, StoreUnavailable
from router.store.in_flight import RunningCalls, unsettled_calls
from router.store.queries.budget_queries import MOST_LEFT_OUT
from router.store.queries.usage_totals import Spend
from router.store.query_pool import Queries
from router.store.record_store import RecordStore
from router.store.spool_tail import SpoolTail
from router.store.tables.rows import SERVED

REBUILD_S: Final = 60.0
"""How long one question of a rebuild may take. Calls do not wait that long, the rebuild does."""

_TRIES: Final = 3
_REMEMBER_US: Final = int(REMEMBER_CORRECTION_S * 1_000_000)

Fields = Mapping[str, Any]


def open_rebuild_queries(settings: Settings) -> Queries:
    """Queries for :func:`sum_records_of`, with a deadline of their own."""
    store = RecordStore(settings.store_url, read_only=True, query_timeout_s=REBUILD_S)
    return Queries(store, timeout_s=REBUILD_S)


def sum_records_of(
    queries: Queries,
    settings: Settings,
    *,
    may_be_new: bool = True,
) -> SumRecords:
    """Sums over the records of a window's period, each record once, orphans left out, and over the
    corrections by hand.

    Added up are the record store and those records of this host's spool that the store has not
    acknowledged. A record that another host has not shipped yet is missing. The result raises
    :class:`Unavailable` when the store does not answer, or lacks more than can be read in time.

    ``may_be_new``: a store that was not made yet, and to which this host has shipped nothing, is
    empty. Only a router may assume that: a command may look in the wrong place.
    """
    host = _Host(
        SpoolTail(settings.data_dir, settings.spool_dir, may_be_new),
        RunningCalls(settings.spool_dir),
        partial(unsettled_calls, settings.unsettled_dir),
    )

    def sum_records(organization_id: str, lost: LostWindow) -> Past:
        try:
            return queries.run(lambda store: _past(store, host, organization_id, lost))
        except RouterError as error:
            raise _unavailable(error.message) from None

    return sum_records


@dataclass(frozen=True, slots=True)
class _Host:
    """What the disk of this host has of an organization."""

    tail: SpoolTail
    running: RunningCalls
    unsettled: Callable[[str], set[str]]
    """The ids of calls that have ended and wait for their settlement."""


def _past(store: RecordStore, host: _Host, organization_id: str, lost: LostWindow) -> Past:
    """Runs on a native thread."""
    unstored = host.tail.read(organization_id, lambda record: _is_of(record, lost))
    left_out = unstored.records.keys() | set(lost.orphans)
    if len(left_out) > MOST_LEFT_OUT:
        raise _unavailable("too far behind the spool")
    stored = _stored(store, host, organization_id, lost, left_out)
    settled = _amount(stored.spend, lost.window.unit)
    for record_id in unstored.records.keys() - set(lost.orphans):
        settled += _amount(_spend(unstored.records[record_id]), lost.window.unit)
    events = {one.event_id: one for one in stored.corrections} | unstored.corrections
    corrections = made_corrections(events.values(), lost)
    oldest_us = int(Clock().now_s() * 1_000_000) - _REMEMBER_US
    # Last: a call that ends meanwhile is found by its record, or still here, or makes this stale.
    running = host.running.reserved(organization_id, lost)
    return Past(
        max(0, settled + sum([one.amount for one in corrections])),
        tuple({one.correction_id for one in corrections if one.timestamp_us >= oldest_us}),
        frozenset((unstored.records.keys() | stored.settled_late) - set(lost.orphans)),
        tuple([call for call in running if call.lease_id not in left_out]),
    )


def made_corrections(events: Iterable[Correction], lost: LostWindow) -> list[Correction]:
    """The corrections of a window, each as its last event has it.

    A budget keeps them when its period or its time zone changes. When its name changes, too, as
    long as no other budget of its owner has the old one.
    """
    window, (start_ms, end_ms) = lost.window, lost.period
    last: dict[str, Correction] = {}
    made = []
    for one in sorted(events, key=lambda one: (one.timestamp_us, one.event_id)):
        is_named = one.budget == window.name
        was_renamed = one.period == window.period and one.budget not in lost.other_names
        is_in_period = start_ms * 1000 <= one.timestamp_us and (
            end_ms is None or one.timestamp_us < end_ms * 1000
        )
        if (one.unit, one.api_key_id) != (window.unit, window.subject) or not is_in_period:
            continue
        if not (is_named or was_renamed):
            continue
        before = last.get(one.correction_id)
        if before is not None and one.timestamp_us - before.timestamp_us >= _REMEMBER_US:
            made.append(before)  # its id was forgotten, so it was made once more
        last[one.correction_id] = one
    return [*made, *last.values()]


class _Stored(NamedTuple):
    """What the store has of a window's period."""

    spend: Spend
    corrections: list[Correction]
    settled_late: set[str]
    """Records in ``spend`` whose calls may not be settled yet."""


def _stored(
    store: RecordStore,
    host: _Host,
    organization_id: str,
    lost: LostWindow,
    without: set[str],
) -> _Stored:
    start_ms, end_ms = lost.period
    period = {"from_s": start_ms / 1000, "to_s": None if end_ms is None else end_ms / 1000}
    key_id = lost.window.subject or None
    waiting = sorted(host.unsettled(organization_id))
    for tries_left in reversed(range(_TRIES)):
        try:
            # Before the sum: what is stored in between is in both, or in the sum alone.
            settled_late = store.settled_late(organization_id, key_id, waiting, **period)
            spend = store.spend(organization_id, key_id, without=without, **period)
            return _Stored(spend, store.corrections(organization_id, **period), settled_late)
        except StoreUnavailable as error:
            may_lack = host.tail.may_lack_store()
            if may_lack and store.is_new():
                break  # a new router: nothing is recorded yet, or all of it is in the spool
            # An agent that has just begun may have made it in between: then it can be queried.
            if not tries_left or not (may_lack or isinstance(error, StoreAbsent)):
                raise
    return _Stored(Spend(0, 0, 0, 0), [], set())


def _is_of(record: Fields, lost: LostWindow) -> bool:
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
