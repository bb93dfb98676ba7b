"""The load generator: a closed loop over keep-alive connections, in a process of its own.

`python -m tests.benchmarks.load` reads one order per line from standard input and answers each
with one line, both JSON, until its input ends:

    {"port": 8080, "connections": 32, "seconds": 3.0}
    {"calls": 4801, "elapsed_s": 3.004, "latencies_ns": [...]}   or   {"error": "..."}

Each connection sends its next call when the reply to the last one is complete. Anything but a
200, a closed connection or ten seconds without an answer ends the order with an error.
"""

from __future__ import annotations

import gc
import json
import selectors
import socket
import sys
import time
from typing import Any

from tests.benchmarks.framing import MessageError, reply_end
from tests.benchmarks.messages import http_request

_HOST = "127.0.0.1"
_STALL_S = 10.0


class LoadError(Exception):
    """A call got no proper answer, so the figures would mean nothing."""


class Connection:
    """One keep-alive connection with at most one call in flight."""

    __slots__ = ("received", "sent_at_ns", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection((_HOST, port), timeout=_STALL_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.received = b""
        self.sent_at_ns = 0

    def send(self, request: bytes, now_ns: int) -> None:
        """Put one call on the wire; its latency counts from `now_ns`."""
        self.sent_at_ns = now_ns
        if self.sock.send(request) != len(request):
            raise LoadError("the kernel's send buffer does not hold one request")

    def reply_complete(self) -> bool:
        """Read what is there; True once the reply has fully arrived."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return False
        if not data:
            raise LoadError(f"a connection was closed in mid-call, after {self.received[:600]!r}")
        received = self.received + data if self.received else data
        end = reply_end(received)
        if end is None:
            self.received = received
            return False
        if end != len(received):
            raise LoadError(f"{len(received) - end} bytes too many after a reply")
        self.received = b""
        return True


def run_load(port: int, connections: int, seconds: float) -> dict[str, Any]:
    """Call for `seconds` over `connections`; every call that was sent is waited for and counted."""
    request = http_request(_HOST, port)
    opened: list[Connection] = []
    selector = selectors.DefaultSelector()
    try:
        for _ in range(connections):
            connection = Connection(port)
            opened.append(connection)
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        return _run_loop(selector, opened, request, seconds)
    finally:
        selector.close()
        for connection in opened:
            connection.sock.close()


def _run_loop(
    selector: selectors.BaseSelector, opened: list[Connection], request: bytes, seconds: float
) -> dict[str, Any]:
    latencies_ns: list[int] = []
    clock = time.perf_counter_ns
    started_ns = now_ns = clock()
    stop_ns = started_ns + int(seconds * 1e9)
    for connection in opened:
        connection.send(request, clock())
    in_flight = len(opened)
    while in_flight:
        events = selector.select(_STALL_S)
        if not events:
            raise LoadError(f"no answer within {_STALL_S:.0f} s")
        for key, _ in events:
            connection = key.data
            if not connection.reply_complete():
                continue
            now_ns = clock()
            latencies_ns.append(now_ns - connection.sent_at_ns)
            if now_ns < stop_ns:
                connection.send(request, now_ns)
            else:
                in_flight -= 1
    elapsed_s = (now_ns - started_ns) / 1e9
    return {"calls": len(latencies_ns), "elapsed_s": elapsed_s, "latencies_ns": latencies_ns}


def _obey(order: dict[str, Any]) -> dict[str, Any]:
    gc.collect()
    gc.disable()
    try:
        return run_load(order["port"], order["connections"], order["seconds"])
    except (LoadError, MessageError, OSError) as error:
        return {"error": str(error) or repr(error)}
    finally:
        gc.enable()


def main() -> None:
    """Obey one order per line until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(_obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
