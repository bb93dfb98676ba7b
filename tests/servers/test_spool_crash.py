"""The spool on real disks: processes killed with -9, many at once, full and read-only disks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.errors import RecordsUnavailable
from router.spool.disk import SpoolIO
from router.spool.frames import USAGE, Position
from router.spool.reader import SpoolReader
from router.spool.writer import SpoolWriter
from tests.fakes.spool_parties import Agent, fresh, is_ready, record

ROUNDS = 12
MIB = 1 << 20

APPENDER = """
import os, sys
from pathlib import Path
from router.spool.writer import SpoolWriter
from router.spool.frames import USAGE

def record(number):
    return b'{"record":%05d,"filler":"%b"}' % (number, b"x" * (number * 37 % 90))

spool, mode, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
writer = SpoolWriter(spool, max_bytes=1 << 30, mode=mode, segment_bytes=8192, reserve_bytes=65536)
number = first
while number < first + count:
    last = min(number + 1 + number % 3, first + count)
    writer.append([(USAGE, record(found)) for found in range(number, last)])
    os.write(1, b"%05d\\n" % (last - 1))  # only now the call would be answered
    number = last
writer.close()
"""

LOOP = """
import gevent.monkey
gevent.monkey.patch_all()
import sys, time
from pathlib import Path
import gevent, gevent.threadpool
from router.spool.writer import SpoolWriter
from router.spool.frames import USAGE
from router.spool.disk import SpoolIO

really_sleep = gevent.monkey.get_original("time", "sleep")

class SlowDisk(SpoolIO):
    syncs = 0
    def sync(self, fd):
        SlowDisk.syncs += 1
        really_sleep(0.3)

mode, longest_s, ended = sys.argv[2], 0.0, False

def watch():
    global longest_s
    before_s = time.monotonic()
    while not ended:
        gevent.sleep(0.005)
        longest_s = max(longest_s, time.monotonic() - before_s)
        before_s = time.monotonic()

offload = gevent.threadpool.ThreadPool(1).apply
writer = SpoolWriter(
    Path(sys.argv[1]), max_bytes=1 << 30, mode=mode, io=SlowDisk(), offload=offload
)
watcher = gevent.spawn(watch)
gevent.sleep(0.05)
SlowDisk.syncs = 0

def append(number):
    for _ in range(2):
        writer.append([(USAGE, b"{}")])
        writer.check()

began_s = time.monotonic()
gevent.joinall([gevent.spawn(append, number) for number in range(50)], raise_error=True)
took_s = time.monotonic() - began_s
gevent.sleep(0.5)
ended = True
watcher.join()
print(f"{longest_s} {took_s} {SlowDisk.syncs}")
writer.close()
"""


class Appender:
    """A process that appends numbered records and writes down which of them were taken."""

    def __init__(self, directory: Path, mode: str, first: int, count: int = 10_000) -> None:
        arguments = [str(directory / "spool"), mode, str(first), str(count)]
        self.first = first
        self._said = directory / f"taken-{first}"
        with self._said.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", APPENDER, *arguments], stdout=output
            )

    def await_start(self) -> None:
        """Wait until the first record was taken."""
        seconds_until(lambda: self._said.stat().st_size > 0, limit_s=20)

    def kill(self) -> list[int]:
        """End it without a warning; the records that it was told are taken."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return list(range(self.first, int(self._said.read_bytes().split()[-1]) + 1))


def deliver(directory: Path) -> list[int]:
    """All that an agent finds; it goes on where the one before it was."""
    delivered: list[int] = []
    agent = Agent(SpoolIO(), delivered, directory / "spool", directory / "checkpoints" / "sink")
    agent.run(20_000)
    agent.reader.close()
    return delivered


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_a_killed_process_loses_no_record_that_it_was_told_is_taken(
    tmp_path: Path, mode: str
) -> None:
    """Requirement P1: kill -9 at random moments; what was taken is delivered, in order, whole."""
    chance = random.Random(20)
    for number in range(ROUNDS):
        appender = Appender(tmp_path, mode, number * 10_000 // ROUNDS * 3)
        appender.await_start()
        time.sleep(chance.uniform(0, 0.15))
        taken = appender.kill()
        delivered = deliver(tmp_path)
        assert set(taken) <= set(delivered)
        assert delivered == list(range(appender.first, appender.first + len(delivered)))
        assert len(delivered) - len(taken) <= 3
    assert [name for name in os.listdir(tmp_path / "spool") if name != "quarantine"] == []


def test_many_writers_and_one_reader_at_the_same_time(tmp_path: Path) -> None:
    """Segments come, go and change hands while they are read; each record arrives exactly once."""
    count = 2_500
    appenders = [
        Appender(tmp_path, mode, index * 10_000, count)
        for index, mode in enumerate(("fast", "durable", "fast", "fast"))
    ]
    delivered: list[int] = []
    agent = Agent(SpoolIO(), delivered, tmp_path / "spool", tmp_path / "checkpoints" / "sink")
    while any(appender.process.poll() is None for appender in appenders):
        agent.run(5_000)
        time.sleep(0.01)
    agent.run(5_000)
    agent.reader.close()
    assert len(delivered) == len(appenders) * count
    for appender in appenders:
        own = [number for number in delivered if number // 10_000 == appender.first // 10_000]
        assert own == list(range(appender.first, appender.first + count))
    assert agent.reader.damage.bytes == 0
    assert os.listdir(tmp_path / "spool") == []


# --- disks that are full and directories that go away -----------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB that can really be full."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("NOT TESTED: a really full disk, because only root can mount one")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: a really full disk, because mount says {mounted.stderr!r}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def writer(small_disk: Path) -> Iterator[SpoolWriter]:
    """A writer of the worker's kind, with its own thread."""
    writer = SpoolWriter(
        small_disk / "spool", max_bytes=1 << 30, segment_bytes=MIB // 2, reserve_bytes=MIB // 4
    )
    yield writer
    writer.close()


def fill(place: Path) -> None:
    """Take every free byte."""
    with (place / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def seconds_until(condition: Callable[[], bool], limit_s: float = 5.0) -> float:
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s, "it did not happen"
        time.sleep(0.01)
    return time.monotonic() - began_s


def test_a_full_disk_loses_nothing_that_was_taken(small_disk: Path, writer: SpoolWriter) -> None:
    """Requirement P3: calls are refused first, their records later, and 2 s after that none are."""
    taken: list[int] = []
    reasons: set[str] = set()
    passed_then_refused = 0
    fill(small_disk)
    for number in range(20_000):
        admitted = is_ready(writer)
        try:
            writer.append([(USAGE, record(number))])
            taken.append(number)
        except RecordsUnavailable as refused:
            reasons.add(refused.reason)
            passed_then_refused += admitted
            if number % 500 == 0:
                fill(small_disk)
        if number % 100 == 0:
            time.sleep(0.01)
    assert 1000 < len(taken) < 20_000, "the disk was to be full in between"
    assert reasons == {"disk_full"}
    assert passed_then_refused == 0, "a call that was admitted could not be recorded"
    (small_disk / "filler").unlink()
    assert seconds_until(lambda: is_ready(writer)) < 2.0
    writer.append([(USAGE, record(20_000))])
    writer.close()
    assert deliver(small_disk) == [*taken, 20_000]


def test_a_spool_that_is_moved_away_is_noticed(small_disk: Path, writer: SpoolWriter) -> None:
    """Records are refused and held until there is a place for them, and then written first."""
    writer.append([(USAGE, record(1))])
    (small_disk / "spool").rename(small_disk / "elsewhere")
    (small_disk / "spool").write_text("in the way")
    seconds_until(lambda: not is_ready(writer))
    with pytest.raises(RecordsUnavailable):
        writer.append([(USAGE, record(2))])
    writer.buffer([(USAGE, record(2))])
    (small_disk / "spool").unlink()
    (small_disk / "elsewhere").rename(small_disk / "spool")
    assert seconds_until(lambda: is_ready(writer)) < 2.0
    writer.append([(USAGE, record(3))])
    writer.close()
    assert fresh(deliver(small_disk)) == [1, 2, 3]


# --- under gevent -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_a_slow_disk_never_blocks_the_loop(tmp_path: Path, mode: str) -> None:
    """Syncs of 300 ms stop no other call of the worker, and many appends share one."""
    run = subprocess.run(
        [sys.executable, "-c", LOOP, str(tmp_path / "spool"), mode],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stderr == ""
    longest_s, took_s, syncs = map(float, run.stdout.split())
    assert longest_s < 0.15
    assert took_s < 0.15 if mode == "fast" else 0.6 <= took_s < 2.0
    assert syncs <= 8
    reader = SpoolReader(tmp_path / "spool")
    [info] = reader.writers()
    assert len(reader.read(Position(info.writer_id, 1, 0), MIB).frames) == 100
    reader.close()


def test_a_second_process_takes_over_only_when_the_first_is_gone(tmp_path: Path) -> None:
    """The lock of a dead reader is free at once, that of a living one is not."""
    appender = Appender(tmp_path, "fast", 0)
    appender.await_start()
    appender.kill()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path;"
            "from router.spool.reader import SpoolReader;"
            "print(SpoolReader(Path(sys.argv[1])).writers()[0].alive, flush=True); time.sleep(60)",
            str(tmp_path / "spool"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "False\n"
    reader = SpoolReader(tmp_path / "spool")
    assert [info.alive for info in reader.writers()] == [True]
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert [info.alive for info in reader.writers()] == [False]
    reader.close()
