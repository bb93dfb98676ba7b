"""Ids of requests: whose they are and what they look like."""

from __future__ import annotations

import uuid

import pytest

from router.api.scope import new_uuid, request_id_from


@pytest.mark.parametrize("header", ["a", "req-1", "A.b_c:d-9", "0" * 128])
def test_a_harmless_id_is_kept(header: str) -> None:
    """The client finds its call in our log by its own id."""
    assert request_id_from(header) == header


@pytest.mark.parametrize(
    "header", [None, "", "0" * 129, "-a", "a b", "a\n", "é", "a/b", "a;b", "a\x00", "{}", '"']
)
def test_anything_else_is_replaced(header: str | None) -> None:
    """What could break a log or a header is not echoed."""
    assert uuid.UUID(request_id_from(header)).version == 7


def test_a_uuid_of_ours_is_one() -> None:
    """RFC 9562: version 7 and variant 10, whatever the random bytes."""
    for byte in (b"\x00", b"\xff", b"\x5a"):
        made = uuid.UUID(new_uuid(lambda count, byte=byte: byte * count))
        assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert new_uuid() != new_uuid()


def test_new_ids_come_in_the_order_of_time() -> None:
    """From one millisecond to the next, also as text."""
    moments = [0, 1_000_000, 1_800_000_000_000_000_000, 1_800_000_000_001_000_000, 2**62]
    made = [new_uuid(now_ns=lambda ns=ns: ns) for ns in moments]
    assert made == sorted(made)
