"""The chain of audit events, its tips and its prune points."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import orjson
import pytest

from router.records.audit_chain import (
    AuditChain,
    ChainTip,
    PrunePoint,
    chain_hash,
    derive_audit_key,
    genesis,
    is_signed,
    newest_tips,
    sign,
    unseal,
    with_signature,
)
from tests.unit.records import samples
from tests.unit.records.samples import KEY

TIP = ChainTip(writer_id="w-1", sequence=7, hash="a" * 64)
PRUNE_POINT = PrunePoint(writer_id="w-1", sequence=7, hash="a" * 64)


def test_a_chain_begins_with_its_writer() -> None:
    """The first event hangs on the name of the writer, so chains cannot be exchanged."""
    first = samples.linked(AuditChain("w-1"))
    assert first["previous_hash"] == hashlib.sha256(b"genesis:w-1").hexdigest()
    assert genesis("w-1") == (0, first["previous_hash"])
    assert genesis("w-2") != genesis("w-1")


def test_each_event_follows_the_one_before() -> None:
    """Sequences count from 1 without a gap, and each holds the hash before it."""
    events = samples.chained("w-1", 5)
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["previous_hash"] for event in events[1:]] == [
        event["hash"] for event in events[:-1]
    ]


def test_the_hash_can_be_computed_by_hand() -> None:
    """SHA-256 over 32 bytes and the event without its hash, as the documentation says."""
    line = AuditChain("w-1").link(samples.event())
    event = orjson.loads(line)
    without = {name: value for name, value in event.items() if name != "hash"}
    text = orjson.dumps(without, option=orjson.OPT_SORT_KEYS)
    expected = hashlib.sha256(bytes.fromhex(event["previous_hash"]) + text).hexdigest()
    assert event["hash"] == expected
    body, found = unseal(line)
    assert (body, found) == (text, expected)
    assert chain_hash(event["previous_hash"], body) == expected


def test_an_event_that_cannot_be_linked_leaves_the_chain_as_it_was() -> None:
    """The next one takes its place."""
    chain = AuditChain("w-1")
    samples.linked(chain)
    with pytest.raises(TypeError):
        chain.link(samples.event(after={1: "no name"}))
    assert samples.linked(chain)["sequence"] == 2


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b'{"a":1}', b'{"hash":"00"}', b'"hash":"' + b"0" * 64 + b'"}'],
)
def test_what_does_not_end_with_a_hash_is_no_event(line: bytes) -> None:
    """A line that was cut is an error, whatever is left of it."""
    with pytest.raises(ValueError, match="hash"):
        unseal(line)


def test_the_key_comes_from_the_pepper_and_is_not_it() -> None:
    """The key is good for the trail only; another pepper makes another."""
    pepper = b"p" * 32
    assert derive_audit_key(pepper) == hmac.digest(pepper, b"audit-trail\0", "sha256")
    assert derive_audit_key(pepper) != derive_audit_key(b"q" * 32)


@pytest.mark.parametrize(
    "changes",
    [{"writer_id": "w-2"}, {"sequence": 8}, {"hash": "b" * 64}, {"closed": True}],
)
def test_a_tip_is_signed_with_all_it_says(changes: dict[str, Any]) -> None:
    """No fact of a signed chain tip can be exchanged."""
    signed = with_signature(TIP, KEY)
    assert is_signed(signed, KEY)
    assert not is_signed(replace(signed, **changes), KEY)


@pytest.mark.parametrize("changes", [{"writer_id": "w-2"}, {"sequence": 8}, {"hash": "b" * 64}])
def test_a_prune_point_is_signed_with_all_it_says(changes: dict[str, Any]) -> None:
    """No fact of a signed prune point can be exchanged."""
    signed = with_signature(PRUNE_POINT, KEY)
    assert is_signed(signed, KEY)
    assert not is_signed(replace(signed, **changes), KEY)


@pytest.mark.parametrize("signature", ["", "0" * 64, "ä" * 64])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    """Whatever text it is."""
    assert not is_signed(replace(TIP, signature=signature), KEY)


def test_a_signature_is_good_for_one_key_and_one_purpose() -> None:
    """A tip's signature does not make a prune point, nor does another router's key."""
    other = derive_audit_key(b"another pepper of at least 32 bytes")
    assert not is_signed(with_signature(TIP, KEY), other)
    facts = orjson.dumps({"hash": "a" * 64, "sequence": 7, "writer_id": "w-1"})
    assert is_signed(replace(PRUNE_POINT, signature=sign("anchor", facts, KEY)), KEY)
    assert not is_signed(replace(PRUNE_POINT, signature=sign("head", facts, KEY)), KEY)
    assert not is_signed(replace(PRUNE_POINT, signature=with_signature(TIP, KEY).signature), KEY)


def test_tips_are_the_newest_links_of_what_was_read() -> None:
    """One for each writer, in whatever order the events came."""
    one, other = samples.chained("w-1", 3), samples.chained("w-2", 2)
    tips = newest_tips([one[1], other[1], one[2], other[0], one[0]], KEY)
    assert {(tip.writer_id, tip.sequence, tip.hash) for tip in tips} == {
        ("w-1", 3, one[2]["hash"]),
        ("w-2", 2, other[1]["hash"]),
    }
    assert all(is_signed(tip, KEY) and not tip.closed for tip in tips)
    assert newest_tips([], KEY) == []
