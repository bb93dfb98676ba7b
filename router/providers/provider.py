"""What a provider's file offers to the forwarder, and what most providers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, Protocol

from router.call import Call, Operation, Usage

StatusMeaning = Literal[
    "busy", "unavailable", "not_served", "credential_refused", "rejected", "failed"
]
"""What a status other than 200 says about a call:

* ``busy``, ``unavailable``, ``not_served``: the backend has not served it, so another one may.
* ``credential_refused``: the backend does not accept the router's own credential, which is never
  the client's fault; another backend may serve the call, and the reply's text is shown to nobody.
* ``rejected``: the request itself is at fault; its client has to fix it.
* ``failed``: the backend may have processed the call and failed; it is not sent again.
"""

_COMMON_MEANINGS: Final[Mapping[int, StatusMeaning]] = {
    401: "credential_refused",
    403: "credential_refused",
    429: "busy",
    502: "not_served",
    503: "unavailable",
    504: "not_served",
    529: "unavailable",  # how Anthropic, and gateways in front of it, say "overloaded"
}


class StreamTranslator(Protocol):
    """Turns a backend's stream into the OpenAI dialect and remembers what the stream says.

    ``feed`` and ``finish`` raise ``ValueError`` when the stream makes no sense.
    """

    usage: Usage | None
    """The last usage that the backend reported."""
    usage_at_start: Usage | None
    """What the backend reports of the input before it generates; ``None`` for most providers."""
    output_chars: int
    """Characters generated so far, to estimate the usage of a stream that breaks off."""
    complete: bool
    """The stream came to its proper end."""
    error: str | None
    """Why the backend gave up in the middle of the stream."""

    def feed(self, chunk: bytes) -> bytes:
        """Bytes to forward now."""

    def finish(self) -> bytes:
        """Bytes left when the backend has closed the stream properly."""


class Provider(Protocol):
    """One provider's API. Calls come, and replies leave, in the OpenAI dialect."""

    paths: Mapping[Operation, str]
    """Where each operation is served, below the backend's base URL; others it does not serve."""
    reserved_headers: frozenset[str]
    """Headers, in lower case, that choose who pays or which version of the API answers: those of a
    client never reach a backend."""
    shows_error_bodies: bool
    """Whether the body of a rejection has the OpenAI shape and may be shown to the client."""

    def credential_headers(self, credential: str | None) -> list[tuple[str, str]]:
        """How the router proves itself, and which version of the API it speaks."""

    def write_request(self, call: Call, upstream_model: str, max_output_tokens: int) -> bytes:
        """The body for the backend; raises ``InvalidRequest`` for what the API cannot express."""

    def read_reply(self, call: Call, body: bytes) -> tuple[bytes, Usage | None, int]:
        """Body for the client, reported usage, and output characters where usage is missing.

        Raises ``ValueError`` for a body that is no reply of the API.
        """

    def open_stream(self, call: Call) -> StreamTranslator:
        """A translator for one stream."""

    def status_meaning(self, status: int) -> StatusMeaning:
        """What a status other than 200 says about the call."""

    def read_error(self, body: bytes) -> str | None:
        """The message of a rejection, fit to be shown to the client; ``None`` without one."""


def common_meaning(status: int) -> StatusMeaning:
    """What a status means where a provider uses HTTP as most of them do."""
    return _COMMON_MEANINGS.get(status, "rejected" if 400 <= status < 500 else "failed")
