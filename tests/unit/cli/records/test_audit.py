"""``routerctl audit`` as an operator meets it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, func, update

from router.cli.main import cli
from router.config.loader import load_serialized
from router.config.pepper import pepper_fingerprint
from router.config.state.state_writer import StateWriter
from router.records.audit_chain import AuditChain, derive_audit_key
from router.spool.frames import AUDIT, encode_frame, header_frame, segment_name
from router.store.record_store import RecordStore
from router.store.tables.sql_tables import audit, chain_tips, prune_points
from tests.unit.records import samples
from tests.unit.records.samples import START_S

Run = Callable[..., Result]

PEPPER = "a pepper of at least thirty-two bytes"
DAY_S = 86_400
PAST_S = START_S - 1000 * DAY_S
"""2024-04-20T08:00:00Z: what is pruned must lie in the past."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str, stdin: bytes | None = None, **environ: str) -> Result:
        env = {"ROUTER_DATA_DIR": str(tmp_path), "ROUTER_KEY_PEPPER": PEPPER, **environ}
        return CliRunner().invoke(
            cli, ["audit", *arguments], input=stdin, env=env, prog_name="routerctl"
        )

    return call


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    """With two chains of ten events, one for each day and organization in turn."""
    opened = RecordStore(
        f"sqlite:///{tmp_path / 'records.db'}", audit_key=derive_audit_key(PEPPER.encode())
    )
    opened.migrate()
    opened.write([], [*chain_of("w-1"), *chain_of("w-2")])
    opened.close()
    return opened


def chain_of(name: str) -> list[dict[str, Any]]:
    chain = AuditChain(name)
    return [
        samples.linked(
            chain,
            timestamp=PAST_S + number * DAY_S,
            organization_id=("acme", "beta")[number % 2],
            reason="limit",
        )
        for number in range(10)
    ]


def damage(store: RecordStore, *statements: Any) -> None:
    """Change the store as somebody would who has its password, but not the pepper."""
    with store._database.writing() as connection:
        for statement in statements:
            connection.execute(statement)
    store.close()


def at(writer_id: str, sequence: int) -> Any:
    return (audit.c.writer_id == writer_id) & (audit.c.sequence == sequence)


# --- export -------------------------------------------------------------------------------------


def test_the_whole_trail_goes_to_standard_output(run: Run, store: RecordStore) -> None:
    """Events, then the signed line; the summary goes to standard error."""
    result = run("export")
    assert result.exit_code == 0, result.output
    lines = result.stdout_bytes.splitlines(keepends=True)
    assert len(lines) == 21
    assert [orjson.loads(line)["sequence"] for line in lines[:20]] == [*range(1, 11)] * 2
    assert orjson.loads(lines[-1])["trail"]["events"] == 20
    said = "20 events of 2 writers, no spool told up to when it is complete\n"
    assert result.stderr == said
    checked = run("verify", "-", stdin=result.stdout_bytes)
    assert (checked.exit_code, checked.stdout.split(",")[0]) == (
        0,
        "whole: 20 events of 2 writers",
    )


def test_a_file_appears_whole_or_not_at_all(run: Run, store: RecordStore, tmp_path: Path) -> None:
    """It replaces the old one at once, is private, and leaves nothing beside it."""
    file = tmp_path / "trail.jsonl"
    file.write_text("old")
    before = {path.name for path in tmp_path.iterdir()}
    result = run("export", "--file", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("verify", str(file)).exit_code == 0

    whole = file.read_bytes()
    assert run("export", "--file", str(tmp_path / "no" / "such")).exit_code == 3
    assert file.read_bytes() == whole
    after = {path.name for path in tmp_path.iterdir() if "records.db" not in path.name}
    assert after == {name for name in before if "records.db" not in name}


def test_an_export_that_fails_leaves_the_old_file(run: Run, tmp_path: Path) -> None:
    """Without a store there is nothing to export, and nothing is overwritten."""
    file = tmp_path / "trail.jsonl"
    file.write_text("old")
    result = run("export", "--file", str(file))
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: the record store")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if "trail" in path.name] == ["trail.jsonl"]


def test_a_period_is_a_trail_of_its_own(run: Run, store: RecordStore) -> None:
    """From a day on and before a moment; each chain without a hole."""
    result = run("export", "--from", "2024-04-21", "--to", "2024-04-24T08:00:00Z")
    assert result.exit_code == 0, result.output
    lines = result.stdout_bytes.splitlines()
    assert [orjson.loads(line)["sequence"] for line in lines[:-1]] == [2, 3, 4, 2, 3, 4]
    assert "from 2024-04-21T00:00:00.000000Z, to 2024-04-24T08:00:00.000000Z" in result.stderr
    assert run("verify", "-", stdin=result.stdout_bytes).exit_code == 0


def test_a_period_of_a_damaged_store_says_so(run: Run, store: RecordStore) -> None:
    """Also when the hole lies outside the period: the last line carries it, signed."""
    damage(store, delete(audit).where(at("w-2", 9)))
    result = run("export", "--to", "2024-04-22")
    assert result.exit_code == 1
    reason = "damaged when it was exported: 9 events stand where 10 belong"
    assert f"writer w-2, sequence 1: {reason}" in result.stderr
    checked = run("verify", "-", stdin=result.stdout_bytes)
    assert (checked.exit_code, reason in checked.stdout) == (1, True)


def test_an_organization_is_a_selection(run: Run, store: RecordStore) -> None:
    """It says so, in the order of time, and is verified as one."""
    result = run("export", "--organization", "beta", "--from", "2024-04-22")
    assert result.exit_code == 0, result.output
    lines = result.stdout_bytes.splitlines()
    events = [orjson.loads(line) for line in lines[1:-1]]
    assert {event["organization_id"] for event in events} == {"beta"}
    assert [event["sequence"] for event in events] == [4, 4, 6, 6, 8, 8, 10, 10]
    assert "8 events of 2 writers, a selection of organization beta" in result.stderr
    assert run("verify", "-", stdin=result.stdout_bytes).exit_code == 0

    cut = b"".join(line + b"\n" for line in [*lines[:3], *lines[4:]])
    checked = run("verify", "-", stdin=cut)
    assert checked.exit_code == 1
    assert checked.stdout == "line 2: lines 2 to 101 are not all that was signed\n"


def test_export_tells_up_to_when_the_store_is_complete(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """An event that waits in the spool is not exported, and the last line says what it may miss."""
    directory = tmp_path / "spool" / "w-9"
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    event = AuditChain("w-9").link(samples.event(timestamp=PAST_S + 5))
    content = header_frame("w-9", 1) + encode_frame(AUDIT, event)
    (directory / segment_name(1)).write_bytes(content)
    result = run("export")
    assert result.stderr == ("20 events of 2 writers, complete up to 2024-04-20T08:00:05.000000Z\n")
    head = orjson.loads(result.stdout_bytes.splitlines()[-1])["trail"]
    assert head["complete_to"] == "2024-04-20T08:00:05.000000Z"


def test_an_export_of_a_damaged_trail_is_written_and_fails(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """The file is evidence; the exit code is not to be overlooked."""
    damage(store, delete(audit).where(at("w-1", 4)))
    file = tmp_path / "trail.jsonl"
    result = run("export", "--file", str(file))
    assert result.exit_code == 1
    message = "line 4, writer w-1, sequence 4: sequence 5 stands where 4 belongs"
    assert result.stderr.splitlines()[-1] == f"Error: the trail is damaged: {message}"
    checked = run("verify", str(file))
    assert (checked.exit_code, checked.stdout) == (1, f"{message}\n")


def test_former_options_say_the_present_ones(run: Run, store: RecordStore, tmp_path: Path) -> None:
    """They work for one release."""
    file = tmp_path / "trail.jsonl"
    result = run("export", "--output", str(file))
    assert result.exit_code == 0
    assert "'--output' is deprecated and will be removed: use '--file'" in result.stderr
    result = run("verify", str(file), "--output", "text")
    assert (result.exit_code, result.stdout.split(",")[0]) == (0, "whole: 20 events of 2 writers")
    assert "use '--output table'" in result.stderr


# --- verify -------------------------------------------------------------------------------------


def test_the_store_is_verified_against_its_chain_tips(run: Run, store: RecordStore) -> None:
    """Without a file; nothing is written."""
    result = run("verify")
    assert (result.exit_code, result.stdout.split(",")[0]) == (0, "whole: 20 events of 2 writers")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            delete(audit).where(at("w-1", 1)),
            "writer w-1, sequence 1: the events begin with 2, not with 1",
        ),
        (
            delete(audit).where(at("w-2", 10)),
            "writer w-2, sequence 10: the chain ends with 9, its signed tip says 10",
        ),
        (
            delete(audit).where(audit.c.writer_id == "w-1"),
            "writer w-1, sequence 1: the chain ends with 0, its signed tip says 10",
        ),
        (
            update(audit)
            .where(at("w-2", 7))
            .values(document=func.replace(audit.c.document, '"limit"', '"limes"')),
            "writer w-2, sequence 7: the event is not the one that was hashed",
        ),
        (
            delete(chain_tips).where(chain_tips.c.writer_id == "w-1"),
            "writer w-1, sequence 10: the chain has no signed tip",
        ),
        (
            update(chain_tips).where(chain_tips.c.writer_id == "w-2").values(sequence=9),
            "writer w-2, sequence 9: the chain tip is not what was signed,"
            " or the pepper is another one",
        ),
        (
            update(audit).where(at("w-2", 7)).values(organization_id="beta"),
            "writer w-2, sequence 7: the column organization_id is not what the event says",
        ),
    ],
)
def test_the_first_damage_in_the_store_is_named(
    run: Run, store: RecordStore, statement: Any, said: str
) -> None:
    """Writer, place in its chain, and what is wrong there."""
    damage(store, statement)
    result = run("verify")
    assert (result.exit_code, result.stdout) == (1, f"{said}\n")


def test_verify_as_json(run: Run, store: RecordStore) -> None:
    """For programs; the exit code is the same."""
    assert json.loads(run("verify", "--output", "json").stdout) == {
        "ok": True,
        "checked": "store",
        "events": 20,
        "writers": 2,
        "complete_to": None,
        "selection": None,
        "reason": None,
        "line": None,
        "writer_id": None,
        "sequence": None,
    }
    exported = run("export").stdout_bytes.splitlines(keepends=True)
    result = run("verify", "-", "--output", "json", stdin=b"".join(exported[1:]))
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (found["checked"], found["line"], found["writer_id"], found["sequence"]) == (
        "file",
        1,
        "w-1",
        1,
    )


def test_another_pepper_proves_nothing(run: Run, store: RecordStore) -> None:
    """What another router signed is not ours, and the reverse."""
    exported = run("export").stdout_bytes
    other = {"ROUTER_KEY_PEPPER": "another pepper of at least 32 bytes"}
    result = run("verify", "-", stdin=exported, **other)
    said = "line 21: the last line is not what was signed, or the pepper is another one\n"
    assert (result.exit_code, result.stdout) == (1, said)
    result = run("verify", **other)
    assert (result.exit_code, "or the pepper is another one" in result.stdout) == (1, True)


def note_key(data_dir: Path, pepper: str) -> None:
    """Store a configuration whose key was made with this pepper."""
    document = {
        "version": 1,
        "organizations": [{"id": "acme", "name": "Acme"}],
        "keys": [{"id": "key-a", "organization": "acme", "hash": "a" * 64}],
        "models": [
            {
                "id": "gpt-4o",
                "prices": {
                    "input_usd_per_million_tokens": "2.50",
                    "output_usd_per_million_tokens": "10.00",
                },
            }
        ],
        "backends": [{"id": "a", "kind": "openai", "base_url": "http://127.0.0.1:9101/v1"}],
        "policies": [{"organization": "*", "model": "*", "backends": [{"id": "a"}]}],
    }
    writer = StateWriter(data_dir / "state")
    writer.apply(load_serialized(document), fingerprint=pepper_fingerprint(pepper.encode()))


ANOTHER = "another pepper of at least 32 bytes"
OTHER_PEPPER = "this pepper is not the one that the keys and the audit trail were made with"


@pytest.mark.parametrize(
    "arguments", [("export",), ("verify",), ("prune", "--before", "2024-04-23", "--yes")]
)
def test_another_pepper_than_that_of_the_keys_is_refused(
    run: Run, store: RecordStore, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """It would sign what nobody can verify, or call a whole trail damaged."""
    note_key(tmp_path, PEPPER)
    result = run(*arguments, ROUTER_KEY_PEPPER=ANOTHER)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"Error: {OTHER_PEPPER}\n"
    assert run("verify").stdout.startswith("whole: 20 events")
    assert run(*arguments).exit_code == 0


def test_a_file_of_an_older_pepper_verifies_beside_newer_keys(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """And with the wrong one the reason is named."""
    exported = run("export").stdout_bytes
    note_key(tmp_path, ANOTHER)
    assert run("verify", "-", stdin=exported).exit_code == 0
    bad = run("verify", "-", stdin=exported, ROUTER_KEY_PEPPER="a third pepper of 32 bytes or more")
    said = f"line 21: the last line is not what was signed, {OTHER_PEPPER}\n"
    assert (bad.exit_code, bad.stdout) == (1, said)


def test_a_damaged_file_is_not_blamed_on_the_right_pepper(
    run: Run, store: RecordStore, tmp_path: Path
) -> None:
    """Where the keys say that the pepper is right, a wrong signature is tampering."""
    note_key(tmp_path, PEPPER)
    exported = run("export").stdout_bytes.replace(b'"events":20', b'"events":21')
    result = run("verify", "-", stdin=exported)
    assert (result.exit_code, result.stdout) == (
        1,
        "line 21: the last line is not what was signed\n",
    )


def test_without_keys_the_chain_tips_tell_that_a_pepper_may_not_prune(
    run: Run, store: RecordStore
) -> None:
    """Its prune points would make a whole trail look forged."""
    result = run("prune", "--before", "2024-04-23", "--yes", ROUTER_KEY_PEPPER=ANOTHER)
    assert (result.exit_code, result.stderr) == (3, f"Error: {OTHER_PEPPER}\n")
    assert "20 events" in run("verify").stdout


@pytest.mark.parametrize("content", [b"", b"\n", b"no json\n", b"{}\n"])
def test_a_file_that_is_no_trail_is_refused(run: Run, tmp_path: Path, content: bytes) -> None:
    """An empty one too: nothing vouches for it."""
    file = tmp_path / "file"
    file.write_bytes(content)
    result = run("verify", str(file))
    assert result.exit_code == 1
    assert result.stdout.startswith("line 1: ")


def test_a_file_that_is_not_there_is_a_wrong_command_line(run: Run, tmp_path: Path) -> None:
    """As everywhere."""
    assert run("verify", str(tmp_path / "none")).exit_code == 2


def test_without_a_pepper_nothing_is_made_up(run: Run, tmp_path: Path) -> None:
    """A new pepper would prove nothing, so none is made."""
    result = run("verify", ROUTER_KEY_PEPPER="")
    assert (result.exit_code, result.stderr.startswith("Error: no pepper")) == (3, True)
    assert list(tmp_path.iterdir()) == []


# --- prune --------------------------------------------------------------------------------------


def test_prune_says_first_what_it_would_do(run: Run, store: RecordStore) -> None:
    """Nothing is removed without --yes."""
    result = run("prune", "--before", "2024-04-23")
    assert (result.exit_code, result.stdout) == (
        0,
        "would remove 6 events of 2 writers; --yes does it\n",
    )
    assert "20 events" in run("verify").stdout


def test_what_is_left_after_prune_verifies(run: Run, store: RecordStore) -> None:
    """The rest hangs on a signed prune point, and pruning again finds nothing."""
    result = run("prune", "--before", "2024-04-23", "--yes")
    assert (result.exit_code, result.stdout) == (0, "removed 6 events of 2 writers\n")
    assert "14 events of 2 writers" in run("verify").stdout
    again = run("prune", "--before", "2024-04-23", "--yes")
    assert again.stdout == "removed 0 events of 0 writers\n"


def test_only_beginnings_are_pruned(run: Run, store: RecordStore) -> None:
    """What would be announced is what would go, also when a clock was set back."""
    chain = AuditChain("w-3")
    days = (0, 1, 9, 2, 3)
    store.write([], [samples.linked(chain, timestamp=PAST_S + day * DAY_S) for day in days])
    store.close()
    assert run("prune", "--before", "2024-04-24").stdout.startswith("would remove 10 events of 3")
    assert run("prune", "--before", "2024-04-24", "--yes").stdout.startswith("removed 10 events")
    assert run("verify").exit_code == 0


def test_a_forged_prune_point_is_found(run: Run, store: RecordStore) -> None:
    """Deleting a beginning and moving the prune point does not pass for retention."""
    run("prune", "--before", "2024-04-21", "--yes")
    fifth = orjson.loads(run("export").stdout_bytes.splitlines()[3])
    assert (fifth["writer_id"], fifth["sequence"]) == ("w-1", 5)
    damage(
        store,
        delete(audit).where(audit.c.writer_id == "w-1", audit.c.sequence <= 5),
        update(prune_points)
        .where(prune_points.c.writer_id == "w-1")
        .values(sequence=5, hash=fifth["hash"]),
    )
    result = run("verify")
    assert (result.exit_code, result.stdout) == (
        1,
        "writer w-1, sequence 5: the prune point is not what was signed,"
        " or the pepper is another one\n",
    )


def test_the_agents_file_is_not_pruned_beside_it(run: Run, store: RecordStore) -> None:
    """A SQLite file has one writer; the message says what to do instead."""
    store.write([samples.usage()])
    result = run("prune", "--before", "2024-04-23", "--yes")
    assert result.exit_code == 1
    assert "ROUTER_AUDIT_RETENTION_DAYS" in result.stderr
    store.close()
    assert "20 events" in run("verify").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("prune",),
        ("prune", "--before", "tomorrow"),
        ("prune", "--before", "9999-01-01"),
        ("export", "--from", "2027-01-02", "--to", "2027-01-01"),
        ("export", "--from", "2027-01-01T00:00:00"),
    ],
)
def test_a_wrong_command_line_is_told(run: Run, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and nothing is done."""
    assert run(*arguments).exit_code == 2
