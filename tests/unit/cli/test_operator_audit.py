"""What operators change is in the audit trail before it takes effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from router.cli.main import cli
from router.cli.operator_audit import operator_audit_log
from router.config.config_errors import StateError
from router.config.document import KeyRecord
from router.config.settings import Settings
from router.config.state.state_writer import StateWriter
from router.errors import RecordsUnavailable
from router.records.audit_chain import chain_hash, genesis, unseal
from router.records.record_schemas import audit_event_schema
from router.records.recorder import Recorder
from router.spool.frames import AUDIT
from router.spool.reader import SpoolReader

DOCUMENT = """
version: 1
organizations: [{id: acme, name: Acme}]
models: [{id: gpt-4o}]
backends: [{id: a, kind: openai, base_url: "http://127.0.0.1:9101/v1"}]
policies: [{organization: acme, model: "*", backends: [{id: a}]}]
"""

Run = Callable[..., Result]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def run(data_dir: Path) -> Run:
    def call(*arguments: str) -> Result:
        env = {"ROUTER_DATA_DIR": str(data_dir), "ROUTER_KEY_PEPPER": None, "ROUTER_DEMO": None}
        return CliRunner().invoke(cli, arguments, env=env, prog_name="routerctl")

    return call


@pytest.fixture
def document(tmp_path: Path) -> Path:
    file = tmp_path / "router.yaml"
    file.write_text(DOCUMENT)
    return file


def lines(data_dir: Path) -> list[bytes]:
    """Every event that waits in the spool, writer by writer."""
    reader = SpoolReader(data_dir / "spool", observe=True)
    found = []
    for writer in reader.writers():
        batch = reader.read(reader.first_position(writer.writer_id), 1 << 20)
        assert all(frame.kind == AUDIT for frame in batch.frames)
        found += [frame.payload for frame in batch.frames]
    return found


def events(data_dir: Path) -> list[dict[str, Any]]:
    validator = Draft202012Validator(audit_event_schema())
    found = [json.loads(line) for line in lines(data_dir)]
    for event in found:
        validator.validate(event)
    return found


def actions(data_dir: Path) -> list[str]:
    return [event["action"] for event in events(data_dir)]


def test_a_key_from_beginning_to_end(run: Run, document: Path, data_dir: Path) -> None:
    """Its creation and its end are told apart, with who did it, to what, and what changed."""
    run("config", "apply", str(document))
    created = run("keys", "create", "--organization", "acme", "--id", "batch", "--name", "b")
    assert run("keys", "revoke", "batch").exit_code == 0
    first, second = events(data_dir)[-2:]
    assert (first["action"], second["action"]) == ("KEY_CREATED", "KEY_REVOKED")
    for event in (first, second):
        assert event["actor"].startswith("operator:")
        assert (event["entity_type"], event["entity_id"]) == ("api_key", "batch")
        assert event["organization_id"] == "acme"
        assert event["context"]["api_key_id"] == "batch"
    assert first["before"] is None
    assert first["after"]["name"] == "b"
    assert (second["before"], second["after"]) == ({"status": "active"}, {"status": "revoked"})
    key = created.stdout.split("key:")[1].split()[0]
    stored = StateWriter(data_dir / "state").get_key("batch").hash
    text = b"".join(lines(data_dir)).decode()
    assert key not in text
    assert stored not in text


def test_revoking_twice_is_one_change(run: Run, document: Path, data_dir: Path) -> None:
    """What changes nothing is no event."""
    run("config", "apply", str(document))
    run("keys", "create", "--organization", "acme", "--id", "batch")
    for _ in range(2):
        assert run("keys", "revoke", "batch").exit_code == 0
    assert actions(data_dir).count("KEY_REVOKED") == 1


def test_a_document(run: Run, document: Path, data_dir: Path) -> None:
    """One event for each entity, and one for the whole; nothing for the same document again."""
    run("config", "apply", str(document))
    assert sorted(actions(data_dir)) == ["CONFIG_APPLIED"] * 4 + ["POLICY_UPDATE"]
    document.write_text(DOCUMENT.replace("name: Acme", "name: Acme Ltd"))
    for _ in range(2):
        assert run("config", "apply", str(document)).exit_code == 0
    changed, whole = events(data_dir)[5:]
    assert (changed["before"], changed["after"]) == ({"name": "Acme"}, {"name": "Acme Ltd"})
    assert changed["entity_type"] == "organization"
    assert (whole["entity_type"], whole["entity_id"]) == ("document", "2")
    assert whole["context"] == {"changed": 1}


def test_a_look_leaves_no_trace(run: Run, document: Path, data_dir: Path) -> None:
    """Neither a dry run nor a check."""
    run("config", "apply", "--dry-run", str(document))
    run("config", "validate", str(document))
    document.write_text("version: 2")
    run("config", "apply", "--dry-run", str(document))
    assert not (data_dir / "spool").exists()


def test_a_refused_document(run: Run, document: Path, data_dir: Path) -> None:
    """With its first mistake and the number of the others."""
    run("config", "apply", str(document))
    document.write_text("version: 1\nmodels: [{id: 7}]\nmore: 1\n")
    assert run("config", "apply", str(document)).exit_code == 1
    event = events(data_dir)[-1]
    assert (event["action"], event["entity_id"]) == ("CONFIG_REJECTED", "router.yaml")
    assert event["reason"].endswith("(and 1 more)")


def test_nothing_changes_that_cannot_be_written_down(
    run: Run, document: Path, data_dir: Path
) -> None:
    """A trail that misses a change would be worth nothing."""
    run("config", "apply", str(document))
    for path in sorted((data_dir / "spool").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (data_dir / "spool").rmdir()
    (data_dir / "spool").write_text("in the way")
    result = run("keys", "create", "--organization", "acme", "--id", "batch")
    assert result.exit_code == 3
    assert "audit trail" in result.stderr
    assert StateWriter(data_dir / "state").list_keys() == []


def test_a_change_that_fails_after_it_was_noted(run: Run, document: Path, data_dir: Path) -> None:
    """The trail says so."""
    run("config", "apply", str(document))
    settings = Settings(data_dir=data_dir)
    record = KeyRecord(id="k", organization_id="acme", hash="0" * 64)
    with pytest.raises(StateError, match="no room"), operator_audit_log(settings) as log:

        def note_and_fail(changes: Any, revision: int) -> None:
            log.note(changes, revision)
            raise StateError(["no room"])

        StateWriter(settings.state_dir, journal=note_and_fail).put_key(record)
    assert actions(data_dir)[-2:] == ["KEY_CREATED", "CONFIG_REJECTED"]
    assert StateWriter(settings.state_dir).list_keys() == []


def test_a_note_that_was_not_confirmed(
    run: Run, document: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be on the disk though the disk did not say so in time: then the trail says more."""
    run("config", "apply", str(document))
    noted = Recorder.note

    def note_too_late(recorder: Recorder, events: Any) -> None:
        monkeypatch.undo()
        noted(recorder, events)
        raise RecordsUnavailable("sync timed out")

    monkeypatch.setattr(Recorder, "note", note_too_late)
    settings = Settings(data_dir=data_dir)
    record = KeyRecord(id="k", organization_id="acme", hash="0" * 64)
    with pytest.raises(StateError, match="timed out"), operator_audit_log(settings) as log:
        StateWriter(settings.state_dir, journal=log.note).put_key(record)
    assert actions(data_dir)[-2:] == ["KEY_CREATED", "CONFIG_REJECTED"]
    assert StateWriter(settings.state_dir).list_keys() == []


def test_each_command_has_a_chain_of_its_own(run: Run, document: Path, data_dir: Path) -> None:
    """It begins at the beginning and hangs together."""
    run("config", "apply", str(document))
    link = None
    for number, line in enumerate(lines(data_dir), 1):
        event = json.loads(line)
        link = link or genesis(event["writer_id"])
        body, digest = unseal(line)
        assert (event["sequence"], event["previous_hash"]) == (number, link.hash)
        assert digest == chain_hash(link.hash, body)
        link = type(link)(number, digest)
    assert link is not None
