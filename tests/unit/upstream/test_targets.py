"""What every request to a backend begins with, and whose credential it carries."""

from __future__ import annotations

from typing import Any

import pytest

from router.config.document import Backend
from router.upstream import targets
from router.upstream.targets import CREDENTIAL_FRESH_S, CredentialMissing, Target


class Vault:
    """Credentials by reference, with every look-up noted."""

    def __init__(self, **secrets: str) -> None:
        self.secrets: dict[str, str | None] = {**secrets}
        self.asked: list[str] = []

    def read(self, reference: str) -> str | None:
        """What is behind the reference now."""
        self.asked.append(reference)
        return self.secrets.get(reference.removeprefix("env:"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that targets see; one element, in seconds."""
    now_s = [1000.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now_s[0]

    monkeypatch.setattr(targets, "time", Time)
    return now_s


def lines(head: bytes) -> list[str]:
    return head.decode("ascii").split("\r\n")[:-1]


def test_an_openai_head_is_fixed() -> None:
    """Host, type and credential come from configuration alone."""
    vault = Vault(KEY="sk-1")
    target = Target(Backend("b", "openai", "https://api.example:8443/v1", "env:KEY"), vault.read)
    assert lines(target.head("chat")) == [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: api.example:8443",
        "Content-Type: application/json",
        "Accept-Encoding: identity",
        "Authorization: Bearer sk-1",
    ]
    assert target.endpoint == ("https", "api.example", 8443)
    assert target.url("chat") == "https://api.example:8443/v1/chat/completions"


def test_an_anthropic_head_carries_its_version() -> None:
    """That API has its own headers for credential and version."""
    target = Target(
        Backend("b", "anthropic", "https://a.example/v1", "env:KEY"), Vault(KEY="k").read
    )
    assert lines(target.head("chat"))[0] == "POST /v1/messages HTTP/1.1"
    assert "x-api-key: k" in lines(target.head("chat"))
    assert any(line.startswith("anthropic-version: ") for line in lines(target.head("chat")))
    assert not any(line.startswith("Authorization") for line in lines(target.head("chat")))


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("chat", "/v1/chat/completions"),
        ("completions", "/v1/completions"),
        ("embeddings", "/v1/embeddings"),
    ],
)
def test_each_operation_has_its_path(operation: object, path: str) -> None:
    """Below the backend's own prefix."""
    target = Target(Backend("b", "openai", "http://gpu/v1"), Vault().read)
    assert lines(target.head(operation))[0] == f"POST {path} HTTP/1.1"  # type: ignore[arg-type]


def test_a_backend_without_a_credential_gets_none() -> None:
    """And nobody looks for one."""
    vault = Vault()
    target = Target(Backend("b", "openai", "http://gpu/v1"), vault.read)
    assert not any("uthorization" in line for line in lines(target.head("chat")))
    assert vault.asked == []


def test_a_head_is_written_once(clock: list[float]) -> None:
    """Not per call: reading a credential may mean reading a file."""
    vault = Vault(KEY="sk-1")
    target = Target(Backend("b", "openai", "http://gpu/v1", "env:KEY"), vault.read)
    for _ in range(100):
        target.head("chat")
        clock[0] += CREDENTIAL_FRESH_S / 200
    assert vault.asked == ["env:KEY"]


def test_a_rotated_credential_is_picked_up(clock: list[float]) -> None:
    """After ten seconds at most, for every operation."""
    vault = Vault(KEY="sk-old")
    target = Target(Backend("b", "openai", "http://gpu/v1", "env:KEY"), vault.read)
    assert b"Bearer sk-old" in target.head("chat")
    vault.secrets["KEY"] = "sk-new"
    clock[0] += CREDENTIAL_FRESH_S / 2
    assert b"Bearer sk-old" in target.head("chat")
    clock[0] += CREDENTIAL_FRESH_S
    assert b"Bearer sk-new" in target.head("chat")
    assert b"Bearer sk-new" in target.head("embeddings")
    assert target.repeats_credential(b"invalid key sk-new")
    assert not target.repeats_credential(b"invalid key")


def test_a_credential_that_vanished_is_used_no_longer(clock: list[float]) -> None:
    """A revoked file does not live on in memory, and its return is noticed at once."""
    vault = Vault(KEY="sk-1")
    target = Target(Backend("b", "openai", "http://gpu/v1", "env:KEY"), vault.read)
    target.head("chat")
    vault.secrets["KEY"] = None
    clock[0] += CREDENTIAL_FRESH_S * 2
    for _ in range(2):
        with pytest.raises(CredentialMissing):
            target.head("chat")
    vault.secrets["KEY"] = "sk-2"
    assert b"Bearer sk-2" in target.head("chat")


@pytest.mark.parametrize("secret", ["", "sk\r\nX-Evil: 1", "sk\n", "sk\x00", "schlüssel", "sk\x7f"])
def test_a_credential_that_cannot_stand_in_a_header_is_none(secret: str) -> None:
    """A file with a stray line break must not become a header of its own."""
    vault = Vault(KEY=secret)
    target = Target(Backend("b", "openai", "http://gpu/v1", "env:KEY"), vault.read)
    with pytest.raises(CredentialMissing):
        target.head("chat")


@pytest.mark.parametrize(
    ("base_url", "configured", "field"),
    [
        ("https://api.openai.com/v1", None, "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", None, "max_completion_tokens"),
        ("https://acme.openai.azure.com/openai/v1", None, "max_completion_tokens"),
        ("https://notapi.openai.com.example/v1", None, "max_tokens"),
        ("http://127.0.0.1:8000/v1", None, "max_tokens"),
        ("http://127.0.0.1:8000/v1", "max_completion_tokens", "max_completion_tokens"),
        ("https://api.openai.com/v1", "max_tokens", "max_tokens"),
    ],
)
def test_the_name_of_the_bound_on_output(base_url: str, configured: Any, field: str) -> None:
    """OpenAI's newer models refuse the name that all others know."""
    backend = Backend("b", "openai", base_url, output_limit_field=configured)
    assert Target(backend, Vault().read).output_limit_field == field
