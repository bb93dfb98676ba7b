"""The messages between router and budget service: one description of each, for both directions.

``load`` turns JSON into a value, ``dump`` turns the value back. Requests are closed: an unknown
field is a mistake. Replies may have more fields than are listed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import orjson
from marshmallow import validate

from router.config.schema.fields import Choice, Flag, Identifier, Integer, Nested, Text
from router.config.schema.mapping import about
from router.limits.budgets.windows import (
    NOTHING,
    Amounts,
    Check,
    Reservation,
    Settlement,
    WindowSpec,
)
from router.limits.remote.message_parts import (
    BINDING,
    MAX_WINDOWS,
    AmountsSchema,
    Items,
    Message,
    OpenMessage,
    ReservationSchema,
    StateSchema,
    WindowSchema,
    amount_field,
    dropped_field,
    items_field,
    lease_field,
    states_field,
    threshold_events_field,
)

MAX_LEASE_MS: Final = 86_400_000


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


@dataclass(frozen=True, slots=True)
class ServiceCheck(Check):
    """What a check found, and whether the service could have reserved instead."""

    reserves: bool = False


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

    lease_id = lease_field(
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


class CheckReply(OpenMessage):
    """``allowed`` is all that a service has to say."""

    makes = ServiceCheck
    allowed = Flag(required=True, metadata=about("Whether the call may go on."))
    binding = Nested(StateSchema, load_default=None, allow_none=True, metadata=BINDING)
    this_request = amount_field("What the call would use of that window.", load_default=0)
    windows = states_field(attribute="states")
    reserves = Flag(
        load_default=False,
        dump_default=True,
        metadata=about("The service can reserve, so a 404 to a reservation is not its own."),
    )


class ReserveReply(OpenMessage):
    """Reserved in all windows."""

    reservation = Nested(ReservationSchema, required=True, metadata=about("To be handed back."))
    crossings = threshold_events_field()


class DeniedReply(OpenMessage):
    """Reserved in no window."""

    error = Text(required=True, metadata=about("For people."))
    code = Choice(
        ("BUDGET_EXCEEDED", "QUOTA_EXCEEDED"),
        required=True,
        metadata=about("Budgets are in USD, quotas in tokens or requests."),
    )
    binding = Nested(StateSchema, required=True, metadata=BINDING)
    this_request = amount_field("What the call would use of that window.", required=True)
    windows = states_field()
    dropped = dropped_field()
    crossings = threshold_events_field()


class SettleReply(OpenMessage):
    """Ended."""

    makes = Settlement
    booked = Flag(required=True, metadata=about("false: it had been ended before."))
    crossings = threshold_events_field(attribute="threshold_events")


class WindowsReply(OpenMessage):
    """What the enforcing counters say."""

    windows = states_field("All windows of the organization, and of the key if one was named.")


class ErrorReply(OpenMessage):
    """Why there is no answer."""

    error = Text(required=True, lengths=(0, 4096), metadata=about("For people."))
    code = Text(required=True, metadata=about("For programs."))
    problems = items_field(Text(lengths=(0, 4096)), "Each mistake of a request, with its path.")


class HealthReply(OpenMessage):
    """How the service is."""

    status = Choice(("ok", "unavailable"), required=True, metadata=about("Whether it can answer."))


def code_of(reply: bytes) -> str | None:
    """The code of an error of the service; ``None`` where something else has answered."""
    try:
        found = orjson.loads(reply)
    except orjson.JSONDecodeError:
        return None
    code = found.get("code") if isinstance(found, dict) else None
    return code if isinstance(code, str) else None
