"""Redis for the router that is measured: `python -m tests.benchmarks.redis DIRECTORY`.

A server of its own beside the gateway, as an installation has it; it writes what it is told to its
disk once a second, as a ledger should. Its first line is the port that it will listen on.
"""

from __future__ import annotations

import os
import shutil
import sys

from tests.benchmarks.processes import free_ports

PROGRAM = shutil.which("redis-server")


def main() -> None:
    """Become the server. Does not return."""
    assert PROGRAM is not None
    (port,) = free_ports(1)
    print(port, flush=True)
    os.execv(
        PROGRAM,
        [
            PROGRAM,
            *("--bind", "127.0.0.1"),
            *("--port", str(port)),
            *("--dir", sys.argv[1]),
            *("--save", ""),
            *("--appendonly", "yes"),
            *("--appendfsync", "everysec"),
            *("--logfile", os.devnull),
        ],
    )


if __name__ == "__main__":
    main()
