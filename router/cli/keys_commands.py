"""``routerctl keys``: API keys are created, listed and revoked here."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import Any, Final

import click

from router.auth.keys import derive_signing_secret, generate_key, hash_key
from router.cli.operator_audit import OperatorAuditLog, operator_audit_log
from router.cli.options import Noun, output_option
from router.cli.output import Column, print_facts, print_json, print_rows, shown
from router.clock import Clock
from router.config.document import DEFAULT_SCOPES, SCOPES, KeyRecord
from router.config.pepper import load_pepper, pepper_fingerprint
from router.config.schema.notation import parse_timestamp
from router.config.serialized import serialize_key
from router.config.settings import Settings, load_settings
from router.config.state.state_writer import StateWriter

_DURATION: Final = re.compile("([1-9][0-9]{0,5})([mhdw])")
_UNIT_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_HASH_TO_COME: Final = "0" * 64
_NOTICE: Final = "The key is shown only now and cannot be shown again: store it at once."
_COLUMNS: Final = (
    Column("id"),
    Column("organization"),
    Column("state", "STATUS"),
    Column("expires_at", "EXPIRES", show=lambda value: value or "never"),
    Column("scopes"),
    Column("models", show=lambda value: "all" if value is None else shown(value)),
    Column("name"),
)


def _duration(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """``90d`` → seconds."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    if match is None:
        raise click.BadParameter("expected a number with m, h, d or w, such as 90d")
    return float(int(match[1]) * _UNIT_S[match[2]])


def _moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """ISO 8601 with a zone → seconds since the epoch."""
    try:
        return None if value is None else parse_timestamp(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group("keys", cls=Noun)
def keys() -> None:
    """Create, list and revoke API keys.

    Running workers look keys up on every call, so a change holds from the next call on.
    """


@keys.command(
    "create",
    example="routerctl keys create --organization acme --expires-in 90d --name 'batch'",
)
@click.option("--organization", required=True, metavar="ID", help="Who pays.")
@click.option("--env", default="live", show_default=True, help="Label within the key: live, test.")
@click.option("--name", default="", help="For people: what the key is for.")
@click.option(
    "--expires-in", callback=_duration, metavar="TIME", help="Such as 90d; units: m, h, d, w."
)
@click.option(
    "--expires-at", callback=_moment, metavar="TIME", help="Such as 2027-01-31T00:00:00Z."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help=f"Repeatable; default: {', '.join(DEFAULT_SCOPES)}.",
)
@click.option("--model", "models", multiple=True, metavar="ID", help="Repeatable; default: all.")
@click.option("--require-signature", is_flag=True, help="Refuse requests that are not signed.")
@click.option("--id", "key_id", metavar="ID", help="Default: a random one.")
@output_option()
def create(
    organization: str,
    env: str,
    name: str,
    expires_in: float | None,
    expires_at: float | None,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    require_signature: bool,
    key_id: str | None,
    output: str,
) -> None:
    """Create a key and print it with its signing secret.

    The key is shown this once: only a keyed hash of it is stored.
    """
    settings = load_settings()
    expiry_s = _expiry(expires_in, expires_at)
    key = _generate(env)
    draft = KeyRecord(
        id=key_id or f"key_{secrets.token_hex(8)}",
        organization_id=organization,
        hash=_HASH_TO_COME,
        name=name,
        expires_at_s=expiry_s,
        scopes=frozenset(scopes or DEFAULT_SCOPES),
        models=frozenset(models) if models else None,
        require_signature=require_signature,
    )
    record, secret = _store(settings, draft, key)
    _print_new(record, key, secret, output)


@keys.command(
    "list",
    example="routerctl keys list -o json",
)
@output_option()
def list_keys(output: str) -> None:
    """List all keys; what is secret about them is not stored."""
    rows = [_facts(record) for record in _writer(load_settings()).list_keys()]
    print_rows(output, _COLUMNS, rows, empty="no keys")


@keys.command("revoke", example="routerctl keys revoke key_0123456789abcdef")
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Revoke a key: every worker refuses it from its next call on."""
    settings = load_settings()
    with operator_audit_log(settings) as log:
        _writer(settings, log).revoke_key(key_id)
    click.echo(f"revoked {key_id}")


@keys.command("signing-secret", example="routerctl keys signing-secret batch")
@click.argument("key_id", metavar="ID")
def signing_secret(key_id: str) -> None:
    """Print the secret with which the holder of a key signs requests."""
    click.echo(find_signing_secret(load_settings(), key_id))


def find_signing_secret(settings: Settings, key_id: str) -> str:
    """Derive the signing secret of a stored key."""
    writer = _writer(settings)
    writer.get_key(key_id)
    pepper = load_pepper(settings, create=False)
    record = writer.get_key(key_id, fingerprint=pepper_fingerprint(pepper))
    return derive_signing_secret(pepper, record.id, record.hash)


def _store(settings: Settings, draft: KeyRecord, key: str) -> tuple[KeyRecord, str]:
    """Store a new key under the pepper, which is made last; returns its record and its secret."""
    with operator_audit_log(settings) as log:
        writer = _writer(settings, log)
        writer.check_new_key(draft)
        # No new pepper is made where keys exist that were made with a lost one.
        pepper = load_pepper(settings, create=writer.pepper_fingerprint() is None)
        record = replace(draft, hash=hash_key(key, pepper).hex())
        writer.put_key(record, overwrite=False, fingerprint=pepper_fingerprint(pepper))
    return record, derive_signing_secret(pepper, record.id, record.hash)


def _writer(settings: Settings, log: OperatorAuditLog | None = None) -> StateWriter:
    return StateWriter(settings.state_dir, journal=None if log is None else log.note)


def _generate(env: str) -> str:
    try:
        return generate_key(env)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--env") from None


def _expiry(expires_in: float | None, expires_at: float | None) -> float | None:
    if expires_in is not None and expires_at is not None:
        raise click.UsageError("--expires-in and --expires-at exclude each other")
    now_s = Clock().now_s()
    if expires_in is not None:
        return float(int(now_s + expires_in))
    if expires_at is not None and expires_at <= now_s:
        raise click.BadParameter("lies in the past", param_hint="--expires-at")
    return expires_at


def _print_new(record: KeyRecord, key: str, secret: str, output: str) -> None:
    facts = _facts(record)
    if output == "json":
        print_json({"key": key, "signing_secret": secret, **facts, "notice": _NOTICE})
        return
    shown_facts = {
        "id": record.id,
        "organization": record.organization_id,
        "expires": facts["expires_at"] or "never",
        "key": key,
        "signing_secret": secret,
    }
    print_facts(output, shown_facts)
    click.echo(f"\n{_NOTICE}", err=True)


def _facts(record: KeyRecord) -> dict[str, Any]:
    """What may be shown of a key; ``state`` is its status, or ``expired``."""
    facts = serialize_key(record)
    del facts["hash"]
    is_expired = record.expires_at_s is not None and record.expires_at_s <= Clock().now_s()
    state = "expired" if is_expired and record.status == "active" else record.status
    return {**facts, "state": f"{state} (demo)" if record.demo else state}
