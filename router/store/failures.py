"""What can go wrong with the record store; callers need not know SQL."""

from __future__ import annotations

from typing import Literal

RecordKind = Literal["usage", "audit"]


class StoreError(Exception):
    """The base; the message is for the operator and contains no password."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, opened, read or written now; later it may."""


class StoreAbsent(StoreUnavailable):
    """There is no SQLite file, or no table; an agent makes them when it starts."""


class StoreTimeout(StoreError):
    """A query took too long."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the record store did not answer within {timeout_s:g} s")
        self.timeout_s = timeout_s


class StoreInUse(StoreError):
    """Another process writes this SQLite file; two writers could destroy it."""


class UnstorableRecord(StoreError):
    """One record of a batch can never be stored; nothing of the batch was."""

    def __init__(self, kind: RecordKind, index: int, reason: str) -> None:
        super().__init__(f"{kind} record {index} of the batch cannot be stored: {reason}")
        self.kind = kind
        self.index = index
        self.reason = reason


class ResultTooLarge(StoreError):
    """The answer has too many rows; a part of it could be mistaken for all of it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer has more than {limit} rows: narrow the period or the groups")
        self.limit = limit


class BadQuery(StoreError):
    """A query is invalid; ``field`` names its wrong part."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
