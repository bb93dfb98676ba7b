"""The kinds of field that the public schemas are made of; each takes exactly one kind of value.

A field, or a whole schema, may carry ``contract``: what it says in JSON Schema beyond what apispec
reads off by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import INCLUDE, RAISE, Schema, ValidationError, fields, validate


def about(text: str, **more: Any) -> dict[str, Any]:
    """A description, and whatever else the contract says of a field."""
    return {"description": text, **more}


class Flag(fields.Boolean):
    """``true`` or ``false``; marshmallow's own also takes ``"yes"`` and ``1``."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("must be a boolean")
        return value


class Number(fields.Float):
    """A number; marshmallow's own also takes ``"0.5"`` and ``true``."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValidationError("must be a number")
        return value


class Count(fields.Integer):
    """A whole number of at least 1, or null."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(strict=True, allow_none=True, validate=validate.Range(min=1), **kwargs)


class Shaped(fields.String):
    """A string that a pattern describes from its first to its last character."""

    def __init__(self, pattern: str, **kwargs: Any) -> None:
        kwargs["metadata"] = {"pattern": pattern, **kwargs.get("metadata", {})}
        super().__init__(**kwargs)
        self._shape = re.compile(pattern.removeprefix("^").removesuffix("$"))

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or not self._shape.fullmatch(value):
            raise ValidationError("has the wrong shape")
        return value


class OneOf(fields.Field[Any]):
    """A value that fits exactly one of several fields: ``oneOf`` in the contract."""

    def __init__(self, *choices: fields.Field[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = choices

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        for choice in self.choices:
            try:
                return choice.deserialize(value)
            except ValidationError:
                continue
        raise ValidationError("has none of the shapes that are allowed")


class Anything(fields.Raw):
    """An element of whatever kind, null included."""

    def deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        return value


class Words(fields.Dict):
    """A mapping of strings to strings, bounded in number and length."""

    def __init__(self, *, most: int, longest: int, **kwargs: Any) -> None:
        length = validate.Length(max=longest)
        super().__init__(
            keys=fields.String(validate=length), values=fields.String(validate=length), **kwargs
        )
        self._most = most
        self.contract = {"maxProperties": most, "propertyNames": {"maxLength": longest}}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, Mapping) and len(value) > self._most:
            raise ValidationError(f"has more than {self._most} entries")
        return super()._deserialize(value, attr, data, **kwargs)  # type: ignore[no-untyped-call]


class Open(Schema):
    """An object whose further fields pass through untouched."""

    class Meta:
        unknown = INCLUDE


class Closed(Schema):
    """An object without further fields."""

    class Meta:
        unknown = RAISE  # marshmallow's default, but apispec 6.8 reads only what stands here
