"""A nonce is taken once, remembered long enough, and never forgotten for want of room."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from router.auth.nonces import NonceStore

NOW_S = 1_800_000_000.0


def take(store: NonceStore, nonces: Iterable[int], now_s: float = NOW_S) -> list[bool]:
    """Offer numbered nonces of one key."""
    return [store.accept("key_1", f"{number:016}", now_s) for number in nonces]


def test_a_nonce_is_accepted_once() -> None:
    """The second use of a nonce is a replay."""
    assert take(NonceStore(), [1, 1, 2, 1]) == [True, False, True, False]


def test_keys_have_nonces_of_their_own() -> None:
    """Two keys may happen to use the same nonce."""
    store = NonceStore()
    assert store.accept("key_1", "n" * 16, NOW_S)
    assert store.accept("key_2", "n" * 16, NOW_S)


def test_key_id_and_nonce_are_not_run_together() -> None:
    """No key can use up a nonce of another whose id begins alike."""
    store = NonceStore()
    assert store.accept("key_1", "1" * 17, NOW_S)
    assert store.accept("key_11", "1" * 16, NOW_S)


def test_a_nonce_is_held_for_twice_the_tolerance_inclusive() -> None:
    """The last moment at which a signature can be fresh still knows its nonce."""
    store = NonceStore(tolerance_s=300)
    assert take(store, [1]) == [True]
    assert take(store, [1], NOW_S + 600) == [False]
    assert take(store, [1], NOW_S + 600.001) == [True]


def test_a_full_store_refuses_rather_than_forgets() -> None:
    """When all places are taken a new nonce is refused, counted, and the old ones stay."""
    store = NonceStore(max_entries=3)
    assert take(store, [1, 2, 3, 4]) == [True, True, True, False]
    assert take(store, [1, 2, 3]) == [False, False, False]
    assert (len(store), store.refused_full) == (3, 1)


def test_a_full_store_takes_again_what_has_expired() -> None:
    """Room comes back as entries expire, one by one."""
    store = NonceStore(tolerance_s=10, max_entries=2)
    take(store, [1], NOW_S)
    take(store, [2], NOW_S + 5)
    assert take(store, [3], NOW_S + 20) == [False]
    assert take(store, [3, 4], NOW_S + 21) == [True, False]
    assert take(store, [4], NOW_S + 26) == [True]


def test_expired_entries_leave_the_memory() -> None:
    """A store that was full drains while it takes a fraction of the traffic."""
    store = NonceStore(max_entries=1000)
    assert all(take(store, range(1000)))
    assert all(take(store, range(1000, 1200), NOW_S + 601))
    assert len(store) == 200


def test_one_call_evicts_a_bounded_number() -> None:
    """The first call after a quiet hour does not pay for everything that expired in it."""
    store = NonceStore(max_entries=1000)
    take(store, range(1000))
    take(store, [1000], NOW_S + 3600)
    assert len(store) > 900


def test_a_clock_set_back_forgets_nothing() -> None:
    """A step of the clock may hold a nonce longer, never shorter."""
    store = NonceStore(tolerance_s=10)
    take(store, [1], NOW_S)
    take(store, [2], NOW_S - 100)
    assert take(store, [1, 2], NOW_S - 79) == [False, False]


def test_threads_take_a_nonce_once_between_them() -> None:
    """One of many simultaneous uses of a nonce is accepted."""
    store = NonceStore()
    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(lambda _: store.accept("key_1", "n" * 16, NOW_S), range(200)))
    assert accepted.count(True) == 1


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 20), st.floats(0, 15)), max_size=120),
    max_entries=st.integers(1, 10),
)
def test_no_nonce_is_accepted_twice_within_the_window(
    arrivals: list[tuple[int, float]], max_entries: int
) -> None:
    """Whatever arrives when, the bound holds and no nonce passes twice while it may be replayed."""
    store = NonceStore(tolerance_s=10, max_entries=max_entries)
    last_s: dict[int, float] = {}
    now_s = NOW_S
    for number, pause_s in arrivals:
        now_s += pause_s
        if take(store, [number], now_s) == [True]:
            assert now_s - last_s.get(number, 0.0) > 20
            last_s[number] = now_s
        assert len(store) <= max_entries
