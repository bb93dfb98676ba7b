"""Connections: bounded in number, every wait bounded, and no reply ever goes to another command."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from router.breaker import Unavailable
from router.redis.address import Credentials
from router.redis.connection import (
    ConnectionOptions,
    RedisConnection,
    library_options,
    tcp_connection,
)
from router.redis.pool import Pool
from router.redis.scripts import packed
from tests.fakes.scripted_redis import ScriptedRedis, bulk

PING = packed(("PING",))
TIMEOUT_S = 0.05


@pytest.fixture
def server() -> Iterator[ScriptedRedis]:
    with_answers = ScriptedRedis()
    yield with_answers
    with_answers.close()


def pool(server: ScriptedRedis, *, max_connections: int = 2, timeout_s: float = 1.0) -> Pool:
    options = ConnectionOptions(timeout_s=timeout_s, max_connections=max_connections)

    def connect() -> RedisConnection:
        return tcp_connection(("127.0.0.1", server.port), options)

    return Pool(connect, max_connections=max_connections)


def ask(subject: Pool, *arguments: str, within_s: float = 1.0) -> object:
    [reply] = subject.exchange(packed(arguments or ("PING",)), 1, time.monotonic() + within_s)
    return reply


def reason(error: pytest.ExceptionInfo[Unavailable]) -> str:
    return error.value.reason


def test_a_connection_is_used_again(server: ScriptedRedis) -> None:
    """One connection serves one exchange after the other."""
    subject = pool(server)
    assert [ask(subject) for _ in range(5)] == [b"OK"] * 5
    assert (server.connections, subject.open, subject.in_use) == (1, 1, 0)
    subject.close()
    assert subject.open == 0


def test_nothing_is_sent_before_the_first_command(server: ScriptedRedis) -> None:
    """D8: no handshake, no CLIENT SETINFO: a new connection costs no extra round trip."""
    subject = pool(server)
    ask(subject)
    assert server.names() == [b"PING"]
    subject.close()


def test_an_error_that_redis_answers_is_a_reply(server: ScriptedRedis) -> None:
    """The connection is good, and goes back."""
    server.answer = lambda _command: b"-WRONGTYPE no\r\n"
    subject = pool(server)
    assert "no" in str(ask(subject))
    assert subject.open == 1
    subject.close()


@pytest.mark.parametrize("partial", [None, b"$5\r\nhel"])
def test_silence_ends_at_the_timeout(server: ScriptedRedis, partial: bytes | None) -> None:
    """D1: also in the middle of a reply."""
    server.answer = lambda _command: partial
    subject = pool(server, timeout_s=TIMEOUT_S)
    begun_s = time.monotonic()
    with pytest.raises(Unavailable) as raised:
        ask(subject, within_s=TIMEOUT_S)
    assert reason(raised) == "timeout"
    assert time.monotonic() - begun_s < 0.5
    assert subject.open == 0
    subject.close()


def test_a_late_reply_goes_to_no_other_command(server: ScriptedRedis) -> None:
    """D9: what timed out costs its connection; the next exchange has another one."""
    late = threading.Event()

    def answer(command: list[bytes]) -> bytes:
        if command[1] == b"slow":
            late.wait(5)
        return bulk(command[1])

    server.answer = answer
    subject = pool(server, timeout_s=TIMEOUT_S)
    with pytest.raises(Unavailable):
        ask(subject, "ECHO", "slow", within_s=TIMEOUT_S)
    late.set()
    assert [ask(subject, "ECHO", str(n)) for n in range(20)] == [str(n).encode() for n in range(20)]
    subject.close()


def test_an_interrupted_exchange_costs_its_connection(server: ScriptedRedis) -> None:
    """D9: a greenlet that is killed while it waits leaves no reply behind for the next exchange."""
    subject = pool(server)
    ask(subject)
    connection = subject._idle[-1]

    def interrupted(*_arguments: object, **_options: object) -> object:
        raise GeneratorExit

    connection.exchange = interrupted  # type: ignore[method-assign]
    with pytest.raises(GeneratorExit):
        ask(subject)
    assert subject.open == 0
    assert ask(subject) == b"OK"
    subject.close()


def test_a_connection_that_redis_closed_is_not_used(server: ScriptedRedis) -> None:
    """A restart of Redis costs no call: the idle connection is looked at first."""
    subject = pool(server)
    ask(subject)
    server.hang_up()
    give_up_s = time.monotonic() + 5
    while not subject._idle or _is_alive(subject):
        assert time.monotonic() < give_up_s
    assert ask(subject) == b"OK"
    assert server.connections == 2
    subject.close()


def _is_alive(subject: Pool) -> bool:
    from router.net.sockets import has_input

    sock = subject._idle[-1]._sock
    return sock is not None and not has_input(sock)


def test_a_refused_connection_fails_at_once(server: ScriptedRedis) -> None:
    """D1: nobody listens."""
    server.close()
    subject = pool(server)
    with pytest.raises(Unavailable) as raised:
        ask(subject)
    assert reason(raised) == "connect"
    assert subject.open == 0


def test_waiting_for_a_connection_is_bounded(server: ScriptedRedis) -> None:
    """D3: with all connections busy a call waits no longer than its deadline."""
    release = threading.Event()

    def answer(_command: list[bytes]) -> bytes:
        release.wait(5)
        return b"+OK\r\n"

    server.answer = answer
    subject = pool(server, max_connections=1)
    busy = threading.Thread(target=ask, args=(subject,))
    busy.start()
    while subject.in_use == 0:
        time.sleep(0.001)
    with pytest.raises(Unavailable) as raised:
        ask(subject, within_s=0.02)
    assert reason(raised) == "pool_wait"
    release.set()
    busy.join(5)
    assert subject.open == 1
    subject.close()


def test_who_waits_gets_the_connection_that_comes_free(server: ScriptedRedis) -> None:
    """Many callers over few connections are all served."""
    server.answer = lambda command: bulk(command[1])
    subject = pool(server, max_connections=2, timeout_s=5)
    found: dict[int, object] = {}

    def work(number: int) -> None:
        found[number] = ask(subject, "ECHO", str(number), within_s=5)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {number: str(number).encode() for number in range(40)}
    assert subject.open <= 2
    subject.close()


def test_after_closing_nothing_is_kept(server: ScriptedRedis) -> None:
    """An exchange that ends after the close leaves no connection open."""
    subject = pool(server)
    subject.close()
    assert ask(subject) == b"OK"
    assert subject.open == 0


def test_every_option_is_ours() -> None:
    """D8: no library default decides how long a call waits or how often it is sent."""
    login = Credentials("u", "p")
    options = library_options(ConnectionOptions(login=login, db=3, timeout_s=0.07))
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.07
    assert options["retry"].get_retries() == 0
    assert options["retry_on_error"] == []
    assert options["retry_on_timeout"] is False
    assert options["health_check_interval"] == 0
    assert options["protocol"] == 2
    assert (options["username"], options["password"], options["db"]) == ("u", "p", 3)


def test_the_live_connection_has_our_timeout(server: ScriptedRedis) -> None:
    """D2: looked up on the socket itself, whatever the library makes of its options. Its last wait
    was granted what was left until the deadline, however much time another exchange had."""
    subject = pool(server, timeout_s=0.7)
    for within_s in (0.7, 0.1, 0.7):
        ask(subject, within_s=within_s)
        [connection] = subject._idle
        assert connection._sock is not None
        assert within_s / 2 < (connection._sock.gettimeout() or 0) <= within_s
    subject.close()


def test_logging_in_comes_before_the_first_command(server: ScriptedRedis) -> None:
    """User, password and database, once for each connection."""
    options = ConnectionOptions(login=Credentials("u", "p"), db=2, timeout_s=1)
    subject = Pool(
        lambda: tcp_connection(("127.0.0.1", server.port), options),
        max_connections=1,
    )
    ask(subject)
    ask(subject)
    assert server.commands == [[b"AUTH", b"u", b"p"], [b"SELECT", b"2"], [b"PING"], [b"PING"]]
    subject.close()


def test_a_wrong_password_is_no_connection(server: ScriptedRedis) -> None:
    """The reason says so, without the password."""
    server.answer = lambda _command: b"-WRONGPASS invalid username-password pair\r\n"
    options = ConnectionOptions(login=Credentials("u", "geheim"), timeout_s=1)
    subject = Pool(
        lambda: tcp_connection(("127.0.0.1", server.port), options),
        max_connections=1,
    )
    with pytest.raises(Unavailable) as raised:
        ask(subject)
    assert reason(raised) == "connect"
    assert "geheim" not in str(raised.value)


def test_each_address_of_a_host_is_tried(server: ScriptedRedis) -> None:
    """localhost may be ::1 first, where nobody listens; a resolver says where else."""
    options = ConnectionOptions(
        timeout_s=1, resolve=lambda _host, _left_s: ["127.0.0.2", "127.0.0.1"]
    )
    subject = Pool(
        lambda: tcp_connection(("redis.test", server.port), options),
        max_connections=1,
    )
    assert ask(subject) == b"OK"
    subject.close()
