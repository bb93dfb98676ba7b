"""The budget ledger: what is settled and what is reserved, in Redis, exact under concurrency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from router.breaker import Unavailable
from router.clock import Clock
from router.limits.budgets.periods import Calendar, Period
from router.limits.budgets.window_keys import (
    gone_ms,
    lease_key,
    opened_periods_key,
    read_threshold_events,
    window_keys,
    window_times,
)
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    NeedsRebuild,
    NotReserved,
    Reservation,
    ReservedWindow,
    ReserveOutcome,
    Settlement,
    WindowSpec,
    WindowState,
)
from router.limits.recent import Recent
from router.limits.redis_keys import tag
from router.redis.scripts import (
    Argument,
    Blank,
    Loader,
    Runner,
    ScriptCall,
    Template,
    load_script,
)

REMEMBER_S: Final = 120.0
"""How long a settled lease is remembered, from its reservation. Only a duplicate that comes later,
after Redis was emptied or failed over in between, could be booked twice."""

LATE_S: Final = 86_400.0
"""How long after its lease a call may still be settled."""

_TRIES: Final = 3

SinceMsOf = Callable[[str], int]
"""When a budget was last added to an organization or one of its keys, in ms since the epoch; 0 if
never. Windows that were seeded before have missed the calls in between."""


def never_added(_organization_id: str) -> int:
    """For a document that never changes."""
    return 0


@dataclass(slots=True)
class ReservePlan:
    """A reservation ready to be sent, alone or together with other scripts."""

    call: ScriptCall
    presumed: Reservation


class Ledger:
    """Reserves and settles, in all windows of a call or in none.

    Periods are those of Redis' clock: the local clock proposes, the scripts refuse what theirs does
    not agree with. Each method is one round trip, a second one only within the clocks' difference
    of a period's end, and raises :class:`Unavailable` while Redis is unavailable.
    """

    def __init__(
        self,
        redis: Runner,
        *,
        clock: Clock | None = None,
        remember_s: float = REMEMBER_S,
        since_ms_of: SinceMsOf = never_added,
        load: Loader = load_script,
    ) -> None:
        self._redis = redis
        self._calendar = Calendar(clock or Clock())
        self._remember_ms = int(remember_s * 1000)
        self._late_ms = int(LATE_S * 1000)
        self._since_ms_of = since_ms_of
        self._reserve = load("budgets/window.lua", "budgets/reserve.lua")
        self._settle = load("budgets/window.lua", "budgets/settle.lua")
        self._reserves: Recent[Template] = Recent()
        self._settles: Recent[Template] = Recent()

    def reserve(
        self,
        organization_id: str,
        lease_id: str,
        windows: Sequence[WindowSpec],
        amounts: Amounts,
        *,
        ttl_ms: int,
    ) -> ReserveOutcome:
        """Hold ``amounts`` in every window for at most ``ttl_ms``, or touch none of them.

        A second call with a live lease answers like the first and holds nothing more. Raises
        :class:`NotReserved` when nobody knows whether Redis has done it.
        """
        if not windows:
            return Reservation(lease_id, organization_id, ())
        for _ in range(_TRIES):
            plan = self.plan_reserve(organization_id, lease_id, windows, amounts, ttl_ms=ttl_ms)
            try:
                reply = self._redis.run(plan.call)
            except Unavailable as cause:
                raise NotReserved(cause, plan.presumed) from cause
            outcome = self.read_reserve(plan, reply)
            if outcome is not None:
                return outcome
        raise clock_trouble()

    def plan_reserve(
        self,
        organization_id: str,
        lease_id: str,
        windows: Sequence[WindowSpec],
        amounts: Amounts,
        *,
        ttl_ms: int,
    ) -> ReservePlan:
        """What :meth:`reserve` would send."""
        reserved = self._reserved(windows, amounts)
        call = self._reserve_call("reserve", organization_id, lease_id, reserved, ttl_ms)
        return ReservePlan(call, Reservation(lease_id, organization_id, reserved))

    def read_reserve(self, plan: ReservePlan, reply: Any) -> ReserveOutcome | None:
        """What Redis made of a plan; ``None`` when it has to be planned anew in another period."""
        status, now_ms, epoch, dropped_ids, *rows = reply
        presumed = plan.presumed
        if status == b"period":
            self._calendar.learn(now_ms)
            return None
        if status == b"closed":
            return Closed(presumed.lease_id)
        dropped = tuple([lease.decode() for lease in dropped_ids])
        if status == b"reserved":
            return Reservation(
                presumed.lease_id,
                presumed.organization_id,
                self._pinned(presumed.windows, now_ms),
                reserved_at_ms=now_ms,
                epoch=epoch.decode(),
                dropped=dropped,
                shadow_denied=_refusing(presumed.windows, rows),
            )
        if status == b"rebuild":
            states = _states(presumed.windows, rows)
            return NeedsRebuild(tuple([state.window for state in states if state.lost]))
        return _denied(presumed.windows, rows, dropped, now_ms)

    def settle(self, reservation: Reservation, amounts: Amounts) -> Settlement:
        """Book what was used and free what was reserved: once, however often it is called, and also
        after the lease has expired."""
        if not reservation.windows:
            return Settlement(True)
        call = self.plan_settle(reservation, amounts)
        return self.read_settle(reservation, self._redis.run(call))

    def plan_settle(self, reservation: Reservation, amounts: Amounts) -> ScriptCall:
        """What :meth:`settle` would send."""
        at_ms, windows = reservation.reserved_at_ms, reservation.windows
        key = (
            reservation.organization_id,
            *[_facts(entry.window, entry.period) for entry in windows],
        )
        template = self._settles.get(key)
        if template is None:
            template = self._settles[key] = self._settle_template(reservation)
        lease_id = reservation.lease_id
        values = [lease_key(tag(reservation.organization_id), lease_id), lease_id]
        values += ("" if at_ms is None else str(at_ms), reservation.epoch)
        for entry in windows:
            values += (str(entry.amount), str(amounts.of(entry.window.unit)))
        return template.filled(values)

    def _settle_template(self, reservation: Reservation) -> Template:
        prefix = tag(reservation.organization_id)
        keys: list[str | Blank] = [Blank(0), opened_periods_key(prefix)]
        arguments: list[Argument | Blank] = [Blank(1), Blank(2), Blank(3)]
        arguments += (self._remember_ms, self._late_ms)
        for index, entry in enumerate(reservation.windows):
            window, period = entry.window, entry.period
            keys += window_keys(prefix, window, period)
            arguments += (window.identity, period.start_ms, gone_ms(period))
            arguments += (Blank(4 + 2 * index), Blank(5 + 2 * index), window.threshold_amounts)
        return Template(self._settle, keys, arguments)

    def read_settle(self, reservation: Reservation, reply: Any) -> Settlement:
        """What Redis made of it."""
        status, *crossed = reply
        windows = [reserved.window for reserved in reservation.windows]
        return Settlement(status == b"booked", read_threshold_events(windows, crossed))

    def read(self, organization_id: str, windows: Sequence[WindowSpec]) -> tuple[WindowState, ...]:
        """What the enforcing counters say now, which is what the next refusal would say."""
        for _ in range(_TRIES):
            reserved = self._reserved(windows, NOTHING)
            call = self._reserve_call("read", organization_id, "", reserved, 0)
            reply = self._redis.run(call)
            if reply[0] != b"period":
                return _states(reserved, reply[4:])
            self._calendar.learn(reply[1])
        raise clock_trouble()

    def _reserved(
        self, windows: Sequence[WindowSpec], amounts: Amounts
    ) -> tuple[ReservedWindow, ...]:
        at_ms, period_at = self._calendar.now_ms(), self._calendar.period_at
        return tuple(
            [
                ReservedWindow(
                    spec, period_at(spec.period, spec.timezone, at_ms), amounts.of(spec.unit)
                )
                for spec in windows
            ]
        )

    def _pinned(
        self, reserved: tuple[ReservedWindow, ...], reserved_at_ms: int
    ) -> tuple[ReservedWindow, ...]:
        if all(entry.period.holds(reserved_at_ms) for entry in reserved):
            return reserved
        # A second reservation, in a new period, of a lease that is reserved in the one before.
        return tuple(
            [
                replace(
                    entry,
                    period=self._calendar.period_at(
                        entry.window.period, entry.window.timezone, reserved_at_ms
                    ),
                )
                for entry in reserved
            ]
        )

    def _reserve_call(
        self,
        mode: str,
        organization_id: str,
        lease_id: str,
        reserved: Sequence[ReservedWindow],
        ttl_ms: int,
    ) -> ScriptCall:
        since_ms = self._since_ms_of(organization_id)
        facts = [_facts(entry.window, entry.period) for entry in reserved]
        key = (organization_id, mode, ttl_ms, since_ms, *facts)
        template = self._reserves.get(key)
        if template is None:
            template = self._reserve_template(mode, organization_id, reserved, ttl_ms, since_ms)
            self._reserves[key] = template
        values = [lease_key(tag(organization_id), lease_id), lease_id]
        values += [str(entry.amount) for entry in reserved]
        return template.filled(values)

    def _reserve_template(
        self,
        mode: str,
        organization_id: str,
        reserved: Sequence[ReservedWindow],
        ttl_ms: int,
        since_ms: int,
    ) -> Template:
        prefix = tag(organization_id)
        keys: list[str | Blank] = [Blank(0), opened_periods_key(prefix)]
        arguments: list[Argument | Blank] = [mode, Blank(1), ttl_ms, self._late_ms, len(reserved)]
        arguments.append(since_ms)
        for index, entry in enumerate(reserved):
            window = entry.window
            keys += window_keys(prefix, window, entry.period)
            arguments += window_times(window, entry.period)
            limit = -1 if window.limit is None else window.limit
            arguments += (limit, Blank(2 + index), int(window.enforced))
        return Template(self._reserve, keys, arguments)


def _facts(window: WindowSpec, period: Period) -> tuple[object, ...]:
    """All of a window and its period that the scripts are told."""
    return window.identity, period, window.limit, window.enforced, window.threshold_amounts


def clock_trouble() -> Unavailable:
    """Redis' clock jumped out of a period again while its periods were looked up."""
    return Unavailable("ledger", "script", "the clock of Redis does not stand still")


def _states(reserved: Sequence[ReservedWindow], rows: list[bytes]) -> tuple[WindowState, ...]:
    """Settled, reserved and verdict of each window, in turns."""
    return tuple(
        [
            WindowState(
                entry.window, entry.period, int(settled), int(reserved), lost=verdict == b"2"
            )
            for entry, settled, reserved, verdict in zip(
                reserved, rows[::3], rows[1::3], rows[2::3], strict=True
            )
        ]
    )


def _refusing(reserved: Sequence[ReservedWindow], rows: list[bytes]) -> tuple[WindowState, ...]:
    verdicts = rows[2::3]
    if b"0" not in verdicts:
        return ()
    states = _states(reserved, rows)
    return tuple([state for state, fits in zip(states, verdicts, strict=True) if fits == b"0"])


def _denied(
    reserved: Sequence[ReservedWindow], rows: list[bytes], dropped: tuple[str, ...], now_ms: int
) -> Denied:
    refusing = [state for state in _refusing(reserved, rows) if state.window.enforced]
    amounts = {entry.window.id: entry.amount for entry in reserved}

    def severity(state: WindowState) -> tuple[bool, float]:
        is_spent = not state.has_room_beside_settled(amounts[state.window.id])
        return is_spent, state.period.end_ms or float("inf")

    binding = max(refusing, key=severity)
    states = _states(reserved, rows)
    return Denied(binding, amounts[binding.window.id], states, dropped, now_ms)
