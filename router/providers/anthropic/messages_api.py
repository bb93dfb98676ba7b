"""The OpenAI dialect spoken to a backend that only knows Anthropic's Messages API.

Pure translation, no I/O: ``write_request`` → backend → ``read_reply`` or ``MessagesStream``, and
``read_error`` for what the backend refuses. Where the two dialects differ, one rule decides: a
field that only tunes the answer is **dropped**, a field that promises something about the answer
is **refused** with :class:`~router.errors.InvalidRequest`, and what neither list names is passed
through untouched (``thinking``, ``top_k``, ``cache_control`` on a content part, …).

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
``logprobs``, ``echo``, …    refused: see ``REFUSED`` in ``anthropic_request``
``seed``, penalties, …       dropped: see ``DROPPED`` in ``anthropic_request``
system, developer messages   joined into ``system``, wherever they stand
===========================  ====================================================================

A conversation that ends with an assistant message is sent as it is: the Messages API continues
that message (or refuses, on models without prefill). One that starts with an assistant message is
for the API to judge, too. Thinking comes back as ``reasoning_content``; its signature has no place
in the dialect, so thinking of earlier turns is not sent again.
"""

from __future__ import annotations

from router.call import Operation
from router.providers.anthropic.reply import MessagesOperation, read_error, read_reply
from router.providers.anthropic.request import write_request
from router.providers.anthropic.stream import MessagesStream

__all__ = [
    "MessagesOperation",
    "MessagesStream",
    "headers",
    "path",
    "read_error",
    "read_reply",
    "supports",
    "write_request",
]

API_VERSION = "2023-06-01"


def supports(operation: Operation) -> bool:
    """Tell whether the Messages API can answer this operation; it has no embeddings."""
    return operation in ("chat", "completions")


def path(operation: Operation) -> str:
    """The path below the backend's base URL (which ends in ``/v1``) that serves the operation."""
    if not supports(operation):
        raise ValueError(f"the Messages API has no {operation}")
    return "/messages"


def headers(credential: str | None) -> list[tuple[str, str]]:
    """The headers that are the API's own: its version, and the credential where there is one."""
    version = ("anthropic-version", API_VERSION)
    return [("x-api-key", credential), version] if credential else [version]
