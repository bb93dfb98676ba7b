"""The calls that run on a host, as a rebuild of a budget finds them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from router.limits.budgets.lease_notation import lease_of
from router.limits.budgets.periods import Period
from router.limits.budgets.windows import (
    InFlight,
    LostWindow,
    Reservation,
    ReservedWindow,
    WindowSpec,
)
from router.records.dispatches import Dispatch, encode_dispatch, record_id_of
from router.records.recorder import Recorder
from router.spool.frames import USAGE
from router.spool.reader import SpoolReader
from router.spool.writer import SpoolWriter
from router.store.in_flight import RunningCalls

PERIOD = Period(1_000, 9_000)
DAILY = WindowSpec("daily", "usd", "daily", 10**9)
CALLS = WindowSpec("calls", "requests", "daily", 10)
OTHER_KEYS = WindowSpec("mine", "usd", "daily", 10**9, "UTC", "key", "key_2")


def dispatch(record_id: str, organization_id: str = "acme", *, held: int = 300) -> Dispatch:
    reservation = Reservation(
        record_id, organization_id, (ReservedWindow(DAILY, PERIOD, held),), 2_000, "7"
    )
    return Dispatch(
        record_id, f"r-{record_id}", 2.0, organization_id, "key_1", "native.inference", "chat",
        "m", "m", "b", False, "PRIMARY", None, None, {}, "estimated", 1, 0, 5, None,
        (400, 50, 1), lease_of(reservation, 10_000),
    )  # fmt: skip


@pytest.fixture
def worker(tmp_path: Path) -> Recorder:
    spool = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30, background=False)
    recorder = Recorder(spool)
    recorder.dispatched(dispatch("a"))
    recorder.dispatched(dispatch("ended"))
    recorder.dispatched(dispatch("b", held=77))
    recorder.dispatched(dispatch("c", "other"))
    spool.append([(USAGE, b'{"schema_version":1,"record_id":"ended","organization_id":"acme"}')])
    return recorder


@pytest.mark.parametrize(
    ("window", "period", "found"),
    [
        (DAILY, PERIOD, [("a", 300), ("b", 77)]),
        # Windows that are new count what the call would have reserved there.
        (CALLS, PERIOD, [("a", 1), ("b", 1)]),
        (DAILY, Period(9_000, 17_000), []),
        (OTHER_KEYS, PERIOD, []),
    ],
    ids=["reserved there", "a new window", "a later period", "of another key"],
)
def test_what_runs(
    worker: Recorder,
    tmp_path: Path,
    window: WindowSpec,
    period: Period,
    found: list[tuple[str, int]],
) -> None:
    """P7: an emptied Redis must not admit their amounts again."""
    lost = LostWindow(window, period, 0, ())
    calls = RunningCalls(tmp_path / "spool").reserved("acme", lost)
    assert calls == [InFlight(lease_id, amount, 12_000) for lease_id, amount in found]
    worker.spool.close()


def ids(calls: RunningCalls) -> set[str]:
    lost = LostWindow(DAILY, PERIOD, 0, ())
    return {call.lease_id for call in calls.reserved("acme", lost)}


def test_what_happens_between_two_questions_is_seen(tmp_path: Path) -> None:
    """Calls that begin and end, in this segment and in the next ones, and the death of a worker
    whose calls are recorded by the agent: as if all of it were read anew."""
    open_spool = partial(SpoolWriter, tmp_path / "spool", max_bytes=1 << 30, background=False)
    agent, worker = (Recorder(open_spool(segment_bytes=4096)) for _ in range(2))
    calls = RunningCalls(tmp_path / "spool")
    running: set[str] = set()
    for number in range(200):
        record_id = f"call-{number}"
        worker.dispatched(dispatch(record_id))
        running.add(record_id)
        if number % 3:
            ended = sorted(running)[number % len(running)]
            running.remove(ended)
            worker.open_calls.ended(ended, cost_nanos=1, tokens=1, requests=1)
            worker.open_calls.settled(ended)
            worker.spool.append([(USAGE, b'{"record_id":"%b"}' % ended.encode())])
        worker.spool.tick()
        if not number % 7:
            assert ids(calls) == running == ids(RunningCalls(tmp_path / "spool"))
    segments = SpoolReader(tmp_path / "spool", observe=True).segments(worker.spool.writer_id)
    assert len(segments) > 4
    for record_id in sorted(running)[:10]:
        agent.spool.append([(USAGE, b'{"record_id":"%b"}' % record_id.encode())])
    left = set(sorted(running)[10:])
    assert ids(calls) == left == ids(RunningCalls(tmp_path / "spool"))
    for one in (agent, worker):
        one.spool.close()


def test_an_id_is_found_without_decoding() -> None:
    """In both kinds of frames, at the place where writers put it."""
    assert record_id_of(encode_dispatch(dispatch("a-1"))) == "a-1"
    assert record_id_of(b'{"schema_version":1,"record_id":"a-2","x":1}') == "a-2"
    assert record_id_of(b"{}") == ""
