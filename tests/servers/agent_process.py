"""The agent as an operator runs it, and workers as the agent sees them: processes with a spool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.agent.lock import AgentLock
from router.agent.status import read_report
from tests.servers.router_process import clean_environment, is_running, wait_until
from tests.servers.stored_records import stored_records

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 20.0
ORGANIZATIONS = 5

WORKER = """
import sys, time, uuid
from pathlib import Path
from router.records.audit_chain import AuditChain
from router.records.record_types import AttemptRecord, AuditEvent, UsageRecord, encode_usage
from router.spool.writer import SpoolWriter
from router.spool.frames import AUDIT, USAGE

data_dir, name, count, rate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
organizations = int(sys.argv[5])
attempt = AttemptRecord(
    attempt=1, backend_id="mock-a", status=200, error=None, latency_ms=12.5, billed=True
)

def usage(number):
    return UsageRecord(
        record_id=str(uuid.uuid4()), request_id=str(uuid.uuid4()), timestamp=time.time() - 0.0125,
        organization_id=f"org-{number % organizations}", api_key_id="key_1",
        endpoint="/v1/chat/completions", operation="chat", model="gpt-4o",
        model_requested="gpt-4o", backend_id="mock-a", stream=False, status=200,
        outcome="completed", limit_state="WITHIN_LIMIT", decision_reason="PRIMARY",
        usage_source="reported", tokens_input=12, tokens_output=34, tokens_cached=0,
        cost_nanos=123456, latency_ms=12.5, bytes_sent=512, attempts=(attempt,), retry_count=0,
        trace_id=uuid.uuid4().hex, span_id=uuid.uuid4().hex[:16],
        metadata={"worker": name, "number": str(number)},
    )

def event(record):
    return AuditEvent(
        event_id=str(uuid.uuid4()), action="REQUEST_ALLOWED", actor="key_1",
        entity_type="request", entity_id=record.request_id, timestamp=time.time(),
        organization_id=record.organization_id, request_id=record.request_id,
        context={"api_key_id": "key_1", "model": "gpt-4o"},
    )

writer = SpoolWriter(data_dir / "spool", max_bytes=1 << 30, segment_bytes=1 << 18)
chain = AuditChain(writer.writer_id)
began_s = time.monotonic()
for number in range(count):
    record = usage(number)
    writer.append([(USAGE, encode_usage(record)), (AUDIT, chain.link(event(record)))])
    # Only now the call would be answered.
    sys.stdout.write(record.record_id + "\\n")
    sys.stdout.flush()
    if rate:
        time.sleep(max(0.0, began_s + (number + 1) / rate - time.monotonic()))
sys.stdin.read()
writer.close()
"""


class Worker:
    """A process that appends a usage record and an audit event for each of its calls.

    When it has made its calls it lives on, as an idle worker does, until it is told to end.
    """

    def __init__(
        self,
        data_dir: Path,
        name: str,
        *,
        calls: int,
        rate: float = 0.0,
        organizations: int = ORGANIZATIONS,
    ) -> None:
        """``rate`` in calls a second; 0 is as fast as it goes."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self._said = data_dir / f"answered-{name}"
        arguments = (str(data_dir), name, str(calls), str(rate), str(organizations))
        self.calls = calls
        with self._said.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                env=clean_environment({}),
            )

    def answered(self) -> list[str]:
        """The records of calls that were answered, in order."""
        return self._said.read_bytes().decode().split("\n")[:-1]

    def await_calls(self, timeout_s: float = 60.0) -> Worker:
        """Until it has made all its calls."""
        wait_until(lambda: len(self.answered()) == self.calls, timeout_s, "all calls were made")
        return self

    def end(self) -> None:
        """Let it end in order."""
        if self.process.poll() is None:
            self.process.communicate(b"")
        assert self.process.returncode == 0

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@dataclass
class AgentProcess:
    """`routerctl agent` with a data directory."""

    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = self.data_dir / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The variables that make it what it is."""
        return {
            "ROUTER_DATA_DIR": str(self.data_dir),
            "ROUTER_AGENT_DRAIN": "3s",
            "ROUTER_DRAIN_TIMEOUT": "5",
            "KAFKA_BROKERS": "",
            "KAFKA_API_VERSION": "",
            **self.environment,
        }

    @property
    def store_url(self) -> str:
        """Where its store sink writes."""
        return f"sqlite:///{self.data_dir / 'records.db'}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the agent was not started"
        return self._process.pid

    # --- its life ---------------------------------------------------------------------------

    def spawn(self) -> AgentProcess:
        """Start it and wait for nothing."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "router.cli.main", "agent", *self.options],
                env=clean_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def start(self) -> AgentProcess:
        """Start it and return once it works."""
        self.spawn()
        try:
            wait_until(lambda: self.report().get("pid") == self.pid, START_TIMEOUT_S, "it works")
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{self.log_path.read_text()}") from None
        return self

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    # --- what it says and does ----------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """What it says of itself; empty before it says anything."""
        return read_report(self.data_dir) or {}

    def sink(self, name: str) -> dict[str, Any]:
        """What it says of one of its sinks."""
        found: dict[str, Any] = self.report().get("sinks", {}).get(name, {})
        return found

    def await_sink(self, name: str, timeout_s: float = 30.0) -> float:
        """Seconds until a sink has everything that is in the spool now, by its own account."""
        # The next report may have been under way already; the one after it was not.
        reports = [self.report().get("updated_at")]

        def has_everything() -> bool:
            if self.report().get("updated_at") != reports[-1]:
                reports.append(self.report().get("updated_at"))
            said = self.sink(name)
            fresh = len(reports) > 2
            return fresh and said.get("behind_bytes") == 0 and said.get("failing") is None

        return wait_until(has_everything, timeout_s, f"{name} has everything")

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log lines, or those of one event."""
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    def cpu_s(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_share(self, seconds: float) -> float:
        """The share of a core that it uses over some time."""
        before_s, started_s = self.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu_s() - before_s) / (time.monotonic() - started_s)

    def is_running(self) -> bool:
        """Whether the process lives and holds the lock."""
        return is_running(self.pid) and AgentLock(self.data_dir).is_held()

    def stored(self) -> list[str]:
        """The ids of all usage records in the store."""
        return [str(record["record_id"]) for record in self.read_store("usage")]

    def read_store(self, kind: Any) -> list[dict[str, Any]]:
        """All records of a kind in the store, by time."""
        return [json.loads(encoded) for encoded in stored_records(self.store_url, kind)]

    def segments(self) -> list[Path]:
        """What is left in the spool."""
        while True:
            try:
                return sorted((self.data_dir / "spool").glob("*/*.seg"))
            except FileNotFoundError:  # the agent has removed a folder meanwhile
                continue


def first_seen(ids: Iterable[str]) -> list[str]:
    """Ids in the order of their first appearance."""
    return list(dict.fromkeys(ids))


def out_of_order(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int, int]]:
    """Where a worker's later call of an organization comes before an earlier one.

    ``records`` as they arrived; what arrives again does not count.
    """
    seen: set[str] = set()
    last: dict[tuple[str, str], int] = defaultdict(lambda: -1)
    found = []
    for record in records:
        if record["record_id"] in seen:
            continue
        seen.add(record["record_id"])
        worker, number = record["metadata"]["worker"], int(record["metadata"]["number"])
        place = (worker, record["organization_id"])
        if number < last[place]:
            found.append((*place, last[place], number))
        last[place] = max(last[place], number)
    return found
