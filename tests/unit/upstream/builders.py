"""Short ways to make what the tests of this folder need again and again."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from router.call import Attempt, Call, Operation
from router.config.document import Backend, Timeouts
from router.net.resolver import Resolver
from router.upstream.connection_pool import ConnectionPool, Endpoint
from router.upstream.forwarder import BackendReply, ForwardContext, Forwarder
from router.upstream.retry_budget import RetryBudget
from router.upstream.session import BackendSession
from router.upstream.targets import ReadCredential
from router.upstream.transport import Deadlines, Exchange

NO_TLS = ssl.create_default_context()
REPLY_BYTES = 10 * 1024 * 1024


def deadlines(
    *,
    connect_s: float = 2.0,
    first_byte_s: float = 5.0,
    idle_s: float = 5.0,
    total_s: float = 10.0,
    client_gone: Callable[[], bool] | None = None,
) -> Deadlines:
    """Waits that are far too long to matter, but for those that the test is about."""
    deadline_s = time.monotonic() + total_s
    return Deadlines(connect_s, first_byte_s, idle_s, deadline_s, client_gone)


def new_pool(
    endpoint: Endpoint,
    *,
    size: int = 4,
    idle_s: float = 30.0,
    tls: ssl.SSLContext = NO_TLS,
    resolver: Resolver | None = None,
) -> ConnectionPool:
    """A pool of connections to one endpoint."""
    return ConnectionPool(
        endpoint, size=size, idle_s=idle_s, resolver=resolver or Resolver(), tls=tls
    )


def head(body: bytes = b"{}") -> bytes:
    """The head of a request with this body."""
    text = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return text.encode("ascii")


def begin(pool: ConnectionPool, waits: Deadlines | None = None, body: bytes = b"{}") -> Exchange:
    """Send one request; the exchange has read the head of its reply."""
    exchange = pool.open(waits or deadlines())
    exchange.run(head(body), body)
    return exchange


def exchange_body(pool: ConnectionPool, waits: Deadlines | None = None) -> tuple[int, bytes]:
    """Status and body of one whole exchange."""
    exchange = begin(pool, waits)
    return exchange.status, exchange.read_all(REPLY_BYTES)


class ScriptedSocket:
    """Hands out the given pieces, one a read, then the end of the stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = deque(piece for piece in pieces if piece)

    def settimeout(self, _timeout_s: float) -> None:
        """Nothing here ever waits."""

    def send(self, data: bytes) -> int:
        """Takes everything."""
        return len(data)

    def recv(self, _size: int) -> bytes:
        """The next piece, whatever the size asked for."""
        return self.pieces.popleft() if self.pieces else b""


def replay(pieces: Iterable[bytes]) -> tuple[Exchange, list[bool]]:
    """An exchange whose reply arrives in exactly these pieces, and what it says when it is over."""
    reusable: list[bool] = []
    sock: Any = ScriptedSocket(pieces)
    exchange = Exchange(lambda _, clean: reusable.append(clean), sock, deadlines(), reused=False)
    return exchange, reusable


def read_pieces(pieces: Iterable[bytes]) -> tuple[int, list[list[str]], bytes, list[bool]]:
    """Status, headers, body and whether the connection may be used again."""
    exchange, reusable = replay(pieces)
    exchange.run(b"", b"")
    body = exchange.read_all(REPLY_BYTES)
    return exchange.status, exchange.headers, body, reusable


def new_backend(
    url: str,
    backend_id: str = "primary",
    *,
    kind: str = "openai",
    credential: str | None = None,
    models: dict[str, str] | None = None,
    **timeouts: float,
) -> Backend:
    """A backend at ``url``; ``timeouts`` are those of ``Timeouts``."""
    waits = {"connect_s": 2.0, "first_byte_s": 5.0, "idle_s": 5.0, "total_s": 10.0, **timeouts}
    return Backend(backend_id, kind, url + "/v1", credential, models or {}, Timeouts(**waits))


def new_call(
    operation: Operation = "chat",
    *,
    model: str = "gpt-4o",
    requested_model: str | None = None,
    stream: bool = False,
    include_usage: bool = False,
    translated: bool = False,
    **fields: Any,
) -> Call:
    """A call in the OpenAI dialect; ``translated`` means that it came in another one."""
    name = requested_model or model
    shown: dict[str, Any] = {"model": name, **fields}
    if operation == "chat":
        shown.setdefault("messages", [{"role": "user", "content": "hi"}])
    if stream:
        shown["stream"] = True
    return Call(
        dialect="native" if translated else "openai",
        operation=operation,
        model=model,
        requested_model=name,
        fields=shown,
        body=None if translated else orjson.dumps(shown),
        stream=stream,
        include_usage=include_usage,
    )


def new_forwarder(
    session: BackendSession,
    *,
    read_credential: ReadCredential = lambda reference: None,
    max_reply_bytes: int = REPLY_BYTES,
    drain: bool = False,
    retry_budget: RetryBudget | None = None,
) -> Forwarder:
    """A forwarder over a live session."""
    return Forwarder(
        session,
        read_credential=read_credential,
        max_reply_bytes=max_reply_bytes,
        drain_on_abort=drain,
        retry_budget=retry_budget or RetryBudget(),
    )


def forward(
    forwarder: Forwarder,
    *backends: Backend,
    call: Call | None = None,
    headers: list[tuple[str, str]] | None = None,
    client_gone: Callable[[], bool] | None = None,
    attempts: list[Attempt] | None = None,
) -> BackendReply:
    """Send one call to the first of these backends that takes it."""
    return forwarder.send(
        call or new_call(),
        backends,
        ForwardContext(headers or [], client_gone),
        [] if attempts is None else attempts,
        max_output_tokens=100,
    )


def completion(**more: Any) -> bytes:
    """A buffered chat completion that reports 5 + 7 tokens."""
    fields: dict[str, Any] = {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        **more,
    }
    return orjson.dumps(fields)
