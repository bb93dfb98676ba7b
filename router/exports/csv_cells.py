"""Values as cells of a CSV file that people open with a spreadsheet."""

from __future__ import annotations

from typing import Any, Final

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Spreadsheets treat full-width forms like the ASCII characters."""


def safe_cell(value: Any) -> Any:
    """The value, made safe for spreadsheets: a text that could be a formula gets a ``'`` in front.

    Clients choose names of models and metadata, which must not run where the file is opened.
    """
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return value
