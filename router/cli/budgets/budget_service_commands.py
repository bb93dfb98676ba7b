"""``routerctl budget-service``: the reference budget service as a program."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from router.cli.options import Command
from router.cli.output import CannotFindOut
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.limits.budgets.rebuilding import RebuildingLedger, SumRecords
    from router.limits.budgets.windows import LostWindow
    from router.redis.client import RedisClient

_STOP_S = 5.0


@click.command(
    "budget-service",
    cls=Command,
    example="BUDGET_SERVICE_BIND=127.0.0.1:8082 routerctl budget-service",
)
@click.option(
    "--no-records",
    is_flag=True,
    help="Begin at 0 what Redis does not know, instead of asking the record store.",
)
def budget_service(no_records: bool) -> None:
    """Run the reference budget service, for routers whose BUDGET_SERVICE_ENDPOINT leads to it.

    It keeps budgets in the Redis of RATE_LIMIT_REDIS_ADDR and rebuilds what that has lost from
    ROUTER_RECORD_STORE. It listens at BUDGET_SERVICE_BIND and, where BUDGET_SERVICE_TOKEN is set,
    demands that as a bearer token. TERM ends it.
    """
    settings = load_settings()

    from gevent import monkey

    monkey.patch_all()
    # All that opens sockets or makes locks is imported after the patch.
    from router.cli.budgets.ledger_session import redis_client, sums_of_records
    from router.net.resolver import Resolver
    from router.telemetry.logs import configure_logging

    configure_logging(settings.log_level)
    records = nullcontext(_nothing) if no_records else sums_of_records(settings, may_be_new=False)
    timeout_s = settings.redis_timeout_s
    with (
        records as sum_records,
        redis_client(settings, timeout_s=timeout_s, resolve=Resolver().resolve) as client,
    ):
        _serve(settings, client, sum_records)


def _nothing(_organization_id: str, _lost: LostWindow) -> int:
    return 0


def _serve(settings: Settings, client: RedisClient, sum_records: SumRecords) -> None:
    import gevent

    from router.budget_service.server import create_app

    app = create_app(
        _rebuilding_ledger(client, sum_records),
        windows_of=_windows_of(settings),
        ping=lambda: _ping(client),
        token=settings.budget_service_token,
    )
    bind = settings.budget_service_bind
    server = _server((bind.host, bind.port), app)
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, lambda: gevent.spawn(server.stop, _STOP_S))
    try:
        server.start()
    except OSError as error:
        raise CannotFindOut(f"cannot listen on {bind}: {os.strerror(error.errno or 0)}") from None
    click.echo(f"budget service on http://{bind}, redis: {client.address}")
    server.serve_forever()


def _server(address: tuple[str, int], app: Any) -> Any:
    from gevent.pywsgi import WSGIServer

    class PromptServer(WSGIServer):  # type: ignore[misc]
        def handle(self, client: socket.socket, peer: Any) -> None:
            # Head and body are written apart, and the body would wait 40 ms for the head's receipt.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().handle(client, peer)

    return PromptServer(address, app, log=None)


def _rebuilding_ledger(client: RedisClient, sum_records: SumRecords) -> RebuildingLedger:
    from router.limits.budgets.ledger import Ledger
    from router.limits.budgets.maintenance import LedgerMaintenance
    from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger

    return RebuildingLedger(Ledger(client), Rebuilder(LedgerMaintenance(client), sum_records))


def _windows_of(settings: Settings) -> Callable[[str, str | None], Any]:
    """The windows of the document that was applied in this data directory, if one was."""
    from router.config.state.state_reader import StateReader
    from router.errors import NotConfigured
    from router.limits.configured import window_specs

    state = StateReader(settings.state_dir)

    def windows_of(organization_id: str, key_id: str | None) -> Any:
        try:
            organization = state.document().organizations.get(organization_id)
            key = None if key_id is None else state.find_key_with_id(key_id)
        except NotConfigured:
            return None
        is_theirs = key_id is None or (key and key.organization_id == organization_id)
        return window_specs(organization, key) if organization and is_theirs else None

    return windows_of


def _ping(client: RedisClient) -> None:
    client.command("PING")
