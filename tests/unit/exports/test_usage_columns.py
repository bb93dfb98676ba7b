"""The columns of exported usage records."""

from __future__ import annotations

from router.exports.usage_columns import COLUMNS
from router.records.record_schemas import usage_record_schema


def test_every_field_of_a_record_has_a_column() -> None:
    """A new field cannot be forgotten, and no column is left behind."""
    assert set(COLUMNS) == set(usage_record_schema()["properties"])
