"""What becomes of a command that Redis has refused to execute: to be sent again, and where."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from redis.exceptions import (
    AskError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from router.breaker import Unavailable
from router.redis.scripts import ScriptCall, packed
from router.redis.topologies.slot_migration import move_keys
from router.redis.topologies.topology import Node, Topology, server_named

_HOPS: Final = 3
_ASKING: Final = packed(("ASKING",))
_NO_MASTER: Final = ("READONLY", "NOREPLICAS")
"""A replica, and a master that its replicas have left. Servers before 7.0 put the error of a script
into a longer one."""

_Form = Callable[[ScriptCall], bytes]


class Recovery:
    """Sends calls again until every one of them was executed, or the deadline has come."""

    def __init__(self, topology: Topology, calls: Sequence[ScriptCall], deadline_s: float) -> None:
        self._topology = topology
        self._calls = calls
        self._deadline_s = deadline_s
        self._forms: list[_Form] = [ScriptCall.by_digest] * len(calls)
        self._prefix = b""
        self._is_moving = False

    def replies(self, node: Node, replies: list[object]) -> tuple[Node, list[object]]:
        """The replies, once there is no error among ``replies`` of ``node`` any more, and the
        server that gave the last of them.

        A call that is refused, and all after it, are sent again as Redis demands: with the source
        of its script, or to another server. Raises :class:`Unavailable`.
        """
        hops = _HOPS + len(self._calls)
        while (first := first_error(replies)) is not None:
            error = replies[first]
            # A slot that moves takes more than a few attempts, and ends with the deadline.
            hops -= not isinstance(error, TryAgainError)
            if hops < 0:
                raise Unavailable("redis", "topology", "too many redirections")
            node = self._next(node, first, error)
            replies = replies[:first] + self._sent(node, first)
        return node, replies

    def _next(self, node: Node, first: int, error: object) -> Node:
        if isinstance(error, NoScriptError) and self._forms[first] is ScriptCall.by_digest:
            self._forms[first] = ScriptCall.by_source
            return node
        if isinstance(error, MovedError):
            self._as_usual(first)
            return self._topology.moved(error.slot_id, server_named(error.node_addr, node))
        if isinstance(error, AskError):
            self._prefix = _ASKING
            return self._topology.redirected(server_named(error.node_addr, node))
        if isinstance(error, TryAgainError):
            return self._brought_together(first, error)
        if _is_no_master(error):
            successor = self._topology.successor(node, self._deadline_s)
            if successor is not node:
                return successor
        refused = Unavailable("redis", "script", str(error))
        node.failed(refused)
        raise refused

    def _brought_together(self, first: int, error: TryAgainError) -> Node:
        """The server that has, or may create, every key of the calls that are left."""
        self._is_moving = True
        if time.monotonic() >= self._deadline_s:
            raise Unavailable("redis", "script", str(error), counts=False)
        calls = self._calls[first:]
        keys = dict.fromkeys(key for call in calls for key in call.keys)
        owner = self._topology.node(calls[0].key, self._deadline_s)
        login = self._topology.address.login
        target = move_keys(owner, list(keys), login, self._deadline_s)
        if target is None:
            self._as_usual(first)
            return owner
        self._prefix = _ASKING
        self._forms[first:] = [ScriptCall.in_one_key] * len(calls)
        return self._topology.redirected(target)

    def _as_usual(self, first: int) -> None:
        self._prefix = b""
        self._forms[first:] = [ScriptCall.by_digest] * (len(self._calls) - first)

    def _sent(self, node: Node, first: int) -> list[object]:
        forms = zip(self._calls[first:], self._forms[first:], strict=True)
        commands = [self._prefix + form(call) for call, form in forms]
        each = 2 if self._prefix else 1
        try:
            replies = node.exchange(b"".join(commands), len(commands) * each, self._deadline_s)
        except Unavailable as error:
            if self._is_moving and error.reason == "timeout":  # no server took that time
                error = Unavailable(error.name, error.reason, error.detail, counts=False)
            node.failed(error)
            raise error from None
        return replies[each - 1 :: each]


def first_error(replies: Sequence[object]) -> int | None:
    """The position of the first reply that is an error."""
    for index, reply in enumerate(replies):
        if isinstance(reply, ResponseError):
            return index
    return None


def _is_no_master(error: object) -> bool:
    if isinstance(error, ReadOnlyError | MasterDownError):
        return True
    return any(word in str(error) for word in _NO_MASTER)
