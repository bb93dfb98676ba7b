"""The nouns of one call: who calls, what is asked, what was used, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

Dialect = str
"""A name in the table of ``api.dialects``."""
Operation = Literal["chat", "completions", "embeddings"]
InputClass = Literal[
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "input_audio", "input_image"
]
OutputClass = Literal["output", "output_reasoning", "output_audio", "output_image"]
Unit = Literal["requests", "web_searches", "characters", "seconds"]
"""What is billed by other measures than tokens."""
UsageClass = InputClass | OutputClass | Unit
"""What usage is split into before it is priced: every token is in exactly one class."""
UsageSource = Literal["reported", "estimated", "none"]
Outcome = Literal[
    "completed",
    "client_aborted",
    "upstream_aborted",
    "upstream_error",
    "timeout",
    "rejected",
    "interrupted",
]
Decision = Literal["PRIMARY", "FAILOVER", "OVERRIDE"]
LimitState = Literal["WITHIN_LIMIT", "RATE_LIMITED", "BUDGET_EXCEEDED"]

INPUT_CLASSES: Final[tuple[InputClass, ...]] = get_args(InputClass)
OUTPUT_CLASSES: Final[tuple[OutputClass, ...]] = get_args(OutputClass)
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
LIMIT_FIELDS: Final[Mapping[Operation, tuple[str, ...]]] = {
    "chat": ("max_tokens", "max_completion_tokens", "n_predict"),
    "completions": ("max_tokens", "n_predict"),
    "embeddings": (),
}
"""Fields that bound the tokens of an answer; of llama.cpp ``n_predict``, which goes before
``max_tokens`` there."""
CHOICE_FIELDS: Final = ("n", "best_of", "n_cmpl")
"""Fields that ask for several answers; of llama.cpp ``n_cmpl``, which goes before ``n`` there."""
STEERING_FIELDS: Final = frozenset(
    {
        # LiteLLM: where a call goes, with whose credential, and what is tried instead.
        *("api_base", "base_url", "api_key", "api_version", "custom_llm_provider", "deployment_id"),
        *("fallbacks", "context_window_fallbacks", "context_window_fallback_dict"),
        *("content_policy_fallbacks", "disable_fallbacks", "model_list", "num_retries"),
        *("max_retries", "headers", "extra_headers", "extra_body", "extra_query", "organization"),
        *("mock_response", "mock_tool_calls", "mock_testing_fallbacks", "user_config"),
        *("proxy_server_request", "vertex_project", "vertex_location", "vertex_credentials"),
        *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region_name"),
        *("aws_role_name", "aws_session_name", "aws_profile_name", "aws_bedrock_runtime_endpoint"),
        *("region_name", "watsonx_region_name", "router_settings_override"),
        # OpenRouter, Portkey, Vercel: the provider, the preset, the rules.
        *("route", "provider", "transforms", "preset", "virtual_key", "config", "providerOptions"),
        # vLLM, SGLang: another server to fetch the state of a call from, weights to load.
        *("kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room", "lora_path"),
    }
)
"""What sends a call elsewhere, or with another credential, where the backend is a gateway."""
NO_CLASSES: Final[Mapping[UsageClass, int]] = MappingProxyType({})

OUTCOMES: Final[tuple[Outcome, ...]] = (
    "completed",
    "client_aborted",
    "upstream_aborted",
    "upstream_error",
    "timeout",
    "rejected",
    "interrupted",
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
    output_limit: int | None = None
    """Tokens of each answer to ask of the backend where the client sets no bound, because a budget
    reserves the worst case; ``None`` leaves the client's own fields as they are."""
    prompt: Any = field(default=None, init=False, compare=False, repr=False)
    """What ``pricing.prompts`` has read of ``fields``, so that it reads them once."""

    def client_limit(self) -> int | None:
        """The largest of the bounds that the client sets for the tokens of an answer, for a backend
        may heed any of them; ``None`` where it sets none."""
        fields = self.fields
        limit: int | None = None
        for name in LIMIT_FIELDS[self.operation]:
            other: int | None = fields.get(name)
            if other is not None and (limit is None or other > limit):
                limit = other
        return limit


@dataclass(slots=True)
class Usage:
    """What one call used: the sums, and how they split into classes."""

    tokens_input: int
    """Of all input classes."""
    tokens_output: int
    """Of all output classes."""
    tokens_cached: int = 0
    """The class ``cache_read``: input billed as cached."""
    source: UsageSource = "reported"
    special: Mapping[UsageClass, int] = field(default_factory=lambda: NO_CLASSES)
    """The other classes that a provider told apart, units among them; what the sums have besides
    is plain ``input`` and ``output``."""
    service_tier: str | None = None
    """The tier that the provider says served the call; ``None`` is the standard one."""
    at_standard_tier: bool = field(default=False, compare=False)
    """The provider says that it was the standard one, whatever the client had asked for."""

    def classes(self) -> dict[UsageClass, int]:
        """The disjoint classes that are not 0. Those of tokens sum to the two totals exactly,
        whatever was reported: a class is cut where the total has no room for it."""
        found: dict[UsageClass, int] = {}
        special = self.special
        cached = min(self.tokens_cached, self.tokens_input)
        plain_input, plain_output = self.tokens_input - cached, self.tokens_output
        if cached:
            found["cache_read"] = cached
        for name, amount in special.items():
            if name in INPUT_CLASSES:
                amount = min(amount, plain_input)
                plain_input -= amount
            elif name in OUTPUT_CLASSES:
                amount = min(amount, plain_output)
                plain_output -= amount
            if amount:
                found[name] = amount
        if plain_input:
            found["input"] = plain_input
        if plain_output:
            found["output"] = plain_output
        return found


NO_USAGE: Final = Usage(0, 0, 0, "none")


@dataclass(slots=True)
class Attempt:
    """One try at one backend; durations in seconds."""

    backend_id: str
    status: int | None = None
    error: str | None = None
    dispatched: bool = False
    """The request was being sent: from then on the backend may work on it."""
    declined: bool = False
    """The backend's own answer says that it did not do the work."""
    duration_s: float = 0.0
    ttfb_s: float = 0.0
    reused_connection: bool = False
