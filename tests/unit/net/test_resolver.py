"""Names are looked up beside the calls, once, and never waited for without a deadline (G7)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from router.net import resolver as module
from router.net.resolver import Resolver


class NameService:
    """Stands for ``getaddrinfo``: counts look-ups, and answers when it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, list[str]] = {"gpu": ["10.0.0.1", "10.0.0.2"]}
        self.may_answer = threading.Event()
        self.may_answer.set()

    def getaddrinfo(self, host: str, _port: object, **_: Any) -> list[tuple[Any, ...]]:
        """As the real one, with each address twice."""
        self.asked.append(host)
        assert self.may_answer.wait(5)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
            for address in self.answers[host]
            for _ in range(2)
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameService]:
    """The name service that the resolver asks."""
    service = NameService()
    monkeypatch.setattr(socket, "getaddrinfo", service.getaddrinfo)
    yield service
    service.may_answer.set()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the resolver's clock."""
    ahead_s = 0.0

    class Ahead:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + ahead_s

    def move(seconds: float) -> None:
        nonlocal ahead_s
        ahead_s += seconds

    monkeypatch.setattr(module, "time", Ahead)
    return move


def settled(resolver: Resolver) -> None:
    """Wait until no look-up runs."""
    deadline_s = time.monotonic() + 5
    while resolver._lookups:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_an_answer_is_remembered(names: NameService) -> None:
    """Addresses come in the order of the answer, each once, after one look-up."""
    resolver = Resolver()
    assert [resolver.resolve("gpu", 1.0) for _ in range(5)] == [["10.0.0.1", "10.0.0.2"]] * 5
    assert names.asked == ["gpu"]


def test_an_old_answer_serves_while_a_new_one_is_fetched(
    names: NameService, later: Callable[[float], None]
) -> None:
    """Nobody waits for a name that was known before."""
    resolver = Resolver(fresh_s=30.0)
    resolver.resolve("gpu", 1.0)
    names.answers["gpu"] = ["10.0.0.9"]
    names.may_answer.clear()
    later(31.0)
    assert [resolver.resolve("gpu", 1.0) for _ in range(3)] == [["10.0.0.1", "10.0.0.2"]] * 3
    names.may_answer.set()
    settled(resolver)
    assert resolver.resolve("gpu", 1.0) == ["10.0.0.9"]
    assert names.asked == ["gpu", "gpu"]


def test_the_last_answer_outlives_the_name_service(
    names: NameService, later: Callable[[float], None]
) -> None:
    """While the name service is unavailable the last answer serves on, without a look-up a call."""
    resolver = Resolver(fresh_s=30.0)
    resolver.resolve("gpu", 1.0)
    del names.answers["gpu"]
    for _ in range(3):
        later(31.0)
        assert resolver.resolve("gpu", 1.0) == ["10.0.0.1", "10.0.0.2"]
        settled(resolver)
        assert resolver.resolve("gpu", 1.0) == ["10.0.0.1", "10.0.0.2"]
    assert len(names.asked) == 4


def test_an_unknown_name_has_no_address(names: NameService) -> None:
    """The next call looks it up again: it may exist by then."""
    resolver = Resolver()
    assert resolver.resolve("nowhere", 1.0) == []
    names.answers["nowhere"] = ["10.0.0.3"]
    assert resolver.resolve("nowhere", 1.0) == ["10.0.0.3"]


def test_a_silent_name_service_costs_the_timeout(names: NameService) -> None:
    """A black hole for DNS is no longer a wait than a black hole for connections."""
    names.may_answer.clear()
    resolver = Resolver()
    started_s = time.monotonic()
    assert resolver.resolve("gpu", 0.1) == []
    assert 0.1 <= time.monotonic() - started_s <= 0.25
    names.may_answer.set()
    settled(resolver)
    assert resolver.resolve("gpu", 0.1) == ["10.0.0.1", "10.0.0.2"]


def test_all_who_wait_for_a_name_ask_once(names: NameService) -> None:
    """A hundred calls at once share one look-up."""
    names.may_answer.clear()
    resolver = Resolver()
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolver.resolve("gpu", 5.0)))
        for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    names.may_answer.set()
    for thread in threads:
        thread.join(5)
    assert found == [["10.0.0.1", "10.0.0.2"]] * 100
    assert names.asked == ["gpu"]


def test_one_slow_name_does_not_hold_up_another(names: NameService) -> None:
    """Each name has its own look-up."""
    resolver = Resolver()
    resolver.resolve("gpu", 1.0)
    names.may_answer.clear()
    assert resolver.resolve("slow", 0.01) == []
    assert resolver.resolve("gpu", 0.01) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::1", "2001:db8::5"])
def test_an_address_is_never_asked_for(
    names: NameService, later: Callable[[float], None], address: str
) -> None:
    """What is an address already needs no name service, ever."""
    resolver = Resolver()
    assert resolver.resolve(address, 0.0) == [address]
    later(10_000_000.0)
    assert resolver.resolve(address, 0.0) == [address]
    assert names.asked == []


@pytest.mark.parametrize("host", ["two..dots", "x" * 64 + ".example"])
def test_what_cannot_be_a_name_has_no_address(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """The encoding error used to end the look-up's thread with a traceback."""

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        raise UnicodeError(f"cannot encode {name!r}")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert Resolver().resolve(host, 1.0) == []
