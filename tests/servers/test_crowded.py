"""More connections than a worker takes, of clients that say nothing: the others are served."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

from tests.servers.deployment import CHAT, HELLO, deploy

CONNECTIONS = 20
KEEPALIVE_S = 60
SLOW = 3 * CONNECTIONS
PATIENCE_S = 5.0


def test_slow_heads_do_not_lock_others_out(tmp_path: Path) -> None:
    """P15: who has waited longest without a request makes room, long before its time is over."""
    settings = {
        "ROUTER_WORKER_CONNECTIONS": str(CONNECTIONS),
        "ROUTER_KEEPALIVE": str(KEEPALIVE_S),
    }
    with deploy(tmp_path, workers=1, **settings) as deployed, ExitStack() as opened:
        pids = deployed.router.worker_pids()
        for _ in range(SLOW):
            slow = socket.create_connection(("127.0.0.1", deployed.router.port), timeout=PATIENCE_S)
            opened.enter_context(slow)
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
        body = {"model": CHAT, "messages": HELLO}
        for _ in range(5):
            began_s = time.monotonic()
            reply = deployed.router.post("/v1/chat/completions", body, deployed.key.key)
            assert (reply.status, time.monotonic() - began_s < PATIENCE_S) == (200, True)
        assert deployed.router.worker_pids() == pids
