"""The record store of a running router or agent, read from outside."""

from __future__ import annotations

from typing import Any

from router.store.failures import StoreAbsent
from router.store.record_store import RecordStore


def stored_records(url: str, kind: Any) -> list[bytes]:
    """All records of a kind, encoded, by time; none while the agent has not made the store yet."""
    try:
        with RecordStore(url, read_only=True) as store:
            return [encoded for batch in store.read_records(kind) for _, encoded in batch]
    except StoreAbsent:
        return []
