"""Leases on disk are settled once, by the real scripts, and charge what their call has used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.agent.adoption.lease_settler import NAME, LeaseSettler, charges_of
from router.breaker import Unavailable
from router.clock import FrozenClock
from router.limits.audit_outbox import AuditOutbox
from router.limits.budgets.lease_notation import lease_of
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.windows import (
    Amounts,
    NotReserved,
    Past,
    Reservation,
    ServiceReservation,
    WindowSpec,
)
from router.limits.leases.unsettled_leases import UnsettledLeases
from router.records.open_calls import Unsettled
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.reader import SpoolReader
from tests.fakes.frozen_redis import FrozenRedis, frozen_redis

WINDOW = WindowSpec("pocket", "usd", "total", 1_000, thresholds=(50,))
RESERVED, USED = Amounts(300, 0), Amounts(120, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrozenRedis]:
    with frozen_redis(tmp_path_factory.mktemp("redis"), FrozenClock()) as redis:
        yield redis


class Host:
    """A Redis, and the log of unsettled leases of a data directory."""

    def __init__(self, redis: FrozenRedis, directory: Path) -> None:
        redis.reset()
        self.redis, self.clock, self._directory = redis, redis.clock, directory
        self.outbox = AuditOutbox(self.clock)
        self.ledger = Ledger(redis, clock=self.clock)
        self.leases = UnsettledLeases(directory / "unsettled", 900.0, clock=self.clock)
        self._seed(0)

    def _seed(self, settled: int, *named: str) -> None:
        maintenance = LedgerMaintenance(self.redis, clock=self.clock)
        past = Past(settled, unsettled=frozenset(named))
        maintenance.rebuild("acme", [WINDOW], lambda _lost: past)

    def lose_everything(self, settled: int, *named: str) -> None:
        """Redis is emptied, and the window rebuilt from the records, some of which are named."""
        self.redis.reset()
        self._seed(settled, *named)

    def reserve(self, lease_id: str = "lease") -> Reservation:
        found = self.ledger.reserve("acme", lease_id, [WINDOW], RESERVED, ttl_ms=900_000)
        assert isinstance(found, Reservation)
        return found

    def settler(self) -> LeaseSettler:
        """A new agent's."""
        return LeaseSettler(
            self.redis,
            SpoolReader(self._directory / "unsettled"),
            Checkpoints(checkpoint_path(self._directory, NAME)),
            self.outbox,
            clock=self.clock,
        )

    def state(self) -> tuple[int, int]:
        [found] = self.ledger.read("acme", [WINDOW])
        return found.settled, found.reserved

    def segments(self) -> list[Path]:
        return list((self._directory / "unsettled").glob("*/*.seg"))


@pytest.fixture
def host(server: FrozenRedis, tmp_path: Path) -> Host:
    return Host(server, tmp_path)


def test_a_lease_is_settled_once(host: Host) -> None:
    """P6: however often it was handed over, and whoever settled it before."""
    reservation = host.reserve()
    for _ in range(3):
        host.leases.put(reservation, USED)
    settler = host.settler()
    settler.step()
    settler.step()
    assert (host.state(), settler.settled) == ((120, 0), 1)
    host.ledger.settle(reservation, USED)
    assert host.state() == (120, 0)
    host.leases.close()
    host.settler().step()
    assert (host.state(), host.segments()) == ((120, 0), [])


def test_what_a_worker_has_settled_is_not_settled_again(host: Host) -> None:
    """P6: also long after, when Redis has forgotten the lease."""
    reservation = host.reserve()
    host.ledger.settle(reservation, USED)
    host.leases.put(reservation, USED)
    host.redis._client.execute_command("DEL", "router:{acme}:lease:lease")  # its time was up
    host.clock.advance(7 * 86_400)
    host.settler().step()
    assert host.state() == (120, 0)


def test_what_redis_has_lost_is_part_of_the_rebuild(host: Host) -> None:
    """P7: the record is in the sum that the window was seeded with, and the seed says so."""
    reservation = host.reserve()
    host.leases.put(reservation, USED)
    host.lose_everything(120, "lease")
    host.settler().step()
    assert host.state() == (120, 0)


def test_what_the_rebuild_did_not_know_is_charged(host: Host) -> None:
    """P6: another host rebuilt the window before it could see the record. It used to be free."""
    reservation = host.reserve()
    host.leases.put(reservation, USED)
    host.lose_everything(0, "another lease")
    for _ in range(2):
        host.settler().step()
    assert host.state() == (120, 0)


def test_nobody_knew_whether_it_was_reserved(host: Host) -> None:
    """P6: a call that was let through while Redis was unavailable is charged."""
    host.redis.away = "timeout"
    with pytest.raises(NotReserved) as caught:
        host.reserve()
    host.redis.away = None
    host.leases.put(caught.value.presumed, USED)
    for _ in range(2):
        host.settler().step()
    assert host.state() == (120, 0)


def test_an_outage_only_delays(host: Host) -> None:
    """P6: nothing is lost, and what was settled before the outage is not read again."""
    first, second = host.reserve("first"), host.reserve("second")
    host.leases.put(first, USED)
    settler = host.settler()
    settler.step()
    host.leases.put(second, USED)
    host.redis.away = "timeout"
    with pytest.raises(Unavailable):
        settler.step()
    assert host.settler() is not settler
    host.redis.away = None
    host.settler().step()
    assert host.state() == (240, 0)


def test_a_threshold_that_is_reached_here_is_reported(host: Host) -> None:
    """As it would have been by the worker."""
    host.leases.put(host.reserve(), Amounts(500, 0))
    host.settler().step()
    assert len(host.outbox) == 1


def test_what_makes_no_sense_holds_nothing_up(host: Host) -> None:
    """P6: the leases behind it are settled."""
    reservation = host.reserve()
    host.leases.put(host.reserve("other"), USED)
    assert host.leases._spool is not None
    host.leases._spool.note(4, b'{"lease": 7}')
    host.leases.put(reservation, USED)
    host.settler().step()
    assert host.state() == (240, 0)


def test_what_a_budget_service_is_told_is_what_was_left(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Lease and amounts; one that makes no sense keeps no other from being told."""
    reservation = host.reserve()
    lease = lease_of(reservation, 900_000)
    assert lease is not None
    left = [
        Unsettled("senseless", "acme", (), 120, 0, 1),
        Unsettled("impossible", "acme", lease, -1, 0, 1),
        Unsettled("lease", "acme", lease, 120, 7, 1),
    ]
    assert [*charges_of(left)] == [(reservation, Amounts(120, 7, 1))]
    assert len(caplog.records) == 2


def test_a_budget_service_is_told_whose_lease_it_is() -> None:
    """Where it alone knows the windows, it finds them by the key; the lease used to be dropped."""
    reservation = ServiceReservation("lease", "acme", (), 5_000, "epoch", key_id="k1")
    lease = lease_of(reservation, 900_000)
    assert lease is not None
    [(told, amounts)] = charges_of([Unsettled("lease", "acme", lease, 120, 7, 1)])
    assert (told, amounts) == (reservation, Amounts(120, 7, 1))
    assert isinstance(told, ServiceReservation)
