"""Metric files by worker slot: read by the library's own collector, outlived by their figures."""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import prometheus_client.values
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from router.telemetry.metrics import Metrics, use_worker_slot
from router.telemetry.slot_values import slot_value_class
from tests.unit.telemetry import worker_lives
from tests.unit.telemetry.worker_lives import Life

CALL = {"endpoint": "native.inference", "status": "200", "outcome": "completed"}


def pass_lives(directory: Path, *lives: Life) -> None:
    """Let these workers live one after another, each in a process of its own."""
    listed = json.dumps([asdict(life) for life in lives])
    command = [sys.executable, "-W", "error", str(worker_lives.__file__), str(directory), listed]
    subprocess.run(command, check=True, timeout=60)


def scrape(directory: Path) -> CollectorRegistry:
    """What a scrape of this directory shows."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    return registry


def value(directory: Path, name: str, **labels: str) -> float | None:
    return scrape(directory).get_sample_value(f"api_router_{name}", labels)


def samples(directory: Path) -> dict[Any, float]:
    """Every sample of a scrape."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in scrape(directory).collect()
        for sample in family.samples
    }


@contextmanager
def closing_files() -> Iterator[None]:
    """Close what is opened inside; a worker's files stay open for as long as it lives."""
    opened: list[MmapedDict] = []

    class Closed(MmapedDict):
        def __init__(self, filename: str) -> None:
            super().__init__(filename)  # type: ignore[no-untyped-call]
            opened.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("router.telemetry.slot_values.MmapedDict", Closed)
        yield
    for file in opened:
        file.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of this process's own files, until the test is over."""
    library = prometheus_client.values
    monkeypatch.setattr(library, "ValueClass", library.ValueClass)  # to be put back
    with closing_files():
        use_worker_slot(0, tmp_path)
        yield tmp_path


# --- over the lives of processes ------------------------------------------------------------


def test_a_successor_goes_on_counting(tmp_path: Path) -> None:
    """M2: counters and histograms of a slot hold what all its workers did, killed ones too."""
    pass_lives(tmp_path, Life(0, calls=3), Life(0, calls=4, killed=True), Life(0, calls=5))
    assert value(tmp_path, "requests_total", **CALL) == 12
    assert value(tmp_path, "tokens_total", direction="output", source="reported") == 60
    assert value(tmp_path, "cost_nanousd_total") == 84
    assert value(tmp_path, "overhead_seconds_count") == 12
    endpoint = {"endpoint": "native.inference"}
    assert value(tmp_path, "request_duration_seconds_count", **endpoint) == 12
    assert value(tmp_path, "request_duration_seconds_sum", **endpoint) == pytest.approx(0.24)
    bucket = "request_duration_seconds_bucket"
    assert value(tmp_path, bucket, le="0.01", **endpoint) == 0
    assert value(tmp_path, bucket, le="0.025", **endpoint) == 12


def test_slots_add_up(tmp_path: Path) -> None:
    """M1: what is counted sums over workers; gauges are of those that live."""
    pass_lives(
        tmp_path,
        Life(0, calls=2, running=1, revision=9),
        Life(1, calls=3, running=4, revision=8),
    )
    assert value(tmp_path, "requests_total", **CALL) == 5
    assert value(tmp_path, "overhead_seconds_count") == 5
    assert value(tmp_path, "requests_in_flight") == 5
    assert value(tmp_path, "config_revision") == 8


def test_gauges_of_the_dead_disappear(tmp_path: Path) -> None:
    """M6: what a dead worker was doing is over; what it has counted stays."""
    pass_lives(
        tmp_path,
        Life(0, calls=2, running=3, revision=1, killed=True),
        Life(1, running=1, revision=2),
    )
    assert value(tmp_path, "requests_in_flight") == 4
    mark_process_dead("slot0", str(tmp_path))  # type: ignore[no-untyped-call]
    assert value(tmp_path, "requests_in_flight") == 1
    assert value(tmp_path, "config_revision") == 2
    assert value(tmp_path, "requests_total", **CALL) == 2
    mark_process_dead("slot1", str(tmp_path))  # type: ignore[no-untyped-call]
    assert value(tmp_path, "requests_in_flight") is None
    assert value(tmp_path, "requests_total", **CALL) == 2


def test_marking_one_slot_dead_leaves_its_namesakes_alone(tmp_path: Path) -> None:
    """Slot 1 is not slot 10 or 11."""
    pass_lives(tmp_path, Life(1, running=1), Life(10, running=2), Life(11, running=4))
    mark_process_dead("slot1", str(tmp_path))  # type: ignore[no-untyped-call]
    assert value(tmp_path, "requests_in_flight") == 6


def test_twenty_generations_leave_what_the_first_one_left(tmp_path: Path) -> None:
    """M2: files, their sizes and their series stay the same, and no counter ever falls."""
    pass_lives(tmp_path, Life(0, calls=1), Life(1, calls=1))
    first = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    before = samples(tmp_path)
    pass_lives(
        tmp_path,
        *(Life(turn % 2, calls=1, killed=turn % 3 == 0) for turn in range(2 * 19)),
    )
    after = samples(tmp_path)
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == first
    assert sorted(first) == [
        f"{kind}_slot{number}.db"
        for kind in ("counter", "gauge_livemax", "gauge_livemin", "gauge_livesum", "histogram")
        for number in (0, 1)
    ]
    assert set(after) == set(before)
    assert [key for key in before if after[key] < before[key]] == []
    assert value(tmp_path, "requests_total", **CALL) == 40


# --- one process ----------------------------------------------------------------------------


def test_the_collector_reads_every_kind(slot: Path) -> None:
    """Names, labels, help texts and values come out as they were declared and set."""
    registry = CollectorRegistry()
    counter = Counter("calls", "Calls, “quoted”.", ("of",), registry=registry)
    counter.labels('back"end\n1').inc(2.5)
    gauge = Gauge("level", "Level.", multiprocess_mode="max", registry=registry)
    gauge.set(-4)
    gauge.inc(1)
    Histogram("waits", "Waits.", buckets=(1, 2), registry=registry).observe(1.5)

    found = {family.name: family for family in scrape(slot).collect()}
    assert found["calls"].documentation == "Calls, “quoted”."
    assert [(s.labels, s.value) for s in found["calls"].samples] == [({"of": 'back"end\n1'}, 2.5)]
    assert [s.value for s in found["level"].samples] == [-3]
    buckets = {s.labels["le"]: s.value for s in found["waits"].samples if "le" in s.labels}
    assert buckets == {"1.0": 0, "2.0": 1, "+Inf": 1}
    assert scrape(slot).get_sample_value("waits_sum") == 1.5


def test_this_process_sees_its_own_values(slot: Path) -> None:
    """The registry of the worker and the files say the same."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.count_cost(5)
    metrics.count_cost(6)
    assert registry.get_sample_value("api_router_cost_nanousd_total") == 11
    assert value(slot, "cost_nanousd_total") == 11


def test_exemplars_are_ignored(slot: Path) -> None:
    """The files have no place for them; counting with one still counts."""
    counter = Counter("calls", "Calls.", registry=CollectorRegistry())
    counter.inc(2, exemplar={"trace_id": "1"})
    assert scrape(slot).get_sample_value("calls_total") == 2


def test_more_series_than_a_file_begins_with(slot: Path) -> None:
    """A file that has grown is read whole, and goes on in the next worker."""
    names = [f"backend-{number:04}" for number in range(100)]
    for _ in range(2):
        use_worker_slot(0, slot)
        metrics = Metrics(CollectorRegistry())
        for name in names:
            metrics.count_attempt(name, "none", 0.1)
    assert (slot / "histogram_slot0.db").stat().st_size > 2**16
    counted = {
        dict(labels)["backend"]: value
        for (name, labels), value in samples(slot).items()
        if name == "api_router_backend_requests_total"
    }
    assert counted == dict.fromkeys(names, 2.0)


def full_disk(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_room_values_stay_in_memory(
    slot: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk calls are counted in the process, and one line says that none is shown."""
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.count_cost(5)
    metrics.count_cost(6)
    metrics.publish(3)
    assert registry.get_sample_value("api_router_cost_nanousd_total") == 11
    assert [file.name for file in slot.iterdir() if file.stat().st_size] == []
    assert warnings_of(caplog) == ["metrics are not exported: No space left on device"]


def test_a_file_that_cannot_grow_keeps_what_it_has(
    slot: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Series that fit are exported as before; those that do not are counted in memory."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.count_cost(5)
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    for number in range(600):
        metrics.count_attempt(f"backend-{number:04}", "none", 0.1)
    metrics.count_cost(6)
    labels = {"backend": "backend-0599", "error": "none"}
    assert registry.get_sample_value("api_router_backend_requests_total", labels) == 1
    assert value(slot, "backend_requests_total", **labels) is None
    assert value(slot, "cost_nanousd_total") == 11
    assert {file.stat().st_size for file in slot.iterdir()} == {2**16}
    assert warnings_of(caplog) == ["metrics are not exported: No space left on device"]


def test_blocks_exist_before_they_are_used(slot: Path) -> None:
    """No file is sparse: neither a new one nor one that has grown."""
    metrics = Metrics(CollectorRegistry())
    for number in range(100):
        metrics.count_attempt(f"backend-{number:04}", "none", 0.1)
    files = list(slot.iterdir())
    assert len(files) >= 2
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size >= 2**16


def test_a_file_system_without_preallocation_will_do(
    slot: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it cannot promise is not asked of it."""

    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    Metrics(CollectorRegistry()).count_cost(5)
    assert value(slot, "cost_nanousd_total") == 5
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    "content",
    [
        b"garbage" * 100,
        b"x",
        struct.pack("i", -5) + bytes(60),
        struct.pack("i", 2**20) + bytes(60),
        # An entry of negative length, at which the library's reader would stay for ever.
        struct.pack("iii", 64, 0, -28) + bytes(52),
        struct.pack("iii4s", 64, 0, 4, b"\xff\xff\xff\xff") + bytes(48),
    ],
)
def test_a_corrupt_file_is_begun_anew(
    slot: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """A worker starts whatever its predecessor's files have become, and says so once."""
    (slot / "counter_slot0.db").write_bytes(content)
    Metrics(CollectorRegistry()).count_cost(5)
    assert value(slot, "cost_nanousd_total") == 5
    assert warnings_of(caplog) == ["a corrupt file of metrics was put aside: counter_slot0.db"]


@settings(max_examples=30)
@given(
    lives=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e9)), max_size=6), max_size=4
    )
)
def test_any_history_adds_up(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[tuple[int, float]]]
) -> None:
    """Whatever earlier workers of the slot have counted, the next one adds to it."""
    directory = tmp_path_factory.mktemp("slot")
    expected = dict.fromkeys(range(4), 0.0)
    for life in lives:
        with closing_files():
            values = slot_value_class("slot3", directory)
            counters = [
                values("counter", "calls", "calls_total", ["n"], [str(number)], "Calls.")
                for number in expected
            ]
            for number, amount in life:
                counters[number].inc(amount)
                expected[number] += amount
            assert [counter.get() for counter in counters] == [*expected.values()]
    registry = scrape(directory)
    found = {n: registry.get_sample_value("calls_total", {"n": str(n)}) for n in expected}
    assert found == (expected if lives else dict.fromkeys(expected))
