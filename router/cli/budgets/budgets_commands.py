"""``routerctl budgets``: shows the counters that calls are admitted by, and corrects them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple, TypeVar

import click

from router.cli.budgets.budget_corrections import Correction, make_correction, parse_amount
from router.cli.budgets.budget_rebuilds import rebuild_windows
from router.cli.budgets.ledger_session import ledger_session
from router.cli.options import Noun, output_option
from router.cli.output import Column, count, print_facts, print_rows
from router.config.settings import Settings, load_settings
from router.config.state.state_reader import StateReader
from router.config.state.state_writer import StateWriter
from router.limits.budgets.windows import WindowSpec, WindowState
from router.limits.configured import window_specs
from router.records.record_types import format_usd

Function = TypeVar("Function", bound=Callable[..., Any])

_COLUMNS: Final = (
    Column("organization"),
    Column("key"),
    Column("budget"),
    Column("period"),
    Column("ends", show=lambda value: value or "never"),
    Column("shadow"),
    Column("unit"),
    Column("settled", show=count, align="point"),
    Column("reserved", show=count, align="point"),
    Column("limit", show=lambda value: "none" if value is None else count(value), align="point"),
)
_ALL_COLUMNS: Final = (
    *_COLUMNS,
    *map(Column, ("timezone", "begins", "remaining", "thresholds", "counted")),
)
_REBUILT_COLUMNS: Final = (
    *map(Column, ("organization", "key", "budget", "period", "unit")),
    Column("before", show=count, align="point"),
    Column("settled", show=count, align="point"),
    Column("reserved", show=count, align="point"),
)
_organization = click.argument("organization", metavar="ORGANIZATION")


@click.group("budgets", cls=Noun)
def budgets() -> None:
    """Show what is settled and reserved of budgets and quotas, and correct it by hand.

    The figures are those that calls are admitted by, in the Redis of RATE_LIMIT_REDIS_ADDR. Where a
    budget service keeps the budgets, run this where it runs.
    """


@budgets.command(
    "list",
    example="routerctl budgets list --organization acme",
)
@click.option("--organization", metavar="ID", help="Of this one only.")
@output_option()
def list_budgets(organization: str | None, output: str) -> None:
    """List the budgets of all organizations and of their keys."""
    settings = load_settings()
    configured = _configured(settings, organization)
    with ledger_session(settings) as session:
        rows = [
            _facts(one.organization_id, state)
            for one in configured
            for state in session.ledger.read(one.organization_id, one.windows)
        ]
    print_rows(output, _COLUMNS, rows, empty="no budgets")
    if output == "table" and not all(row["counted"] for row in rows):
        click.echo("- is not counted yet: the next call counts what the records have", err=True)


@budgets.command(
    "show",
    example="routerctl budgets show acme --key batch",
)
@_organization
@click.option("--key", "key_id", metavar="ID", help="Only what holds for calls with this key.")
@output_option()
def show(organization: str, key_id: str | None, output: str) -> None:
    """Show everything about the budgets of an organization, or of calls with one of its keys."""
    settings = load_settings()
    windows = _windows(settings, organization, key_id)
    if key_id is not None:
        windows = [window for window in windows if window.subject in ("", key_id)]
    with ledger_session(settings) as session:
        rows = [_facts(organization, state) for state in session.ledger.read(organization, windows)]
    if output != "table":
        print_rows(output, _ALL_COLUMNS, rows)
        return
    for number, row in enumerate(rows):
        if number:
            click.echo()
        print_facts(output, {name: value for name, value in row.items() if value is not None})


@budgets.command("rebuild", example="routerctl budgets rebuild --organization acme")
@click.option("--organization", metavar="ID", help="Of this one only.")
@click.option("--only-lost", is_flag=True, help="Leave alone what is counted already.")
@output_option()
def rebuild(organization: str | None, only_lost: bool, output: str) -> None:
    """Make the counters anew from the records and the corrections of their periods.

    Calls go on meanwhile, and what they have reserved stays reserved. For after a restore of Redis
    from an old copy, or before the first call after it was emptied. Shows what was settled before
    and is now.
    """
    settings = load_settings()
    configured = [(one.organization_id, one.windows) for one in _configured(settings, organization)]
    rows = []
    for organization_id, (before, after) in rebuild_windows(
        settings, configured, only_lost=only_lost
    ):
        was = _facts(organization_id, before)["settled"]
        rows.append({**_facts(organization_id, after), "before": was})
    print_rows(output, _REBUILT_COLUMNS, rows, empty="no budgets to rebuild")


def _correction(command: Function) -> Function:
    """The arguments that both corrections have."""
    for option in (
        click.option(
            "--correction-id",
            metavar="ID",
            help="Counts once, however often it is given within 7 days; default: a new one.",
        ),
        click.option("--reason", required=True, help="Why; the audit trail keeps it."),
        click.option("--key", "key_id", metavar="ID", help="The budget is that of this key."),
        click.argument("budget", metavar="BUDGET"),
        _organization,
    ):
        command = option(command)
    return command


@budgets.command(
    "adjust",
    example="routerctl budgets adjust acme spend --amount -12.50 --reason 'refund'",
)
@_correction
@click.option(
    "--amount",
    required=True,
    metavar="AMOUNT",
    help="What to add to what is settled; negative takes off. USD, tokens or requests.",
)
def adjust(organization: str, budget: str, key_id: str | None, amount: str, **why: Any) -> None:
    """Add to what BUDGET of ORGANIZATION has settled in this period, or take off, not below 0."""
    settings = load_settings()
    window = _window(settings, organization, budget, key_id)
    _correct(settings, organization, window, parse_amount(amount, window.unit), **why)


@budgets.command("reset", example="routerctl budgets reset acme spend --reason 'new contract'")
@_correction
def reset(organization: str, budget: str, key_id: str | None, **why: Any) -> None:
    """Begin this period of BUDGET of ORGANIZATION again with 0 settled.

    What running calls have reserved stays reserved.
    """
    settings = load_settings()
    window = _window(settings, organization, budget, key_id)
    _correct(settings, organization, window, None, **why)


class _Configured(NamedTuple):
    """The windows of an organization and of all its keys."""

    organization_id: str
    windows: list[WindowSpec]
    key_ids: set[str]


def _configured(settings: Settings, only_id: str | None) -> list[_Configured]:
    """What the applied document and the stored keys say, of one organization or of all."""
    reader = StateReader(settings.state_dir)
    try:
        organizations = reader.document().organizations
    finally:
        reader.close()
    if only_id is not None and only_id not in organizations:
        raise click.ClickException(f"no organization {only_id!r}")
    all_keys = StateWriter(settings.state_dir).list_keys()
    found = []
    for organization_id in sorted(organizations) if only_id is None else [only_id]:
        organization = organizations[organization_id]
        windows = list(window_specs(organization, None))
        own = len(windows)
        keys = [key for key in all_keys if key.organization_id == organization_id]
        for key in keys:
            windows += window_specs(organization, key)[own:]
        found.append(_Configured(organization_id, windows, {key.id for key in keys}))
    return found


def _windows(settings: Settings, organization_id: str, key_id: str | None) -> list[WindowSpec]:
    """Of an organization; a key without budgets is no mistake, an unknown one is."""
    [found] = _configured(settings, organization_id)
    if key_id is not None and key_id not in found.key_ids:
        raise click.ClickException(f"organization {organization_id!r} has no key {key_id!r}")
    return found.windows


def _window(
    settings: Settings, organization_id: str, budget: str, key_id: str | None
) -> WindowSpec:
    for window in _windows(settings, organization_id, key_id):
        if (window.name, window.subject) == (budget, key_id or ""):
            return window
    whose = f"organization {organization_id!r}" if key_id is None else f"key {key_id!r}"
    raise click.ClickException(f"{whose} has no budget {budget!r}")


def _correct(
    settings: Settings,
    organization_id: str,
    window: WindowSpec,
    amount: int | None,
    *,
    reason: str,
    correction_id: str | None,
) -> None:
    if not reason.strip():
        raise click.BadParameter("must say something", param_hint="--reason")
    made_id = correction_id or str(uuid.uuid4())
    done = make_correction(settings, Correction(organization_id, window, amount, reason, made_id))
    if done is None:
        click.echo(f"correction {made_id} was made before: nothing changed")
        return
    before, after = (_shown_amount(value, window) for value in (done.before, done.after))
    click.echo(f"{window.name}: settled {before} -> {after} (correction {made_id})")


def _facts(organization_id: str, state: WindowState) -> dict[str, Any]:
    """One budget; amounts are exact decimal text in USD, else whole numbers."""
    window = state.window

    def amount(value: int | None) -> str | int | None:
        return value if value is None or window.unit != "usd" else _shown_amount(value, window)

    used = None if state.lost else state.settled + state.reserved
    room = None if used is None or window.limit is None else max(0, window.limit - used)
    return {
        "organization": organization_id,
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


def _shown_amount(value: int, window: WindowSpec) -> str:
    return format_usd(value) if window.unit == "usd" else str(value)


def _moment(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return f"{datetime.fromtimestamp(at_ms // 1000, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
