"""The one call that every subject of the benchmark answers, and the backend's one reply."""

from __future__ import annotations

import json

PATH = "/v1/chat/completions"
API_KEY = "bench-test-key"
MODEL = "gpt-4o"

CALL_BODY = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "Say hello to the benchmark."}]}
).encode()

REPLY_BODY = json.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello! How can I help you today?"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 13, "completion_tokens": 9, "total_tokens": 22},
    }
).encode()


def http_request(host: str, port: int) -> bytes:
    """The call's bytes on the wire, as an HTTP client with a keep-alive connection sends them."""
    head = (
        f"POST {PATH} HTTP/1.1\r\n"
        f"Host: {host}:{port}\r\n"
        "User-Agent: router-benchmark\r\n"
        "Accept: application/json\r\n"
        "Content-Type: application/json\r\n"
        f"X-API-Key: {API_KEY}\r\n"
        f"Content-Length: {len(CALL_BODY)}\r\n"
        "\r\n"
    )
    return head.encode() + CALL_BODY


def http_reply(body: bytes, status: str = "200 OK") -> bytes:
    """A JSON reply's bytes on the wire, on a connection that stays open."""
    head = (
        f"HTTP/1.1 {status}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "\r\n"
    )
    return head.encode() + body
