"""Leases on the disk that wait to be settled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from router.limits.leases.unsettled_leases import UnsettledLeases
from router.records.open_calls import Unsettled, decode_unsettled
from router.spool.frames import UNSETTLED
from router.spool.reader import SpoolReader, read_batches

T = TypeVar("T")
CALLERS = 4


def test_one_file_is_opened_for_all_that_come_at_once(tmp_path: Path) -> None:
    """An outage leaves many calls unsettled in the same moment, while the disk is waited for."""
    at_disk = threading.Barrier(CALLERS)

    def offload(work: Callable[[], T]) -> T:
        try:
            at_disk.wait(0.2)  # until all have come to the disk, or will not
        except threading.BrokenBarrierError:
            pass
        return work()

    leases = UnsettledLeases(tmp_path, 900.0, offload=offload)
    calls = [Unsettled(f"r-{number}", "acme", (), 1, 2, 1) for number in range(CALLERS)]
    threads = [threading.Thread(target=leases.put_all, args=([call],)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases.close()
    (directory,) = tmp_path.iterdir()
    reader = SpoolReader(tmp_path)
    frames = [frame for batch in read_batches(reader, directory.name) for frame in batch.frames]
    found = [decode_unsettled(frame.payload) for frame in frames if frame.kind == UNSETTLED]
    reader.close()
    assert sorted(call.record_id for call in found) == [f"r-{number}" for number in range(CALLERS)]
