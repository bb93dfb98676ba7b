"""The commands of one turn form one batch, and each caller gets its own replies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent
import pytest
from gevent.event import Event

from router.breaker import Unavailable
from router.redis.pipelining import LARGE_BYTES, MAX_BATCH, Pipelining


@dataclass
class Recorder:
    """Connections that reply to each byte with itself, and remember what was sent."""

    sent: list[bytes] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def exchange(self, commands: bytes, count: int, deadline_s: float) -> list[object]:
        self.sent.append(commands)
        self.left_s.append(deadline_s - time.monotonic())
        self.before()
        assert count == len(commands)
        return list(commands)


@pytest.fixture
def pool() -> Recorder:
    return Recorder()


def in_a(s: float) -> float:
    return time.monotonic() + s


def ask(pipelining: Pipelining, command: bytes, left_s: float = 1.0) -> gevent.Greenlet:
    return gevent.spawn(lambda: pipelining.exchange(command, len(command), in_a(left_s)))


def answers(asking: list[gevent.Greenlet]) -> list[list[object]]:
    gevent.joinall(asking, timeout=5, raise_error=True)
    return [one.value for one in asking]


def test_a_single_command_is_an_exchange_of_its_own(pool: Recorder) -> None:
    """One command, one exchange, its replies."""
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    assert answers([ask(pipelining, b"ab")]) == [[97, 98]]
    assert pool.sent == [b"ab"]


def test_the_commands_of_one_turn_form_one_batch(pool: Recorder) -> None:
    """In the order of their callers, and each caller gets its replies, however many they are."""
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    found = answers([ask(pipelining, command) for command in (b"a", b"bcd", b"", b"ef")])
    assert found == [[97], [98, 99, 100], [], [101, 102]]
    assert pool.sent == [b"abcdef"]


def test_the_next_turn_does_not_wait_for_this_one(pool: Recorder) -> None:
    """While one batch waits for its replies, the next one leaves over another connection."""
    pool.before = lambda: gevent.sleep(0.01)
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    first = ask(pipelining, b"a")
    gevent.sleep(0.001)
    second = ask(pipelining, b"b")
    gevent.sleep(0.001)
    assert pool.sent == [b"a", b"b"]
    assert answers([first, second]) == [[97], [98]]


def test_a_full_batch_leaves_at_once(pool: Recorder) -> None:
    """The caller that fills a batch sends it, also for the caller that began it."""
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    asking = [ask(pipelining, bytes([number])) for number in range(2 * MAX_BATCH + 3)]
    assert answers(asking) == [[number] for number in range(2 * MAX_BATCH + 3)]
    assert [len(sent) for sent in pool.sent] == [MAX_BATCH, MAX_BATCH, 3]


def test_a_large_command_goes_alone(pool: Recorder) -> None:
    """The commands around it form a batch and need not wait for its transfer."""
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    large = b"x" * (LARGE_BYTES + 1)
    found = answers([ask(pipelining, b"a"), ask(pipelining, large), ask(pipelining, b"b")])
    assert found == [[97], list(large), [98]]
    assert sorted(pool.sent) == [b"ab", large]


def test_a_failure_fails_the_whole_batch_and_counts_once(pool: Recorder) -> None:
    """D3: one gets the failure as such, the others get copies that no breaker counts."""

    def fail() -> None:
        raise Unavailable("redis", "timeout", "too slow")

    pool.before = fail
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    asking = [ask(pipelining, b"a") for _ in range(3)]
    gevent.joinall(asking, timeout=5)
    errors = [one.exception for one in asking]
    assert {(error.name, error.reason, error.detail) for error in errors} == {
        ("redis", "timeout", "too slow")
    }
    assert sorted(error.counts for error in errors) == [False, False, True]
    assert len(set(map(id, errors))) == 3


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("when", ["before it leaves", "under way"])
def test_a_killed_greenlet_leaves_nobody_waiting(pool: Recorder, victim: int, when: str) -> None:
    """D9: when the sender of a batch is killed, the others fail at once; when a greenlet is killed
    that waits for its replies, the others get theirs."""
    answering = Event()
    pool.before = answering.wait
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    asking = [ask(pipelining, command) for command in (b"a", b"b", b"c")]
    gevent.sleep(0)
    while when == "under way" and not pool.sent:
        gevent.sleep(0)
    asking[victim].kill()
    answering.set()
    gevent.joinall(asking, timeout=5)
    others = [one for one in asking if one is not asking[victim]]
    if victim == 0:
        assert [error.reason for error in (one.exception for one in others)] == ["lost", "lost"]
    else:
        assert [one.value for one in others] == [[97], [99]]
    assert answers([ask(pipelining, b"d")]) == [[100]]


def test_the_time_to_join_is_not_the_time_of_redis(pool: Recorder) -> None:
    """A busy event loop does not count as a slow Redis."""
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    asking = [ask(pipelining, b"a") for _ in range(3)]
    asking.append(gevent.spawn(time.sleep, 0.2))  # in the same turn, and it holds the loop
    gevent.joinall(asking, timeout=5, raise_error=True)
    [left_s] = pool.left_s
    assert 0.95 <= left_s <= 1.0


def test_a_command_with_little_time_left_goes_alone(pool: Recorder) -> None:
    """A second hop, or a share of the time, must not shorten the deadline of the others."""
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    found = answers(
        [ask(pipelining, b"a"), ask(pipelining, b"b", left_s=0.5), ask(pipelining, b"c")]
    )
    assert found == [[97], [98], [99]]
    assert sorted(pool.sent) == [b"ac", b"b"]
    assert min(pool.left_s) <= 0.5 < 0.9 < max(pool.left_s)


def test_a_thousand_commands_get_a_thousand_answers(pool: Recorder) -> None:
    """D9: at random moments, with kills in between, no caller gets the reply of another."""
    pool.before = lambda: gevent.sleep(0)
    pipelining = Pipelining(pool.exchange, timeout_s=1.0)
    right, wrong = [], []

    def client(number: int) -> None:
        for turn in range(20):
            command = bytes([number % 256, turn])
            try:
                found = pipelining.exchange(command, 2, in_a(1.0))
            except Unavailable:
                continue
            (right if found == list(command) else wrong).append((command, found))
            gevent.sleep(0)

    clients = [gevent.spawn(client, number) for number in range(50)]
    for number in range(0, 50, 5):
        gevent.sleep(0)
        clients[number].kill(block=False)
    gevent.joinall(clients, timeout=10)
    assert wrong == []
    assert len(right) >= 40 * 20, "a client that was not killed went without an answer"
    assert all(one.dead for one in clients)
