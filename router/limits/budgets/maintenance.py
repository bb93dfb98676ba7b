"""What happens to a ledger besides calls: lost windows are rebuilt, mistakes corrected by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, cast

from router.clock import Clock
from router.limits.budgets.ledger import SinceMsOf, clock_trouble, never_added
from router.limits.budgets.periods import Calendar
from router.limits.budgets.window_keys import (
    gone_ms,
    lease_key,
    opened_periods_key,
    read_threshold_events,
    window_keys,
    window_times,
)
from router.limits.budgets.windows import (
    MAX_AMOUNT,
    Adjustment,
    LostWindow,
    Past,
    Reservation,
    Seeding,
    SeedOutcome,
    ThresholdEvent,
    WindowLost,
    WindowSpec,
)
from router.limits.redis_keys import quoted, tag
from router.redis.scripts import Argument, Loader, Runner, ScriptCall, load_script

REMEMBER_CORRECTION_S: Final = 7 * 86_400.0

_TRIES: Final = 3

SumRecords = Callable[[LostWindow], Past | int]
"""What is known of a window's period, the orphans' records left out; a number is all of it."""


class LedgerMaintenance:
    """Seeds, adjusts and resets windows. Raises :class:`Unavailable` while Redis is unavailable."""

    def __init__(
        self,
        redis: Runner,
        *,
        clock: Clock | None = None,
        since_ms_of: SinceMsOf = never_added,
        load: Loader = load_script,
    ) -> None:
        self._redis = redis
        self._since_ms_of = since_ms_of
        self._calendar = Calendar(clock or Clock())
        self._seed = load("budgets/window.lua", "budgets/seed.lua")
        self._adjust = load("budgets/window.lua", "budgets/adjust.lua")
        self._hold_again = load("budgets/window.lua", "budgets/hold_again.lua")

    def rebuild(
        self,
        organization_id: str,
        windows: Sequence[WindowSpec],
        sum_records: SumRecords,
        *,
        siblings: Sequence[WindowSpec] = (),
    ) -> tuple[ThresholdEvent, ...]:
        """Seed every lost window with what ``sum_records`` finds. Whatever that raises passes
        through and leaves the windows lost. Returns the thresholds that are reached already.

        ``siblings``: all windows that the document has for the same owners.
        """
        threshold_events: list[ThresholdEvent] = []
        for window in windows:
            for _ in range(_TRIES):
                lost = self.inspect(organization_id, window)
                if lost is None:
                    break
                lost = replace(lost, other_names=_other_names(window, siblings or windows))
                seeding = self.seed(organization_id, lost, sum_records(lost))
                threshold_events += seeding.threshold_events
                if seeding.outcome != "stale":
                    break
        return tuple(threshold_events)

    def inspect(self, organization_id: str, window: WindowSpec) -> LostWindow | None:
        """What is needed to seed a lost window; ``None`` when it is not lost."""
        since_ms = self._since_ms_of(organization_id)
        period = self._calendar.now(window.period, window.timezone)
        asked = LostWindow(window, period, 0, (), since_ms)
        reply = self._ask_seed("inspect", organization_id, asked, Past(0))
        if reply[0] == b"period":
            self._calendar.learn(reply[1])
            asked = replace(asked, period=self._calendar.now(window.period, window.timezone))
            reply = self._ask_seed("inspect", organization_id, asked, Past(0))
        if reply[0] == b"period":
            raise clock_trouble()
        if reply[0] == b"open":
            return None
        _, generation, orphans = reply
        return replace(
            asked, generation=generation, orphans=tuple([lease.decode() for lease in orphans])
        )

    def seed(self, organization_id: str, lost: LostWindow, past: Past | int) -> Seeding:
        """Open a lost window with what is known of its period. Of many callers, one does it."""
        if isinstance(past, int):
            past = Past(past)
        if not 0 <= past.settled <= MAX_AMOUNT:
            raise ValueError(f"no amount between 0 and {MAX_AMOUNT}: {past.settled}")
        status, *crossed = self._ask_seed("seed", organization_id, lost, past)
        outcome = cast(SeedOutcome, status.decode())
        return Seeding(outcome, read_threshold_events([lost.window], crossed))

    def hold_again(self, reservation: Reservation, *, ttl_ms: int) -> bool:
        """Reserve what a running call had reserved before Redis was emptied; false if Redis was not
        emptied since. However often it is said, it is reserved once."""
        assert reservation.reserved_at_ms is not None
        prefix = tag(reservation.organization_id)
        keys = [lease_key(prefix, reservation.lease_id), opened_periods_key(prefix)]
        arguments: list[Argument] = [reservation.lease_id, reservation.epoch]
        arguments.append(reservation.reserved_at_ms + ttl_ms)
        for held in reservation.windows:
            keys += window_keys(prefix, held.window, held.period)
            arguments += (held.window.identity, held.period.start_ms, gone_ms(held.period))
            arguments.append(held.amount)
        return bool(self._redis.run(ScriptCall(self._hold_again, keys, arguments)))

    def adjust(
        self,
        organization_id: str,
        window: WindowSpec,
        amount: int,
        *,
        correction_id: str,
        reason: str,
    ) -> Adjustment:
        """Add ``amount`` to what is settled in this period, or take it off when it is negative, but
        never below 0. Once for each ``correction_id``. Raises :class:`WindowLost`."""
        return self._correct("add", organization_id, window, amount, correction_id, reason)

    def reset(
        self, organization_id: str, window: WindowSpec, *, correction_id: str, reason: str
    ) -> Adjustment:
        """Begin this period again with 0 settled; what is reserved stays."""
        return self._correct("set", organization_id, window, 0, correction_id, reason)

    def _correct(
        self,
        mode: Literal["add", "set"],
        organization_id: str,
        window: WindowSpec,
        amount: int,
        correction_id: str,
        reason: str,
    ) -> Adjustment:
        if abs(amount) > MAX_AMOUNT:
            raise ValueError(f"no amount up to {MAX_AMOUNT}: {amount}")
        if not reason.strip():
            raise ValueError("a correction needs a reason")
        for _ in range(_TRIES):
            reply = self._ask_adjust(mode, organization_id, window, amount, correction_id)
            if reply[0] == b"period":
                self._calendar.learn(reply[1])
                continue
            if reply[0] == b"lost":
                raise WindowLost(window.id)
            if reply[0] == b"done":
                return Adjustment(correction_id, window, reason, 0, 0, done_before=True)
            threshold_events = read_threshold_events([window], reply[3:])
            before, after = int(reply[1]), int(reply[2])
            return Adjustment(
                correction_id, window, reason, before, after, threshold_events=threshold_events
            )
        raise clock_trouble()

    def _ask_seed(self, mode: str, organization_id: str, lost: LostWindow, past: Past) -> list[Any]:
        prefix = tag(organization_id)
        window, in_flight = lost.window, [call for call in past.in_flight if call.amount]
        keys = [opened_periods_key(prefix), *window_keys(prefix, window, lost.period)]
        keys += [correction_key(organization_id, one) for one in past.correction_ids]
        arguments: list[Argument] = [mode, *window_times(window, lost.period), lost.since_ms]
        arguments += (past.settled, lost.generation, window.threshold_amounts)
        arguments += (int(REMEMBER_CORRECTION_S * 1000), len(in_flight), len(past.unsettled))
        for call in in_flight:
            arguments += (call.lease_id, call.amount, call.expires_at_ms)
        arguments += past.unsettled
        found: list[Any] = self._redis.run(ScriptCall(self._seed, keys, arguments))
        return found

    def _ask_adjust(
        self, mode: str, organization_id: str, window: WindowSpec, amount: int, correction_id: str
    ) -> list[Any]:
        period = self._calendar.now(window.period, window.timezone)
        prefix = tag(organization_id)
        counter, _ = window_keys(prefix, window, period)
        keys = [correction_key(organization_id, correction_id), opened_periods_key(prefix), counter]
        arguments: list[Argument] = [mode, amount, int(REMEMBER_CORRECTION_S * 1000)]
        arguments += (*window_times(window, period), window.threshold_amounts)
        found: list[Any] = self._redis.run(ScriptCall(self._adjust, keys, arguments))
        return found


def _other_names(window: WindowSpec, siblings: Sequence[WindowSpec]) -> frozenset[str]:
    owner = window.scope, window.subject
    return frozenset(
        [one.name for one in siblings if (one.scope, one.subject) == owner and one != window]
    )


def correction_key(organization_id: str, correction_id: str) -> str:
    """What is there, for ``REMEMBER_CORRECTION_S``, when a correction was made."""
    return f"{tag(organization_id)}correction:{quoted(correction_id)}"
