"""The client of a budget service: the interface of the ledger, over HTTP.

A service that cannot reserve is asked for checks instead (:class:`ServiceAbility`). One that is
slow, dead or talks nonsense is unavailable: :class:`Unavailable`, as from a ledger whose Redis is
unavailable. Whom it does not know may spend nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import orjson
from marshmallow import Schema, ValidationError

from router.breaker import Breaker, Refused, State, Unavailable
from router.clock import Clock
from router.limits.budgets.periods import Calendar
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
from router.limits.remote.message_parts import NothingReserved, of_key
from router.limits.remote.messages import ReserveCommand, ServiceCheck, SettleCommand
from router.limits.remote.service_ability import ServiceAbility
from router.limits.remote.unnamed_budgets import UNKNOWN, unnamed

log = logging.getLogger(__name__)

_CANNOT: Final = frozenset({404, 405, 501})
_NOT_NOW: Final = _CANNOT | {401, 403, 408, 425, 429}
"""Refusals that another try may not meet with."""

_CHECK: Final = messages.CheckRequest()
_RESERVE: Final = messages.ReserveRequest()
_SETTLE: Final = messages.SettleRequest()
_RELEASE: Final = messages.ReleaseRequest()
_CHECKED: Final = messages.CheckReply()
_RESERVED: Final = messages.ReserveReply()
_DENIED: Final = messages.DeniedReply()
_SETTLED: Final = messages.SettleReply()

_MOST_UNKNOWN: Final = 1000
"""So many are logged, once each."""


class UnknownCaller(Refused):
    """The service knows no such organization, or no such key of it."""


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
        ability: ServiceAbility | None = None,
        clock: Clock | None = None,
        on_threshold: Callable[[str, ThresholdEvent], None] = lambda _organization_id, _event: None,
        on_change: Callable[[str, State], None] | None = None,
    ) -> None:
        self.endpoint: Final = endpoint.rstrip("/")
        self._session = session
        self._clock = clock or Clock()
        self._calendar = Calendar(self._clock)
        self._on_threshold = on_threshold
        self._ability = ability or ServiceAbility()
        self._unknown_organizations: set[str] = set()
        self.breaker = Breaker(NAME, probe=self._probe, on_change=on_change)

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
        reserved = Reservation(lease_id, organization_id, self._presumed(windows, amounts))
        presumed = of_key(reserved, key_id)
        try:
            return self._reserve(command, presumed)
        except UnknownCaller:
            return self._unknown(organization_id, amounts)
        except Unavailable as cause:
            raise NotReserved(cause, presumed) from cause

    def charge(self, reservation: Reservation, amounts: Amounts) -> dict[str, Any]:
        """The body of the request to settle."""
        body: dict[str, Any] = _SETTLE.dump(SettleCommand(reservation, amounts))
        return body

    def settle(
        self,
        reservation: Reservation,
        amounts: Amounts,
        charge: dict[str, Any] | None = None,
    ) -> Settlement:
        """Book what was used and free what was reserved, once, however often it is called.

        ``charge`` is the body of the request, where it was made already.
        """
        if isinstance(reservation, NothingReserved):
            return Settlement(True)
        return self._end(contract.SETTLE, charge or self.charge(reservation, amounts))

    def release(self, reservation: Reservation) -> Settlement:
        """Free what was reserved and book nothing."""
        if isinstance(reservation, NothingReserved):
            return Settlement(True)
        return self._end(contract.RELEASE, _RELEASE.dump(SettleCommand(reservation)))

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

    def _reserve(
        self, command: ReserveCommand, presumed: Reservation
    ) -> Reservation | Denied | Closed:
        ability = self._ability
        if not ability.only_checks:
            status, reply = self._post(contract.RESERVE, _RESERVE.dump(command))
            if status not in _CANNOT:
                return self._read_reserve(command, status, reply)
            code = messages.code_of(reply)
            if code == contract.UNKNOWN_ORGANIZATION or not ability.may_lack_reservations(code):
                raise self._no_answer(status, reply)
            check = self._check(command)
            if check.reserves:  # something in between has answered
                raise self._no_answer(status, reply)
            ability.lacks_reservations()
        else:
            check = self._check(command)
        return self._outcome_of_check(presumed, check, command.amounts)

    def _check(self, command: ReserveCommand) -> ServiceCheck:
        status, reply = self._post(contract.CHECK, _CHECK.dump(command))
        if status not in (200, 402):
            raise self._no_answer(status, reply)
        check = cast(ServiceCheck, self._read(_CHECKED, reply))
        if status == 402 and check.allowed:
            raise self._no_answer(status)
        self.breaker.succeeded()
        return check

    def _read_reserve(
        self, command: ReserveCommand, status: int, reply: bytes
    ) -> Reservation | Denied | Closed:
        outcome: Reservation | Denied | Closed
        if status == 409:
            self.breaker.succeeded()
            self._ability.has_reserved()
            return Closed(command.lease_id)
        if status == 402:
            found = self._read(_DENIED, reply)
            outcome = Denied(
                found["binding"], found["this_request"], found["windows"], found["dropped"]
            )
        elif status == 200:
            found = self._read(_RESERVED, reply)
            reservation = cast(Reservation, found["reservation"])
            # It is handed back when the call ends: another call's would end that one.
            if (reservation.lease_id, reservation.organization_id) != (
                command.lease_id,
                command.organization_id,
            ):
                raise self._no_answer(status)
            outcome = of_key(reservation, command.key_id)
        else:
            raise self._no_answer(status, reply)
        self.breaker.succeeded()
        self._ability.has_reserved()
        for threshold_event in found["crossings"]:
            self._on_threshold(command.organization_id, threshold_event)
        return outcome

    def _end(self, path: str, body: dict[str, Any]) -> Settlement:
        status, reply = self._post(path, body)
        if status in _CANNOT and self._ability.only_checks:
            self.breaker.succeeded()
            return Settlement(True)
        if status != 200:
            raise self._no_answer(status, reply)
        settlement = cast(Settlement, self._read(_SETTLED, reply))
        self.breaker.succeeded()
        return settlement

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if not self.breaker.allows():
            raise Unavailable(NAME, "breaker_open")
        try:
            return self._session.post(self.endpoint + path, body)
        except Unavailable as error:
            self.breaker.failed(error.reason, error.detail)
            raise

    def _read(self, schema: Schema, reply: bytes) -> Any:
        try:
            return schema.load(orjson.loads(reply))
        except (orjson.JSONDecodeError, ValidationError):
            raise self._no_answer(200, what="cannot be understood") from None

    def _no_answer(self, status: int, reply: bytes = b"", what: str = "") -> Unavailable:
        """The error for a reply that decides nothing. A request that was refused (4xx) says nothing
        about others."""
        detail = f"answered {status} {what}".strip()
        if not 400 <= status < 500:
            self.breaker.failed("lost", detail)
            return Unavailable(NAME, "lost", detail)
        self.breaker.succeeded()
        if status == 404 and messages.code_of(reply) == contract.UNKNOWN_ORGANIZATION:
            return UnknownCaller(NAME, "lost", f"{detail} {contract.UNKNOWN_ORGANIZATION}")
        kind = Unavailable if status in _NOT_NOW else Refused
        return kind(NAME, "lost", detail)

    def _unknown(self, organization_id: str, amounts: Amounts) -> Denied:
        """Refused in any case: no policy for outages lets a caller pass whom nobody knows."""
        if (
            organization_id not in self._unknown_organizations
            and len(self._unknown_organizations) < _MOST_UNKNOWN
        ):
            self._unknown_organizations.add(organization_id)
            log.warning(
                "the budget service does not know this organization, or a key of it",
                extra={"organization_id": organization_id},
            )
        return Denied(UNKNOWN, amounts.cost_nanos, (UNKNOWN,))

    def _outcome_of_check(
        self, presumed: Reservation, check: Check, amounts: Amounts
    ) -> Reservation | Denied:
        if check.allowed:
            now_ms = int(self._clock.now_s() * 1000)
            return NothingReserved(presumed.lease_id, presumed.organization_id, (), now_ms)
        binding = check.binding or unnamed(presumed)
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
        status, _ = self._session.get(self.endpoint + contract.READY)
        if not 200 <= status < 500:
            raise Unavailable(NAME, "lost", f"answered {status}")
