"""``routerctl audit``: the audit trail as a file that proves itself, its check, its retention."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from router.cli.file_errors import files_explained
from router.cli.time_range import check_period, moment
from router.cli.trail_pepper import OTHER_PEPPER, is_stored_pepper, trail_pepper
from router.clock import Clock
from router.config.faults import PepperError
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.exports.audit_export import Position, Verdict, Verification
    from router.exports.audit_selection import SelectionVerification
    from router.store.record_store import RecordStore

    Check = Verification | SelectionVerification

_SINK: Final = "store"
_UNSIGNED: Final = "is not what was signed"
_IN_USE: Final = (
    "the agent removes what is older than ROUTER_AUDIT_RETENTION_DAYS itself;"
    " end the router to do it by hand"
)


@click.group("audit")
def audit() -> None:
    """Export the audit trail, verify it, or remove its oldest part.

    All of them need the pepper of the router whose trail it is.
    """


@audit.command("export")
@click.option(
    "--from",
    "from_s",
    callback=moment,
    metavar="TIME",
    help="Events from this moment or day (UTC) on; default: the oldest.",
)
@click.option(
    "--to", "to_s", callback=moment, metavar="TIME", help="Events before it; default: all."
)
@click.option("--organization", metavar="ID", help="A selection: the events of this organization.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Appears when it is complete; replaced if it is there. Default: standard output.",
)
def export(
    from_s: float | None, to_s: float | None, organization: str | None, output: Path | None
) -> None:
    """Write audit events as JSON Lines; the last line is the signed head.

    Checks what it writes and exits with 1 if the trail is damaged; the file is written all the
    same, and says so to whoever verifies it.
    """
    from router.records.audit_chain import derive_audit_key

    check_period(from_s, to_s)
    settings = load_settings()
    pepper = trail_pepper(settings)
    key = derive_audit_key(pepper)
    with _explained(), _store(settings) as store, _destination(output) as file:
        lines = _lines(store, settings, key, (from_s, to_s), organization)
        with closing(lines):
            check, verdict = _copy(lines, key, file)
    verdict = _doubting_pepper(verdict, settings, pepper)
    click.echo(_counts(verdict, check.facts), err=True)
    if not verdict.ok:
        raise click.ClickException(f"the trail is damaged: {_where(verdict.position, verdict)}")


@audit.command("verify")
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print.",
)
def verify(file: IO[bytes] | None, output: str) -> None:
    """Check an exported FILE ('-': standard input), or without one the trail in the record store.

    In the store it also checks that each event is filed as what it is, so that it can be found.
    Names the first position that is wrong and exits with 1 if there is one.
    """
    from router.config.pepper import load_pepper
    from router.records.audit_chain import derive_audit_key

    settings = load_settings()
    # A file may have been signed with an older pepper than that of the keys.
    pepper = trail_pepper(settings) if file is None else load_pepper(settings, create=False)
    key = derive_audit_key(pepper)
    if file is not None:
        check, verdict = _copy(file, key, None)
    else:
        with _explained(), _store(settings) as store:
            lines = _lines(store, settings, key, (None, None), None)
            with closing(lines):
                check, verdict = _copy(lines, key, None)
            if verdict.ok:
                verdict = _with_columns(store, verdict)
    verdict = _doubting_pepper(verdict, settings, pepper)
    in_store = file is None
    if output == "json":
        click.echo(json.dumps(_plain(verdict, check.facts, in_store=in_store), indent=2))
    elif verdict.ok:
        click.echo(f"whole: {_counts(verdict, check.facts)}")
    else:
        click.echo(_where(verdict.position, verdict, in_store=in_store))
    if not verdict.ok:
        raise click.exceptions.Exit(1)


@audit.command("prune")
@click.option(
    "--before",
    "before_s",
    callback=moment,
    required=True,
    metavar="TIME",
    help="A moment, or a day, which begins at 00:00 UTC.",
)
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would be done.")
def prune(before_s: float, yes: bool) -> None:
    """Remove the audit events from before TIME and sign where each chain now begins.

    This is what the agent does every minute with ROUTER_AUDIT_RETENTION_DAYS. Only beginnings of
    chains are removed; what remains still verifies. Usage records stay.
    """
    from router.records.audit_chain import derive_audit_key

    if before_s > Clock().now_s():
        raise click.BadParameter("lies in the future", param_hint="--before")
    settings = load_settings()
    key = derive_audit_key(trail_pepper(settings))
    with _explained():
        with _store(settings) as store:
            counts = _prunable(store, before_s, key)
        total = sum(counts.values())
        if not yes:
            click.echo(f"would remove {total} events of {len(counts)} writers; --yes does it")
            return
        if total:
            with _store(settings, audit_key=key) as store:
                total = store.prune(before_s)
    click.echo(f"removed {total} events of {len(counts)} writers")


def _store(settings: Settings, *, audit_key: bytes | None = None) -> RecordStore:
    """For reading, or with the key for writing."""
    from router.store.record_store import RecordStore

    return RecordStore(settings.store_url, read_only=audit_key is None, audit_key=audit_key)


@contextmanager
def _explained() -> Iterator[None]:
    from router.store.store_errors import StoreError, StoreInUse

    try:
        with files_explained():
            yield
    except StoreInUse as error:
        raise click.ClickException(f"{error}; {_IN_USE}") from None
    except StoreError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _destination(path: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that gets its name when it is whole and on the disk."""
    if path is None:
        yield sys.stdout.buffer
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _lines(
    store: RecordStore,
    settings: Settings,
    key: bytes,
    period: tuple[float | None, float | None],
    organization: str | None,
) -> Generator[bytes, None, None]:
    """The lines of an export, read page by page while they are taken."""
    from router.exports.audit_export import Stock, export_lines
    from router.exports.audit_selection import Selection, selection_lines
    from router.store.trail import survey

    now_s = Clock().now_s()
    complete_to_s = _complete_to(settings, now_s)
    from_s, to_s = period
    if organization is None:
        with store.audit_trail(from_s, to_s) as trail:
            # Of a whole trail, all that a survey finds is found by following its chains.
            is_whole = from_s is None and to_s is None
            faults = [] if is_whole else list(survey(trail.connection, key))
            yield from export_lines(trail, key, now_s, Stock(complete_to_s, faults))
        return
    with store.audit_trail() as trail:
        stock = Stock(complete_to_s, list(survey(trail.connection, key)))
    selection = Selection(organization, from_s, now_s if to_s is None else to_s)
    pages = store.read_records("audit", organization, from_s=from_s, to_s=selection.to_s)
    events = (line for page in pages for _, line in page)
    yield from selection_lines(events, selection, key, now_s, stock)


def _complete_to(settings: Settings, now_s: float) -> float | None:
    """Up to when nothing of this host is still in the spool; ``None`` if it has none."""
    from router.exports.audit_backlog import complete_to
    from router.spool.checkpoints import Checkpoints, checkpoint_path
    from router.spool.reader import SpoolReader

    if not settings.spool_dir.is_dir():
        return None
    stored = Checkpoints(checkpoint_path(settings.data_dir, _SINK)).load()
    try:
        return complete_to(SpoolReader(settings.spool_dir, observe=True), stored, now_s)
    except OSError:
        return None


def _copy(lines: Iterable[bytes], key: bytes, file: IO[bytes] | None) -> tuple[Check, Verdict]:
    """Check the lines and, if there is a file, write them."""
    from router.exports.audit_export import Verification
    from router.exports.audit_selection import verification_of

    check: Check | None = None
    for line in lines:
        if check is None:
            check = verification_of(line, key)
        check.take(line)
        if file is not None:
            file.write(line)
    check = check or Verification(key)
    return check, check.verdict()


def _with_columns(store: RecordStore, verdict: Verdict) -> Verdict:
    """The verdict on whole chains, unless an event is filed as something else."""
    from router.exports.audit_export import Position
    from router.store.trail import misplaced

    with store.audit_trail() as trail, closing(misplaced(trail.connection)) as faults:
        fault = next(faults, None)
    if fault is None:
        return verdict
    place = Position(0, fault.writer_id, fault.sequence)
    return replace(verdict, ok=False, position=place, reason=fault.reason)


def _prunable(store: RecordStore, before_s: float, key: bytes) -> dict[str, int]:
    """What could be removed; raises :class:`PepperError` for a key that signed nothing there."""
    from router.records.audit_chain import is_signed
    from router.store.trail import prunable

    with store.audit_trail() as trail:
        heads = [marks.head for marks in trail.writers if marks.head is not None]
        if heads and not any(is_signed(head, key) for head in heads):
            raise PepperError([OTHER_PEPPER])
        return prunable(trail.connection, before_s)


def _doubting_pepper(verdict: Verdict, settings: Settings, pepper: bytes) -> Verdict:
    """The verdict; of a signature that is not ours it says that the pepper may be to blame."""
    if verdict.reason is None or not verdict.reason.endswith(_UNSIGNED):
        return verdict
    is_ours = is_stored_pepper(settings, pepper)
    if is_ours:
        return verdict
    doubt = "or the pepper is another one" if is_ours is None else OTHER_PEPPER
    return replace(verdict, reason=f"{verdict.reason}, {doubt}")


def _counts(verdict: Verdict, facts: dict[str, Any] | None) -> str:
    """What was read, what part of the trail it is, and how new it is."""
    parts = [f"{verdict.events} events of {verdict.writers} writers"]
    if facts is not None:
        about = facts.get("selection", facts)
        if "selection" in facts:
            parts.append(f"a selection of organization {about['organization_id']}")
        parts += [f"{name} {about[name]}" for name in ("from", "to") if about[name] is not None]
        until = facts["complete_to"]
        if until is None:
            parts.append("no spool told up to when it is complete")
        else:
            parts.append(f"complete up to {until}")
    return ", ".join(parts)


def _where(position: Position | None, verdict: Verdict, *, in_store: bool = False) -> str:
    """The first position that is wrong, and what is wrong there."""
    if position is None or position.writer_id is None or not in_store:
        return f"{position}: {verdict.reason}"
    return f"writer {position.writer_id}, sequence {position.sequence}: {verdict.reason}"


def _plain(verdict: Verdict, facts: dict[str, Any] | None, *, in_store: bool) -> dict[str, Any]:
    position = verdict.position
    found: dict[str, Any] = {
        "ok": verdict.ok,
        "checked": "store" if in_store else "file",
        "events": verdict.events,
        "writers": verdict.writers,
        "complete_to": None if facts is None else facts["complete_to"],
        "selection": None if facts is None else facts.get("selection"),
        "reason": verdict.reason,
        "line": None if position is None or in_store else position.line,
        "writer_id": None if position is None else position.writer_id,
        "sequence": None if position is None else position.sequence,
    }
    return found
