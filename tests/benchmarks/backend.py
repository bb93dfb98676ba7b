"""The static backend: one process, one loop, one canned chat completion for every POST.

`python -m tests.benchmarks.backend [--port N]` prints the port that it listens on and serves until
SIGTERM. `GET /calls` answers with the number of POSTs so far: the benchmark uses it to prove that
each call of a forwarding subject reached a backend.
"""

from __future__ import annotations

import argparse
import json
import selectors
import signal
import socket

from tests.benchmarks.framing import MessageError, request_end
from tests.benchmarks.messages import REPLY_BODY, http_reply

_REPLY = http_reply(REPLY_BODY)
_REFUSAL = http_reply(b'{"error":"a Content-Length is required"}', "411 Length Required")


class Backend:
    """Accepts connections and answers them until the process ends."""

    def __init__(self, port: int) -> None:
        self._calls = 0
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    @property
    def port(self) -> int:
        """The port that the kernel gave us."""
        return int(self._listener.getsockname()[1])

    def serve_forever(self) -> None:
        """Answer whatever arrives; returns never."""
        select = self._selector.select
        while True:
            for key, _ in select():
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection, selectors.EVENT_READ, bytearray())

    def _read(self, connection: socket.socket, received: bytearray) -> None:
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        received += data
        if not data or not self._answer(connection, received):
            self._selector.unregister(connection)
            connection.close()

    def _answer(self, connection: socket.socket, received: bytearray) -> bool:
        """Reply to each complete request; False when the connection is of no further use."""
        try:
            while (end := request_end(received)) is not None:
                connection.sendall(self._reply_to(received))
                del received[:end]
        except MessageError:
            connection.send(_REFUSAL)
            return False
        except OSError:
            return False
        return True

    def _reply_to(self, received: bytearray) -> bytes:
        if received.startswith(b"POST "):
            self._calls += 1
            return _REPLY
        if received.startswith(b"GET /calls "):
            return http_reply(json.dumps({"calls": self._calls}).encode())
        return _REPLY


def main() -> None:
    """Serve on the port asked for, 0 meaning any free one."""
    parser = argparse.ArgumentParser(description="Static backend of the benchmark.")
    parser.add_argument("--port", type=int, default=0)
    backend = Backend(parser.parse_args().port)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(backend.port, flush=True)
    backend.serve_forever()


if __name__ == "__main__":
    main()
