"""Where ``routerctl records reconcile`` observes records: the spool, Kafka, the record store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from router.config.settings import Settings
from router.exports.comparison import KAFKA, SPOOL, STORE
from router.exports.reconciliation import Reconciliation
from router.spool.checkpoints import Checkpoints, checkpoint_path
from router.spool.frames import USAGE, Position
from router.spool.reader import Missing, SpoolReader, read_batches

if TYPE_CHECKING:
    from router.agent.kafka.topic_reader import TopicReader
    from router.store.record_store import RecordStore

Saved = Mapping[str, Mapping[str, Position]]

_PAGE: Final = 5000
_MARGIN_S: Final = 3600.0
"""Hosts' clocks differ less than this."""


@dataclass(slots=True)
class SpoolSource:
    """The spool of this host, read beside those that write and remove it."""

    settings: Settings
    sinks: Sequence[str]
    damaged: int = 0
    missing_segments: int = 0
    too_new: int = 0
    """Writers whose segments a newer router has written."""

    def read(self, records: Reconciliation) -> None:
        """Observe everything that is there now."""
        # Before the sinks are read: what they had acknowledged by now must be there then.
        saved = self._saved()
        reader = SpoolReader(self.settings.spool_dir, observe=True)
        gaps: list[Missing] = []
        for info in reader.writers():
            for batch in read_batches(reader, info.writer_id):
                for frame in batch.frames:
                    if frame.kind == USAGE:
                        waiting = self._waiting(saved, frame.position_after)
                        records.observe(frame.payload, SPOOL, waiting)
                if not records.is_second_pass:
                    self.damaged += sum(not stretch.torn for stretch in batch.skipped)
                    self.too_new += batch.unreadable_format is not None
                    gaps += [] if batch.missing is None else [batch.missing]
        if gaps:
            self._count_lost(gaps)

    def _waiting(self, saved: Saved, position: Position) -> list[str]:
        """The sinks that have not acknowledged a frame."""
        start = Position(position.writer_id, 0, 0)
        return [
            sink for sink in self.sinks if saved[sink].get(position.writer_id, start) < position
        ]

    def _count_lost(self, gaps: Iterable[Missing]) -> None:
        """A segment that vanished while it was read had been acknowledged; others are lost."""
        saved = self._saved()
        for gap in gaps:
            behind = Position(gap.writer_id, gap.last + 1, 0)
            left = (self.settings.spool_dir / gap.writer_id).exists()
            if left and self._waiting(saved, behind):
                self.missing_segments += gap.last - gap.first + 1

    def _saved(self) -> Saved:
        return {
            sink: Checkpoints(checkpoint_path(self.settings.data_dir, sink)).load()
            for sink in self.sinks
        }


def read_topic(topic: TopicReader, records: Reconciliation) -> None:
    """Observe what was appended since the last time, at first everything of the period."""
    from_s = records.scope.from_s
    if from_s is not None:
        # A message is sent after its call began.
        from_s -= records.scope.margin_s + _MARGIN_S
    for values in topic.read(from_s):
        for value in values:
            records.observe(value, KAFKA)


def read_store(store: RecordStore, records: Reconciliation) -> None:
    """Observe all records of the period and of the margin around it."""
    scope = records.scope
    pages = store.read_records(
        organization_id=scope.organization_id,
        from_s=None if scope.from_s is None else scope.from_s - scope.margin_s,
        to_s=None if scope.to_s is None else scope.to_s + scope.margin_s,
        filters={} if scope.api_key_id is None else {"key": scope.api_key_id},
        batch=_PAGE,
    )
    for page in pages:
        for _, document in page:
            records.observe(document, STORE)


def look_up_missing(store: RecordStore, records: Reconciliation) -> None:
    """Observe those of the records that are missing in a sink that are stored."""
    for page in records.missing_records():
        for document in store.find_usage(page).values():
            records.observe(document, STORE)


def note_refusals(settings: Settings, differences: Sequence[dict[str, Any]]) -> None:
    """Say of missing records which sink refused them, and why: such are dead letters."""
    import orjson

    from router.agent.dead_letters import DIRECTORY_NAME

    wanted = {one["record_id"]: one for one in differences if one["kind"] == "missing"}
    for sink in (STORE, KAFKA):
        path = settings.data_dir / DIRECTORY_NAME / f"{sink}.jsonl"
        if not wanted or not path.exists():
            continue
        with path.open("rb") as letters:
            for line in letters:
                try:
                    letter = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue  # torn when it was written; another one says the same
                found = wanted.get(letter.get("id"))
                if found is not None and sink in found["missing_from"]:
                    found.setdefault("refused", {})[sink] = letter.get("reason")
