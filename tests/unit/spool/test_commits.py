"""How long an append waits for its sync, by the time that the disk has had."""

from __future__ import annotations

from concurrent import futures
from typing import cast

import pytest

from router.errors import RecordsUnavailable
from router.spool.commits import STALLED_S, Commit, is_synced
from router.spool.disk import DiskThread


class Late(futures.Future[bool]):
    """Ends after so many waits that were in vain."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits = waits
        self.set_result(True)

    def result(self, timeout: float | None = None) -> bool:
        self.waits -= 1
        if self.waits >= 0:
            raise futures.TimeoutError
        return super().result(timeout)


class Disk:
    """Works for some part of each wait."""

    def __init__(self, commit: Late, waits: int, each_s: float) -> None:
        self._commit, self._waits, self._each_s = commit, waits, each_s

    def worked_s(self) -> float:
        return 100.0 + (self._waits - self._commit.waits) * self._each_s


@pytest.mark.parametrize(
    ("waits", "each_s", "synced"),
    [
        (0, 0.0, True),
        (1, 0.0, True),
        (3, 0.01, True),
        (1, STALLED_S + 0.1, False),
        (3, STALLED_S / 2 + 0.1, False),
        (4, 0.0, False),
    ],
    ids=["at once", "busy loop", "very busy", "slow disk", "slow in the end", "for ever"],
)
def test_only_the_disk_is_blamed(waits: int, each_s: float, synced: bool) -> None:
    """P14: five seconds in which the loop was busy used to be a disk that is slow."""
    commit = Late(waits)
    disk = cast(DiskThread, Disk(commit, waits, each_s))
    if synced:
        assert is_synced(cast(Commit, commit), disk, 100.0)
        return
    with pytest.raises(RecordsUnavailable) as refused:
        is_synced(cast(Commit, commit), disk, 100.0)
    assert (refused.value.reason, refused.value.nothing_written) == ("disk_slow", False)
