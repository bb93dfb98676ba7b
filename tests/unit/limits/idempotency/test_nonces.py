"""Nonces: taken once, counted for each key, and vouched for by the Redis that remembers them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.limits.idempotency.nonces import Nonce, NonceRefused
from router.redis.scripts import load_script
from tests.unit.limits.conftest import START_S

FIRST = Nonce("acme", "key-1", "0123456789abcdef", int(START_S), "call-a")
AGAIN = replace(FIRST, owner="call-b")
MEMORY = "router:{acme}:nonces:memory"


def numbered(number: int, **changes: Any) -> Nonce:
    return replace(FIRST, text=f"nonce-{number:010}", owner=f"call-{number}", **changes)


def test_a_nonce_is_taken_once(stand: Any) -> None:
    """P20: the second request with it is a replay, whoever takes it, until it is stale."""
    assert stand.nonces().take(FIRST) is None
    assert stand.nonces().take(AGAIN) == NonceRefused("replayed")
    # Fresh for 300 s either way, and kept for a second more.
    left_ms = stand.client.execute_command("PTTL", FIRST.keys[0])
    assert 600_000 < left_ms <= 601_000


def test_a_call_that_asks_again_keeps_its_nonce(stand: Any) -> None:
    """Its answer was lost, or its budgets had to be rebuilt: it is the same call."""
    assert [stand.nonces().take(FIRST) for _ in range(3)] == [None, None, None]
    assert stand.client.execute_command("GET", FIRST.keys[1]) == b"1"


@pytest.mark.parametrize("other", [{"key_id": "key-2"}, {"organization_id": "other"}])
def test_a_nonce_is_of_one_key(stand: Any, other: dict[str, str]) -> None:
    """No holder of a key can use up another's."""
    assert stand.nonces().take(FIRST) is None
    assert stand.nonces().take(replace(AGAIN, **other)) is None


def test_a_quota_holds_for_one_key(stand: Any) -> None:
    """P16: what one key signs leaves the others' room alone; a refused nonce is not used up."""
    nonces = stand.nonces(quota=3)
    outcomes = [nonces.take(numbered(number)) for number in range(5)]
    assert outcomes[:3] == [None] * 3
    assert [found and found.reason for found in outcomes[3:]] == ["over_quota"] * 2
    assert outcomes[3] is not None
    assert 600 <= outcomes[3].retry_after_s <= 601
    assert nonces.take(numbered(9, key_id="key-2")) is None
    stand.client.execute_command("DEL", FIRST.keys[1])  # as when its time is over
    assert nonces.take(numbered(3)) is None
    assert nonces.take(replace(numbered(3), owner="other")) == NonceRefused("replayed")


def test_the_memory_of_another_run_vouches_for_nothing_older(stand: Any) -> None:
    """After a restart or a failover a nonce may be lost: a signature from before is not accepted,
    one that is made now is."""
    nonces = stand.nonces()
    assert nonces.take(FIRST) is None
    stand.client.execute_command("DEL", FIRST.keys[0])
    stand.client.execute_command("SET", MEMORY, f"{'a' * 40} {int(START_S * 1000)}")
    stand.clock.advance(5)
    assert nonces.take(AGAIN) == NonceRefused("not_remembered")
    assert nonces.take(numbered(1, signed_s=int(START_S) + 4)) == NonceRefused("not_remembered")
    assert nonces.take(numbered(2, signed_s=int(START_S) + 5)) is None
    stand.clock.advance(5)
    assert nonces.take(AGAIN) == NonceRefused("not_remembered")


@pytest.mark.servers
@pytest.mark.parametrize("stand", ["redis-server"], indirect=True)
def test_an_empty_redis_vouches_since_its_start(stand: Any) -> None:
    """What an organization signs first is accepted, unless it is older than the server."""
    nonces = stand.nonces(load=load_script)
    up_s = int(
        next(
            line.split(b":")[1]
            for line in stand.client.execute_command("INFO", "server").splitlines()
            if line.startswith(b"uptime_in_seconds:")
        )
    )
    older = replace(FIRST, signed_s=int(START_S) - up_s - 5)
    assert nonces.take(older) == NonceRefused("not_remembered")
    assert nonces.take(FIRST) is None
    memory = stand.client.execute_command("GET", MEMORY)
    run, since_ms = memory.split(b" ")
    assert len(run) == 40
    assert 0 <= START_S * 1000 - int(since_ms) <= up_s * 1000 + 1000
