"""What a provider does for the forwarder; where most providers agree, it is done here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(slots=True)
class ReadReply:
    """What is in a whole reply."""

    body: bytes
    """For the client."""
    usage: Usage | None
    output_bytes: int = 0
    """Bytes of the text generated, where the usage has to be estimated."""
    usage_at_start: Usage | None = None
    """What the reply reports of the input, where it does not count its output."""

    @property
    def is_empty(self) -> bool:
        """Whether the reply has neither text nor usage."""
        return self.usage is None and self.usage_at_start is None and not self.output_bytes


class StreamTranslator(ABC):
    """Turns a backend's stream into the OpenAI dialect and remembers what the stream says.

    ``feed`` and ``finish`` raise ``ValueError`` when the stream makes no sense.
    """

    usage_at_start: Usage | None = None
    """What the backend reported of the input, for a stream whose output has to be estimated."""
    output_bytes = 0
    """Bytes of the text generated so far, to estimate the usage of a stream that breaks off."""
    complete = False
    """The stream came to its proper end."""
    error: str | None = None
    """Why the backend gave up in the middle of the stream; the client is not sent it."""
    _report: Usage | None = None
    _reported_bytes = 0

    @property
    def usage(self) -> Usage | None:
        """The backend's last good report; ``None`` where text has come that no report counts."""
        report = self._report
        if report is None or (self.complete and (report.tokens_output or not self.output_bytes)):
            return report
        counted = report.tokens_output and self._reported_bytes == self.output_bytes
        return report if counted else None

    def note_usage(self, report: Usage) -> None:
        """Remember a report. A 0 in it replaces no count of an earlier one: some backends send
        zeros at the end."""
        earlier = self._report
        if earlier is not None and earlier.tokens_output and not report.tokens_output:
            return
        start = self.usage_at_start
        if start is not None and not report.tokens_input:
            report = replace(
                report, tokens_input=start.tokens_input, tokens_cached=start.tokens_cached
            )
        self._report, self._reported_bytes = report, self.output_bytes
        if report.tokens_input:
            self.usage_at_start = report

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
    def write_request(
        self,
        call: Call,
        upstream_model: str,
        max_output_tokens: int,
        *,
        output_limit_field: str = "max_tokens",
    ) -> bytes:
        """The body for the backend; raises ``InvalidRequest`` for what the API cannot express.

        ``output_limit_field`` bounds a chat's answer at this backend.
        """

    @abstractmethod
    def read_reply(self, call: Call, body: bytes) -> ReadReply:
        """The body for the client, and its usage as far as it is reported.

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
