"""What a provider does for the forwarder; where most providers agree, it is done here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, Literal

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


class StreamTranslator(ABC):
    """Turns a backend's stream into the OpenAI dialect and remembers what the stream says.

    ``feed`` and ``finish`` raise ``ValueError`` when the stream makes no sense.
    """

    usage: Usage | None = None
    """The last usage that the backend reported."""
    usage_at_start: Usage | None = None
    """What the backend reported of the input before it generated, for a stream that breaks off."""
    output_chars = 0
    """Characters generated so far, to estimate the usage of a stream that breaks off."""
    complete = False
    """The stream came to its proper end."""
    error: str | None = None
    """Why the backend gave up in the middle of the stream; the client is not sent it."""

    @abstractmethod
    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the backend; returns those to forward now."""

    @abstractmethod
    def finish(self) -> bytes:
        """Take the proper end of the backend's bytes; returns those that are left to forward."""


class Provider(ABC):
    """One provider's API. Calls come, and replies leave, in the OpenAI dialect."""

    paths: Mapping[Operation, str]
    """Where each operation is served, below the backend's base URL; it serves no others."""
    reserved_headers: frozenset[str] = frozenset()
    """Headers, in lower case, that choose who pays or which version of the API answers. Those of a
    client never reach a backend."""
    shows_error_bodies = False
    """Whether the body of a rejection has the OpenAI shape and may be shown to the client."""

    @abstractmethod
    def credential_headers(self, credential: str | None) -> list[tuple[str, str]]:
        """How the router proves itself, and which version of the API it speaks."""

    @abstractmethod
    def write_request(self, call: Call, upstream_model: str, max_output_tokens: int) -> bytes:
        """The body for the backend; raises ``InvalidRequest`` for what the API cannot express."""

    @abstractmethod
    def read_reply(self, call: Call, body: bytes) -> tuple[bytes, Usage | None, int]:
        """Body for the client, reported usage, and output characters where usage is missing.

        Raises ``ValueError`` for a body that is no reply of the API.
        """

    @abstractmethod
    def open_stream(self, call: Call) -> StreamTranslator:
        """A translator for one stream."""

    @abstractmethod
    def read_error(self, body: bytes) -> str | None:
        """The message of a rejection, fit to be shown to the client; ``None`` without one."""

    def status_meaning(self, status: int) -> StatusMeaning:
        """What a status other than 200 says about the call."""
        return _COMMON_MEANINGS.get(status, "rejected" if 400 <= status < 500 else "failed")
