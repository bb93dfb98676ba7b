"""A bounded memory."""

from __future__ import annotations

from router.limits.recent import Recent


def test_it_never_grows_beyond_its_bound() -> None:
    """Callers of any number cost so much memory and no more; the newest is there."""
    recent: Recent[int] = Recent()
    for number in range(10_000):
        recent[number] = number
        assert recent[number] == number
        assert len(recent) <= 4096
