"""``check-config``, ``apply`` and ``export``: the document's way in and out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli.journal import OperatorJournal, journal_of
from router.config.faults import ConfigurationError
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.config.diff import Change, FieldChange
    from router.config.loader import LoadedDocument
    from router.config.state.access import StateWriter

_MARKS: Final = {"added": ("+", "green"), "changed": ("~", "yellow"), "removed": ("-", "red")}
_NAMED_IN_TITLE: Final = {"policies": ("organization", "model")}
_SHOWN_HASH: Final = 12
_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.command("check-config")
@_file
def check_config(file: Path) -> None:
    """Validate FILE as 'apply' would and report every mistake, one per line.

    Changes nothing. Exits with 1 if there is a mistake.
    """
    settings = load_settings()
    # Only demo secrets are hashed, and a check does so for form's sake.
    click.echo(f"{file} is valid: {_summary(_load(file, settings, lambda: b''))}")


@click.command("apply")
@_file
@click.option("--dry-run", is_flag=True, help="Show what would change and change nothing.")
@click.option("--prune-keys", is_flag=True, help="Remove stored keys that FILE does not list.")
@click.option("--reactivate-keys", is_flag=True, help="Let FILE make revoked keys valid again.")
def apply(file: Path, dry_run: bool, prune_keys: bool, reactivate_keys: bool) -> None:
    """Make FILE the configuration, all of it or, if it has a mistake, nothing.

    Shows what changes. Running workers follow within a second.
    """
    from router.config.state.access import StateWriter

    settings = load_settings()
    rules = {"prune_keys": prune_keys, "reactivate_keys": reactivate_keys}
    with journal_of(settings) as journal:
        writer = StateWriter(settings.state_dir, journal=journal.note)
        with _refusals_noted(file, None if dry_run else journal):
            loaded = _load(file, settings, lambda: _demo_pepper(settings, writer, dry_run=dry_run))
            fingerprint = _fingerprint(settings) if loaded.keys else None
            changes = writer.changes(loaded, **rules, fingerprint=fingerprint)
        _show(changes)
        if dry_run:
            click.echo("dry run, nothing was written" if changes else "no changes")
            return
        before = writer.revision()
        after = writer.apply(loaded, **rules, fingerprint=fingerprint)
    if not changes and before == after:
        click.echo(f"no changes, revision {after}")
    else:
        click.echo(f"applied {file}, revision {after}")


@click.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="How to write it.",
)
def export(form: str) -> None:
    """Print the configuration as a document that 'apply' takes.

    Keys are there as hashes; no secret is stored, so none can be shown.
    """
    from router.config.state.access import StateWriter
    from router.config.state.plain import dump_yaml

    plain = StateWriter(load_settings().state_dir).export()
    if form == "json":
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        click.echo(dump_yaml(plain), nl=False)


@contextmanager
def _refusals_noted(file: Path, journal: OperatorJournal | None) -> Iterator[None]:
    """A document that is not applied because of its mistakes leaves a trace."""
    try:
        yield
    except ConfigurationError as refused:
        if journal is not None:
            try:
                journal.reject(file, refused.problems)
            except ConfigurationError as unwritten:
                click.echo("\n".join(unwritten.problems), err=True)
        raise


def _load(file: Path, settings: Settings, pepper: Callable[[], bytes]) -> LoadedDocument:
    from router.config.loader import load_file

    return load_file(file, demo=settings.demo, pepper=pepper)


def _demo_pepper(settings: Settings, writer: StateWriter, *, dry_run: bool) -> bytes:
    """What demo secrets are hashed with; a dry run makes none and does without."""
    from router.config.pepper import has_pepper, load_pepper

    if dry_run and not has_pepper(settings):
        return b""
    return load_pepper(settings, create=writer.pepper_fingerprint() is None)


def _fingerprint(settings: Settings) -> str | None:
    """Of the pepper that is there; hashes may also be applied before their pepper arrives."""
    from router.config.pepper import has_pepper, load_pepper, pepper_fingerprint

    if not has_pepper(settings):
        return None
    return pepper_fingerprint(load_pepper(settings, create=False))


def _summary(loaded: LoadedDocument) -> str:
    counts = {
        "organization": len(loaded.organizations),
        "key": len(loaded.keys),
        "model": len(loaded.models),
        "backend": len(loaded.backends),
    }
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items()]
    policies = len(loaded.policies)
    return ", ".join([*parts, f"{policies} polic{'y' if policies == 1 else 'ies'}"])


def _show(changes: list[Change]) -> None:
    """Print changes; click drops the colours where no terminal shows them."""
    for change in changes:
        mark, colour = _MARKS[change.verb]
        click.secho(f"{mark} {change.section} {change.entity}", fg=colour)
        if change.verb != "removed":
            for field in change.fields:
                if field.path not in _NAMED_IN_TITLE.get(change.section, ("id",)):
                    click.echo(f"    {_field(field)}")


def _field(field: FieldChange) -> str:
    from router.config.diff import ABSENT

    old, new = (_value(field.path, side) for side in (field.old, field.new))
    if field.old is ABSENT:
        return f"{field.path}: {new}"
    return f"{field.path}: {old} -> {'(gone)' if field.new is ABSENT else new}"


def _value(path: str, value: Any) -> str:
    if path == "hash" and isinstance(value, str):
        return f"{value[:_SHOWN_HASH]}..."
    return json.dumps(value, ensure_ascii=False, default=str)
