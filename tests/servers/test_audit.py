"""The audit trail of a running router: exported and verified beside its workers and its agent."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.servers.deployment import CHAT, HELLO, Deployment, deploy
from tests.servers.router_process import wait_until

CALLS = 60
VISIBLE_S = 10.0


def audit(deployed: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return deployed.router.ctl("audit", *arguments)


def call(deployed: Deployment, number: int) -> None:
    model = "no-such-model" if number % 5 == 0 else CHAT
    fields = {"model": model, "messages": HELLO}
    reply = deployed.router.post("/v1/chat/completions", fields, deployed.key.key)
    assert reply.status == (404 if number % 5 == 0 else 200)


def actions(file: Path) -> list[str]:
    return [json.loads(line)["action"] for line in file.read_bytes().splitlines()[:-1]]


def last_line_of(file: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(file.read_bytes().splitlines()[-1])["trail"]
    return facts


def test_the_trail_of_a_router_verifies_while_it_runs_and_after(tmp_path: Path) -> None:
    """Every call and every change is in it, it says up to when, and a cut shows (P20)."""
    file = tmp_path / "trail.jsonl"
    with deploy(tmp_path) as deployed:
        for number in range(CALLS):
            call(deployed, number)
            if number % 20 == 10:
                assert audit(deployed, "verify").returncode == 0
        ended_s = time.time()

        def is_complete() -> bool:
            exported = audit(deployed, "export", "--file", str(file))
            assert exported.returncode == 0, exported.stderr
            told = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ended_s + 1))
            return bool(last_line_of(file)["complete_to"] > told)

        wait_until(is_complete, VISIBLE_S, "an export that says it has all calls")
        found = actions(file)
        assert found.count("REQUEST_ALLOWED") == CALLS * 4 // 5
        assert found.count("REQUEST_DENIED") == CALLS // 5
        assert found.count("KEY_CREATED") == 2
        assert "CONFIG_APPLIED" in found

        pruning = audit(deployed, "prune", "--before", "2020-01-01", "--yes")
        assert (pruning.returncode, pruning.stdout) == (0, "removed 0 events of 0 writers\n")

        assert deployed.router.stop() == 0
        stored = audit(deployed, "verify", "--output", "json")
        assert stored.returncode == 0, stored.stdout
        assert json.loads(stored.stdout)["events"] == len(found)

        assert audit(deployed, "verify", str(file)).returncode == 0
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([*lines[:20], *lines[21:]]))
        missed = audit(deployed, "verify", str(file))
        assert (missed.returncode, missed.stdout.startswith("line 21, writer ")) == (1, True)
