"""The document's rate limits and budgets: their fields, and what holds between them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, fields, post_load, validate, validates_schema

from router.config.document import (
    DEFAULT_THRESHOLDS,
    Budget,
    BudgetReservation,
    RateLimit,
)
from router.config.schema.closed import Mapping, about, unique
from router.config.schema.fields import (
    Choice,
    Flag,
    Identifier,
    Integer,
    ListOf,
    Nested,
    Text,
    parse_decimal,
)

MAX_REQUESTS_PER_SECOND: Final = 1_000_000
MIN_REQUESTS_PER_SECOND: Final = 0.000001
"""Below it nothing would ever flow in: rates are counted in millionths."""

MAX_TOKENS: Final = 9_000_000_000
"""Buckets are counted in millionths too, and exact up to here."""

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


class Rate(fields.Float):
    """Calls a second; 0 blocks."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {
            "minimum": 0,
            "maximum": MAX_REQUESTS_PER_SECOND,
            **kwargs.pop("metadata", {}),
        }
        super().__init__(metadata=metadata, error_messages={"required": "is missing"}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise ValidationError("must be a number, or null for unlimited")
        if not 0 <= value <= MAX_REQUESTS_PER_SECOND:
            raise ValidationError(f"must be between 0 and {MAX_REQUESTS_PER_SECOND}")
        if 0 < value < MIN_REQUESTS_PER_SECOND:
            raise ValidationError("must be 0 or at least 0.000001")
        return float(value)


class Amount(fields.Field[Decimal]):
    """USD as decimal text or a number, or a number of tokens or calls; the unit tells which."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {
            "type": ["string", "number"],
            "pattern": "^[0-9]+(\\.[0-9]+)?$",
            "minimum": 0,
            "maximum": MAX_BUDGET,
            **kwargs.pop("metadata", {}),
        }
        super().__init__(load_default=None, allow_none=True, metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Decimal:
        amount = parse_decimal(value)
        if amount < 0:
            raise ValidationError("must not be negative")
        return amount


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


class RateLimitSchema(Mapping):
    """→ :class:`~router.config.document.RateLimit`."""

    requests_per_second = Rate(
        required=True,
        allow_none=True,
        metadata=about("Calls a second in the long run; 0 blocks, null is unlimited."),
    )
    burst = Integer(
        0,
        MAX_TOKENS,
        metadata=about("Calls that may come at once after a pause; required with a rate."),
    )
    tokens_per_minute = Integer(
        0,
        MAX_TOKENS,
        load_default=None,
        allow_none=True,
        metadata=about("Tokens a minute, input and output; 0 blocks, null is unlimited."),
    )
    concurrent = Integer(
        0,
        MAX_CONCURRENT,
        load_default=None,
        allow_none=True,
        metadata=about("Calls that may run at once; 0 blocks, null is unlimited."),
    )
    shadow = Flag(
        load_default=False,
        metadata=about("true refuses nothing and records what would have been refused."),
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_burst(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """A rate without a burst would let nothing through, or everything."""
        rate = data.get("requests_per_second")
        if rate is not None and isinstance(original, dict) and "burst" not in original:
            raise ValidationError("is missing", "burst")

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> RateLimit:
        return RateLimit(**data)


class ReservationSchema(Mapping):
    """→ a dict, whose cap is turned into the budget's unit by :class:`BudgetSchema`."""

    mode = Choice(
        ("worst_case", "capped", "floor"),
        required=True,
        metadata=about(
            "worst_case holds what a call may use at most, capped no more than the cap, floor next"
            " to nothing."
        ),
    )
    cap = Amount(
        metadata=about("With capped: the most that one call holds; null is the router's own cap.")
    )

    @validates_schema
    def check_cap(self, data: dict[str, Any], **_: Any) -> None:
        """A cap that nobody looks at is a mistake."""
        if data["cap"] is not None and data["mode"] != "capped":
            raise ValidationError("goes with the mode 'capped' only", "cap")


class BudgetSchema(Mapping):
    """→ :class:`~router.config.document.Budget`."""

    name = Identifier(
        required=True, metadata=about("Unique among the budgets of its owner; stands in refusals.")
    )
    unit = Choice(
        ("usd", "tokens", "requests"),
        required=True,
        metadata=about("usd is refused as BUDGET_EXCEEDED, the others as QUOTA_EXCEEDED."),
    )
    period = Choice(
        ("daily", "monthly", "total"),
        required=True,
        metadata=about("When it begins anew; total never does."),
    )
    limit = Amount(
        metadata=about(
            "USD as a decimal string, or whole tokens or calls. 0 blocks what is not free, null"
            " counts without limiting."
        )
    )
    timezone = Zone(
        load_default="UTC", metadata=about("IANA name of the zone whose midnights begin a period.")
    )
    thresholds = ListOf(
        Integer(1, 100),
        load_default=lambda: list(DEFAULT_THRESHOLDS),
        validate=[
            unique,
            validate.Length(max=MAX_THRESHOLDS, error=f"must have at most {MAX_THRESHOLDS}"),
        ],
        metadata=about(
            "Percentages of the limit that make an event when they are reached, once a period.",
            default=list(DEFAULT_THRESHOLDS),
            uniqueItems=True,
        ),
    )
    shadow = Flag(
        load_default=False,
        metadata=about("true refuses nothing and records what would have been refused."),
    )
    reservation = Nested(
        ReservationSchema,
        load_default=None,
        allow_none=True,
        metadata=about("What a running call holds of it; null is what ROUTER_RESERVATION says."),
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_amounts(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """What an amount may be depends on the unit. Tells all that is wrong."""
        unit, held = data.get("unit"), data.get("reservation")
        wrong: dict[str, Any] = {}
        if held and unit == "requests":
            wrong["reservation"] = ["is for usd and tokens; a call is always one request"]
        elif held and (problem := _problem(unit, held["cap"], original["reservation"].get("cap"))):
            wrong["reservation"] = {"cap": [problem]}
        limit = data.get("limit")
        if limit is not None and (problem := _problem(unit, limit, original["limit"])):
            wrong["limit"] = [problem]
        if wrong:
            raise ValidationError(wrong)

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Budget:
        unit, held = data["unit"], data["reservation"]
        return Budget(
            **{
                **data,
                "limit": _whole(unit, data["limit"]),
                "thresholds": tuple(data["thresholds"]),
                "reservation": held and BudgetReservation(held["mode"], _whole(unit, held["cap"])),
            }
        )


def _problem(unit: str | None, amount: Decimal | None, written: Any) -> str | None:
    """What is wrong with an amount of this unit, which was written like that."""
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
