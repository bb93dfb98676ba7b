"""A streamed reply on its way to the client, which ends in exactly one outcome."""

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
"""How long the HTTP body of a complete reply may take to end."""
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
"""How a stream breaks, in our own words: those of a backend may quote its client."""

_FAULTS: Final[tuple[StreamFault, ...]] = get_args(StreamFault)
_draining = 0


class ReplyStream:
    """Iterates over the bytes for the client.

    ``close`` may be called at any time, also before the first byte. After it, or after the last
    byte, ``outcome`` and ``usage`` are final.
    """

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
        """What the backend reported of the input before it generated, if it did."""
        return self._translator.usage_at_start

    @property
    def is_complete(self) -> bool:
        """Whether the reply has come to its proper end; its HTTP body may not have ended yet."""
        return self._translator.complete

    @property
    def output_bytes(self) -> int:
        """Bytes of the text generated so far, for an estimate."""
        return self._translator.output_bytes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next bytes; raises ``StopIteration`` when the reply has ended, however it did."""
        while self.outcome is None:
            data = self._step()
            if data:
                return data
        raise StopIteration

    def _step(self) -> bytes:
        translator = self._translator
        try:
            chunk = self._exchange.read_chunk()
            data = translator.feed(chunk) if chunk else translator.finish()
        except (ClientGone, BackendTimeout, TransportError, ValueError) as error:
            return self._break(error)
        if not chunk:
            self._end_of_body()
        elif translator.error is not None:
            self._fail("upstream_aborted", translator.error, "error event in stream")
        elif translator.complete:
            self._exchange.shorten_deadline(END_S)
        return data

    def _end_of_body(self) -> None:
        if self._translator.complete:
            self._end("completed")
        else:
            self._fail("upstream_aborted", "stream ended early", "stream ended early")

    def _break(self, error: Exception) -> bytes:
        if self._translator.complete:  # nothing is missing; only the connection is lost
            self._exchange.close()
            self._end("completed")
            return self._translator.finish()
        if isinstance(error, ClientGone):
            self._end("client_aborted")
        elif isinstance(error, BackendTimeout):
            self._fail("timeout", error.phase, "BackendTimeout")
        else:
            self._fail("upstream_aborted", str(error), _fault_of(error))
        return b""

    def _fail(self, outcome: Outcome, reason: str, fault: StreamFault) -> None:
        """End the stream; what its client reads of the failure is written by the api layer."""
        self.failure, self.fault = reason, fault
        self._exchange.close()
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended_s = time.monotonic()

    def close(self) -> None:
        """The client reads no more: a reply that has not ended yet was aborted by it."""
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
        """Read the backend's reply to its end, where it reports the usage."""
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
            pass  # the usage that was reported until here is what is known
        finally:
            _draining -= 1


def _fault_of(error: Exception) -> StreamFault:
    if not isinstance(error, TransportError):
        return "malformed stream"
    kind = error.reason.partition(":")[0]  # details of the system or of the parser follow
    return next((fault for fault in _FAULTS if fault == kind), "connection lost")
