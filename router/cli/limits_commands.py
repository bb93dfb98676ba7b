"""``routerctl limits``: shows rate limits as Redis has them, and fills one up again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import click

from router.breaker import Unavailable
from router.cli.budgets.ledger_session import redis_client
from router.cli.operator_audit import OperatorAuditLog
from router.cli.options import Noun, output_option
from router.cli.output import CannotFindOut, Column, count, print_rows
from router.config.document import KeyRecord, Organization
from router.config.settings import Settings, load_settings
from router.config.state.state_reader import StateReader
from router.config.state.state_writer import StateWriter
from router.limits.configured import all_rate_specs, default_rate_limit
from router.limits.rates.decision import MICRO, BucketSpec, LimitStatus, SlotSpec
from router.limits.rates.limiter import RateLimiter
from router.limits.redis_keys import tag
from router.redis.client import RedisClient

_TIMEOUT_S: Final = 2.0
_COLUMNS: Final = (
    Column("key"),
    Column("model"),
    Column("name"),
    Column("unit"),
    Column("limit", show=count, align="right"),
    Column("remaining", show=count, align="right"),
    Column("running", show=count, align="right"),
    Column("wait_s", show=count, align="right"),
    Column("full_in_s", show=count, align="right"),
    Column("shadow"),
)
_organization = click.argument("organization", metavar="ORGANIZATION")


@click.group("limits", cls=Noun)
def limits() -> None:
    """Show rate limits and slots as Redis has them, and fill one up again.

    The figures are those that calls are admitted by, in the Redis of RATE_LIMIT_REDIS_ADDR. Budgets
    are shown by `routerctl budgets`.
    """


@limits.command("show", example="routerctl limits show acme --key batch")
@_organization
@click.option("--key", "key_id", metavar="ID", help="Only what holds for calls with this key.")
@output_option()
def show(organization: str, key_id: str | None, output: str) -> None:
    """Show the rate limits of ORGANIZATION, of its keys and of its use of single models.

    RUNNING is what running calls hold: their slots, or the tokens that were estimated for them.
    WAIT S is how long the next call of one token waits.
    """
    settings = load_settings()
    configured = _configured(settings, organization, key_id)
    with _redis(settings) as client:
        rows = [_facts(organization, found) for found in _read(client, configured)]
    print_rows(output, _COLUMNS, rows, empty="no rate limits")


@limits.command("reset", example="routerctl limits reset acme org-tokens --reason 'wrong estimate'")
@click.option("--reason", required=True, help="Why; the audit trail keeps it.")
@click.option("--key", "key_id", metavar="ID", help="The limit is that of this key.")
@click.option("--model", "model_id", metavar="ID", help="The limit is that for this model.")
@_organization
@click.argument("name", metavar="NAME")
def reset(
    organization: str, name: str, key_id: str | None, model_id: str | None, reason: str
) -> None:
    """Fill NAME of ORGANIZATION up, such as `org-tokens`, or free all its slots.

    What running calls hold of it is forgotten, and their ends change nothing.
    """
    if not reason.strip():
        raise click.BadParameter("must say something", param_hint="--reason")
    settings = load_settings()
    configured = _configured(settings, organization, key_id)
    wanted = (name, key_id or model_id or "")
    with _redis(settings) as client:
        for found in _read(client, configured):
            subject = "".join(found.spec.parts)
            if (found.spec.name, subject) == wanted:
                break
        else:
            raise click.ClickException(_unknown(organization, name, key_id, model_id))
        remaining = found.status.remaining
        log = OperatorAuditLog(settings)
        log.note_rate_limit_reset(organization, name, subject, reason=reason, remaining=remaining)
        keys = found.redis_keys(organization)
        client.command("DEL", *keys, key=keys[0])
    click.echo(f"{name}: remaining {count(remaining)} -> {count(found.status.limit)}")


class _Configured(NamedTuple):
    """An organization and those of its keys that are asked for."""

    organization: Organization
    keys: list[KeyRecord]
    settings: Settings


class _Found(NamedTuple):
    """A limit, how it stands, and what running calls hold of it."""

    spec: BucketSpec | SlotSpec
    status: LimitStatus
    running: int | None

    def redis_keys(self, organization_id: str) -> list[str]:
        """All that Redis has of it."""
        names = [self.spec.suffix]
        if isinstance(self.spec, BucketSpec) and self.spec.leased:
            names.append(self.spec.estimates_suffix)
        return [tag(organization_id) + name for name in names]


def _configured(settings: Settings, organization_id: str, key_id: str | None) -> _Configured:
    reader = StateReader(settings.state_dir)
    try:
        organizations = reader.document().organizations
    finally:
        reader.close()
    if organization_id not in organizations:
        raise click.ClickException(f"no organization {organization_id!r}")
    stored = StateWriter(settings.state_dir).list_keys()
    keys = [key for key in stored if key.organization_id == organization_id]
    if key_id is not None:
        keys = [key for key in keys if key.id == key_id]
        if not keys:
            raise click.ClickException(f"organization {organization_id!r} has no key {key_id!r}")
    return _Configured(organizations[organization_id], keys, settings)


@contextmanager
def _redis(settings: Settings) -> Iterator[RedisClient]:
    timeout_s = max(_TIMEOUT_S, settings.redis_timeout_s)
    with redis_client(settings, timeout_s=timeout_s) as client:
        try:
            yield client
        except Unavailable as error:
            raise CannotFindOut(f"no answer from {client.address} ({error})") from None


def _read(client: RedisClient, configured: _Configured) -> Iterator[_Found]:
    """The limits that are set; few at a time, since an organization may have many keys."""
    organization, default = configured.organization, default_rate_limit(configured.settings)
    specs = all_rate_specs(organization, configured.keys, default=default, tokens=1)
    limiter = RateLimiter(client)
    each: list[BucketSpec | SlotSpec] = [one for one in specs.buckets if one.rate_per_s is not None]
    each += [one for one in specs.slots if one.limit is not None]
    for spec in each:
        buckets = [spec] if isinstance(spec, BucketSpec) else []
        slots = [spec] if isinstance(spec, SlotSpec) else []
        [status] = limiter.peek(organization.id, buckets, slots).statuses
        yield _Found(spec, status, _running(client, organization.id, spec, status))


def _running(
    client: RedisClient, organization_id: str, spec: BucketSpec | SlotSpec, status: LimitStatus
) -> int | None:
    """Slots in use, or the tokens of the estimates whose leases have not expired."""
    if isinstance(spec, SlotSpec):
        return status.limit - status.remaining
    if not spec.leased:
        return None
    key = tag(organization_id) + spec.estimates_suffix
    now: Any = client.command("TIME", key=key)
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    members: Any = client.command("ZRANGEBYSCORE", key, f"({now_ms}", "+inf", key=key)
    return sum([int(member.rpartition(b"|")[2]) for member in members]) // MICRO


def _facts(organization_id: str, found: _Found) -> dict[str, Any]:
    spec, status = found.spec, found.status
    subject = "".join(spec.parts) or None
    return {
        "organization": organization_id,
        "key": subject if status.scope == "key" else None,
        "model": subject if status.scope == "model" else None,
        "name": status.name,
        "unit": status.unit,
        "limit": status.limit,
        "per_second": spec.rate_per_s if isinstance(spec, BucketSpec) else None,
        "remaining": status.remaining,
        "running": found.running,
        "wait_s": 0 if status.passed else status.retry_after_s,
        "full_in_s": status.reset_after_s if isinstance(spec, BucketSpec) else None,
        "shadow": not status.enforced,
    }


def _unknown(organization_id: str, name: str, key_id: str | None, model_id: str | None) -> str:
    whose = f"organization {organization_id!r}"
    if key_id is not None:
        whose = f"key {key_id!r}"
    elif model_id is not None:
        whose = f"model {model_id!r} of organization {organization_id!r}"
    return f"{whose} has no limit {name!r}: see routerctl limits show {organization_id}"
