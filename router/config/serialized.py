"""Frozen parts → data: what ``export`` writes, ``state/`` stores and a diff compares.

``load_serialized(serialize(document)) == document``, with every default written out. No secret can
leak here, because none is held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import yaml

from router.config.document import KeyRecord, LoadedDocument
from router.config.parsing import BOOL_SHAPE, FLOAT_SHAPE, INT_SHAPE, NULL_SHAPE
from router.config.schema.parts import DOCUMENT_SCHEMA, KeySchema

KEY_SCHEMA: Final = KeySchema()


def serialize(document: LoadedDocument) -> dict[str, Any]:
    """All of a document."""
    serialized: dict[str, Any] = DOCUMENT_SCHEMA.dump(document)
    return serialized


def serialize_key(key: KeyRecord) -> dict[str, Any]:
    """One entry of ``keys``."""
    serialized: dict[str, Any] = KEY_SCHEMA.dump(key)
    return serialized


def serialize_keys(keys: Iterable[KeyRecord]) -> list[dict[str, Any]]:
    """The section ``keys``."""
    return [serialize_key(key) for key in keys]


def dump_yaml(serialized: dict[str, Any]) -> str:
    """Serialized data as YAML that this router and any other reader understand alike."""
    return yaml.dump(serialized, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or YAML 1.2 would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FIRST: Final = "-+.0123456789"
for _tag, _shape, _first in (
    ("null", NULL_SHAPE, "~nN"),
    ("bool", BOOL_SHAPE, "tTfF"),
    ("int", INT_SHAPE, _FIRST),
    ("float", FLOAT_SHAPE, _FIRST),
):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _shape, list(_first))
