"""The test stand: the static backend, the load generator and the subjects, all started here."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.benchmarks import processes
from tests.benchmarks.messages import API_KEY, CALL_BODY, PATH
from tests.benchmarks.processes import BenchmarkError, Child, Cores
from tests.benchmarks.redis import PROGRAM as REDIS
from tests.benchmarks.report import Round, round_of
from tests.benchmarks.subjects import Launch, Subject

_START_TIMEOUT_S = 30.0
_PROFILED_APPLICATION = "tests.benchmarks.profiled:application"


@dataclass(frozen=True)
class Running:
    """A subject that answers calls."""

    subject: Subject
    child: Child
    port: int

    def workers(self) -> list[int]:
        """Process ids of its gunicorn workers; empty where there is no /proc."""
        return processes.worker_pids(self.child.popen.pid)


class Stand:
    """Backend and load generator, ready to measure subjects.

    Everything that is started is put into `children`; stopping them is the owner's duty.
    """

    def __init__(self, directory: Path, cores: Cores, children: list[Child]) -> None:
        self._directory = directory
        self._cores = cores
        self._children = children
        self._backend = self._start_part("backend")
        self._backend_port = int(self._read_line(self._backend))
        self._load = self._start_part("load")
        self._redis_url: str | None = None
        self._databases = itertools.count()
        if REDIS is not None:
            redis = self._start_part("redis", str(directory))
            self._redis_url = f"redis://127.0.0.1:{int(self._read_line(redis))}"

    @property
    def has_redis(self) -> bool:
        """Whether there is a Redis beside the gateway; else it starts one of its own."""
        return self._redis_url is not None

    def start(self, subject: Subject, *, profile: Path | None = None) -> Running:
        """Start a subject and return once it has answered a call; profiled into a file if given."""
        directory = self._directory / subject.name
        directory.mkdir()
        log = directory / "log"
        launch = subject.launch(directory, self._backend_port, self._next_redis())
        self._prepare(subject, launch, log)
        environment = dict(launch.environment)
        if profile is not None:
            environment["BENCHMARK_PROFILED_APPLICATION"] = launch.application
            environment["BENCHMARK_PROFILE_FILE"] = str(profile)
        child = Child(
            subject.name,
            launch.command(_PROFILED_APPLICATION if profile else None),
            cores=self._cores.gateway,
            log=log,
            environment=environment,
            tree=launch.tree,
        )
        self._children.append(child)
        _wait_for_first_answer(child, launch.port)
        return Running(subject, child, launch.port)

    def measure(self, running: Running, connections: int, seconds: float) -> Round:
        """Load a subject for one round; BenchmarkError at the first call that goes wrong."""
        workers = running.workers()
        others = [self._backend.popen.pid, self._load.popen.pid]
        forwarded = self._backend_calls()
        cpu_s, others_cpu_s = processes.cpu_s(workers), processes.cpu_s(others)
        answer = self._order(running, connections, seconds)
        used = _difference(processes.cpu_s(workers), cpu_s)
        others_used = _difference(processes.cpu_s(others), others_cpu_s)
        if running.workers() != workers:
            raise BenchmarkError(f"a worker of {running.subject.name} was replaced in the round")
        if running.subject.forwards:
            forwarded = self._backend_calls() - forwarded
            if forwarded < answer["calls"]:
                raise BenchmarkError(
                    f"{running.subject.name} answered {answer['calls']} calls"
                    f" but only {forwarded} reached the backend"
                )
        return round_of(
            answer["latencies_ns"], answer["elapsed_s"], cpu_s=used, others_cpu_s=others_used
        )

    def _start_part(self, name: str, *arguments: str) -> Child:
        child = Child(
            name,
            ["-m", f"tests.benchmarks.{name}", *arguments],
            cores=self._cores.others,
            log=self._directory / f"{name}.log",
            piped=True,
        )
        self._children.append(child)
        return child

    def _next_redis(self) -> str | None:
        """A database for each subject: another version may keep other things under its names."""
        return None if self._redis_url is None else f"{self._redis_url}/{next(self._databases)}"

    def _prepare(self, subject: Subject, launch: Launch, log: Path) -> None:
        if launch.preparation is None:
            return
        name = f"{subject.name}'s preparation"
        child = Child(
            name,
            launch.preparation,
            cores=self._cores.others,
            log=log,
            environment=launch.environment,
            tree=launch.tree,
        )
        self._children.append(child)
        status = child.wait(_START_TIMEOUT_S)
        if status != 0:
            raise BenchmarkError(f"{name} ended with status {status}:\n{child.log_tail()}")

    def _order(self, running: Running, connections: int, seconds: float) -> dict[str, Any]:
        order = {"port": running.port, "connections": connections, "seconds": seconds}
        assert self._load.popen.stdin is not None
        # A load generator that is gone shows in the answer, which then is none.
        with contextlib.suppress(BrokenPipeError):
            self._load.popen.stdin.write(json.dumps(order).encode() + b"\n")
            self._load.popen.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read_line(self._load))
        if "error" in answer:
            running.child.fail_if_ended()
            raise BenchmarkError(
                f"a call to {running.subject.name} went wrong: {answer['error']}\n"
                f"{running.child.log_tail()}"
            )
        return answer

    def _backend_calls(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._backend_port, timeout=5)
        try:
            connection.request("GET", "/calls")
            return int(json.loads(connection.getresponse().read())["calls"])
        finally:
            connection.close()

    @staticmethod
    def _read_line(child: Child) -> bytes:
        assert child.popen.stdout is not None
        line = child.popen.stdout.readline()
        if not line:
            child.wait(_START_TIMEOUT_S)
            child.fail_if_ended()
        return bytes(line)


def _wait_for_first_answer(child: Child, port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while (answer := _call_once(port))[0] != HTTPStatus.OK or "chat.completion" not in answer[1]:
        child.fail_if_ended()
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"{child.name} gave no completion within {_START_TIMEOUT_S:.0f} s of its start;"
                f" the last answer was {answer}\n{child.log_tail()}"
            )
        time.sleep(0.05)


def _call_once(port: int) -> tuple[int, str]:
    """Status and body of one call; status 0 and the reason when there was no reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"Content-Type": "application/json", "X-API-Key": API_KEY}
    try:
        connection.request("POST", PATH, CALL_BODY, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
