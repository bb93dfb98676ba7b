"""The kinds of value in a document; each accepts exactly one type and says which.

marshmallow's own numbers and booleans also accept ``"70"`` and ``1``; these do not, because a
document that says one thing and means another is a mistake.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, Final, TypeGuard

from marshmallow import ValidationError, fields, validate

from router.config.schema.base_url import normalize_base_url
from router.config.schema.notation import (
    format_price,
    format_timestamp,
    parse_decimal,
    parse_timestamp,
)
from router.providers.client_headers import MAX_NAME_CHARS, may_be_forwarded

MAX_USD_PER_MILLION_TOKENS: Final = 100_000
_MILLION: Final = 1_000_000
ID_SHAPE: Final = "[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"
_ID: Final = re.compile(ID_SHAPE)
# Control characters would let a name rewrite an operator's terminal; surrogates cannot be stored.
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_CREDENTIAL_SHAPE: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00-\x1f\x7f]+")


_MESSAGES: Final = {"required": "is missing", "null": "must not be null"}
_MAPPING_MESSAGES: Final = {
    **_MESSAGES,
    "invalid": "must be a mapping",
    "type": "must be a mapping",
}


class Described(fields.Field[Any]):
    """A field that says in ``about`` what it is for.

    ``MESSAGES`` stand in place of marshmallow's own; ``JSON_SCHEMA`` is what the published schema
    says of all fields of the kind.
    """

    MESSAGES: ClassVar[dict[str, Any]] = _MESSAGES
    JSON_SCHEMA: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, *args: Any, about: str = "", metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        metadata = {**self.JSON_SCHEMA, **(metadata or {})}
        if about:
            metadata["description"] = about
        super().__init__(*args, metadata=metadata, error_messages=self.MESSAGES, **kwargs)


class Text(Described, fields.String):
    """A string that fits a shape; without one, any printable text."""

    def __init__(
        self,
        *,
        shape: re.Pattern[str] = _PRINTABLE,
        message: str = "must not hold control characters",
        lengths: tuple[int, int] = (0, 256),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._shape = shape
        self._message = message
        self._lengths = lengths

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError("must be a string")
        low, high = self._lengths
        if not low <= len(value) <= high:
            raise ValidationError(f"must have {low} to {high} characters")
        if self._shape.fullmatch(value) is None:
            raise ValidationError(self._message)
        return value


class Identifier(Text):
    """The id of an entity; with ``wildcard`` also ``*``."""

    def __init__(self, *, wildcard: bool = False, **kwargs: Any) -> None:
        shape = rf"\*|{ID_SHAPE}" if wildcard else ID_SHAPE
        kwargs["metadata"] = {"pattern": f"^({shape})$", **kwargs.get("metadata", {})}
        super().__init__(
            shape=re.compile(shape),
            message="must be 1 to 128 of A-Z a-z 0-9 . _ : / - and begin with a letter or digit"
            + (", or be '*'" if wildcard else ""),
            lengths=(1, 128),
            **kwargs,
        )


class Choice(Described, fields.String):
    """One word of a closed set."""

    def __init__(self, choices: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(validate=validate.OneOf(choices), **kwargs)
        self._choices = choices

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or value not in self._choices:
            raise ValidationError("must be one of " + ", ".join(self._choices))
        return value


class ListOf(Described, fields.List[Any]):
    """A list of at most ``most`` elements, ``unique`` or not."""

    MESSAGES: ClassVar[dict[str, Any]] = {**_MESSAGES, "invalid": "must be a list"}

    def __init__(
        self, inner: Any, *, most: int | None = None, unique: bool = False, **kwargs: Any
    ) -> None:
        checks: list[Any] = [kwargs.pop("validate")] if "validate" in kwargs else []
        if unique:
            checks.append(_is_unique)
        if most is not None:
            checks.append(validate.Length(max=most, error=f"must have at most {most}"))
        default = kwargs.get("load_default")
        kwargs["metadata"] = {
            **({"default": default()} if callable(default) else {}),
            **({"uniqueItems": True} if unique else {}),
            **kwargs.get("metadata", {}),
        }
        super().__init__(inner, validate=checks, **kwargs)

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        ordered = sorted(value) if isinstance(value, frozenset) else value
        return super()._serialize(ordered, attr, obj, **kwargs)


def _is_unique(values: list[Any]) -> None:
    if len(set(values)) != len(values):
        raise ValidationError("must not name anything twice")


class MapOf(Described, fields.Dict):
    """A mapping whose keys are ids."""

    MESSAGES: ClassVar[dict[str, Any]] = _MAPPING_MESSAGES

    def __init__(self, values: Any, **kwargs: Any) -> None:
        metadata = {"default": {}, **kwargs.pop("metadata", {})}
        super().__init__(
            keys=Identifier(), values=values, load_default=dict, metadata=metadata, **kwargs
        )


class Nested(Described, fields.Nested):
    """A mapping with a schema of its own."""

    MESSAGES: ClassVar[dict[str, Any]] = _MAPPING_MESSAGES


class Flag(Described, fields.Boolean):
    """``true`` or ``false`` and nothing else."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("must be true or false")
        return value


class Integer(Described, fields.Integer):
    """A whole number between two bounds."""

    def __init__(self, low: int, high: int, **kwargs: Any) -> None:
        super().__init__(validate=validate.Range(low, high), **kwargs)
        self._bounds = (low, high)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        low, high = self._bounds
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            if low == high:
                raise ValidationError(f"must be {low}")
            raise ValidationError(f"must be a whole number between {low} and {high}")
        return value


class Seconds(Described, fields.Float):
    """A duration in seconds: a millisecond to an hour."""

    MIN_S: Final = 0.001
    MAX_S: Final = 3600
    JSON_SCHEMA: ClassVar[dict[str, Any]] = {"minimum": MIN_S, "maximum": MAX_S}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise ValidationError("must be a number of seconds")
        seconds = float(value)
        if not self.MIN_S <= seconds <= self.MAX_S:
            raise ValidationError(f"must be between {self.MIN_S} and {self.MAX_S} seconds")
        return seconds


class DecimalNumber(Described):
    """A number that is not negative, written as decimal text or as a number."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {
        "type": ["string", "number"],
        "pattern": "^[0-9]+(\\.[0-9]+)?$",
        "minimum": 0,
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        try:
            number = parse_decimal(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if number < 0:
            raise ValidationError("must not be negative")
        return number


class Price(DecimalNumber):
    """USD per ``per`` tokens or other units → whole nano-USD per million of them."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {
        **DecimalNumber.JSON_SCHEMA,
        "maximum": MAX_USD_PER_MILLION_TOKENS,
    }

    def __init__(
        self, *, per: int = _MILLION, unit: str = "USD per million tokens", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._per = per
        self._unit = unit

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        usd = super()._deserialize(value, attr, data, **kwargs)
        if usd > MAX_USD_PER_MILLION_TOKENS:
            raise ValidationError(
                f"is out of a sane range: more than {MAX_USD_PER_MILLION_TOKENS} {self._unit}"
            )
        nanos = usd.scaleb(9)
        if nanos != nanos.to_integral_value():
            raise ValidationError(f"must not be finer than 0.000000001 {self._unit}")
        # An hour's price is rounded: by less than a nano-USD for a million hours.
        return round(Fraction(int(nanos) * _MILLION, self._per))

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        if value is None:
            return None
        return format_price(round(Fraction(value * self._per, _MILLION)))


class Timestamp(Described):
    """A point in time, ISO 8601 with its zone → seconds since the epoch."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {"type": "string", "format": "date-time"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        try:
            return parse_timestamp(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else format_timestamp(value)


class BaseUrl(Text):
    """Where a backend lives; a trailing slash is dropped."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {"format": "uri", "pattern": "^https?://"}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(lengths=(1, 2048), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            return normalize_base_url(text)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class Credential(Text):
    """A reference to a secret. The message never repeats the value: it may be the secret."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {"pattern": "^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$"}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            shape=_CREDENTIAL_SHAPE,
            message="must be 'env:NAME' or 'file:/absolute/path', never the secret itself",
            lengths=(1, 4096),
            **kwargs,
        )


class HeaderName(Text):
    """A client's header that may be forwarded, in lower case."""

    JSON_SCHEMA: ClassVar[dict[str, Any]] = {"pattern": "^[A-Za-z0-9][A-Za-z0-9-]*$"}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(lengths=(1, MAX_NAME_CHARS), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        name = str(super()._deserialize(value, attr, data, **kwargs)).lower()
        if not may_be_forwarded(name):
            raise ValidationError(
                "is no header that may be forwarded: those that authenticate or identify somebody,"
                " frame a message or are for one hop stay here"
            )
        return name


def is_id(value: object) -> TypeGuard[str]:
    """Tell whether this has the shape of an id; ``*`` has not."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None
