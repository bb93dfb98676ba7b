"""``routerctl audit`` on a trail in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, update

from router.cli.main import cli
from router.records.audit_chain import AuditChain, derive_audit_key
from router.store.record_store import RecordStore
from router.store.tables.sql_tables import audit
from tests.servers.test_store_postgres import Server, server
from tests.unit.records import samples
from tests.unit.records.samples import START_S

__all__ = ["server"]

PEPPER = "a pepper of at least thirty-two bytes"
PAST_S = START_S - 1000 * 86_400
"""2024-04-20T08:00:00Z."""

Run = Callable[..., Result]


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    def call(*arguments: str, stdin: bytes | None = None) -> Result:
        env = {
            "ROUTER_DATA_DIR": str(tmp_path),
            "ROUTER_KEY_PEPPER": PEPPER,
            "ROUTER_RECORD_STORE": server.url(),
        }
        return CliRunner().invoke(
            cli, ["audit", *arguments], input=stdin, env=env, prog_name="routerctl"
        )

    return call


def test_a_trail_is_exported_verified_pruned_and_missed(server: Server, run: Run) -> None:
    """What the unit tests show on SQLite holds on a server: streams, surveys and retention."""
    server.empty()
    with RecordStore(server.url(), audit_key=derive_audit_key(PEPPER.encode())) as store:
        store.migrate()
        for name in ("w-1", "w-2"):
            chain = AuditChain(name)
            events = [samples.linked(chain, timestamp=PAST_S + number) for number in range(1500)]
            store.write([], events)

        whole = run("export")
        assert whole.exit_code == 0, whole.output
        assert run("verify", "-", stdin=whole.stdout_bytes).exit_code == 0
        assert run("verify").stdout.startswith("whole: 3000 events of 2 writers")

        before = "2024-04-20T08:10:00Z"
        assert run("prune", "--before", before).stdout.startswith("would remove 1200 events of 2")
        assert run("prune", "--before", before, "--yes").stdout.startswith("removed 1200 events")
        assert run("verify").stdout.startswith("whole: 1800 events of 2 writers")

        part = run("export", "--from", "2024-04-20T08:20:00Z", "--organization", "acme")
        assert part.exit_code == 0, part.output
        assert orjson.loads(part.stdout_bytes.splitlines()[-1])["selection_head"]["events"] == 600

        with store._database.writing() as connection:
            connection.execute(
                update(audit)
                .where(audit.c.writer_id == "w-2", audit.c.sequence == 900)
                .values(organization_id="beta")
            )
        filed = "writer w-2, sequence 900: the column organization_id is not what the event says\n"
        assert run("verify").stdout == filed

        with store._database.writing() as connection:
            connection.execute(
                delete(audit).where(audit.c.writer_id == "w-1", audit.c.sequence == 1000)
            )
        missing = run("verify")
        assert missing.exit_code == 1
        assert missing.stdout.startswith("writer w-1, sequence 1000: sequence 1001 stands where")
        period = run("export", "--to", "2024-04-20T08:11:00Z")
        assert (period.exit_code, "899 events stand where 900 belong" in period.stderr) == (1, True)
