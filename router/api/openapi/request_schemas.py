"""Request bodies of the public API as marshmallow schemas.

No call is loaded through these. The readers in ``api.dialects`` look at the same fields in a
fraction of the time; ``tests/contract`` proves that a body passes here exactly if it passes there,
and exactly if it fits the written contract.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from marshmallow import INCLUDE, Schema, ValidationError, fields, validate, validates_schema

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
from router.errors import InvalidRequest

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}\Z")
_JSON: Final = "application/json"
_ONE_OR_MORE: Final = validate.Length(min=1)


def _exactly(*types: type) -> Callable[[Any], None]:
    """These types and no other: marshmallow's own fields also take ``"yes"`` or ``"0.5"``."""

    def check(value: Any) -> None:
        if type(value) not in types:
            raise ValidationError("has the wrong type")

    return check


def _flag() -> fields.Raw:
    return fields.Raw(allow_none=True, validate=_exactly(bool))


def _number() -> fields.Raw:
    return fields.Raw(allow_none=True, validate=_exactly(int, float))


def _count() -> fields.Integer:
    return fields.Integer(strict=True, allow_none=True, validate=validate.Range(min=1))


def _model() -> fields.String:
    return fields.String(required=True, validate=validate.Length(1, MAX_NAME_CHARS))


def _text_or_tokens(value: Any) -> None:
    if not isinstance(value, str) and not (isinstance(value, list) and value):
        raise ValidationError("must be text or token ids")


class _Open(Schema):
    """An object whose further fields pass through untouched."""

    class Meta:
        unknown = INCLUDE


class Message(_Open):
    """A chat message; what it holds besides its role is the backend's business."""

    role = fields.String(required=True, validate=_ONE_OR_MORE)


class StreamOptions(_Open):
    include_usage = _flag()


class _Generating(_Open):
    """What chat and text completions have in common."""

    model = _model()
    max_tokens = _count()
    n = _count()
    temperature = _number()
    top_p = _number()
    stream = _flag()
    stream_options = fields.Nested(StreamOptions, allow_none=True)

    @validates_schema
    def check_stream_options(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("stream_options") is not None and data.get("stream") is not True:
            raise ValidationError("only allowed when stream is true", "stream_options")


class ChatCompletionRequest(_Generating):
    messages = fields.List(fields.Nested(Message), required=True, validate=_ONE_OR_MORE)
    max_completion_tokens = _count()


class CompletionRequest(_Generating):
    prompt = fields.Raw(required=True, validate=_text_or_tokens)


class EmbeddingRequest(_Open):
    model = _model()
    input = fields.Raw(required=True, validate=_text_or_tokens)


class InferenceParameters(_Open):
    """Sampling parameters of the OpenAI dialect, passed on as they are."""

    max_tokens = _count()
    max_completion_tokens = _count()

    @validates_schema(pass_original=True)
    def check_names(self, _data: Any, original: Mapping[str, Any], **_: Any) -> None:
        for reserved in RESERVED_PARAMETERS:
            if reserved in original:
                raise ValidationError("cannot be set here", reserved)


def _fits_a_record(metadata: Mapping[str, str]) -> None:
    if len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise ValidationError("is too large")


_LABEL: Final = fields.String(validate=validate.Length(max=MAX_METADATA_CHARS))


class InferenceRequest(Schema):
    """The body of a native call; unknown fields are refused."""

    request_id = fields.String(allow_none=True, validate=validate.Regexp(_UUID))
    model = _model()
    payload = fields.Raw(required=True)
    content_type = fields.String(allow_none=True, validate=validate.OneOf(CONTENT_TYPES))
    parameters = fields.Nested(InferenceParameters, allow_none=True)
    metadata = fields.Dict(
        keys=_LABEL,
        values=_LABEL,
        allow_none=True,
        validate=[validate.Length(max=MAX_METADATA_ENTRIES), _fits_a_record],
    )
    stream = _flag()
    hmac_signature = fields.String(allow_none=True, validate=validate.Regexp(_SIGNATURE))

    @validates_schema(skip_on_field_errors=True)
    def check_payload(self, data: dict[str, Any], **_: Any) -> None:
        payload, is_json = data["payload"], data.get("content_type") == _JSON
        if payload is None or payload == "":
            raise ValidationError("is missing", "payload")
        if not isinstance(payload, str) and not is_json:
            raise ValidationError("must be a string", "payload")
        written = payload.encode() if isinstance(payload, str) else orjson.dumps(payload)
        if len(written) > MAX_PAYLOAD_BYTES:
            raise ValidationError("is too large", "payload")
        if is_json:
            _PAYLOAD_MESSAGES.check(payload)


class _PayloadMessages(_Open):
    messages = fields.List(fields.Nested(Message), allow_none=True, validate=_ONE_OR_MORE)

    def check(self, payload: Any) -> None:
        """Raises ``ValidationError`` for text that is no JSON and for messages that are none."""
        if isinstance(payload, str):
            try:
                payload = parse_json(payload.encode(), field="payload")
            except InvalidRequest as error:
                raise ValidationError(error.message, "payload") from None
        if isinstance(payload, dict):
            self.load(payload)


_PAYLOAD_MESSAGES: Final = _PayloadMessages()

INFERENCE: Final = InferenceRequest()
CHAT_COMPLETION: Final = ChatCompletionRequest()
COMPLETION: Final = CompletionRequest()
EMBEDDING: Final = EmbeddingRequest()
