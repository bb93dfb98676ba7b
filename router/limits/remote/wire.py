"""The messages between router and budget service: one description of each, for both directions.

``load`` turns JSON into a value, ``dump`` turns the value back, and the contract is generated from
the same fields. Amounts are whole nano-USD (10⁻⁹ USD), tokens or requests. Requests are closed: an
unknown field is a mistake. Replies may have more fields than are listed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from marshmallow import EXCLUDE, ValidationError, post_load, validate

from router.config.schema.fields import Choice, Flag, Identifier, Integer, ListOf, Nested, Text
from router.config.schema.limits_schema import Zone
from router.config.schema.mapping import Mapping, about
from router.limits.budgets.periods import Period
from router.limits.budgets.windows import (
    MAX_AMOUNT,
    NOTHING,
    Amounts,
    Reservation,
    ReservedWindow,
    Settlement,
    ThresholdEvent,
    WindowSpec,
    WindowState,
)

MAX_WINDOWS: Final = 64
MAX_LEASE_MS: Final = 86_400_000
MAX_TIME_MS: Final = 10**15
MAX_TOTAL: Final = 2**53


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a call would fit; nothing is reserved. ``binding`` refused, and resets last."""

    allowed: bool
    binding: WindowState | None
    this_request: int
    """What the call would use of the binding window; 0 when there is none."""
    states: tuple[WindowState, ...]


@dataclass(frozen=True, slots=True)
class ReserveCommand:
    """A reservation, or a check, to be made; ``windows`` ``None`` are those the service knows."""

    organization_id: str
    key_id: str | None
    windows: tuple[WindowSpec, ...] | None
    amounts: Amounts
    lease_id: str = ""
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True)
class SettleCommand:
    """A reservation to be ended, and what the call has used of it."""

    reservation: Reservation
    amounts: Amounts = field(default_factory=lambda: NOTHING)


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


def _amount(text: str, **options: Any) -> Integer:
    return Integer(0, MAX_AMOUNT, metadata=about(text), **options)


def _total(text: str) -> Integer:
    return Integer(0, MAX_TOTAL, load_default=0, metadata=about(text))


def _time(text: str, **options: Any) -> Integer:
    return Integer(0, MAX_TIME_MS, metadata=about(text), **options)


def _lease(text: str = "Names the reservation, from the caller.") -> Text:
    return Text(required=True, lengths=(1, 128), metadata=about(text, minLength=1, maxLength=128))


def _list(item: Any, text: str, most: int | None = None, **options: Any) -> Items:
    """An optional list; without it, an empty one."""
    if most is not None:
        options["validate"] = validate.Length(max=most, error=f"must have at most {most}")
    return Items(item, load_default=(), metadata=about(text, default=[]), **options)


# --- parts ----------------------------------------------------------------------------------


class AmountsSchema(Message):
    """What a call uses, or may use."""

    makes = Amounts
    cost_nanos = _amount("Nano-USD.", required=True)
    tokens = _amount("Input and output.", required=True)
    requests = _amount("Calls.", load_default=1)


class WindowSchema(Message):
    """A budget or quota, of an organization or of one of its keys."""

    makes: ClassVar[Callable[..., Any]] = WindowSpec
    name = Text(required=True, lengths=(1, 128), metadata=about("Its name in the document."))
    unit = Choice(("usd", "tokens", "requests"), required=True, metadata=about("What it counts."))
    period = Choice(
        ("daily", "monthly", "total"), load_default="total", metadata=about("When it begins anew.")
    )
    limit = _amount(
        "In its unit; 0 blocks what is not free, null counts without limiting.",
        load_default=None,
        allow_none=True,
    )
    timezone = Zone(load_default="UTC", metadata=about("IANA name; its midnights begin periods."))
    scope = Choice(("org", "key"), load_default="org", metadata=about("Whose it is."))
    subject = Text(load_default="", metadata=about("The key's id; empty for an organization's."))
    thresholds = _list(
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
    amount = _amount("What is reserved, in the window's unit.", required=True)


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


_BINDING: Final = about("Of the windows that refuse, the one that begins anew last.")


def _states(text: str = "All windows of the call.", **options: Any) -> Items:
    return _list(Nested(StateSchema), text, most=MAX_WINDOWS, **options)


def _dropped() -> Items:
    return _list(Text(), "Leases of calls that never ended, found expired by this one.")


class ReservationSchema(OpenMessage):
    """What a call has reserved. To be handed back as it is when the call ends."""

    makes = Reservation
    lease_id = _lease()
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
    epoch = Text(load_default="", metadata=about("Which life of the ledger it belongs to."))
    dropped = _dropped()
    shadow_denied = _states("Windows that would have refused, had they been enforced.")


class ThresholdEventSchema(OpenMessage):
    """A threshold that was reached just now."""

    makes = ThresholdEvent
    window = Nested(WindowSchema, required=True, unknown=EXCLUDE, metadata=about("Of this window."))
    percent = Integer(1, 100, required=True, metadata=about("Of its limit."))


def _threshold_events(**options: Any) -> Items:
    text = "Thresholds that were reached; each is reported once a period."
    return _list(Nested(ThresholdEventSchema), text, **options)


# --- requests -------------------------------------------------------------------------------


class CheckRequest(Message):
    """Would these amounts fit?"""

    makes = ReserveCommand
    organization_id = Identifier(required=True, metadata=about("Who pays."))
    key_id = Identifier(load_default=None, allow_none=True, metadata=about("The caller's key."))
    windows = Items(
        Nested(WindowSchema),
        load_default=None,
        allow_none=True,
        validate=validate.Length(max=MAX_WINDOWS, error=f"must have at most {MAX_WINDOWS}"),
        metadata=about("Budgets of the caller; null means those that the service knows of."),
    )
    amounts = Nested(
        AmountsSchema,
        load_default=lambda: NOTHING,
        metadata=about("What the call may use; without it the windows are only read."),
    )


class ReserveRequest(CheckRequest):
    """Reserve these amounts, in all windows or in none."""

    lease_id = _lease(
        "Names the reservation: a second request with the same id reserves nothing more."
    )
    amounts = Nested(AmountsSchema, required=True, metadata=about("What the call may use."))
    ttl_ms = Integer(
        1,
        MAX_LEASE_MS,
        required=True,
        metadata=about("After so many ms it ends by itself, should nobody end it."),
    )


class ReleaseRequest(Message):
    """Give back what is reserved; nothing was used."""

    makes = SettleCommand
    reservation = Nested(ReservationSchema, required=True, metadata=about("As it was answered."))


class SettleRequest(ReleaseRequest):
    """Book what was used and give back what is reserved: once, however often it is sent."""

    amounts = Nested(AmountsSchema, required=True, metadata=about("What the call has used."))


# --- replies --------------------------------------------------------------------------------


class CheckReply(OpenMessage):
    """``allowed`` is all that a service has to say."""

    makes = Check
    allowed = Flag(required=True, metadata=about("Whether the call may go on."))
    binding = Nested(StateSchema, load_default=None, allow_none=True, metadata=_BINDING)
    this_request = _amount("What the call would use of that window.", load_default=0)
    windows = _states(attribute="states")


class ReserveReply(OpenMessage):
    """Reserved in all windows."""

    reservation = Nested(ReservationSchema, required=True, metadata=about("To be handed back."))
    crossings = _threshold_events()


class DeniedReply(OpenMessage):
    """Reserved in no window."""

    error = Text(required=True, metadata=about("For people."))
    code = Choice(
        ("BUDGET_EXCEEDED", "QUOTA_EXCEEDED"),
        required=True,
        metadata=about("Budgets are in USD, quotas in tokens or requests."),
    )
    binding = Nested(StateSchema, required=True, metadata=_BINDING)
    this_request = _amount("What the call would use of that window.", required=True)
    windows = _states()
    dropped = _dropped()
    crossings = _threshold_events()


class SettleReply(OpenMessage):
    """Ended."""

    makes = Settlement
    booked = Flag(required=True, metadata=about("false: it had been ended before."))
    crossings = _threshold_events(attribute="threshold_events")


class WindowsReply(OpenMessage):
    """What the enforcing counters say."""

    windows = _states("All windows of the organization, and of the key if one was named.")


class ErrorReply(OpenMessage):
    """Why there is no answer."""

    error = Text(required=True, lengths=(0, 4096), metadata=about("For people."))
    code = Text(required=True, metadata=about("For programs."))
    problems = _list(Text(lengths=(0, 4096)), "Each mistake of a request, with its path.")


class HealthReply(OpenMessage):
    """How the service is."""

    status = Choice(("ok", "unavailable"), required=True, metadata=about("Whether it can answer."))
