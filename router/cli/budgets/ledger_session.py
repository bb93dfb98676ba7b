"""Access to the budgets in Redis for one command, and to the records that they are rebuilt from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import click

from router.breaker import Unavailable
from router.cli.operator_audit import as_owner_of
from router.cli.output import CannotFindOut
from router.config.settings import EMBEDDED_REDIS, Settings, SettingsError
from router.config.state.state_reader import StateReader
from router.limits.budgets.ledger import Ledger
from router.limits.budgets.maintenance import LedgerMaintenance
from router.limits.budgets.rebuilding import SumRecords
from router.net.resolver import system_resolve
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.embedded.embedded_redis import EmbeddedRedis, EmbeddedRedisError, redis_address
from router.store.spend import open_rebuild_queries, sum_records_of

_TIMEOUT_S = 2.0
"""An operator would rather wait than hear that Redis is slow."""


class LedgerSession(NamedTuple):
    """What a command needs of Redis; every method of these raises ``Unavailable`` without Redis."""

    client: RedisClient
    ledger: Ledger
    maintenance: LedgerMaintenance


@contextmanager
def ledger_session(settings: Settings) -> Iterator[LedgerSession]:
    """A session with the Redis of these settings; no answer from it is :class:`CannotFindOut`."""
    if settings.budget_service_endpoint is not None:
        raise click.ClickException(
            "a budget service holds the budgets (BUDGET_SERVICE_ENDPOINT): run this where it runs"
        )
    timeout_s = max(_TIMEOUT_S, settings.redis_timeout_s)
    state = StateReader(settings.state_dir)
    with redis_client(settings, timeout_s=timeout_s) as client, closing(state):
        try:
            yield LedgerSession(
                client,
                Ledger(client, since_ms_of=state.budgets_added_ms),
                LedgerMaintenance(client, since_ms_of=state.budgets_added_ms),
            )
        except Unavailable as error:
            raise CannotFindOut(f"no answer from {client.address} ({error})") from None


@contextmanager
def redis_client(
    settings: Settings,
    *,
    timeout_s: float,
    resolve: Callable[[str, float], list[str]] | None = None,
) -> Iterator[RedisClient]:
    """A client of the Redis of these settings; an embedded server runs at least as long."""
    with ExitStack() as stack:
        try:
            if settings.redis_addr == EMBEDDED_REDIS:
                with as_owner_of(settings.data_dir):
                    embedded = EmbeddedRedis(settings.redis_dir)
                    stack.callback(embedded.leave)
                    embedded.join()
            address = redis_address(settings)
        except (EmbeddedRedisError, OSError) as error:
            raise CannotFindOut(str(error)) from None
        except ValueError as error:
            raise SettingsError([f"RATE_LIMIT_REDIS_ADDR: {error}"]) from None
        options = ConnectionOptions(timeout_s=timeout_s, resolve=resolve or system_resolve)
        client = RedisClient(address, options)
        stack.callback(client.close)
        yield client


@contextmanager
def sums_of_records(settings: Settings, *, may_be_new: bool = True) -> Iterator[SumRecords]:
    """What the record store and this host's spool have of a window; see ``sum_records_of``."""
    queries = open_rebuild_queries(settings)
    try:
        yield sum_records_of(queries, settings, may_be_new=may_be_new)
    finally:
        queries.close()
