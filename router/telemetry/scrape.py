"""One scrape: the metrics of all workers together, read from their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

UNREADABLE: Final = "api_router_metrics_files_unreadable"


class SlotCollector(MultiProcessCollector):
    """Merges the files; one that cannot be read is left out and counted instead of failing all."""

    _path: str

    def collect(self) -> Iterator[Metric]:
        """The metrics of every file that can be read, and how many cannot."""
        readable, unreadable = [], 0
        for file in sorted(Path(self._path).glob("*.db")):
            if _is_new(file):
                continue
            if self._can_read(file):
                readable.append(str(file))
            else:
                unreadable += 1
        yield from self.merge(readable)  # type: ignore[no-untyped-call]
        yield GaugeMetricFamily(
            UNREADABLE, "Files of figures that this scrape has left out.", unreadable
        )

    def _can_read(self, file: Path) -> bool:
        try:
            self.merge([str(file)])  # type: ignore[no-untyped-call]
        except Exception:  # damaged bytes may raise anything in the library
            return False
        return True


def render(accept: str | None) -> tuple[str, str]:
    """The body and content type of one scrape, in the format that ``Accept`` asks for.

    Raises ``ValueError`` when ``PROMETHEUS_MULTIPROC_DIR`` is no directory.
    """
    registry = CollectorRegistry()
    SlotCollector(registry)  # type: ignore[no-untyped-call]
    encode: Any
    encode, content_type = choose_encoder(accept or "")
    return encode(registry).decode("utf-8"), content_type


def _is_new(file: Path) -> bool:
    """A starting worker creates its files empty; an ending one may remove them."""
    try:
        return file.stat().st_size == 0
    except FileNotFoundError:
        return True
