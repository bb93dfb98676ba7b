"""What the agent costs and how quickly it catches up: `python -m tests.benchmarks.agent`.

A worker appends a usage record and an audit event for each of its calls, and the real agent ships
them: at a steady rate, then as fast as it can what was left while it was stopped, then nothing.
With `--kafka` it ships to librdkafka's mock broker too. Figures of processor time are of the agent
alone, of both its sinks; the broker and the worker are processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.reader import SpoolReader
from tests.fakes.kafka_broker import mock_broker
from tests.servers.agent_process import AgentProcess, Worker
from tests.servers.router_process import resident_bytes

_RECORDS_A_CALL = 2
_LOOK_S = 0.02
_LONGEST_S = 300.0


@dataclass(frozen=True)
class Cost:
    """What some calls cost the agent."""

    calls: int
    cpu_s: float
    """Processor time of the agent."""
    catch_up_s: dict[str, float]
    """By sink, how long it took until it had everything."""

    @property
    def cpu_us_a_call(self) -> float:
        return self.cpu_s / self.calls * 1e6

    def rate(self, sink: str) -> float:
        """Records a second into this sink."""
        return self.calls * _RECORDS_A_CALL / self.catch_up_s[sink]


class Subject:
    """An agent that runs, and what it has in front of it."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent
        self._spool = SpoolReader(agent.data_dir / "spool", observe=True)
        self._runs = 0
        agent.start()
        self.sinks = list(agent.report()["sinks"])

    def steady(self, rate: float, seconds: float) -> Cost:
        """The cost of calls that come one by one."""
        calls = round(rate * seconds)
        self._settle()
        before_s = self._agent.cpu_s()
        worker = self._work(calls, rate)
        taken_s = self._await_all()
        cost = Cost(calls, self._agent.cpu_s() - before_s, taken_s)
        worker.end()
        return cost

    def catch_up(self, calls: int) -> Cost:
        """The cost of calls that were made while the agent was stopped, and the time they take."""
        self._settle()
        os.kill(self._agent.pid, signal.SIGSTOP)
        try:
            worker = self._work(calls)
            before_s = self._agent.cpu_s()
        finally:
            os.kill(self._agent.pid, signal.SIGCONT)
        taken_s = self._await_all()
        cost = Cost(calls, self._agent.cpu_s() - before_s, taken_s)
        worker.end()
        return cost

    def idle(self, seconds: float) -> float:
        """The share of a core that it takes with one idle worker beside it."""
        worker = self._work(10)
        self._settle()
        share = self._agent.cpu_share(seconds)
        worker.end()
        return share

    def resident_bytes(self) -> int:
        """The memory that it holds now."""
        return resident_bytes(self._agent.pid)

    def _work(self, calls: int, rate: float = 0.0) -> Worker:
        self._runs += 1
        name = f"run-{self._runs}"
        worker = Worker(self._agent.data_dir, name, calls=calls, rate=rate, organizations=50)
        return worker.await_calls(_LONGEST_S)

    def _settle(self) -> None:
        self._await_all()
        time.sleep(1.0)

    def _await_all(self) -> dict[str, float]:
        """Seconds until each sink's checkpoint stands at the end of the spool."""
        started_s, taken_s = time.monotonic(), dict[str, float]()
        while len(taken_s) < len(self.sinks):
            for sink in self.sinks:
                saved = Checkpoints(checkpoint_path(self._agent.data_dir, sink)).load()
                if sink not in taken_s and not self._spool.backlog_bytes(saved):
                    taken_s[sink] = time.monotonic() - started_s
            if time.monotonic() - started_s > _LONGEST_S:
                raise SystemExit(f"the agent does not catch up; see {self._agent.log_path}")
            time.sleep(_LOOK_S)
        return taken_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, return the exit status: 1 when `--assert-rate` was not reached."""
    options = _parse(arguments)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-benchmark-"))
        agent = AgentProcess(Path(directory) / "data")
        if options.kafka:
            broker = stack.enter_context(mock_broker())
            version = ".".join(map(str, broker.api_version or ()))
            agent.environment |= {"KAFKA_BROKERS": broker.address, "KAFKA_API_VERSION": version}
        stack.callback(agent.kill)
        subject = Subject(agent)
        slowest = _measure(subject, options)
    if options.assert_rate is not None and slowest < options.assert_rate:
        print(f"{slowest:.0f} records/s is less than {options.assert_rate:.0f}", file=sys.stderr)
        return 1
    return 0


def _measure(subject: Subject, options: argparse.Namespace) -> float:
    """Print all figures; the catch-up rate of the slowest sink."""
    _say("sinks", ", ".join(subject.sinks))
    _say("memory after the start", f"{subject.resident_bytes() / 1e6:.0f} MB")
    _say("idle", f"{subject.idle(options.seconds):.2%} of a core")
    for rate in options.rate:
        cost = subject.steady(rate, options.seconds)
        share = cost.cpu_us_a_call * rate / 1e6
        _say(f"{rate:g} calls/s", f"{cost.cpu_us_a_call:.0f} us a call, {share:.1%} of a core")
    cost = subject.catch_up(options.calls)
    _say(
        f"{cost.calls * _RECORDS_A_CALL} records to catch up", f"{cost.cpu_us_a_call:.0f} us a call"
    )
    for sink in subject.sinks:
        _say(f"  into {sink}", f"{cost.rate(sink):.0f} records/s")
    _say("memory after that", f"{subject.resident_bytes() / 1e6:.0f} MB")
    return min(map(cost.rate, subject.sinks))


def _say(what: str, figure: str) -> None:
    print(f"{what:28} {figure}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.agent", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--kafka", action="store_true", help="ship to a mock broker too")
    parser.add_argument("--calls", type=int, default=30_000, help="to catch up with")
    parser.add_argument("--rate", type=float, nargs="*", default=[50.0, 500.0], help="calls/s")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each figure")
    parser.add_argument("--assert-rate", type=float, metavar="RECORDS", help="fail below this")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
