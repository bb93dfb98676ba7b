"""A WSGI server and its client in one call, for tests that want to see how a response ends.

Requests look as gunicorn makes them: the raw target beside the decoded path. The body of a response
is read step by step, or not at all, which Flask's own test client does not allow.
"""

from __future__ import annotations

import io
import json as jsonlib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.contract.checker import Event, events_of

Application = Callable[..., Iterable[bytes]]
Headers = Iterable[tuple[str, str]] | Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header; several are joined."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def json(self) -> Any:
        return jsonlib.loads(self.body)

    @property
    def events(self) -> list[Event]:
        """The server-sent events of the body."""
        return list(events_of(self.body))


class OpenReply:
    """An answer of which only the head has been read."""

    def __init__(self, application: Application, environ: dict[str, Any]) -> None:
        self._head: tuple[int, list[tuple[str, str]]] | None = None
        self._body = application(environ, self._start)
        self._chunks: Iterator[bytes] | None = None
        assert self._head is not None
        self.status, self.headers = self._head

    def _start(self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        self._head = int(status[:3]), headers

    def __next__(self) -> bytes:
        """The next piece of the body, as a server would ask for it."""
        if self._chunks is None:
            self._chunks = iter(self._body)
        return next(self._chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def close(self) -> None:
        """What a server does in the end, also when the client has left."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    def read(self) -> Reply:
        """The whole answer, properly closed."""
        try:
            return Reply(self.status, self.headers, b"".join(self))
        finally:
            self.close()


def open_reply(
    application: Application,
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes | io.IOBase = b"",
    **environ: Any,
) -> OpenReply:
    """Send a request up to the head of its answer; ``environ`` replaces what would be made up."""
    path, _, query = target.partition("?")
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SCRIPT_NAME": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "127.0.0.1:8080",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else body,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if isinstance(body, bytes) and body:
        made["CONTENT_LENGTH"] = str(len(body))
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        key = name.upper().replace("-", "_")
        made[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return OpenReply(application, {**made, **environ})
