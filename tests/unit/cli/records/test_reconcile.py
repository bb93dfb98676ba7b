"""``routerctl reconcile`` as an operator meets it, with a real spool, a real store, and a topic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from router.agent.kafka import topic_reader
from router.agent.kafka.producer import KafkaConfig
from router.cli.main import cli
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import (
    HEADER,
    USAGE,
    Position,
    encode_frame,
    header_frame,
    segment_name,
)
from router.store.record_store import RecordStore
from tests.unit.records import samples
from tests.unit.records.samples import KEY

Run = Callable[..., Result]
PERIOD = ("--from", "2027-01-15", "--to", "2027-01-16")
BROKERS = ("--brokers", "127.0.0.1:1")


class Topic:
    """Stands in for a topic; ``before`` is called when it is about to be read."""

    values: list[bytes]
    before: Callable[[], None] | None
    config: KafkaConfig
    begins_late: int

    def __init__(self, config: KafkaConfig, topic: str) -> None:
        Topic.config = config
        self.name = topic
        self._read = 0

    def __enter__(self) -> Topic:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def read(self, from_s: float | None) -> Iterator[list[bytes]]:
        if Topic.before is not None:
            Topic.before()
        part = Topic.values[self._read :]
        self._read += len(part)
        yield part


@pytest.fixture(autouse=True)
def topic(monkeypatch: pytest.MonkeyPatch) -> type[Topic]:
    Topic.values, Topic.before, Topic.begins_late = [], None, 0
    monkeypatch.setattr(topic_reader, "TopicReader", Topic)
    return Topic


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore(f"sqlite:///{tmp_path}/records.db", audit_key=KEY) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def run(tmp_path: Path, store: RecordStore) -> Run:
    def call(*arguments: str, stdin: str | None = None) -> Result:
        unset = ("ROUTER_RECORD_STORE", "KAFKA_BROKERS", "KAFKA_API_VERSION", "KAFKA_USAGE_TOPIC")
        env = {**dict.fromkeys(unset), "ROUTER_DATA_DIR": str(tmp_path)}
        return CliRunner().invoke(
            cli,
            ["records", "reconcile", *PERIOD, *arguments],
            env=env,
            input=stdin,
            prog_name="routerctl",
        )

    return call


def call(number: int, **changes: Any) -> dict[str, Any]:
    return samples.usage(record_id=f"r{number}", request_id=f"q{number}", **changes)


def spool(data_dir: Path, *records: dict[str, Any] | bytes) -> list[int]:
    """A segment of a dead writer; where each frame ends."""
    directory = data_dir / "spool" / "w"
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    content, ends = header_frame("w", 1), []
    for record in records:
        payload = record if isinstance(record, bytes) else orjson.dumps(record)
        content += encode_frame(USAGE, payload)
        ends.append(len(content))
    (directory / segment_name(1)).write_bytes(content)
    return ends


def acknowledged(data_dir: Path, sink: str, offset: int) -> None:
    Checkpoints(checkpoint_path(data_dir, sink)).save({"w": Position("w", 1, offset)})


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code in (0, 1), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    body: dict[str, Any] = json.loads(result.stdout)
    assert body["agreement"] is (result.exit_code == 0)
    return body


def test_agreement(run: Run, store: RecordStore, tmp_path: Path) -> None:
    """Exact counts and sums by place, what is under way, and exit code 0."""
    calls = [call(n, cost_nanos=1_000_000_000 + n) for n in range(4)]
    ends = spool(tmp_path, *calls[2:])
    store.write(calls[:3])
    Topic.values = [orjson.dumps(one) for one in [*calls, calls[0]]]
    acknowledged(tmp_path, "store", ends[0])
    acknowledged(tmp_path, "kafka", ends[1])
    result = run(*BROKERS)
    assert (result.exit_code, result.stdout) == (0, TEXT)
    body = found(run(*BROKERS, "-o", "json"))
    assert body["sources"]["kafka"]["cost_nanos"] == 4_000_000_006
    assert body["under_way"]["store"]["records"] == 1
    assert (body["from"], body["to"]) == (
        "2027-01-15T00:00:00.000000Z",
        "2027-01-16T00:00:00.000000Z",
    )


TEXT = """\
2027-01-15T00:00:00.000000Z to 2027-01-16T00:00:00.000000Z

SOURCE  RECORDS  REPEATED  TOKENS IN  TOKENS OUT     COST USD
spool         2         0        240          60  2.000000005
store         3         0        360          90  3.000000003
kafka         4         1        480         120  4.000000006

under way to store: 1 records, 1.000000003 USD

exact agreement
"""


def test_a_former_option_says_the_present_one(run: Run) -> None:
    """It works for one release."""
    result = run("--json")
    assert found(result)["agreement"]
    assert "'--json' is deprecated and will be removed: use '--output json'" in result.stderr


def test_what_is_missing_is_named(run: Run, store: RecordStore) -> None:
    """Where it is, where it is not; exit code 1."""
    store.write([call(1), call(2)])
    Topic.values = [orjson.dumps(call(2)), orjson.dumps(call(3))]
    result = run(*BROKERS)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[-4:] == [
        "missing record_id=r1 request_id=q1 organization_id=acme"
        " timestamp=2027-01-15T08:00:00.000000Z seen_in=store missing_from=kafka",
        "missing record_id=r3 request_id=q3 organization_id=acme"
        " timestamp=2027-01-15T08:00:00.000000Z seen_in=kafka missing_from=store",
        "",
        "2 records are missing somewhere",
    ]
    lines = run(*BROKERS, "--limit", "1").stdout.splitlines()
    assert lines[-3] == "and 1 more: see --limit"


def test_what_was_acknowledged_and_is_not_there_is_lost(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """It stands in the spool still, but nobody will deliver it any more; a refusal says why."""
    ends = spool(tmp_path, call(1), call(2))
    acknowledged(tmp_path, "store", ends[0])
    (tmp_path / "dead-letter").mkdir()
    letter = {"id": "r1", "reason": "status: not a number", "sink": "store"}
    (tmp_path / "dead-letter" / "store.jsonl").write_bytes(b'{"to\n' + orjson.dumps(letter))
    body = found(run("-o", "json"))
    [lost] = body["differences"]["first"]
    assert (lost["record_id"], lost["missing_from"]) == ("r1", ["store"])
    assert lost["refused"] == {"store": "status: not a number"}
    assert body["under_way"]["store"]["records"] == 1


def test_what_arrives_while_it_is_compared_is_no_difference(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """The agent ships, and removes, between one place and the next."""
    spool(tmp_path, call(1))
    store.write([call(2)])

    def ship() -> None:
        Topic.before = arrive
        store.write([call(3)])  # its message is on its way

    def arrive() -> None:
        (tmp_path / "spool" / "w" / segment_name(1)).unlink(missing_ok=True)
        store.write([call(1)])
        Topic.values += [orjson.dumps(call(number)) for number in (1, 3)]

    Topic.before = ship
    Topic.values = [orjson.dumps(call(2))]
    body = found(run(*BROKERS, "-o", "json"))
    assert body["differences"]["counts"] == {}
    assert [body["sources"][name]["records"] for name in ("store", "kafka")] == [3, 3]


def test_what_never_arrives_is_a_difference_at_the_second_look(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """It left the spool, and is nowhere."""
    spool(tmp_path, call(1))
    Topic.before = lambda: (tmp_path / "spool" / "w" / segment_name(1)).unlink(missing_ok=True)
    body = found(run(*BROKERS, "-o", "json"))
    [lost] = body["differences"]["first"]
    assert (lost["seen_in"], lost["missing_from"]) == (["spool"], ["store", "kafka"])


def test_a_client_file_is_compared(run: Run, store: RecordStore, tmp_path: Path) -> None:
    """By request id, and by tokens and cost where it has them."""
    store.write([call(1), call(2), call(3)])
    file = tmp_path / "client.csv"
    file.write_text("request_id,cost_usd\nq1,0.0015\nq2,0.0016\nq9,\n")
    body = found(run("--client", str(file), "-o", "json"))
    assert body["differences"]["counts"] == {"client_contents": 1, "unrecorded": 1}
    assert [one["request_id"] for one in body["differences"]["first"]] == ["q2", "q9"]
    assert body["sources"]["client"]["records"] == 3
    assert body["sources"]["client"]["cost_usd"] == "0.0031"
    assert body["not_in_client_file"]["records"] == 1
    result = run("--client", str(file))
    assert result.exit_code == 1
    assert "unrecorded request_id=q9 answers=1" in result.stdout
    assert "answered, not in the client's file: 1 records, 0.0015 USD" in result.stdout

    assert run("--client", "-", stdin="q1\nq2\n").exit_code == 0
    body = found(run("--client", "-", "--client-complete", "-o", "json", stdin="q1\nq2\n"))
    assert body["differences"]["counts"] == {"unlisted": 1}


def test_a_client_may_list_what_lies_at_the_edge(run: Run, store: RecordStore) -> None:
    """Its clock is another one; the period's own sums do not change by it."""
    store.write([call(1), call(2, timestamp=samples.START_S + 16 * 3600 + 60)])
    assert run("--client", "-", stdin="q1\nq2\n").exit_code == 0
    body = found(run("--client", "-", "-o", "json", stdin="q1\n"))
    assert body["sources"]["store"]["records"] == 1
    assert body["not_in_client_file"]["records"] == 0


@pytest.mark.parametrize("stdin", ['{"request_id":', '{"request_id":""}'])
def test_a_client_file_that_cannot_be_read_is_a_sentence(run: Run, stdin: str) -> None:
    """With the entry."""
    result = run("--client", "-", stdin=stdin)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: entry 1 of the client's file: ")


def test_what_cannot_be_read_is_no_agreement(run: Run, store: RecordStore, tmp_path: Path) -> None:
    """Neither junk in the topic nor damage in the spool."""
    spool(tmp_path, b"junk", call(1))
    path = tmp_path / "spool" / "w" / segment_name(1)
    path.write_bytes(path.read_bytes()[:-5] + b"xxxxx")
    path.with_name(segment_name(3)).write_bytes(header_frame("w", 3))
    Topic.values = [b"no record"]
    body = found(run(*BROKERS, "-o", "json"))
    assert body["sources"]["kafka"]["unreadable"] == 1
    assert body["sources"]["spool"]["unreadable"] == 1
    assert body["spool_damage"] == {"pieces": 1, "missing_segments": 1, "writers_too_new": 0}
    text = run(*BROKERS).stdout
    assert "kafka: 1 messages are no usage records" in text
    assert "routerctl spool verify" in text
    assert text.endswith("no agreement: not everything can be read\n")


def test_a_spool_of_a_newer_router_is_no_agreement(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """What this version cannot read it cannot compare."""
    spool(tmp_path)
    header = orjson.dumps({"format": 99, "writer_id": "w", "segment": 1})
    (tmp_path / "spool" / "w" / segment_name(1)).write_bytes(encode_frame(HEADER, header))
    assert found(run("-o", "json"))["spool_damage"]["writers_too_new"] == 1


def test_owners_and_periods_narrow_every_place(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """What belongs to others is compared with nothing."""
    others = [call(1, organization_id="beta"), call(2, api_key_id="key_2"), call(3, timestamp=9.0)]
    for n, other in enumerate(others):
        store.write([other]) if n % 2 else Topic.values.append(orjson.dumps(other))
    options = (*BROKERS, "--organization", "acme", "--key", "key_1", "-o", "json")
    assert {one["records"] for one in found(run(*options))["sources"].values()} == {0}
    assert run(*BROKERS).exit_code == 1


def test_kafka_is_part_of_it_when_there_are_brokers(
    run: Run, store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the settings or of the command line; it can be left out."""
    assert "kafka" not in found(run("-o", "json"))["sources"]
    options = ("--brokers", "a:1, b:2", "--topic", "t", "--kafka-api-version", "2.3")
    assert "kafka" in found(run(*options, "-o", "json"))["sources"]
    assert Topic.config == KafkaConfig(("a:1", "b:2"), usage_topic="t", api_version=(2, 3))
    assert "kafka" not in found(run(*options, "--no-kafka", "-o", "json"))["sources"]
    for wrong in (("--brokers", "a"), ("--brokers", "a:1", "--kafka-api-version", "new")):
        assert run(*wrong).exit_code == 2


def test_a_topic_without_its_oldest_is_told(run: Run, store: RecordStore) -> None:
    """Then a later period may agree where this one does not."""
    Topic.begins_late = 2
    assert "the oldest messages of 2 partitions are gone" in run(*BROKERS).stdout


def test_no_place_is_left_behind(
    run: Run, store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary database is gone; what was compared is as it was."""
    spool(tmp_path, call(1))
    store.write([call(2)])
    monkeypatch.setenv("TMPDIR", str(tmp_path / "sorting"))
    (tmp_path / "sorting").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.seg")}
    assert run("--client", "-", stdin="q1\n").exit_code == 0
    assert list((tmp_path / "sorting").iterdir()) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.seg")} == before
