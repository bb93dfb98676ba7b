"""Writes what operators change into the audit trail, before the change takes effect."""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from router.clock import Clock
from router.config.config_errors import StateUnavailable
from router.config.diff import ABSENT, Change
from router.config.settings import Settings
from router.errors import RecordsUnavailable
from router.limits.budgets.windows import ThresholdEvent, WindowSpec
from router.records.record_types import AuditAction, AuditEvent
from router.records.recorder import Recorder
from router.spool.writer import SpoolWriter

_ENTITY_TYPES: Final[Mapping[str, str]] = {
    "organizations": "organization",
    "keys": "api_key",
    "models": "model",
    "backends": "backend",
    "policies": "policy",
}
_KEY_ACTIONS: Final[Mapping[str, AuditAction]] = {
    "added": "KEY_CREATED",
    "changed": "KEY_UPDATED",
    "removed": "KEY_REMOVED",
}
_SHOWN_HASH: Final = 12
_MOST_TEXT: Final = 1000


class OperatorAuditLog:
    """Writes the audit events of one command; methods raise ``StateUnavailable`` if they cannot.

    :meth:`note` is what ``StateWriter`` calls within each transaction.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._noted = False

    def note(self, changes: Sequence[Change], revision: int) -> None:
        """Put the changes on disk."""
        # Before it is written: what could not be synced in time may be in the trail all the same.
        self._noted = self._noted or bool(changes)
        events = [self._of_entity(change, revision) for change in changes]
        if any(change.section != "keys" for change in changes):
            verbs = [change.verb for change in changes]
            counts = {verb: verbs.count(verb) for verb in sorted(set(verbs))}
            events.append(self._event("CONFIG_APPLIED", "document", str(revision), context=counts))
        self._write(events)

    def reject(self, document: Path, problems: Sequence[str]) -> None:
        """Put on disk that a document was refused, if there is a data directory."""
        if self._settings.data_dir.is_dir():
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._write_rejection(document.name, problems[0][:_MOST_TEXT] + more)

    def take_back(self, error: Exception) -> None:
        """Put on disk that the noted changes did not happen after all."""
        if self._noted:
            self._write_rejection("", f"not committed: {error}"[:_MOST_TEXT])

    def note_correction(
        self,
        organization_id: str,
        window: WindowSpec,
        action: AuditAction,
        *,
        reason: str,
        correction_id: str,
        settled: tuple[int, int],
    ) -> None:
        """Put on disk that the settled amount of a window is corrected, from and to which value."""
        before, after = ({"settled": amount} for amount in settled)
        self._write(
            [
                self._event(
                    action,
                    "budget",
                    window.id,
                    organization_id=organization_id,
                    reason=reason,
                    context={**window.audit_context, "correction_id": correction_id},
                    before=before,
                    after=after,
                )
            ]
        )

    def note_rebuild(
        self, organization_id: str, window: WindowSpec, *, before: int | None, after: int
    ) -> None:
        """Put on disk that the counter of a window is made anew: what was settled, ``None`` for one
        that was lost, and what the records say."""
        event = self._event(
            "BUDGET_REBUILT",
            "budget",
            window.id,
            organization_id=organization_id,
            context=window.audit_context,
            before=None if before is None else {"settled": before},
            after={"settled": after},
        )
        self._write([event])

    def note_rate_limit_reset(
        self, organization_id: str, name: str, subject: str, *, reason: str, remaining: int
    ) -> None:
        """Put on disk that a rate limit, of which so much was left, is filled up."""
        scope = name.partition("-")[0]
        owner = {"api_key_id": subject} if scope == "key" else {}
        owner |= {"model": subject} if scope == "model" else {}
        event = self._event(
            "LIMIT_RESET",
            "rate_limit",
            f"{name}:{subject}" if subject else name,
            organization_id=organization_id,
            reason=reason,
            context={"limit_name": name, "limit_scope": scope, **owner},
            before={"remaining": remaining},
        )
        self._write([event])

    def note_thresholds(self, organization_id: str, reached: Sequence[ThresholdEvent]) -> None:
        """Put on disk which thresholds of budgets are reached."""
        self._write(
            [
                self._event(
                    "BUDGET_THRESHOLD",
                    "budget",
                    found.window.id,
                    organization_id=organization_id,
                    context={**found.window.audit_context, "percent": found.percent},
                )
                for found in reached
            ]
        )

    def _write_rejection(self, name: str, reason: str) -> None:
        self._write([self._event("CONFIG_REJECTED", "document", name, reason=reason)])

    def _of_entity(self, change: Change, revision: int) -> AuditEvent:
        before = _known((field.path, field.old) for field in change.fields)
        after = _known((field.path, field.new) for field in change.fields)
        return self._event(
            _action(change, after),
            _ENTITY_TYPES[change.section],
            change.entity,
            # An organization sees what happens to its keys and policies.
            organization_id=None if change.owner == "*" else change.owner,
            context=_context(change, revision),
            before=None if change.verb == "added" else before,
            after=None if change.verb == "removed" else after,
        )

    def _event(
        self, action: AuditAction, entity_type: str, entity_id: str, **facts: Any
    ) -> AuditEvent:
        return AuditEvent(
            event_id=str(uuid.uuid4()),
            action=action,
            actor=f"operator:{_user()}",
            entity_type=entity_type,
            entity_id=entity_id,
            timestamp=Clock().now_s(),
            **facts,
        )

    def _write(self, events: Sequence[AuditEvent]) -> None:
        if not events:
            return
        settings = self._settings
        try:
            with as_owner_of(settings.data_dir):
                recorder = Recorder(
                    SpoolWriter(
                        settings.spool_dir, max_bytes=settings.spool_max_bytes, mode="durable"
                    )
                )
                try:
                    recorder.note(events)
                finally:
                    recorder.close()
        except (OSError, RecordsUnavailable) as error:
            reason = getattr(error, "reason", error)
            raise StateUnavailable(
                [f"the audit trail in {settings.spool_dir} cannot be written ({reason})"]
            ) from None


@contextmanager
def operator_audit_log(settings: Settings) -> Iterator[OperatorAuditLog]:
    """A log that also notes when a change failed after it was noted."""
    log = OperatorAuditLog(settings)
    try:
        yield log
    except Exception as error:
        log.take_back(error)
        raise


def _action(change: Change, after: Mapping[str, Any]) -> AuditAction:
    if change.section == "keys":
        revoked = change.verb == "changed" and after.get("status") == "revoked"
        return "KEY_REVOKED" if revoked else _KEY_ACTIONS[change.verb]
    return "POLICY_UPDATE" if change.section == "policies" else "CONFIG_APPLIED"


def _known(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {path: without_secret(path, value) for path, value in fields if value is not ABSENT}


def without_secret(path: str, value: Any) -> Any:
    """A field's value; of a key's hash only a prefix, so that nobody can test keys against it."""
    return f"{value[:_SHOWN_HASH]}..." if path == "hash" and isinstance(value, str) else value


def _context(change: Change, revision: int) -> dict[str, Any]:
    key = {"api_key_id": change.entity} if change.section == "keys" else {}
    model = {"model": change.entity} if change.section == "models" else {}
    return {"revision": revision, **key, **model}


def _user() -> str:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """Make files as the user of the service, for root's would be out of its reach."""
    owner = directory.stat() if directory.is_dir() else None
    if os.geteuid() != 0 or owner is None or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
