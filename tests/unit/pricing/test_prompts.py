"""What of a request a provider reads: the parts of one content, plain and odd ones mixed."""

from __future__ import annotations

from typing import Any

import pytest

from router.pricing.prompts import read_prompt

PLAIN = {"type": "text", "text": "ab"}


@pytest.mark.parametrize(
    ("part", "texts", "structured", "documents"),
    [
        (PLAIN, ["ab", "ab"], 0, 0),
        ({"type": "text", "text": {"value": "x"}}, ["ab"], 1, 0),
        ({"type": "text", "content": "cd"}, ["ab", "cd"], 0, 0),
        ({"type": "text", "text": "cd", "cache_control": {"a": 1}}, ["ab", "cd"], 1, 0),
        ({"text": "cd", "type": "thinking"}, ["ab", "cd"], 0, 0),
        ({"type": "text", "text": None}, ["ab"], 0, 0),
        ({"type": ["text"], "text": "cd"}, ["ab"], 0, 1),
        ({"type": "file", "text": "cd"}, ["ab"], 0, 1),
        (["cd", PLAIN], ["ab", "ab", "cd"], 0, 0),
        ("cd", ["ab", "cd"], 0, 0),
        (7.5, ["ab"], 0, 0),
    ],
)
def test_plain_texts_hide_nothing_beside_them(
    part: Any, texts: list[str], structured: int, documents: int
) -> None:
    """They are read in a quicker way, for a body may hold tens of thousands."""
    for content in ([PLAIN, part], [part, PLAIN]):
        found = read_prompt({"messages": [{"role": "user", "content": content}]})
        assert sorted(found.texts) == texts
        assert (len(found.structured), found.documents) == (structured, documents)
