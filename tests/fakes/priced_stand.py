"""A router in this process whose calls all have a price, and calls that end in any way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from router.config.document import Budget, Document, Prices, Timeouts
from router.limits.configured import window_specs
from tests.fakes.backend.usage_reports import SAID
from tests.fakes.endings import Asked, Backend, Case, Leave
from tests.fakes.exact_money import PRICES, USD
from tests.fakes.limited import Fixed, budget
from tests.fakes.router_stand import RouterStand, World

PATIENT, HURRIED = (
    Timeouts(first_byte_s=10.0, idle_s=10.0),
    Timeouts(first_byte_s=10.0, idle_s=0.02),
)
AT_ONCE = Timeouts(first_byte_s=0.02, idle_s=0.02)
BUDGETS = (budget(limit=10**6 * USD), budget("tokens", 10**12), budget("requests", 10**6))
_MODELS = {"plain": "plain", "claude": "anthropic", "failover": "closed"}


class PricedStand:
    """Every class of the models ``plain`` and ``claude`` has a price, and budgets of all units
    count."""

    def __init__(
        self,
        world: World,
        *,
        prices: Prices = PRICES,
        budgets: tuple[Budget, ...] = BUDGETS,
        **settings: Any,
    ) -> None:
        document = world.services.state.document()
        acme = replace(document.organizations["acme"], budgets=budgets)
        priced = {
            name: replace(model, prices=prices) if name in _MODELS else model
            for name, model in document.models.items()
        }
        self._document = replace(
            document,
            organizations={**document.organizations, "acme": acme},
            models=priced,
            model_names={name: priced[model.id] for name, model in document.model_names.items()},
        )
        self._state = Fixed(self._document)
        parts: dict[str, Any] = {"state": self._state}
        if settings:
            parts["settings"] = replace(world.settings, **settings)
        self.stand: RouterStand = world.stand(**parts)

    def play(self, case: Case) -> bytes | None:
        """Make the call; what its client has got, unless it has left."""
        return self.call(case.reporter.model, case.asked, case.backend, case.ending.leave)

    def call(self, model: str, asked: Asked, backend: Backend, leave: Leave = None) -> bytes | None:
        """The same in parts."""
        self.will(backend)
        waits = backend.stop == "hangs" and leave is None
        self._state.change(_timed(self._document, waits=waits, said=bool(backend.raw)))
        request: dict[str, Any] = {"json": asked.body(model)}
        if leave is None:
            return self.stand.call("POST", asked.path, promised=False, **request).body
        with _client(leave) as ours:
            if ours is not None:
                request["gunicorn.socket"] = ours
            opened = self.stand.open("POST", asked.path, **request)
            got = b""
            while (leave == "said" and SAID.encode() not in got) or leave == "after":
                chunk = next(opened, b"")
                got += chunk
                if not chunk:
                    break
            opened.close()
        return None

    def move_backend(self, name: str, *, to: str) -> None:
        """From now on a backend is where another one is."""
        backends = self._document.backends
        moved = replace(backends[to], id=name)
        self._document = replace(self._document, backends={**backends, name: moved})
        self._state.change(self._document)

    def will(self, backend: Backend) -> None:
        """What the backends do from now on."""
        self.stand.backends.plain.set(raw=backend.raw, raw_ends=backend.stop)
        self.stand.backends.anthropic.raw = backend.raw
        self.stand.backends.anthropic.raw_ends = backend.stop

    def booked(self) -> tuple[int, ...]:
        """What the ledger has, of the budgets in turn; nothing is reserved."""
        acme = self._document.organizations["acme"]
        states = self.stand.services.limits.read_windows(
            "acme", window_specs(acme, None), "key-main"
        )
        assert [state.reserved for state in states] == [0] * len(states)
        return tuple([state.settled for state in states])

    def change(self, budgets: tuple[Budget, ...]) -> None:
        """Give the organization other budgets."""
        acme = replace(self._document.organizations["acme"], budgets=budgets)
        self._document = replace(
            self._document, organizations={**self._document.organizations, "acme": acme}
        )
        self._state.change(self._document)


@contextmanager
def _client(leave: Leave) -> Iterator[socket.socket | None]:
    """The connection of a client that has left before it had anything."""
    if leave != "before":
        yield None
        return
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        yield ours


def _timed(document: Document, *, waits: bool, said: bool) -> Document:
    """Backends that are not waited for, where they say nothing more."""
    timeouts = PATIENT if not waits else HURRIED if said else AT_ONCE
    backends = {
        name: replace(backend, timeouts=timeouts) if name in _MODELS.values() else backend
        for name, backend in document.backends.items()
    }
    return replace(document, backends=backends)
