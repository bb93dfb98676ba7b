"""The lean checks: each names the field at fault and lets everything else pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from router.api.dialects import checks
from router.errors import InvalidRequest

ABSENT = object()


def holds(check: Callable[..., Any], value: Any) -> bool:
    """Whether the check lets the value pass; a refusal names the field."""
    try:
        check({} if value is ABSENT else {"field": value}, "field")
    except InvalidRequest as refusal:
        return refusal.field != "field"
    return True


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.required_name, ["a", "x" * 256], [ABSENT, None, "", "x" * 257, 1, ["a"], True]),
        (checks.optional_flag, [ABSENT, None, True, False], [0, 1, "true", [], {}]),
        (checks.optional_count, [ABSENT, None, 1, 2**63], [0, -1, 1.0, "1", True, []]),
        (checks.optional_number, [ABSENT, None, 0, -1.5, 2**70], ["1", True, [], {}]),
        (checks.optional_object, [ABSENT, None, {}, {"a": 1}], [[], "a", 1, True]),
        (checks.required_list, [[1], [None]], [ABSENT, None, [], {}, "a", 1]),
        (checks.required_text_or_list, ["", "a", [1]], [ABSENT, None, [], {}, 1, True]),
    ],
)
def test_a_check_takes_what_it_says(
    check: Callable[..., Any], good: list[Any], bad: list[Any]
) -> None:
    """Exact types: Python's habit of taking True for 1 stays outside."""
    assert [value for value in good if not holds(check, value)] == []
    assert [value for value in bad if holds(check, value)] == []


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([1], "x[0]"),
        ([{"role": "user"}, None], "x[1]"),
        ([{}], "x[0].role"),
        ([{"role": "user"}, {"role": ""}], "x[1].role"),
        ([{"role": 7}], "x[0].role"),
    ],
)
def test_a_message_needs_a_role(messages: list[Any], field: str) -> None:
    """The path of the culprit leads to the very message."""
    with pytest.raises(InvalidRequest) as refusal:
        checks.check_messages(messages, "x")
    assert refusal.value.field == field


def test_the_rest_of_a_message_is_the_backends_business() -> None:
    """Unknown roles and contents pass."""
    checks.check_messages([{"role": "critic", "content": [{"type": "unheard of"}]}], "x")
