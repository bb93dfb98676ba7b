"""A client that reads a stream event by event and may leave it, politely or not."""

from __future__ import annotations

import json
import socket
import struct
import time
from types import TracebackType
from typing import Any

TIMEOUT_S = 15.0


class StreamingClient:
    """One call on a connection of its own."""

    def __init__(
        self,
        port: int,
        path: str,
        fields: Any,
        headers: dict[str, str],
        *,
        small_window: bool = False,
    ) -> None:
        self._socket = socket.socket()
        if small_window:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(("127.0.0.1", port))
        self._received = b""
        self.request_id = headers.get("X-Request-ID", "")
        body = json.dumps(fields).encode()
        head = {"Host": "router.example", "Content-Type": "application/json", **headers}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        lines += [f"Content-Length: {len(body)}", "", ""]
        self._socket.sendall("\r\n".join(lines).encode() + body)

    def __enter__(self) -> StreamingClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def read_until(self, mark: bytes) -> tuple[bytes, float]:
        """What came up to and with ``mark``, and when; EOFError when the stream ends before."""
        while mark not in self._received:
            data = self._socket.recv(65_536)
            if not data:
                raise EOFError(f"the stream ended with {self._received[-200:]!r}")
            self._received += data
        before, _, self._received = self._received.partition(mark)
        return before + mark, time.monotonic()

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, by lower-case name."""
        head, _ = self.read_until(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    def read_event(self) -> tuple[bytes, float]:
        """The bytes up to the end of the next event, its chunk's size included, and when."""
        return self.read_until(b"\n\n")

    def read_rest(self) -> bytes:
        """Everything up to the end of the connection or of the chunked body."""
        rest, self._received = self._received, b""
        while not rest.endswith(b"0\r\n\r\n"):
            data = self._socket.recv(65_536)
            if not data:
                break
            rest += data
        return rest

    def leave(self, *, rudely: bool = False) -> float:
        """Close with a FIN or, rudely, with an RST; when that was."""
        if rudely:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        return time.monotonic()
