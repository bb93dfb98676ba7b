"""Request bodies of the public API as marshmallow schemas: what ``contracts/`` is made of.

No call is loaded through these. The readers in ``native`` and ``openai`` look at the same fields in
a fraction of the time, and ``tests/contract`` proves that a body passes here exactly if it passes
there. What JSON Schema cannot say (sizes in bytes, text that must be JSON) stands in descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from marshmallow import ValidationError, fields, validate, validates_schema

from router.api.bodies import parse_json
from router.api.dialects.checks import MAX_NAME_CHARS
from router.api.dialects.native import (
    CONTENT_TYPES,
    MAX_METADATA_BYTES,
    MAX_METADATA_CHARS,
    MAX_METADATA_ENTRIES,
    MAX_PAYLOAD_BYTES,
    RESERVED_PARAMETERS,
)
from router.api.openapi.schema_fields import (
    Anything,
    Closed,
    Count,
    Flag,
    Number,
    OneOf,
    Open,
    Shaped,
    Words,
    about,
)
from router.errors import InvalidRequest

UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
SIGNATURE_PATTERN: Final = "^[0-9a-f]{64}$"
_JSON: Final = "application/json"


def name(text: str) -> fields.String:
    """The name of something, which must be there."""
    return fields.String(
        required=True, validate=validate.Length(1, MAX_NAME_CHARS), metadata=about(text)
    )


def some(*, required: bool = True, text: str = "") -> fields.List[Any]:
    """An array with at least one element of whatever kind."""
    return fields.List(
        Anything(),
        required=required,
        validate=validate.Length(min=1),
        metadata=about(text) if text else {},
    )


class Message(Open):
    """A chat message; what it holds besides its role is the backend's business."""

    role = fields.String(
        required=True,
        validate=validate.Length(min=1),
        metadata=about("Who speaks: system, developer, user, assistant, tool …"),
    )


class StreamOptions(Open):
    include_usage = Flag(
        allow_none=True,
        metadata=about("true asks for a last chunk with the usage and no choices."),
    )


class _Generating(Open):
    """What chat and text completions have in common."""

    contract: Final = {
        "if": {
            "properties": {"stream_options": {"type": "object"}},
            "required": ["stream_options"],
        },
        "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]},
    }

    model = name("A model's id or alias.")
    max_tokens = Count(metadata=about("At most this many tokens are generated."))
    n = Count(metadata=about("Number of choices."))
    temperature = Number(allow_none=True)
    top_p = Number(allow_none=True)
    stream = Flag(allow_none=True, metadata=about("true answers with server-sent events."))
    stream_options = fields.Nested(
        StreamOptions, allow_none=True, metadata=about("Only together with `stream: true`.")
    )

    @validates_schema
    def check_stream_options(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("stream_options") is not None and data.get("stream") is not True:
            raise ValidationError("only allowed when stream is true", "stream_options")


class ChatCompletionRequest(_Generating):
    messages = fields.List(fields.Nested(Message), required=True, validate=validate.Length(min=1))
    max_completion_tokens = Count(metadata=about("At most this many tokens are generated."))


class CompletionRequest(_Generating):
    prompt = OneOf(
        fields.String(), some(required=False), required=True, metadata=about("Text, or token ids.")
    )


class EmbeddingRequest(Open):
    model = name("A model's id or alias.")
    input = OneOf(
        fields.String(), some(required=False), required=True, metadata=about("Text, or token ids.")
    )


class InferenceParameters(Open):
    """Sampling parameters of the OpenAI dialect, passed on as they are."""

    contract: Final = {"propertyNames": {"not": {"enum": list(RESERVED_PARAMETERS)}}}

    max_tokens = Count(metadata=about("At most this many tokens are generated."))
    max_completion_tokens = Count(metadata=about("At most this many tokens are generated."))

    @validates_schema(pass_original=True)
    def check_names(self, _data: Any, original: Mapping[str, Any], **_: Any) -> None:
        for reserved in RESERVED_PARAMETERS:
            if reserved in original:
                raise ValidationError("cannot be set here", reserved)


def _fits_a_record(labels: Mapping[str, str]) -> None:
    if len(_written(labels)) > MAX_METADATA_BYTES:
        raise ValidationError("is too large")


class Payload(fields.Raw):
    """Text or, declared as such, JSON; how the two differ is for the whole body to say."""

    contract: Final = {
        "not": {"enum": [None, ""]},
        "maxLength": MAX_PAYLOAD_BYTES,
        "properties": {
            "messages": {
                "oneOf": [
                    {"type": "null"},
                    {
                        "type": "array",
                        "minItems": 1,
                        "items": {"$ref": "#/components/schemas/Message"},
                    },
                ]
            }
        },
    }


class InferenceRequest(Closed):
    """The body of a native call; unknown fields are refused."""

    contract: Final = {
        "if": {
            "properties": {"content_type": {"const": _JSON}},
            "required": ["content_type"],
        },
        "else": {"properties": {"payload": {"type": "string"}}},
    }

    request_id = Shaped(
        UUID_PATTERN,
        required=True,
        metadata=about("The client's UUID for this call; it comes back as X-Request-ID, too."),
    )
    model = name("A model's id or alias.")
    payload = Payload(
        required=True,
        metadata=about(
            f"At most {MAX_PAYLOAD_BYTES} bytes of UTF-8. text/plain: a string, which becomes one"
            " user message. application/json: a JSON value, or a string that holds one; chat"
            " messages are taken from its `messages`, anything else is sent as it is written."
        ),
    )
    content_type = fields.String(
        allow_none=True,
        validate=validate.OneOf(CONTENT_TYPES),
        metadata=about("What the payload is.", default=CONTENT_TYPES[0]),
    )
    parameters = fields.Nested(InferenceParameters, allow_none=True)
    metadata = Words(
        most=MAX_METADATA_ENTRIES,
        longest=MAX_METADATA_CHARS,
        allow_none=True,
        validate=_fits_a_record,
        metadata=about(
            f"The client's own labels: at most {MAX_METADATA_BYTES} bytes, written as compact JSON"
            " in UTF-8."
        ),
    )
    stream = Flag(allow_none=True, metadata=about("true answers with server-sent events."))
    hmac_signature = Shaped(
        SIGNATURE_PATTERN,
        allow_none=True,
        metadata=about("The request's signature, instead of the header X-Router-Signature."),
    )

    @validates_schema(skip_on_field_errors=True)
    def check_payload(self, data: dict[str, Any], **_: Any) -> None:
        payload, is_json = data["payload"], data.get("content_type") == _JSON
        if payload is None or payload == "":
            raise ValidationError("is missing", "payload")
        if not isinstance(payload, str) and not is_json:
            raise ValidationError("must be a string", "payload")
        if len(_written(payload)) > MAX_PAYLOAD_BYTES:
            raise ValidationError("is too large", "payload")
        if is_json:
            _PAYLOAD_MESSAGES.check(payload)


class _PayloadMessages(Open):
    messages = fields.List(fields.Nested(Message), allow_none=True, validate=validate.Length(min=1))

    def check(self, payload: Any) -> None:
        """Raises ``ValidationError`` for text that is no JSON and for messages that are none."""
        if isinstance(payload, str):
            try:
                payload = parse_json(payload.encode(), field="payload")
            except InvalidRequest as error:
                raise ValidationError(error.message, "payload") from None
        if isinstance(payload, dict):
            self.load(payload)


def _written(payload: Any) -> bytes:
    return payload.encode() if isinstance(payload, str) else orjson.dumps(payload)


_PAYLOAD_MESSAGES: Final = _PayloadMessages()

INFERENCE: Final = InferenceRequest()
CHAT_COMPLETION: Final = ChatCompletionRequest()
COMPLETION: Final = CompletionRequest()
EMBEDDING: Final = EmbeddingRequest()
