"""A spool that somebody has damaged: the agent starts, delivers what is whole, counts the rest.

The worker and the agent are the real programs; each byte that is wrong was changed here.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import AUDIT, USAGE, encode_frame, segment_name
from router.spool.reader import SpoolReader
from tests.servers.agent_process import AgentProcess, Worker
from tests.servers.router_process import wait_until

FIXED_SEED = 20_261_124 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
SEED = int(os.environ.get("ROUTER_TEST_SEED") or FIXED_SEED)
CALLS, RATE = 1_200, 800.0
FLIPS = 25
SHIPPED_S = 20.0
WHOLE = {"torn": 0, "damaged": 0, "bytes": 0, "missing_segments": 0}


class Span(NamedTuple):
    """Where a record stands in the spool."""

    path: Path
    start: int
    end: int
    kind: int
    id: str


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    agent = AgentProcess(tmp_path / "data")
    yield agent
    agent.kill()


@pytest.fixture
def worker(agent: AgentProcess) -> Iterator[Worker]:
    """One that has made its calls and lives on."""
    worker = Worker(agent.data_dir, "a", calls=CALLS, rate=RATE).await_calls()
    yield worker
    worker.kill()


def spans(data_dir: Path) -> list[Span]:
    """Every record in the spool, in order."""
    found: list[Span] = []
    reader = SpoolReader(data_dir / "spool", observe=True)
    for writer_id, *_ in reader.writers():
        position = reader.first_position(writer_id)
        while (batch := reader.read(position, 1 << 20)).position_after != position:
            for frame in batch.frames:
                end = frame.position_after.offset
                start = end - len(encode_frame(frame.kind, frame.payload))
                path = data_dir / "spool" / writer_id / segment_name(frame.position_after.segment)
                name = "record_id" if frame.kind == USAGE else "event_id"
                found.append(Span(path, start, end, frame.kind, json.loads(frame.payload)[name]))
            position = batch.position_after
    return found


def ids(found: list[Span], kind: int) -> list[str]:
    """The ids of one kind of records, sorted."""
    return sorted(span.id for span in found if span.kind == kind)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (before,) = file.read(1)
        file.seek(offset)
        file.write(bytes([before ^ 0xFF]))


def stored(agent: AgentProcess) -> tuple[list[str], list[str]]:
    """The ids of what is in the store, sorted."""
    events = [event["event_id"] for event in agent.read_store("audit")]
    return sorted(agent.stored()), sorted(events)


def logged(agent: AgentProcess) -> list[str]:
    """The ids of the events in the log, sorted; each once, however often it was written."""
    return sorted({line["audit"]["event_id"] for line in agent.log("audit")})


@pytest.mark.parametrize("seed", [SEED])
def test_what_is_whole_arrives_and_the_rest_is_counted(
    agent: AgentProcess, worker: Worker, seed: int
) -> None:
    """Must show 3, Q7: flipped bytes, a missing segment and a cut tail cost what they hit."""
    dice = random.Random(seed)
    worker.kill()
    written = spans(agent.data_dir)
    assert ids(written, USAGE) == sorted(worker.answered())
    segments = sorted({span.path for span in written})
    assert len(segments) >= 4
    *_, gone, last = segments
    cut = dice.choice([span for span in written if span.path == last])
    hit = set(dice.sample([span for span in written if span.path not in (gone, last)], FLIPS))

    for span in hit:
        flip(span.path, dice.randrange(span.start, span.end))
    gone.unlink()
    os.truncate(last, dice.randrange(cut.start + 1, cut.end))
    torn_bytes = last.stat().st_size - cut.start

    agent.start()
    agent.await_sink("store", SHIPPED_S)
    agent.await_sink("log", SHIPPED_S)
    whole = [
        span
        for span in written
        if not (span in hit or span.path == gone or (span.path == last and span.end >= cut.end))
    ]
    assert stored(agent) == (ids(whole, USAGE), ids(whole, AUDIT))
    assert logged(agent) == ids(whole, AUDIT)
    damage = agent.report()["damage"]
    assert (damage["torn"], damage["missing_segments"]) == (1, 1)
    assert 1 <= damage["damaged"] <= FLIPS
    assert damage["bytes"] == torn_bytes + sum(span.end - span.start for span in hit)
    wait_until(lambda: not agent.segments(), 5.0, "the spool is empty")
    kept = list((agent.data_dir / "spool" / "quarantine").iterdir())
    assert sum(file.stat().st_size for file in kept) == damage["bytes"]
    assert len(kept) == damage["torn"] + damage["damaged"]
    assert agent.stop() == 0


def test_restored_segments_and_lost_checkpoints_change_nothing(
    agent: AgentProcess, worker: Worker
) -> None:
    """Must show 3: acknowledged segments are back but for one, and one sink forgot how far it was.

    That sink gets again what is there, and knows it by its id; the other gets nothing again.
    """
    written = spans(agent.data_dir)
    saved = {path: path.read_bytes() for path in {span.path for span in written}}
    agent.start()
    agent.await_sink("store", SHIPPED_S)
    agent.await_sink("log", SHIPPED_S)
    wait_until(lambda: len(agent.segments()) == 1, 5.0, "what was acknowledged is removed")
    agent.kill()
    before = stored(agent)
    assert before == (ids(written, USAGE), ids(written, AUDIT))

    acknowledged = sorted(path for path in saved if not path.exists())
    missing = acknowledged[1]
    for path in acknowledged:
        if path != missing:
            path.write_bytes(saved[path])
    for suffix in (".0", ".1"):
        place = checkpoint_path(agent.data_dir, "store")
        place.with_name(place.name + suffix).unlink()
    assert Checkpoints(checkpoint_path(agent.data_dir, "store")).load() == {}

    agent.start()
    there = [span for span in written if span.path != missing]
    wait_until(lambda: agent.sink("store").get("delivered") == len(there), SHIPPED_S, "all again")
    wait_until(lambda: len(agent.segments()) == 1, 5.0, "it is removed again")
    assert stored(agent) == before
    assert agent.sink("log")["delivered"] == 0
    assert agent.report()["damage"] == {**WHOLE, "missing_segments": 1}
    worker.end()
    wait_until(lambda: not agent.segments(), 5.0, "the spool is empty")
    assert agent.stop() == 0
    lines = [line["audit"]["event_id"] for line in agent.log("audit")]
    assert sorted(lines) == before[1]
