"""docs/records.md says what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from router.api.endpoints import ENDPOINTS
from router.call import OUTCOMES, LimitState, UsageSource
from router.exports.audit_export import export_lines
from router.records.record_schemas import audit_event_schema, usage_record_schema
from router.records.record_types import AUDIT_ACTIONS, DECISION_REASONS
from router.store.record_store import RecordStore
from router.upstream.reply_stream import StreamFault
from tests.unit.records import samples
from tests.unit.records.samples import KEY, START_S

TEXT = (Path(__file__).parents[3] / "docs" / "records.md").read_text(encoding="utf-8")


def fields_of(section: str) -> set[str]:
    """The first column of the tables of a section."""
    part = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE))


def test_every_field_is_explained() -> None:
    """Those of both schemas, and no other."""
    usage = usage_record_schema()["properties"]
    attempt = usage["attempts"]["items"]["properties"]
    assert fields_of("Usage records") == (set(usage) | set(attempt)) - {"degraded"}
    assert fields_of("Audit events") == set(audit_event_schema()["properties"])


@pytest.mark.parametrize(
    "members",
    [
        OUTCOMES,
        get_args(LimitState),
        DECISION_REASONS,
        get_args(UsageSource),
        AUDIT_ACTIONS,
        sorted(name for name, endpoint in ENDPOINTS.items() if endpoint.read),
        get_args(StreamFault),
    ],
)
def test_every_member_of_a_closed_set_is_named(members: tuple[str, ...]) -> None:
    """A new one has to be explained."""
    assert [member for member in members if f"`{member}`" not in TEXT] == []


def test_the_recipe_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes a good trail, also a pruned one, and stops at a bad line."""
    with RecordStore(f"sqlite:///{tmp_path / 'records.db'}", audit_key=KEY) as store:
        store.migrate()
        store.write([], [*samples.chained("w-1", 9), *samples.chained("w-2", 9)])
        store.prune(START_S + 3)
        with store.audit_trail() as trail:
            lines = list(export_lines(trail, KEY, START_S))
    file = tmp_path / "trail.jsonl"
    [recipe] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    code = compile(recipe, "recipe", "exec")
    monkeypatch.setattr(sys, "argv", ["recipe", str(file)])

    file.write_bytes(b"".join(lines))
    exec(code, {})
    file.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    with pytest.raises(SystemExit, match="line 5: does not follow"):
        exec(code, {})
    file.write_bytes(b"".join([*lines[:4], lines[4].replace(b'"key_1"', b'"key_2"'), *lines[5:]]))
    with pytest.raises(SystemExit, match="line 5: changed"):
        exec(code, {})
