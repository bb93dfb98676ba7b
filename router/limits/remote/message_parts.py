"""Parts of the messages between router and budget service: amounts, windows, reservations.

One description of each part serves both directions: ``load`` turns JSON into a value, ``dump``
turns the value back, and the contract is generated from the same fields. Amounts are whole nano-USD
(10⁻⁹ USD), tokens or requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

from marshmallow import EXCLUDE, ValidationError, post_load, validate

from router.config.schema.fields import Choice, Flag, Identifier, Integer, ListOf, Nested, Text
from router.config.schema.limits_schema import Zone
from router.config.schema.mapping import Mapping, about
from router.limits.budgets.periods import Period
from router.limits.budgets.windows import (
    MAX_AMOUNT,
    Amounts,
    Reservation,
    ReservedWindow,
    ServiceReservation,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)

MAX_WINDOWS: Final = 64
MAX_TIME_MS: Final = 10**15
MAX_TOTAL: Final = 2**53


class Message(Mapping):
    """A message, or a part of one, which stands for a value of the type ``makes``."""

    makes: ClassVar[Callable[..., Any]] = dict

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Any:
        try:
            return type(self).makes(**data)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class OpenMessage(Message):
    """One that may have more fields than are listed; they are dropped."""

    class Meta:
        unknown = EXCLUDE


class Items(ListOf):
    """A list, as a tuple."""

    def _deserialize(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:  # type: ignore[override]
        return tuple(super()._deserialize(*args, **kwargs))


def amount_field(text: str, **options: Any) -> Integer:
    """An amount that one call can use."""
    return Integer(0, MAX_AMOUNT, metadata=about(text), **options)


def _total(text: str) -> Integer:
    return Integer(0, MAX_TOTAL, load_default=0, metadata=about(text))


def _time(text: str, **options: Any) -> Integer:
    return Integer(0, MAX_TIME_MS, metadata=about(text), **options)


def lease_field(text: str = "Names the reservation, from the caller.") -> Text:
    """The id of a lease."""
    return Text(required=True, lengths=(1, 128), metadata=about(text, minLength=1, maxLength=128))


def items_field(item: Any, text: str, most: int | None = None, **options: Any) -> Items:
    """An optional list; without it, an empty one."""
    if most is not None:
        options["validate"] = validate.Length(max=most, error=f"must have at most {most}")
    return Items(item, load_default=(), metadata=about(text, default=[]), **options)


class AmountsSchema(Message):
    """What a call uses, or may use."""

    makes = Amounts
    cost_nanos = amount_field("Nano-USD.", required=True)
    tokens = amount_field("Input and output.", required=True)
    requests = amount_field("Calls.", load_default=1)


class WindowSchema(Message):
    """A budget or quota, of an organization or of one of its keys."""

    makes: ClassVar[Callable[..., Any]] = WindowSpec
    name = Text(required=True, lengths=(1, 128), metadata=about("Its name in the document."))
    unit = Choice(("usd", "tokens", "requests"), required=True, metadata=about("What it counts."))
    period = Choice(
        ("daily", "monthly", "total"), load_default="total", metadata=about("When it begins anew.")
    )
    limit = amount_field(
        "In its unit; 0 blocks what is not free, null counts without limiting.",
        load_default=None,
        allow_none=True,
    )
    timezone = Zone(load_default="UTC", metadata=about("IANA name; its midnights begin periods."))
    scope = Choice(("org", "key"), load_default="org", metadata=about("Whose it is."))
    subject = Text(load_default="", metadata=about("The key's id; empty for an organization's."))
    thresholds = items_field(
        Integer(1, 100), "Percentages that are reported when they are reached.", most=100
    )
    enforced = Flag(load_default=True, metadata=about("false refuses nothing."))


class _InPeriod(OpenMessage):
    """A part whose value has a ``period``, of which the bounds are fields of their own."""

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        """The attribute of ``obj`` that a field shows."""
        part = obj.period if attr in ("start_ms", "end_ms") else obj
        return super().get_attribute(part, attr, default)


def _reserved(window: WindowSpec, start_ms: int, end_ms: int | None, amount: int) -> ReservedWindow:
    return ReservedWindow(window, Period(start_ms, end_ms), amount)


class ReservedWindowSchema(_InPeriod):
    """A window in the period in which the call was admitted, and what is reserved in it."""

    makes = _reserved
    window = Nested(WindowSchema, required=True, unknown=EXCLUDE, metadata=about("The window."))
    start_ms = _time("Beginning of the period, ms since the epoch.", required=True)
    end_ms = _time("Its end; null for never.", required=True, allow_none=True)
    amount = amount_field("What is reserved, in the window's unit.", required=True)


def _state(
    start_ms: int, end_ms: int | None, settled: int, reserved: int, **window: Any
) -> WindowState:
    return WindowState(WindowSpec(**window), Period(start_ms, end_ms), settled, reserved)


class StateSchema(_InPeriod, WindowSchema):
    """A window with what its counter says."""

    makes = _state
    start_ms = _time("Beginning of the period, ms since the epoch.", load_default=0)
    end_ms = _time("Its end; null for never.", load_default=None, allow_none=True)
    settled = _total("Used by calls that have ended.")
    reserved = _total("Reserved by calls that are running.")

    def get_attribute(self, obj: WindowState, attr: str, default: Any) -> Any:
        """The attribute of ``obj``, or of its window, that a field shows."""
        is_of_window = attr in WindowSchema._declared_fields
        return super().get_attribute(obj.window if is_of_window else obj, attr, default)


BINDING: Final = about("Of the windows that refuse, the one that begins anew last.")


def states_field(text: str = "All windows of the call.", **options: Any) -> Items:
    """Windows with their counters."""
    return items_field(Nested(StateSchema), text, most=MAX_WINDOWS, **options)


def dropped_field() -> Items:
    """Ids of leases that have expired."""
    return items_field(Text(), "Leases of calls that never ended, found expired by this one.")


@dataclass(slots=True)
class NothingReserved(Reservation):
    """The service was only asked whether the call fits: there is nothing that could be ended."""


def of_key(reservation: Reservation, key_id: str | None) -> Reservation:
    """``reservation`` with its key, where it has no windows that would say all of it."""
    if reservation.windows:
        return reservation
    known = {each.name: getattr(reservation, each.name) for each in fields(Reservation)}
    return ServiceReservation(**known, key_id=key_id)


def _reservation(key_id: str | None, **facts: Any) -> Reservation:
    return of_key(Reservation(**facts), key_id)


class ReservationSchema(OpenMessage):
    """What a call has reserved. To be handed back as it is when the call ends."""

    makes: ClassVar[Callable[..., Any]] = _reservation
    lease_id = lease_field()
    organization_id = Identifier(required=True, metadata=about("Who pays."))
    windows = Items(
        Nested(ReservedWindowSchema),
        required=True,
        validate=validate.Length(max=MAX_WINDOWS, error=f"must have at most {MAX_WINDOWS}"),
        metadata=about("What is reserved where."),
    )
    reserved_at_ms = _time(
        "When; null if the caller never learned whether it was.", load_default=None, allow_none=True
    )
    key_id = Identifier(
        load_default=None,
        allow_none=True,
        metadata=about("Whose call it is, where `windows` is empty and the service knows them."),
    )
    epoch = Text(load_default="", metadata=about("Which life of the ledger it belongs to."))
    dropped = dropped_field()
    shadow_denied = states_field("Windows that would have refused, had they been enforced.")


class ThresholdEventSchema(OpenMessage):
    """A threshold that was reached just now."""

    makes = ThresholdEvent
    window = Nested(WindowSchema, required=True, unknown=EXCLUDE, metadata=about("Of this window."))
    percent = Integer(1, 100, required=True, metadata=about("Of its limit."))


def threshold_events_field(**options: Any) -> Items:
    """Thresholds that were reached."""
    text = "Thresholds that were reached; each is reported once a period."
    return items_field(Nested(ThresholdEventSchema), text, **options)
