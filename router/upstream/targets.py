"""Where a backend is, and how every request to it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from router.call import Operation
from router.config.document import Backend, OutputLimitField
from router.providers.provider import Provider
from router.providers.provider_table import PROVIDERS
from router.upstream.connection_pool import Endpoint
from router.upstream.headers import write_head

_PORTS: Final = {"http": 80, "https": 443}
_OPENAI_HOSTS: Final = (".api.openai.com", ".openai.azure.com")
CREDENTIAL_FRESH_S: Final = 10.0
"""A rotated credential is used after at most this long."""

ReadCredential = Callable[[str], str | None]


class CredentialMissing(Exception):
    """The backend has a reference to a credential, and there is none behind it."""


class Target:
    """One backend, ready to be written to. Built once per revision of the document."""

    def __init__(self, backend: Backend, read_credential: ReadCredential) -> None:
        self.backend = backend
        self.provider: Provider = PROVIDERS[backend.kind]
        self.endpoint: Endpoint
        self.endpoint, self._host, self._prefix = endpoint_of(backend.base_url)
        self.output_limit_field = backend.output_limit_field or _output_limit_field(backend)
        self._read_credential = read_credential
        self._heads: dict[Operation, bytes] = {}
        self._read_at_s = float("-inf")
        self._credential: bytes | None = None

    def url(self, operation: Operation) -> str:
        """The URL as logs and ``requests`` see it."""
        return self.backend.base_url + self.provider.paths[operation]

    def head(self, operation: Operation) -> bytes:
        """Request line and fixed headers; raises :class:`CredentialMissing`."""
        if self.backend.credential is not None:
            self._refresh()
        head = self._heads.get(operation)
        if head is None:
            head = self._heads[operation] = self._write(operation)
        return head

    def repeats_credential(self, reply: bytes) -> bool:
        """Whether a reply quotes the credential that was sent to the backend."""
        return self._credential is not None and self._credential in reply

    def _refresh(self) -> None:
        now_s = time.monotonic()
        if now_s - self._read_at_s > CREDENTIAL_FRESH_S:
            self._heads.clear()
            self._read_at_s = now_s

    def _write(self, operation: Operation) -> bytes:
        reference, credential = self.backend.credential, None
        if reference is not None:
            credential = self._read_credential(reference)
            if not credential or not credential.isascii() or not credential.isprintable():
                raise CredentialMissing(self.backend.id)
            self._credential = credential.encode("ascii")
        headers = [
            ("Host", self._host),
            ("Content-Type", "application/json"),
            # Usage is read from the bytes that pass through: they must not be compressed.
            ("Accept-Encoding", "identity"),
            *self.provider.credential_headers(credential),
        ]
        path = self._prefix + self.provider.paths[operation]
        return write_head(f"POST {path} HTTP/1.1", headers)


def _output_limit_field(backend: Backend) -> OutputLimitField:
    """OpenAI's reasoning models refuse ``max_tokens``; most other servers know no other name."""
    host = "." + (urlsplit(backend.base_url).hostname or "")
    return "max_completion_tokens" if host.endswith(_OPENAI_HOSTS) else "max_tokens"


def endpoint_of(base_url: str) -> tuple[Endpoint, str, str]:
    """Endpoint, ``Host`` value and path prefix of a backend's validated base URL."""
    parts = urlsplit(base_url)
    scheme, host = parts.scheme, parts.hostname or ""
    port = parts.port or _PORTS[scheme]
    name = f"[{host}]" if ":" in host else host
    shown = name if port == _PORTS[scheme] else f"{name}:{port}"
    return (scheme, host, port), shown, parts.path
