"""A scrape reads every worker's files and survives those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from router.telemetry.scrape import UNREADABLE, render


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of two workers that have counted 2 and 3."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for slot, count in (("slot0", 2.0), ("slot1", 3.0)):
        file = MmapedDict(str(tmp_path / f"counter_{slot}.db"))
        file.write_value(mmap_key("calls", "calls_total", [], [], "Calls."), count, 0.0)
        file.close()
    return tmp_path


def test_the_workers_are_added_up(directory: Path) -> None:
    """M1: one figure for the host."""
    text, content_type = render(None)

    assert "calls_total 5.0" in text
    assert f"{UNREADABLE} 0.0" in text
    assert content_type.startswith("text/plain")


@pytest.mark.parametrize(
    "damage", [b"garbage" * 100, b"\x10", b"\xff\xff\xff\x7f" + b"\x00" * 60], ids=len
)
def test_a_damaged_file_is_left_out_and_counted(directory: Path, damage: bytes) -> None:
    """M3: it used to fail the whole scrape."""
    (directory / "counter_slot2.db").write_bytes(damage)
    text, _ = render(None)

    assert "calls_total 5.0" in text
    assert f"{UNREADABLE} 1.0" in text


def test_a_file_that_is_just_being_made_is_no_damage(directory: Path) -> None:
    """M1: a scrape while a worker starts used to fail now and then."""
    (directory / "gauge_livesum_slot2.db").touch()
    text, _ = render(None)

    assert "calls_total 5.0" in text
    assert f"{UNREADABLE} 0.0" in text


def test_a_directory_that_is_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer would look as if nothing had ever been counted."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="PROMETHEUS_MULTIPROC_DIR"):
        render(None)
