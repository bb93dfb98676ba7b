"""The pepper: where it comes from, how it is made, when it is not trusted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from router.config.config_errors import PepperError
from router.config.pepper import load_pepper
from router.config.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "deep" / "data")


def test_the_variable_comes_first(settings: Settings) -> None:
    """With ROUTER_KEY_PEPPER set, no file is read or made."""
    given = Settings(data_dir=settings.data_dir, key_pepper="x" * 32)
    assert load_pepper(given, create=True) == b"x" * 32
    assert not settings.data_dir.exists()


def test_a_pepper_is_made_once(settings: Settings) -> None:
    """32 random bytes in hex, for the owner alone, and the same ever after."""
    first = load_pepper(settings, create=True)
    path = settings.data_dir / "pepper"
    assert len(bytes.fromhex(first.decode())) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert load_pepper(settings, create=True) == first
    assert load_pepper(settings, create=False) == first
    assert os.listdir(path.parent) == ["pepper"]


def test_another_directory_has_another_pepper(settings: Settings, tmp_path: Path) -> None:
    """Two installations do not accept one another's keys."""
    other = Settings(data_dir=tmp_path / "other")
    assert load_pepper(settings, create=True) != load_pepper(other, create=True)


def test_the_file_works_in_the_variable(settings: Settings) -> None:
    """Moving the pepper from the file to the environment keeps every key valid."""
    made = load_pepper(settings, create=True)
    text = (settings.data_dir / "pepper").read_text(encoding="ascii").strip()
    assert load_pepper(Settings(key_pepper=text), create=False) == made


def test_workers_that_start_together_agree(settings: Settings) -> None:
    """Whoever comes second reads what the first one made, whole."""
    with ThreadPoolExecutor(8) as pool:
        peppers = set(pool.map(lambda _: load_pepper(settings, create=True), range(32)))
    assert len(peppers) == 1


def test_a_missing_pepper_is_not_made_by_the_way(settings: Settings) -> None:
    """Without leave to create, the operator is told what is missing."""
    with pytest.raises(PepperError, match="does not exist and ROUTER_KEY_PEPPER is not set"):
        load_pepper(settings, create=False)
    assert not settings.data_dir.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_pepper_that_others_can_touch_is_refused(settings: Settings, mode: int) -> None:
    """A pepper that leaked to the group is no pepper."""
    load_pepper(settings, create=True)
    path = settings.data_dir / "pepper"
    path.chmod(mode)
    with pytest.raises(PepperError, match=f"others may access it; run 'chmod 600 {path}'"):
        load_pepper(settings, create=True)


@pytest.mark.parametrize("content", [b"", b"short\n", b" " * 64])
def test_a_short_pepper_is_refused(settings: Settings, content: bytes) -> None:
    """An empty or cut file does not hash keys."""
    load_pepper(settings, create=True)
    (settings.data_dir / "pepper").write_bytes(content)
    with pytest.raises(PepperError, match="fewer than 32 bytes"):
        load_pepper(settings, create=True)


def test_a_directory_in_its_place_is_refused(settings: Settings) -> None:
    """The system's reason comes in one line."""
    (settings.data_dir / "pepper").mkdir(parents=True)
    with pytest.raises(PepperError, match="Is a directory"):
        load_pepper(settings, create=True)
