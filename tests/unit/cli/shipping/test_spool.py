"""``routerctl spool`` as an operator meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.agent.lock import AgentLock
from router.agent.sink_set import SinkSet, Topics, save_sinks
from router.agent.status import write_report
from router.cli.main import cli
from router.cli.shipping import spool_commands as command
from router.clock import FrozenClock
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.disk import SpoolIO
from router.spool.frames import USAGE, Position, encode_frame, segment_name
from router.spool.reader import SpoolReader
from tests.fakes.spool_parties import open_writer, record, segment

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str, **environ: str) -> Result:
        env = {
            "ROUTER_DATA_DIR": str(tmp_path),
            "ROUTER_SPOOL_MAX_BYTES": "10485760",
            "ROUTER_RECORD_STORE": "",
            "KAFKA_BROKERS": "",
            **environ,
        }
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
    living = open_writer(SpoolIO(), FrozenClock(), tmp_path / "spool")
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
    assert found["sinks"]["kafka"] == {
        "configured": False,
        "failing": None,
        "failing_since": None,
    }
    assert found["sinks"]["store"]["configured"]

    header = "WRITER STATE SEGMENTS SIZE BEHIND KAFKA BEHIND STORE"
    assert " ".join(lines[0].split()) == header
    sizes = f"{len(whole)} B {len(whole) - 10} B 0 B"
    assert lines[2].split() == ["w", "dead", "1", *sizes.split()]
    assert lines[-3:] == [
        "agent: not running",
        "kafka: not configured",
        "quarantine: 1 pieces, 4 B",
    ]
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
    monkeypatch.setattr(command, "_POLL_S", 0.0)
    lock = AgentLock(tmp_path)
    assert lock.take()
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    said = {"behind_bytes": 0, "dead_lettered": 0, "failing": None, "failing_since": None}
    away = {**said, "failing": "no broker", "failing_since": "2027-01-15T08:00:00Z"}
    write_report(tmp_path, {"updated_at": now, "sinks": {"store": said, "kafka": away}})
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


def test_what_the_agent_notes_of_dead_workers_is_no_sink(run: Run, tmp_path: Path) -> None:
    """Nobody ships there: ``adopted: not configured`` used to stand below every table."""
    put(tmp_path, segment(1))
    for name in ("store", "adopted", "leases"):
        Checkpoints(checkpoint_path(tmp_path, name)).save({})
    found = json.loads(run("status", "--output", "json").output)
    assert list(found["sinks"]) == ["store"]
    assert [list(writer["behind_bytes"]) for writer in found["writers"]] == [["store"]]
    assert "not configured" not in run("status").output


def test_status_says_what_fails_and_who_was_taken_over(
    run: Run, tmp_path: Path, agent: AgentLock
) -> None:
    """A killed worker whose files the agent holds is not alive; a sink that fails is named."""
    put(tmp_path, segment(1))
    reader = SpoolReader(tmp_path / "spool")
    assert [info.alive for info in reader.writers()] == [False]
    save_sinks(tmp_path, SinkSet("elsewhere", Topics(("k:9092",), "u", "a")))
    for sink in ("store", "kafka", "log"):
        Checkpoints(checkpoint_path(tmp_path, sink)).save({})
    found = json.loads(run("status", "--output", "json").output)
    assert [writer["state"] for writer in found["writers"]] == ["taken over"]
    lines = run("status").output.splitlines()
    assert lines[-4:-1] == [
        "agent: running",
        "kafka: failing since 2027-01-15T08:00:00Z: no broker",
        "log: not configured",
    ]
    reader.close()
    agent.release()


# --- the sinks of another environment -------------------------------------------------------

BROKERS = {"KAFKA_BROKERS": "k1:9092,k2:9092"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of agents that would have been started."""
    lines: list[list[str]] = []

    class Ended:
        returncode = 0

        def poll(self) -> int:
            return 0

        def terminate(self) -> None: ...

        def wait(self, timeout_s: float | None = None) -> int:
            return 0

    def start(line: list[str]) -> Ended:
        lines.append(line[3:])
        return Ended()

    monkeypatch.setattr(command, "_POLL_S", 0.0)
    monkeypatch.setattr(command.subprocess, "Popen", start)
    return lines


def noted(data_dir: Path) -> SinkSet:
    """What the service ships to."""
    store = "records.db in the data directory"
    sinks = SinkSet(store, Topics(("k1:9092", "k3:9092"), "usage.records.v1", "audit.router"))
    save_sinks(data_dir, sinks)
    return sinks


def test_drain_without_the_services_brokers_is_refused(
    run: Run, tmp_path: Path, started: list[list[str]]
) -> None:
    """U1: what Kafka never got must not be removed because a shell lacks a variable."""
    put(tmp_path, segment(1))
    noted(tmp_path)
    result = run("drain", "--timeout", "0")
    assert result.exit_code == 1
    assert "records wait for Kafka k1:9092, k3:9092" in result.stderr
    assert "--accept-sinks" in result.stderr
    assert started == []
    assert not (tmp_path / "pepper").exists()

    run("drain", "--timeout", "0", **BROKERS)
    assert started == [["agent"]]
    run("drain", "--timeout", "0", "--accept-sinks")
    assert started[1:] == [["agent", "--accept-sinks"]]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ROUTER_RECORD_STORE": "postgresql://u:secret@db/r"}, "postgresql://db:5432/r\n"),
        ({"KAFKA_BROKERS": "other:9092"}, "configured here is other:9092"),
        ({"KAFKA_USAGE_TOPIC": "test"}, "topics test and audit.router"),
    ],
)
def test_drain_to_other_places_is_refused(
    run: Run, tmp_path: Path, started: list[list[str]], environ: dict[str, str], said: str
) -> None:
    """Another store, another cluster, another topic; no password is shown."""
    put(tmp_path, segment(1))
    noted(tmp_path)
    result = run("drain", "--timeout", "0", **{**BROKERS, **environ})
    assert (result.exit_code, started) == (1, [])
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_before_anybody_noted_the_sinks_their_checkpoints_tell(
    run: Run, tmp_path: Path, started: list[list[str]]
) -> None:
    """A Kafka that has acknowledged everything loses nothing."""
    put(tmp_path, segment(1))
    Checkpoints(checkpoint_path(tmp_path, "kafka")).save({"w": Position("w", 1, 3)})
    assert "records wait for Kafka" in run("drain", "--timeout", "0").stderr
    Checkpoints(checkpoint_path(tmp_path, "kafka")).save({"w": Position("w", 2, 0)})
    assert "ships to: record store records.db" in run("drain", "--timeout", "0").stderr
    assert started == [["agent"]]


def test_no_pepper_is_made_where_a_trail_is(
    run: Run, tmp_path: Path, started: list[list[str]]
) -> None:
    """P20: a shell without the service's pepper must not sign the trail with a new one."""
    put(tmp_path, segment(1))
    Checkpoints(checkpoint_path(tmp_path, "store")).save({})
    result = run("drain", "--timeout", "0")
    assert (result.exit_code, started) == (3, [])
    assert "no pepper" in result.stderr
    assert not (tmp_path / "pepper").exists()
    run("drain", "--timeout", "0", ROUTER_KEY_PEPPER="a pepper of at least thirty-two bytes")
    assert started == [["agent"]]


def test_a_spool_of_another_user_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path that may not be read, whatever was asked."""

    def refuse(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", "/data/spool")

    monkeypatch.setattr(SpoolIO, "list_dir", refuse)
    for asked in ("status", "verify", "drain"):
        result = run(asked)
        assert (result.exit_code, result.stderr) == (3, "Error: /data/spool: Permission denied\n")
