"""``routerctl spool drain`` with a real agent and a real record store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from router.records.record_types import degraded_usage
from router.spool.frames import USAGE
from router.spool.writer import SpoolWriter

RECORDS = 200


def routerctl(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *arguments],
        env={**os.environ, "ROUTER_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_drain_ships_what_dead_workers_left(tmp_path: Path) -> None:
    """Before a host is given up: one command, and nothing is left in its spool."""
    writer = SpoolWriter(tmp_path / "spool", max_bytes=1 << 30)
    for _ in range(RECORDS):
        record = degraded_usage(
            request_id=str(uuid.uuid4()),
            api_key_id="key_1",
            endpoint="openai.chat",
            timestamp=time.time(),
            status=200,
        )
        writer.append([(USAGE, record)])
    writer.close()
    assert f"{RECORDS} records of 1 writers" in routerctl(tmp_path, "spool", "verify").stdout
    drained = routerctl(tmp_path, "spool", "drain", "--timeout", "30")
    assert drained.returncode == 0, drained.stderr
    assert "has been acknowledged" in drained.stderr
    left = [name for name in os.listdir(tmp_path / "spool") if name != "quarantine"]
    assert left == []
    assert not (tmp_path / "dead-letter").exists() or os.listdir(tmp_path / "dead-letter") == []
