"""What router and budget service say to one another: JSON → values, and the contract's schemas.

``encoding`` is the way back. Amounts are whole nano-USD (10⁻⁹ USD), tokens or requests. Requests
are closed: an unknown field is a mistake. Replies may hold more than is understood here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from marshmallow import EXCLUDE, ValidationError, post_load, validate

from router.config.schema.closed import Mapping, about
from router.config.schema.fields import Choice, Flag, Identifier, Integer, ListOf, Nested, Text
from router.config.schema.limits_schema import Zone
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
    """Whether a call would fit, with nothing held. ``binding`` refused, and resets last."""

    allowed: bool
    binding: WindowState | None
    this_request: int
    """What the call asks of the binding window; 0 when there is none."""
    states: tuple[WindowState, ...]


@dataclass(frozen=True, slots=True)
class ReserveCommand:
    """A reservation as it was asked for; ``windows`` ``None`` are those that the service knows."""

    organization_id: str
    key_id: str | None
    windows: tuple[WindowSpec, ...] | None
    amounts: Amounts
    lease_id: str = ""
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True)
class SettleCommand:
    """What is to become of a reservation."""

    reservation: Reservation
    amounts: Amounts


def _amount(text: str, **options: Any) -> Integer:
    return Integer(0, MAX_AMOUNT, metadata=about(text), **options)


def _total(text: str) -> Integer:
    return Integer(0, MAX_TOTAL, load_default=0, metadata=about(text))


def _time(text: str, **options: Any) -> Integer:
    return Integer(0, MAX_TIME_MS, metadata=about(text), **options)


def _lease(text: str = "Names the reservation, from the caller.") -> Text:
    return Text(required=True, lengths=(1, 128), metadata=about(text, minLength=1, maxLength=128))


# --- parts ----------------------------------------------------------------------------------


class AmountsSchema(Mapping):
    """What a call uses, or may use."""

    cost_nanos = _amount("Nano-USD.", required=True)
    tokens = _amount("Input and output.", required=True)
    requests = _amount("Calls.", load_default=1)

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Amounts:
        return Amounts(**data)


class WindowSchema(Mapping):
    """A budget or quota, of an organization or of one of its keys."""

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
    thresholds = ListOf(
        Integer(1, 100),
        load_default=list,
        validate=validate.Length(max=100, error="must have at most 100"),
        metadata=about("Percentages that are reported when they are reached.", default=[]),
    )
    enforced = Flag(load_default=True, metadata=about("false refuses nothing."))

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Any:
        return _window(data)


class HeldSchema(Mapping):
    """A window in the period in which the call was admitted, and what is held of it."""

    window = Nested(WindowSchema, required=True, unknown=EXCLUDE, metadata=about("The window."))
    start_ms = _time("Beginning of the period, ms since the epoch.", required=True)
    end_ms = _time("Its end; null for never.", required=True, allow_none=True)
    amount = _amount("What is held, in the window's unit.", required=True)

    class Meta:
        unknown = EXCLUDE

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> ReservedWindow:
        return ReservedWindow(
            data["window"], Period(data["start_ms"], data["end_ms"]), data["amount"]
        )


class StateSchema(WindowSchema):
    """A window with what its counter says."""

    start_ms = _time("Beginning of the period, ms since the epoch.", load_default=0)
    end_ms = _time("Its end; null for never.", load_default=None, allow_none=True)
    settled = _total("Used by calls that have ended.")
    reserved = _total("Held by calls that are running.")

    class Meta:
        unknown = EXCLUDE

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> WindowState:
        period = Period(data.pop("start_ms"), data.pop("end_ms"))
        settled, reserved = data.pop("settled"), data.pop("reserved")
        return WindowState(_window(data), period, settled, reserved)


def _states(text: str) -> ListOf:
    return ListOf(
        Nested(StateSchema),
        load_default=list,
        validate=validate.Length(max=MAX_WINDOWS, error=f"must have at most {MAX_WINDOWS}"),
        metadata=about(text, default=[]),
    )


def _dropped() -> ListOf:
    return ListOf(
        Text(),
        load_default=list,
        metadata=about("Leases of calls that never ended, found expired by this one.", default=[]),
    )


class ReservationSchema(Mapping):
    """What a call holds. To be handed back as it is when the call ends."""

    lease_id = _lease()
    organization_id = Identifier(required=True, metadata=about("Who pays."))
    windows = ListOf(
        Nested(HeldSchema),
        required=True,
        validate=validate.Length(max=MAX_WINDOWS, error=f"must have at most {MAX_WINDOWS}"),
        metadata=about("What is held where."),
    )
    reserved_at_ms = _time(
        "When; null if the caller never learned whether it was.", load_default=None, allow_none=True
    )
    epoch = Text(load_default="", metadata=about("Which life of the ledger it belongs to."))
    dropped = _dropped()
    shadow_denied = _states("Windows that would have refused, had they been enforced.")

    class Meta:
        unknown = EXCLUDE

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Reservation:
        return Reservation(
            **{
                **data,
                "windows": tuple(data["windows"]),
                "dropped": tuple(data["dropped"]),
                "shadow_denied": tuple(data["shadow_denied"]),
            }
        )


class ThresholdEventSchema(Mapping):
    """A threshold that was reached just now."""

    window = Nested(WindowSchema, required=True, unknown=EXCLUDE, metadata=about("Of this window."))
    percent = Integer(1, 100, required=True, metadata=about("Of its limit."))

    class Meta:
        unknown = EXCLUDE

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> ThresholdEvent:
        return ThresholdEvent(data["window"], data["percent"])


def _threshold_events() -> ListOf:
    return ListOf(
        Nested(ThresholdEventSchema),
        load_default=list,
        metadata=about("Thresholds that were reached; each is told once a period.", default=[]),
    )


# --- requests -------------------------------------------------------------------------------


class CheckRequest(Mapping):
    """Would these amounts fit?"""

    organization_id = Identifier(required=True, metadata=about("Who pays."))
    key_id = Identifier(load_default=None, allow_none=True, metadata=about("The caller's key."))
    windows = ListOf(
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

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> ReserveCommand:
        windows = data["windows"]
        return ReserveCommand(**{**data, "windows": None if windows is None else tuple(windows)})


class ReserveRequest(CheckRequest):
    """Hold these amounts, in all windows or in none."""

    lease_id = _lease("Names the reservation: asked for twice, it is held once.")
    amounts = Nested(AmountsSchema, required=True, metadata=about("What the call may use."))
    ttl_ms = Integer(
        1,
        MAX_LEASE_MS,
        required=True,
        metadata=about("After so many ms it ends by itself, should nobody end it."),
    )


class ReleaseRequest(Mapping):
    """Give back what is held; nothing was used."""

    reservation = Nested(ReservationSchema, required=True, metadata=about("As it was answered."))

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> SettleCommand:
        return SettleCommand(data["reservation"], data.get("amounts", NOTHING))


class SettleRequest(ReleaseRequest):
    """Book what was used and give back what is held: once, however often it is asked."""

    amounts = Nested(AmountsSchema, required=True, metadata=about("What the call has used."))


# --- replies --------------------------------------------------------------------------------


class _Reply(Mapping):
    class Meta:
        unknown = EXCLUDE


class CheckReply(_Reply):
    """``allowed`` is all that a service has to say."""

    allowed = Flag(required=True, metadata=about("Whether the call may go on."))
    binding = Nested(
        StateSchema,
        load_default=None,
        allow_none=True,
        metadata=about("Of the windows that refuse, the one that begins anew last."),
    )
    this_request = _amount("What the call asks of that window.", load_default=0)
    windows = _states("All windows of the call.")

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Check:
        states = tuple(data["windows"])
        return Check(data["allowed"], data["binding"], data["this_request"], states)


class ReserveReply(_Reply):
    """Held in all windows."""

    reservation = Nested(ReservationSchema, required=True, metadata=about("To be handed back."))
    crossings = _threshold_events()


class DeniedReply(_Reply):
    """Held in no window."""

    error = Text(required=True, metadata=about("For people."))
    code = Choice(
        ("BUDGET_EXCEEDED", "QUOTA_EXCEEDED"),
        required=True,
        metadata=about("Budgets are in USD, quotas in tokens or requests."),
    )
    binding = Nested(
        StateSchema,
        required=True,
        metadata=about("Of the windows that refuse, the one that begins anew last."),
    )
    this_request = _amount("What the call asks of that window.", required=True)
    windows = _states("All windows of the call.")
    dropped = _dropped()
    crossings = _threshold_events()


class SettleReply(_Reply):
    """Ended."""

    booked = Flag(required=True, metadata=about("false: it had been ended before."))
    crossings = _threshold_events()

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Settlement:
        return Settlement(data["booked"], tuple(data["crossings"]))


class WindowsReply(_Reply):
    """What the enforcing counters say."""

    windows = _states("All windows of the organization, and of the key if one was named.")


class ErrorReply(_Reply):
    """Why there is no answer."""

    error = Text(required=True, lengths=(0, 4096), metadata=about("For people."))
    code = Text(required=True, metadata=about("For programs."))
    problems = ListOf(
        Text(lengths=(0, 4096)),
        load_default=list,
        metadata=about("Each mistake of a request, with its path.", default=[]),
    )


class HealthReply(_Reply):
    """How the service is."""

    status = Choice(("ok", "unavailable"), required=True, metadata=about("Whether it can answer."))


def _window(data: dict[str, Any]) -> WindowSpec:
    try:
        return WindowSpec(**{**data, "thresholds": tuple(data["thresholds"])})
    except ValueError as error:
        raise ValidationError(str(error)) from None
