"""P17, K6: marked secrets go in everywhere; then everything that the router wrote is searched.

The router runs at log level DEBUG, which says most.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.backend.received import Request
from tests.fakes.backend.scripts import reply, serving
from tests.fakes.backend.server import FakeServer, Peer
from tests.servers.deployment import CHAT, CLAUDE, HELLO, ORGANIZATION, Deployment, deploy
from tests.servers.raw_client import Answer, exchange
from tests.servers.router_process import NewKey, wait_until
from tests.servers.stored_records import stored_records

ECHO = "gpt-echo"
"""A model whose backend answers with the credential that it was sent."""
ECHO_CREDENTIAL = "sk-canary-that-comes-back"

PLACEHOLDER = "{canary}"
MARK = "beside-a-canary"
"""A name in metadata, by which records that had a secret are known."""

HEADERS = (
    "X-API-Key: {canary}",
    "Authorization: Bearer {canary}",
    "Authorization: {canary}",
    "Authorization: Basic {canary}",
    "Authorization: Bearer {canary} {canary}",
    "Proxy-Authorization: Bearer {canary}",
    "API-Key: {canary}",
    "X-Goog-Api-Key: {canary}",
    "X-Auth-Token: {canary}",
    "X-Custom: before {canary} after",
    "X-Custom: {canary},{canary}",
    "Cookie: session={canary}; other=1",
    "Referer: https://example.test/?key={canary}",
    "Origin: https://{canary}.test",
    "User-Agent: curl/8 ({canary})",
    "Accept: application/json; key={canary}",
    "Accept-Language: {canary}",
    "X-Request-ID: {canary}",
    "Traceparent: 00-{canary}-00",
    "Tracestate: vendor={canary}",
    "Baggage: key={canary}",
    "Idempotency-Key: {canary}",
    "OpenAI-Organization: {canary}",
    "X-Forwarded-For: {canary}",
    "Forwarded: for={canary}",
    "X-Router-Signature: {canary}",
    "X-Router-Nonce: {canary}",
    "Connection: {canary}",
    "Expect: {canary}",
    "Transfer-Encoding: {canary}",
    "Content-Encoding: {canary}",
    "Content-Length: {canary}",
    "Host: {canary}",
    "Upgrade: {canary}",
    "X_Custom: {canary}",
    "{canary}: value",
    "{canary}",
    ": {canary}",
    " {canary}",
    "X-Custom: \x00{canary}",
    "X-Custom: \xe9{canary}",
)
REQUEST_LINES = (
    "POST /v1/chat/completions?key={canary} HTTP/1.1",
    "POST /v1/chat/completions/{canary} HTTP/1.1",
    "POST /v1/chat/completions#{canary} HTTP/1.1",
    "GET /v1/models?key={canary} HTTP/1.1",
    "GET /v1/models/{canary} HTTP/1.1",
    "GET /v1/models/..%2f{canary} HTTP/1.1",
    "GET /{canary} HTTP/1.1",
    "GET /metrics?key={canary} HTTP/1.1",
    "GET /healthz?key={canary} HTTP/1.1",
    "GET http://{canary}@example.test/v1/models HTTP/1.1",
    "GET http://[{canary}/ HTTP/1.1",
    "{canary} /v1/models HTTP/1.1",
    "GET /v1/models {canary}",
    "GET /v1/models HTTP/1.1 {canary}",
    "GET  {canary}",
    "{canary}",
)
OPENAI_BODIES = (
    "{canary}",
    '"{canary}"',
    '{"model": "{canary}", "messages": [{"role": "user", "content": "hi"}]}',
    '{"model": "gpt-4o", "{canary}": 1, "{canary}": 2}',
    '{"model": "gpt-4o", "messages": "{canary}"}',
    '{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "stream": "{canary}"}',
    '{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "n": {canary}}',
)
NATIVE_BODIES = (
    '{"request_id": "{canary}", "model": "gpt-4o", "payload": "hi"}',
    '{"request_id": "ID", "model": "{canary}", "payload": "hi"}',
    '{"request_id": "ID", "model": "gpt-4o", "payload": "hi", "{canary}": 1}',
    '{"request_id": "ID", "model": "gpt-4o", "payload": "hi", "content_type": "{canary}"}',
    '{"request_id": "ID", "model": "gpt-4o", "payload": "hi", "metadata": {"{canary}": 1}}',
    '{"request_id": "ID", "model": "gpt-4o", "payload": "hi", "parameters": "{canary}"}',
    '{"request_id": "ID", "model": "gpt-4o", "payload": "hi", "hmac_signature": "{canary}"}',
    '{"request_id": "ID", "model": "gpt-4o", "payload": "{canary}", '
    '"content_type": "application/json"}',
)


@dataclass
class Canaries:
    """The router, the secrets that went in, and all that came out."""

    deployed: Deployment
    keys: list[NewKey]
    answers: list[Answer]

    @property
    def secrets(self) -> list[str]:
        """What may be found nowhere."""
        held = [secret for key in self.keys for secret in (key.key, key.signing_secret)]
        return [*held, *self.deployed.credentials.values()]

    def send(self, data: str) -> Answer:
        """Send this text and keep the answer."""
        answer = exchange(self.deployed.router.port, data.encode("latin-1"))
        self.answers.append(answer)
        return answer

    def found_in(self, data: bytes, *, but: str = "") -> list[str]:
        """Which secrets occur in some bytes, but for one that may."""
        return [secret for secret in self.secrets if secret != but and secret.encode() in data]


def _echo(peer: Peer, request: Request) -> bool:
    """Answer with the status that the prompt asks for and with the credential that was sent."""
    status = int(request.fields["messages"][0]["content"])
    text = f"Incorrect API key provided: {request.header('authorization')}"
    body = json.dumps({"error": {"message": text, "type": "x", "param": None, "code": None}})
    quoting = (f"WWW-Authenticate: {text}", f"Retry-After: {text}")
    whole = reply(body.encode(), status, headers=("Content-Type: application/json", *quoting))
    peer.send(whole.replace(b" Whatever\r\n", f" {text}\r\n".encode(), 1))
    return True


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    """A router of its own, with a backend that gives credentials away."""
    directory = tmp_path_factory.mktemp("canary")
    settings = {"ROUTER_LOG_LEVEL": "DEBUG", "ECHO_CREDENTIAL": ECHO_CREDENTIAL}
    with FakeServer(serving(_echo)) as server, deploy(directory, **settings) as deployed:
        deployed.credentials["ECHO_CREDENTIAL"] = ECHO_CREDENTIAL
        deployed.document["models"].append({"id": ECHO})
        deployed.document["backends"].append(
            {
                "id": "echo",
                "kind": "openai",
                "base_url": f"{server.url}/v1",
                "credential": "env:ECHO_CREDENTIAL",
            }
        )
        deployed.document["policies"].append(
            {"organization": "*", "model": ECHO, "backends": [{"id": "echo"}]}
        )
        assert deployed.router.apply(deployed.document).returncode == 0
        signing = deployed.router.create_key(ORGANIZATION, "--require-signature")
        yield Canaries(deployed, [deployed.key, deployed.narrow_key, signing], [])


def chat_body(content: str = "hi", model: str = CHAT) -> str:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})


def post(line: str, headers: tuple[str, ...], body: str) -> str:
    """A request as text; ``line`` may be any request line."""
    head = (line, *headers, "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*head, "", body))


def authenticated(key: str) -> tuple[str, ...]:
    return ("Host: router.example", f"X-API-Key: {key}")


CHAT_LINE = "POST /v1/chat/completions HTTP/1.1"
NATIVE_LINE = "POST /v1/inference HTTP/1.1"


@pytest.mark.parametrize("presented", ["nobody", "itself", "another"])
def test_secrets_in_headers(canaries: Canaries, presented: str) -> None:
    """A key in any header, beside no key, itself or another one, is in no answer."""
    own, other, signing = canaries.keys
    served = 0
    before = len(canaries.deployed.backend.requests)
    for secret in (own.key, signing.signing_secret):
        key = {"nobody": None, "itself": own.key, "another": other.key}[presented]
        head = ("Host: router.example",) if key is None else authenticated(key)
        # The narrow key may use the embedding model alone.
        for template in HEADERS:
            odd = template.replace(PLACEHOLDER, secret)
            body = chat_body()
            if presented == "another":
                body = json.dumps({"model": "text-embedding-3-small", "input": "hi"})
                answer = canaries.send(post("POST /v1/embeddings HTTP/1.1", (*head, odd), body))
            else:
                answer = canaries.send(post(CHAT_LINE, (*head, odd), body))
            assert answer.status < 500
            served += answer.status == 200
    assert len(canaries.deployed.backend.requests) - before == served
    # Beside no key it is one itself in the two headers for keys, unless it has to sign.
    assert (served == 2) if presented == "nobody" else (served > 2)


def test_secrets_in_request_lines(canaries: Canaries) -> None:
    """A key in a target, or in what is no request line at all, is in no answer."""
    for secret in (canaries.keys[0].key, canaries.keys[2].signing_secret):
        for template in REQUEST_LINES:
            line = template.replace(PLACEHOLDER, secret)
            for head in (("Host: a",), authenticated(canaries.keys[0].key)):
                assert canaries.send(post(line, head, chat_body())).status < 500


def test_a_key_in_a_body_that_is_refused(canaries: Canaries) -> None:
    """A refusal that names the culprit does not repeat the caller's key."""
    key = canaries.keys[0].key
    for line, templates in ((CHAT_LINE, OPENAI_BODIES), (NATIVE_LINE, NATIVE_BODIES)):
        for template in templates:
            body = template.replace("ID", str(uuid.uuid4())).replace(PLACEHOLDER, key)
            answer = canaries.send(post(line, authenticated(key), body))
            assert answer.status in range(400, 500), template


def test_secrets_that_are_recorded(canaries: Canaries) -> None:
    """P17: what a client writes into its metadata is recorded, and who asked for which model."""
    key, store = canaries.keys[0].key, canaries.deployed.router.data_dir / "records.db"
    served = 0
    for secret in (*(key.key for key in canaries.keys), canaries.keys[2].signing_secret):
        for model, status in (("gpt-4o", 200), (secret, 404)):
            served += status == 200
            fields = {
                "request_id": str(uuid.uuid4()),
                "model": model,
                "payload": "hi",
                "metadata": {secret: "name", MARK: f"Bearer {secret}", "plain": secret},
            }
            answer = canaries.send(post(NATIVE_LINE, authenticated(key), json.dumps(fields)))
            assert answer.status == status

    def recorded() -> bool:
        found = stored_records(f"sqlite:///{store}", "usage")
        return sum(MARK.encode() in row for row in found) == served

    wait_until(recorded, 10, "they are in the store")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 502, 503, 504, 529])
def test_a_backend_that_repeats_the_credential(canaries: Canaries, status: int) -> None:
    """Whatever a backend answers with, its error does not carry our credential to the client."""
    key = canaries.keys[0].key
    answer = canaries.send(
        post(CHAT_LINE, authenticated(key), chat_body(content=str(status), model=ECHO))
    )

    assert answer.status >= 400
    assert canaries.found_in(answer.body) == []


def test_signed_and_ordinary_calls(canaries: Canaries) -> None:
    """Calls that succeed, to each kind of backend, streamed too."""
    key = canaries.keys[0]
    for model in (CHAT, CLAUDE):
        for stream in (False, True):
            body = json.dumps({"model": model, "messages": HELLO, "stream": stream})
            assert canaries.send(post(CHAT_LINE, authenticated(key.key), body)).status == 200
    signing = canaries.keys[2]
    body = chat_body()
    file = canaries.deployed.router.directory / "body.json"
    file.write_text(body)
    signed = canaries.deployed.router.ctl(
        *("requests", "sign", "--key-id", signing.id, "--path", "/v1/chat/completions"),
        *("--body-file", str(file)),
    )
    assert signed.returncode == 0, signed.stderr
    head = (*authenticated(signing.key), *signed.stdout.strip().split("\n"))
    assert canaries.send(post(CHAT_LINE, head, body)).status == 200


# --- the search, after all of that ------------------------------------------------------------


def test_no_secret_in_any_answer(canaries: Canaries) -> None:
    """P17: neither heads nor bodies."""
    assert len(canaries.answers) > 100
    for answer in canaries.answers:
        told = str(answer.headers).encode() + answer.body
        assert canaries.found_in(told) == []


def test_no_secret_in_the_log(canaries: Canaries) -> None:
    """P17: not at log level DEBUG either."""
    assert len(canaries.deployed.router.log()) > 100
    lines = canaries.deployed.router.log_text().split("\n")
    assert [line for line in lines if canaries.found_in(line.encode())] == []
    assert any('"REQUEST_DENIED"' in line for line in lines), "the agent's audit log is not here"


def test_no_secret_in_the_metrics(canaries: Canaries) -> None:
    """P17: labels come from closed sets."""
    metrics = canaries.deployed.router.metrics()
    assert "api_router_requests_total" in metrics
    assert canaries.found_in(metrics.encode()) == []


def test_no_secret_reached_a_backend(canaries: Canaries) -> None:
    """P17: a backend sees its own credential, in the one header for it, and nothing else."""
    backend = canaries.deployed.backend
    credential = canaries.deployed.credentials["MOCK_CREDENTIAL"]
    assert len(backend.requests) > 50
    for request in backend.requests:
        assert request.values("authorization") == [f"Bearer {credential}"]
        rest = [pair for pair in request.headers if pair[0].lower() != "authorization"]
        seen = repr((request.target, rest)).encode() + request.body
        assert canaries.found_in(seen) == []
    assert canaries.deployed.claude.requests
    for sent in canaries.deployed.claude.requests:
        assert sent.values("x-api-key") == [canaries.deployed.credentials["CLAUDE_CREDENTIAL"]]
        rest = [pair for pair in sent.headers if pair[0].lower() != "x-api-key"]
        assert canaries.found_in(repr((sent.target, rest)).encode() + sent.body) == []


def test_no_secret_on_disk(canaries: Canaries) -> None:
    """P17: the data directory knows keys by their hashes; spool, record store and dead letters
    are in it."""
    files = [path for path in canaries.deployed.router.data_dir.rglob("*") if path.is_file()]
    assert {"data.mdb", "pepper", "records.db"} <= {path.name for path in files}
    segments = b"".join(path.read_bytes() for path in files if path.suffix == ".seg")
    assert MARK.encode() in segments
    for path in files:
        assert canaries.found_in(path.read_bytes()) == [], path


def test_no_secret_in_the_process_list(canaries: Canaries) -> None:
    """P17: whoever lists the processes of the host learns nothing."""
    router = canaries.deployed.router
    for pid in (router.pid, *router.worker_pids()):
        assert canaries.found_in(Path(f"/proc/{pid}/cmdline").read_bytes()) == []
