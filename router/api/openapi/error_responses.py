"""The errors of the contract: which kinds each operation can answer with, in both dialects.

Statuses, codes and types come from the table in :mod:`router.api.error_specs`; a kind of error that
stands in none of the groups below fails a test, so a new one cannot be left out of the contract.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from router import errors
from router.api.error_specs import ERROR_SPECS, INTERNAL, LIMIT_ERRORS, ErrorSpec
from router.call import Dialect
from router.errors import RouterError

Kind = type[RouterError] | None
"""A kind of error; ``None`` is a defect of the router."""

CALLER: Final[tuple[Kind, ...]] = (
    errors.Unauthenticated,
    errors.SignatureInvalid,
    errors.SignaturesExceeded,
    errors.SignatureNotProven,
    errors.ScopeMissing,
    errors.RateLimited,
    errors.LimitsUnavailable,
    errors.NotConfigured,
    None,
)
MODEL: Final[tuple[Kind, ...]] = (errors.ModelNotFound, errors.ModelForbidden)
BODY: Final[tuple[Kind, ...]] = (
    errors.InvalidRequest,
    errors.BodyIncomplete,
    errors.BodyTooLarge,
    errors.BodyTimeout,
    errors.UnsupportedMediaType,
)
BACKENDS: Final[tuple[Kind, ...]] = (
    errors.BackendRejected,
    errors.BackendBusy,
    errors.BackendFailed,
    errors.BackendUnavailable,
    errors.BackendTimeout,
)
LIMITS: Final[tuple[Kind, ...]] = (
    errors.TokensAboveLimit,
    errors.BudgetExceeded,
    errors.QuotaExceeded,
    errors.PriceUnknown,
    errors.BudgetUnavailable,
)
IDEMPOTENCY: Final[tuple[Kind, ...]] = (
    errors.InProgress,
    errors.IdempotencyMismatch,
    errors.ReplyNotStored,
)
RECORDING: Final[tuple[Kind, ...]] = (errors.RecordsUnavailable,)
"""A call that could not be recorded is not made."""

QUERIES: Final[tuple[Kind, ...]] = (
    errors.InvalidRequest,
    errors.QueriesBusy,
    errors.RecordStoreUnavailable,
    errors.QueryTimeout,
)
NO_OPERATION: Final[tuple[Kind, ...]] = (
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.InvalidRequest,
)
"""What a request meets that fits no operation: unknown or ambiguous path, other method."""

NOBODY_LISTENS: Final[tuple[Kind, ...]] = (errors.ClientGone,)
"""Stands in log and metrics; the client that would receive it has left."""

GROUPS: Final[Mapping[str, tuple[Dialect, tuple[Kind, ...]]]] = {
    "NativeCall": (
        "native",
        (*CALLER, *MODEL, *BODY, *LIMITS, *IDEMPOTENCY, *RECORDING, *BACKENDS),
    ),
    "OpenAICall": (
        "openai",
        (*CALLER, *MODEL, *BODY, *LIMITS, *IDEMPOTENCY, *RECORDING, *BACKENDS),
    ),
    "Model": ("openai", (*CALLER, *MODEL, errors.InvalidRequest)),
    "ModelList": ("openai", CALLER),
    "Limits": (
        "native",
        (
            errors.Unauthenticated,
            errors.SignatureInvalid,
            errors.SignaturesExceeded,
            errors.SignatureNotProven,
            errors.RateLimited,
            errors.LimitsUnavailable,
            errors.NotConfigured,
            errors.InvalidRequest,
            errors.BudgetUnavailable,
            None,
        ),
    ),
    "RequestStory": ("native", (*CALLER, errors.RequestNotFound, *QUERIES)),
    "Records": ("native", (*CALLER, *QUERIES)),
    "Status": ("native", (None,)),
    # On the public listener there is no such path.
    "Metrics": ("native", (errors.NotFound, None)),
    "NativePath": ("native", NO_OPERATION),
    "OpenAIPath": ("openai", NO_OPERATION),
}
"""Operations that fail alike: their dialect and the kinds of error they can answer with."""

_REFUSED_BY_BACKEND: Final = "4XX"
_SHARED_WITH_BACKEND: Final = ("402", "404", "408", "409", "413", "415", "422")
_LIMIT_FACTS: Final = ("limit_type", "current_usage", "limit", "retry_after", "details")


def error_components() -> dict[str, Any]:
    """Component name → response object, for all groups."""
    return {
        f"{group}{status}": _response(dialect, found)
        for group, (dialect, kinds) in GROUPS.items()
        for status, found in _by_status(kinds).items()
    }


def error_responses(group: str) -> dict[str, Any]:
    """Status → reference to the response object, in the order of the statuses."""
    statuses = _by_status(GROUPS[group][1])
    return {status: {"$ref": f"#/components/responses/{group}{status}"} for status in statuses}


def _by_status(kinds: Iterable[Kind]) -> dict[str, list[Kind]]:
    by_status: dict[str, list[Kind]] = {}
    for kind in kinds:
        by_status.setdefault(str(_spec(kind).status), []).append(kind)
    if any(errors.BackendRejected in found for found in by_status.values()):
        # The backend's own status is passed on, so it may share one with an error of the router.
        for status in _SHARED_WITH_BACKEND:
            by_status[status].append(errors.BackendRejected)
        by_status[_REFUSED_BY_BACKEND] = [errors.BackendRejected]
    return dict(sorted(by_status.items()))


def meaning_of(kind: Kind) -> str:
    """What the error says, in one sentence: the first of its class."""
    if kind is None:
        return "The router failed; the log knows why."
    words = " ".join((kind.__doc__ or "").split()).replace("``", "`")
    return re.split(r"(?<=\.) ", words)[0]


def _spec(kind: Kind) -> ErrorSpec:
    return INTERNAL if kind is None else ERROR_SPECS[kind]


def _response(dialect: Dialect, kinds: list[Kind]) -> dict[str, Any]:
    told = [f"`{_spec(kind).code}`: {meaning_of(kind)}" for kind in kinds]
    refusing: list[Kind] = [kind for kind in kinds if kind in LIMIT_ERRORS]
    others = [kind for kind in kinds if kind not in LIMIT_ERRORS]
    schemas = []
    if dialect == "openai":
        schemas.append(_schema("OpenAIError", _openai(kinds)))
    elif others:
        schemas.append(_schema("Error", _native(others)))
    if dialect == "native" and refusing:
        schemas.append(_schema("LimitErrorResponse", _native(refusing)))
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {
        "description": " ".join(told),
        "headers": _headers(kinds),
        "content": {"application/json": {"schema": schema}},
    }


def _schema(name: str, narrowed: Mapping[str, Any]) -> dict[str, Any]:
    whole = {"$ref": f"#/components/schemas/{name}"}
    return {"allOf": [whole, narrowed]} if narrowed else whole


def _native(kinds: list[Kind]) -> Mapping[str, Any]:
    codes = sorted({_spec(kind).code for kind in kinds})
    return {"properties": {"code": {"enum": codes}}}


def _openai(kinds: list[Kind]) -> Mapping[str, Any]:
    if errors.BackendRejected in kinds:
        return {}  # the backend's own words
    types = sorted({_spec(kind).openai_type for kind in kinds})
    codes = sorted({_spec(kind).openai_code for kind in kinds}, key=str)
    facts = {
        "message": {"type": "string"},
        "type": {"enum": types},
        "code": {"enum": codes},
        "param": {"type": ["string", "null"]},
    }
    if any(kind in LIMIT_ERRORS for kind in kinds):
        # Of one with other errors, they are not told: the facts of a limit say by themselves.
        limits = "#/components/schemas/LimitErrorResponse/properties"
        for name in _LIMIT_FACTS:
            facts[name] = {"$ref": f"{limits}/{name}"}
    return {"properties": {"error": {"properties": facts, "additionalProperties": False}}}


RATE_HEADERS: Final = ("RateLimit-Policy", "RateLimit")
_SOMETIMES_TIMED: Final[tuple[Kind, ...]] = (
    errors.RateLimited,
    errors.BudgetExceeded,
    errors.QuotaExceeded,
    errors.InProgress,
)
"""A wait helps as a rule: not where a limit blocks, or the call is larger than it."""

_KNOWN_WAIT: Final = {
    "description": "Seconds to wait before trying again, where a wait helps.",
    "required": False,
    "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
}

_ON_ERRORS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "Retry-After": (
        errors.BackendBusy,
        errors.BackendUnavailable,
        errors.NotConfigured,
        errors.RecordsUnavailable,
        errors.RecordStoreUnavailable,
        errors.LimitsUnavailable,
        errors.BudgetUnavailable,
        errors.QueriesBusy,
        errors.SignaturesExceeded,
        errors.SignatureNotProven,
    ),
    "WWW-Authenticate": (errors.Unauthenticated, errors.SignatureInvalid),
    "Allow": (errors.MethodNotAllowed,),
}


def _headers(kinds: list[Kind]) -> dict[str, Any]:
    """``X-Request-ID`` always; the others where all errors of the status bring them, or some."""
    names = ["X-Request-ID"]
    names += [name for name, bringing in _ON_ERRORS.items() if set(kinds) <= set(bringing)]
    headers: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    if "Retry-After" not in headers and set(kinds) & set(_SOMETIMES_TIMED):
        headers["Retry-After"] = _KNOWN_WAIT
    if errors.RateLimited in kinds or errors.BudgetExceeded in kinds:
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in RATE_HEADERS}
    return headers
