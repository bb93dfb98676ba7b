"""Disks for the spool that fail on request: at one step, for a while, or by losing their power."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from router.spool.disk import SpoolIO

T = TypeVar("T")
Kept = Literal["synced", "all", "zeros", "half"]


class Died(BaseException):
    """The process ends here: nothing that it would still do is done."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one step; `after` means that it was done all the same."""

    error: BaseException
    when: Literal["before", "after", "torn"] = "before"


Plan = Callable[[int, str], "Fault | None"]


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def fail_at(step: int, fault: Fault) -> Plan:
    """The fault at this step, counted from 1, and at no other."""
    return lambda number, _name: fault if number == step else None


class FaultyIO:
    """Passes steps to another disk. Steps that change something are numbered and may fail."""

    def __init__(self, inner: SpoolIO, plan: Plan | None = None) -> None:
        self.inner = inner
        self.plan = plan
        self.steps: list[str] = []
        self._open: set[int] = set()
        self._dead = False

    def die(self) -> None:
        """What the system does for a process that is gone."""
        self._dead = True
        while self._open:
            self.inner.close(self._open.pop())

    def _step(
        self, name: str, work: Callable[[], T], torn: Callable[[], object] | None = None
    ) -> T:
        self._alive()
        self.steps.append(name)
        fault = self.plan(len(self.steps), name) if self.plan else None
        if fault is None:
            return work()
        if fault.when == "after":
            with contextlib.suppress(OSError):
                work()
        elif fault.when == "torn" and torn is not None:
            torn()
        if isinstance(fault.error, Died):
            self._dead = True
        raise fault.error

    def _alive(self) -> None:
        if self._dead:
            raise Died

    def make_dir(self, path: Path) -> None:
        self._step("make_dir", lambda: self.inner.make_dir(path))

    def remove_dir(self, path: Path) -> None:
        self._step("remove_dir", lambda: self.inner.remove_dir(path))

    def sync_dir(self, path: Path) -> None:
        self._step("sync_dir", lambda: self.inner.sync_dir(path))

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", lambda: self.inner.rename(source, target))

    def unlink(self, path: Path) -> None:
        self._step("unlink", lambda: self.inner.unlink(path))

    def open(self, path: Path, flags: int) -> int:
        self._alive()
        if flags & os.O_CREAT:
            return self._step("open", lambda: self._opened(path, flags))
        return self._opened(path, flags)

    def _opened(self, path: Path, flags: int) -> int:
        fd = self.inner.open(path, flags)
        self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._alive()
        self._open.discard(fd)
        self.inner.close(fd)

    def write(self, fd: int, data: bytes) -> int:
        half = data[: len(data) // 2]
        return self._step(
            "write", lambda: self.inner.write(fd, data), lambda: self.inner.write(fd, half)
        )

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._step("allocate", lambda: self.inner.allocate(fd, offset, length))

    def truncate(self, fd: int, length: int) -> None:
        self._step("truncate", lambda: self.inner.truncate(fd, length))

    def sync(self, fd: int) -> None:
        self._step("sync", lambda: self.inner.sync(fd), lambda: self._lose(fd))

    def _lose(self, fd: int) -> None:
        if isinstance(self.inner, MemoryDisk):
            self.inner.lose_unsynced(fd)

    def list_dir(self, path: Path) -> list[str]:
        self._alive()
        return self.inner.list_dir(path)

    def file_size(self, path: Path) -> int:
        self._alive()
        return self.inner.file_size(path)

    def lock(self, fd: int) -> bool:
        self._alive()
        return self.inner.lock(fd)

    def size(self, fd: int) -> int:
        self._alive()
        return self.inner.size(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._alive()
        return self.inner.read(fd, length, offset)


@dataclass(eq=False)
class File:
    """Content as programs see it, and as it is after a power failure."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    lost: list[tuple[int, int]] = field(default_factory=list)
    """Discarded by a failed sync: a later one succeeds without writing them."""
    room_end: int = 0
    locked_by: int | None = None


@dataclass(eq=False)
class Directory:
    """Names as programs see them, and as they are after a power failure."""

    names: dict[str, File | Directory] = field(default_factory=dict)
    synced: dict[str, File | Directory] = field(default_factory=dict)


class MemoryDisk:
    """A file system in memory that promises no more than POSIX does.

    Content survives a power failure if the file was synced, a name if its directory was. With
    ``capacity`` it can be full.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._root = Directory()
        self._open: dict[int, File] = {}
        self._places: dict[int, int] = {}
        self._next_fd = 100

    # --- what only tests do -----------------------------------------------------------------

    def lose_power(self, kept: Kept, *, names: bool) -> None:
        """End all processes. ``kept`` is the luck of unsynced content, ``names`` that of names."""
        self._open.clear()
        self._restore(self._root, kept, names)

    def lose_unsynced(self, fd: int) -> None:
        """What a failed sync does to the pages that it could not write."""
        file = self._open[fd]
        file.lost.append((len(file.synced), len(file.data)))

    def used(self) -> int:
        return sum(max(len(file.data), file.room_end) for file in self._files(self._root))

    def files(self) -> Iterator[tuple[Path, File]]:
        yield from self._walk(Path("/"), self._root)

    def _walk(self, path: Path, directory: Directory) -> Iterator[tuple[Path, File]]:
        for name, entry in directory.names.items():
            if isinstance(entry, Directory):
                yield from self._walk(path / name, entry)
            else:
                yield path / name, entry

    def _restore(self, directory: Directory, kept: Kept, names: bool) -> None:
        if not names:
            directory.names = dict(directory.synced)
        directory.synced = dict(directory.names)
        for entry in directory.names.values():
            if isinstance(entry, Directory):
                self._restore(entry, kept, names)
            else:
                entry.data = bytearray(_survivors(entry, kept))
                entry.synced, entry.lost = bytes(entry.data), []
                entry.room_end, entry.locked_by = 0, None

    def _files(self, directory: Directory) -> set[File]:
        found: set[File] = set()
        for entry in directory.names.values():
            found |= self._files(entry) if isinstance(entry, Directory) else {entry}
        return found | set(self._open.values())

    # --- SpoolIO ----------------------------------------------------------------------------

    def make_dir(self, path: Path) -> None:
        directory = self._root
        for part in path.parts[1:]:
            directory = _as_directory(directory.names.setdefault(part, Directory()))

    def remove_dir(self, path: Path) -> None:
        if self._directory(path).names:
            raise error(errno.ENOTEMPTY)
        del self._directory(path.parent).names[path.name]

    def list_dir(self, path: Path) -> list[str]:
        return list(self._directory(path).names)

    def sync_dir(self, path: Path) -> None:
        directory = self._directory(path)
        directory.synced = dict(directory.names)

    def rename(self, source: Path, target: Path) -> None:
        names, others = self._directory(source.parent).names, self._directory(target.parent).names
        if source.name not in names:
            raise error(errno.ENOENT)
        there = others.get(target.name)
        if isinstance(there, Directory) and there.names:
            raise error(errno.ENOTEMPTY)
        others[target.name] = names.pop(source.name)

    def unlink(self, path: Path) -> None:
        self._file(path)
        del self._directory(path.parent).names[path.name]

    def file_size(self, path: Path) -> int:
        return len(self._file(path).data)

    def open(self, path: Path, flags: int) -> int:
        names = self._directory(path.parent).names
        if path.name not in names and flags & os.O_CREAT:
            names[path.name] = File()
        file = self._file(path)
        if flags & os.O_TRUNC:
            del file.data[:]  # what a power failure brings back is the old content
            file.lost, file.room_end = [], 0
        self._next_fd += 1
        self._open[self._next_fd] = file
        if not flags & os.O_APPEND:
            self._places[self._next_fd] = 0
        return self._next_fd

    def close(self, fd: int) -> None:
        file = self._open.pop(fd)
        self._places.pop(fd, None)
        if file.locked_by == fd:
            file.locked_by = None

    def lock(self, fd: int) -> bool:
        file = self._open[fd]
        if file.locked_by is None:
            file.locked_by = fd
        return file.locked_by == fd

    def size(self, fd: int) -> int:
        return len(self._open[fd].data)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._open[fd].data[offset : offset + length])

    def write(self, fd: int, data: bytes) -> int:
        file = self._open[fd]
        start = self._places.get(fd, len(file.data))
        room = max(len(file.data), file.room_end) - start + self._free()
        if room == 0:
            raise error(errno.ENOSPC)
        taken = data[:room]
        file.data[start : start + len(taken)] = taken
        if fd in self._places:
            self._places[fd] += len(taken)
        return len(taken)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        file = self._open[fd]
        end = max(len(file.data), file.room_end)
        if offset + length - end > self._free():
            raise error(errno.ENOSPC)
        file.room_end = max(file.room_end, offset + length)

    def truncate(self, fd: int, length: int) -> None:
        file = self._open[fd]
        del file.data[length:]
        file.room_end = 0

    def sync(self, fd: int) -> None:
        file = self._open[fd]
        content = bytearray(file.data)
        for start, end in file.lost:
            content[start:end] = bytes(len(content[start:end]))
        file.synced = bytes(content)

    def _free(self) -> int:
        return 1 << 40 if self.capacity is None else max(0, self.capacity - self.used())

    def _directory(self, path: Path) -> Directory:
        entry: Any = self._root
        for part in path.parts[1:]:
            if not isinstance(entry, Directory):
                raise error(errno.ENOTDIR)
            if part not in entry.names:
                raise error(errno.ENOENT)
            entry = entry.names[part]
        return _as_directory(entry)

    def _file(self, path: Path) -> File:
        entry = self._directory(path.parent).names.get(path.name)
        if not isinstance(entry, File):
            raise error(errno.ENOENT if entry is None else errno.EISDIR)
        return entry


def _as_directory(entry: File | Directory) -> Directory:
    if not isinstance(entry, Directory):
        raise error(errno.ENOTDIR)
    return entry


def _survivors(file: File, kept: Kept) -> bytes:
    """``synced`` is what counts; of later changes anything may be there, also a mere length."""
    data, synced = bytes(file.data), file.synced
    if kept == "all":
        return data
    if kept == "zeros":
        return synced + bytes(max(0, len(data) - len(synced)))
    if kept == "half" and data.startswith(synced):
        return data[: (len(synced) + len(data)) // 2]
    if kept == "half":
        return data[: len(data) // 2] + synced[len(data) // 2 :]
    return synced
