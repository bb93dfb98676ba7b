"""What a router has written down of its calls, wherever that is found, and whether it agrees."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from router.agent.lock import AgentLock
from router.agent.status import read_report
from router.exports.audit_export import export_lines
from router.exports.audit_verification import Verdict, verify_export
from router.records.audit_chain import derive_audit_key
from router.store.record_store import RecordStore
from tests.servers.router_process import RouterProcess, is_running, wait_until
from tests.servers.stored_records import stored_records

SHIPPED_S = 60.0

Record = dict[str, Any]


class Ledger:
    """The data directory of one router: its spool, its record store, its agent."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._url = f"sqlite:///{data_dir / 'records.db'}"

    def usage(self) -> list[Record]:
        """All usage records in the store."""
        return self._read("usage")

    def audit(self) -> list[Record]:
        """All audit events in the store."""
        return self._read("audit")

    def verdict(self) -> Verdict:
        """What verification says of the whole audit trail."""
        key = derive_audit_key((self.data_dir / "pepper").read_bytes().strip())
        with (
            RecordStore(self._url, read_only=True, audit_key=key) as store,
            store.audit_trail() as trail,
        ):
            return verify_export(export_lines(trail, key, time.time()), key)

    def segments(self) -> list[Path]:
        """What is in the spool."""
        return sorted((self.data_dir / "spool").glob("*/*.seg"))

    def quarantined(self) -> list[Path]:
        """What was found in the spool that is no record."""
        return sorted((self.data_dir / "spool" / "quarantine").glob("*"))

    def dead_letters(self) -> list[str]:
        """What some sink refused for good."""
        files = (self.data_dir / "dead-letter").glob("*.jsonl")
        return [line for file in files for line in file.read_text().splitlines()]

    def agent_pid(self) -> int | None:
        """The agent's process, if there is one."""
        try:
            pid = int((self.data_dir / "run" / "agent.lock").read_text() or 0)
        except FileNotFoundError:
            return None
        return pid if AgentLock(self.data_dir).is_held() and is_running(pid) else None

    def _read(self, kind: Any) -> list[Record]:
        return [json.loads(encoded) for encoded in stored_records(self._url, kind)]


def processes_of(router: RouterProcess) -> list[int]:
    """Master, workers, and agents, also of earlier masters: all that work in its directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").readlink() == router.directory.resolve():
                found.append(int(place.name))
        except OSError:
            continue
    return [pid for pid in found if is_running(pid)]


def await_end(router: RouterProcess) -> None:
    """Until a router that was told to end has, its agent too, and left nothing in the spool."""
    wait_until(lambda: processes_of(router) == [], SHIPPED_S, "the agent has ended")
    assert Ledger(router.data_dir).segments() == [], read_report(router.data_dir)


def by_id(records: Iterable[Record], name: str) -> dict[str, Record]:
    """Records by their id; AssertionError when two that differ have the same one."""
    found: dict[str, Record] = {}
    for record in records:
        assert found.setdefault(record[name], record) == record, "one id, two records"
    return found


def check_usage(answered: Collection[str], records: Mapping[str, Record]) -> None:
    """One record for each answered call, and that says it was; never two for any call."""
    calls = Counter(record["request_id"] for record in records.values())
    assert [request_id for request_id in answered if calls[request_id] == 0] == [], "lost"
    assert [request_id for request_id, count in calls.items() if count > 1] == [], "counted twice"
    told = {record["request_id"]: record for record in records.values()}
    wrong = [
        told[request_id]
        for request_id in answered
        if (told[request_id]["outcome"], told[request_id]["status"]) != ("completed", 200)
    ]
    assert wrong == []
    assert all(told[request_id]["usage_source"] == "reported" for request_id in answered)


def check_audit(answered: Collection[str], events: Mapping[str, Record]) -> None:
    """One event for each answered call: it was let through."""
    allowed = Counter(
        event["request_id"] for event in events.values() if event["action"] == "REQUEST_ALLOWED"
    )
    assert [request_id for request_id in answered if allowed[request_id] != 1] == []
