"""What of this host's spool the record store has not acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from router.breaker import Unavailable
from router.exports.comparison import STORE
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import AUDIT, USAGE, Position
from router.spool.reader import SpoolReader, read_batches
from router.store.corrections import Correction, correction_of

MOST_UNSTORED_BYTES: Final = 16 * 1024 * 1024
"""Of the spool; reading more would take longer than calls wait."""

Fields = Mapping[str, Any]


@dataclass(slots=True)
class Unstored:
    """What was found of an organization, each once."""

    records: dict[str, Fields] = field(default_factory=dict)
    """Usage records by their ids."""
    corrections: dict[str, Correction] = field(default_factory=dict)
    """Corrections of budgets by the ids of their events."""


@dataclass(frozen=True, slots=True)
class SpoolTail:
    """Reads it anew each time."""

    data_dir: Path
    spool_dir: Path
    may_be_new: bool

    def may_lack_store(self) -> bool:
        """Whether a store that is not there yet is no loss: nothing was shipped to it from here."""
        return self.may_be_new and not self._acknowledged()

    def read(self, organization_id: str, choose: Callable[[Fields], bool]) -> Unstored:
        """The chosen usage records of an organization, and all corrections of its budgets.

        Raises :class:`Unavailable` when there is too much to read.
        """
        # Before the spool is read: what was acknowledged by now is in the store.
        acknowledged = self._acknowledged()
        reader = SpoolReader(self.spool_dir, observe=True)
        found = Unstored()
        try:
            if reader.backlog_bytes(acknowledged) > MOST_UNSTORED_BYTES:
                raise Unavailable("record store", "lost", "too far behind the spool")
            for info in reader.writers():
                start = acknowledged.get(info.writer_id)
                for kind, fields in _decoded(reader, info.writer_id, start, organization_id):
                    if kind == USAGE and choose(fields):
                        found.records[str(fields.get("record_id"))] = fields
                    correction = correction_of(fields) if kind == AUDIT else None
                    if correction is not None:
                        found.corrections[correction.event_id] = correction
        except OSError as error:
            raise Unavailable("record store", "lost", f"the spool: {error.strerror}") from None
        return found

    def _acknowledged(self) -> dict[str, Position]:
        return Checkpoints(checkpoint_path(self.data_dir, STORE)).load()


def _decoded(
    reader: SpoolReader, writer_id: str, start: Position | None, organization_id: str
) -> Iterator[tuple[int, Fields]]:
    """The kind and content of what is about the organization."""
    # Looking for the bytes spares decoding what is about others, which is most of it.
    needle = orjson.dumps(organization_id)[1:-1]
    for batch in read_batches(reader, writer_id, start):
        for frame in batch.frames:
            if frame.kind not in (USAGE, AUDIT) or needle not in frame.payload:
                continue
            try:
                fields = orjson.loads(frame.payload)
            except ValueError:
                continue  # no sink takes it either
            if isinstance(fields, dict) and fields.get("organization_id") == organization_id:
                yield frame.kind, fields
