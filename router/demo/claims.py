"""What a demo needs for itself alone: its directory and its two ports."""

from __future__ import annotations

import fcntl
import socket
from contextlib import ExitStack, closing
from pathlib import Path

from router.config.settings import Address


class DemoError(Exception):
    """The demo cannot be started; the message says why and what to do."""


def claim_directory(claims: ExitStack, directory: Path, url: str) -> None:
    """Lock ``directory`` until ``claims`` closes, and note in it that the demo answers at ``url``.

    Raises :class:`DemoError` when a demo runs there.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = claims.enter_context((directory / "demo.lock").open("a+", encoding="utf-8"))
    except OSError as error:
        raise DemoError(f"{directory} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        where = lock.read().strip() or "another terminal"
        raise DemoError(
            f"a demo already runs at {where} with the data in {directory}; it is not disturbed. "
            "Ctrl-C in its terminal stops it"
        ) from None
    lock.truncate(0)
    lock.write(url)
    lock.flush()


def claim_port(claims: ExitStack, address: Address, variable: str) -> socket.socket:
    """A socket that listens on ``address``, for the router to inherit.

    Raises :class:`DemoError` when another program has the port; ``variable`` chooses another one.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = claims.enter_context(closing(socket.socket(family)))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(2048)
    except OSError as error:
        raise DemoError(
            f"{address} is not free ({error.strerror}); choose another address: "
            f"{variable}={Address(address.host, address.port + 10)} make run"
        ) from None
    return listener
