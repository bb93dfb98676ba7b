"""One table: the status, code, type and outcome of each error, and the facts of a limit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from router import errors
from router.call import Outcome
from router.records.record_types import NANOS_PER_USD


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """How one kind of error is shown to clients and recorded."""

    status: int
    code: str
    openai_type: str
    openai_code: str | None
    outcome: Outcome
    retryable: bool = False


_INVALID: Final = "invalid_request_error"

ERROR_SPECS: Final[dict[type[errors.RouterError], ErrorSpec]] = {
    errors.Unauthenticated: ErrorSpec(401, "AUTH_INVALID", _INVALID, "invalid_api_key", "rejected"),
    errors.SignatureInvalid: ErrorSpec(
        401, "SIGNATURE_INVALID", _INVALID, "invalid_signature", "rejected"
    ),
    errors.SignaturesExceeded: ErrorSpec(
        429, "SIGNATURES_EXCEEDED", "rate_limit_error", "signatures_exceeded", "rejected", True
    ),
    errors.SignatureNotProven: ErrorSpec(
        503, "SIGNATURE_NOT_PROVEN", "server_error", "signature_not_proven", "rejected", True
    ),
    errors.ScopeMissing: ErrorSpec(
        403, "SCOPE_MISSING", _INVALID, "insufficient_scope", "rejected"
    ),
    errors.ModelForbidden: ErrorSpec(
        403, "MODEL_FORBIDDEN", _INVALID, "model_not_allowed", "rejected"
    ),
    errors.RateLimited: ErrorSpec(
        429, "RATE_LIMIT_EXCEEDED", "rate_limit_error", "rate_limit_exceeded", "rejected", True
    ),
    errors.TokensAboveLimit: ErrorSpec(
        400, "TOKENS_ABOVE_LIMIT", _INVALID, "tokens_above_limit", "rejected"
    ),
    errors.BudgetExceeded: ErrorSpec(
        402, "BUDGET_EXCEEDED", "insufficient_quota", "insufficient_quota", "rejected"
    ),
    errors.QuotaExceeded: ErrorSpec(
        402, "QUOTA_EXCEEDED", "insufficient_quota", "insufficient_quota", "rejected"
    ),
    errors.PriceUnknown: ErrorSpec(403, "PRICE_UNKNOWN", _INVALID, "price_unknown", "rejected"),
    errors.LimitsUnavailable: ErrorSpec(
        503, "LIMITS_UNAVAILABLE", "server_error", "limits_unavailable", "rejected", True
    ),
    errors.BudgetUnavailable: ErrorSpec(
        503, "BUDGET_UNAVAILABLE", "server_error", "budget_unavailable", "rejected", True
    ),
    errors.InProgress: ErrorSpec(409, "IN_PROGRESS", _INVALID, "in_progress", "rejected", True),
    errors.IdempotencyMismatch: ErrorSpec(
        422, "IDEMPOTENCY_MISMATCH", _INVALID, "idempotency_mismatch", "rejected"
    ),
    errors.ReplyNotStored: ErrorSpec(409, "REPLY_NOT_KEPT", _INVALID, "reply_not_kept", "rejected"),
    errors.InvalidRequest: ErrorSpec(400, "INVALID_REQUEST", _INVALID, None, "rejected"),
    errors.BodyIncomplete: ErrorSpec(
        400, "BODY_INCOMPLETE", _INVALID, "body_incomplete", "client_aborted"
    ),
    errors.BodyTooLarge: ErrorSpec(413, "BODY_TOO_LARGE", _INVALID, "body_too_large", "rejected"),
    errors.BodyTimeout: ErrorSpec(408, "BODY_TIMEOUT", _INVALID, "body_timeout", "rejected", True),
    errors.UnsupportedMediaType: ErrorSpec(
        415, "UNSUPPORTED_MEDIA_TYPE", _INVALID, "unsupported_media_type", "rejected"
    ),
    errors.ModelNotFound: ErrorSpec(
        404, "MODEL_NOT_FOUND", _INVALID, "model_not_found", "rejected"
    ),
    errors.NotFound: ErrorSpec(404, "NOT_FOUND", _INVALID, "unknown_url", "rejected"),
    errors.RequestNotFound: ErrorSpec(
        404, "REQUEST_NOT_FOUND", _INVALID, "request_not_found", "rejected"
    ),
    errors.MethodNotAllowed: ErrorSpec(
        405, "METHOD_NOT_ALLOWED", _INVALID, "method_not_allowed", "rejected"
    ),
    errors.BackendUnavailable: ErrorSpec(
        503, "BACKEND_UNAVAILABLE", "server_error", "backend_unavailable", "upstream_error", True
    ),
    errors.BackendBusy: ErrorSpec(
        429, "BACKEND_BUSY", "rate_limit_error", "backend_busy", "upstream_error", True
    ),
    errors.BackendTimeout: ErrorSpec(
        504, "BACKEND_TIMEOUT", "server_error", "backend_timeout", "timeout"
    ),
    errors.BackendFailed: ErrorSpec(
        502, "BACKEND_FAILED", "server_error", "backend_failed", "upstream_error"
    ),
    errors.BackendRejected: ErrorSpec(400, "BACKEND_REJECTED", _INVALID, None, "upstream_error"),
    errors.ClientGone: ErrorSpec(499, "CLIENT_GONE", _INVALID, "client_gone", "client_aborted"),
    errors.NotConfigured: ErrorSpec(
        503, "NOT_CONFIGURED", "server_error", "not_configured", "rejected", True
    ),
    errors.RecordStoreUnavailable: ErrorSpec(
        503,
        "RECORD_STORE_UNAVAILABLE",
        "server_error",
        "record_store_unavailable",
        "rejected",
        True,
    ),
    errors.QueriesBusy: ErrorSpec(
        429, "QUERIES_BUSY", "rate_limit_error", "queries_busy", "rejected", True
    ),
    errors.QueryTimeout: ErrorSpec(
        504, "QUERY_TIMEOUT", "server_error", "query_timeout", "rejected"
    ),
    errors.RecordsUnavailable: ErrorSpec(
        503, "RECORDS_UNAVAILABLE", "server_error", "records_unavailable", "rejected", True
    ),
}

LIMIT_ERRORS: Final = (
    errors.RateLimited,
    errors.TokensAboveLimit,
    errors.BudgetExceeded,
    errors.QuotaExceeded,
)
"""A limit refuses: the body has its name and its figures."""

INTERNAL: Final = ErrorSpec(500, "INTERNAL", "server_error", "internal_error", "rejected")


def error_spec_of(error: Exception) -> ErrorSpec:
    """The face of an error; whatever is not ours is an internal error."""
    for kind in type(error).__mro__:
        face = ERROR_SPECS.get(kind)
        if face is not None:
            return face
    return INTERNAL


def status_of(error: Exception) -> int:
    """The HTTP status; a backend's own refusal keeps the backend's status."""
    if isinstance(error, errors.BackendRejected):
        return error.status
    return error_spec_of(error).status


def retry_after_s(error: Exception) -> int | None:
    """Whole seconds to wait before trying again, where that is known."""
    if isinstance(error, LIMIT_ERRORS):
        return error.denial.retry_after_s
    timed = (
        errors.BackendUnavailable,
        errors.BackendBusy,
        errors.RecordsUnavailable,
        errors.LimitsUnavailable,
        errors.BudgetUnavailable,
        errors.InProgress,
        errors.QueriesBusy,
        errors.SignaturesExceeded,
        errors.SignatureNotProven,
    )
    if isinstance(error, timed):
        return error.retry_after_s
    waits = (errors.NotConfigured, errors.RecordStoreUnavailable)
    return 1 if isinstance(error, waits) else None


def limit_facts(denial: errors.Denial) -> dict[str, Any]:
    """The facts about the limit that refused a call, the same in every dialect."""
    unit = denial.unit
    details: dict[str, Any] = {
        "name": denial.name,
        "scope": denial.scope,
        "unit": unit,
        "this_request_estimate": shown_amount(denial.this_request, unit),
    }
    if denial.period is not None:
        details |= {
            "period": denial.period,
            "settled": shown_amount(denial.settled or 0, unit),
            "reserved": shown_amount(denial.reserved or 0, unit),
            "resets_at": shown_timestamp(denial.resets_at_s),
        }
    facts: dict[str, Any] = {
        "limit_type": denial.limit_type,
        "current_usage": shown_amount(denial.usage, unit),
        "limit": shown_amount(denial.limit, unit),
    }
    if denial.retry_after_s is not None:
        facts["retry_after"] = denial.retry_after_s
    return {**facts, "details": details}


def shown_amount(amount: int, unit: str) -> int | float:
    """Nano-USD as USD, all else as it is."""
    return amount / NANOS_PER_USD if unit == "usd" else amount


def shown_timestamp(at_s: int | None) -> str | None:
    """RFC 3339 in UTC."""
    return None if at_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def message_of(error: Exception) -> str:
    """The message for the client; it says nothing about an error that is not ours."""
    if isinstance(error, errors.RouterError):
        return error.message
    return "the router failed to serve this request"


def field_of(error: Exception) -> str | None:
    """The dotted path of the field at fault, where there is one."""
    if isinstance(error, (errors.InvalidRequest, errors.BodyTooLarge)):
        return error.field
    if isinstance(error, (errors.ModelNotFound, errors.ModelForbidden, errors.PriceUnknown)):
        return "model"
    return None
