"""Builds the service of one worker process from the settings."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

from flask import Flask

from router.breaker import Unavailable
from router.budget_service.audit import BudgetAudit
from router.budget_service.lease_finder import LeaseFinder
from router.budget_service.server import WindowsOf, create_app
from router.cli.budgets.ledger_session import sums_of_records
from router.clock import Clock
from router.config.settings import Settings, load_settings
from router.config.state.state_reader import StateReader
from router.errors import NotConfigured
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger
from router.limits.budgets.windows import LostWindow, WindowSpec
from router.limits.configured import window_specs
from router.net.resolver import Resolver
from router.records.recorder import Recorder
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.embedded.embedded_redis import redis_address
from router.services.worker_services import open_spool
from router.telemetry.logs import configure_logging


def build(*, no_records: bool = False) -> Flask:
    """The application, for gunicorn; it connects when it is first asked.

    With ``no_records``, what Redis does not know begins at 0.
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    stack = ExitStack()
    atexit.register(stack.close)
    client = RedisClient(
        redis_address(settings),
        ConnectionOptions(
            timeout_s=settings.redis_timeout_s,
            pipeline_commands=True,
            resolve=Resolver().resolve,
        ),
    )
    stack.callback(client.close)
    audit = BudgetAudit(Recorder(open_spool(settings, Clock())))
    stack.callback(audit.close)
    sum_records = stack.enter_context(
        nullcontext(_nothing) if no_records else sums_of_records(settings, may_be_new=False)
    )
    state = StateReader(settings.state_dir)
    stack.callback(state.close)
    ledger = RebuildingLedger(
        Ledger(client, since_ms_of=state.budgets_added_ms),
        Rebuilder(LedgerMaintenance(client, since_ms_of=state.budgets_added_ms), sum_records),
    )
    return create_app(
        ledger,
        LeaseFinder(ledger, client),
        audit,
        windows_of=windows_of_document(settings),
        ping=lambda: _ping(client),
        token=settings.budget_service_token,
    )


def windows_of_document(settings: Settings) -> WindowsOf:
    """The windows of the document that was applied in this data directory."""
    state = StateReader(settings.state_dir)

    def windows_of(organization_id: str, key_id: str | None) -> Sequence[WindowSpec] | None:
        try:
            organization = state.document().organizations.get(organization_id)
            key = None if key_id is None else state.find_key_with_id(key_id)
        except NotConfigured:
            if state.fault is None:
                raise
            raise Unavailable("configuration", "lost", state.fault) from None
        is_theirs = key_id is None or (key and key.organization_id == organization_id)
        return window_specs(organization, key) if organization and is_theirs else None

    return windows_of


def _nothing(_organization_id: str, _lost: LostWindow) -> int:
    return 0


def _ping(client: RedisClient) -> None:
    client.command("PING")
