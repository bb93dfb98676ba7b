"""``routerctl audit``: the audit trail as a file that proves itself, its check, its retention."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from router.cli import output as out
from router.cli.options import Noun, check_period, file_option, moment, output_option
from router.cli.trail_pepper import OTHER_PEPPER, is_stored_pepper, trail_pepper
from router.clock import Clock
from router.config.config_errors import PepperError
from router.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from router.exports.audit_verification import Verdict
    from router.store.record_store import RecordStore

Facts = dict[str, Any]

_SINK: Final = "store"
_IN_USE: Final = (
    "the agent removes what is older than ROUTER_AUDIT_RETENTION_DAYS itself;"
    " end the router to do it by hand"
)


@click.group("audit", cls=Noun)
def audit() -> None:
    """Export the audit trail, verify it, or remove its oldest part.

    All of them need the pepper of the router whose trail it is.
    """


@audit.command(
    "export",
    example="routerctl audit export --from 2026-11-01 --to 2026-12-01 --file november.jsonl",
    old_options={"--output": "--file"},
)
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
@file_option("Appears when it is complete; replaced if it is there. Default: standard output.")
def export(
    from_s: float | None, to_s: float | None, organization: str | None, file: Path | None
) -> None:
    """Write audit events as JSON Lines; the last line is signed.

    Checks what it writes and exits with 1 if the trail is damaged; the file is written all the
    same, and says so to whoever verifies it.
    """
    from router.records.audit_chain import derive_audit_key

    check_period(from_s, to_s)
    settings = load_settings()
    pepper = trail_pepper(settings)
    key = derive_audit_key(pepper)
    with (
        _finding_out(),
        _store(settings) as store,
        _destination(file) as destination,
        closing(_lines(store, settings, key, from_s, to_s, organization)) as lines,
    ):
        facts, verdict = _check(lines, key, destination)
    verdict = _doubting_pepper(verdict, settings, pepper)
    click.echo(_summary(verdict, facts), err=True)
    if not verdict.ok:
        raise click.ClickException(f"the trail is damaged: {verdict.position}: {verdict.reason}")


@audit.command("verify", example="routerctl audit verify november.jsonl")
@click.argument("file", type=click.File("rb"), required=False)
@output_option("table", "json")
def verify(file: IO[bytes] | None, output: str) -> None:
    """Check an exported FILE ('-': standard input), or without one the trail in the record store.

    In the store it also checks that the columns of each event say what the event says, so that it
    can be found. Names the first position that is wrong and exits with 1 if there is one.
    """
    from router.config.pepper import load_pepper
    from router.records.audit_chain import derive_audit_key

    settings = load_settings()
    # A file may have been signed with an older pepper than that of the keys.
    pepper = trail_pepper(settings) if file is None else load_pepper(settings, create=False)
    key = derive_audit_key(pepper)
    with _finding_out():
        if file is not None:
            facts, verdict = _check(file, key)
        else:
            facts, verdict = _check_store(settings, key)
    verdict = _doubting_pepper(verdict, settings, pepper)
    in_store = file is None
    if output == "json":
        out.print_json(_plain(verdict, facts, in_store=in_store))
    elif verdict.ok:
        click.echo(f"whole: {_summary(verdict, facts)}")
    else:
        place = str(verdict.position)
        click.echo(f"{place.partition(', ')[2] or place if in_store else place}: {verdict.reason}")
    if not verdict.ok:
        out.end_with_difference()


@audit.command("prune", example="routerctl audit prune --before 2026-01-01 --yes")
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
    from router.records.audit_chain import derive_audit_key, is_signed

    if before_s > Clock().now_s():
        raise click.BadParameter("lies in the future", param_hint="--before")
    settings = load_settings()
    key = derive_audit_key(trail_pepper(settings))
    with _finding_out():
        with _store(settings) as store:
            tips = store.chain_tips()
            if tips and not any(is_signed(tip, key) for tip in tips):
                raise PepperError([OTHER_PEPPER])
            counts = store.prunable(before_s)
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
def _finding_out() -> Iterator[None]:
    from router.store.failures import StoreError, StoreInUse

    with out.finding_out(StoreError):
        try:
            yield
        except StoreInUse as error:
            raise click.ClickException(f"{error}; {_IN_USE}") from None


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
    from_s: float | None = None,
    to_s: float | None = None,
    organization: str | None = None,
) -> Generator[bytes, None, None]:
    """The lines of an export, read while they are taken."""
    from router.exports.audit_export import StoreState, export_lines

    now_s = Clock().now_s()
    complete_to_s = _complete_to(settings, now_s)
    # Of a whole trail, all that a survey finds is found by following its chains.
    is_whole = organization is None and from_s is None and to_s is None
    state = StoreState(complete_to_s, () if is_whole else store.survey_trail(key))
    if organization is not None and to_s is None:
        to_s = now_s
    with store.audit_trail(from_s, to_s, organization) as trail:
        yield from export_lines(trail, key, now_s, state)


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


def _check(
    lines: Iterable[bytes], key: bytes, file: IO[bytes] | None = None
) -> tuple[Facts | None, Verdict]:
    """What the signed line says, and the verdict; the lines are written if there is a file."""
    from router.exports.audit_verification import Verification

    verification = Verification(key)
    for line in lines:
        verification.take(line)
        if file is not None:
            file.write(line)
    verdict = verification.verdict()
    return verification.facts, verdict


def _check_store(settings: Settings, key: bytes) -> tuple[Facts | None, Verdict]:
    """Like :func:`_check`; and whether the columns of each event say what the event says."""
    from router.exports.audit_contents import Position

    with _store(settings) as store:
        with closing(_lines(store, settings, key)) as lines:
            facts, verdict = _check(lines, key)
        fault = store.first_misplaced() if verdict.ok else None
    if fault is not None:
        place = Position(0, fault.writer_id, fault.sequence)
        verdict = replace(verdict, ok=False, position=place, reason=fault.reason)
    return facts, verdict


def _doubting_pepper(verdict: Verdict, settings: Settings, pepper: bytes) -> Verdict:
    """The verdict; where a signature is not ours it says whether the pepper may be to blame."""
    from router.exports.audit_verification import NOT_SIGNED

    if verdict.reason is None or not verdict.reason.endswith(NOT_SIGNED):
        return verdict
    is_ours = is_stored_pepper(settings, pepper)
    if is_ours:
        return verdict
    doubt = "or the pepper is another one" if is_ours is None else OTHER_PEPPER
    return replace(verdict, reason=f"{verdict.reason}, {doubt}")


def _summary(verdict: Verdict, facts: Facts | None) -> str:
    """What was read, what part of the trail it is, and how new it is."""
    parts = [f"{verdict.events} events of {verdict.writers} writers"]
    if facts is not None:
        about = facts.get("selection", facts)
        if "selection" in facts:
            parts.append(f"a selection of organization {out.shown(about['organization_id'])}")
        parts += [f"{name} {about[name]}" for name in ("from", "to") if about[name] is not None]
        until = facts["complete_to"]
        known = f"complete up to {until}"
        parts.append("no spool told up to when it is complete" if until is None else known)
    return ", ".join(parts)


def _plain(verdict: Verdict, facts: Facts | None, *, in_store: bool) -> Facts:
    position = verdict.position
    return {
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
