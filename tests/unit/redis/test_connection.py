"""A connection that is not made in time raises ``Unavailable``, whatever the library raises."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from router.breaker import Unavailable
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions, tcp_connection


@pytest.fixture
def listener() -> Iterator[str]:
    """A unix socket behind which nobody answers."""
    with (
        tempfile.TemporaryDirectory(prefix="rt-") as folder,
        socket.socket(socket.AF_UNIX) as server,
    ):
        path = str(Path(folder) / "s")
        server.bind(path)
        server.listen()
        yield path


@pytest.mark.parametrize("timeout_s", [1e-9, 0.01])
def test_a_unix_socket_that_does_not_answer_in_time(listener: str, timeout_s: float) -> None:
    """D1: also where the deadline has passed before the library begins, which once was a defect."""
    client = RedisClient(
        parse_address(f"unix://{listener}"), ConnectionOptions(timeout_s=timeout_s)
    )
    with pytest.raises(Unavailable):
        client.command("PING")
    client.close()


@pytest.fixture(params=["plain", "tls"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """A server that trickles what the list holds, a byte every 20 ms, and then is silent."""
    trickle: list[bytes] = []
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            if request.param == "tls":
                client = context.wrap_socket(client, server_side=True)
            with client:
                client.recv(1024)
                while trickle and not ended.wait(0.02):
                    client.sendall(trickle.pop())
                ended.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        tls = f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        yield (tls if request.param == "tls" else f"redis://127.0.0.1:{port}"), trickle
        ended.set()
    thread.join(5)


@pytest.mark.parametrize("sent", [[], [b"1"] * 200 + [b":"]], ids=["silent", "trickling"])
def test_an_exchange_ends_at_its_own_deadline(
    peer: tuple[str, list[bytes]], sent: list[bytes]
) -> None:
    """D1: neither the time that connecting was given nor a byte now and then makes it longer."""
    url, trickle = peer
    trickle += sent
    address = parse_address(url)
    connection = tcp_connection(address.hosts[0], ConnectionOptions(tls=address.tls_context()))
    connection.set_deadline(time.monotonic() + 5)
    connection.connect()
    begun_s = time.monotonic()
    connection.set_deadline(begun_s + 0.2)
    with pytest.raises(TimeoutError):
        connection.exchange(b"*1\r\n$4\r\nPING\r\n", 1)
    assert 0.2 <= time.monotonic() - begun_s < 1
    connection.disconnect()
