"""Which sinks the records of a data directory go to, saved beside the sinks' checkpoints.

The settings come from the environment, and a shell may have another one than the service. The saved
set shows the difference before records are removed that a sink never got.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import orjson

from router.spool.checkpoints import DIRECTORY_NAME

FILE_NAME: Final = "sinks.json"
FORMAT: Final = 1
STORE: Final = "store"
KAFKA: Final = "kafka"
LOG: Final = "log"
_SQLITE: Final = "sqlite:///"
_POSTGRES_PORT: Final = 5432
_PORT: Final = re.compile(r":\d+$")


@dataclass(frozen=True, slots=True)
class Topics:
    """Where records go in Kafka."""

    brokers: tuple[str, ...]
    usage: str
    audit: str

    def is_other_than(self, other: Topics) -> bool:
        """Tell whether these are other topics or another cluster, one without a common broker."""
        topics = (self.usage, self.audit) == (other.usage, other.audit)
        return not topics or not set(self.brokers) & set(other.brokers)

    def __str__(self) -> str:
        return f"{', '.join(self.brokers)} (topics {self.usage} and {self.audit})"


@dataclass(frozen=True, slots=True)
class SinkSet:
    """The sinks of one set of settings."""

    store: str
    """See :func:`describe_store`."""
    kafka: Topics | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of their checkpoints."""
        return (STORE, LOG if self.kafka is None else KAFKA)

    def __str__(self) -> str:
        return f"record store {self.store}; " + (
            "no Kafka, audit events go to the log" if self.kafka is None else f"Kafka {self.kafka}"
        )


def describe_store(url: str, data_dir: Path) -> str:
    """The database without user and password, which may change."""
    if url.startswith(_SQLITE):
        path = Path(url.removeprefix(_SQLITE)).absolute()
        inside = os.path.relpath(path.resolve(), data_dir.absolute().resolve())
        # A data directory that was moved keeps its store.
        return f"{_SQLITE}{path}" if inside.startswith("..") else f"{inside} in the data directory"
    parts = urlsplit(url)
    where = parts.netloc.rpartition("@")[2]
    hosts = where.split(",") if where else parse_qs(parts.query).get("host", ["localhost"])
    places = (host if _PORT.search(host) else f"{host}:{_POSTGRES_PORT}" for host in hosts)
    return f"{parts.scheme.partition('+')[0]}://{','.join(places)}{parts.path}"


def load_sinks(data_dir: Path) -> SinkSet | None:
    """The sinks that were saved last; ``None`` without a readable file."""
    try:
        found: Any = orjson.loads((data_dir / DIRECTORY_NAME / FILE_NAME).read_bytes())
        if found["format"] != FORMAT:
            return None
        kafka = found["kafka"]
        return SinkSet(
            str(found["store"]),
            None
            if kafka is None
            else Topics(
                tuple(map(str, kafka["brokers"])), str(kafka["usage"]), str(kafka["audit"])
            ),
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def save_sinks(data_dir: Path, sinks: SinkSet) -> None:
    """Replace the saved sinks; they survive a power failure. Raises ``OSError``."""
    directory = data_dir / DIRECTORY_NAME
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = directory / f"{FILE_NAME}.new"
    with draft.open("wb") as file:
        plain = {"format": FORMAT, **asdict(sinks)}
        file.write(orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, directory / FILE_NAME)


def missing_sinks(
    known: SinkSet | None,
    wanted: SinkSet,
    with_checkpoints: Sequence[str],
    waits: Callable[[str], bool],
) -> list[str]:
    """What would never arrive if records went to ``wanted`` only from now on, a line for each sink.

    ``known`` are the previous sinks; where none were saved, ``with_checkpoints`` tells. The log is
    left out: the store has everything that it has. ``waits`` tells whether a sink has not
    acknowledged some records.
    """
    problems = []
    had_kafka = KAFKA in with_checkpoints if known is None else known.kafka is not None
    before = None if known is None else known.kafka
    where = "" if before is None else f" {before}"
    if had_kafka and wanted.kafka is None and waits(KAFKA):
        problems.append(f"records wait for Kafka{where}, which is not configured here")
    if before is not None and wanted.kafka is not None and wanted.kafka.is_other_than(before):
        if waits(KAFKA):
            problems.append(f"records wait for Kafka{where}; configured here is {wanted.kafka}")
    if known is not None and known.store != wanted.store and waits(STORE):
        problems.append(
            f"records wait for the record store {known.store}; configured here is {wanted.store}"
        )
    return problems
