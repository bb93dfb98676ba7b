"""A call whose slot is being moved: its keys are on two masters, or not there yet.

While a slot moves, Redis refuses (``TRYAGAIN``) every script with several keys of which the source
has some and lacks others, and the target every script with a key that is not there. Each admission
creates a key, its lease: it would be refused for as long as the slot moves, be that hours.

So the keys of the call are moved first, as the operator's tool would do in a moment, and then the
script runs on the target, in the form with one key. That is safe: the source creates no key of a
slot that leaves it, so what is not there after the move is on the target or nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from redis.exceptions import AskError, ResponseError

from router.breaker import Unavailable
from router.redis.address import Credentials, HostPort
from router.redis.scripts import Argument, packed
from router.redis.topologies.topology import Node, server_named

PAUSE_S: Final = 0.002
"""Before a call is sent again whose keys could not be moved: the operator's tool moves them too."""


def move_keys(
    source: Node, keys: Sequence[str], login: Credentials, deadline_s: float
) -> HostPort | None:
    """Move the keys that are still on ``source`` to where their slot goes; that master's address.

    ``None`` when the slot does not move (any more), or the keys could not be moved now. Nothing of
    this counts against a master: it serves all its other slots.
    """
    try:
        wanted = b"".join([packed(("EXISTS", key)) for key in keys])
        found = source.exchange(wanted, len(keys), deadline_s)
        asks = [reply for reply in found if isinstance(reply, AskError)]
        if not asks:
            time.sleep(PAUSE_S)
            return None
        target = server_named(asks[0].node_addr, source)
        here = [key for key, reply in zip(keys, found, strict=True) if reply == 1]
        if here:
            command = _migrate(here, target, login, deadline_s)
            [moved] = source.exchange(command, 1, deadline_s)
            if isinstance(moved, ResponseError):
                time.sleep(PAUSE_S)
                return None
        return target
    except Unavailable as error:
        raise Unavailable(error.name, error.reason, error.detail, counts=False) from None


def _migrate(keys: Sequence[str], target: HostPort, login: Credentials, deadline_s: float) -> bytes:
    left_ms = max(1, int((deadline_s - time.monotonic()) * 1000))
    words: list[Argument] = ["MIGRATE", *target, "", 0, left_ms]
    if login.password is not None:
        words += ["AUTH2", login.username or "default", login.password]
    return packed((*words, "KEYS", *keys))
