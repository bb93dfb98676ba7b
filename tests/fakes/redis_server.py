"""A real redis-server for tests, and a proxy in front of one that can misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from router.redis.embedded.embedded_redis import ENGINES, server_program

BINARY = next(filter(None, map(server_program, ENGINES)), None)
"""redis-server or a Valkey server; None where neither is installed."""
START_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A redis-server process on 127.0.0.1, or on a unix socket only, with its own directory."""

    def __init__(self, directory: Path, *options: str, unix: bool = False, port: int = 0) -> None:
        assert BINARY is not None
        self.directory = directory
        self.unix = unix
        self.port = 0 if unix else port or free_port()
        # pytest's directories are too deep for the path of a socket.
        self._sockets = tempfile.TemporaryDirectory(prefix="rt-") if unix else None
        self.path = str(Path(self._sockets.name) / "s") if self._sockets else ""
        listen = ["--unixsocket", self.path] if unix else ["--bind", "127.0.0.1"]
        self._command = [
            BINARY, "--port", str(self.port), *listen,
            "--dir", str(directory), "--save", "", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def url(self) -> str:
        return f"unix://{self.path}" if self.unix else f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> RedisServer:
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        give_up_s = time.monotonic() + START_S
        while not self.answers():
            assert self._process.poll() is None, (self.directory / "server.log").read_text()
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
        return self

    def answers(self) -> bool:
        family = socket.AF_UNIX if self.unix else socket.AF_INET
        with socket.socket(family) as sock:
            sock.settimeout(1.0)
            try:
                sock.connect(self.path if self.unix else ("127.0.0.1", self.port))
                sock.sendall(b"PING\r\n")
                # Before its TLS or its password a server answers otherwise, but it is there.
                return sock.recv(64)[:1] in (b"+", b"-", b"\x15")
            except OSError:
                return False

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            if self._paused:
                self.resume()
            self._process.terminate()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        if self._sockets is not None:
            self._sockets.cleanup()


@contextlib.contextmanager
def running(directory: Path, *options: str, unix: bool = False) -> Iterator[RedisServer]:
    directory.mkdir(parents=True, exist_ok=True)
    server = RedisServer(directory, *options, unix=unix).start()
    try:
        yield server
    finally:
        server.close()


class Proxy:
    """Passes bytes between clients and a server on 127.0.0.1, late, in part or not at all.

    ``delay_s`` holds back what the server says. With ``silent`` nothing passes in either direction.
    ``drop_every`` swallows every n-th portion that the server sends, and all that comes after it on
    that connection. All of it may be changed at any time.
    """

    def __init__(self, server_port: int) -> None:
        self.delay_s = 0.0
        self.silent = False
        self.drop_every = 0
        self.connections = 0
        self._replies = 0
        self._server_port = server_port
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [client, server]
            for work in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=work, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        swallowing = False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.silent:
                    time.sleep(0.002)
                if is_reply:
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    self._replies += 1
                    if self.drop_every and self._replies % self.drop_every == 0:
                        swallowing = True
                if not swallowing:
                    target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
