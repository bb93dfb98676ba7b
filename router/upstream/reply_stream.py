"""A reply on its way to the client: bytes pass, usage is tapped, the end is always told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, Literal, get_args

from router.call import Outcome, Usage
from router.errors import BackendTimeout, ClientGone
from router.providers.provider import StreamTranslator
from router.upstream.transport import Exchange, TransportError

DRAIN_S: Final = 30.0
END_S: Final = 1.0
"""How long a reply that is complete may take to say so on the level of HTTP."""
MAX_DRAINS: Final = 20
"""How many abandoned streams one worker reads to their end at the same time."""

StreamFault = Literal[
    "BackendTimeout",
    "connection closed early",
    "connection lost",
    "error event in stream",
    "malformed reply",
    "malformed stream",
    "receive failed",
    "reply too large",
    "stream ended early",
]
"""How a stream breaks, in words of ours: what a backend says of itself may quote its client."""

_FAULTS: Final[tuple[StreamFault, ...]] = get_args(StreamFault)
_draining = 0


class ReplyStream:
    """Iterates over the bytes for the client. ``close`` may come at any time, also before the
    first byte; afterwards ``outcome`` and ``usage`` are final."""

    def __init__(self, exchange: Exchange, translator: StreamTranslator, *, drain: bool) -> None:
        self._exchange = exchange
        self._translator = translator
        self._drain = drain
        self.outcome: Outcome | None = None
        self.failure: str | None = None
        self.fault: StreamFault | None = None
        """The kind of failure, for records."""
        self.ended_s = 0.0

    @property
    def usage(self) -> Usage | None:
        """What the backend reported so far."""
        return self._translator.usage

    @property
    def usage_at_start(self) -> Usage | None:
        """What the backend said of the input before it began, if it does."""
        return self._translator.usage_at_start

    @property
    def is_complete(self) -> bool:
        """Whether the answer has come to its proper end; its connection may have not."""
        return self._translator.complete

    @property
    def output_chars(self) -> int:
        """Characters generated so far, for an estimate."""
        return self._translator.output_chars

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next bytes; raises ``StopIteration`` when the reply has ended in whatever way."""
        while self.outcome is None:
            data = self._step()
            if data:
                return data
        raise StopIteration

    def _step(self) -> bytes:
        try:
            chunk = self._exchange.read_chunk()
            if chunk:
                data = self._translator.feed(chunk)
                if self._translator.error is not None:
                    fault: StreamFault = "error event in stream"
                    return data + self._fail("upstream_aborted", self._translator.error, fault)
                if self._translator.complete:
                    self._exchange.shorten_deadline(END_S)
                return data
            return self._finish()
        except (ClientGone, BackendTimeout, TransportError, ValueError) as error:
            return self._break(error)

    def _break(self, error: Exception) -> bytes:
        if self._translator.complete:  # nothing is missing; only the connection is lost
            self._exchange.close()
            return self._finish()
        if isinstance(error, ClientGone):
            self._end("client_aborted")
            return b""
        if isinstance(error, BackendTimeout):
            return self._fail("timeout", error.phase, "BackendTimeout")
        return self._fail("upstream_aborted", str(error), _fault_of(error))

    def _finish(self) -> bytes:
        data = self._translator.finish()
        if self._translator.complete:
            self._end("completed")
            return data
        return data + self._fail("upstream_aborted", "stream ended early", "stream ended early")

    def _fail(self, outcome: Outcome, reason: str, fault: StreamFault) -> bytes:
        """End the stream; what the client is told of it is written by the api layer."""
        self.failure, self.fault = reason, fault
        self._exchange.close()
        self._end(outcome)
        return b""

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended_s = time.monotonic()

    def close(self) -> None:
        """Nobody reads on. What has not ended was given up by the client."""
        if self.outcome is not None:
            return
        if self._translator.complete:  # the last byte was read, only the end of the body was not
            self._read_end()
            return
        try:
            if self._drain:
                self._drain_rest()
        finally:  # a worker that shuts down ends what still drains
            self._exchange.close()
            self._end("client_aborted")

    def _read_end(self) -> None:
        self._exchange.shorten_deadline(END_S)
        try:
            while self._exchange.read_chunk():
                pass
        except (TransportError, BackendTimeout, ClientGone):
            pass  # the reply was complete; only the connection is lost
        self._end("completed")

    def _drain_rest(self) -> None:
        """Read the backend to its end, so that the usage it reports at last is known."""
        global _draining
        if _draining >= MAX_DRAINS:
            return
        _draining += 1
        self._exchange.shorten_deadline(DRAIN_S)
        try:
            while chunk := self._exchange.read_chunk():
                self._translator.feed(chunk)
            self._translator.finish()
        except (TransportError, BackendTimeout, ClientGone, ValueError):
            pass  # what was reported until here is what is known
        finally:
            _draining -= 1


def _fault_of(error: Exception) -> StreamFault:
    if not isinstance(error, TransportError):
        return "malformed stream"
    kind = error.reason.partition(":")[0]  # details of the system or of the parser follow
    return next((fault for fault in _FAULTS if fault == kind), "connection lost")
