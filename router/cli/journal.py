"""What operators do, in the audit trail: written down before it takes effect, or it does not."""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from router.clock import Clock
from router.config.faults import StateError
from router.errors import RecordsUnavailable

if TYPE_CHECKING:
    from router.config.diff import Change
    from router.config.settings import Settings
    from router.limits.budgets.windows import ThresholdEvent, WindowSpec
    from router.records.record_types import AuditAction, AuditEvent

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


class OperatorJournal:
    """Audit events of one command. Its :meth:`note` is a journal as ``StateWriter`` wants it."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._noted: list[Change] = []

    def note(self, changes: Sequence[Change], revision: int) -> None:
        """Put the changes on disk; raises ``StateError`` when that cannot be done."""
        # Before it is written: what could not be synced in time may be in the trail all the same.
        self._noted.extend(changes)
        self._write([*self._of_entities(changes, revision), *self._of_document(changes, revision)])

    def reject(self, file: Path, problems: Sequence[str]) -> None:
        """Put on disk that a document was refused, if a router is here; raises ``StateError``."""
        if not self._settings.data_dir.is_dir():
            return
        first = problems[0][:_MOST_TEXT] if problems else "refused"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self._write([self._event("CONFIG_REJECTED", "document", file.name, reason=first + more)])

    def take_back(self, error: Exception) -> None:
        """Put on disk that what was noted did not happen after all."""
        if self._noted:
            reason = f"not committed: {error}"[:_MOST_TEXT]
            self._write([self._event("CONFIG_REJECTED", "document", "", reason=reason)])

    def correct(
        self,
        organization_id: str,
        window: WindowSpec,
        action: AuditAction,
        *,
        reason: str,
        correction_id: str,
        settled: tuple[int, int],
    ) -> None:
        """Put on disk that what a window has settled is corrected, from and to which amount; raises
        ``StateError``."""
        before, after = ({"settled": amount} for amount in settled)
        context = {**_budget(window), "correction_id": correction_id}
        self._write(
            [
                self._event(
                    action,
                    "budget",
                    window.id,
                    organization_id=organization_id,
                    reason=reason,
                    context=context,
                    before=before,
                    after=after,
                )
            ]
        )

    def cross(self, organization_id: str, threshold_events: Sequence[ThresholdEvent]) -> None:
        """Put on disk which thresholds are reached; raises ``StateError``."""
        if threshold_events:
            self._write(
                [
                    self._event(
                        "BUDGET_THRESHOLD",
                        "budget",
                        found.window.id,
                        organization_id=organization_id,
                        context={**_budget(found.window), "percent": found.percent},
                    )
                    for found in threshold_events
                ]
            )

    def _of_entities(self, changes: Sequence[Change], revision: int) -> Iterator[AuditEvent]:
        for change in changes:
            before, after = _sides(change)
            yield self._event(
                _action(change, after),
                _ENTITY_TYPES[change.section],
                change.entity,
                organization_id=_organization(change),
                context=_context(change, revision),
                before=before,
                after=after,
            )

    def _of_document(self, changes: Sequence[Change], revision: int) -> Iterator[AuditEvent]:
        if any(change.section != "keys" for change in changes):
            verbs = [change.verb for change in changes]
            counts: dict[str, Any] = {verb: verbs.count(verb) for verb in sorted(set(verbs))}
            yield self._event("CONFIG_APPLIED", "document", str(revision), context=counts)

    def _event(
        self, action: AuditAction, entity_type: str, entity_id: str, **facts: Any
    ) -> AuditEvent:
        from router.records.record_types import AuditEvent

        return AuditEvent(
            event_id=str(uuid.uuid4()),
            action=action,
            actor=f"operator:{_user()}",
            entity_type=entity_type,
            entity_id=entity_id,
            timestamp=self._clock.now_s(),
            **facts,
        )

    def _write(self, events: Sequence[AuditEvent]) -> None:
        from router.records.recorder import Recorder
        from router.spool.writer import SpoolWriter

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
            raise StateError(
                [f"the audit trail in {settings.spool_dir} cannot be written ({reason})"]
            ) from None


@contextmanager
def journal_of(settings: Settings) -> Iterator[OperatorJournal]:
    """A journal that also tells when the change that it noted failed afterwards."""
    journal = OperatorJournal(settings)
    try:
        yield journal
    except Exception as error:
        journal.take_back(error)
        raise


def _action(change: Change, after: Mapping[str, Any] | None) -> AuditAction:
    if change.section == "keys":
        revoked = change.verb == "changed" and (after or {}).get("status") == "revoked"
        return "KEY_REVOKED" if revoked else _KEY_ACTIONS[change.verb]
    return "POLICY_UPDATE" if change.section == "policies" else "CONFIG_APPLIED"


def _sides(change: Change) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The fields that differ, before and after."""
    from router.config.diff import ABSENT

    before = {field.path: _shown(field.path, field.old) for field in change.fields}
    after = {field.path: _shown(field.path, field.new) for field in change.fields}
    known = (
        {path: value for path, value in side.items() if value is not ABSENT}
        for side in (before, after)
    )
    old, new = known
    return (None if change.verb == "added" else old, None if change.verb == "removed" else new)


def _shown(path: str, value: Any) -> Any:
    """A key's hash as far as it names the key; it shall not be tried out from a trail."""
    return f"{value[:_SHOWN_HASH]}..." if path == "hash" and isinstance(value, str) else value


def _organization(change: Change) -> str | None:
    """Whose trail it belongs to: an organization sees what happens to its keys and policies."""
    return None if change.owner == "*" else change.owner


def _context(change: Change, revision: int) -> dict[str, Any]:
    key = {"api_key_id": change.entity} if change.section == "keys" else {}
    model = {"model": change.entity} if change.section == "models" else {}
    return {"revision": revision, **key, **model}


def _budget(window: WindowSpec) -> dict[str, Any]:
    return {
        "api_key_id": window.subject or None,
        "budget": window.name,
        "scope": window.scope,
        "unit": window.unit,
        "period": window.period,
        "limit": window.limit,
    }


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
