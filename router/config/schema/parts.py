"""The shape of the document, part by part; what holds between parts is in ``references``.

A schema turns its part into the frozen type of ``document``. Unknown fields are refused everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from marshmallow import Schema, ValidationError, post_load, validate, validates_schema

from router.config.document import (
    DEFAULT_SCOPES,
    SCOPES,
    Backend,
    Budget,
    KeyStatus,
    Model,
    Organization,
    Policy,
    Prices,
    RateLimit,
    Share,
    Timeouts,
)
from router.config.schema.closed import Mapping, about, unique
from router.config.schema.fields import (
    BaseUrl,
    Choice,
    Credential,
    Flag,
    Identifier,
    Integer,
    ListOf,
    Names,
    Nested,
    Price,
    Seconds,
    Text,
    Timestamp,
)
from router.config.schema.limits_schema import BudgetSchema, RateLimitSchema
from router.providers.table import PROVIDERS

VERSION: Final = 1
DEFAULT_WEIGHT: Final = 100
MAX_WEIGHT: Final = 1_000_000
MAX_OUTPUT_TOKENS: Final = 10_000_000
_MAX_ENTRIES: Final = 100_000
MAX_BUDGETS: Final = 16
_SECRETS: Final = ("hash", "demo_secret")
_HASH: Final = re.compile("[0-9a-f]{64}")
_DEMO_SECRET: Final = re.compile("[A-Za-z0-9_-]{8,64}")
_VARIANT: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True)
class KeyEntry:
    """A key as the document has it: known by its hash, or by a published demo secret."""

    id: str
    organization: str
    hash: str | None
    demo_secret: str | None
    name: str
    status: KeyStatus
    expires_at: float | None
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    require_signature: bool
    demo: bool
    rate_limit: RateLimit | None
    budgets: tuple[Budget, ...]


def _parts(schema: type[Schema], text: str) -> ListOf:
    return ListOf(
        Nested(schema),
        load_default=list,
        validate=validate.Length(max=_MAX_ENTRIES, error=f"must have at most {_MAX_ENTRIES}"),
        metadata=about(text, default=[]),
    )


def _rate_limit() -> Nested:
    return Nested(
        RateLimitSchema,
        load_default=None,
        allow_none=True,
        metadata=about("How much it may ask for; null means the router's defaults."),
    )


def _budgets() -> ListOf:
    # Each one is a counter in the same Redis script.
    too_many = validate.Length(max=MAX_BUDGETS, error=f"must have at most {MAX_BUDGETS}")
    return ListOf(
        Nested(BudgetSchema),
        load_default=list,
        validate=too_many,
        metadata=about(
            "What it may use in a period; a call needs room in all of them.", default=[]
        ),
    )


class OrganizationSchema(Mapping):
    """→ :class:`~router.config.document.Organization`."""

    id = Identifier(required=True, metadata=about("Unique among the organizations."))
    name = Text(load_default="", metadata=about("For people; shown, never compared."))
    active = Flag(load_default=True, metadata=about("false refuses every key it has."))
    rate_limit = _rate_limit()
    model_rate_limits = Names(
        keys=Identifier(),
        values=Nested(RateLimitSchema),
        load_default=dict,
        metadata=about("Model id → a further limit for its calls of this model.", default={}),
    )
    budgets = _budgets()

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Organization:
        return Organization(**{**data, "budgets": tuple(data["budgets"])})


class KeySchema(Mapping):
    """→ :class:`KeyEntry`."""

    id = Identifier(required=True, metadata=about("Unique among the keys; stands in records."))
    organization = Identifier(required=True, metadata=about("The organization that pays."))
    hash = Text(
        shape=_HASH,
        message="must be 64 lowercase hex digits",
        lengths=(1, 128),
        metadata=about(
            "HMAC-SHA256 of the key under the server's pepper, from 'routerctl keys create'.",
            pattern="^[0-9a-f]{64}$",
        ),
    )
    demo_secret = Text(
        shape=_DEMO_SECRET,
        message="must be 8 to 64 characters of A-Z a-z 0-9 _ -",
        metadata=about(
            "Instead of 'hash', and in demo mode only: the key itself, for all to read.",
            pattern="^[A-Za-z0-9_-]{8,64}$",
        ),
    )
    name = Text(load_default="", metadata=about("For people; shown, never compared."))
    status = Choice(
        ("active", "revoked"), load_default="active", metadata=about("A revoked key is refused.")
    )
    expires_at = Timestamp(
        load_default=None,
        allow_none=True,
        metadata=about("ISO 8601 with a zone; null means that the key does not expire."),
    )
    scopes = ListOf(
        Choice(SCOPES),
        load_default=lambda: list(DEFAULT_SCOPES),
        validate=unique,
        metadata=about("What the key may do.", default=list(DEFAULT_SCOPES), uniqueItems=True),
    )
    models = ListOf(
        Identifier(),
        load_default=None,
        allow_none=True,
        validate=unique,
        metadata=about("Ids of the models the key may use; null means all.", uniqueItems=True),
    )
    require_signature = Flag(
        load_default=False, metadata=about("true refuses every request that is not signed.")
    )
    demo = Flag(
        load_default=False,
        metadata=about("The key is public knowledge; it works in demo mode only."),
    )
    rate_limit = _rate_limit()
    budgets = _budgets()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_one_secret(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """``original`` is asked, for a secret of the wrong shape is missing from ``data``."""
        given = isinstance(original, dict) and [n for n in _SECRETS if n in original]
        if given == list(_SECRETS):
            raise ValidationError("must not stand beside 'demo_secret'", "hash")
        if given == []:
            raise ValidationError("is missing", "hash")

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> KeyEntry:
        models = data["models"]
        return KeyEntry(
            **{
                **data,
                "hash": data.get("hash"),
                "demo_secret": data.get("demo_secret"),
                "demo": data["demo"] or "demo_secret" in data,
                "scopes": tuple(data["scopes"]),
                "models": None if models is None else tuple(models),
                "budgets": tuple(data["budgets"]),
            }
        )


class PricesSchema(Mapping):
    """→ :class:`~router.config.document.Prices`."""

    input_nanos = Price(
        required=True,
        data_key="input_usd_per_million_tokens",
        metadata=about("USD per million input tokens, a decimal string."),
    )
    output_nanos = Price(
        required=True,
        data_key="output_usd_per_million_tokens",
        metadata=about("USD per million output tokens, a decimal string."),
    )
    cached_input_nanos = Price(
        load_default=None,
        allow_none=True,
        data_key="cached_input_usd_per_million_tokens",
        metadata=about("USD per million cached input tokens; null means the input price."),
    )

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Prices:
        return Prices(**data)


class ModelSchema(Mapping):
    """→ :class:`~router.config.document.Model`."""

    id = Identifier(required=True, metadata=about("The name in records, policies and prices."))
    aliases = ListOf(
        Identifier(),
        load_default=list,
        metadata=about("Further names that clients may use.", default=[]),
    )
    prices = Nested(
        PricesSchema,
        load_default=None,
        allow_none=True,
        metadata=about("null means that the price is not known."),
    )
    max_output_tokens = Integer(
        1,
        MAX_OUTPUT_TOKENS,
        load_default=4096,
        metadata=about("Asked of a backend that insists on a bound when the client gave none."),
    )

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Model:
        return Model(**{**data, "aliases": tuple(data["aliases"])})


class TimeoutsSchema(Mapping):
    """→ :class:`~router.config.document.Timeouts`."""

    connect_s = Seconds(load_default=Timeouts().connect_s, metadata=about("To connect."))
    first_byte_s = Seconds(
        load_default=Timeouts().first_byte_s, metadata=about("From request sent to first byte.")
    )
    idle_s = Seconds(load_default=Timeouts().idle_s, metadata=about("Between two chunks."))
    total_s = Seconds(load_default=Timeouts().total_s, metadata=about("For all of a call."))

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Timeouts:
        return Timeouts(**data)


class BackendSchema(Mapping):
    """→ :class:`~router.config.document.Backend`."""

    id = Identifier(required=True, metadata=about("Unique among the backends."))
    kind = Choice(tuple(PROVIDERS), required=True, metadata=about("The API that it speaks."))
    base_url = BaseUrl(
        required=True, metadata=about("http or https, ending before /chat: https://host/v1")
    )
    credential = Credential(
        load_default=None,
        allow_none=True,
        metadata=about("Where its API key is: env:NAME or file:/path; null sends none."),
    )
    models = Names(
        keys=Identifier(),
        values=Text(shape=_VARIANT, lengths=(1, 256)),
        load_default=dict,
        metadata=about("Model id → the backend's own name for it, where they differ.", default={}),
    )
    timeouts = Nested(
        TimeoutsSchema,
        load_default=Timeouts,
        metadata=about("How long it may take."),
    )

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Backend:
        return Backend(**data)


class ShareSchema(Mapping):
    """→ :class:`~router.config.document.Share`."""

    backend_id = Identifier(required=True, data_key="id", metadata=about("A backend's id."))
    weight = Integer(
        0,
        MAX_WEIGHT,
        load_default=DEFAULT_WEIGHT,
        metadata=about("Relative to the other weights of the policy; 0 takes no traffic."),
    )

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Share:
        return Share(**data)


class PolicySchema(Mapping):
    """→ :class:`~router.config.document.Policy`."""

    organization = Identifier(
        wildcard=True, required=True, metadata=about("An organization's id, or * for all.")
    )
    model = Identifier(wildcard=True, required=True, metadata=about("A model's id, or * for all."))
    shares = ListOf(
        Nested(ShareSchema),
        required=True,
        data_key="backends",
        validate=validate.Length(min=1, max=1000, error="must name 1 to 1000 backends"),
        metadata=about("The backends that share the traffic."),
    )

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> Policy:
        return Policy(data["organization"], data["model"], tuple(data["shares"]))


class DocumentSchema(Mapping):
    """→ a dict of lists of frozen parts, under the names of the sections."""

    version = Integer(
        VERSION, VERSION, required=True, metadata=about("The version of this format.")
    )
    organizations = _parts(OrganizationSchema, "Who pays.")
    keys = _parts(KeySchema, "API keys. Keys that are not listed stay as they are.")
    models = _parts(ModelSchema, "What clients may ask for.")
    backends = _parts(BackendSchema, "Servers that run models.")
    policies = _parts(PolicySchema, "Which backends serve whom; the most specific one counts.")


DOCUMENT_SCHEMA: Final = DocumentSchema()
