"""Which calls another process would find reserved and not sent, were this one killed now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.errors import BackendUnavailable
from router.limits.leases.unsent_calls import read_unsent
from router.services.limits_wiring import build_limits
from tests.fakes.limited import Fixed, budget
from tests.fakes.router_stand import RouterStand, World


@pytest.fixture
def path(world: World, tmp_path: Path) -> Path:
    return tmp_path / "unsent" / "writer"


@pytest.fixture
def limited(world: World, path: Path) -> RouterStand:
    """A stand whose limits note what is not sent yet."""
    settings = replace(world.settings, data_dir=path.parent.parent)
    document = world.services.state.document()
    budgets = (budget("requests", 2),)
    acme = replace(document.organizations["acme"], budgets=budgets)
    organizations = {**document.organizations, "acme": acme}
    stand = world.stand(state=Fixed(replace(document, organizations=organizations)))
    limits = build_limits(
        settings, lambda *_: 0, clock=world.clock, runner=world.redis, writer_id="writer"
    )
    parts = replace(stand.services, limits=limits)
    return RouterStand(parts, stand.backends, stand.keys, stand.clock, stand.redis)


class Watching:
    """Looks at the file before and after a call is sent."""

    def __init__(self, forwarder: Any, path: Path, look: Callable[[int], None]) -> None:
        self._forwarder, self._path, self._look = forwarder, path, look

    def send(self, *arguments: Any) -> Any:
        context = arguments[2]
        noted = context.on_send

        def on_send(attempt: Any) -> None:
            noted(attempt)
            self._look(len(read_unsent(self._path)))

        context.on_send = on_send
        self._look(len(read_unsent(self._path)))
        return self._forwarder.send(*arguments)


def test_a_call_is_there_from_its_reservation_until_it_is_sent(
    limited: RouterStand, path: Path
) -> None:
    """P6: from then on its dispatch is on disk."""
    seen: list[int] = []
    forwarder = Watching(limited.services.forwarder, path, seen.append)
    parts = replace(limited.services, forwarder=forwarder)  # type: ignore[arg-type]
    stand = RouterStand(parts, limited.backends, limited.keys, limited.clock, limited.redis)
    assert stand.chat().status == 200
    assert seen == [1, 0]
    assert read_unsent(path) == []


class Refusing:
    """No backend can be reached."""

    def send(self, *_: Any) -> Any:
        raise BackendUnavailable


def test_a_call_that_is_given_up_holds_nothing(limited: RouterStand, path: Path) -> None:
    """P6: refused by its budget, not admitted without Redis, or never sent."""
    parts = replace(limited.services, forwarder=Refusing())  # type: ignore[arg-type]
    stand = RouterStand(parts, limited.backends, limited.keys, limited.clock, limited.redis)
    assert stand.chat().status == 503
    assert read_unsent(path) == []
    assert [limited.chat().status for _ in range(3)] == [200, 200, 402]
    assert read_unsent(path) == []
    limited.redis.away = "timeout"
    assert limited.chat().status == 503
    assert read_unsent(path) == []
