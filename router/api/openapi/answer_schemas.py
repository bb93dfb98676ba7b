"""What the public API answers, as marshmallow schemas: the other half of ``contracts/``.

Replies of the OpenAI dialect are a backend's own bytes, so their schemas name what clients rely on
and demand little of it; what the router writes itself is described to the last field.
"""

from __future__ import annotations

from typing import Any, Final

from marshmallow import fields, validate

from router.api.error_specs import ERROR_SPECS, INTERNAL, LIMIT_ERRORS
from router.api.openapi.request_schemas import UUID_PATTERN
from router.api.openapi.schema_fields import Closed, Flag, Open, Shaped, about

LIMIT_STATES: Final = ("WITHIN_LIMIT",)
LIMIT_CODES: Final = tuple(sorted({ERROR_SPECS[kind].code for kind in LIMIT_ERRORS}))
CODES: Final = tuple(
    sorted({face.code for face in (*ERROR_SPECS.values(), INTERNAL)} - set(LIMIT_CODES))
)


def _count(text: str, **more: Any) -> fields.Integer:
    return fields.Integer(
        required=True, strict=True, validate=validate.Range(min=0), metadata=about(text), **more
    )


def _amount(text: str, *, required: bool = True, **more: Any) -> fields.Float:
    """USD, or a count."""
    return fields.Float(required=required, metadata=about(text, minimum=0), **more)


def _moment(text: str, *, required: bool = True, nullable: bool = True) -> Shaped:
    return Shaped(
        "^[0-9]{4,}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        required=required,
        allow_none=nullable,
        metadata=about(text),
    )


def _text(text: str, **more: Any) -> fields.String:
    return fields.String(required=True, metadata=about(text), **more)


def _one_of(text: str, *choices: str) -> fields.String:
    return _text(text, validate=validate.OneOf(choices))


def _trace_id() -> Shaped:
    return Shaped(
        "^[0-9a-f]{32}$",
        required=True,
        metadata=about("W3C trace id: the caller's, when a `traceparent` was sent."),
    )


# --- native ---------------------------------------------------------------------------------


class InferenceUsage(Closed):
    tokens_input = _count("Input tokens, as the backend reported them or estimated.")
    tokens_output = _count("Output tokens, as the backend reported them or estimated.")
    latency_ms = _count("From the request's arrival to the end of the answer.")
    cost_usd = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("What the call costs; null when the model has no price.", minimum=0),
    )
    limit_state = _one_of("How the call stands to its limits; values may be added.", *LIMIT_STATES)


class InferenceEnd(Closed):
    """The last event of a native stream; with ``output`` the reply to a buffered call."""

    request_id = Shaped(UUID_PATTERN, required=True, metadata=about("As in the request."))
    usage = fields.Nested(InferenceUsage, required=True)
    trace_id = _trace_id()
    span_id = Shaped(
        "^[0-9a-f]{16}$", required=True, metadata=about("W3C id of the router's span.")
    )


class InferenceReply(InferenceEnd):
    output = _text("What the model said.")


class InferenceDelta(Closed):
    """One event of a native stream: some more of the output."""

    output = _text("What comes next.", validate=validate.Length(min=1))


class ErrorDetails(Closed):
    field = fields.String(metadata=about("Dotted path of the field at fault."))
    backend_status = fields.Integer(metadata=about("Status with which the backend refused."))


class Error(Closed):
    """An error in the native dialect."""

    error = _text("For people.")
    code = _one_of("For programs.", *CODES)
    trace_id = _trace_id()
    details = fields.Nested(ErrorDetails, metadata=about("More facts, where there are any."))


class LimitDetails(Closed):
    name = _text("Which limit.")
    scope = _one_of("Whose it is.", "org", "key", "model")
    unit = _one_of("What it counts.", "usd", "tokens", "requests", "concurrent")
    this_request_estimate = _amount("What this call would have added.")
    period = fields.String(
        validate=validate.OneOf(("daily", "monthly", "total")),
        metadata=about("Of a budget or quota, as what follows."),
    )
    settled = _amount("What calls that have ended were charged.", required=False)
    reserved = _amount("What calls that are running hold.", required=False)
    resets_at = _moment("When the period ends; null for a total.", required=False)


class LimitErrorResponse(Closed):
    """A limit refused the call. USD are decimal, all else are counts."""

    error = _text("For people.")
    code = _one_of("For programs.", *LIMIT_CODES)
    limit_type = _one_of("What kind of limit.", "budget", "quota", "rate_limit")
    current_usage = _amount("What counts against the limit now.")
    limit = _amount("The limit; of a rate limit, how many at once.")
    retry_after = fields.Integer(
        strict=True,
        validate=validate.Range(min=1),
        metadata=about("Seconds until the same call, alone, will pass. Absent when no wait helps."),
    )
    trace_id = _trace_id()
    details = fields.Nested(
        LimitDetails, required=True, metadata=about("How things stand at that limit.")
    )


# --- limits ---------------------------------------------------------------------------------


class RateLimitStanding(Closed):
    name = _text("As in the header `RateLimit`.")
    scope = _one_of("Whose it is.", "org", "key", "model")
    model = fields.String(
        required=True, allow_none=True, metadata=about("Which model, where it is for one.")
    )
    unit = _one_of("What it counts.", "tokens", "requests", "concurrent")
    limit = _count("How many at once; 0 blocks.")
    per_second = fields.Float(
        required=True, allow_none=True, metadata=about("How many come back each second.", minimum=0)
    )
    remaining = _count("How many are left now.")
    reset_after_s = _count("Seconds until all of the limit is there again.")
    enforced = Flag(required=True, metadata=about("False: it only tells what it would refuse."))


class BudgetStanding(Closed):
    name = _text("Name of the budget.")
    scope = _one_of("Whose it is.", "org", "key")
    unit = _one_of("What it counts.", "usd", "tokens", "requests")
    period = _one_of("For how long.", "daily", "monthly", "total")
    timezone = _text("Whose midnights begin the periods.")
    limit = _amount("The limit; null counts without limiting.", allow_none=True)
    current_usage = _amount("What counts against the limit: settled and reserved.")
    settled = _amount("What calls that have ended were charged.")
    reserved = _amount("What calls that are running hold.")
    remaining = _amount("What is left; null without a limit.", allow_none=True)
    resets_at = _moment("When the period ends; null for a total.")
    enforced = Flag(required=True, metadata=about("False: it only tells what it would refuse."))


class Limits(Closed):
    """Rate limits and budgets of a caller, as the enforcing counters have them."""

    organization_id = _text("The caller's organization.")
    api_key_id = _text("The caller's key.")
    rate_limits = fields.List(fields.Nested(RateLimitStanding), required=True)
    budgets = fields.List(fields.Nested(BudgetStanding), required=True)
    is_shared = Flag(
        required=True,
        metadata=about("False while Redis is away and each worker enforces its share alone."),
    )


# --- OpenAI ---------------------------------------------------------------------------------


class OpenAIErrorFacts(Open):
    message = _text("For people.")
    type = fields.Raw(required=True, metadata=about("Class of the error."))
    param = fields.Raw(required=True, metadata=about("Path of the field at fault, or null."))
    code = fields.Raw(required=True, metadata=about("For programs, or null."))


class OpenAIError(Open):
    """An error as the OpenAI SDKs expect it; a backend's own refusal may hold more."""

    error = fields.Nested(OpenAIErrorFacts, required=True)


class ReportedUsage(Open):
    prompt_tokens = fields.Integer(strict=True)
    completion_tokens = fields.Integer(strict=True)
    total_tokens = fields.Integer(strict=True)


class _Completed(Open):
    id = fields.String()
    object = fields.String()
    created = fields.Integer()
    model = fields.String(metadata=about("As the backend names it."))
    choices = fields.List(fields.Dict())
    usage = fields.Nested(ReportedUsage, allow_none=True)


class ChatCompletion(_Completed):
    """A chat completion, byte for byte as the backend sent it."""


class ChatCompletionChunk(_Completed):
    """One event of a streamed chat completion."""


class Completion(_Completed):
    """A text completion, byte for byte as the backend sent it; also one event of a stream."""


class Embeddings(Open):
    """Vectors, byte for byte as the backend sent them."""

    object = fields.String()
    data = fields.List(fields.Dict())
    model = fields.String(metadata=about("As the backend names it."))
    usage = fields.Nested(ReportedUsage, allow_none=True)


class ModelCard(Closed):
    id = _text("The id, or the alias that was asked for.")
    object = _one_of("Always model.", "model")
    created = fields.Integer(required=True, metadata=about("Always 0."))
    owned_by = _text("Always api-router.")


class ModelList(Closed):
    object = _one_of("Always list.", "list")
    data = fields.List(fields.Nested(ModelCard), required=True)


# --- status ---------------------------------------------------------------------------------


class Health(Closed):
    status = _one_of("Always ok.", "ok")
    version = _text("Version of the router.")
    build = _text("Its build, from ROUTER_BUILD.")


class Component(Closed):
    state = _one_of(
        "degraded: calls are served, perhaps not all of them; unavailable: every call is refused.",
        "ok",
        "degraded",
        "unavailable",
    )
    since = _moment("When this state began, as the worker that answers saw it.", nullable=False)
    detail = fields.String(
        metadata=about("What is wrong and what happens meanwhile. Absent while it is ok.")
    )


class ConfigurationComponent(Component):
    revision = fields.Integer(metadata=about("Revision of the configuration in use."))


class RecordsComponent(Component):
    bytes_used = _count("What waits to be shipped, of all workers together.")
    bytes_limit = _count("Beyond it calls are refused (ROUTER_SPOOL_MAX_BYTES).")


def _nested(schema: type[Closed], text: str) -> fields.Nested:
    return fields.Nested(schema, required=True, metadata=about(text))


class Components(Closed):
    configuration = _nested(ConfigurationComponent, "The document and the keys.")
    backends = _nested(Component, "Backends that policies name, with their credentials.")
    limits = _nested(Component, "Redis and the budget service.")
    records = _nested(RecordsComponent, "The spool, where records of calls are written.")
    agent = _nested(Component, "What ships records; calls are served without it.")
    store = _nested(Component, "Where records are queried; calls are served without it.")


class ComponentCheck(Closed):
    status = _one_of("degraded serves, failed does not.", "ok", "degraded", "failed")
    detail = fields.String(metadata=about("What is wrong."))


class StateCheck(ComponentCheck):
    revision = fields.Integer(metadata=about("Revision of the configuration in use."))


class SpoolCheck(ComponentCheck):
    bytes_used = _count("As in `components.records`.")
    bytes_limit = _count("As in `components.records`.")


class ComponentChecks(Closed):
    state = _nested(StateCheck, "As `components.configuration`.")
    spool = _nested(SpoolCheck, "As `components.records`.")
    agent = _nested(ComponentCheck, "As `components.agent`.")
    record_store = _nested(ComponentCheck, "As `components.store`.")


class Readiness(Closed):
    status = _one_of("not_ready comes with 503.", "ready", "degraded", "not_ready")
    components = _nested(Components, "Each thing that a call needs.")
    checks = fields.Nested(
        ComponentChecks,
        required=True,
        metadata=about("Superseded by `components`; goes with the next release.", deprecated=True),
    )
    version = _text("Version of the router.")
    build = _text("Its build, from ROUTER_BUILD.")
