"""Disks under a router's spool that fill up or fail, for workers that know nothing of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FAULTS = "SPOOL_FAULTS"

# Python imports a module of this name before anything else; it replaces the spool's way to the
# disk. A file in the directory of faults orders a fault: `sync` one failed sync, which takes the
# file away; `full` as long as it is there.
_SITE = """
import errno
import os

from router.spool.disk import SpoolIO

FAULTS = os.environ.get("SPOOL_FAULTS", "")
real = {name: getattr(SpoolIO, name) for name in ("sync", "write", "allocate")}


def error(number):
    return OSError(number, os.strerror(number))


def is_segment(fd):
    place = os.readlink(f"/proc/self/fd/{fd}")
    return "/spool/" in place and place.endswith((".seg", ".new"))


def sync(self, fd):
    try:
        if is_segment(fd):
            os.unlink(f"{FAULTS}/sync")
            raise error(errno.EIO)
    except FileNotFoundError:
        pass
    real["sync"](self, fd)


def check_room(fd):
    if os.path.exists(f"{FAULTS}/full") and is_segment(fd):
        raise error(errno.ENOSPC)


def write(self, fd, data):
    check_room(fd)
    return real["write"](self, fd, data)


def allocate(self, fd, offset, length):
    check_room(fd)
    real["allocate"](self, fd, offset, length)


if FAULTS:
    SpoolIO.sync, SpoolIO.write, SpoolIO.allocate = sync, write, allocate
"""


@dataclass
class FaultyDisk:
    """What goes wrong with the segments of a router that runs with `environment`."""

    directory: Path

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        (self.directory / "sitecustomize.py").write_text(_SITE)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a Python process meet the faults."""
        path = os.pathsep.join(filter(None, (str(self.directory), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, _FAULTS: str(self.directory)}

    def fail_next_sync(self) -> None:
        """The next sync of a segment, by whichever worker, ends with an I/O error."""
        (self.directory / "sync").touch()

    @property
    def sync_is_to_fail(self) -> bool:
        """Whether the ordered failure has not happened yet."""
        return (self.directory / "sync").exists()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """No byte can be written, not even where room was set aside."""
        flag = self.directory / "full"
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()


def why_no_mount() -> str | None:
    """Why no file system can be mounted here; ``None`` when one can."""
    if os.geteuid() != 0:
        return "only root can mount a small file system to fill"
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return "there is no unshare or no mount on PATH to fill a small file system with"
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no tmpfs can be mounted: {tried.stderr.strip()}"


@contextlib.contextmanager
def small_file_system(place: Path, size_mib: int) -> Iterator[None]:
    """A file system in memory at `place`, which is made for it."""
    place.mkdir(parents=True)
    options = f"size={size_mib}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        # Lazily: a process that is being killed may still have files open.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no room in a file system; the file that takes it."""
    filler = place / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
    finally:
        os.close(fd)
    return filler
