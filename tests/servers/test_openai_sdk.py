"""The official `openai` SDK, pointed at the router and otherwise unchanged."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.servers.deployment import ALIAS, CHAT, CLAUDE, DEAD, EMBEDDING, HELLO, SECOND, Deployment


def connect(deployed: Deployment, key: str) -> OpenAI:
    """An SDK client that does not try again: the first answer is what counts here."""
    return OpenAI(
        base_url=f"{deployed.router.url}/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture
def client(deployed: Deployment) -> Iterator[OpenAI]:
    with connect(deployed, deployed.key.key) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    """A chat completion comes back as the SDK's own type, its fields filled."""
    reply = client.chat.completions.create(model=CHAT, messages=HELLO)

    assert reply.choices[0].message.content == "You said: Tell me of the sea"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens == 5


@pytest.mark.parametrize("include_usage", [None, False, True])
def test_streaming_chat(client: OpenAI, include_usage: bool | None) -> None:
    """The chunks add up to the buffered answer; usage comes only to those who ask for it."""
    options = {} if include_usage is None else {"stream_options": {"include_usage": include_usage}}
    chunks = list(
        client.chat.completions.create(model=CHAT, messages=HELLO, stream=True, **options)
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reported = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert text == "You said: Tell me of the sea"
    assert len(chunks) > 5
    assert [usage.prompt_tokens for usage in reported] == ([5] if include_usage else [])
    assert all(chunk.choices for chunk in chunks) is not bool(include_usage)


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client: OpenAI, stream: bool) -> None:
    """The legacy endpoint works whole and streamed."""
    reply = client.completions.create(model=CHAT, prompt="Good morning", stream=stream)

    replies = list(reply) if stream else [reply]
    assert "".join(part.choices[0].text for part in replies) == "You said: Good morning"


def test_embeddings(client: OpenAI) -> None:
    """Vectors come back for each input, in order, with their usage."""
    reply = client.embeddings.create(model=EMBEDDING, input=["one", "two words"])

    assert [entry.index for entry in reply.data] == [0, 1]
    assert all(len(entry.embedding) == 16 for entry in reply.data)
    assert reply.usage.prompt_tokens == 3


def test_models(client: OpenAI) -> None:
    """Models are listed and can be retrieved by id and by alias."""
    assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING, CLAUDE, SECOND, DEAD}
    assert client.models.retrieve(CHAT).id == CHAT
    assert client.models.retrieve(ALIAS).id == ALIAS


def test_an_alias_reaches_the_backend_under_the_canonical_name(
    client: OpenAI, deployed: Deployment
) -> None:
    """What a client calls a model is the router's business alone."""
    client.chat.completions.create(model=ALIAS, messages=HELLO)

    assert f'"model":"{CHAT}"'.encode() in deployed.backend.requests[0].body.replace(b" ", b"")


def test_unknown_fields_pass_both_ways(client: OpenAI, deployed: Deployment) -> None:
    """Fields that the router does not know reach the backend; its own reach the client."""
    reply = client.chat.completions.create(
        model=CHAT, messages=HELLO, extra_body={"brand_new": {"deep": [1, None]}}
    )

    assert b'"brand_new"' in deployed.backend.requests[0].body
    assert reply.system_fingerprint == "fp_a"


@pytest.mark.parametrize("key", ["nonsense", "rtr_live_" + "a" * 32 + "_000000", "sk-" + "x" * 40])
def test_a_wrong_key_is_an_authentication_error(deployed: Deployment, key: str) -> None:
    """401 in OpenAI's shape; nothing reaches a backend."""
    with (
        connect(deployed, key) as unknown_caller,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        unknown_caller.chat.completions.create(model=CHAT, messages=HELLO)

    assert caught.value.code == "invalid_api_key"
    assert len(deployed.backend.requests) == 0


def test_an_unknown_model_is_not_found(client: OpenAI, deployed: Deployment) -> None:
    """404 with OpenAI's code, for calls and for look-ups."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-17", messages=HELLO)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert len(deployed.backend.requests) == 0


def test_a_bad_request_names_the_field(client: OpenAI, deployed: Deployment) -> None:
    """400 whose `param` is the culprit; no backend is asked."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=CHAT, messages=HELLO, extra_body={"max_tokens": "many"}
        )

    assert caught.value.param == "max_tokens"
    assert len(deployed.backend.requests) == 0


def test_a_backends_own_refusal_reaches_the_client(client: OpenAI, deployed: Deployment) -> None:
    """What the backend says of the request stays as it said it."""
    deployed.backend.set(error_status=422)
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model=CHAT, messages=HELLO)


def test_a_forbidden_model_is_a_permission_error(deployed: Deployment) -> None:
    """403 for a model that the key may not use; it is not listed either."""
    with connect(deployed, deployed.narrow_key.key) as narrow:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            narrow.chat.completions.create(model=CHAT, messages=HELLO)
        assert [model.id for model in narrow.models.list()] == [EMBEDDING]

    assert caught.value.code == "model_not_allowed"
    assert len(deployed.backend.requests) == 0


def test_a_backend_that_is_down_is_a_503(client: OpenAI) -> None:
    """P12: nobody listens at the only backend, so the answer is quick and says when to return."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=DEAD, messages=HELLO)

    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["Retry-After"]) >= 1


def test_a_busy_backend_is_a_rate_limit_error(client: OpenAI, deployed: Deployment) -> None:
    """R10: the backend's 429 stays one, with its `Retry-After`."""
    deployed.backend.set(error_status=429, retry_after_s=7)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=CHAT, messages=HELLO)

    assert caught.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize("failure", ["cut_stream", "truncate_body"])
def test_a_backend_that_dies_in_a_stream_raises(
    client: OpenAI, deployed: Deployment, failure: str
) -> None:
    """F6: chunks that came are delivered, then the SDK raises; it never looks like an end."""
    deployed.backend.set(failure=failure, cut_after_chunks=3)
    request_id = f"cut-{uuid.uuid4()}"
    stream = client.chat.completions.create(
        model=CHAT, messages=HELLO, stream=True, extra_headers={"X-Request-ID": request_id}
    )
    received = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            received.append(chunk)

    assert len(received) >= 3
    assert caught.value.code == "backend_failed"
    assert deployed.router.line_of(request_id)["outcome"] == "upstream_aborted"


def test_a_stream_that_is_left_is_recorded_as_left(client: OpenAI, deployed: Deployment) -> None:
    """S3, U9: closing the SDK's stream closes the backend's."""
    deployed.backend.set(token_interval_ms=100, tokens_output=1000)
    request_id = f"left-{uuid.uuid4()}"
    with client.chat.completions.create(
        model=CHAT, messages=HELLO, stream=True, extra_headers={"X-Request-ID": request_id}
    ) as stream:
        next(iter(stream))
    deployed.backend.wait_for(lambda fake: fake.aborted == 1)

    assert deployed.router.line_of(request_id)["outcome"] == "client_aborted"
