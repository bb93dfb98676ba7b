"""Idempotency entries: claimed, completed, replayed, abandoned, expired."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.limits.idempotency.entries import (
    Entry,
    InFlight,
    Mismatch,
    New,
    NotStored,
    Replay,
    fingerprint,
)

FIRST = Entry("acme", "order-1", fingerprint(b"body"), "lease-a")
SECOND = replace(FIRST, owner="lease-b")
LEASE_MS = 600_000


def test_an_id_is_claimed_once(stand: Any) -> None:
    """P19: the first call has it, a duplicate meanwhile is told how long at most."""
    entries = stand.idempotency()
    assert entries.begin(FIRST, lease_ms=LEASE_MS) == New()
    duplicate = entries.begin(SECOND, lease_ms=LEASE_MS)
    assert isinstance(duplicate, InFlight)
    assert 590_000 < duplicate.lease_left_ms <= 600_000


def test_claiming_again_with_the_same_owner_changes_nothing(stand: Any) -> None:
    """A claim whose answer was lost is made again by the same call."""
    entries = stand.idempotency()
    assert entries.begin(FIRST, lease_ms=LEASE_MS) == New()
    assert entries.begin(FIRST, lease_ms=LEASE_MS) == New()


@pytest.mark.parametrize("reply", [b"", b"\x00\xff\r\n{}", b"x" * 100_000])
def test_a_reply_is_replayed_byte_for_byte(stand: Any, reply: bytes) -> None:
    """Whatever the bytes are, also none."""
    entries = stand.idempotency()
    entries.begin(FIRST, lease_ms=LEASE_MS)
    assert entries.end(FIRST, reply)
    assert entries.begin(SECOND, lease_ms=LEASE_MS) == Replay(reply)


def test_another_request_under_the_same_id_is_a_mismatch(stand: Any) -> None:
    """In flight and completed alike: the id belongs to the first request."""
    entries = stand.idempotency()
    other = replace(SECOND, fingerprint=fingerprint(b"another body"))
    entries.begin(FIRST, lease_ms=LEASE_MS)
    assert entries.begin(other, lease_ms=LEASE_MS) == Mismatch()
    entries.end(FIRST, b"reply")
    assert entries.begin(other, lease_ms=LEASE_MS) == Mismatch()


def test_ids_of_organizations_are_their_own(stand: Any) -> None:
    """The same id elsewhere is another id."""
    entries = stand.idempotency()
    entries.begin(FIRST, lease_ms=LEASE_MS)
    assert entries.begin(replace(SECOND, organization_id="globex"), lease_ms=LEASE_MS) == New()


def test_an_abandoned_id_is_free(stand: Any) -> None:
    """A call that the router refused leaves nothing behind."""
    entries = stand.idempotency()
    entries.begin(FIRST, lease_ms=LEASE_MS)
    assert entries.end(FIRST, None)
    assert stand.key_names() == []
    assert entries.begin(SECOND, lease_ms=LEASE_MS) == New()


def test_only_the_owner_ends_a_claim(stand: Any) -> None:
    """A call whose lease has ended can neither complete nor free what is another's now."""
    entries = stand.idempotency()
    entries.begin(FIRST, lease_ms=LEASE_MS)
    stand.client.execute_command("FLUSHALL")  # as when its lease has ended
    entries.begin(SECOND, lease_ms=LEASE_MS)
    assert not entries.end(FIRST, b"late")
    assert not entries.end(FIRST, None)
    assert entries.end(SECOND, b"in time")
    assert not entries.end(SECOND, None)
    assert entries.begin(FIRST, lease_ms=LEASE_MS) == Replay(b"in time")


def test_a_reply_that_is_too_large_is_not_kept_and_not_made_twice(stand: Any) -> None:
    """A duplicate learns that it was done; it is neither charged again nor given half a reply."""
    entries = stand.idempotency(max_reply_bytes=10)
    entries.begin(FIRST, lease_ms=LEASE_MS)
    assert entries.end(FIRST, b"x" * 11)
    assert entries.begin(SECOND, lease_ms=LEASE_MS) == NotStored()
    assert b"reply" not in stand.dump()[FIRST.key]


def test_entries_end_by_themselves(stand: Any) -> None:
    """In flight for the lease of the call, completed for as long as replies are kept."""
    entries = stand.idempotency(keep_s=3600)
    entries.begin(FIRST, lease_ms=LEASE_MS)
    assert 590_000 < stand.client.execute_command("PTTL", FIRST.key) <= 600_000
    entries.end(FIRST, b"reply")
    assert 3_590_000 < stand.client.execute_command("PTTL", FIRST.key) <= 3_600_000


def test_an_id_shows_in_no_key() -> None:
    """P17: what a client chooses is neither long nor legible in Redis."""
    key = replace(FIRST, request_id="secret" * 1000).key
    assert "secret" not in key
    assert len(key) < 80


def test_parts_of_a_fingerprint_do_not_run_into_one_another() -> None:
    """Path and body are told apart."""
    assert fingerprint(b"a", b"bc") != fingerprint(b"ab", b"c")
    assert fingerprint(b"a", b"bc") == fingerprint(b"a", b"bc")
