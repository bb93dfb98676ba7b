"""How much work a JSON text makes, found out in one pass before it is parsed."""

from __future__ import annotations

from typing import Any, Final

import orjson

MAX_REPLY_ELEMENTS: Final = 1_000_000
"""Of a backend's reply: one with 20 log probabilities for each of 8 000 tokens has 800 000."""

MAX_ERROR_BYTES: Final = 1024 * 1024
MAX_ERROR_ELEMENTS: Final = 10_000
"""A larger body is no error with a message for somebody."""

_STRINGS_PER_ELEMENT: Final = 4


def count_elements(text: bytes, most: int) -> int:
    """The elements of a JSON text: values in arrays, members of objects, arrays and objects. Where
    there are more than ``most``, any number above ``most``.

    Every element but the first of an array or object follows a comma, so the signs ``[``, ``{`` and
    ``,`` are counted: in linear time, without an object for each. A text that is no JSON may be
    counted either way, and its parser refuses it.
    """
    if len(text) <= most:
        return len(text)  # it has fewer
    count = _signs(text)
    if count <= most:
        return count
    # Prose and programs have commas, too. An escaped quotation mark does not end a string.
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text
    if plain.count(b'"') > _STRINGS_PER_ELEMENT * most:  # so many strings are too many themselves
        return count
    return _signs(b"".join(plain.split(b'"')[::2]))


def parse_reply(body: bytes) -> Any:
    """What is in a backend's reply; raises ``ValueError``, also for one with too many elements."""
    if count_elements(body, MAX_REPLY_ELEMENTS) > MAX_REPLY_ELEMENTS:
        raise ValueError("the reply has too many elements")
    return orjson.loads(body)


def parse_error(body: bytes) -> Any:
    """What is in a body that may be an error; raises ``ValueError``, also for one too large."""
    if len(body) > MAX_ERROR_BYTES or count_elements(body, MAX_ERROR_ELEMENTS) > MAX_ERROR_ELEMENTS:
        raise ValueError("too large for an error")
    return orjson.loads(body)


def _signs(text: bytes) -> int:
    # The same speed however many there are, unlike `count`.
    return len(text) - len(text.translate(None, b"[{,"))
