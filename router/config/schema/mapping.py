"""What all parts of the document's schema have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from marshmallow import RAISE, Schema, post_load

_MESSAGES: Final[dict[str, str]] = {"unknown": "unknown field", "type": "must be a mapping"}


class Mapping(Schema):
    """A mapping without unknown fields."""

    error_messages = _MESSAGES

    class Meta:
        unknown = RAISE  # the default, but older apispec closes a schema only when told so


class Part(Mapping):
    """A part of the document: loads as the frozen type ``makes``, and dumps such a value."""

    makes: ClassVar[type]

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Any:
        """Lists become tuples."""
        return self.makes(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    """The value, as a tuple if it is a list."""
    return tuple(value) if isinstance(value, list) else value


def about(text: str, **more: Any) -> dict[str, Any]:
    """What the JSON Schema says of a field."""
    return {"description": text, **more}
