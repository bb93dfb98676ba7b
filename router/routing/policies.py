"""Weighted order of a policy's backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.config.document import Share


def order(shares: Sequence[Share], draw: Callable[[], float]) -> list[str]:
    """Backend ids in the order in which to try them; ``draw`` gives numbers in [0, 1).

    Weighted sampling without replacement: the first place follows the weights exactly, and when
    a backend drops out the others keep the ratio they had among themselves. A weight of 0 takes
    no traffic at all.
    """
    left = [share for share in shares if share.weight > 0]
    total = sum(share.weight for share in left)
    ordered: list[str] = []
    while len(left) > 1:
        mark = draw() * total
        chosen = len(left) - 1
        for index, share in enumerate(left):
            mark -= share.weight
            if mark < 0:
                chosen = index
                break
        share = left.pop(chosen)
        total -= share.weight
        ordered.append(share.backend_id)
    ordered.extend(share.backend_id for share in left)
    return ordered
