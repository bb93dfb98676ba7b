"""How each thing is that a call needs, since when, and what happens to calls meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from router.breaker import State as BreakerState
from router.clock import Clock
from router.config.settings import Settings
from router.config.state.state_reader import StateReader
from router.errors import NotConfigured, RecordsUnavailable
from router.readiness.watch import Observation
from router.spool.writer import SpoolWriter

SPOOL_FILLING: Final = 0.5
"""The share of its limit at which somebody should look why the spool is not shipped."""

State = Literal["ok", "degraded", "unavailable"]

_NOT_LOOKED: Final = "not looked at yet"
_ALL_REFUSED: Final = "every call is refused"
_DISK: Final = {
    "disk_full": "the disk is full",
    "disk_error": "the disk gives errors",
    "disk_slow": "the disk is too slow",
    "spool_full": "the spool is full",
}


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that a call needs: ``degraded`` serves calls, ``unavailable`` refuses them all."""

    state: State = "ok"
    cause: str = ""
    """What is wrong, in words that anybody may read. Empty while all is well."""
    meanwhile: str = ""
    """What happens while it lasts."""
    facts: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    """The cause as a word for programs, where there is one."""
    since_s: float = 0.0
    """When the component got into this state, as this worker saw it: seconds since the epoch."""

    @property
    def detail(self) -> str:
        """The cause and what happens meanwhile, for people."""
        return f"{self.cause}; {self.meanwhile}"


class StateHistory:
    """Remembers since when each component is in its state."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, tuple[State, float]] = {}

    def dated(self, components: Mapping[str, Component]) -> dict[str, Component]:
        """The components with ``since_s``; to be called about once a second."""
        now_s = self._clock.now_s()
        for name, component in components.items():
            if name not in self._known or self._known[name][0] != component.state:
                self._known[name] = (component.state, now_s)
        return {
            name: replace(component, since_s=self._known[name][1])
            for name, component in components.items()
        }


def configuration(state: StateReader, pepper_fingerprint: str) -> Component:
    """The stored document and keys."""
    try:
        document = state.document()
        keys_fit = state.pepper_matches(pepper_fingerprint)
    except NotConfigured as error:
        return Component("unavailable", error.message, _ALL_REFUSED)
    facts = {"revision": document.revision}
    if keys_fit is False:  # every key would be refused as unknown
        cause = "the keys were made with another pepper than this router's"
        return Component("unavailable", cause, "every key is refused as unknown", facts)
    if state.fault is not None:
        meanwhile = "calls are served with the last good configuration"
        return Component("degraded", state.fault, meanwhile, facts)
    return Component(facts=facts)


def backends(state: StateReader, seen: Observation | None) -> Component:
    """Whether policies lead to backends that are configured and have their credential."""
    try:
        document = state.document()
    except NotConfigured as error:
        return Component("unavailable", error.message, _ALL_REFUSED)
    if seen is None:
        return Component("degraded", _NOT_LOOKED, "calls are served")
    named = {share.backend_id for policy in document.policies for share in policy.shares}
    broken = {
        name for name in named if document.backends[name].credential in seen.missing_credentials
    }
    stranded = [
        policy
        for policy in document.policies
        if not any(share.weight and share.backend_id not in broken for share in policy.shares)
    ]
    cause = f"{len(broken)} of {len(named)} backends have no credential"
    if len(stranded) == len(document.policies):
        cause = cause if broken else "no policy names a backend"
        return Component("unavailable", cause, _ALL_REFUSED)
    if not broken:
        return Component()
    meanwhile = "calls go to the other backends"
    if stranded:
        of_all = f"{len(stranded)} of {len(document.policies)} policies"
        meanwhile = f"calls under {of_all} are refused, all others {meanwhile[6:]}"
    return Component("degraded", cause, meanwhile)


def limits(settings: Settings, breakers: Mapping[str, Sequence[BreakerState]]) -> Component:
    """Redis, and the budget service where there is one, as their breakers see them."""
    redis = breakers["redis"]
    closed = [state for state in redis if state == "closed"]
    causes, meanwhile, refuses_all = [], [], False
    service_is_down = any(state != "closed" for state in breakers.get("budget_service", ()))
    if service_is_down:
        causes.append("the budget service is unavailable")
        if settings.budget_fallback == "closed":
            refuses_all = True  # the service alone knows which calls have budgets
        else:
            meanwhile.append("calls are served without asking for their budgets and charged later")
    if len(closed) < len(redis):
        causes.append("a part of Redis is unavailable" if closed else "Redis is unavailable")
        meanwhile += _without_redis(settings, has_service="budget_service" in breakers)
        refuses_all |= not closed and settings.rate_limit_fallback == "closed"
    if not causes:
        return Component()
    cause = " and ".join(causes)
    if refuses_all:
        return Component("unavailable", cause, _ALL_REFUSED)
    of_part = "for organizations on that part " if closed and not service_is_down else ""
    return Component("degraded", cause, of_part + ", ".join(meanwhile))


def _without_redis(settings: Settings, *, has_service: bool) -> list[str]:
    """What the configured policies make of calls while Redis is unavailable."""
    rates = {
        "local": "each worker enforces its share of the rate limits",
        "open": "rate limits are not enforced",
        "closed": "calls with rate limits are refused",
    }
    budgets = {
        "closed": "calls with budgets are refused",
        "open": "calls with budgets are served and charged later",
    }
    duplicates = {
        "open": "duplicate calls are not recognized",
        "closed": "calls with an idempotency key or a request_id are refused",
    }
    return [
        *([] if has_service else [budgets[settings.budget_fallback]]),
        rates[settings.rate_limit_fallback],
        duplicates[settings.idempotency_fallback],
    ]


def records(spool: SpoolWriter) -> Component:
    """The place for the records of calls; without it no calls are served."""
    figures = spool.status()
    facts = {"bytes_used": figures.total_bytes, "bytes_limit": figures.max_bytes}
    try:
        spool.check()
    except RecordsUnavailable as refusal:
        cause = f"calls cannot be recorded, {_DISK[refusal.reason]}"
        return Component("unavailable", cause, _ALL_REFUSED, facts, refusal.reason)
    if figures.buffered_bytes:
        meanwhile = "calls are served; the records are written once the disk recovers"
        return Component("degraded", "records are held in memory", meanwhile, facts)
    if figures.total_bytes > SPOOL_FILLING * figures.max_bytes:
        meanwhile = "calls are served until it is full"
        return Component("degraded", "the spool fills", meanwhile, facts)
    return Component(facts=facts)


def agent(seen: Observation | None) -> Component:
    """Who ships the records."""
    meanwhile = "calls are served, and their records wait in the spool"
    if seen is None:
        return Component("degraded", _NOT_LOOKED, meanwhile)
    if not seen.shipping.is_running:
        return Component("degraded", "no agent runs", meanwhile)
    if seen.shipping.silent_s is not None:
        cause = f"the agent has not reported for {seen.shipping.silent_s:.0f} s"
        return Component("degraded", cause, meanwhile)
    failing = sorted(name for name, sink in seen.shipping.sinks.items() if sink.failing)
    if failing:
        return Component("degraded", f"not delivered to: {', '.join(failing)}", meanwhile)
    return Component()


def store(seen: Observation | None) -> Component:
    """Where records are queried."""
    meanwhile = "calls are served, but audit and usage cannot be queried"
    if seen is None:
        return Component("degraded", _NOT_LOOKED, meanwhile)
    if seen.store_error is not None:
        return Component("degraded", seen.store_error, meanwhile)
    return Component()
