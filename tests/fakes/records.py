"""What a router in this process records: held against its schema, kept, and stored on demand."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from router.errors import RecordsUnavailable
from router.records.audit_chain import derive_audit_key
from router.records.record_schemas import audit_event_schema, usage_record_schema
from router.records.recorder import Recorder
from router.spool.frames import AUDIT, USAGE
from router.spool.writer import SpoolWriter
from router.store.record_store import RecordStore

_SCHEMAS = {
    USAGE: Draft202012Validator(usage_record_schema(), format_checker=FormatChecker()),
    AUDIT: Draft202012Validator(audit_event_schema(), format_checker=FormatChecker()),
}


class WatchedSpool:
    """The spool of a worker, and what it was given since this was made."""

    def __init__(self, spool: SpoolWriter) -> None:
        self._spool = spool
        self.records: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.notes: list[tuple[int, dict[str, Any]]] = []
        self.buffered: list[tuple[int, bytes]] = []
        self.violations: list[str] = []
        self.reason: str | None = None
        """Why it cannot be written; ``None`` when it can."""
        self.nothing_written = False

    def check(self) -> None:
        """Refuse what could not be recorded."""
        if self.reason is not None:
            raise RecordsUnavailable(self.reason, nothing_written=self.nothing_written)
        self._spool.check()

    def append(self, frames: Sequence[tuple[int, bytes]]) -> None:
        """Append for real, unless it cannot be written."""
        self.check()
        self._spool.append(frames)
        for kind, payload in frames:
            fields = json.loads(payload)
            (self.records if kind == USAGE else self.events).append(fields)
            self.violations += [
                f"{error.json_path}: {error.message[:200]}"
                for error in _SCHEMAS[kind].iter_errors(fields)
            ]

    def note(self, kind: int, payload: bytes) -> None:
        """Append what is no record, unless it cannot be written."""
        self.check()
        self._spool.note(kind, payload)
        self.notes.append((kind, json.loads(payload)))

    def buffer(self, frames: Iterable[tuple[int, bytes]]) -> bool:
        """Keep what cannot be written now."""
        self.buffered += frames
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)


def watched(recorder: Recorder) -> tuple[Recorder, WatchedSpool]:
    """The same recorder, its chain included, over a watched spool."""
    spool = WatchedSpool(recorder.spool)
    copied = copy.copy(recorder)
    copied.spool = spool  # type: ignore[assignment]
    return copied, spool


def store(spool: WatchedSpool, url: str, pepper: str) -> None:
    """Put all that was recorded into the record store, as the agent would."""
    with RecordStore(url, audit_key=derive_audit_key(pepper.encode())) as records:
        records.migrate()
        records.write(spool.records, spool.events)
