"""Access to the budgets in Redis for one command, and to the records that they are rebuilt from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from router.cli.operator_audit import as_owner_of
from router.cli.output import CannotFindOut
from router.config.settings import EMBEDDED_REDIS, Settings, SettingsError

if TYPE_CHECKING:
    from router.limits.budgets.rebuilding import SumRecords
    from router.limits.budgets.windows import (
        Adjustment,
        ThresholdEvent,
        WindowSpec,
        WindowState,
    )
    from router.redis.client import RedisClient

_TIMEOUT_S = 2.0
"""An operator would rather wait than hear that Redis is slow."""


class LedgerSession:
    """Reads and corrects windows; every method raises ``Unavailable`` if Redis does not answer."""

    def __init__(self, settings: Settings, client: RedisClient) -> None:
        from router.limits.budgets.ledger import Ledger
        from router.limits.budgets.maintenance import LedgerMaintenance

        self._settings = settings
        self._client = client
        self._ledger = Ledger(client)
        self._maintenance = LedgerMaintenance(client)

    def read(self, organization_id: str, windows: Sequence[WindowSpec]) -> Sequence[WindowState]:
        """The windows as Redis has them; a lost one stays lost until a call rebuilds it."""
        return self._ledger.read(organization_id, windows) if windows else ()

    def rebuild(
        self, organization_id: str, window: WindowSpec
    ) -> tuple[WindowState, Sequence[ThresholdEvent]]:
        """The window, rebuilt from the records if Redis lost it, and the thresholds it reached."""
        from router.limits.budgets.rebuilding import Rebuilder, RebuildingLedger

        with sums_of_records(self._settings) as sum_records:
            book = RebuildingLedger(self._ledger, Rebuilder(self._maintenance, sum_records))
            [state], reached = book.read(organization_id, [window])
        return state, reached

    def was_corrected(self, organization_id: str, correction_id: str) -> bool:
        """Whether the correction with this id was made before."""
        from router.limits.budgets.maintenance import correction_key

        key = correction_key(organization_id, correction_id)
        return self._client.command("EXISTS", key, key=key) == 1

    def correct(
        self,
        organization_id: str,
        window: WindowSpec,
        amount: int | None,
        *,
        reason: str,
        correction_id: str,
    ) -> Adjustment:
        """Add ``amount`` to what is settled, or set it to 0 where it is ``None``.

        Raises ``WindowLost`` for a window that Redis does not know.
        """
        facts = {"reason": reason, "correction_id": correction_id}
        if amount is None:
            return self._maintenance.reset(organization_id, window, **facts)
        return self._maintenance.adjust(organization_id, window, amount, **facts)


@contextmanager
def ledger_session(settings: Settings) -> Iterator[LedgerSession]:
    """A session with the Redis of these settings; no answer from it is :class:`CannotFindOut`."""
    from router.breaker import Unavailable

    if settings.budget_service_endpoint is not None:
        raise click.ClickException(
            "a budget service holds the budgets (BUDGET_SERVICE_ENDPOINT): run this where it runs"
        )
    timeout_s = max(_TIMEOUT_S, settings.redis_timeout_s)
    with redis_client(settings, timeout_s=timeout_s) as client:
        try:
            yield LedgerSession(settings, client)
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
    from router.net.resolver import system_resolve
    from router.redis.client import RedisClient
    from router.redis.connection import ConnectionOptions
    from router.redis.embedded import EmbeddedRedis, EmbeddedRedisError, redis_address

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
    from router.store.query_pool import Queries
    from router.store.record_store import RecordStore
    from router.store.spend import sum_records_of

    timeout_s = settings.query_timeout_s
    store = RecordStore(settings.store_url, read_only=True, query_timeout_s=timeout_s)
    queries = Queries(store, timeout_s=timeout_s)
    try:
        yield sum_records_of(queries, settings, may_be_new=may_be_new)
    finally:
        queries.close()
