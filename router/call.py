"""The nouns of one call: who calls, what is asked, what was used, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

Dialect = str
"""A name in the table of ``api.dialects``."""
Operation = Literal["chat", "completions", "embeddings"]
UsageSource = Literal["reported", "estimated", "none"]
Outcome = Literal[
    "completed", "client_aborted", "upstream_aborted", "upstream_error", "timeout", "rejected"
]
Decision = Literal["PRIMARY", "FAILOVER", "OVERRIDE"]
LimitState = Literal["WITHIN_LIMIT", "RATE_LIMITED", "BUDGET_EXCEEDED"]

OUTCOMES: Final[tuple[Outcome, ...]] = (
    "completed",
    "client_aborted",
    "upstream_aborted",
    "upstream_error",
    "timeout",
    "rejected",
)


@dataclass(slots=True)
class Caller:
    """An authenticated key and the organization that pays for it."""

    organization_id: str
    key_id: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    """Canonical model ids this key may use; ``None`` means every model."""
    require_signature: bool = False
    signed: bool = False
    """True once a request signature of this very request was verified."""


@dataclass(slots=True)
class Call:
    """One inference call in the shape of the OpenAI dialect, whatever dialect it came in."""

    dialect: Dialect
    operation: Operation
    model: str
    """Canonical model id; ``requested_model`` is what the client wrote (may be an alias)."""
    requested_model: str
    fields: dict[str, Any]
    """The parsed body, OpenAI-shaped."""
    body: bytes | None
    """The client's own bytes, to be forwarded untouched; ``None`` when they were translated."""
    stream: bool = False
    include_usage: bool = False
    """The client asked for the usage chunk of a stream itself."""
    idempotency_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Usage:
    """Tokens of one call; ``tokens_cached`` is the part of the input billed as cached."""

    tokens_input: int
    tokens_output: int
    tokens_cached: int = 0
    source: UsageSource = "reported"


NO_USAGE: Final = Usage(0, 0, 0, "none")


@dataclass(slots=True)
class Attempt:
    """One try at one backend; durations in seconds."""

    backend_id: str
    status: int | None = None
    error: str | None = None
    duration_s: float = 0.0
    ttfb_s: float = 0.0
    reused_connection: bool = False
