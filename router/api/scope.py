"""Everything that is known of one request, in one typed place."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Final

from flask import Request

from router.call import (
    Attempt,
    Call,
    Caller,
    Decision,
    Dialect,
    LimitState,
    Outcome,
    Usage,
)
from router.config.document import Document, KeyRecord
from router.errors import Denial, RouterError
from router.limits.budgets.windows import Amounts
from router.limits.configured import RateSpecs
from router.limits.idempotency.nonces import Nonce
from router.limits.outcome import Admitted
from router.limits.rates.decision import RateDecision
from router.services.worker_services import Services
from router.telemetry.redaction import holds_secret
from router.telemetry.traces import TraceContext
from router.upstream.forwarder import BackendReply

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(slots=True)
class LimitContext:
    """How one request stands to the limits of its caller."""

    rate_decision: RateDecision | None = None
    """``None`` until the rate limits were asked."""
    rate_specs: RateSpecs | None = None
    """Rate limits that were charged: to be corrected, slots to be given back."""
    tokens: int = 0
    """What limits per minute were charged, estimated."""
    amounts: Amounts | None = None
    """What the call was to reserve of its budgets."""
    admitted: Admitted | None = None
    """Without it nothing reaches a backend."""
    replay: bytes | None = None
    """The reply that this very call had before."""
    stored_reply: bytes | None = None
    """The reply as duplicates will have it."""
    denial: Denial | None = None
    """The limit that refused."""
    settled: bool = False
    """What it has taken is charged or given back, or queued to be."""
    shadow_denied: list[str] = field(default_factory=list)
    """Limits that would have refused, had they been enforced."""

    @property
    def limit_state(self) -> LimitState:
        """As the usage record shows it."""
        if self.denial is None:
            return "WITHIN_LIMIT"
        return "RATE_LIMITED" if self.denial.limit_type == "rate_limit" else "BUDGET_EXCEEDED"


@dataclass(slots=True)
class Charge:
    """What a call is charged: the same in its record and in its budgets."""

    usage: Usage
    cost_nanos: int | None
    """``None`` where nothing is charged, and for a model without a price."""
    outcome: Outcome | None = None
    """As its record has it, which decides whether it counts as served; ``None`` without one."""


@dataclass(slots=True)
class Scope:
    """One request from its first step to its settlement; steps fill it in."""

    request: Request
    services: Services
    request_id: str
    trace: TraceContext
    started_s: float
    """On the monotonic clock."""
    remote_addr: str
    endpoint: str = "unknown"
    """The route's name: a closed set, unlike the path that the client wrote."""
    dialect: Dialect = "native"
    document: Document | None = None
    key: KeyRecord | None = None
    refused: tuple[str, str] | None = None
    """Id and organization of a key that is known and may not be used: for the log."""
    caller: Caller | None = None
    secrets: tuple[str, ...] = ()
    """Credentials the client sent; nothing that holds one leaves the router."""
    body: bytes | None = None
    nonce: Nonce | None = None
    """Of a signature that was verified; taken when the request is admitted."""
    requested_model: str | None = None
    """As the client wrote it; known also when there is no such model, and hence no call."""
    call: Call | None = None
    unreadable: RouterError | None = None
    """Why the body is no call."""
    attempts: list[Attempt] = field(default_factory=list)
    backend_reply: BackendReply | None = None
    status: int = 0
    code: str | None = None
    reason: str | None = None
    failed_outcome: Outcome | None = None
    bytes_sent: int = 0
    answered_s: float = 0.0
    """When the answer was ready to begin."""
    overhead_s: float = 0.0
    """Time until then that was not spent at backends."""
    handed_over: bool = False
    """A response exists, so closing it will settle."""
    ended: bool = False
    """The end of the response has been seen to."""
    input_estimate: Usage | None = None
    """What the call uses at least, from its length; once somebody has asked."""
    charge: Charge | None = None
    """What the call is charged; final once it is recorded."""
    recorded: bool = False
    """Its usage record and audit event were handed to the recorder, and must not be again."""
    record_id: str = field(default_factory=lambda: new_uuid())
    """Of the usage record, and of whatever the call holds: who finds one finds the other."""
    limits: LimitContext = field(default_factory=LimitContext)
    entered: Token[Scope | None] | None = None
    """For :func:`leave_scope`."""

    @property
    def backend_s(self) -> float:
        """Seconds spent on attempts at backends."""
        return sum([attempt.duration_s for attempt in self.attempts])

    @property
    def decision(self) -> Decision:
        """Whether the policy's first choice answered."""
        return "PRIMARY" if len(self.attempts) <= 1 else "FAILOVER"

    def elapsed_s(self) -> float:
        """Seconds since the request was opened."""
        return time.monotonic() - self.started_s


_CURRENT: Final[ContextVar[Scope | None]] = ContextVar("router_scope", default=None)
"""A variable of our own: on Flask's ``g`` each look costs as much as a step."""


def enter_scope(scope: Scope) -> None:
    """From here on :func:`current_scope` is this one."""
    scope.entered = _CURRENT.set(scope)


def leave_scope() -> Scope | None:
    """The scope that was entered last, for the last time: a connection that stays open until the
    next request must not keep what this one has brought."""
    scope = _CURRENT.get()
    if scope is not None and scope.entered is not None:
        _CURRENT.reset(scope.entered)
    return scope


def current_scope() -> Scope:
    """The scope of the request being served."""
    scope = _CURRENT.get()
    assert scope is not None, "no request is being served"
    return scope


def request_id_from(header: str | None) -> str:
    """The client's ``X-Request-ID`` when it is one we can echo safely, else a new UUID."""
    if header is not None and _REQUEST_ID.fullmatch(header) and not holds_secret(header):
        return header
    return new_uuid()


def new_uuid(
    random_bytes: Callable[[int], bytes] = os.urandom, now_ns: Callable[[], int] = time.time_ns
) -> str:
    """A UUID that begins with the time, in milliseconds (version 7, RFC 9562).

    A database files ids that come in order more cheaply than random ones.
    """
    raw = bytearray((now_ns() // 1_000_000).to_bytes(6, "big") + random_bytes(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
