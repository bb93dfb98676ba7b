"""Where the files of the workers' slots are: in shared memory, so that a full disk does no harm.

These are the metrics, and what each worker has of the rate limits while Redis is unavailable.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from router.config.settings import Settings

SHARED_MEMORY: Final = Path("/dev/shm")


def prepare_metrics_dir(settings: Settings) -> Path:
    """Create the directory, private and without files of workers.

    Raises ``SystemExit`` with one line when it cannot be used.
    """
    directory = settings.metrics_dir or _claim_shared(settings)
    if directory is None:
        directory = settings.data_dir.absolute() / "run" / "metrics"
    try:
        _make_private(directory)
        # File by file: the directory may be a mount, and other programs may use it, too.
        for file in (*directory.glob("*.db"), *directory.glob("*.shares")):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise SystemExit(f"the metrics directory {directory} cannot be used: {error}") from None
    return directory


def remove_metrics_dir(settings: Settings, directory: Path) -> None:
    """Remove the directory from shared memory; one that an operator has chosen stays."""
    if directory == shared_metrics_dir(settings):
        shutil.rmtree(directory, ignore_errors=True)


def shared_metrics_dir(settings: Settings) -> Path:
    """The directory in shared memory that is this instance's own."""
    instance = f"{settings.data_dir.absolute()} {settings.bind}"
    return SHARED_MEMORY / f"api-router-{hashlib.sha256(instance.encode()).hexdigest()[:16]}"


def _claim_shared(settings: Settings) -> Path | None:
    """Create this instance's directory in shared memory; None where that is impossible."""
    if not (SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK)):
        return None
    directory = shared_metrics_dir(settings)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        # Every user may write there, so the name may be a trap: lstat, not stat.
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return None
        directory.chmod(0o700)
    except OSError:
        return None
    return directory


def _make_private(directory: Path) -> None:
    """Like ``mkdir -p``, but the parents that it creates are private, too."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
    if not directory.is_dir():
        raise NotADirectoryError("not a directory")
