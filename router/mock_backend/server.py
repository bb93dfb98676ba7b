"""A mock backend that runs in threads of its own, within a test or under `routerctl`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from router.mock_backend.acceptor import Acceptor
from router.mock_backend.behaviour import Behaviour, Dial, Draw
from router.mock_backend.control import CONTROL_PREFIX, Control
from router.mock_backend.delivery import deliver, reject
from router.mock_backend.endpoints import INFERENCE_PATHS, KNOWN_PATHS, Endpoints
from router.mock_backend.journal import Journal, Stats
from router.mock_backend.received import ReceivedRequest, read_request
from router.mock_backend.replies import error_answer
from router.mock_backend.wire import ClientGoneError, Connection, RequestError

DEFAULT_MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small")

# A refused client has this long to show that it wants a control path; then it is cut off.
_REFUSAL_S = 0.05
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class MockBackend:
    """An OpenAI-compatible server on a socket of its own, from `start` (or `with`) to `stop`.

    Port 0 takes a free one; after a stop, the next start takes the same again. With an API key,
    every path under /v1/ demands it as a bearer token. The name shows in `system_fingerprint`.
    """

    def __init__(
        self,
        name: str = "mock",
        behaviour: Behaviour | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        models: Sequence[str] = DEFAULT_MODELS,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError("a backend's name is letters, digits, dots, dashes and underscores")
        self.name = name
        self._host = host
        self._port = port
        self._dial = Dial(behaviour or Behaviour())
        self._journal = Journal(KNOWN_PATHS)
        self._endpoints = Endpoints(name, models, api_key)
        self._control = Control(self._dial, self._journal)
        self._acceptor: Acceptor | None = None

    def __enter__(self) -> MockBackend:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; connections are served from the moment this returns."""
        if self._acceptor is None:
            self._acceptor = Acceptor((self._host, self._port), self._serve, self._journal)
            self._port = self._acceptor.port

    def stop(self) -> None:
        """Close the port and every connection; their clients do not count as aborted."""
        if self._acceptor is not None:
            self._acceptor.stop()
            self._acceptor = None

    @property
    def port(self) -> int:
        """Return the port; 0 until the first start where any was asked for."""
        return self._port

    @property
    def url(self) -> str:
        """Return the address without a path; an OpenAI client's base URL is this plus `/v1`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def behaviour(self) -> Behaviour:
        """Return the settings in force."""
        return self._dial.behaviour

    def set(self, **changes: Any) -> None:
        """Change the named settings for the requests that come from now on."""
        self._dial.change(changes)

    def reset(self) -> None:
        """Return to the first behaviour, with counts at zero and no request kept."""
        self._dial.reset()
        self._journal.reset()

    def requests(self) -> list[ReceivedRequest]:
        """Return the latest requests, the oldest first, control paths aside."""
        return self._journal.requests()

    def forget_requests(self) -> None:
        """Drop the kept requests."""
        self._journal.forget_requests()

    def stats(self) -> Stats:
        """Return the counts."""
        return self._journal.stats()

    def wait_for(self, condition: Callable[[Stats], bool], timeout_s: float = 5.0) -> Stats:
        """Return the counts as soon as they meet a condition; TimeoutError when they do not."""
        return self._journal.wait_for(condition, timeout_s)

    def _serve(self, connection: Connection) -> None:
        try:
            while self._serve_next(connection):
                pass
        except ClientGoneError:
            return  # Counted, if anything was owed, where the answer was being sent.

    def _serve_next(self, connection: Connection) -> bool:
        """Serve one request; False when the connection is to be closed."""
        if not connection.fill(self._patience_s()) or self._refuses(connection):
            return False
        try:
            request = read_request(connection)
        except RequestError as refusal:
            self._reject(connection, refusal)
            return False
        if request.path.startswith(CONTROL_PREFIX):
            return deliver(connection, request, self._control.answer(request), Draw(Behaviour()))
        with self._journal.answering(request):
            return self._answer(connection, request)

    def _answer(self, connection: Connection, request: ReceivedRequest) -> bool:
        draws = request.method == "POST" and request.path in INFERENCE_PATHS
        draw = self._dial.draw() if draws else Draw(self._dial.behaviour)
        try:
            return deliver(connection, request, self._endpoints.answer(request, draw), draw)
        except ClientGoneError:
            if not self._stopping():
                self._journal.count("aborted")
            raise

    def _reject(self, connection: Connection, refusal: RequestError) -> None:
        if self._stopping():
            return
        self._journal.count("malformed")
        answer = error_answer(refusal.status, str(refusal), code="malformed_request")
        reject(connection, answer)

    def _patience_s(self) -> float | None:
        behaviour = self._dial.behaviour
        if behaviour.failure == "refuse":
            return _REFUSAL_S
        return None if behaviour.keepalive_ms is None else behaviour.keepalive_ms / 1000

    def _refuses(self, connection: Connection) -> bool:
        """Decide by the first bytes, unread: a refused request was never received."""
        if self._dial.behaviour.failure != "refuse":
            return False
        return f" {CONTROL_PREFIX}".encode() not in connection.buffered.partition(b"\n")[0]

    def _stopping(self) -> bool:
        return self._acceptor is not None and self._acceptor.stopping
