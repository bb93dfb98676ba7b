"""The OpenAI dialect: bytes pass, and the few that do not are accounted for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.router_stand import RouterStand, chat_body

CHAT = "/v1/chat/completions"
ODD = (
    b'{ "model" :"gpt-4o",\t"zz":[1,{"a":null}], "messages":[ {"content":"caf\\u00e9 \xc3\xa9",'
    b'"role":"user","x":1.50} ],"temperature":1e0 }\r\n'
)
"""A body that nobody would write like this a second time."""

USAGE = b'{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"more":{"x":1}}'


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


HELLO = event(b'{"id":"1","choices":[{"index":0,"delta":{"content":"h\xc3\xa9"},"odd":[1]}],"y":2}')
STOP = event(b'{"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
COUNTED = event(b'{"id":"1","choices":[],"usage":' + USAGE + b"}")
DONE = event(b"[DONE]")


# --- requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ODD),
        ("/v1/completions", b'{"prompt":["a" ,"b"],  "model":"gpt-4o","suffix":null}'),
        ("/v1/embeddings", b'{"input":[1,2 ,3],"model":"gpt-4o","dimensions":4}'),
    ],
)
def test_a_request_passes_byte_for_byte(stand: RouterStand, path: str, body: bytes) -> None:
    """P2: where nothing has to change, nothing does."""
    assert stand.call("POST", path, body=body).status == 200
    [request] = stand.backends.first.requests
    assert request.body == body
    assert request.target == path


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt", "gpt-4o"),
        ("vendor/gpt-4o", "gpt-4o"),
        ("renamed", "vendor-name-of-it"),
        ("other-name", "vendor-name-of-it"),
    ],
)
def test_names_of_models(stand: RouterStand, asked: str, sent: str) -> None:
    """Aliases and variants: the backend gets its own name, and every other field as it was."""
    body = json.loads(ODD) | {"model": asked}
    assert stand.call("POST", CHAT, json=body).status == 200
    [request] = stand.backends.first.requests
    assert json.loads(request.body) == body | {"model": sent}
    canonical = "gpt-4o" if sent == "gpt-4o" else "renamed"
    assert stand.line["model"] == canonical


def test_usage_is_asked_for_in_every_stream(stand: RouterStand) -> None:
    """Without it no stream could be priced; other options stay."""
    stand.chat(stream=True, stream_options={"odd": 1}, zz=[1])
    [request] = stand.backends.first.requests
    assert json.loads(request.body) == {
        **chat_body(stream=True, zz=[1]),
        "stream_options": {"odd": 1, "include_usage": True},
    }


def test_a_stream_that_asks_itself_is_not_rewritten(stand: RouterStand) -> None:
    """P2: the client's own bytes again."""
    body = b'{"stream_options":{"include_usage" :true},"stream":true,' + ODD[2:]
    assert stand.call("POST", CHAT, body=body).status == 200
    [request] = stand.backends.first.requests
    assert request.body == body


# --- replies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{ "zz" : [1.50], "choices":[], "usage":' + USAGE + b"}\r\n"),
        (CHAT, b"{}"),
        ("/v1/embeddings", b'{"data":[ {"embedding":[0.10]} ],"usage":{"prompt_tokens":3}}'),
    ],
)
def test_a_reply_passes_byte_for_byte(stand: RouterStand, path: str, body: bytes) -> None:
    """P2: unknown fields, spelling and white space included."""
    stand.backends.plain.will_answer(body)
    reply = stand.call("POST", path, json=chat_body("plain") | {"input": "x"})
    assert (reply.status, reply.body) == (200, body)
    assert reply.header("Content-Type") == "application/json"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "chunks",
    [
        [HELLO, STOP, COUNTED, DONE],
        [b": comment\n\n", HELLO + STOP, COUNTED + DONE],
        [bytes([byte]) for byte in HELLO + STOP + COUNTED + DONE],
        [(HELLO + STOP + COUNTED + DONE).replace(b"\n", b"\r\n")],
    ],
)
def test_a_stream_passes_byte_for_byte(stand: RouterStand, chunks: list[bytes], own: bool) -> None:
    """U7: all but the chunk with the usage, and that one too for a client that asked for it."""
    stand.backends.plain.will_stream(*chunks)
    options = {"stream_options": {"include_usage": True}} if own else {}
    reply = stand.chat("plain", stream=True, **options)
    whole = b"".join(chunks)
    extra = COUNTED.replace(b"\n", b"\r\n") if b"\r" in whole else COUNTED
    assert reply.body == (whole if own else whole.replace(extra, b""))
    line = stand.line
    assert (line["tokens_input"], line["tokens_output"]) == (3, 5)
    assert (line["usage_source"], line["cost_nanos"]) == ("reported", 3 * 2_500 + 5 * 10_000)
    assert line["bytes_sent"] == len(reply.body)


def test_usage_beside_choices_stays_in_the_stream(stand: RouterStand) -> None:
    """U7: only a chunk that holds nothing else is ours to leave out."""
    both = STOP.replace(b'"id"', b'"usage":' + USAGE + b',"id"')
    stand.backends.plain.will_stream(HELLO, both, DONE)
    reply = stand.chat("plain", stream=True)
    assert reply.body == HELLO + both + DONE
    assert stand.line["usage_source"] == "reported"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("model", ["gpt-4o", "claude"])
def test_streamed_and_whole_cost_the_same(stand: RouterStand, path: str, model: str) -> None:
    """U7: for both dialects of backends."""
    body = chat_body(model, "say the same thing") | {"prompt": "say the same thing"}
    for more in ({}, {"stream": True}):
        assert stand.call("POST", path, json=body | more).status == 200
    one, other = stand.lines
    for name in ("tokens_input", "tokens_output", "cost_nanos", "usage_source", "outcome"):
        assert one[name] == other[name]
    assert one["cost_nanos"] > 0


def test_a_stream_that_breaks_ends_with_an_error(stand: RouterStand) -> None:
    """F6: an event that makes the SDKs raise; no end that looks like one."""
    stand.backends.plain.will_stream(HELLO, whole=False)
    reply = stand.chat("plain", stream=True)
    assert reply.body.startswith(HELLO)
    assert json.loads(reply.events[-1].data)["error"]["code"] == "backend_failed"
    assert b"[DONE]" not in reply.body
    assert stand.line["outcome"] == "upstream_aborted"
    assert stand.line["bytes_sent"] == len(reply.body)


def test_an_error_event_of_the_backend_passes_and_ends_the_stream(stand: RouterStand) -> None:
    """What the backend has to say is said; the record knows that it was no success."""
    words = event(b'{"error":{"message":"overloaded","type":"x","param":null,"code":null}}')
    stand.backends.plain.will_stream(HELLO, words)
    reply = stand.chat("plain", stream=True)
    assert reply.body.startswith(HELLO + words)
    assert stand.line["outcome"] == "upstream_aborted"


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        (CHAT, {"model": None}, "model"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "x"}, "messages"),
        (CHAT, {"messages": [{"role": "user"}, 1]}, "messages[1]"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"max_completion_tokens": "9"}, "max_completion_tokens"),
        (CHAT, {"n": 1.5}, "n"),
        (CHAT, {"best_of": "4"}, "best_of"),
        (CHAT, {"n_cmpl": "4"}, "n_cmpl"),
        (CHAT, {"n_predict": -1}, "n_predict"),
        ("/v1/completions", {"n_predict": -1}, "n_predict"),
        (CHAT, {"temperature": "hot"}, "temperature"),
        (CHAT, {"top_p": True}, "top_p"),
        (CHAT, {"stream": 1}, "stream"),
        (CHAT, {"stream_options": {}}, "stream_options"),
        (CHAT, {"stream": True, "stream_options": []}, "stream_options"),
        (
            CHAT,
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": 7}, "prompt"),
        ("/v1/embeddings", {"input": {}}, "input"),
    ],
)
def test_a_refusal_names_the_field(
    stand: RouterStand, path: str, changes: dict[str, Any], param: str
) -> None:
    """400 in OpenAI's shape; no backend is asked."""
    body = chat_body() | {"prompt": "x", "input": "x"} | changes
    reply = stand.call("POST", path, json=body)
    assert reply.status == 400
    assert (reply.json["error"]["param"], reply.json["error"]["code"]) == (param, None)
    assert stand.received() == 0


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"Model": "dear"}, "Model"),
        ({"MODEL": None}, "MODEL"),
        ({"Messages": []}, "Messages"),
        ({"me\u017f\u017fages": []}, "me\u017f\u017fages"),
        ({"max_to\u212aens": 9}, "max_to\u212aens"),
        ({"Max_Completion_Tokens": 9}, "Max_Completion_Tokens"),
        ({"N": 100}, "N"),
        ({"Best_Of": 100}, "Best_Of"),
        ({"N_Predict": 100}, "N_Predict"),
        ({"Service_Tier": "priority"}, "Service_Tier"),
        ({"Web_Search_Options": {}}, "Web_Search_Options"),
        ({"Tools": []}, "Tools"),
        ({"Stream": False}, "Stream"),
        ({"Stream_Options": {}}, "Stream_Options"),
        ({"tools": [{"type": "function", "Type": "web_search"}]}, "tools[0].Type"),
        (
            {"stream": True, "stream_options": {"Include_Usage": False}},
            "stream_options.Include_Usage",
        ),
    ],
)
def test_a_name_in_other_letters_is_refused(
    stand: RouterStand, path: str, changes: dict[str, Any], param: str
) -> None:
    """Servers in Go, such as Ollama, read ``Model`` as ``model``: a call could be paid for as one
    model and served by another."""
    body = chat_body() | {"prompt": "x", "input": "x"} | changes
    reply = stand.call("POST", path, json=body)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
    assert stand.received() == 0


def test_other_names_pass_in_any_letters(stand: RouterStand) -> None:
    """What only the backend knows is its own affair; so are the names in a tool's schema."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"ID": 1, "id": 2}}}
    body = chat_body(topK=4, extraBody={"Model": 1}, größe=2, tools=[tool])
    assert stand.call("POST", CHAT, json=body).status == 200


def test_a_backends_refusal_passes_with_its_status(stand: RouterStand) -> None:
    """The SDKs choose their exception by the status; the words are the backend's own."""
    words = b'{"error": {"message": "too long", "type": "t", "param": "p", "code": "c"}}'
    for status in (400, 404, 409, 413, 422, 418):
        stand.backends.plain.will_answer(words, status=status)
        reply = stand.chat("plain")
        assert (reply.status, reply.body) == (status, words)


@pytest.mark.parametrize("status", [401, 403])
def test_a_backend_that_refuses_the_router_is_no_fault_of_the_client(
    stand: RouterStand, status: int
) -> None:
    """F1: 502, and nothing of what the backend said about our credential."""
    stand.backends.plain.will_answer(b'{"error": {"message": "sk-1 is wrong"}}', status=status)
    reply = stand.chat("plain")
    assert reply.status == 502
    assert b"sk-1" not in reply.body


@pytest.mark.parametrize("path", ["/v1/embeddings"])
def test_an_operation_that_no_backend_of_the_model_has(stand: RouterStand, path: str) -> None:
    """Anthropic's API has no embeddings; the client asked for something that is not there."""
    reply = stand.call("POST", path, json={"model": "claude", "input": "x"})
    assert (reply.status, reply.json["error"]["param"]) == (400, "model")


# --- models ---------------------------------------------------------------------------------


def models_of(stand: RouterStand, key: str) -> list[str]:
    reply = stand.call("GET", "/v1/models", key=key)
    return [card["id"] for card in reply.json["data"]]


def test_a_key_sees_the_models_that_it_can_use(stand: RouterStand) -> None:
    """By its own list and by the policies of its organization."""
    everything = models_of(stand, "main")
    assert "gpt-4o" in everything
    assert "nowhere" not in everything
    assert models_of(stand, "limited") == ["gpt-4o", "unpriced"]
    assert models_of(stand, "narrow") == ["gpt-4o"]


def test_a_model_is_shown_under_the_name_that_was_asked_for(stand: RouterStand) -> None:
    """Ids, aliases, and names with a slash."""
    for name in ("gpt-4o", "gpt", "vendor/gpt-4o"):
        reply = stand.call("GET", f"/v1/models/{name}")
        assert reply.json == {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "api-router",
        }


@pytest.mark.parametrize(
    ("key", "name", "status"),
    [
        ("main", "gpt-5", 404),
        ("main", "nowhere", 404),
        ("narrow", "unpriced", 404),
        ("limited", "renamed", 403),
        ("main", "gpt-4o/", 404),
        ("main", "GPT-4O", 404),
    ],
)
def test_a_model_that_is_not_listed_is_not_found_either(
    stand: RouterStand, key: str, name: str, status: int
) -> None:
    """A model without a policy used to be found here, and nowhere else."""
    reply = stand.call("GET", f"/v1/models/{name}", key=key)
    assert reply.status == status
    assert name not in models_of(stand, key)
    called = stand.call("POST", CHAT, key=key, json=chat_body(name))
    assert called.status == status
