"""Charges that the service does not take: kept on disk, sent until they are taken, once each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.breaker import Refused, Unavailable
from router.limits.budgets.periods import TOTAL
from router.limits.budgets.windows import (
    Amounts,
    Reservation,
    ReservedWindow,
    Settlement,
    ThresholdEvent,
    WindowSpec,
)
from router.limits.remote import charge_journal
from router.limits.remote.charge_file import leave_charges
from router.limits.remote.charge_journal import ADOPT_EVERY_S, Charge, ChargeJournal
from router.limits.remote.message_parts import of_key
from router.limits.remote.messages import SettleCommand, SettleRequest

BODY = SettleRequest()
SPEND = WindowSpec("spend", "usd", "total", 1000)


class Service:
    """Takes charges, once by lease, unless it has an error for one or for all."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.errors: dict[str, Exception] = {}

    def settle(self, reservation: Reservation, amounts: Amounts) -> Settlement:
        lease = reservation.lease_id
        self.asked.append(lease)
        error = self.errors.get(lease, self.error)
        if error is not None:
            raise error
        booked = self.taken.setdefault(lease, amounts.cost_nanos) == amounts.cost_nanos
        return Settlement(booked, (ThresholdEvent(SPEND, 50),))


class Stand:
    """A directory, a clock and a service; and workers that may die."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_s = 0.0
        self.service = Service()

    def worker(self, **options: Any) -> ChargeJournal:
        return ChargeJournal(
            self.directory, self.service.settle, monotonic_s=lambda: self.now_s, **options
        )

    def left_by(self, journal: ChargeJournal) -> list[str]:
        """The files after this worker, too, has ended."""
        journal.close()
        return self.files()

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory)) if self.directory.exists() else []


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path / "service")


def lease(name: str, *windows: ReservedWindow) -> Reservation:
    return Reservation(name, "acme", windows or (ReservedWindow(SPEND, TOTAL, 100),), 5, "7")


def put(journal: ChargeJournal, reservation: Reservation, cost: int = 30) -> bool:
    """A charge that the service did not take; whether it is on disk."""
    body = BODY.dump(SettleCommand(reservation, Amounts(cost, 2)))
    charge = journal.write(body)
    if charge is not None:
        journal.keep(charge)
    return charge is not None


def keep(journal: ChargeJournal, *names: str, cost: int = 30) -> None:
    for name in names:
        assert put(journal, lease(name), cost)


def die(journal: ChargeJournal) -> None:
    """As the kernel does after ``kill -9``: close the files, and nothing else."""
    for fd in {charge.file._fd for charge in journal._waiting}:
        os.close(fd)


def test_what_is_kept_is_sent_as_it_was(stand: Stand) -> None:
    """Lease, windows, period and amounts; then nothing is left, and its thresholds are told."""
    told: list[Any] = []
    heard: list[Any] = []
    journal = ChargeJournal(
        stand.directory,
        lambda *facts: heard.append(facts) or stand.service.settle(*facts),  # type: ignore[func-returns-value]
        on_threshold=lambda *facts: told.append(facts),
    )
    plain, keyed = lease("a"), of_key(Reservation("b", "acme", ()), "k1")
    for reservation in (plain, keyed):
        put(journal, reservation)
    assert (len(journal), journal.kept, len(stand.files())) == (2, 2, 1)
    assert journal.run() == 2
    assert heard == [(plain, Amounts(30, 2)), (keyed, Amounts(30, 2))]
    assert told == [("acme", ThresholdEvent(SPEND, 50))] * 2
    assert (len(journal), journal.waiting_bytes, journal.kept) == (0, 0, 2)
    assert stand.left_by(journal) == []


NOT_TAKEN: list[Callable[[], Unavailable]] = [
    lambda: Unavailable("budget service", "breaker_open"),
    lambda: Unavailable("budget service", "lost", "answered 503"),
    lambda: Unavailable("budget service", "lost", "answered 429"),
    lambda: Unavailable("budget service", "lost", "answered 401"),
    lambda: Unavailable("budget service", "lost", "answered 404"),
    lambda: Refused("budget service", "lost", "answered 400"),
    lambda: Refused("budget service", "lost", "answered 404 UNKNOWN_ORGANIZATION"),
]


@pytest.mark.parametrize("error", NOT_TAKEN)
def test_whatever_the_service_says_nothing_is_dropped(
    stand: Stand, error: Callable[[], Unavailable]
) -> None:
    """For two minutes; after that it is taken within another one, once."""
    journal = stand.worker()
    keep(journal, "a", "b")
    stand.service.error = error()
    for _ in range(120):
        stand.now_s += 1
        assert journal.run() == 0
    stand.service.error = None
    for _ in range(61):
        stand.now_s += 1
        journal.run()
    assert stand.service.taken == {"a": 30, "b": 30}
    assert len(journal) == 0
    assert stand.left_by(journal) == []


def test_a_worker_that_is_killed_while_it_asks_loses_nothing(stand: Stand) -> None:
    """The charge was written before; whether the service has taken it nobody knows, so it is sent
    once more."""
    first = stand.worker()
    charge = first.write(BODY.dump(SettleCommand(lease("a"), Amounts(30, 2))))
    assert charge is not None
    assert (len(first), first.kept) == (0, 0)
    os.close(charge.file._fd)
    second = stand.worker()
    assert second.run() == 1
    assert stand.service.taken == {"a": 30}


def test_what_is_taken_at_once_fills_no_disk(stand: Stand) -> None:
    """Thousands of calls, one after the other and forty at a time."""
    journal = stand.worker()
    running: list[Charge] = []
    for number in range(3000):
        charge = journal.write(BODY.dump(SettleCommand(lease(f"lease {number}"), Amounts(30, 2))))
        assert charge is not None
        running.append(charge)
        if number < 1500 or len(running) == 40:
            journal.taken(running.pop(0))
    for charge in running:
        journal.taken(charge)
    sizes = [(stand.directory / name).stat().st_size for name in stand.files()]
    assert sum(sizes) <= 1024 * 1024 + 1000
    assert (journal.waiting_bytes, journal.kept) == (0, 0)
    assert stand.left_by(journal) == []


def test_a_dead_service_is_asked_three_times_a_run(stand: Stand) -> None:
    """Not once for each of thousands of charges."""
    journal = stand.worker()
    keep(journal, *[f"lease {number}" for number in range(50)])
    stand.service.error = Unavailable("budget service", "timeout")
    journal.run()
    assert len(stand.service.asked) == 3


def test_a_refused_charge_holds_up_no_other_and_is_tried_less_often(stand: Stand) -> None:
    """Its organization may have been removed, or may come back."""
    journal = stand.worker()
    keep(journal, "refused", "a", "b")
    stand.service.errors["refused"] = Refused("budget service", "lost", "answered 404")
    assert journal.run() == 2
    asked = len(stand.service.asked)
    for _ in range(600):
        stand.now_s += 1
        journal.run()
    assert 10 <= len(stand.service.asked) - asked <= 20
    assert len(journal) == 1


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_killed_worker_leaves_its_charges_to_the_next(stand: Stand, taken: int) -> None:
    """Those that were not taken, and only those."""
    names = [f"lease {number}" for number in range(5)]
    first = stand.worker()
    keep(first, *names)
    stand.service.errors = dict.fromkeys(names[taken:], Unavailable("budget service", "timeout"))
    assert first.run() == taken
    die(first)
    stand.service.errors.clear()
    stand.service.asked.clear()
    second = stand.worker()
    assert second.run() == 5 - taken
    assert sorted(stand.service.asked) == names[taken:]
    assert stand.service.taken == dict.fromkeys(names, 30)
    assert stand.files() == []


def test_a_worker_that_ends_leaves_its_charges_to_the_next(stand: Stand) -> None:
    """A restart in an outage; nobody takes them from a living one."""
    stand.service.error = Unavailable("budget service", "connect")
    first, second = stand.worker(), stand.worker()
    keep(first, "a", "b")
    second.run()
    assert (len(first), len(second)) == (2, 0)
    first.close()
    stand.now_s += ADOPT_EVERY_S
    second.run()
    assert (len(first), len(second)) == (0, 2)
    stand.service.error = None
    assert second.run() == 2
    assert stand.files() == []


def test_a_line_that_was_cut_off_costs_no_other(stand: Stand) -> None:
    """A power failure in the middle of a write; what is added later stands behind it."""
    first = stand.worker()
    keep(first, "a")
    die(first)
    [name] = stand.files()
    with (stand.directory / name).open("ab") as file:
        file.write(b'{"reservation": {"lease_id": "b"')
    second = stand.worker()
    stand.service.error = Unavailable("budget service", "connect")
    second.run()
    assert len(second) == 1
    die(second)
    stand.service.error = None
    assert stand.worker().run() == 1
    assert stand.service.taken == {"a": 30}


def test_a_damaged_line_costs_no_other(stand: Stand) -> None:
    """It is logged; one that is no charge stays, for somebody to look at."""
    stand.directory.mkdir()
    (stand.directory / "x.charges").write_bytes(b'{"cut\n{"reservation": {}}\n')
    first = stand.worker()
    keep(first, "a")
    assert first.run() == 1
    assert len(first) == 1
    assert stand.left_by(first) == ["x.charges"]


def test_what_the_agent_leaves_is_sent(stand: Stand) -> None:
    """Of calls that were running when their worker was killed; nothing leaves no file."""
    leave_charges(stand.directory, [])
    assert stand.files() == []
    leave_charges(stand.directory, [(lease("a"), Amounts(30, 2)), (lease("b"), Amounts(40, 2))])
    assert stand.worker().run() == 2
    assert stand.service.taken == {"a": 30, "b": 40}


def test_a_draft_of_a_killed_worker_is_removed(stand: Stand) -> None:
    """It holds nothing. One that was made just now is somebody's."""
    stand.directory.mkdir()
    for name, age_s in (("old.new", 120), ("young.new", 1)):
        (stand.directory / name).write_bytes(b"")
        made_s = time.time() - age_s
        os.utime(stand.directory / name, (made_s, made_s))
    stand.worker().run()
    assert stand.files() == ["young.new"]


def test_a_full_journal_says_so_and_still_takes_running_calls(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit no new call is to be admitted; room for those that run is kept."""
    stand.service.error = Unavailable("budget service", "connect")
    monkeypatch.setattr(charge_journal, "RESERVE_BYTES", 5000)
    journal = stand.worker(max_bytes=1000)
    count = 0
    while put(journal, lease(f"lease {count}")):
        count += 1
        assert journal.is_full is (journal.waiting_bytes >= 1000)
    assert 6000 <= journal.waiting_bytes < 7000
    stand.service.error = None
    assert journal.run() == count
    assert not journal.is_full
    assert len(stand.service.taken) == count


def test_a_disk_that_refuses_is_told(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    """The caller keeps the charge in memory then; one line says so, not one for each call."""
    stand.directory.write_text("no directory")
    journal = stand.worker()
    assert [put(journal, lease(name)) for name in "abc"] == [False] * 3
    assert len(caplog.records) == 1
    stand.directory.unlink()
    assert put(journal, lease("d"))


def test_charges_that_are_refused_for_ever_do_not_hold_what_was_done(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would have kept a file of a mebibyte, as long as it is refused."""
    monkeypatch.setattr(charge_journal, "ROTATE_BYTES", 2000)
    journal = stand.worker()
    for number in range(20):
        refused = f"refused {number}"
        stand.service.errors[refused] = Refused("budget service", "lost", "answered 400")
        keep(journal, refused, *[f"taken {number}.{each}" for each in range(10)])
        stand.now_s += 1
        journal.run()
    for _ in range(300):
        stand.now_s += 1
        journal.run()
    assert len(journal) == 20
    sizes = [(stand.directory / name).stat().st_size for name in stand.files()]
    assert sum(sizes) < 2 * journal.waiting_bytes + 2000
    stand.service.errors.clear()
    stand.now_s += 61
    assert journal.run() == 20
    assert stand.left_by(journal) == []
