"""SIGTERM and recycling under load: what clients saw completed is what is on record, exactly.

4 rounds, or 20 with ``ROUTER_TEST_PROOF=1``. In each the workers are replaced again and again by
``ROUTER_MAX_REQUESTS``, and then the router is told to end. In an orderly end no connection is cut
on which a call is being served, so nothing is completed without its client seeing it: there are
exactly as many records as whole answers. What a client finds closed, a kept connection or the port,
was never read, and leaves no record. Only a client that breaks off itself while its reply is under
way can leave a record that says completed without seeing the end, and no client here does.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.deployment import CHAT, deploy
from tests.servers.ledger import Ledger, await_end, by_id, check_audit, check_usage
from tests.servers.router_process import wait_until
from tests.servers.steady_client import steady_clients

PROOF = bool(os.environ.get("ROUTER_TEST_PROOF"))
ROUNDS = 20 if PROOF else 4
FIXED_SEED = 20_261_124 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
SEED = int(os.environ.get("ROUTER_TEST_SEED") or FIXED_SEED)

WORKERS = 2
MAX_REQUESTS = 60
PACE_S = 30.0
EXIT_S = 15.0
TOKENS, TOKEN_MS, LATENCY_MS = 10, 20, 5
CLOSED = {"ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "RemoteDisconnected"}
"""How a client finds a connection, or the port, that nobody serves any more."""


@pytest.mark.parametrize("seed", [SEED])
def test_completed_calls_are_exactly_the_records(
    seed: int, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Must show 6, P1, G3: each whole answer has a completed record, and there is no other."""
    dice = random.Random(seed)
    answered: list[str] = []
    workers: set[int] = set()
    with deploy(
        tmp_path / "router", workers=WORKERS, ROUTER_MAX_REQUESTS=str(MAX_REQUESTS)
    ) as deployed:
        router = deployed.router
        deployed.backend.set(
            latency_ms=LATENCY_MS, tokens_output=TOKENS, token_interval_ms=TOKEN_MS
        )
        for number in range(ROUNDS):
            if number:
                router.start()
            seen = set(router.worker_pids())

            def recycled(seen: set[int] = seen) -> bool:
                seen |= set(router.worker_pids())
                return len(seen) > WORKERS

            with steady_clients(
                tmp_path, router.port, deployed.key.key, CHAT, name=f"round-{number}"
            ) as clients:
                wait_until(recycled, PACE_S, "a worker was replaced")
                time.sleep(dice.uniform(0, 1.0))
                router.signal(signal.SIGTERM)
                assert router.wait(EXIT_S) == 0
            workers |= seen
            assert set(clients.words()) <= {"200"} | CLOSED
            answered += clients.answered()
            await_end(router)
            compare(Ledger(router.data_dir), answered)
        assert router.faults() == []
    record_testsuite_property("calls", len(answered))
    record_testsuite_property("workers", len(workers))


def compare(ledger: Ledger, answered: list[str]) -> None:
    """The calls that clients saw completed, and the records: the same."""
    records = by_id(ledger.usage(), "record_id")
    check_usage(answered, records)
    assert sorted(record["request_id"] for record in records.values()) == sorted(answered)
    events = by_id(ledger.audit(), "event_id")
    check_audit(answered, events)
    assert sum(event["entity_type"] == "request" for event in events.values()) == len(answered)
    verdict = ledger.verdict()
    assert verdict.ok, verdict
    assert ledger.quarantined() == []
