"""The document's rate limits and budgets: their fields, and the rules between them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, ClassVar, Final
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, fields, post_dump, post_load, validates_schema

from router.config.document import (
    DEFAULT_THRESHOLDS,
    Budget,
    BudgetReservation,
    RateLimit,
)
from router.config.schema.fields import (
    Choice,
    DecimalNumber,
    Described,
    Flag,
    Identifier,
    Integer,
    ListOf,
    Nested,
    Text,
)
from router.config.schema.mapping import Mapping, Part
from router.config.schema.notation import format_price

MAX_REQUESTS_PER_SECOND: Final = 1_000_000
MIN_REQUESTS_PER_SECOND: Final = 0.000001
"""Rates are counted in millionths, so a lower one would be 0."""

MAX_TOKENS: Final = 9_000_000_000
"""Buckets are counted in millionths too, exactly up to this many."""

MAX_CONCURRENT: Final = 1_000_000
MAX_BUDGET_USD: Final = 9_000_000
MAX_BUDGET: Final = MAX_BUDGET_USD * 10**9
MAX_THRESHOLDS: Final = 10

_ZONE_SHAPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
# Files beside the zones in a zone database: with leap seconds, or the host's own time.
_NO_ZONES: Final = ("posix/", "right/", "localtime", "posixrules", "Factory")
_TOO_MUCH: Final = (
    f"must not be above {MAX_BUDGET_USD} USD: beyond it nano-USD are not counted exactly"
)


class Rate(Described, fields.Float):
    """Calls a second; 0 blocks."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {"minimum": 0, "maximum": MAX_REQUESTS_PER_SECOND}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise ValidationError("must be a number, or null for unlimited")
        if not 0 <= value <= MAX_REQUESTS_PER_SECOND:
            raise ValidationError(f"must be between 0 and {MAX_REQUESTS_PER_SECOND}")
        if 0 < value < MIN_REQUESTS_PER_SECOND:
            raise ValidationError("must be 0 or at least 0.000001")
        return float(value)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return int(value) if value is not None and value.is_integer() else value


class Amount(DecimalNumber):
    """USD, or a number of tokens or calls, depending on the unit."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {**DecimalNumber.JSON_SCHEMA, "maximum": MAX_BUDGET}

    def __init__(self, about: str) -> None:
        super().__init__(load_default=None, allow_none=True, about=about)


class Zone(Text):
    """The IANA name of a time zone that this host knows."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            shape=_ZONE_SHAPE,
            message="must be the IANA name of a time zone, such as Europe/Berlin",
            lengths=(1, 64),
            **kwargs,
        )

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        name = super()._deserialize(value, attr, data, **kwargs)
        try:
            if not name.startswith(_NO_ZONES):
                return ZoneInfo(name).key
        except (ValueError, OSError, LookupError):  # a directory of zones; a name too long
            pass
        raise ValidationError(f"'{name}' is no time zone that this host knows")


def _bound(most: int, about: str) -> Integer:
    return Integer(0, most, load_default=None, allow_none=True, about=about)


def _shadow() -> Flag:
    about = "true refuses nothing and records what would have been refused."
    return Flag(load_default=False, about=about)


class RateLimitSchema(Part):
    """→ :class:`~router.config.document.RateLimit`."""

    makes = RateLimit

    requests_per_second = Rate(
        required=True,
        allow_none=True,
        about="Calls a second in the long run; 0 blocks, null is unlimited.",
    )
    burst = Integer(
        0, MAX_TOKENS, about="Calls that may come at once after a pause; required with a rate."
    )
    tokens_per_minute = _bound(
        MAX_TOKENS, "Tokens a minute, input and output; 0 blocks, null is unlimited."
    )
    concurrent = _bound(MAX_CONCURRENT, "Calls that may run at once; 0 blocks, null is unlimited.")
    shadow = _shadow()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_burst(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """A rate needs a burst: without one it would admit nothing, or everything."""
        rate = data.get("requests_per_second")
        if rate is not None and isinstance(original, dict) and "burst" not in original:
            raise ValidationError("is missing", "burst")


class ReservationSchema(Mapping):
    """→ a dict; :class:`BudgetSchema` makes a :class:`~router.config.document.BudgetReservation`
    of it, with the cap in the budget's unit."""

    mode = Choice(
        ("worst_case", "capped", "floor"),
        required=True,
        about="worst_case holds what a call may use at most, capped no more than the cap, floor"
        " next to nothing.",
    )
    cap = Amount("With capped: the most that one call holds; null is the router's own cap.")

    @validates_schema
    def check_cap(self, data: dict[str, Any], **_: Any) -> None:
        """A cap without the mode that uses it is a mistake."""
        if data["cap"] is not None and data["mode"] != "capped":
            raise ValidationError("goes with the mode 'capped' only", "cap")


class BudgetSchema(Part):
    """→ :class:`~router.config.document.Budget`."""

    makes = Budget

    name = Identifier(
        required=True, about="Unique among the budgets of its owner; stands in refusals."
    )
    unit = Choice(
        ("usd", "tokens", "requests"),
        required=True,
        about="usd is refused as BUDGET_EXCEEDED, the others as QUOTA_EXCEEDED.",
    )
    period = Choice(
        ("daily", "monthly", "total"),
        required=True,
        about="When it begins anew; total never does.",
    )
    limit = Amount(
        "USD as a decimal string, or whole tokens or calls. 0 blocks what is not free, null counts"
        " without limiting."
    )
    timezone = Zone(
        load_default="UTC", about="IANA name of the zone whose midnights begin a period."
    )
    thresholds = ListOf(
        Integer(1, 100),
        load_default=lambda: list(DEFAULT_THRESHOLDS),
        unique=True,
        most=MAX_THRESHOLDS,
        about="Percentages of the limit that make an event when they are reached, once a period.",
    )
    shadow = _shadow()
    reservation = Nested(
        ReservationSchema,
        load_default=None,
        allow_none=True,
        about="What a running call holds of it; null is what ROUTER_RESERVATION says.",
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_amounts(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """What an amount may be depends on the unit. Reports all mistakes at once."""
        unit, reservation = data.get("unit"), data.get("reservation")
        wrong: dict[str, Any] = {}
        if reservation and unit == "requests":
            wrong["reservation"] = ["is for usd and tokens; a call is always one request"]
        elif reservation:
            problem = _problem(unit, reservation.get("cap"), original["reservation"].get("cap"))
            wrong |= {"reservation": {"cap": [problem]}} if problem else {}
        limit = data.get("limit")
        if limit is not None and (problem := _problem(unit, limit, original["limit"])):
            wrong["limit"] = [problem]
        if wrong:
            raise ValidationError(wrong)

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Budget:
        """With amounts in nano-USD, tokens or calls."""
        unit, reservation = data["unit"], data["reservation"]
        data["limit"] = _whole(unit, data["limit"])
        if reservation is not None:
            cap = _whole(unit, reservation["cap"])
            data["reservation"] = BudgetReservation(reservation["mode"], cap)
        budget: Budget = super().make(data)
        return budget

    @post_dump
    def write_usd(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Amounts in USD are written as decimals."""
        if data["unit"] == "usd":
            for place, name in ((data, "limit"), (data["reservation"] or {}, "cap")):
                if place.get(name) is not None:
                    place[name] = format_price(place[name])
        return data


def _problem(unit: str | None, amount: Decimal | None, written: Any) -> str | None:
    """What is wrong with an amount of this unit; ``written`` is how the document has it."""
    if amount is None or unit is None:
        return None
    counted = amount.scaleb(9) if unit == "usd" else amount
    is_whole = counted == counted.to_integral_value()
    if unit == "usd":
        if counted > MAX_BUDGET:
            return _TOO_MUCH
        return None if is_whole else "must not be finer than 0.000000001 USD"
    if not is_whole or isinstance(written, str):
        return f"must be a whole number of {unit}"
    return f"must not be above {MAX_BUDGET}" if counted > MAX_BUDGET else None


def _whole(unit: str, amount: Decimal | None) -> int | None:
    if amount is None:
        return None
    return int(amount.scaleb(9) if unit == "usd" else amount)
