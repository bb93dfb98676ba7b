"""fakeredis as a process on a unix socket: ``python -m router.redis.embedded.fake_server SOCKET``.

It keeps its data in memory only; TERM ends it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any


def main() -> None:
    """Serve until TERM."""
    signal.signal(signal.SIGTERM, _end)
    path = sys.argv[1]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.umask(0o177)
    _server_class()(path).serve_forever()


def _server_class() -> Any:
    # Imported by name: fakeredis is optional, and the router's own type check runs without it.
    tcp_server = importlib.import_module("fakeredis").TcpFakeServer
    numbers = itertools.count()

    def get_request(server: Any) -> tuple[socket.socket, tuple[str, int]]:
        client, _ = server.socket.accept()
        # fakeredis keys its clients by address, and clients of a unix socket have none.
        return client, ("client", next(numbers))

    return type(
        "UnixFakeServer",
        (tcp_server,),
        {"address_family": socket.AF_UNIX, "request_queue_size": 512, "get_request": get_request},
    )


def _end(_signal: int, _frame: FrameType | None) -> None:
    os._exit(0)  # its threads would wait for their clients


if __name__ == "__main__":
    main()
