"""fakeredis behind a unix socket, as a process: ``python -m router.redis.fake_server SOCKET``.

TERM ends it, and its data is lost then.
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
    """Serve until told to end."""
    signal.signal(signal.SIGTERM, _end)
    path = sys.argv[1]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.umask(0o177)
    _server_class()(path).serve_forever()


def _server_class() -> Any:
    # An optional package, found by name so that it need not be installed to run the router.
    tcp_server = importlib.import_module("fakeredis").TcpFakeServer
    numbers = itertools.count()

    def get_request(server: Any) -> tuple[socket.socket, tuple[str, int]]:
        client, _ = server.socket.accept()
        # It tells its clients apart by their address, and on a unix socket they have none.
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
