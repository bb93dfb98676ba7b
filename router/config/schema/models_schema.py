"""The document's models: what they cost, the most that a call of one uses, what may be asked."""

from __future__ import annotations

import re
from typing import Any, Final

from marshmallow import post_dump

from router.call import STEERING_FIELDS
from router.config.document import InputBounds, Model
from router.config.schema.fields import Identifier, Integer, ListOf, Nested, Text
from router.config.schema.mapping import Part
from router.config.schema.prices_schema import MAX_INPUT_TOKENS, PricesSchema

MAX_OUTPUT_TOKENS: Final = 10_000_000
MAX_ALLOWED: Final = 100
_ALLOWED: Final = re.compile(
    "(service_tier|speed|inference_geo|modalities|tool|anthropic-beta|openai-beta)"
    ":[A-Za-z0-9*][A-Za-z0-9._-]*"
    "|web_search_options|search_parameters|plugins|mcp_servers|container|models|chat_template"
    f"|mm_processor_kwargs|{'|'.join(sorted(STEERING_FIELDS))}"
)


def _bound(name: str, about: str) -> Integer:
    return Integer(0, MAX_INPUT_TOKENS, load_default=getattr(InputBounds(), name), about=about)


class InputBoundsSchema(Part):
    """→ :class:`~router.config.document.InputBounds`."""

    makes = InputBounds

    image_tokens = _bound("image_tokens", "Of one picture, sent or named by URL.")
    audio_tokens = _bound("audio_tokens", "Of one sound.")
    document_tokens = _bound(
        "document_tokens", "Of one file or video, or a part of a kind that is not known."
    )
    web_search_tokens = _bound("web_search_tokens", "Of what one search of the web finds.")
    overhead_tokens = _bound("overhead_tokens", "Of what the provider adds to a prompt by itself.")


class ModelSchema(Part):
    """→ :class:`~router.config.document.Model`."""

    makes = Model

    id = Identifier(required=True, about="The name in records, policies and prices.")
    aliases = ListOf(Identifier(), load_default=list, about="Further names that clients may use.")
    prices = Nested(
        PricesSchema,
        load_default=None,
        allow_none=True,
        about="null means that the price is not known.",
    )
    max_output_tokens = Integer(
        1,
        MAX_OUTPUT_TOKENS,
        load_default=Model("").max_output_tokens,
        about="Asked of a backend when the client sets no bound: where the API insists on one, and"
        " where a budget reserves the worst case.",
    )
    max_input_tokens = Integer(
        1,
        MAX_INPUT_TOKENS,
        load_default=None,
        allow_none=True,
        about="The model's context: no call is reserved more input. null is not known.",
    )
    input_bounds = Nested(
        InputBoundsSchema,
        load_default=InputBounds,
        about="Tokens at most of what has no text by which to bound it.",
    )
    allow = ListOf(
        Text(
            shape=_ALLOWED,
            message="must be a field, header or tool that changes the price, such as"
            " service_tier:priority, web_search_options or tool:web_search",
            metadata={"pattern": f"^({_ALLOWED.pattern})$"},
        ),
        load_default=list,
        unique=True,
        most=MAX_ALLOWED,
        about="What clients may ask for besides the standard price, or pass on to a gateway.",
    )

    @post_dump
    def leave_out(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What says nothing is not dumped: an older router does not know it."""
        said = InputBoundsSchema().dump(InputBounds())
        for name, silent in (("max_input_tokens", None), ("input_bounds", said), ("allow", [])):
            if data[name] == silent:
                del data[name]
        return data
