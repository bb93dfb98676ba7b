"""``routerctl spool`` as an operator meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.accounting.checkpoints import Checkpoints, checkpoint_path
from router.accounting.spool_format import USAGE, Position, encode_frame, segment_name
from router.accounting.spool_io import OsSpoolIO
from router.agent.housekeeping import write_report
from router.agent.lock import AgentLock
from router.cli import cli
from router.clock import FrozenClock
from router.commands import spool as command
from tests.fakes.spool_parties import open_writer, record, segment

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str) -> Result:
        env = {"ROUTER_DATA_DIR": str(tmp_path), "ROUTER_SPOOL_MAX_BYTES": "10485760"}
        return CliRunner().invoke(cli, ["spool", *arguments], env=env, prog_name="routerctl")

    return call


def put(data_dir: Path, content: bytes, number: int = 1, writer_id: str = "w") -> Path:
    """A segment of a dead writer."""
    directory = data_dir / "spool" / writer_id
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "lock").touch()
    (directory / segment_name(number)).write_bytes(content)
    return directory


def test_an_empty_data_directory_has_an_empty_spool(run: Run, tmp_path: Path) -> None:
    """Looking is no failure, and creates nothing."""
    assert run("status").exit_code == 0
    result = run("verify")
    assert (result.exit_code, result.output) == (0, "0 records of 0 writers are whole\n")
    assert list(tmp_path.iterdir()) == []


def test_status_shows_writers_and_how_far_each_sink_is_behind(run: Run, tmp_path: Path) -> None:
    """A sink that is slow or away is seen at once."""
    whole = segment(1, 2)
    put(tmp_path, whole)
    living = open_writer(OsSpoolIO(), FrozenClock(), tmp_path / "spool")
    Checkpoints(checkpoint_path(tmp_path, "store")).save({"w": Position("w", 1, len(whole))})
    Checkpoints(checkpoint_path(tmp_path, "kafka")).save({"w": Position("w", 1, 10)})
    (tmp_path / "spool" / "quarantine").mkdir()
    (tmp_path / "spool" / "quarantine" / "piece").write_bytes(b"junk")

    found = json.loads(run("status", "--output", "json").output)
    [young, dead] = found["writers"]
    header = len((tmp_path / "spool" / living.writer_id / segment_name(1)).read_bytes())
    assert young == {
        "writer_id": living.writer_id,
        "state": "alive",
        "segments": 1,
        "bytes": header,
        "behind_bytes": {"kafka": header, "store": header},
    }
    assert dead["state"] == "dead"
    assert dead["behind_bytes"] == {"kafka": len(whole) - 10, "store": 0}
    assert found["quarantine"] == {"pieces": 1, "bytes": 4}
    assert (found["bytes"], found["max_bytes"]) == (header + len(whole), 10485760)

    lines = run("status").output.splitlines()
    header = "WRITER STATE SEGMENTS BYTES BEHIND KAFKA BEHIND STORE"
    assert " ".join(lines[0].split()) == header
    assert lines[2].split() == ["w", "dead", "1", str(len(whole)), str(len(whole) - 10), "0"]
    assert lines[-1] == "quarantine: 1 pieces, 4 bytes"
    living.close()


def test_verify_names_every_damage_and_fails(run: Run, tmp_path: Path) -> None:
    """Where it is, how much, and what is still whole; nothing is changed."""
    damaged = segment(1) + b"junk" + encode_frame(USAGE, record(2))
    put(tmp_path, damaged, 1)
    put(tmp_path, segment(3) + encode_frame(USAGE, record(4))[:-1], 3)
    put(tmp_path, encode_frame(0, b'{"format":9}'), 1, "x")
    result = run("verify")
    assert result.exit_code == 1
    torn = len(encode_frame(USAGE, record(4))) - 1
    assert result.output.splitlines() == [
        "3 records of 2 writers are whole",
        f"unfinished: writer_id=w segment=3 offset={len(segment(3))} length={torn}",
        f"damaged: writer_id=w segment=1 offset={len(segment(1))} length=4",
        "missing: writer_id=w first=2 last=2",
        "written by a newer version: writer_id=x segment=1 offset=0 format=9",
    ]
    assert not (tmp_path / "spool" / "quarantine").exists()
    assert json.loads(run("verify", "--output", "json").output)["frames"] == 3


def test_an_unfinished_record_alone_is_no_damage(run: Run, tmp_path: Path) -> None:
    """A killed worker leaves one; its call was never answered."""
    put(tmp_path, segment(1) + encode_frame(USAGE, record(2))[:-1])
    result = run("verify")
    assert result.exit_code == 0
    assert result.output.splitlines()[1].startswith("unfinished: writer_id=w segment=1")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentLock:
    """An agent that runs, as far as others can see."""
    monkeypatch.setattr(command, "_LOOK_S", 0.0)
    lock = AgentLock(tmp_path)
    assert lock.take()
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    write_report(tmp_path, {"updated_at": now, "sinks": {"store": {}, "kafka": {}}})
    return lock


def test_drain_ends_when_every_sink_has_acknowledged(
    run: Run, tmp_path: Path, agent: AgentLock
) -> None:
    """A checkpoint at the end, or a writer whose files are removed already, is enough."""
    put(tmp_path, segment(1))
    end = {"w": Position("w", 1, len(segment(1)))}
    for sink in ("store", "kafka"):
        Checkpoints(checkpoint_path(tmp_path, sink)).save(end)
    result = run("drain", "--timeout", "20")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        0,
        "everything that was in the spool has been acknowledged",
    )
    agent.release()


def test_drain_fails_while_one_sink_is_behind(run: Run, tmp_path: Path, agent: AgentLock) -> None:
    """The slowest sink decides, and one that has saved nothing yet is behind with everything."""
    put(tmp_path, segment(1))
    end = {"w": Position("w", 1, len(segment(1)))}
    Checkpoints(checkpoint_path(tmp_path, "store")).save(end)
    result = run("drain", "--timeout", "0.2")
    assert result.exit_code == 1
    assert f"{len(segment(1))} bytes were not acknowledged in time" in result.stderr
    agent.release()


def test_drain_of_an_empty_spool_needs_no_sink(run: Run, agent: AgentLock) -> None:
    """There is nothing to wait for."""
    assert run("drain", "--timeout", "0").exit_code == 0
    agent.release()
