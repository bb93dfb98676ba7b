"""``routerctl budget-service``: the reference budget service as a program."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from router.config.settings import EMBEDDED_REDIS, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from router.limits.budgets.rebuilding import RebuildingLedger, SumRecords
    from router.limits.budgets.windows import LostWindow
    from router.redis.address import RedisAddress
    from router.redis.client import RedisClient

_STOP_S = 5.0


@click.command("budget-service")
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
    _serve(settings, _nothing if no_records else None)


def _nothing(_organization_id: str, _lost: LostWindow) -> int:
    return 0


def _serve(settings: Settings, sum_records: SumRecords | None) -> None:
    import gevent

    from router.budget_service.server import create_app
    from router.net.resolver import Resolver
    from router.redis.client import RedisClient
    from router.redis.connection import ConnectionOptions
    from router.telemetry.logs import configure_logging

    configure_logging(settings.log_level)
    address, stop_redis = _redis(settings)
    try:
        options = ConnectionOptions(timeout_s=settings.redis_timeout_s, resolve=Resolver().resolve)
        client = RedisClient(address, options)
        app = create_app(
            _book(client, sum_records or _records(settings)),
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
            reason = os.strerror(error.errno or 0)
            raise click.ClickException(f"cannot listen on {bind}: {reason}") from None
        click.echo(f"budget service on http://{bind}, redis: {address}")
        server.serve_forever()
        client.close()
    finally:
        stop_redis()


def _server(address: tuple[str, int], app: Any) -> Any:
    from gevent.pywsgi import WSGIServer

    class PromptServer(WSGIServer):  # type: ignore[misc]
        def handle(self, client: socket.socket, peer: Any) -> None:
            # Head and body are written apart, and the body would wait 40 ms for the head's receipt.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().handle(client, peer)

    return PromptServer(address, app, log=None)


def _redis(settings: Settings) -> tuple[RedisAddress, Callable[[], None]]:
    """Where Redis is, and what to do when it is needed no longer."""
    from router.redis.embedded import EmbeddedRedis, EmbeddedRedisError, redis_address

    try:
        address = redis_address(settings)
    except ValueError as error:
        raise SettingsError([f"RATE_LIMIT_REDIS_ADDR: {error}"]) from None
    if settings.redis_addr != EMBEDDED_REDIS:
        return address, lambda: None
    try:
        embedded = EmbeddedRedis(settings.redis_dir)
        embedded.join()
    except (EmbeddedRedisError, OSError) as error:
        raise click.ClickException(str(error)) from None
    return address, embedded.leave


def _book(client: RedisClient, sum_records: SumRecords) -> RebuildingLedger:
    from router.limits.budgets.ledger import Ledger
    from router.limits.budgets.maintenance import LedgerMaintenance
    from router.limits.budgets.rebuilding import RebuildingLedger

    return RebuildingLedger(Ledger(client), LedgerMaintenance(client), sum_records=sum_records)


def _records(settings: Settings) -> SumRecords:
    """What the record store, and this host's spool, have of a window."""
    from router.store.query_pool import Queries
    from router.store.record_store import RecordStore
    from router.store.spend import sum_records_of

    timeout_s = settings.query_timeout_s
    store = RecordStore(settings.store_url, read_only=True, query_timeout_s=timeout_s)
    return sum_records_of(Queries(store, timeout_s=timeout_s), settings, may_be_new=False)


def _windows_of(settings: Settings) -> Callable[[str, str | None], Any]:
    """The windows of the document that was applied in this data directory, if one was."""
    from router.config.state.access import StateReader
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
