"""The calls of one worker that are sent and not charged yet, as its spool shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from router.records.dispatches import Dispatch, Lease, encode_dispatch
from router.spool.frames import DISPATCH, UNSETTLED


@dataclass(slots=True)
class Unsettled:
    """A call that has ended, with a lease that nobody is known to have settled."""

    record_id: str
    organization_id: str
    lease: Lease
    cost_nanos: int
    tokens: int
    requests: int


def encode_unsettled(unsettled: Unsettled) -> bytes:
    """One line of JSON."""
    return orjson.dumps(
        {
            "record_id": unsettled.record_id,
            "organization_id": unsettled.organization_id,
            "lease": unsettled.lease,
            "cost_nanos": unsettled.cost_nanos,
            "tokens": unsettled.tokens,
            "requests": unsettled.requests,
        }
    )


def decode_unsettled(payload: bytes) -> Unsettled:
    """Raises ``ValueError`` for what is none."""
    try:
        fields: dict[str, Any] = orjson.loads(payload)
        return Unsettled(**fields)
    except TypeError as error:
        raise ValueError(f"not an unsettled call: {error}") from None


class OpenCalls:
    """Each call from its dispatch until it is charged. Bounded by the calls that run at once."""

    def __init__(self) -> None:
        self._calls: dict[str, Dispatch | Unsettled] = {}
        self._is_marked = True
        """Nothing was settled since the last ``SETTLED`` frame."""

    def __len__(self) -> int:
        return len(self._calls)

    def dispatched(self, dispatch: Dispatch) -> None:
        """A call is being sent."""
        self._calls[dispatch.record_id] = dispatch

    def ended(
        self, record_id: str, *, cost_nanos: int, tokens: int, requests: int
    ) -> Dispatch | None:
        """Its record is about to be written. If it is not, the result has to be ``dispatched``
        again."""
        call = self._calls.get(record_id)
        if not isinstance(call, Dispatch):
            return None
        if call.lease is None:
            del self._calls[record_id]
        else:
            self._calls[record_id] = Unsettled(
                record_id, call.organization_id, call.lease, cost_nanos, tokens, requests
            )
        return call

    def settled(self, record_id: str) -> None:
        """It is charged, or the agent knows what to charge."""
        if self._calls.pop(record_id, None) is not None:
            self._is_marked = False

    def may_be_marked(self) -> bool:
        """Whether a ``SETTLED`` frame would be true and say something new, from now on."""
        if self._is_marked or any(isinstance(call, Unsettled) for call in self._calls.values()):
            return False
        self._is_marked = True
        return True

    def running(self) -> list[Dispatch]:
        """The calls that have not ended."""
        return [call for call in self._calls.values() if isinstance(call, Dispatch)]

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """What a new segment begins with."""
        for call in self._calls.values():
            if isinstance(call, Dispatch):
                yield DISPATCH, encode_dispatch(call)
            else:
                yield UNSETTLED, encode_unsettled(call)
