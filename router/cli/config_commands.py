"""``routerctl config``: the document's way in and out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from router.cli.operator_audit import OperatorAuditLog, operator_audit_log, without_secret
from router.cli.options import Noun, output_option, warn_deprecated
from router.cli.output import end_with_difference, print_csv, print_json
from router.cli.prices.price_warnings import price_warnings
from router.config.config_errors import ConfigurationError, DocumentError
from router.config.diff import ABSENT, Change, FieldChange
from router.config.document import LoadedDocument
from router.config.lease_rule import outlived_leases
from router.config.loader import load_file
from router.config.pepper import has_pepper, load_pepper, pepper_fingerprint
from router.config.serialized import dump_yaml
from router.config.settings import Settings, load_settings
from router.config.state.state_writer import StateWriter

Function = TypeVar("Function", bound=Callable[..., Any])

_MARKS: Final = {"added": ("+", "green"), "changed": ("~", "yellow"), "removed": ("-", "red")}
_NAMED_IN_TITLE: Final = {"policies": ("organization", "model")}
_CHANGE_COLUMNS: Final = ("change", "section", "entity", "field", "old", "new")

_document = click.argument(
    "document", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="DOCUMENT"
)


def _key_rules(command: Function) -> Function:
    prune = click.option("--prune-keys", is_flag=True, help="Remove keys that are not listed.")
    reactivate = click.option(
        "--reactivate-keys", is_flag=True, help="Let the document make revoked keys valid again."
    )
    return prune(reactivate(command))


@click.group("config", cls=Noun)
def config() -> None:
    """Validate, compare, apply or export the configuration document."""


@config.command("validate", example="routerctl config validate router.yaml")
@_document
def validate(document: Path) -> None:
    """Report every mistake of DOCUMENT, one a line, as 'apply' would; change nothing.

    Exits with 1 if there is a mistake, or if calls may take as long as ROUTER_LEASE: so run it
    with the router's environment. Warns of classes of usage without a price, and of prices that
    are older than the catalogue's, where that is installed (see 'prices --help').
    """
    # Only demo secrets are hashed, and validating needs no true hash.
    settings = load_settings()
    loaded = _load(document, settings, lambda: b"")
    problems = outlived_leases(settings.lease_s, loaded.backends)
    if problems:
        raise DocumentError(problems)
    click.echo(f"{document} is valid: {_summary(loaded)}")
    for warning in price_warnings(loaded):
        click.echo(f"warning: {warning}", err=True)


@config.command("diff", example="routerctl config diff router.yaml")
@_document
@_key_rules
@output_option()
def diff(document: Path, prune_keys: bool, reactivate_keys: bool, output: str) -> None:
    """Show what applying DOCUMENT would change, and change nothing.

    Exits with 0 if nothing would change and with 1 if something would. JSON and CSV have a row for
    each field.
    """
    changes = _planned_changes(document, prune_keys=prune_keys, reactivate_keys=reactivate_keys)
    if output == "json":
        print_json(_change_rows(changes))
    elif output == "csv":
        print_csv(_CHANGE_COLUMNS, _change_rows(changes))
    elif changes:
        _print_changes(changes)
    else:
        click.echo("no changes")
    if changes:
        end_with_difference()


@config.command("apply", example="routerctl config apply router.yaml")
@_document
@click.option("--dry-run", is_flag=True, hidden=True)
@_key_rules
def apply(document: Path, dry_run: bool, prune_keys: bool, reactivate_keys: bool) -> None:
    """Make DOCUMENT the configuration: all of it or, if it has a mistake, nothing.

    Shows what changes. Running workers follow within a second. Stored keys that are not listed
    stay, and revoked keys stay revoked.
    """
    rules = {"prune_keys": prune_keys, "reactivate_keys": reactivate_keys}
    if dry_run:
        warn_deprecated("routerctl config apply --dry-run", "routerctl config diff")
        changes = _planned_changes(document, **rules)
        _print_changes(changes)
        click.echo("dry run, nothing was written" if changes else "no changes")
        return
    settings = load_settings()
    with operator_audit_log(settings) as log:
        writer = StateWriter(settings.state_dir, journal=log.note)
        try:
            loaded = _load(document, settings, lambda: _demo_pepper(settings, writer))
            fingerprint = _fingerprint(settings, loaded)
            changes = writer.changes(loaded, **rules, fingerprint=fingerprint)
            for warning in outlived_leases(settings.lease_s, loaded.backends):
                click.echo(f"warning: {warning}", err=True)
        except ConfigurationError as refusal:
            _note_refusal(log, document, refusal)
            raise
        _print_changes(changes)
        before = writer.revision()
        after = writer.apply(loaded, **rules, fingerprint=fingerprint)
    changed = changes or before != after
    click.echo(f"{f'applied {document}' if changed else 'no changes'}, revision {after}")


@config.command(
    "export",
    old_options={"--format": "--output"},
    example="routerctl config export > backup.yaml",
)
@output_option("yaml", "json")
def export(output: str) -> None:
    """Print the configuration as a document that 'apply' takes.

    Keys are printed as hashes. No secret is stored, so none can be shown.
    """
    plain = StateWriter(load_settings().state_dir).export()
    if output == "json":
        print_json(plain)
    else:
        click.echo(dump_yaml(plain), nl=False)


def _planned_changes(document: Path, **rules: bool) -> list[Change]:
    settings = load_settings()
    writer = StateWriter(settings.state_dir)
    loaded = _load(
        document,
        settings,
        # A plan makes no pepper; without one, demo secrets are hashed with nothing.
        lambda: _demo_pepper(settings, writer) if has_pepper(settings) else b"",
    )
    return writer.changes(loaded, **rules, fingerprint=_fingerprint(settings, loaded))


def _note_refusal(log: OperatorAuditLog, document: Path, refusal: ConfigurationError) -> None:
    """Put the refusal into the audit trail; say so where that is impossible."""
    try:
        log.reject(document, refusal.problems)
    except ConfigurationError as unwritten:
        click.echo("\n".join(unwritten.problems), err=True)


def _load(document: Path, settings: Settings, pepper: Callable[[], bytes]) -> LoadedDocument:
    return load_file(document, demo=settings.demo, pepper=pepper)


def _demo_pepper(settings: Settings, writer: StateWriter) -> bytes:
    """What demo secrets are hashed with."""
    return load_pepper(settings, create=writer.pepper_fingerprint() is None)


def _fingerprint(settings: Settings, loaded: LoadedDocument) -> str | None:
    """Fingerprint of the pepper, if there is one; hashes may be applied before their pepper is."""
    if not loaded.keys or not has_pepper(settings):
        return None
    return pepper_fingerprint(load_pepper(settings, create=False))


def _summary(loaded: LoadedDocument) -> str:
    counts = {
        ("organization", "organizations"): loaded.organizations,
        ("key", "keys"): loaded.keys,
        ("model", "models"): loaded.models,
        ("backend", "backends"): loaded.backends,
        ("policy", "policies"): loaded.policies,
    }
    return ", ".join(f"{len(found)} {names[len(found) != 1]}" for names, found in counts.items())


def _print_changes(changes: list[Change]) -> None:
    """Print changes; click drops the colours where no terminal shows them."""
    for change in changes:
        mark, colour = _MARKS[change.verb]
        click.secho(f"{mark} {change.section} {change.entity}", fg=colour)
        if change.verb != "removed":
            for field in change.fields:
                if field.path not in _NAMED_IN_TITLE.get(change.section, ("id",)):
                    click.echo(f"    {_field_line(field)}")


def _field_line(field: FieldChange) -> str:
    old, new = (
        "(gone)" if side is ABSENT else json.dumps(side, ensure_ascii=False, default=str)
        for side in (without_secret(field.path, field.old), without_secret(field.path, field.new))
    )
    return f"{field.path}: {new}" if field.old is ABSENT else f"{field.path}: {old} -> {new}"


def _change_rows(changes: list[Change]) -> list[dict[str, Any]]:
    rows = []
    for change in changes:
        for field in change.fields:
            sides = [
                None if side is ABSENT else without_secret(field.path, side)
                for side in (field.old, field.new)
            ]
            values = (change.verb, change.section, change.entity, field.path, *sides)
            rows.append(dict(zip(_CHANGE_COLUMNS, values, strict=True)))
    return rows
