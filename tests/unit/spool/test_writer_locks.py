"""Which writers live, for several threads at once."""

from __future__ import annotations

import threading
from pathlib import Path

from router.spool.disk import SpoolIO
from router.spool.writer_locks import WriterLocks

WRITER = "w-1"


class Asking(SpoolIO):
    """Another thread asks what is wrong, each time that this one tries a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str | None] = []
        self.locks: WriterLocks | None = None

    def open(self, path: Path, flags: int) -> int:
        assert self.locks is not None
        self.heard.append(self.locks.trouble(WRITER))
        return super().open(path, flags)


def test_a_trouble_lasts_while_the_lock_is_tried_again(tmp_path: Path) -> None:
    """Q5: or it would be told twice, and the writer waited for in between."""
    lock = tmp_path / WRITER / "lock"
    lock.mkdir(parents=True)
    io = Asking()
    io.locks = locks = WriterLocks(tmp_path, io, keep=True)
    for _ in range(3):
        assert locks.is_alive(WRITER)
    first, *later = io.heard
    assert first is None
    assert [text is not None and "directory" in text for text in later] == [True, True]
    lock.rmdir()
    lock.touch()
    assert not locks.is_alive(WRITER)
    assert locks.trouble(WRITER) is None
    locks.close()


def test_one_thread_removes_a_directory(tmp_path: Path) -> None:
    """Q5: another one used to make the lock anew in between, and removing failed."""
    errors: list[OSError] = []

    class Interrupted(SpoolIO):
        def unlink(self, path: Path) -> None:
            super().unlink(path)
            if path.name == "lock" and not threads:
                threads.append(threading.Thread(target=remove))
                threads[0].start()
                threads[0].join(0.05)

    def remove() -> None:
        try:
            locks.remove_unstarted(".w-1")
        except OSError as error:
            errors.append(error)

    threads: list[threading.Thread] = []
    locks = WriterLocks(tmp_path, Interrupted(), keep=True)
    (tmp_path / ".w-1").mkdir()
    remove()
    threads[0].join()
    assert errors == []
    assert list(tmp_path.iterdir()) == []
