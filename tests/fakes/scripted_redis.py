"""A server that speaks Redis' protocol and answers what a test tells it to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import hiredis

Answer = Callable[[list[bytes]], "bytes | None"]
"""A command → the reply as it goes over the wire; ``None`` is silence."""


def bulk(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"$%d\r\n%b\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(items), b"".join(items))


class ScriptedRedis:
    """Listens on 127.0.0.1 until closed. ``answer`` may be replaced at any time."""

    def __init__(self, answer: Answer = lambda _command: b"+OK\r\n") -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def names(self) -> list[bytes]:
        """The commands that came, without their arguments."""
        return [command[0] for command in self.commands]

    def hang_up(self) -> None:
        """Close every connection, go on listening."""
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        self.hang_up()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        reader = hiredis.Reader()
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                reader.feed(data)
                while (command := reader.gets()) is not False:
                    self.commands.append(command)
                    reply = self.answer(command)
                    if reply is not None:
                        client.sendall(reply)
