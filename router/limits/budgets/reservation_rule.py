"""How much is reserved for a call before anybody knows what it will use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from router.config.document import Prices
from router.limits.budgets.windows import MAX_AMOUNT

Mode = Literal["worst_case", "capped", "floor"]

_MILLION: Final = 1_000_000


class PriceUnknown(Exception):
    """A model without a price, where such calls are refused."""


@dataclass(frozen=True, slots=True)
class ReservationRule:
    """``worst_case`` reserves what the call may use at most, as far as that is known before.
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

    def tokens(self, tokens_input: int, max_output: int) -> int:
        """What to reserve for an estimated prompt and at most ``max_output`` tokens of answer."""
        return self._sized(tokens_input + max_output, self.cap_tokens, self.floor_tokens)

    def cost_nanos(self, prices: Prices | None, tokens_input: int, max_output: int) -> int:
        """The same in nano-USD; raises :class:`PriceUnknown`."""
        if prices is None:
            if self.refuse_unknown_price:
                raise PriceUnknown
            return self.floor_nanos
        if prices.input_nanos == 0 and prices.output_nanos == 0:
            return 0
        most = tokens_input * prices.input_nanos + max_output * prices.output_nanos
        return self._sized(-(-most // _MILLION), self.cap_nanos, self.floor_nanos)

    def _sized(self, most: int, cap: int, floor: int) -> int:
        if self.mode == "floor":
            return floor
        if self.mode == "capped":
            most = min(most, cap)
        return min(max(most, floor), MAX_AMOUNT)
