"""What all parts of the document's schema have in common: they are closed, and speak alike."""

from __future__ import annotations

from typing import Any, Final

from marshmallow import RAISE, Schema, ValidationError

_WORDS: Final[dict[str, str]] = {"unknown": "unknown field", "type": "must be a mapping"}


class Mapping(Schema):
    """A mapping without unknown fields."""

    error_messages = _WORDS

    class Meta:
        unknown = RAISE  # the default, but older apispec closes a schema only when told so


def about(text: str, **more: Any) -> dict[str, Any]:
    """What the JSON Schema says of a field."""
    return {"description": text, **more}


def unique(values: list[Any]) -> None:
    """Raises ``ValidationError`` when something is there twice."""
    if len(set(values)) != len(values):
        raise ValidationError("must not name anything twice")
