"""Tables on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Final

_WIDE: Final = ("W", "F")


def shown(text: str | None) -> str:
    """A text as a cell; what could steer a terminal is escaped, and nothing is a dash."""
    if text is None:
        return "-"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def aligned(rows: Sequence[Sequence[str]], *, left: int, points: Collection[int] = ()) -> list[str]:
    """One line for each row, the first of which is the head.

    The first ``left`` columns are aligned left, the others right; those in ``points`` at their
    decimal points.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    for place in points:
        columns[place] = _at_points(columns[place])
    lines = [""] * len(rows)
    for place, column in enumerate(columns):
        width = max(map(_width, column))
        for number, cell in enumerate(column):
            space = " " * (width - _width(cell))
            lines[number] += ("  " if place else "") + (
                cell + space if place < left else space + cell
            )
    return [line.rstrip() for line in lines]


def _at_points(column: list[str]) -> list[str]:
    longest = max(len(cell.partition(".")[2]) for cell in column[1:])
    padded = [cell + " " * (longest - len(cell.partition(".")[2])) for cell in column[1:]]
    return [column[0], *padded]


def _width(text: str) -> int:
    """Columns that a terminal gives it."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in _WIDE else 1
        for c in text
    )
