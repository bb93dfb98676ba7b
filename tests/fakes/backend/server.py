"""A live server that plays a script on each connection and records what it received.

A script is a function of one :class:`Peer`; :mod:`tests.fakes.backend.scripts` makes the usual
ones. The n-th connection plays the n-th script, and the last script serves all that follow.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from tests.fakes.backend.received import Request, request_size

_JOIN_S: Final = 5.0
# Linux tells of a client that closed even while bytes of it are unread.
_PEER_CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


RawEnd = Literal["ends", "hangs", "resets"] | None
"""What becomes of a connection behind the bytes of an answer; ``None``: it serves on."""


class PeerGone(Exception):
    """The other side has closed, so the script is over."""


class Peer:
    """One accepted connection, as its script sees it."""

    def __init__(self, server: FakeServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._unread = b""
        self._gone = select.poll()
        self._gone.register(sock, _PEER_CLOSED)
        self.received = bytearray()
        """Every byte that arrived, decrypted."""
        self.requests: list[Request] = []
        self.closed_s: float | None = None
        """When the other side was seen to close, on the monotonic clock."""

    def read_request(self) -> Request:
        """The next request with its body; raises :class:`PeerGone` at the end of the stream."""
        while (size := request_size(self._unread)) is None:
            self._unread += self.read_some()
        missing = size - len(self._unread)
        parts = [self._unread]
        while missing > 0:
            parts.append(self.read_some())
            missing -= len(parts[-1])
        whole = b"".join(parts)
        request, self._unread = Request(whole[:size]), whole[size:]
        self.requests.append(request)
        self._server.record(request)
        return request

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as in flight until its answer is out, or as aborted."""
        self._server.count("in_flight")
        try:
            yield
        except PeerGone:
            if not self._server.stopping:
                self._server.count("aborted")
            raise
        finally:
            self._server.count("in_flight", -1)

    def read_some(self) -> bytes:
        """Whatever has arrived; raises :class:`PeerGone` at the end of the stream."""
        try:
            data = self._sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._leave()
        self.received += data
        return data

    def send(self, data: bytes) -> None:
        """Send all of it; raises :class:`PeerGone` when nobody is there to take it."""
        try:
            self._sock.sendall(data)
        except OSError:
            self._leave()

    def say(self, data: bytes, then: RawEnd) -> bool:
        """Send these bytes; whether the connection serves on."""
        self.send(data)
        if then == "hangs":
            self.wait_closed()
        elif then == "resets":
            self.reset()
        return then is None

    def trickle(self, data: bytes, every_s: float) -> None:
        """Send one byte after the other."""
        for index in range(len(data)):
            self.send(data[index : index + 1])
            self.pause(every_s)

    def pause(self, seconds: float) -> None:
        """Do nothing for a while; raises :class:`PeerGone` as soon as the other side closes."""
        if self._gone.poll(seconds * 1000):
            self._leave()

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
        """Wake the script from whatever it waits for."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _leave(self) -> None:
        self.closed_s = self.closed_s or time.monotonic()
        raise PeerGone


Script = Callable[[Peer], None]
_Self = TypeVar("_Self", bound="FakeServer")


class FakeServer:
    """Listens on a port of its own on 127.0.0.1 from the first moment to ``close``."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._tls = tls
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._changed = threading.Condition()
        self.stopping = False
        self.peers: list[Peer] = []
        self.requests: list[Request] = []
        """Whole requests in the order of their arrival, over all connections."""
        self.in_flight = 0
        """Requests whose answer is not out yet; of scripts that say so (``Peer.answering``)."""
        self.aborted = 0
        """Requests whose client left before it had the whole answer."""
        self.open_connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
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

    def record(self, request: Request) -> None:
        """Remember a request, and wake who waits for one."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def count(self, name: str, change: int = 1) -> None:
        """Move ``in_flight``, ``aborted`` or ``open_connections``."""
        with self._changed:
            setattr(self, name, getattr(self, name) + change)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[Any], bool], timeout_s: float = 5.0) -> None:
        """Wait until the counts meet a condition; TimeoutError when they do not."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout_s):
                counts = f"{self.in_flight=} {self.aborted=} {self.open_connections=}"
                raise TimeoutError(f"after {timeout_s:g} s still {counts}")

    def reset(self) -> None:
        """Forget what was received."""
        with self._changed:
            self.requests.clear()
            self.aborted = 0

    def close(self) -> None:
        """End every connection; raises what a script has raised."""
        self.stopping = True
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

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self.stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
            peer = Peer(self, sock)
            self.peers.append(peer)
            self.count("open_connections")
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
            self.count("open_connections", -1)
