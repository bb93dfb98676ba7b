"""Appends that wait for a sync, which all of one moment share."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent import futures
from typing import Final

from router.errors import RecordsUnavailable
from router.spool.disk import DiskThread

STALLED_S: Final = 2.0
"""A sync that takes longer is a slow disk."""
_WAIT_S: Final = 5.0
_WAITS: Final = 4

Commit = futures.Future[bool]
"""Whether the sync that an append waits for has succeeded."""


class Commits:
    """The commits that the next sync ends. Used under the writer's lock."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Commit] = []

    def join(self) -> Commit:
        """The commit of the next sync."""
        if not self._waiting:
            self._waiting.append(futures.Future())
        return self._waiting[-1]

    def take(self) -> list[Commit]:
        """All that wait now; they are to be ended, or put back."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def put_back(self, commits: list[Commit]) -> None:
        """The sync has failed, and they wait for the next one."""
        self._waiting = commits + self._waiting


def end(commits: Iterable[Commit], *, is_synced: bool) -> None:
    """Let the appends go on; not under the lock, as they may run at once."""
    for commit in commits:
        commit.set_result(is_synced)


def is_synced(commit: Commit, disk: DiskThread, since_s: float) -> bool:
    """Wait for a commit that began when the disk had worked ``since_s``.

    Raises :class:`RecordsUnavailable` when the disk is slow. Where others keep this process busy,
    the disk may have had no time at all, and the wait goes on, up to 20 s.
    """
    for _ in range(_WAITS):
        try:
            return commit.result(_WAIT_S)
        except futures.TimeoutError:
            if disk.worked_s() - since_s > STALLED_S:
                break
    raise RecordsUnavailable("disk_slow")
