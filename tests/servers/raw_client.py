"""A client that sends exact bytes and tells exactly what came back."""

from __future__ import annotations

import http.client
import socket
import time
from dataclasses import dataclass, field

NO_HEADERS = http.client.HTTPMessage()


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 when the connection was closed without a word."""

    status: int
    elapsed_s: float
    headers: http.client.HTTPMessage = field(default=NO_HEADERS, repr=False)
    body: bytes = b""


def exchange(port: int, data: bytes, *, ends: bool = True, timeout_s: float = 15.0) -> Answer:
    """Send bytes on a connection of their own and read one answer.

    With ``ends`` the sending half is closed behind them. TimeoutError when nothing came back.
    """
    started_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        try:
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered, or closed, before it had read everything
        reply = http.client.HTTPResponse(connection, method="POST")
        try:
            reply.begin()
            body = reply.read()
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return Answer(0, time.monotonic() - started_s)
        finally:
            reply.close()
        return Answer(reply.status, time.monotonic() - started_s, reply.headers, body)
