"""What a client can ask for that changes the price, and which of it a model allows.

An entry of a model's ``allow`` names a field of the request, a header or a tool as the client
writes it, and after a colon the value: ``service_tier:priority``, ``web_search_options``,
``tool:web_search``, ``anthropic-beta:context-1m-2025-08-07``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Final

from router.call import STEERING_FIELDS, Call
from router.errors import InvalidRequest

Json = dict[str, Any]

STANDARD: Final[dict[str, frozenset[str]]] = {
    "service_tier": frozenset({"auto", "default", "standard", "standard_only", "on_demand"}),
    "speed": frozenset({"standard", "normal"}),
    "inference_geo": frozenset({"global", "not_available"}),
}
"""Fields that multiply the price, and their values at the standard price."""

STRIPPED: Final = frozenset({"service_tier", "speed"})
"""A call without them is the same call, slower at most."""

BILLED_FIELDS: Final = frozenset(
    {
        "web_search_options",
        "search_parameters",
        "plugins",
        "mcp_servers",
        "container",
        "models",
        "chat_template",
        "mm_processor_kwargs",
    }
)
"""What bills by itself, sends the call to another model, or makes a prompt longer than its text."""

UNBOUNDED: Final = BILLED_FIELDS - {"web_search_options"}
"""No bound is known for what they use."""

CLIENT_TOOLS: Final = frozenset({"function", "custom", "bash", "text_editor", "computer", "memory"})
"""Tools that the client runs itself; the provider runs all others, and bills them."""

BETA_HEADERS: Final = frozenset({"anthropic-beta", "openai-beta"})
"""What they select may have a price of its own, so that each value has to be allowed."""

SELECTING: Final = frozenset({*STANDARD, *BILLED_FIELDS, "modalities", "tools"})
"""All fields that can change the price."""

READ_NAMES: Final = SELECTING | STEERING_FIELDS
"""All fields that :func:`permitted` looks at."""
_VERSION: Final = re.compile(r"_\d{6,8}$")
_MAX_SEARCHES: Final = 1_000


def permitted(call: Call, allow: Collection[str]) -> Call:
    """The call as the model allows it: without a service tier or speed, and without fields that
    steer gateways, unless it allows them.

    Raises ``InvalidRequest``, naming the field, for what is not allowed and cannot be left out.
    """
    fields = call.fields
    if READ_NAMES.isdisjoint(fields):
        return call
    for name in BILLED_FIELDS.intersection(fields):
        if fields[name] is not None and name not in allow:
            raise _refused(name, name)
    _check_modalities(fields.get("modalities"), allow)
    _check_tools(fields.get("tools"), allow)
    stripped = [name for name in STANDARD if not _passes(fields.get(name), name, allow)]
    stripped += STEERING_FIELDS.intersection(fields).difference(allow)
    if selected_tier(fields, stripped) is None and not stripped:
        return call
    kept = {name: value for name, value in fields.items() if name not in stripped}
    return replace(call, fields=kept, body=None) if stripped else call


def selected_tier(fields: Json, without: Collection[str] = ()) -> str | None:
    """What the request selects besides the standard price, as the price list names it.

    Raises ``InvalidRequest`` for two such selections in one call, which have no price.
    """
    found: str | None = None
    for name, standard in STANDARD.items():
        value = fields.get(name)
        if value is None or value in standard or name in without:
            continue
        if found is not None:
            raise InvalidRequest(f"'{name}' cannot be combined with '{found}'", field=name)
        found = str(value)
    return found


def possible_tiers(fields: Json, allow: Iterable[str]) -> tuple[str, ...]:
    """The tiers besides the standard one that may serve the call. One that selects none may be
    served by any that its model allows: so a provider's project may be set up."""
    if not allow:
        return ()
    selected = selected_tier(fields)
    if selected is not None:
        return (selected,)
    return tuple([entry[13:] for entry in allow if entry.startswith("service_tier:")])


def allowed_betas(value: str, header: str, allow: Collection[str]) -> str:
    """The values of a beta header that the model allows."""
    if f"{header}:*" in allow:
        return value
    names = [name.strip() for name in value.split(",")]
    return ",".join([name for name in names if f"{header}:{name}" in allow])


def web_searches(fields: Json) -> int:
    """How many searches of the web the provider makes for the call at most."""
    total = 0 if fields.get("web_search_options") is None else 1
    for tool in fields.get("tools") or ():
        if _tool_kind(tool) == "web_search":
            total += tool["max_uses"]
    return total


def unbounded_field(fields: Json) -> str | None:
    """A field for which no bound is known; such a call cannot be reserved at its worst case."""
    if SELECTING.isdisjoint(fields):
        return None
    for name in UNBOUNDED.intersection(fields):
        if fields[name] is not None:
            return name
    for index, tool in enumerate(fields.get("tools") or ()):
        if _tool_kind(tool) not in CLIENT_TOOLS | {"web_search"}:
            return f"tools[{index}].type"
    return None


def _passes(value: Any, name: str, allow: Collection[str]) -> bool:
    """Whether a field goes on; raises where a field that is not allowed cannot be left out."""
    if value is None:
        return True
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' must be a string", field=name)
    if value in STANDARD[name] or f"{name}:{value}" in allow:
        return True
    if name not in STRIPPED:
        raise _refused(name, f"{name}:{value}")
    return False


def _check_modalities(modalities: Any, allow: Collection[str]) -> None:
    if modalities is None:
        return
    if not isinstance(modalities, list) or not all(isinstance(m, str) for m in modalities):
        raise InvalidRequest("'modalities' must be an array of strings", field="modalities")
    for modality in modalities:
        if modality != "text" and f"modalities:{modality}" not in allow:
            raise _refused("modalities", f"modalities:{modality}")


def _check_tools(tools: Any, allow: Collection[str]) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise InvalidRequest("'tools' must be an array", field="tools")
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise InvalidRequest("a tool must be an object", field=where)
        kind = _tool_kind(tool)
        if kind in CLIENT_TOOLS:
            continue
        if f"tool:{kind}" not in allow:
            raise _refused(f"{where}.type", f"tool:{kind}")
        if kind == "web_search":
            _check_max_uses(tool.get("max_uses"), f"{where}.max_uses")


def _check_max_uses(value: Any, where: str) -> None:
    if type(value) is not int or not 1 <= value <= _MAX_SEARCHES:
        raise InvalidRequest(f"must say how often it may search: 1 to {_MAX_SEARCHES}", field=where)


def _tool_kind(tool: Json) -> str:
    """The type of a tool without its version; a tool with a schema and no type is a function."""
    kind = tool.get("type")
    if kind is None and ("function" in tool or "input_schema" in tool):
        return "function"
    return _VERSION.sub("", kind) if isinstance(kind, str) else "unknown"


def _refused(field: str, entry: str) -> InvalidRequest:
    shown = entry[:96]
    return InvalidRequest(f"'{shown}' is not allowed for this model", field=field)
