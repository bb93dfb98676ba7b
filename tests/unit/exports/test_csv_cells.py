"""What a spreadsheet makes of a cell."""

from __future__ import annotations

from typing import Any

import pytest

from router.exports.csv_cells import safe_cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1＋1"])
def test_a_text_that_could_be_a_formula_is_made_one_that_is_not(text: str) -> None:
    """Whatever a client calls its model, opening the file runs nothing."""
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["gpt-4o", "", "a=b", -5, 0.5, None, True])
def test_other_values_stay_as_they_are(value: Any) -> None:
    """Numbers are no texts, a negative one neither."""
    assert safe_cell(value) is value
