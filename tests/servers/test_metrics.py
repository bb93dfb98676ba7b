"""Figures of several workers, while they serve, are recycled and are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.servers.deployment import CHAT, HELLO, Deployment, deploy
from tests.servers.load import Load, running_load
from tests.servers.raw_client import exchange
from tests.servers.router_process import RouterProcess, children, wait_until
from tests.servers.scrapes import Samples, gauge, samples, series, total

WORKERS = 3
MAX_REQUESTS = 150
KILLS = 6
FILES_A_WORKER = 4
"""Counters, histograms and two kinds of gauge."""


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three workers that are recycled every few hundred requests."""
    directory = tmp_path_factory.mktemp("metered")
    with deploy(directory, workers=WORKERS, ROUTER_MAX_REQUESTS=str(MAX_REQUESTS)) as deployed:
        yield deployed
        assert deployed.router.stop() == 0


def fallen(earlier: Samples, later: Samples) -> list[Any]:
    """Samples that are lower than before, or gone."""
    return [key for key, value in earlier.items() if later.get(key, -1) < value]


@contextmanager
def scraping(deployed: Deployment, *, scrapers: int = 2) -> Iterator[list[list[Samples]]]:
    """Scrape all the time until the block ends; one list of scrapes for each scraper."""
    stopping = threading.Event()
    scrapes: list[list[Samples]] = [[] for _ in range(scrapers)]

    def scrape(into: list[Samples]) -> None:
        while not stopping.is_set():
            try:
                reply = deployed.router.request("GET", "/metrics", ops=True)
            except OSError:
                continue  # the worker that answered was killed
            into.append(samples(reply.body.decode()) if reply.status == 200 else {})
            time.sleep(0.02)

    threads = [threading.Thread(target=scrape, args=(into,)) for into in scrapes]
    for thread in threads:
        thread.start()
    try:
        yield scrapes
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def chat(deployed: Deployment) -> Any:
    fields = {"model": CHAT, "messages": HELLO}
    return lambda _: ("/v1/chat/completions", fields, {"X-API-Key": deployed.key.key})


def recycled(deployed: Deployment) -> int:
    """How many workers were started in place of another."""
    started = [line for line in deployed.router.log() if line["event"].startswith("Booting")]
    return len(started) - WORKERS


def test_totals_are_exact_and_never_fall(metered: Deployment) -> None:
    """M1, M2: through parallel scrapes and recycled workers, not one request is lost."""
    before = samples(metered.router.metrics())
    with (
        scraping(metered) as scrapes,
        running_load(metered.router.port, chat(metered), clients=6, name="count") as load,
    ):
        # Which worker gets how many of them is the kernel's choice.
        wait_until(
            lambda: len(load.results) >= 900 and recycled(metered) >= 2,
            60,
            "900 calls and two recycled workers",
        )
    answered = [result for result in load.results if result.error is None]
    after = samples(metered.router.metrics())

    assert {result.status for result in answered} == {200}
    assert [result for result in load.results if result.error and result.fresh] == []
    labels = {"endpoint": "openai.chat_completions", "status": "200", "outcome": "completed"}
    assert total(after, **labels) - total(before, **labels) == len(answered)
    for line in scrapes:
        assert len(line) >= 3
        for earlier, later in pairwise([before, *line, after]):
            assert fallen(earlier, later) == []


def test_killed_workers_take_nothing_with_them(metered: Deployment) -> None:
    """M2: counters never fall over SIGKILLs, and files do not pile up."""
    router = metered.router
    scrapes = [samples(router.metrics())]
    with running_load(router.port, chat(metered), clients=3, name="kill") as load:
        for _ in range(KILLS):
            victim = random.choice(children(router.pid))
            os.kill(victim, signal.SIGKILL)
            wait_until(partial(replaced, router, victim), 15, "the worker is replaced")
            wait_until(partial(serves_again, load, time.monotonic()), 15, "calls are answered")
            scrapes.append(scrape_patiently(router))

    for earlier, later in pairwise(scrapes):
        assert fallen(earlier, later) == []
        assert total(later) > total(earlier)
    files = list(router.metrics_dir.glob("*.db"))
    assert len(files) <= FILES_A_WORKER * (WORKERS + 1), sorted(file.name for file in files)


def replaced(router: RouterProcess, victim: int) -> bool:
    living = children(router.pid)
    return victim not in living and len(living) == WORKERS


def serves_again(load: Load, since_s: float) -> bool:
    return any(result.status == 200 for result in load.since(since_s))


def scrape_patiently(router: RouterProcess) -> Samples:
    """A scrape; another try when it was answered by a worker that has just been killed."""
    while True:
        try:
            return samples(router.metrics())
        except OSError:
            time.sleep(0.05)


def test_a_reload_fails_nobody(metered: Deployment) -> None:
    """P13: SIGHUP under load replaces every worker; no call is lost and no counter falls."""
    router = metered.router
    metered.reset()
    before, old = samples(router.metrics()), set(router.worker_pids())
    with running_load(router.port, chat(metered), clients=6, name="reload") as load:
        wait_until(lambda: len(load.results) > 60, 10, "traffic")
        router.signal(signal.SIGHUP)
        wait_until(lambda: not old & set(router.worker_pids()), 20, "other workers")
        reloaded_s = time.monotonic()
        wait_until(lambda: len(load.since(reloaded_s)) > 60, 10, "traffic")
    after = samples(router.metrics())

    answered = [result for result in load.results if result.error is None]
    assert {result.status for result in answered} == {200}
    assert [result for result in load.results if result.error and result.fresh] == []
    assert fallen(before, after) == []
    labels = {"endpoint": "openai.chat_completions", "status": "200", "outcome": "completed"}
    assert total(after, **labels) - total(before, **labels) == len(answered)


def test_what_clients_choose_makes_no_series(deployed: Deployment) -> None:
    """M5: random paths, methods, models, keys and headers add nothing to a scrape."""
    router = deployed.router

    def strange(number: int) -> None:
        text = f"{random.getrandbits(64):x}"
        key = deployed.key.key if number % 3 else f"rtr_live_{text}"
        method = ("GET", "POST", "DELETE", text.upper()[:8].replace("0", "X"))[number % 4]
        path = (f"/{text}", f"/v1/{text}", f"/v1/models/{text}", "/v1/chat/completions")[
            number % 5 % 4
        ]
        body = f'{{"model": "{text}", "messages": [{{"role": "user", "content": "{text}"}}]}}'
        head = (
            f"{method} {path}?q={text} HTTP/1.1\r\nHost: {text}\r\nX-API-Key: {key}\r\n"
            f"User-Agent: {text}\r\nX-{text}: {text}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        assert exchange(router.port, (head + body).encode()).status < 500

    for number in range(120):
        strange(number)
    # A scrape is counted, too, once it is over.
    wait_until(lambda: 'endpoint="prometheus_metrics"' in router.metrics(), 5, "one is counted")
    before = series(router.metrics())
    for number in range(300):
        strange(number)

    assert series(router.metrics()) == before


def test_a_damaged_file_does_not_hide_the_others(deployed: Deployment) -> None:
    """M3: it is left out, and the scrape says that it is."""
    damaged = deployed.router.metrics_dir / "counter_slot9.db"
    damaged.write_bytes(b"garbage" * 100)
    try:
        during = deployed.router.metrics()
    finally:
        damaged.unlink()

    assert "api_router_requests_total" in during
    assert gauge(during, "api_router_metrics_files_unreadable") == 1
    assert gauge(deployed.router.metrics(), "api_router_metrics_files_unreadable") == 0


def test_the_files_are_private(deployed: Deployment) -> None:
    """M3: only their owner reads the figures' files, wherever the data directory is."""
    mode = stat.S_IMODE(deployed.router.metrics_dir.stat().st_mode)
    assert mode & 0o077 == 0


def test_metrics_are_for_operators_alone(deployed: Deployment) -> None:
    """Z2: the public listener knows no `/metrics`; the other one serves them without a key."""
    public = deployed.router.request("GET", "/metrics")

    assert (public.status, public.json["code"]) == (404, "NOT_FOUND")
    assert "api_router_requests_total" in deployed.router.metrics()


def test_gauges_tell_what_is_now(metered: Deployment) -> None:
    """M6: calls in flight are counted while they last; each worker's revision is the stored one."""
    metered.reset()
    metered.backend.set(latency_ms=2_500)
    threads = [
        threading.Thread(
            target=metered.router.post,
            args=("/v1/chat/completions", {"model": CHAT, "messages": HELLO}, metered.key.key),
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    metered.backend.wait_for(lambda fake: fake.in_flight == 4)
    wait_until(
        lambda: gauge(metered.router.metrics(), "api_router_requests_in_flight") >= 4,
        2,
        "calls in flight are shown",
    )
    for thread in threads:
        thread.join()

    assert gauge(metered.router.metrics(), "api_router_config_revision") == 1
    wait_until(
        # The scrape that asks is itself in flight.
        lambda: gauge(metered.router.metrics(), "api_router_requests_in_flight") <= 1,
        5,
        "nothing is in flight",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB of room."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("NOT TESTED: a full file system; only root may mount one")
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m,mode=0700"]
    mounted = subprocess.run(["mount", *options, "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: a full file system; mount says {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("full_at_start", [True, False])
def test_a_full_disk_stops_no_worker(tmp_path: Path, small_disk: Path, full_at_start: bool) -> None:
    """M3: without room for figures calls are served by the workers that were there."""

    def fill() -> None:
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(4096))
                except OSError:
                    return

    if full_at_start:
        fill()
    with deploy(tmp_path, workers=1, PROMETHEUS_MULTIPROC_DIR=str(small_disk)) as deployed:
        router = deployed.router
        fill()
        before = router.worker_pids()
        for _ in range(10):
            assert router.request("GET", "/healthz").status == 200
            fields = {"model": CHAT, "messages": HELLO}
            assert router.post("/v1/chat/completions", fields, deployed.key.key).status == 200
        assert router.worker_pids() == before
        refused = [line for line in router.log() if "metrics are not exported" in line["event"]]
        assert len(refused) == full_at_start
        assert router.stop() == 0


def test_the_shared_memory_is_given_back(tmp_path: Path) -> None:
    """The default directory is gone once the master has ended in order."""
    with deploy(tmp_path, workers=1) as deployed:
        directory = deployed.router.metrics_dir
        assert list(directory.glob("*.db"))
        assert deployed.router.stop() == 0
    assert not directory.exists()
