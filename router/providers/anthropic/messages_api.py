"""The OpenAI dialect spoken to a backend that only knows Anthropic's Messages API.

Where the two dialects differ, one rule decides: a field that only tunes the answer is **dropped**,
a field that promises something about the answer is **refused** with
:class:`~router.errors.InvalidRequest`, and a field that neither list names passes untouched
(``thinking``, ``top_k``, ``cache_control`` on a content part, …).

===========================  ====================================================================
OpenAI                       here
===========================  ====================================================================
``temperature`` 0 … 2        above 1 is clamped to 1, the top of Anthropic's scale
``stop``                     ``stop_sequences``; a blank one is refused (the API takes none)
``response_format``          ``json_schema`` → ``output_config.format``; ``text`` → nothing;
                             ``json_object`` is refused (no counterpart without a schema)
``tools[].function.strict``  kept when true
``user``                     ``metadata.user_id`` (``safety_identifier`` wins over it)
no ``max_tokens``            the backend's default: the Messages API demands a number
``n``, ``best_of`` above 1   refused
``logprobs``, ``echo``, …    refused: see ``REFUSED`` in ``request.py``
``seed``, penalties, …       dropped: see ``DROPPED`` in ``request.py``
system, developer messages   joined into ``system``, wherever they stand
===========================  ====================================================================

A conversation that ends with an assistant message is sent as it is: the Messages API continues
that message (or refuses, on models without prefill). One that starts with an assistant message is
sent as it is, too. Thinking comes back as ``reasoning_content``; its signature has no place in the
OpenAI dialect, so the thinking of earlier turns is not sent again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from router.call import Call, Operation
from router.providers.anthropic.reply import error_message, read_reply
from router.providers.anthropic.request import write_request
from router.providers.anthropic.stream import MessagesStream
from router.providers.json_elements import parse_error
from router.providers.provider import Provider, ReadReply

API_VERSION: Final = "2023-06-01"


class AnthropicProvider(Provider):
    """The Messages API, translated both ways. It has no embeddings."""

    paths: Mapping[Operation, str] = {"chat": "/messages", "completions": "/messages"}
    reserved_headers = frozenset({"anthropic-version"})

    def credential_headers(self, credential: str | None) -> list[tuple[str, str]]:
        """The API's own header for a key, and its version."""
        version = ("anthropic-version", API_VERSION)
        return [("x-api-key", credential), version] if credential else [version]

    def write_request(
        self,
        call: Call,
        upstream_model: str,
        max_output_tokens: int,
        *,
        output_limit_field: str = "max_tokens",
    ) -> bytes:
        """The API demands a bound on the output: the model's, where the client gave none."""
        return write_request(
            call.operation, call.fields, model=upstream_model, default_max_tokens=max_output_tokens
        )

    def read_reply(self, call: Call, body: bytes) -> ReadReply:
        """A completion in the OpenAI dialect, made of the message."""
        return read_reply(call.operation, body, created=int(time.time()))

    def open_stream(self, call: Call) -> MessagesStream:
        """Translates events as they arrive."""
        return MessagesStream(
            call.operation, include_usage=call.include_usage, created=int(time.time())
        )

    def read_error(self, body: bytes) -> str | None:
        """The message inside Anthropic's error object, without keys and links."""
        try:
            return error_message(parse_error(body))
        except ValueError:
            return None
