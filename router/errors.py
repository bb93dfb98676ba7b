"""Everything that can go wrong with a call. An error carries facts; statuses live in ``api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

LimitType = Literal["rate_limit", "budget", "quota"]


class RouterError(Exception):
    """The base of every refusal and failure that a client can meet."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


# --- the caller -----------------------------------------------------------------------------


class Unauthenticated(RouterError):
    """No valid key. ``reason`` is for log and metrics only: the reply never tells it."""

    def __init__(self, reason: str, *, known: tuple[str, str] | None = None) -> None:
        super().__init__("missing or invalid API key")
        self.reason = reason
        self.known = known
        """Key id and organization, when the key is one of ours that may not be used."""


class SignatureInvalid(RouterError):
    """The key is valid, the request signature is not (or is missing where it is required)."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SignaturesExceeded(RouterError):
    """The key has used more nonces than the router keeps for one key."""

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__("this key has signed more requests than the router keeps nonces for")
        self.retry_after_s = retry_after_s


class SignatureNotProven(RouterError):
    """Nobody can tell whether the signature was used before: ours to mend, so sign again."""

    def __init__(self) -> None:
        super().__init__("it is not known whether this signature was used before; sign again")
        self.retry_after_s = 1


class ScopeMissing(RouterError):
    """The key is valid but does not carry the scope that the endpoint needs."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this API key lacks the scope '{scope}'")
        self.scope = scope


class ModelForbidden(RouterError):
    """The key may not use this model."""

    def __init__(self, model: str) -> None:
        super().__init__(f"this API key may not use the model '{model}'")
        self.model = model


# --- its limits -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Which limit refused a call, and how things stand there: nano-USD, tokens or calls."""

    limit_type: LimitType
    name: str
    scope: Literal["org", "key", "model"]
    unit: Literal["usd", "tokens", "requests", "concurrent"]
    limit: int
    usage: int
    """What counts against the limit, what running calls hold included."""
    this_request: int
    retry_after_s: int | None = None
    """After which the same call, alone, will pass; ``None`` when no wait is known to help."""
    period: str | None = None
    """Of a budget or quota, as the next three are."""
    settled: int | None = None
    reserved: int | None = None
    resets_at_s: int | None = None
    """``None`` when the period does not end."""


class RateLimited(RouterError):
    """More is asked for at once than a rate limit allows."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(f"the rate limit '{denial.name}' is exceeded")
        self.denial = denial


class TokensAboveLimit(RouterError):
    """The call alone asks for more tokens than a rate limit ever has at once."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(
            f"the call asks for {denial.this_request} tokens, and the rate limit '{denial.name}'"
            f" never has more than {denial.limit}"
        )
        self.denial = denial


class BudgetExceeded(RouterError):
    """A budget in USD does not cover the call."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(f"the {denial.period} budget '{denial.name}' does not cover this call")
        self.denial = denial


class QuotaExceeded(RouterError):
    """A quota of tokens or calls does not cover the call."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(f"the {denial.period} quota '{denial.name}' does not cover this call")
        self.denial = denial


class PriceUnknown(RouterError):
    """The model has no price, so no budget may pay for it."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model '{model}' has no price and cannot be paid from a budget")
        self.model = model


class LimitsUnavailable(RouterError):
    """Nobody can tell now whether a limit allows the call."""

    def __init__(self, *, retry_after_s: int = 1) -> None:
        super().__init__("limits cannot be checked right now")
        self.retry_after_s = retry_after_s


class BudgetUnavailable(RouterError):
    """Nobody can tell now whether a budget covers the call."""

    def __init__(self, *, retry_after_s: int = 1) -> None:
        super().__init__("budgets cannot be checked right now")
        self.retry_after_s = retry_after_s


class InProgress(RouterError):
    """A call with the same id is being served."""

    def __init__(self) -> None:
        super().__init__("a call with this id is being served; ask again for its reply")
        self.retry_after_s = 1


class IdempotencyMismatch(RouterError):
    """The id was used for another request."""

    def __init__(self) -> None:
        super().__init__("this id was used for another request; use a new one")


class ReplyNotStored(RouterError):
    """The call was served before; its reply was a stream or too large to be kept."""

    def __init__(self) -> None:
        super().__init__("a call with this id was served before, and its reply was not kept")


# --- the request ----------------------------------------------------------------------------


class InvalidRequest(RouterError):
    """The request cannot be understood; ``field`` is the dotted path of the culprit."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class BodyTooLarge(RouterError):
    """The body, or one of its fields, is over its size limit."""

    def __init__(self, limit: int, *, field: str = "body", unit: str = "bytes") -> None:
        super().__init__(f"{field} is larger than the limit of {limit} {unit}")
        self.limit = limit
        self.field = field


class BodyIncomplete(RouterError):
    """The client stopped sending before its body was whole."""

    def __init__(
        self, received_bytes: int | None = None, expected_bytes: int | None = None
    ) -> None:
        known = (
            "" if expected_bytes is None else f" after {received_bytes} of {expected_bytes} bytes"
        )
        super().__init__(f"the request body ended early{known}")


class BodyTimeout(RouterError):
    """The client did not send its body in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request body did not arrive within {timeout_s:g} s")
        self.timeout_s = timeout_s


class UnsupportedMediaType(RouterError):
    """The body is not declared as JSON."""

    def __init__(self, content_type: str | None) -> None:
        super().__init__("the body must be application/json, and not compressed")
        self.content_type = content_type


class ModelNotFound(RouterError):
    """No such model, or none that this router knows how to serve."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model '{model}' does not exist")
        self.model = model


class NotFound(RouterError):
    """No such endpoint or entity."""


class RequestNotFound(RouterError):
    """Nothing is recorded of such a request in the caller's organization."""

    def __init__(self) -> None:
        super().__init__("no such request is recorded for this organization")


class MethodNotAllowed(RouterError):
    """The endpoint exists, the method does not."""

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not allowed here")
        self.allowed = allowed


# --- the backends ---------------------------------------------------------------------------


class BackendUnavailable(RouterError):
    """No backend could be reached; nothing was processed and a retry is safe."""

    def __init__(self, *, retry_after_s: int = 1) -> None:
        super().__init__("no backend is available for this model right now")
        self.retry_after_s = retry_after_s


class BackendTimeout(RouterError):
    """A backend took the call and did not answer in time."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the backend did not answer in time ({phase})")
        self.phase = phase


class BackendFailed(RouterError):
    """A backend answered with a failure of its own, or with nonsense."""

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__("the backend failed to answer this call")
        self.reason = reason
        self.status = status


class BackendRejected(RouterError):
    """A backend refused the request itself (4xx): the client's to mend, never retried."""

    def __init__(self, message: str, *, status: int, body: bytes | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        """The backend's own error in OpenAI shape, fit to be shown, or ``None``."""


class BackendBusy(RouterError):
    """A backend answered 429 and no other could take the call."""

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__("the backends are rate limited for this model right now")
        self.retry_after_s = retry_after_s


class ClientGone(RouterError):
    """The client closed its connection; nobody is left to answer."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection")


# --- ourselves ------------------------------------------------------------------------------


class NotConfigured(RouterError):
    """No document has been applied yet, or ``state/`` cannot be read."""

    def __init__(self, message: str = "the router has no configuration yet") -> None:
        super().__init__(message)


class RecordsUnavailable(RouterError):
    """What happens now could not be recorded durably, so it must not happen.

    ``reason`` is one of ``disk_full``, ``disk_error``, ``disk_slow``, ``spool_full``, ``closed``;
    it is for log and metrics only.
    """

    def __init__(
        self, reason: str, *, retry_after_s: int = 1, nothing_written: bool = False
    ) -> None:
        super().__init__("calls cannot be recorded right now")
        self.reason = reason
        self.nothing_written = nothing_written
        """No record of the refused append can ever be delivered out of what is on the disk."""
        self.retry_after_s = retry_after_s


StoreCondition = Literal["busy", "damaged", "unavailable"]


class RecordStoreUnavailable(RouterError):
    """The record store cannot be asked now; calls are served and recorded all the same.

    ``reason`` is the store's own explanation; it is for the log only.
    """

    def __init__(self, reason: str, *, condition: StoreCondition = "unavailable") -> None:
        super().__init__("the record store cannot be asked right now")
        self.reason = reason
        self.condition: Final = condition


class QueriesBusy(RouterError):
    """Too many questions to the record store wait already, of this organization or of all."""

    def __init__(self, *, retry_after_s: int = 1) -> None:
        super().__init__("too many questions to the record store at once")
        self.retry_after_s = retry_after_s


class QueryTimeout(RouterError):
    """The record store did not answer in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the record store did not answer within {timeout_s:g} s")
        self.timeout_s = timeout_s
