"""Listens, gives every connection a thread, and takes all of them back when it stops."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable

from router.mock_backend.journal import Journal
from router.mock_backend.wire import Connection

_BACKLOG = 1024
_STOP_TIMEOUT_S = 5.0
_ACCEPT_PAUSE_S = 0.01


class Acceptor:
    """A listening socket and the threads behind it; OSError when the address cannot be had."""

    def __init__(
        self, address: tuple[str, int], serve: Callable[[Connection], None], journal: Journal
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._serve = serve
        self._journal = journal
        self._lock = threading.Lock()
        self._serving: dict[threading.Thread, Connection] = {}
        self._stopping = threading.Event()
        self._wakened, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="mock-accept", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def stopping(self) -> bool:
        """Tell whether connections end now because the server does."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Refuse new connections, break the open ones and wait for every thread to end."""
        self._stopping.set()
        self._waker.send(b"x")
        self._thread.join(_STOP_TIMEOUT_S)
        with self._lock:
            serving = list(self._serving)
            for connection in self._serving.values():
                connection.interrupt()
        for thread in serving:
            thread.join(_STOP_TIMEOUT_S)
        for sock in (self._listener, self._wakened, self._waker):
            sock.close()

    def _accept_all(self) -> None:
        accepted = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wakened, selectors.EVENT_READ)
            while True:
                selector.select()
                if self.stopping:
                    return
                accepted += 1
                self._accept(accepted)

    def _accept(self, number: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # The client left already, or descriptors ran out: then a pause spares the processor.
            self._stopping.wait(_ACCEPT_PAUSE_S)
            return
        connection = Connection(sock, number)
        thread = threading.Thread(
            target=self._run, args=(connection,), name=f"mock-connection-{number}", daemon=True
        )
        self._journal.count("connections_accepted")
        self._journal.count("connections_open")
        with self._lock:
            self._serving[thread] = connection
        thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            self._serve(connection)
        finally:
            # Off the list before it is closed: `stop` must not reach for a descriptor's next owner.
            with self._lock:
                del self._serving[threading.current_thread()]
            connection.close()
            self._journal.count("connections_open", -1)
