"""Budget windows, reservations and settlements. Amounts are nano-USD, tokens or calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal
from zoneinfo import ZoneInfo

from router.breaker import Reason, Unavailable
from router.limits.budgets.periods import Period, PeriodKind
from router.limits.redis_keys import quoted

Unit = Literal["usd", "tokens", "requests"]
Scope = Literal["org", "key"]

MAX_AMOUNT: Final = 9_000_000 * 10**9
"""9 000 000 USD in nano-USD. Above it sums would leave the 53 bits in which Lua counts exactly."""


@dataclass(slots=True)
class Amounts:
    """What one call uses, or may use, in each unit."""

    cost_nanos: int
    tokens: int
    requests: int = 1

    def __post_init__(self) -> None:
        cost, tokens, requests = self.cost_nanos, self.tokens, self.requests
        if not (
            0 <= cost <= MAX_AMOUNT and 0 <= tokens <= MAX_AMOUNT and 0 <= requests <= MAX_AMOUNT
        ):
            raise ValueError(f"no amounts between 0 and {MAX_AMOUNT}: {self}")

    def of(self, unit: Unit) -> int:
        """The amount that counts in a window of ``unit``."""
        if unit == "usd":
            return self.cost_nanos
        return self.tokens if unit == "tokens" else self.requests


NOTHING: Final = Amounts(0, 0, 0)


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """One budget or quota of an organization or of one of its keys.

    ``limit`` 0 blocks whatever is not free, ``None`` counts without limiting. ``thresholds`` are
    percentages of the limit that are reported when what is settled first reaches them in a period.
    With ``enforced`` false it only reports what it would have refused.
    """

    name: str
    unit: Unit
    period: PeriodKind
    limit: int | None
    timezone: str = "UTC"
    scope: Scope = "org"
    subject: str = ""
    """The key's id; empty for the organization's own windows."""
    thresholds: tuple[int, ...] = ()
    enforced: bool = True
    id: str = field(init=False, repr=False, compare=False)
    """Names the window within its organization, as events and logs show it."""
    identity: str = field(init=False, repr=False, compare=False)
    """Names its counters: in another time zone its periods, and so its sums, are others."""
    threshold_amounts: str = field(init=False, repr=False, compare=False)
    """The thresholds as amounts, as the scripts read them."""

    def __post_init__(self) -> None:
        self._check()
        parts = (self.scope, quoted(self.subject), quoted(self.name), self.unit, self.period)
        object.__setattr__(self, "id", ":".join(parts))
        # Where the time zone makes no difference, counters have the names that they always had.
        is_plain = self.period == "total" or self.timezone == "UTC"
        zone = () if is_plain else (quoted(self.timezone),)
        object.__setattr__(self, "identity", ":".join((*parts, *zone)))
        limit = self.limit or 0
        amounts = [
            f"{percent}={-(-limit * percent // 100)}" for percent in self.thresholds if limit
        ]
        object.__setattr__(self, "threshold_amounts", ",".join(amounts))

    @property
    def audit_context(self) -> dict[str, str | int | None]:
        """What an audit event about the window says of it."""
        return {
            "api_key_id": self.subject or None,
            "budget": self.name,
            "scope": self.scope,
            "unit": self.unit,
            "period": self.period,
            "limit": self.limit,
        }

    def _check(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"{self.name}: a limit is not negative")
        if self.limit is not None and self.limit > MAX_AMOUNT:
            most = "9 000 000 USD" if self.unit == "usd" else str(MAX_AMOUNT)
            raise ValueError(f"{self.name}: a limit above {most} cannot be counted exactly")
        if (self.scope == "key") != bool(self.subject):
            raise ValueError(f"{self.name}: a key's window names its key, no other does")
        if any(not 0 < percent <= 100 for percent in self.thresholds):
            raise ValueError(f"{self.name}: thresholds are percentages from 1 to 100")
        ZoneInfo(self.timezone)


@dataclass(frozen=True, slots=True)
class WindowState:
    """What the enforcing counter of a window says."""

    window: WindowSpec
    period: Period
    settled: int
    reserved: int
    lost: bool = False
    """Redis has forgotten it: the figures mean nothing until it is rebuilt."""

    @property
    def resets_at_s(self) -> int | None:
        """The true end of the period in seconds since the epoch; ``None`` for a total."""
        return None if self.period.end_ms is None else self.period.end_ms // 1000

    def has_room_beside_settled(self, amount: int) -> bool:
        """Whether nothing but reservations can stand in the way of ``amount``."""
        limit = self.window.limit
        return limit is None or amount <= limit - self.settled


@dataclass(slots=True)
class ReservedWindow:
    """A window in the period in which a call was admitted, and what was reserved in it."""

    window: WindowSpec
    period: Period
    amount: int


@dataclass(slots=True)
class Reservation:
    """A lease on every window of a call; to be settled or released, whatever becomes of it.

    Its windows stay those of the moment of admission: that period is charged, whenever it ends.
    """

    lease_id: str
    organization_id: str
    windows: tuple[ReservedWindow, ...]
    reserved_at_ms: int | None = None
    """``None`` when Redis never answered: then nobody knows whether anything is reserved."""
    epoch: str = ""
    dropped: tuple[str, ...] = ()
    """Leases of calls that never ended, which expired and were found by this reservation."""
    shadow_denied: tuple[WindowState, ...] = ()
    """Windows that would have refused, had they been enforced."""
    unclaimed: Reason | None = None
    """Why the call's id is not claimed, where it has one and goes on all the same."""


@dataclass(slots=True)
class ServiceReservation(Reservation):
    """One whose windows only a budget service knows: it finds them by the key of the call."""

    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """No window was touched. ``binding`` refused: one that is spent before one that running calls
    fill, and of these the one that resets last."""

    binding: WindowState
    this_request: int
    states: tuple[WindowState, ...]
    dropped: tuple[str, ...] = ()
    at_ms: int | None = field(default=None, compare=False)
    """When, by the clock of the counters; ``None`` where a budget service has not said."""

    @property
    def is_by_reservations(self) -> bool:
        """Whether the call fits as soon as running calls settle for less than they reserved; false
        where nobody has told the figures."""
        binding = self.binding
        limit = binding.window.limit
        room = 0 if limit is None else limit - binding.settled
        return room - binding.reserved < self.this_request <= room


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a call would fit; nothing is reserved. ``binding`` refused, and resets last."""

    allowed: bool
    binding: WindowState | None
    this_request: int
    """What the call would use of the binding window; 0 when there is none."""
    states: tuple[WindowState, ...]


@dataclass(frozen=True, slots=True)
class NeedsRebuild:
    """These windows are lost: ``Rebuilder.rebuild`` seeds them, then the call asks again."""

    windows: tuple[WindowSpec, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """This lease was settled or released already; a reservation that came late has no effect."""

    lease_id: str


ReserveOutcome = Reservation | Denied | NeedsRebuild | Closed


@dataclass(frozen=True, slots=True)
class ThresholdEvent:
    """A threshold that was reached; each is reported once a period, by whoever made it happen."""

    window: WindowSpec
    percent: int


@dataclass(slots=True)
class Settlement:
    """``booked`` is false when the lease had been settled or released before."""

    booked: bool
    threshold_events: tuple[ThresholdEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class LostWindow:
    """A window to be seeded. ``orphans`` were settled since it was lost: leave their records out of
    the sum, they are added to it. A later orphan makes another ``generation``."""

    window: WindowSpec
    period: Period
    generation: int
    orphans: tuple[str, ...]
    since_ms: int = 0
    """What it is to be seeded for: when a budget was last added to the document, 0 if never."""
    other_names: frozenset[str] = frozenset()
    """The other budgets of its owner: corrections of those are not its own."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """What a call that has not ended has reserved in a window."""

    lease_id: str
    amount: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of a lost window's period without Redis."""

    settled: int
    correction_ids: tuple[str, ...] = ()
    """Corrections by hand that ``settled`` contains and that might be made once more."""
    unsettled: frozenset[str] = frozenset()
    """Leases whose records ``settled`` contains although they may be settled later."""
    in_flight: tuple[InFlight, ...] = ()


SeedOutcome = Literal["seeded", "stale", "open"]


@dataclass(frozen=True, slots=True)
class Seeding:
    """What became of a seed: accepted, refused because an orphan came since, or not needed."""

    outcome: SeedOutcome
    threshold_events: tuple[ThresholdEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A correction by hand, as its audit event shows it. ``done_before``: nothing changed now."""

    correction_id: str
    window: WindowSpec
    reason: str
    before: int
    after: int
    done_before: bool = False
    threshold_events: tuple[ThresholdEvent, ...] = ()


class NotReserved(Unavailable):
    """The ledger gave no answer. Something may be reserved all the same: ``presumed`` is what to
    release later, or to settle where a call is let through without its reservation."""

    def __init__(self, cause: Unavailable, presumed: Reservation) -> None:
        super().__init__(cause.name, cause.reason, cause.detail)
        self.presumed = presumed


class WindowLost(Exception):
    """A window cannot be corrected before it is rebuilt."""
