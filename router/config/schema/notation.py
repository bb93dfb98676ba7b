"""How moments and money are written in a document: ISO 8601 with a zone, decimal USD."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final

NANOS_PER_USD: Final = 10**9
_MAX_DECIMAL_LENGTH: Final = 40
_DECIMAL_SHAPE: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_TIMESTAMP_SHAPE: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?"
    r"([Zz]|[-+][0-9]{2}:[0-9]{2})"
)


def parse_timestamp(value: object) -> float:
    """Read ISO 8601 with a zone; raises ``ValueError`` with a sentence for the operator."""
    wanted = "must be a time with its zone, such as 2027-01-31T00:00:00Z"
    match = _TIMESTAMP_SHAPE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(wanted)
    day, clock, fraction, zone = match.groups()
    # Python 3.10 reads neither "Z" nor fractions of other than 3 or 6 digits.
    text = f"{day}T{clock}.{(fraction or '').ljust(6, '0')}{'+00:00' if zone in 'Zz' else zone}"
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(wanted) from None


def format_timestamp(seconds: float) -> str:
    """ISO 8601 in UTC; :func:`parse_timestamp` reads it back unchanged."""
    utc = datetime.fromtimestamp(seconds, timezone.utc)
    return utc.replace(tzinfo=None).isoformat() + "Z"


def format_price(nanos: int) -> str:
    """Nano-USD as decimal USD with at least two places: ``2.50``, ``0.000000001``."""
    whole, fraction = divmod(nanos, NANOS_PER_USD)
    return f"{whole}.{f'{fraction:09d}'.rstrip('0').ljust(2, '0')}"


def parse_decimal(value: Any) -> Decimal:
    """Read decimal text or a number, exactly; raises ``ValueError``."""
    if isinstance(value, str) and len(value) <= _MAX_DECIMAL_LENGTH:
        if _DECIMAL_SHAPE.fullmatch(value):
            return Decimal(value)
    elif isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        usd = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if usd.is_finite():
            return usd
    raise ValueError('must be a decimal number such as "2.50"')
