"""What a dialect has to know: how a call is read, how its reply and its errors look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from router.api.scope import Scope
from router.call import Call, Operation
from router.upstream.forwarder import BackendReply
from router.upstream.reply_stream import ReplyStream


@dataclass(frozen=True, slots=True)
class CallRoute:
    """A ``POST`` endpoint that serves calls of one kind."""

    path: str
    operation: Operation
    signature_in_body: bool = False
    """Whether a request signature may travel in the body instead of the headers."""


class Dialect(Protocol):
    """One dialect that clients speak. Calls and backends' replies are OpenAI-shaped inside."""

    @property
    def routes(self) -> Mapping[str, CallRoute]:
        """By endpoint name, as metrics and records show it: ``dialect.view``."""

    def read(self, scope: Scope, operation: Operation, fields: dict[str, Any], body: bytes) -> Call:
        """The call in a parsed body and its bytes; raises a subclass of ``RouterError``."""

    def render(self, scope: Scope, reply: BackendReply) -> bytes:
        """The JSON body for a whole reply; raises ``BackendFailed`` when it makes no sense."""

    def render_events(self, scope: Scope, reply: BackendReply) -> bytes | None:
        """A whole reply as events, for a client that asked for a stream; ``None`` to send it as it
        is."""

    def translate(self, scope: Scope, stream: ReplyStream) -> Iterator[bytes] | None:
        """The events for a stream; ``None`` when its bytes pass as they are."""

    def failure_event(self, error: Exception, *, trace_id: str) -> bytes:
        """The last event of a stream that broke."""

    def error_body(self, error: Exception, *, trace_id: str) -> bytes:
        """The body of an error. Names no host and no secret."""
