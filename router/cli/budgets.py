"""``routerctl budgets``: what the enforcing counters say, and corrections by hand."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from router.cli.journal import OperatorJournal, as_owner_of
from router.config.settings import EMBEDDED_REDIS, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from router.limits.budgets.ledger import Ledger
    from router.limits.budgets.maintenance import LedgerMaintenance
    from router.limits.budgets.windows import Adjustment, WindowSpec, WindowState
    from router.records.record_types import AuditAction
    from router.redis.client import RedisClient

Command = TypeVar("Command", bound=Callable[..., Any])
Owned = tuple[str, "WindowState"]
"""An organization, and what a window of it or of one of its keys says."""

_TIMEOUT_S: Final = 2.0
"""An operator would rather wait than hear that Redis is slow."""
_HEAD: Final = (
    "ORGANIZATION", "KEY", "BUDGET", "PERIOD", "ENDS", "UNIT", "SETTLED", "RESERVED", "LIMIT",
)  # fmt: skip
_TEXTS: Final = 6
"""So many of these columns are aligned left."""

_output = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print.",
)
_organization = click.argument("organization", metavar="ORGANIZATION")


@click.group("budgets")
def budgets() -> None:
    """Show what is settled and reserved of budgets and quotas, and correct it by hand.

    The figures are those that calls are admitted by, in the Redis of RATE_LIMIT_REDIS_ADDR. Where a
    budget service holds the budgets, run this beside that.
    """


@budgets.command("list")
@click.option("--organization", metavar="ID", help="Of this one only.")
@_output
def list_budgets(organization: str | None, output: str) -> None:
    """List the budgets of all organizations and of their keys."""
    settings = load_settings()
    found = _configured(settings, organization)
    with _desk(settings) as desk:
        owned = [
            (owner, state) for owner, windows in found for state in desk.states(owner, windows)
        ]
    _print(owned, output)


@budgets.command("show")
@_organization
@click.option("--key", "key_id", metavar="ID", help="Only what holds for calls with this key.")
@_output
def show(organization: str, key_id: str | None, output: str) -> None:
    """Show the budgets that hold for an organization, or for one of its keys, in full."""
    settings = load_settings()
    [(owner, windows)] = _configured(settings, organization)
    if key_id is not None:
        _demand_key(windows, owner, key_id, settings)
        windows = [window for window in windows if window.subject in ("", key_id)]
    with _desk(settings) as desk:
        states = desk.states(owner, windows)
    if output == "json":
        _print([(owner, state) for state in states], output)
        return
    for number, state in enumerate(states):
        facts = {name: value for name, value in _facts(owner, state).items() if value is not None}
        click.echo("\n" * bool(number), nl=False)
        for name, value in facts.items():
            click.echo(f"{name + ':':<15}{_plain(value)}")


def _correction(command: Command) -> Command:
    """The arguments that both corrections have."""
    for option in (
        click.option(
            "--correction-id",
            metavar="ID",
            help="Counts once, however often it is given within 7 days; default: a new one.",
        ),
        click.option("--reason", required=True, help="Why; it stands in the audit trail."),
        click.option("--key", "key_id", metavar="ID", help="The budget is that of this key."),
        click.argument("budget", metavar="BUDGET"),
        _organization,
    ):
        command = option(command)
    return command


@budgets.command("adjust")
@_correction
@click.option(
    "--amount",
    required=True,
    metavar="AMOUNT",
    help="What to add to what is settled; negative takes off. USD, tokens or requests.",
)
def adjust(
    organization: str,
    budget: str,
    key_id: str | None,
    reason: str,
    correction_id: str | None,
    amount: str,
) -> None:
    """Add to what BUDGET of ORGANIZATION has settled in this period, or take off, not below 0."""
    settings = load_settings()
    owner, window = _window(settings, organization, budget, key_id)
    added = _amount(amount, window)
    _correct(settings, owner, window, added, reason=reason, correction_id=correction_id)


@budgets.command("reset")
@_correction
def reset(
    organization: str, budget: str, key_id: str | None, reason: str, correction_id: str | None
) -> None:
    """Begin this period of BUDGET of ORGANIZATION again with 0 settled.

    What running calls have reserved stays reserved.
    """
    settings = load_settings()
    owner, window = _window(settings, organization, budget, key_id)
    _correct(settings, owner, window, None, reason=reason, correction_id=correction_id)


class _Desk:
    """The ledger, for a command."""

    def __init__(
        self,
        settings: Settings,
        client: RedisClient,
        ledger: Ledger,
        maintenance: LedgerMaintenance,
    ) -> None:
        self._settings = settings
        self._client = client
        self._ledger = ledger
        self._maintenance = maintenance

    def states(self, owner: str, windows: Sequence[WindowSpec]) -> Sequence[WindowState]:
        """As they are; one that Redis does not know is lost, and rebuilt by the next call."""
        return self._ledger.read(owner, windows) if windows else ()

    def known_state(self, owner: str, window: WindowSpec, journal: OperatorJournal) -> WindowState:
        """As it is, after its rebuild if need be."""
        from router.limits.budgets.rebuilding import RebuildingLedger

        with self._records() as sum_records:
            book = RebuildingLedger(self._ledger, self._maintenance, sum_records=sum_records)
            [state], threshold_events = book.read(owner, [window])
        journal.cross(owner, threshold_events)
        return state

    def was_made(self, owner: str, correction_id: str) -> bool:
        """Whether this correction was made before."""
        from router.limits.budgets.maintenance import correction_key

        key = correction_key(owner, correction_id)
        return self._client.command("EXISTS", key, key=key) == 1

    def correct(
        self, owner: str, window: WindowSpec, amount: int | None, *, reason: str, correction_id: str
    ) -> Adjustment:
        """Add ``amount``, or begin again where it is ``None``."""
        facts = {"reason": reason, "correction_id": correction_id}
        if amount is None:
            return self._maintenance.reset(owner, window, **facts)
        return self._maintenance.adjust(owner, window, amount, **facts)

    @contextmanager
    def _records(self) -> Iterator[Any]:
        from router.store.query_pool import Queries
        from router.store.record_store import RecordStore
        from router.store.spend import sum_records_of

        timeout_s = self._settings.query_timeout_s
        store = RecordStore(self._settings.store_url, read_only=True, query_timeout_s=timeout_s)
        queries = Queries(store, timeout_s=timeout_s)
        try:
            yield sum_records_of(queries, self._settings)
        finally:
            queries.close()


@contextmanager
def _desk(settings: Settings) -> Iterator[_Desk]:
    from router.breaker import Unavailable
    from router.limits.budgets.ledger import Ledger
    from router.limits.budgets.maintenance import LedgerMaintenance
    from router.redis.client import RedisClient
    from router.redis.connection import ConnectionOptions

    if settings.budget_service_endpoint is not None:
        raise click.ClickException(
            "a budget service holds the budgets (BUDGET_SERVICE_ENDPOINT): run this where it runs"
        )
    with ExitStack() as stack:
        address = _redis(settings, stack)
        timeout_s = max(_TIMEOUT_S, settings.redis_timeout_s)
        client = RedisClient(address, ConnectionOptions(timeout_s=timeout_s))
        stack.callback(client.close)
        try:
            yield _Desk(settings, client, Ledger(client), LedgerMaintenance(client))
        except Unavailable as error:
            raise click.ClickException(f"no answer from {address} ({error})") from None


def _redis(settings: Settings, stack: ExitStack) -> Any:
    from router.redis.embedded import EmbeddedRedis, EmbeddedRedisError, redis_address

    try:
        if settings.redis_addr == EMBEDDED_REDIS:
            with as_owner_of(settings.data_dir):
                embedded = EmbeddedRedis(settings.redis_dir)
                stack.callback(embedded.leave)
                embedded.join()
        return redis_address(settings)
    except (EmbeddedRedisError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:
        raise SettingsError([f"RATE_LIMIT_REDIS_ADDR: {error}"]) from None


def _configured(
    settings: Settings, organization_id: str | None
) -> list[tuple[str, list[WindowSpec]]]:
    """The windows of one organization and of all its keys, or of all organizations."""
    from router.config.state.access import StateReader, StateWriter
    from router.limits.configured import window_specs

    reader = StateReader(settings.state_dir)
    try:
        organizations = reader.document().organizations
    finally:
        reader.close()
    if organization_id is not None and organization_id not in organizations:
        raise click.ClickException(f"no organization {organization_id!r}")
    keys = StateWriter(settings.state_dir).list_keys()
    found = []
    for owner in [organization_id] if organization_id is not None else sorted(organizations):
        windows = [*window_specs(organizations[owner], None)]
        own = len(windows)
        for key in keys:
            if key.organization_id == owner:
                windows += window_specs(organizations[owner], key)[own:]
        found.append((owner, windows))
    return found


def _demand_key(windows: Sequence[WindowSpec], owner: str, key_id: str, settings: Settings) -> None:
    """A key without budgets is no mistake, one that is not there is."""
    from router.config.state.access import StateWriter

    if any(window.subject == key_id for window in windows):
        return
    keys = StateWriter(settings.state_dir).list_keys()
    if not any((key.id, key.organization_id) == (key_id, owner) for key in keys):
        raise click.ClickException(f"organization {owner!r} has no key {key_id!r}")


def _window(
    settings: Settings, organization: str, budget: str, key_id: str | None
) -> tuple[str, WindowSpec]:
    [(owner, windows)] = _configured(settings, organization)
    if key_id is not None:
        _demand_key(windows, owner, key_id, settings)
    for window in windows:
        if (window.name, window.subject) == (budget, key_id or ""):
            return owner, window
    whose = f"organization {owner!r}" if key_id is None else f"key {key_id!r}"
    raise click.ClickException(f"{whose} has no budget {budget!r}")


def _amount(text: str, window: WindowSpec) -> int:
    """In nano-USD, tokens or requests."""
    from decimal import Decimal, InvalidOperation

    from router.limits.budgets.windows import MAX_AMOUNT

    scale = 9 if window.unit == "usd" else 0
    try:
        amount = Decimal(text).scaleb(scale)
        whole = int(amount)
    except (InvalidOperation, OverflowError, ValueError):
        raise click.BadParameter(f"{text!r} is no number", param_hint="--amount") from None
    if amount != whole:
        finest = "0.000000001 USD" if window.unit == "usd" else f"one of {window.unit}"
        raise click.BadParameter(f"is finer than {finest}", param_hint="--amount")
    if abs(whole) > MAX_AMOUNT:
        raise click.BadParameter("is more than can be counted", param_hint="--amount")
    if whole == 0:
        raise click.BadParameter("changes nothing", param_hint="--amount")
    return whole


def _correct(
    settings: Settings,
    owner: str,
    window: WindowSpec,
    amount: int | None,
    *,
    reason: str,
    correction_id: str | None,
) -> None:
    """Written down first: a correction that is in no trail is not made."""
    from router.breaker import Unavailable
    from router.limits.budgets.windows import WindowLost

    if not reason.strip():
        raise click.BadParameter("must say something", param_hint="--reason")
    made_id = correction_id or str(uuid.uuid4())
    journal = OperatorJournal(settings)
    with _desk(settings) as desk:
        if desk.was_made(owner, made_id):
            click.echo(f"correction {made_id} was made before: nothing changed")
            return
        before = desk.known_state(owner, window, journal).settled
        after = 0 if amount is None else max(0, before + amount)
        action: AuditAction = "LIMIT_RESET" if amount is None else "BUDGET_ADJUSTED"
        journal.correct(
            owner, window, action, reason=reason, correction_id=made_id, settled=(before, after)
        )
        try:
            done = desk.correct(owner, window, amount, reason=reason, correction_id=made_id)
        except Unavailable as error:
            raise click.ClickException(
                f"no answer ({error}): nobody knows whether it was made; the same command with"
                f" --correction-id {made_id} makes it once"
            ) from None
        except WindowLost:
            raise click.ClickException(
                f"nothing was changed: {window.name} was lost in this moment; try once more"
            ) from None
    journal.cross(owner, done.threshold_events)
    if done.done_before:
        click.echo(f"correction {made_id} was made before: nothing changed")
        return
    if (done.before, done.after) != (before, after):
        # Calls were settled in between: the trail has what was meant, and now what was done.
        journal.correct(
            owner,
            window,
            action,
            reason=reason,
            correction_id=made_id,
            settled=(done.before, done.after),
        )
    values = [_shown(value, window) for value in (done.before, done.after)]
    click.echo(f"{window.name}: settled {values[0]} -> {values[1]} (correction {made_id})")


def _print(owned: Sequence[Owned], output: str) -> None:
    from router.cli.tables import aligned, shown

    if output == "json":
        plain = [_facts(owner, state) for owner, state in owned]
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    if not owned:
        click.echo("no budgets")
        return
    rows: list[Sequence[str]] = [_HEAD]
    for owner, state in owned:
        window = state.window
        rows.append(
            (
                shown(owner),
                shown(window.subject or None),
                shown(window.name) + ("" if window.enforced else " (shadow)"),
                window.period,
                _moment(state.period.end_ms) or "never",
                window.unit,
                "-" if state.lost else _shown(state.settled, window),
                "-" if state.lost else _shown(state.reserved, window),
                "none" if window.limit is None else _shown(window.limit, window),
            )
        )
    for line in aligned(rows, left=_TEXTS):
        click.echo(line)
    if any(state.lost for _, state in owned):
        click.echo("- is not counted yet: the next call counts what the records have", err=True)


def _facts(owner: str, state: WindowState) -> dict[str, Any]:
    """In USD as exact decimal text, else whole numbers."""
    window = state.window

    def amount(value: int | None) -> str | int | None:
        if value is None or window.unit != "usd":
            return value
        return _shown(value, window)

    used = None if state.lost else state.settled + state.reserved
    room = None if used is None or window.limit is None else max(0, window.limit - used)
    return {
        "organization": owner,
        "key": window.subject or None,
        "budget": window.name,
        "unit": window.unit,
        "period": window.period,
        "timezone": window.timezone,
        "begins": _moment(state.period.start_ms) if state.period.end_ms else None,
        "ends": _moment(state.period.end_ms),
        "settled": None if state.lost else amount(state.settled),
        "reserved": None if state.lost else amount(state.reserved),
        "limit": amount(window.limit),
        "remaining": amount(room),
        "thresholds": list(window.thresholds),
        "shadow": not window.enforced,
        "counted": not state.lost,
    }


def _shown(value: int, window: WindowSpec) -> str:
    from router.records.record_types import format_usd

    return format_usd(value) if window.unit == "usd" else str(value)


def _plain(value: Any) -> str:
    from router.cli.tables import shown

    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(str(value))


def _moment(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return f"{datetime.fromtimestamp(at_ms // 1000, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
