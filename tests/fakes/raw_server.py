"""A live TCP server that plays a script on each connection and records what it received.

It knows no HTTP beyond finding the end of a request, so it can answer in ways that no HTTP server
would. A script is a function of one :class:`Peer`; ``answer``, ``silent`` and their like make the
usual ones. The n-th connection plays the n-th script, and the last script serves all that follow.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_JOIN_S: Final = 5.0


class PeerGone(Exception):
    """The other side has closed, so the script is over."""


class Peer:
    """One accepted connection, as its script sees it."""

    def __init__(self, server: RawServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._unread = b""
        self.received = bytearray()
        """Every byte that arrived, decrypted."""
        self.requests: list[bytes] = []
        self.closed_s: float | None = None
        """When the other side was seen to close, on the monotonic clock."""

    def read_request(self) -> bytes:
        """The next request with its body; raises :class:`PeerGone` at the end of the stream."""
        while (size := _request_size(self._unread)) is None:
            self._unread += self.read_some()
        missing = size - len(self._unread)
        parts = [self._unread]
        while missing > 0:
            parts.append(self.read_some())
            missing -= len(parts[-1])
        whole = b"".join(parts)
        request, self._unread = whole[:size], whole[size:]
        self.requests.append(request)
        self._server.requests.append(request)
        return request

    def read_some(self) -> bytes:
        """Whatever has arrived; raises :class:`PeerGone` at the end of the stream."""
        try:
            data = self._sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.closed_s = self.closed_s or time.monotonic()
            raise PeerGone
        self.received += data
        return data

    def send(self, data: bytes) -> None:
        """Send all of it; raises :class:`PeerGone` when nobody is there to take it."""
        try:
            self._sock.sendall(data)
        except OSError:
            self.closed_s = self.closed_s or time.monotonic()
            raise PeerGone from None

    def trickle(self, data: bytes, every_s: float) -> None:
        """Send one byte after the other."""
        for index in range(len(data)):
            self.send(data[index : index + 1])
            self.pause(every_s)

    def pause(self, seconds: float) -> None:
        """Do nothing for a while; raises :class:`PeerGone` when the server is told to stop."""
        if self._server.stopping.wait(seconds):
            raise PeerGone

    def wait_closed(self) -> None:
        """Read on until the other side has closed."""
        while True:
            self.read_some()

    def end(self) -> None:
        """Close the connection in good order: whoever is reading sees its end."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def end_tls(self) -> None:
        """Say that nothing more comes in the way of TLS, and close in good order."""
        assert isinstance(self._sock, ssl.SSLSocket)
        self._sock.settimeout(0.2)
        try:
            self._sock = self._sock.unwrap()
        except OSError:
            pass  # the other side has not said it too, or not yet
        self.end()

    def secure(self, tls: ssl.SSLContext) -> None:
        """Shake hands as a server."""
        self._sock = tls.wrap_socket(self._sock, server_side=True)

    def reset(self) -> None:
        """Break the connection: whoever is reading sees an error."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def abandon(self) -> None:
        """Wake the script if it waits for bytes."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


Script = Callable[[Peer], None]


class RawServer:
    """Listens on a port of its own on 127.0.0.1 from the first moment to ``close``."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._tls = tls
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self.stopping = threading.Event()
        self.peers: list[Peer] = []
        self.requests: list[bytes] = []
        """Whole requests in the order of their arrival, over all connections."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def scheme(self) -> str:
        """``http``, or ``https`` with certificates."""
        return "http" if self._tls is None else "https"

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> tuple[str, str, int]:
        """Where it is, as connection pools spell it."""
        return self.scheme, "127.0.0.1", self.port

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        return len(self.peers)

    def close(self) -> None:
        """End every connection; raises what a script has raised."""
        self.stopping.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake accept()
        except OSError:
            pass
        self._listener.close()
        self._acceptor.join(_JOIN_S)
        for peer in self.peers:
            peer.abandon()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if self._failures:
            raise self._failures[0]

    def __enter__(self) -> RawServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
            peer = Peer(self, sock)
            self.peers.append(peer)
            thread = threading.Thread(target=self._play, args=(script, peer), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, script: Script, peer: Peer) -> None:
        try:
            if self._tls is not None:
                peer.secure(self._tls)
            script(peer)
        except (PeerGone, OSError):
            pass
        except BaseException as error:
            self._failures.append(error)
        finally:
            peer.close()


def _request_size(data: bytes) -> int | None:
    """Bytes of the first request in ``data``; ``None`` while its head is not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    found = _CONTENT_LENGTH.search(data, 0, end + 2)
    return end + 4 + (int(found[1]) if found else 0)


# --- scripts --------------------------------------------------------------------------------


def answer(*replies: bytes) -> Script:
    """Answer each request with the next reply, the last of them again and again."""

    def play(peer: Peer) -> None:
        count = 0
        while True:
            peer.read_request()
            peer.send(replies[min(count, len(replies) - 1)])
            count += 1

    return play


def answer_and_end(data: bytes) -> Script:
    """Answer one request with these bytes, then close in good order."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.end()
        peer.wait_closed()

    return play


def answer_and_reset(data: bytes) -> Script:
    """Answer one request with these bytes, then break the connection."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        if data:
            peer.pause(0.05)  # a reset at once would overtake the bytes
        peer.reset()

    return play


def answer_and_hang(data: bytes) -> Script:
    """Answer one request with these bytes, then do nothing until the other side closes."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)
        peer.wait_closed()

    return play


def trickle(data: bytes, every_s: float, *, at_once: bytes = b"") -> Script:
    """Answer one request byte by byte, after what is sent at once."""

    def play(peer: Peer) -> None:
        peer.read_request()
        peer.send(at_once)
        peer.trickle(data, every_s)
        peer.wait_closed()

    return play


def silent(peer: Peer) -> None:
    """Take whatever arrives and never answer."""
    peer.wait_closed()


def deaf(peer: Peer) -> None:
    """Accept, and do not read a single byte."""
    peer.pause(60.0)


def refuse(peer: Peer) -> None:
    """Accept, and break the connection at once."""
    peer.reset()


# --- replies --------------------------------------------------------------------------------


def reply(
    body: bytes = b"{}", status: int = 200, *, headers: tuple[str, ...] = (), length: bool = True
) -> bytes:
    """A whole HTTP/1.1 reply; ``headers`` are lines such as ``Retry-After: 7``."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes, status: int = 200, headers: tuple[str, ...] = ()) -> bytes:
    """A whole reply whose body comes in these chunks."""
    head = reply(b"", status, headers=(*headers, "Transfer-Encoding: chunked"), length=False)
    return head + b"".join(chunk(data) for data in chunks) + chunk(b"")


def chunk(data: bytes) -> bytes:
    """One chunk on the wire; an empty one ends the body."""
    return f"{len(data):x}\r\n".encode("ascii") + data + b"\r\n"


def event_stream(*events: bytes) -> bytes:
    """A whole reply that is a stream of server-sent events, each a chunk."""
    return chunked(*events, headers=("Content-Type: text/event-stream",))
