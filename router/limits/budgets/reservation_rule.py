"""How much is reserved for a call before anybody knows what it will use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router.limits.budgets.windows import MAX_AMOUNT

Mode = Literal["worst_case", "capped", "floor"]


class PriceUnknown(Exception):
    """A model without a price, where such calls are refused."""


@dataclass(frozen=True, slots=True)
class ReservationRule:
    """``worst_case`` reserves the most that the call can use.
    ``capped`` reserves no more than the cap, ``floor`` always the floor: more calls run at once,
    and a budget can be overspent by what all of them together use above what was reserved.

    A floor is reserved for every call that is not free.
    """

    mode: Mode = "capped"
    cap_nanos: int = 100_000_000
    cap_tokens: int = 4_096
    floor_nanos: int = 1_000
    floor_tokens: int = 1
    refuse_unknown_price: bool = False
    """Else the floor is reserved, and charged, for a call of a model without a price."""

    def tokens(self, most: int) -> int:
        """What to reserve for a call that uses at most so many tokens."""
        return self._sized(most, self.cap_tokens, self.floor_tokens)

    def cost_nanos(self, most: int | None) -> int:
        """The same in nano-USD, ``None`` for a model without a price; raises
        :class:`PriceUnknown`."""
        if most is None:
            if self.refuse_unknown_price:
                raise PriceUnknown
            return self.floor_nanos
        return self._sized(most, self.cap_nanos, self.floor_nanos) if most else 0

    def _sized(self, most: int, cap: int, floor: int) -> int:
        if self.mode == "floor":
            return floor
        if self.mode == "capped":
            most = min(most, cap)
        return min(max(most, floor), MAX_AMOUNT)
