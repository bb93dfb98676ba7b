"""The directory of the metric files: in shared memory when it can be ours, private always."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from router.config.settings import Settings
from router.server import metrics_dir
from router.server.metrics_dir import prepare_metrics_dir, remove_metrics_dir, shared_metrics_dir


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An instance on a host whose shared memory is empty."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(metrics_dir, "SHARED_MEMORY", tmp_path / "shm")
    return Settings(data_dir=tmp_path / "data")


def mode(place: Path) -> int:
    return stat.S_IMODE(place.stat().st_mode)


def test_shared_memory_is_the_default(instance: Settings) -> None:
    """It is private, emptied at every start, and removed in the end."""
    directory = prepare_metrics_dir(instance)
    (directory / "counter_slot0.db").write_bytes(b"old")
    directory.chmod(0o755)
    assert prepare_metrics_dir(instance) == directory == shared_metrics_dir(instance)
    assert (mode(directory), list(directory.iterdir())) == (0o700, [])
    remove_metrics_dir(instance, directory)
    assert not directory.exists()


@pytest.mark.parametrize("trap", ["link", "file", "foreign", "no shared memory"])
def test_what_is_not_ours_is_not_used(
    instance: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    """The data directory is used instead, private all the way."""
    place = shared_metrics_dir(instance)
    if trap == "link":
        place.symlink_to(tmp_path)
    elif trap == "file":
        place.touch()
    elif trap == "foreign":
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    else:
        place.parent.rmdir()
    directory = prepare_metrics_dir(instance)
    assert directory == tmp_path / "data" / "run" / "metrics"
    assert [mode(made) for made in (directory, directory.parent)] == [0o700, 0o700]
    remove_metrics_dir(instance, directory)
    assert directory.exists()


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    """The master ends with a message and no traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"the metrics directory .*file cannot be used"):
        prepare_metrics_dir(Settings(metrics_dir=tmp_path / "file"))
