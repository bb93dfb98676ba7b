"""The client of a budget service: the interface of the ledger, over HTTP.

A service that does not reserve is asked for checks instead. One that is slow, dead or talks
nonsense is away: :class:`Unavailable`, as from a ledger whose Redis is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import orjson
from marshmallow import Schema, ValidationError

from router.breaker import Breaker, Refused, State, Unavailable
from router.clock import Clock
from router.limits.budgets.periods import TOTAL, Calendar
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Closed,
    Denied,
    NotReserved,
    Reservation,
    ReservedWindow,
    Settlement,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)
from router.limits.remote import contract as budget_contract
from router.limits.remote import wire as budget_wire
from router.limits.remote.encoding import plain_amounts, plain_reservation, plain_windows
from router.limits.remote.session import NAME, BudgetSession
from router.limits.remote.wire import Check

T = TypeVar("T")

ASK_AGAIN_S: Final = 60.0
"""For how long a service that only checks is not asked whether it reserves by now."""

_CANNOT: Final = frozenset({404, 405, 501})
_NOT_NOW: Final = frozenset({401, 403, 408, 425, 429})
"""Refusals that another try may not meet with."""

_CHECK: Final = budget_wire.CheckReply()
_RESERVED: Final = budget_wire.ReserveReply()
_DENIED: Final = budget_wire.DeniedReply()
_SETTLED: Final = budget_wire.SettleReply()


class BudgetClient:
    """Reserves, settles and releases at a budget service. For one process, built after fork.

    Without ``windows`` the service is asked about those that it knows of itself. A service that was
    found away is not asked again until a probe finds it back (:class:`Breaker`).
    """

    def __init__(
        self,
        endpoint: str,
        session: BudgetSession,
        *,
        clock: Clock | None = None,
        on_threshold: Callable[[str, ThresholdEvent], None] = lambda _organization_id, _crossing: (
            None
        ),
        on_change: Callable[[str, State], None] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._session = session
        self._clock = clock or Clock()
        self._calendar = Calendar(self._clock)
        self._on_threshold = on_threshold
        self._monotonic_s = monotonic_s
        self._checks_until_s = float("-inf")
        self.breaker = Breaker(NAME, probe=self._probe, on_change=on_change)

    @property
    def only_checks(self) -> bool:
        """Whether the service was found unable to reserve: nothing is held there."""
        return self._monotonic_s() < self._checks_until_s

    def reserve(
        self,
        organization_id: str,
        lease_id: str,
        windows: Sequence[WindowSpec],
        amounts: Amounts,
        *,
        ttl_ms: int,
        key_id: str | None = None,
    ) -> Reservation | Denied | Closed:
        """Hold ``amounts`` in every window for at most ``ttl_ms``, or touch none of them.

        Raises :class:`NotReserved` when nobody knows whether the service has done it.
        """
        asked = _question(organization_id, key_id, windows, amounts)
        presumed = Reservation(lease_id, organization_id, self._held(windows, amounts))
        try:
            if not self.only_checks:
                body = {**asked, "lease_id": lease_id, "ttl_ms": ttl_ms}
                status, reply = self._post(budget_contract.RESERVE, body)
                if status not in _CANNOT:
                    return self._read_reserve(presumed, status, reply)
                self._checks_until_s = self._monotonic_s() + ASK_AGAIN_S
            check = self._check(asked)
        except Unavailable as cause:
            raise NotReserved(cause, presumed) from cause
        return self._of_check(presumed, check, amounts)

    def settle(self, reservation: Reservation, amounts: Amounts) -> Settlement:
        """Book what was used and free what was held, once, however often it is called."""
        return self._end(budget_contract.SETTLE, reservation, {"amounts": plain_amounts(amounts)})

    def release(self, reservation: Reservation) -> Settlement:
        """Free what was held and book nothing."""
        return self._end(budget_contract.RELEASE, reservation, {})

    def read(
        self, organization_id: str, windows: Sequence[WindowSpec], *, key_id: str | None = None
    ) -> tuple[WindowState, ...]:
        """What the service's counters say now."""
        return self.check(organization_id, windows, NOTHING, key_id=key_id).states

    def check(
        self,
        organization_id: str,
        windows: Sequence[WindowSpec],
        amounts: Amounts,
        *,
        key_id: str | None = None,
    ) -> Check:
        """Whether ``amounts`` would fit now, holding nothing."""
        return self._check(_question(organization_id, key_id, windows, amounts))

    def close(self) -> None:
        """End probing and close connections."""
        self.breaker.stop()
        self._session.close()

    def _check(self, asked: dict[str, Any]) -> Check:
        status, reply = self._post(budget_contract.CHECK, asked)
        if status not in (200, 402):
            raise self._useless(status)
        check = cast(Check, self._understood(_CHECK, reply))
        if status == 402 and check.allowed:
            raise self._useless(status)
        self.breaker.succeeded()
        return check

    def _read_reserve(
        self, presumed: Reservation, status: int, reply: bytes
    ) -> Reservation | Denied | Closed:
        outcome: Reservation | Denied | Closed
        if status == 409:
            self.breaker.succeeded()
            return Closed(presumed.lease_id)
        if status == 402:
            found = self._understood(_DENIED, reply)
            states, dropped = tuple(found["windows"]), tuple(found["dropped"])
            outcome = Denied(found["binding"], found["this_request"], states, dropped)
        elif status == 200:
            found = self._understood(_RESERVED, reply)
            outcome = found["reservation"]
            held = cast(Reservation, outcome)
            # It is handed back when the call ends: another call's would end that one.
            if (held.lease_id, held.organization_id) != (
                presumed.lease_id,
                presumed.organization_id,
            ):
                raise self._useless(status)
        else:
            raise self._useless(status)
        self.breaker.succeeded()
        for threshold_event in found["crossings"]:
            self._on_threshold(presumed.organization_id, threshold_event)
        return outcome

    def _end(self, path: str, reservation: Reservation, more: dict[str, Any]) -> Settlement:
        if not reservation.windows and reservation.reserved_at_ms is not None:
            return Settlement(True)  # there is nothing that could be ended
        status, reply = self._post(path, {"reservation": plain_reservation(reservation), **more})
        if status in _CANNOT:  # it only checks, and holds nothing
            self.breaker.succeeded()
            return Settlement(True)
        if status != 200:
            raise self._useless(status)
        settlement = cast(Settlement, self._understood(_SETTLED, reply))
        self.breaker.succeeded()
        return settlement

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if not self.breaker.allows():
            raise Unavailable(NAME, "breaker_open")
        try:
            return self._session.post(self._endpoint + path, body)
        except Unavailable as error:
            self.breaker.failed(error.reason, error.detail)
            raise

    def _understood(self, schema: Schema, reply: bytes) -> Any:
        try:
            return schema.load(orjson.loads(reply))
        except (orjson.JSONDecodeError, ValidationError):
            raise self._useless(200, "cannot be understood") from None

    def _useless(self, status: int, what: str = "") -> Unavailable:
        """An answer that is none. That a question was refused (4xx) says nothing about others."""
        detail = f"answered {status} {what}".strip()
        if status in _NOT_NOW or not 400 <= status < 500:
            error = Unavailable(NAME, "lost", detail)
        else:
            error = Refused(NAME, "lost", detail)
        if 400 <= status < 500:
            self.breaker.succeeded()
        else:
            self.breaker.failed(error.reason, error.detail)
        return error

    def _of_check(
        self, presumed: Reservation, check: Check, amounts: Amounts
    ) -> Reservation | Denied:
        if check.allowed:
            now_ms = int(self._clock.now_s() * 1000)
            return Reservation(presumed.lease_id, presumed.organization_id, (), now_ms)
        binding = check.binding or _unnamed(presumed)
        this_request = check.this_request or amounts.of(binding.window.unit)
        return Denied(binding, this_request, check.states)

    def _held(self, windows: Sequence[WindowSpec], amounts: Amounts) -> tuple[ReservedWindow, ...]:
        """What the service would hold: by this host's clock, as the ledger presumes it too."""
        now = self._calendar.now
        return tuple(
            [
                ReservedWindow(spec, now(spec.period, spec.timezone), amounts.of(spec.unit))
                for spec in windows
            ]
        )

    def _probe(self) -> None:
        """Raises while the service is away. One that knows no such path is there all the same."""
        status, _ = self._session.get(self._endpoint + budget_contract.READY)
        if not 200 <= status < 500:
            raise Unavailable(NAME, "lost", f"answered {status}")


def _question(
    organization_id: str, key_id: str | None, windows: Sequence[WindowSpec], amounts: Amounts
) -> dict[str, Any]:
    return {
        "organization_id": organization_id,
        "key_id": key_id,
        "windows": plain_windows(windows),
        "amounts": plain_amounts(amounts),
    }


def _unnamed(presumed: Reservation) -> WindowState:
    """A service that says no and nothing else: its refusal is put down to the first budget in USD,
    or where the router knows of none to one without figures."""
    held = sorted(presumed.windows, key=lambda entry: entry.window.unit != "usd")
    if held:
        return WindowState(held[0].window, held[0].period, 0, 0)
    return WindowState(WindowSpec("budget", "usd", "total", None), TOTAL, 0, 0)
