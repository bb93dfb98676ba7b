"""The configuration as the workers see it: frozen, indexed, swapped by one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from router.call import NO_CLASSES, UsageClass

KeyStatus = Literal["active", "revoked"]
BudgetUnit = Literal["usd", "tokens", "requests"]
BudgetPeriod = Literal["daily", "monthly", "total"]
ReservationMode = Literal["worst_case", "capped", "floor"]
OutputLimitField = Literal["max_tokens", "max_completion_tokens"]

PPM: Final = 1_000_000

VERSION: Final = 1
"""Of the document's format."""

ANY = "*"
"""Matches every organization or every model in a policy."""

SCOPES = ("inference", "models:read", "usage:read", "audit:read")
"""The closed set of scopes that a key can carry."""

DEFAULT_SCOPES = ("inference", "models:read")
"""What a key may do unless more is said: to call, not to read what others called."""


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices of whole calls with more input than ``above_input_tokens``, where they differ."""

    above_input_tokens: int
    classes: Mapping[UsageClass, int] = field(hash=False)
    """As in :class:`Prices`, and also those of ``input``, ``output`` and ``cache_read``."""


@dataclass(frozen=True, slots=True)
class ServiceTier:
    """What differs for calls that a provider serves at another service tier, such as ``flex``."""

    multiplier_ppm: int = PPM
    """Millionths of the standard price of every class of tokens; units are not multiplied."""
    classes: Mapping[UsageClass, int] = field(default_factory=lambda: NO_CLASSES, hash=False)
    """Prices at this service tier, as in :class:`PriceTier`; those of the others are multiplied."""
    tiers: tuple[PriceTier, ...] = ()


@dataclass(frozen=True, slots=True)
class Prices:
    """Nano-USD (10⁻⁹ USD) per million tokens, so that 2.50 USD per million is 2_500_000_000."""

    input_nanos: int
    output_nanos: int
    cached_input_nanos: int | None = None
    """Price of cached input tokens; ``None`` means that they cost what other input costs."""
    classes: Mapping[UsageClass, int] = field(default_factory=lambda: NO_CLASSES, hash=False)
    """Prices of the other classes. Units are priced per million too."""
    tiers: tuple[PriceTier, ...] = ()
    """By ``above_input_tokens``, smallest first; a call has the prices of all that it exceeds, of
    the larger one where two price the same class."""
    service_tiers: Mapping[str, ServiceTier] = field(default_factory=dict, hash=False)
    as_of: str | None = None
    """The day of the price list, as in ``2026-11-09``."""


DEFAULT_THRESHOLDS = (80, 95)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many calls and tokens are admitted. 0 blocks, ``None`` is unlimited."""

    requests_per_second: float | None
    burst: int = 0
    """How many calls may come at once after a pause; of no effect without a rate."""
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    shadow: bool = False
    """It refuses nothing; records show what it would have refused."""


@dataclass(frozen=True, slots=True)
class BudgetReservation:
    """How much of a budget is reserved for a call before its usage is known."""

    mode: ReservationMode
    cap: int | None = None
    """The most that ``capped`` reserves, nano-USD or tokens; ``None`` is the router's own cap."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be used in a period. ``limit`` is in nano-USD, tokens or calls; 0 blocks whatever is
    not free, ``None`` counts without limiting."""

    name: str
    unit: BudgetUnit
    period: BudgetPeriod
    limit: int | None = None
    timezone: str = "UTC"
    """An IANA name; its midnights begin the periods."""
    thresholds: tuple[int, ...] = DEFAULT_THRESHOLDS
    """Percentages of the limit that are reported when they are reached, once a period."""
    shadow: bool = False
    """It refuses nothing; records show what it would have refused."""
    reservation: BudgetReservation | None = None
    """``None`` is what the router does for all."""


@dataclass(frozen=True, slots=True)
class Organization:
    """A customer: keys belong to it, budgets and limits apply to it."""

    id: str
    name: str = ""
    active: bool = True
    rate_limit: RateLimit | None = None
    """``None`` is the default that the environment sets."""
    model_rate_limits: dict[str, RateLimit] = field(default_factory=dict)
    """Canonical model id → a further limit for the organization's calls of that model."""
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class InputBounds:
    """Tokens of input at most of what has no text by which to bound it.

    The defaults are above what the dearest models count: 48 169 tokens for a picture at
    gpt-4o-mini, a context of 128 000 for a model that hears, one of 1 000 000 for documents.
    """

    image_tokens: int = 50_000
    audio_tokens: int = 150_000
    document_tokens: int = 1_000_000
    """Of a file, a video, or a part of a kind that the router does not know."""
    web_search_tokens: int = 50_000
    """Of what one search of the web finds."""
    overhead_tokens: int = 1_024
    """Of what a provider adds to a prompt by itself: its template, its own words about tools."""


@dataclass(frozen=True, slots=True)
class Model:
    """A name that clients may ask for. ``prices`` is ``None`` when the price is unknown."""

    id: str
    aliases: tuple[str, ...] = ()
    prices: Prices | None = None
    max_output_tokens: int = 4096
    """What is asked of a backend when the client sets no bound: where the API insists on one, and
    where a budget reserves the worst case."""
    max_input_tokens: int | None = None
    """The context of the model: no prompt is charged for more."""
    input_bounds: InputBounds = InputBounds()
    allow: tuple[str, ...] = ()
    """What clients may ask for besides the standard price; see ``pricing.selection``."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a backend may take, in seconds, for each phase of a call and for all of it."""

    connect_s: float = 1.0
    first_byte_s: float = 60.0
    idle_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that can run models; ``base_url`` has no trailing slash, ends before ``/chat``."""

    id: str
    kind: str
    """The provider whose API it speaks: a name in ``router.providers.provider_table``."""
    base_url: str
    credential: str | None = None
    """A reference, never a secret: ``env:NAME`` or ``file:/path``."""
    models: dict[str, str] = field(default_factory=dict)
    """Canonical model id → the backend's own name for it; absent means the same name."""
    timeouts: Timeouts = Timeouts()
    prices: dict[str, Prices] = field(default_factory=dict)
    """Canonical model id → what it costs here, where that differs from the model's prices."""
    output_limit_field: OutputLimitField | None = None
    """The field by which it bounds a chat's answer; ``None`` goes by its host."""
    forward_headers: tuple[str, ...] = ()
    """Clients' headers, in lower case, that it gets besides those that all backends get."""


@dataclass(frozen=True, slots=True)
class Share:
    """A backend's part in a policy; weights are relative, 0 takes no traffic."""

    backend_id: str
    weight: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Which backends serve a model for an organization; either may be ``*``."""

    organization: str
    model: str
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as it is stored: its hash, never the key itself."""

    id: str
    organization_id: str
    hash: str
    """Hex HMAC-SHA256 of the key under the server's pepper."""
    name: str = ""
    status: KeyStatus = "active"
    expires_at_s: float | None = None
    """Seconds since the epoch; ``None`` means that the key does not expire."""
    scopes: frozenset[str] = frozenset(DEFAULT_SCOPES)
    models: frozenset[str] | None = None
    require_signature: bool = False
    demo: bool = False
    """A published key of the demo document; refused unless the router runs in demo mode."""
    rate_limit: RateLimit | None = None
    """``None`` is the default that the environment sets."""
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """One revision of everything but the keys, with the indexes that a call needs."""

    revision: int
    organizations: dict[str, Organization]
    models: dict[str, Model]
    backends: dict[str, Backend]
    policies: tuple[Policy, ...]
    model_names: dict[str, Model]
    """Every name a client may use, aliases included → the model."""
    policy_index: dict[tuple[str, str], Policy]

    def prices_of(self, model_id: str, backend_id: str | None) -> Prices | None:
        """What the model costs at the backend; ``None`` when that is not known."""
        backend = None if backend_id is None else self.backends.get(backend_id)
        own = None if backend is None else backend.prices.get(model_id)
        return own or self.models[model_id].prices

    def prices_for(self, organization_id: str, model_id: str) -> list[Prices | None]:
        """What the model costs at the backends that may serve the organization: each price once."""
        policy = self.policy_for(organization_id, model_id)
        found: list[Prices | None] = []
        for share in () if policy is None else policy.shares:
            prices = self.prices_of(model_id, share.backend_id)
            if not any(prices is other for other in found):
                found.append(prices)
        return found or [self.models[model_id].prices]

    def policy_for(self, organization_id: str, model_id: str) -> Policy | None:
        """The most specific policy: organization and model, organization, model, then ``*``."""
        index = self.policy_index
        return (
            index.get((organization_id, model_id))
            or index.get((organization_id, ANY))
            or index.get((ANY, model_id))
            or index.get((ANY, ANY))
        )


@dataclass(frozen=True, slots=True)
class LoadedDocument:
    """The frozen parts of a valid document."""

    version: ClassVar[int] = VERSION
    organizations: tuple[Organization, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    models: tuple[Model, ...] = ()
    backends: tuple[Backend, ...] = ()
    policies: tuple[Policy, ...] = ()

    def build(self, revision: int) -> Document:
        """All but the keys, indexed for serving."""
        names = {model.id: model for model in self.models}
        for model in self.models:
            names.update(dict.fromkeys(model.aliases, model))
        return Document(
            revision=revision,
            organizations={entry.id: entry for entry in self.organizations},
            models={entry.id: entry for entry in self.models},
            backends={entry.id: entry for entry in self.backends},
            policies=self.policies,
            model_names=names,
            policy_index={(entry.organization, entry.model): entry for entry in self.policies},
        )
