"""Values as cells of a CSV file that people open with a spreadsheet."""

from __future__ import annotations

from typing import Any, Final

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Spreadsheets take the wide forms of the East for the narrow ones."""


def safe_cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: a text that could be one gets a ``'``.

    What clients name (models, labels) stands in such files, and must not run in finance.
    """
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return value
