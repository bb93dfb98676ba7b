"""The shape of the document, part by part; ``references`` has the rules between parts.

A schema loads its part as the frozen type of ``document`` and dumps it again. Unknown fields are
refused everywhere.
"""

from __future__ import annotations

import re
from typing import Any, Final

from marshmallow import Schema, ValidationError, post_dump, post_load, validate, validates_schema

from router.config.document import (
    DEFAULT_SCOPES,
    SCOPES,
    VERSION,
    Backend,
    KeyRecord,
    LoadedDocument,
    Organization,
    Policy,
    Share,
    Timeouts,
)
from router.config.schema.fields import (
    BaseUrl,
    Choice,
    Credential,
    Flag,
    HeaderName,
    Identifier,
    Integer,
    ListOf,
    MapOf,
    Nested,
    Seconds,
    Text,
    Timestamp,
)
from router.config.schema.limits_schema import BudgetSchema, RateLimitSchema
from router.config.schema.mapping import Part
from router.config.schema.models_schema import ModelSchema
from router.config.schema.prices_schema import PricesSchema
from router.providers.provider_table import PROVIDERS

DEFAULT_WEIGHT: Final = 100
MAX_WEIGHT: Final = 1_000_000
MAX_BUDGETS: Final = 16
"""Each one is a counter in the same Redis script."""

MAX_FORWARD_HEADERS: Final = 32
_MAX_ENTRIES: Final = 100_000
_SECRETS: Final = ("hash", "demo_secret")
_HASH: Final = re.compile("[0-9a-f]{64}")
_DEMO_SECRET: Final = re.compile("[A-Za-z0-9_-]{8,64}")
_UPSTREAM_MODEL: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def _id(about: str) -> Identifier:
    return Identifier(required=True, about=about)


def _name() -> Text:
    return Text(load_default="", about="For people; shown, never compared.")


def _rate_limit() -> Nested:
    about = "How much it may ask for; null means the router's defaults."
    return Nested(RateLimitSchema, load_default=None, allow_none=True, about=about)


def _budgets() -> ListOf:
    about = "What it may use in a period; a call needs room in all of them."
    return ListOf(Nested(BudgetSchema), load_default=list, most=MAX_BUDGETS, about=about)


class OrganizationSchema(Part):
    """→ :class:`~router.config.document.Organization`."""

    makes = Organization

    id = _id("Unique among the organizations.")
    name = _name()
    active = Flag(load_default=True, about="false refuses every key it has.")
    rate_limit = _rate_limit()
    model_rate_limits = MapOf(
        Nested(RateLimitSchema), about="Model id → a further limit for its calls of this model."
    )
    budgets = _budgets()


class KeySchema(Part):
    """→ :class:`~router.config.document.KeyRecord`, without a hash where there is a demo secret."""

    makes = KeyRecord

    id = _id("Unique among the keys; stands in records.")
    organization_id = Identifier(
        required=True, data_key="organization", about="The organization that pays."
    )
    hash = Text(
        shape=_HASH,
        message="must be 64 lowercase hex digits",
        lengths=(1, 128),
        about="HMAC-SHA256 of the key under the server's pepper, from 'routerctl keys create'.",
        metadata={"pattern": f"^{_HASH.pattern}$"},
    )
    demo_secret = Text(
        shape=_DEMO_SECRET,
        message="must be 8 to 64 characters of A-Z a-z 0-9 _ -",
        about="Instead of 'hash', and in demo mode only: the key itself, for all to read.",
        metadata={"pattern": f"^{_DEMO_SECRET.pattern}$"},
    )
    name = _name()
    status = Choice(("active", "revoked"), load_default="active", about="A revoked key is refused.")
    expires_at_s = Timestamp(
        load_default=None,
        allow_none=True,
        data_key="expires_at",
        about="ISO 8601 with a zone; null means that the key does not expire.",
    )
    scopes = ListOf(
        Choice(SCOPES),
        load_default=lambda: list(DEFAULT_SCOPES),
        unique=True,
        about="What the key may do.",
    )
    models = ListOf(
        Identifier(),
        load_default=None,
        allow_none=True,
        unique=True,
        about="Ids of the models the key may use; null means all.",
    )
    require_signature = Flag(
        load_default=False, about="true refuses every request that is not signed."
    )
    demo = Flag(
        load_default=False, about="The key is public knowledge; it works in demo mode only."
    )
    rate_limit = _rate_limit()
    budgets = _budgets()

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_one_secret(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        """Looks at ``original``, because a secret of the wrong shape is missing from ``data``."""
        given = isinstance(original, dict) and [n for n in _SECRETS if n in original]
        if given == list(_SECRETS):
            raise ValidationError("must not stand beside 'demo_secret'", "hash")
        if given == []:
            raise ValidationError("is missing", "hash")

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> KeyRecord:
        """A key with a demo secret is a demo key, whatever else it says."""
        is_demo = data.pop("demo_secret", None) is not None
        models = data["models"]
        return KeyRecord(
            **{
                "hash": "",
                **data,
                "demo": data["demo"] or is_demo,
                "scopes": frozenset(data["scopes"]),
                "models": None if models is None else frozenset(models),
                "budgets": tuple(data["budgets"]),
            }
        )

    @post_dump
    def mark_demo_keys(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Only a demo key says which it is, so that it never works in earnest."""
        if not data["demo"]:
            del data["demo"]
        return data


class TimeoutsSchema(Part):
    """→ :class:`~router.config.document.Timeouts`."""

    makes = Timeouts

    connect_s = Seconds(load_default=Timeouts().connect_s, about="To connect.")
    first_byte_s = Seconds(
        load_default=Timeouts().first_byte_s, about="From request sent to first byte."
    )
    idle_s = Seconds(load_default=Timeouts().idle_s, about="Between two chunks.")
    total_s = Seconds(load_default=Timeouts().total_s, about="For all of a call.")


class BackendSchema(Part):
    """→ :class:`~router.config.document.Backend`."""

    makes = Backend

    id = _id("Unique among the backends.")
    kind = Choice(tuple(PROVIDERS), required=True, about="The API that it speaks.")
    base_url = BaseUrl(required=True, about="http or https, ending before /chat: https://host/v1")
    credential = Credential(
        load_default=None,
        allow_none=True,
        about="Where its API key is: env:NAME or file:/path; null sends none.",
    )
    models = MapOf(
        Text(shape=_UPSTREAM_MODEL, lengths=(1, 256)),
        about="Model id → the backend's own name for it, where they differ.",
    )
    timeouts = Nested(TimeoutsSchema, load_default=Timeouts, about="How long it may take.")
    prices = MapOf(
        Nested(PricesSchema),
        about="Model id → what it costs here, where that differs from the model's prices.",
    )
    output_limit_field = Choice(
        ("max_tokens", "max_completion_tokens"),
        load_default=None,
        allow_none=True,
        about="The field that bounds a chat's answer; null is max_completion_tokens at OpenAI and"
        " Azure, max_tokens elsewhere.",
    )
    forward_headers = ListOf(
        HeaderName(),
        load_default=list,
        unique=True,
        most=MAX_FORWARD_HEADERS,
        about="Clients' headers that it gets besides accept, accept-language, user-agent,"
        " idempotency-key, tracestate and allowed features in beta.",
    )

    @post_dump
    def leave_out(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What says nothing is not dumped: an older router does not know it."""
        for name in ("prices", "output_limit_field", "forward_headers"):
            if not data[name]:
                del data[name]
        return data


class ShareSchema(Part):
    """→ :class:`~router.config.document.Share`."""

    makes = Share

    backend_id = Identifier(required=True, data_key="id", about="A backend's id.")
    weight = Integer(
        0,
        MAX_WEIGHT,
        load_default=DEFAULT_WEIGHT,
        about="Relative to the other weights of the policy; 0 takes no traffic.",
    )


class PolicySchema(Part):
    """→ :class:`~router.config.document.Policy`."""

    makes = Policy

    organization = Identifier(
        wildcard=True, required=True, about="An organization's id, or * for all."
    )
    model = Identifier(wildcard=True, required=True, about="A model's id, or * for all.")
    shares = ListOf(
        Nested(ShareSchema),
        required=True,
        data_key="backends",
        validate=validate.Length(min=1, max=1000, error="must name 1 to 1000 backends"),
        about="The backends that share the traffic.",
    )


def _parts(schema: type[Schema], about: str) -> ListOf:
    return ListOf(Nested(schema), load_default=list, most=_MAX_ENTRIES, about=about)


class DocumentSchema(Part):
    """→ :class:`~router.config.document.LoadedDocument`."""

    version = Integer(VERSION, VERSION, required=True, about="The version of this format.")
    organizations = _parts(OrganizationSchema, "Who pays.")
    keys = _parts(KeySchema, "API keys. Keys that are not listed stay as they are.")
    models = _parts(ModelSchema, "What clients may ask for.")
    backends = _parts(BackendSchema, "Servers that run models.")
    policies = _parts(PolicySchema, "Which backends serve whom; the most specific one counts.")

    @post_load
    def make(self, data: dict[str, Any], **_: Any) -> LoadedDocument:
        """The version is the same in all."""
        del data["version"]
        return LoadedDocument(**{name: tuple(parts) for name, parts in data.items()})


DOCUMENT_SCHEMA: Final = DocumentSchema()
