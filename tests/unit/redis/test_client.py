"""Which server gets a command, and what the client does about its reply."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from router.breaker import Unavailable
from router.redis.address import parse_address
from router.redis.client import RedisClient
from router.redis.connection import ConnectionOptions
from router.redis.scripts import ScriptCall, script
from router.redis.topologies.cluster import slot_of
from router.redis.topologies.durability import Durability
from tests.fakes.scripted_redis import ScriptedRedis, array, bulk

CALL = ScriptCall(script("return 1"), ["{acme}k"], [])
OTHER = ScriptCall(script("return 2"), ["{acme}k"], [])
SLOT = slot_of("{acme}k")


@pytest.fixture
def servers() -> Iterator[list[ScriptedRedis]]:
    opened = [ScriptedRedis(), ScriptedRedis()]
    yield opened
    for server in opened:
        server.close()


def client(url: str) -> RedisClient:
    return RedisClient(parse_address(url), ConnectionOptions(timeout_s=0.5))


def slots(port: int) -> bytes:
    """The map of a cluster with one master."""
    return array(array(b":0\r\n", b":16383\r\n", array(bulk("127.0.0.1"), b":%d\r\n" % port)))


def masters(*named: tuple[str, int], flags: str = "master", epoch: int = 0) -> bytes:
    """What a sentinel says of the masters that it watches."""
    states = []
    for name, port in named:
        facts = {"name": name, "ip": "127.0.0.1", "port": str(port), "flags": flags}
        facts |= {"num-other-sentinels": "0", "config-epoch": str(epoch)}
        states.append(array(*(bulk(word) for fact in facts.items() for word in fact)))
    return array(*states)


def asked(sentinel: ScriptedRedis) -> int:
    """How often it was asked for the masters."""
    return sentinel.commands.count([b"SENTINEL", b"MASTERS"])


def test_an_unknown_script_is_taught(servers: list[ScriptedRedis]) -> None:
    """R6: what Redis has forgotten is sent as source, and what stands before it is not repeated."""
    server = servers[0]

    def answer(command: list[bytes]) -> bytes:
        known = command[1] != OTHER.script.sha.encode()
        return b":1\r\n" if known else b"-NOSCRIPT No matching script.\r\n"

    server.answer = answer
    subject = client(f"redis://127.0.0.1:{server.port}")
    assert subject.run_all([CALL, OTHER]) == [1, 1]
    assert server.names() == [b"EVALSHA", b"EVALSHA", b"EVAL"]
    subject.close()


def test_an_error_of_a_script_is_an_outage(servers: list[ScriptedRedis]) -> None:
    """D3: out of memory, read-only: three of them open the breaker, and then nobody is asked."""
    server = servers[0]
    server.answer = lambda _command: b"-OOM command not allowed\r\n"
    subject = client(f"redis://127.0.0.1:{server.port}")
    for _ in range(3):
        with pytest.raises(Unavailable, match="script"):
            subject.run(CALL)
    assert subject.is_unavailable
    with pytest.raises(Unavailable, match="breaker_open"):
        subject.run(CALL)
    assert server.names().count(b"EVALSHA") == 3
    subject.close()


def test_a_refused_administration_command_is_no_outage(servers: list[ScriptedRedis]) -> None:
    """D10: a Redis that forbids a command still limits."""
    servers[0].answer = lambda _command: b"-NOPERM no\r\n"
    subject = client(f"redis://127.0.0.1:{servers[0].port}")
    for _ in range(5):
        with pytest.raises(Unavailable, match="script"):
            subject.command("DBSIZE")
    subject.refresh()
    assert subject.durability() == [Durability()]
    assert not subject.is_unavailable
    subject.close()


def test_every_master_is_asked_once_how_safe_it_is(servers: list[ScriptedRedis]) -> None:
    """D10: from INFO, which most servers allow; the policy of one master says nothing of another's.
    A slot that has moved to a new master has that one asked, too."""
    one, other = servers
    ranges = [array(b":0\r\n", b":8191\r\n", array(bulk("127.0.0.1"), b":%d\r\n" % one.port))]

    def answer(policy: str, more: str) -> Callable[[list[bytes]], bytes]:
        return lambda command: {
            b"SLOTS": array(*ranges),
            b"memory": bulk(f"# Memory\r\nmaxmemory_policy:{policy}\r\nx:1"),
            b"replication": bulk(f"role:master\r\nconnected_slaves:1\r\n{more}y:2"),
        }.get(command[-1], b"-MOVED 9000 127.0.0.1:%d\r\n" % other.port)

    one.answer = answer("noeviction", "min_slaves_good_slaves:1\r\n")
    other.answer = answer("allkeys-lru", "")
    subject = client(f"redis+cluster://127.0.0.1:{one.port}")
    assert subject.needs_refresh
    subject.refresh()
    assert subject.durability() == [Durability("noeviction", 1, True)]
    assert not subject.needs_refresh
    ranges.append(
        array(b":8192\r\n", b":16383\r\n", array(bulk("127.0.0.1"), b":%d\r\n" % other.port))
    )
    with pytest.raises(Unavailable):
        subject.run(CALL)  # MOVED, again and again
    assert subject.needs_refresh
    subject.refresh()
    assert subject.durability() == [
        Durability("noeviction", 1, True),
        Durability("allkeys-lru", 1, False),
    ]
    subject.close()


def test_sentinel_names_the_master(servers: list[ScriptedRedis]) -> None:
    """The sentinel is asked once, by the first call."""
    sentinel, master = servers
    master.answer = lambda _command: b":1\r\n"
    sentinel.answer = lambda _command: masters(("other", 1), ("mymaster", master.port))
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    assert [subject.run(CALL), subject.run(CALL)] == [1, 1]
    assert asked(sentinel) == 1
    subject.close()


@pytest.mark.parametrize(
    "first",
    [b"*0\r\n", b"*-1\r\n", b"*1\r\n*0\r\n", b"-NOPERM no\r\n", b"$9\r\nhal", None, b"down"],
    ids=["none", "null", "empty", "error", "partial", "silent", "down"],
)
def test_the_second_sentinel_answers_where_the_first_does_not(
    servers: list[ScriptedRedis], first: bytes | None
) -> None:
    """D1: whatever the first one says or does not say, it takes its share of the time only. A
    master that its sentinel holds for down is no master."""
    sentinel, master = servers
    second = ScriptedRedis(lambda _command: masters(("mymaster", master.port)))
    master.answer = lambda _command: b":1\r\n"
    down = masters(("mymaster", 1), flags="master,s_down")
    sentinel.answer = lambda _command: down if first == b"down" else first
    url = f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:{second.port}/mymaster"
    subject = client(url)
    begun_s = time.monotonic()
    assert subject.run(CALL) == 1
    assert time.monotonic() - begun_s < 0.5
    subject.close()
    second.close()


def test_a_trickling_sentinel_is_given_up(servers: list[ScriptedRedis]) -> None:
    """D1: one byte after another, each in time, is no reply in time."""
    sentinel = servers[0]

    def trickle(_command: list[bytes]) -> None:
        def send() -> None:
            for byte in b"$" + b"1" * 30:
                for sock in list(sentinel._open):
                    with contextlib.suppress(OSError):
                        sock.sendall(bytes([byte]))
                time.sleep(0.05)

        threading.Thread(target=send, daemon=True).start()

    sentinel.answer = trickle
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    begun_s = time.monotonic()
    with pytest.raises(Unavailable, match="no sentinel knows"):
        subject.run(CALL)
    assert 0.4 < time.monotonic() - begun_s < 1.0
    subject.close()


def test_one_call_at_a_time_asks_the_sentinels(servers: list[ScriptedRedis]) -> None:
    """D7: calls that arrive together at a cold start share one lookup, and all are served."""
    sentinel, master = servers
    master.answer = lambda _command: b":1\r\n"

    def answer(_command: list[bytes]) -> bytes:
        time.sleep(0.05)
        return masters(("mymaster", master.port))

    sentinel.answer = answer
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(subject.run(CALL))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert found == [1] * 8
    assert asked(sentinel) == 1
    subject.close()


def test_silent_sentinels_are_not_asked_by_every_call(servers: list[ScriptedRedis]) -> None:
    """P9: with no master known the breaker opens too, and is seen."""
    sentinel = servers[0]
    sentinel.answer = lambda _command: b"*-1\r\n"
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    for _ in range(3):
        with pytest.raises(Unavailable, match="no sentinel knows"):
            subject.run(CALL)
    assert subject.is_unavailable
    with pytest.raises(Unavailable, match="breaker_open"):
        subject.run(CALL)
    subject.close()


@pytest.mark.parametrize(
    "refusal",
    [
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-MASTERDOWN Link with MASTER is down.\r\n",
        b"-ERR Error running script: @user_script:1: -READONLY You can't write\r\n",
    ],
    ids=["demoted", "without-replicas", "replica-alone", "before-7.0"],
)
def test_what_a_demoted_master_refuses_is_done_by_its_successor(
    servers: list[ScriptedRedis], refusal: bytes
) -> None:
    """P9: the sentinels are asked at once, no decision is lost, and nothing counts as an outage. It
    used to take three failed calls and the pause before a probe."""
    sentinel, old = servers
    new = ScriptedRedis(lambda _command: b":1\r\n")
    named = [old.port]
    sentinel.answer = lambda _command: masters(("mymaster", named[0]))
    old.answer = lambda _command: b":0\r\n" if named[0] == old.port else refusal
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    assert subject.run(CALL) == 0
    named[0] = new.port
    assert [subject.run(CALL), subject.run(CALL)] == [1, 1]
    assert old.names().count(b"EVALSHA") == 2
    assert asked(sentinel) == 2
    [breaker] = subject.breakers()
    assert breaker._failures == 0
    subject.close()
    new.close()


def test_lost_connections_are_made_again_to_whom_the_sentinels_name(
    servers: list[ScriptedRedis],
) -> None:
    """P9: a server that comes back after a failover, with data from before, is told nothing."""
    sentinel, old = servers
    new = ScriptedRedis(lambda _command: b":1\r\n")
    named = [old.port]
    sentinel.answer = lambda _command: masters(("mymaster", named[0]))
    old.answer = lambda _command: b":0\r\n"
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    assert subject.run(CALL) == 0
    old.hang_up()
    time.sleep(0.05)
    assert subject.run(CALL) == 0  # it is the master still
    named[0] = new.port
    old.hang_up()
    time.sleep(0.05)
    assert subject.run(CALL) == 1
    assert old.names().count(b"EVALSHA") == 2
    subject.close()
    new.close()


def test_without_sentinels_the_known_master_stays_one(servers: list[ScriptedRedis]) -> None:
    """D6: dead sentinels are no reason to decide nothing."""
    sentinel, master = servers
    master.answer = lambda _command: b":1\r\n"
    sentinel.answer = lambda _command: masters(("mymaster", master.port))
    subject = client(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    assert subject.run(CALL) == 1
    sentinel.close()
    master.hang_up()
    time.sleep(0.05)
    assert subject.run(CALL) == 1
    subject.close()


def test_a_sentinel_that_knows_less_does_not_decide(servers: list[ScriptedRedis]) -> None:
    """P9: neither one that names a replica, nor one that has not heard of the last failover."""
    behind, old = servers
    new = ScriptedRedis(lambda _command: b":1\r\n")
    up_to_date = ScriptedRedis(lambda _command: masters(("mymaster", new.port), epoch=7))
    role = b"slave"

    def answer(command: list[bytes]) -> bytes:
        is_role = command[0] == b"ROLE"
        return array(bulk(role), b":0\r\n") if is_role else b":0\r\n"

    behind.answer = lambda _command: masters(("mymaster", old.port), epoch=6)
    old.answer = answer
    url = f"redis+sentinel://127.0.0.1:{behind.port},127.0.0.1:{up_to_date.port}/mymaster"
    subject = client(url)
    assert subject.run(CALL) == 1  # the first names a replica
    role = b"master"
    up_to_date.hang_up()
    new.hang_up()
    time.sleep(0.05)
    subject._topology._sentinels.reverse()  # type: ignore[attr-defined]
    assert subject.run(CALL) == 1  # the first names a master of an older epoch
    assert asked(behind) == 2
    assert b"EVALSHA" not in old.names()
    subject.close()
    new.close()
    up_to_date.close()


def test_a_cluster_without_servers_is_not_asked_by_every_call() -> None:
    """P9, D6: at a cold start with everything down, the breakers open all the same."""
    dead = ScriptedRedis()
    dead.close()
    subject = client(f"redis+cluster://127.0.0.1:{dead.port}")
    for _ in range(3):
        with pytest.raises(Unavailable, match="topology"):
            subject.run(CALL)
    with pytest.raises(Unavailable, match="breaker_open"):
        subject.run(CALL)
    assert subject.is_unavailable
    subject.close()


def test_moved_is_followed_and_learnt(servers: list[ScriptedRedis]) -> None:
    """A slot that has gone to another master is asked for there from then on."""
    old, new = servers

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            return slots(old.port)
        return b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, new.port)

    old.answer = answer
    new.answer = lambda _command: b":1\r\n"
    subject = client(f"redis+cluster://127.0.0.1:{old.port}")
    assert [subject.run(CALL), subject.run(CALL)] == [1, 1]
    assert old.names() == [b"CLUSTER", b"EVALSHA"]
    assert new.names() == [b"EVALSHA", b"EVALSHA"]
    subject.close()


def test_asking_goes_on_when_the_new_server_does_not_know_the_script(
    servers: list[ScriptedRedis],
) -> None:
    """R6: it used to be sent there without ASKING, sent back, and given up after it was done."""
    old, new = servers
    asked: list[bytes] = []

    def answer_old(command: list[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            return slots(old.port)
        return b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, new.port)

    def answer_new(command: list[bytes]) -> bytes:
        asked.append(command[0])
        if command[0] == b"ASKING":
            return b"+OK\r\n"
        if asked[-2:-1] != [b"ASKING"]:
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, old.port)
        return b":1\r\n" if command[0] == b"EVAL" else b"-NOSCRIPT no\r\n"

    old.answer, new.answer = answer_old, answer_new
    subject = client(f"redis+cluster://127.0.0.1:{old.port}")
    assert subject.run(CALL) == 1
    assert asked == [b"ASKING", b"EVALSHA", b"ASKING", b"EVAL"]
    subject.close()


@pytest.mark.parametrize("host", ["", "?"])
@pytest.mark.parametrize("word", ["MOVED", "ASK"])
def test_a_redirection_without_a_host_means_the_one_that_replied(
    servers: list[ScriptedRedis], word: str, host: str
) -> None:
    """R5: a server that does not know its own host leaves it out; it used to be an unknown host."""
    old, new = servers
    named = f"{host}:{new.port}".encode()

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            of_old = array(bulk(host), b":%d\r\n" % old.port)
            return array(array(b":0\r\n", b":16383\r\n", of_old))
        return b"-%b %d %b\r\n" % (word.encode(), SLOT, named)

    old.answer = answer
    new.answer = lambda _command: b":1\r\n"
    subject = client(f"redis+cluster://127.0.0.1:{old.port}")
    assert subject.run(CALL) == 1
    subject.close()


def test_a_forgotten_server_leaves_its_outage_behind(servers: list[ScriptedRedis]) -> None:
    """D2: the time that a dependency was unavailable is counted, and a count never falls."""
    one, other = servers
    at = [one.port]
    other.answer = lambda command: slots(at[0]) if command[0] == b"CLUSTER" else b":1\r\n"
    changes: list[str] = []
    subject = RedisClient(
        parse_address(f"redis+cluster://127.0.0.1:{other.port}"),
        ConnectionOptions(timeout_s=0.5),
        on_change=lambda _name, state: changes.append(state),
    )
    one.close()
    for _ in range(3):
        with pytest.raises(Unavailable):
            subject.run(CALL)
    assert subject.is_unavailable
    unavailable_s = subject.unavailable_s
    at[0] = other.port
    give_up_s, found = time.monotonic() + 10, None
    while found is None:  # one server may be well before the map says that it owns the slot
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
        with contextlib.suppress(Unavailable):
            found = subject.run(CALL)
    assert found == 1
    assert subject.unavailable_s >= unavailable_s > 0
    assert changes == ["open", "closed"]
    [breaker] = subject.breakers()
    assert breaker.state == "closed"
    subject.close()


def test_a_failure_counts_against_the_server_that_failed(servers: list[ScriptedRedis]) -> None:
    """P9: a master whose slot moves to a dead one is well, and goes on with its other slots."""
    whole, dead = servers
    dead.close()

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            return slots(whole.port)
        if command[-1] == b"other":
            return b":1\r\n"
        return b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, dead.port)

    whole.answer = answer
    subject = client(f"redis+cluster://127.0.0.1:{whole.port}")
    for _ in range(5):
        with pytest.raises(Unavailable, match="connect"):
            subject.run(CALL)
    assert subject.run(ScriptCall(CALL.script, CALL.keys, ["other"])) == 1
    subject.close()


def test_a_moving_slot_whose_keys_cannot_be_moved_ends_with_the_deadline(
    servers: list[ScriptedRedis],
) -> None:
    """P9: a user without the permission for MIGRATE waits for the operator's tool, as long as the
    call has time, and no master is blamed."""
    source, target = servers

    def answer(command: list[bytes]) -> bytes:
        return {
            b"CLUSTER": slots(source.port),
            b"EXISTS": b":1\r\n" if command[1] == b"{acme}k" else _ask(target.port),
            b"MIGRATE": b"-NOPERM no\r\n",
        }.get(command[0], b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")

    source.answer = answer
    subject = client(f"redis+cluster://127.0.0.1:{source.port}")
    call = ScriptCall(CALL.script, ["{acme}k", "{acme}new"], [])
    begun_s = time.monotonic()
    for _ in range(4):
        with pytest.raises(Unavailable, match=r"script|timeout"):
            subject.run(call)
    assert 4 * 0.4 < time.monotonic() - begun_s < 4 * 1.0
    assert not subject.is_unavailable
    assert target.commands == []
    subject.close()


def test_a_user_with_a_password_moves_keys_with_it(servers: list[ScriptedRedis]) -> None:
    """The masters of a cluster have the same users."""
    source, target = servers

    def answer(command: list[bytes]) -> bytes:
        return {
            b"AUTH": b"+OK\r\n",
            b"CLUSTER": slots(source.port),
            b"EXISTS": b":1\r\n" if command[1] == b"{acme}k" else _ask(target.port),
            b"MIGRATE": b"+OK\r\n",
        }.get(command[0], b"-TRYAGAIN no\r\n")

    source.answer = answer
    target.answer = lambda command: b":7\r\n" if command[0] == b"EVAL" else b"+OK\r\n"
    subject = client(f"redis+cluster://me:pw@127.0.0.1:{source.port}")
    assert subject.run(ScriptCall(CALL.script, ["{acme}k", "{acme}new"], ["x"])) == 7
    [migrate] = [command for command in source.commands if command[0] == b"MIGRATE"]
    assert migrate[6:] == [b"AUTH2", b"me", b"pw", b"KEYS", b"{acme}k"]
    assert target.names() == [b"AUTH", b"ASKING", b"EVAL"]
    assert target.commands[-1][2:] == [b"1", b"{acme}k", b"2", b"{acme}new", b"x"]
    subject.close()


def _ask(port: int) -> bytes:
    return b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, port)


def test_redirections_without_end_are_given_up(servers: list[ScriptedRedis]) -> None:
    """Two servers that each name the other do not keep a call for ever."""
    one, other = servers

    def pointing_at(port: int) -> bytes:
        return b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, port)

    one.answer = lambda command: (
        slots(one.port) if command[0] == b"CLUSTER" else pointing_at(other.port)
    )
    other.answer = lambda _command: pointing_at(one.port)
    subject = client(f"redis+cluster://127.0.0.1:{one.port}")
    begun_s = time.monotonic()
    with pytest.raises(Unavailable, match="too many redirections"):
        subject.run(CALL)
    assert time.monotonic() - begun_s < 1
    subject.close()
