"""Which sinks there are, and which of them a change of settings would leave without records."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.agent.sink_set import (
    SinkSet,
    Topics,
    describe_store,
    load_sinks,
    missing_sinks,
    save_sinks,
)

HERE = "records.db in the data directory"
TOPICS = Topics(("k1:9092", "k2:9092"), "usage", "audit")
BOTH = SinkSet(HERE, TOPICS)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////srv/data/records.db", HERE),
        ("sqlite:////srv/other/records.db", "sqlite:////srv/other/records.db"),
        ("postgresql://u:p@ss@db/r?sslmode=require", "postgresql://db:5432/r"),
        ("postgresql+psycopg://db:5433/r", "postgresql://db:5433/r"),
        ("postgresql://a:1,b:2/r", "postgresql://a:1,b:2/r"),
        ("postgresql:///r?host=/run/pg&password=p", "postgresql:///run/pg:5432/r"),
    ],
)
def test_a_store_is_named_without_secrets(url: str, said: str) -> None:
    """Another password, user or driver is the same store, and so is a directory that was moved."""
    assert describe_store(url, Path("/srv/data")) == said


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """The newest; what cannot be read is nothing."""
    assert load_sinks(tmp_path) is None
    for sinks in (BOTH, SinkSet(HERE)):
        save_sinks(tmp_path, sinks)
        assert load_sinks(tmp_path) == sinks
    file = tmp_path / "checkpoints" / "sinks.json"
    for content in (b"", b"{", b"[]", b'{"format":2}', b'{"format":1,"store":"x","kafka":3}'):
        file.write_bytes(content)
        assert load_sinks(tmp_path) is None


@pytest.mark.parametrize(
    ("known", "wanted", "lacks"),
    [
        (BOTH, BOTH, 0),
        (BOTH, SinkSet(HERE), 1),
        (BOTH, SinkSet("elsewhere"), 2),
        (BOTH, SinkSet(HERE, Topics(("k2:9092", "k3:9092"), "usage", "audit")), 0),
        (BOTH, SinkSet(HERE, Topics(("k3:9092",), "usage", "audit")), 1),
        (BOTH, SinkSet(HERE, Topics(("k1:9092",), "usage", "other")), 1),
        (SinkSet(HERE), BOTH, 0),
        (None, SinkSet(HERE), 1),
        (None, BOTH, 0),
    ],
)
def test_a_sink_is_missed_only_while_something_waits_for_it(
    known: SinkSet | None, wanted: SinkSet, lacks: int
) -> None:
    """A further broker, another sink more, and the log are nothing to lose records by."""
    checkpoints = ["kafka", "log", "store"]
    assert len(missing_sinks(known, wanted, checkpoints, lambda _: True)) == lacks
    assert missing_sinks(known, wanted, checkpoints, lambda _: False) == []
