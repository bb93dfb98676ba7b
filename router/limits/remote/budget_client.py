"""The client of a budget service: the interface of the ledger, over HTTP.

A service that cannot reserve is asked for checks instead. One that is slow, dead or talks nonsense
is unavailable: :class:`Unavailable`, as from a ledger whose Redis is unavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import orjson
from marshmallow import Schema, ValidationError

from router.breaker import Breaker, Refused, State, Unavailable
from router.clock import Clock
from router.limits.budgets.periods import TOTAL, Calendar
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Check,
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
from router.limits.remote import contract, messages
from router.limits.remote.budget_session import NAME, BudgetSession
from router.limits.remote.messages import ReserveCommand, SettleCommand

CHECKS_ONLY_S: Final = 60.0
"""For how long a service that cannot reserve is asked for checks before it is asked again."""

_CANNOT: Final = frozenset({404, 405, 501})
_NOT_NOW: Final = frozenset({401, 403, 408, 425, 429})
"""Refusals that another try may not meet with."""

_CHECK: Final = messages.CheckRequest()
_RESERVE: Final = messages.ReserveRequest()
_SETTLE: Final = messages.SettleRequest()
_RELEASE: Final = messages.ReleaseRequest()
_CHECKED: Final = messages.CheckReply()
_RESERVED: Final = messages.ReserveReply()
_DENIED: Final = messages.DeniedReply()
_SETTLED: Final = messages.SettleReply()


class BudgetClient:
    """Reserves, settles and releases at a budget service. For one process, built after fork.

    Without ``windows`` the service decides about those that it knows of itself. A service that was
    found unavailable is not asked again until a probe finds that it is back (:class:`Breaker`).
    """

    def __init__(
        self,
        endpoint: str,
        session: BudgetSession,
        *,
        clock: Clock | None = None,
        on_threshold: Callable[[str, ThresholdEvent], None] = lambda _organization_id, _event: None,
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
        """Whether the service was found unable to reserve: nothing is reserved there."""
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
        """Reserve ``amounts`` in every window for at most ``ttl_ms``, or touch none of them.

        Raises :class:`NotReserved` when nobody knows whether the service has done it.
        """
        wanted = tuple(windows) or None
        command = ReserveCommand(organization_id, key_id, wanted, amounts, lease_id, ttl_ms)
        presumed = Reservation(lease_id, organization_id, self._presumed(windows, amounts))
        try:
            if not self.only_checks:
                status, reply = self._post(contract.RESERVE, _RESERVE, command)
                if status not in _CANNOT:
                    return self._read_reserve(presumed, status, reply)
                self._checks_until_s = self._monotonic_s() + CHECKS_ONLY_S
            check = self._check(command)
        except Unavailable as cause:
            raise NotReserved(cause, presumed) from cause
        return self._outcome_of_check(presumed, check, amounts)

    def settle(self, reservation: Reservation, amounts: Amounts) -> Settlement:
        """Book what was used and free what was reserved, once, however often it is called."""
        return self._end(contract.SETTLE, _SETTLE, SettleCommand(reservation, amounts))

    def release(self, reservation: Reservation) -> Settlement:
        """Free what was reserved and book nothing."""
        return self._end(contract.RELEASE, _RELEASE, SettleCommand(reservation))

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
        """Whether ``amounts`` would fit now; reserves nothing."""
        return self._check(ReserveCommand(organization_id, key_id, tuple(windows) or None, amounts))

    def close(self) -> None:
        """End the probes and close all connections."""
        self.breaker.stop()
        self._session.close()

    def _check(self, command: ReserveCommand) -> Check:
        status, reply = self._post(contract.CHECK, _CHECK, command)
        if status not in (200, 402):
            raise self._no_answer(status)
        check = cast(Check, self._read(_CHECKED, reply))
        if status == 402 and check.allowed:
            raise self._no_answer(status)
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
            found = self._read(_DENIED, reply)
            outcome = Denied(
                found["binding"], found["this_request"], found["windows"], found["dropped"]
            )
        elif status == 200:
            found = self._read(_RESERVED, reply)
            reservation = outcome = cast(Reservation, found["reservation"])
            # It is handed back when the call ends: another call's would end that one.
            if (reservation.lease_id, reservation.organization_id) != (
                presumed.lease_id,
                presumed.organization_id,
            ):
                raise self._no_answer(status)
        else:
            raise self._no_answer(status)
        self.breaker.succeeded()
        for threshold_event in found["crossings"]:
            self._on_threshold(presumed.organization_id, threshold_event)
        return outcome

    def _end(self, path: str, schema: Schema, command: SettleCommand) -> Settlement:
        reservation = command.reservation
        if not reservation.windows and reservation.reserved_at_ms is not None:
            return Settlement(True)  # there is nothing that could be ended
        status, reply = self._post(path, schema, command)
        if status in _CANNOT:  # it only checks, and reserves nothing
            self.breaker.succeeded()
            return Settlement(True)
        if status != 200:
            raise self._no_answer(status)
        settlement = cast(Settlement, self._read(_SETTLED, reply))
        self.breaker.succeeded()
        return settlement

    def _post(self, path: str, schema: Schema, command: object) -> tuple[int, bytes]:
        if not self.breaker.allows():
            raise Unavailable(NAME, "breaker_open")
        try:
            return self._session.post(self._endpoint + path, schema.dump(command))
        except Unavailable as error:
            self.breaker.failed(error.reason, error.detail)
            raise

    def _read(self, schema: Schema, reply: bytes) -> Any:
        try:
            return schema.load(orjson.loads(reply))
        except (orjson.JSONDecodeError, ValidationError):
            raise self._no_answer(200, "cannot be understood") from None

    def _no_answer(self, status: int, what: str = "") -> Unavailable:
        """The error for a reply that decides nothing. A request that was refused (4xx) says nothing
        about others."""
        detail = f"answered {status} {what}".strip()
        if not 400 <= status < 500:
            self.breaker.failed("lost", detail)
            return Unavailable(NAME, "lost", detail)
        self.breaker.succeeded()
        kind = Unavailable if status in _NOT_NOW else Refused
        return kind(NAME, "lost", detail)

    def _outcome_of_check(
        self, presumed: Reservation, check: Check, amounts: Amounts
    ) -> Reservation | Denied:
        if check.allowed:
            now_ms = int(self._clock.now_s() * 1000)
            return Reservation(presumed.lease_id, presumed.organization_id, (), now_ms)
        binding = check.binding or _unnamed(presumed)
        this_request = check.this_request or amounts.of(binding.window.unit)
        return Denied(binding, this_request, check.states)

    def _presumed(
        self, windows: Sequence[WindowSpec], amounts: Amounts
    ) -> tuple[ReservedWindow, ...]:
        """What the service would reserve, by this host's clock, as the ledger presumes it too."""
        now = self._calendar.now
        return tuple(
            [
                ReservedWindow(spec, now(spec.period, spec.timezone), amounts.of(spec.unit))
                for spec in windows
            ]
        )

    def _probe(self) -> None:
        """Raise while the service is unavailable. One that knows no such path is available."""
        status, _ = self._session.get(self._endpoint + contract.READY)
        if not 200 <= status < 500:
            raise Unavailable(NAME, "lost", f"answered {status}")


def _unnamed(presumed: Reservation) -> WindowState:
    """The budget that is shown where a service says no and nothing else: the first one in USD, or
    one without figures where the router knows of none."""
    reserved = sorted(presumed.windows, key=lambda entry: entry.window.unit != "usd")
    if reserved:
        return WindowState(reserved[0].window, reserved[0].period, 0, 0)
    return WindowState(WindowSpec("budget", "usd", "total", None), TOTAL, 0, 0)
