"""The reference service behind a real socket, over the ledger of a stand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from router.budget_service.lease_finder import LeaseFinder
from router.budget_service.server import create_app
from router.errors import NotConfigured
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger
from router.limits.budgets.windows import LostWindow, ThresholdEvent
from router.limits.remote.budget_client import BudgetClient
from router.limits.remote.budget_session import BudgetSession
from router.limits.remote.charge_journal import ChargeJournal
from tests.fakes.budget_trail import Trail, audit_of

TOKEN = "a token of the tests"


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # Head and body are written apart; without this each answer would wait for its receipt.
        self.connection.setsockopt(6, 1, 1)

    def log(self, *_: Any, **__: Any) -> None: ...


def _no_document(_organization_id: str, _key_id: str | None) -> Any:
    raise NotConfigured


class Service:
    """The application behind a socket, over the ledger of a stand."""

    def __init__(self, stand: Any, directory: Path) -> None:
        self.stand = stand
        self.records: Any = lambda: 0
        self.windows_of: Any = _no_document
        self.threshold_events: list[tuple[str, ThresholdEvent]] = []
        self.ledger, self.maintenance = stand.ledger(), stand.maintenance()
        book = self.book()
        app = create_app(
            book,
            LeaseFinder(book, stand),
            audit_of(Trail()),
            windows_of=lambda *caller: self.windows_of(*caller),
            token=TOKEN,
        )
        self.server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        session = BudgetSession(timeout_s=10, token=TOKEN)
        self.client = BudgetClient(
            f"http://127.0.0.1:{self.server.server_port}",
            session,
            clock=stand.clock,
            on_threshold=lambda *facts: self.threshold_events.append(facts),
        )
        self.journal = ChargeJournal(directory, self.client.settle)

    def book(self) -> RebuildingLedger:
        return RebuildingLedger(self.ledger, Rebuilder(self.maintenance, self.sum_records))

    def sum_records(self, organization_id: str, lost: LostWindow) -> int:
        found: int = self.records()
        return found

    def close(self) -> None:
        self.journal.close()
        self.client.close()
        self.server.shutdown()
        self.thread.join(5)
        self.server.server_close()


@pytest.fixture
def service(stand: Any, tmp_path: Path) -> Iterator[Service]:
    running = Service(stand, tmp_path / "charges")
    yield running
    running.close()
