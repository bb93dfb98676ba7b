"""Requests that no client should send, drawn at random; equal seeds give equal requests.

``wrong`` draws a request of which it is known what is wrong with it, so no backend may ever see
it. ``mutated`` damages a good one blindly; nobody knows what comes out, only that it may not hurt.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tests.servers.deployment import CHAT, CLAUDE, EMBEDDING

Dialect = Literal["native", "openai", "either"]

MAX_BODY_BYTES = 10 * 1024 * 1024
"""`ROUTER_MAX_BODY_BYTES` as it is unless set."""

JSON_HEADERS = ("Content-Type: application/json",)
UUID = "6f9b3e0a-3c1d-4a58-9c0f-2f1f4f6b7a10"

GOOD: dict[str, Any] = {
    "/v1/chat/completions": {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": CHAT, "prompt": "hi"},
    "/v1/embeddings": {"model": EMBEDDING, "input": "hi"},
    "/v1/inference": {"request_id": UUID, "model": CHAT, "payload": "hi"},
}
PATHS = tuple(GOOD)


@dataclass(frozen=True)
class Request:
    """Bytes for a connection of their own."""

    what: str
    data: bytes
    dialect: Dialect
    """Whose shape an error has."""
    statuses: tuple[int, ...]
    """What may be answered; empty for anything below 500. 0 stands for a silent close."""
    ends: bool = True
    """Whether the client closes its sending half behind the bytes, or leaves it open."""


MOST_ELEMENTS = 100_000
"""Of JSON in a body, ROUTER_MAX_BODY_ELEMENTS, unless it is one of embeddings."""


class Draw:
    """A source of requests for one router and one key."""

    def __init__(self, seed: int, key: str) -> None:
        self._random = random.Random(seed)
        self._key = key

    def wrong(self, *, ends: bool = True) -> Request:
        """A request that is wrong in a known way; unless it ends, in that it never does."""
        if not ends:
            return self._unfinished()
        kinds: tuple[Callable[[], Request], ...] = (
            self._bad_json,
            self._bad_field,
            self._bad_type,
            self._bad_framing,
            self._bad_head,
            self._bad_target,
            self._bad_method,
            self._bad_key,
        )
        return self._random.choice(kinds)()

    def mutated(self) -> Request:
        """A good request with some of its bytes changed, lost, doubled or moved."""
        path = self._random.choice(PATHS)
        data = bytearray(self._post(path, json.dumps(GOOD[path]).encode()))
        for _ in range(self._random.randint(1, 6)):
            self._damage(data)
        return Request("mutated", bytes(data), "either", ())

    # --- what may be wrong ---------------------------------------------------------------------

    def _bad_json(self) -> Request:
        path, good = self._good()
        text = json.dumps(good)
        broken = self._random.choice(
            (
                b"",
                b"{",
                b"nonsense",
                b"null",
                b"[]",
                b'"text"',
                b"17",
                text.encode()[: self._random.randint(1, len(text) - 1)],
                text.encode() + b"}",
                b"\xef\xbb\xbf" + text.encode(),
                text.encode("utf-16"),
                b"\xff\xfe\x00" + text.encode(),
                text.replace('"hi"', '"h\\ud800i"').encode(),
                text.replace('"hi"', '"h\xffi"').encode("latin-1"),
                text.replace('"hi"', '"h\ni"').encode(),
                text.replace('"hi"', "'hi'").encode(),
                text.replace('"hi"', "NaN").encode(),
                text.replace('"hi"', "-Infinity").encode(),
                text.replace('"hi"', "01").encode(),
                self._nested("[", "]").join((b'{"model": ', b"}")),
                self._nested('{"a":', "}"),
                (
                    text[:-1] + ', "seed": ' + "9" * self._random.choice((20, 400, 5000)) + "}"
                ).encode(),
                (text[:-1] + f', "model": "{CHAT}"}}').encode(),
                (text[:-1] + ', "x": {"y": 1, "y": 2}}').encode(),
                (text[:-1] + ", }").encode(),
                b"\x00" + text.encode(),
                text.encode() + b"\x00",
            )
        )
        elements = sum(map(broken.count, (b"[", b"{", b",")))
        status = 413 if elements > MOST_ELEMENTS else 400  # of embeddings it may be either
        statuses = (400, 413) if path.endswith("embeddings") else (status,)
        return self._refused("bad JSON", path, self._post(path, broken), statuses)

    def _bad_field(self) -> Request:
        path, good = self._good()
        name = self._random.choice(list(good))
        values: dict[str, tuple[Any, ...]] = {
            "model": (None, 0, True, [], {}, "", "x" * 257, [CHAT]),
            "request_id": (0, True, [], {}, "", "17", UUID[:-1], UUID + "0"),
            "messages": (None, 0, "hi", {}, [], [1], ["hi"], [None], [[]], [{}], [{"role": 7}]),
            "payload": (None, "", 7, [], {"a": 1}, "x" * (64 * 1024 + 1), "é" * 40_000),
        }
        value = self._random.choice(values.get(name, (None, 0, -1, 1.5, True, [], {}, {"a": 1})))
        changed = {**good, name: value}
        if name != "request_id" and self._random.random() < 0.3:  # the one that may be left out
            del changed[name]
        data = self._post(path, json.dumps(changed).encode())
        return self._refused(f"bad {name}", path, data, (400, 413, 404))

    def _bad_type(self) -> Request:
        """An optional field of the wrong kind, on a backend of either kind."""
        choices: list[tuple[str, str, Any]] = [
            ("/v1/chat/completions", "stream", self._other_than("flag")),
            ("/v1/chat/completions", "max_tokens", self._other_than("count")),
            ("/v1/chat/completions", "max_completion_tokens", self._other_than("count")),
            ("/v1/chat/completions", "n", self._other_than("count")),
            ("/v1/chat/completions", "temperature", self._other_than("number")),
            ("/v1/chat/completions", "top_p", self._other_than("number")),
            ("/v1/chat/completions", "stream_options", self._other_than("object")),
            ("/v1/chat/completions", "stream_options", {"include_usage": True}),
            ("/v1/completions", "stream", self._other_than("flag")),
            ("/v1/completions", "max_tokens", self._other_than("count")),
            ("/v1/inference", "stream", self._other_than("flag")),
            ("/v1/inference", "parameters", self._other_than("object")),
            ("/v1/inference", "parameters", {"max_tokens": self._other_than("count")}),
            ("/v1/inference", "parameters", {"messages": []}),
            ("/v1/inference", "parameters", {"stream": True}),
            ("/v1/inference", "metadata", self._other_than("object")),
            ("/v1/inference", "metadata", {"a": self._random.choice((1, None, [], {}))}),
            ("/v1/inference", "metadata", {str(n): "x" for n in range(100)}),
            ("/v1/inference", "content_type", self._random.choice((7, [], "text/html", ""))),
            ("/v1/inference", "hmac_signature", self._random.choice((7, [], "ab", "0" * 64))),
            ("/v1/inference", "surprise", 1),
            ("/v1/inference", "é" * 200, 1),
        ]
        path, name, value = self._random.choice(choices)
        good = dict(GOOD[path])
        if path != "/v1/inference" and self._random.random() < 0.5:
            good["model"] = CLAUDE
        data = self._post(path, json.dumps({**good, name: value}).encode())
        statuses = (400, 401) if name == "hmac_signature" else (400,)
        return self._refused(f"bad {name[:20]}", path, data, statuses)

    def _bad_framing(self) -> Request:
        path, good = self._good()
        body = json.dumps(good).encode()
        size = f"{len(body):x}".encode()
        line, head = f"POST {path} HTTP/1.1", (*JSON_HEADERS, self._key_header())
        chunked = self._head(line, *head, "Transfer-Encoding: chunked")
        length = len(body)
        broken: list[tuple[bytes, tuple[int, ...]]] = [
            (self._head(line, *head, f"Content-Length: {length + 9}") + body, (400,)),
            (self._head(line, *head, f"Content-Length: {length - 3}") + body, (400,)),
            (self._head(line, *head, "Content-Length: 99999999999") + body, (413,)),
            (self._head(line, *head, f"Content-Length: {MAX_BODY_BYTES + 1}") + body, (413,)),
            (self._head(line, *head, "Content-Length: -1") + body, (400,)),
            (self._head(line, *head, "Content-Length: +5") + body, (400,)),
            (self._head(line, *head, "Content-Length: 0x10") + body, (400,)),
            (self._head(line, *head, "Content-Length: 1e3") + body, (400,)),
            (self._head(line, *head, "Content-Length:") + body, (400,)),
            (self._head(line, *head, "Content-Length: 5, 5") + body, (400,)),
            (self._head(line, *head, "Content-Length: \xb2") + body, (400,)),
            (self._head(line, *head, f"Content-Length: {'9' * 5000}") + body, (400, 413)),
            (
                self._head(line, *head, f"Content-Length: {length}", "Content-Length: 3") + body,
                (400,),
            ),
            (
                self._head(line, *head, f"Content-Length: {length}", "Transfer-Encoding: chunked")
                + body,
                (400,),
            ),
            (self._head(line, *head, "Transfer-Encoding: gzip") + body, (400,)),
            (self._head(line, *head, "Transfer-Encoding: chunked, gzip") + body, (400,)),
            (self._head(line, *head, "Transfer-Encoding: chunked, chunked") + body, (400,)),
            (self._head(line, *head, "Transfer-Encoding: xchunked") + body, (400,)),
            (self._head(line, *head, "Transfer-Encoding: identity") + body, (400,)),
            (self._head(line, *head, "Transfer-Encoding:\x0bchunked") + body, (400,)),
            (
                self._head(line.replace("1.1", "1.0"), *head, "Transfer-Encoding: chunked") + body,
                (400,),
            ),
            (chunked + body, (400,)),
            (chunked + size + b"\r\n" + body, (400,)),
            (chunked + size + b"\r\n" + body + b"\r\n", (400,)),
            (chunked + size + b"\r\n" + body + b"xx\r\n0\r\n\r\n", (400,)),
            (chunked + b"-" + size + b"\r\n" + body + b"\r\n0\r\n\r\n", (400,)),
            (chunked + b"0x" + size + b"\r\n" + body + b"\r\n0\r\n\r\n", (400,)),
            (chunked + b" " + size + b"\r\n" + body + b"\r\n0\r\n\r\n", (400,)),
            (chunked + size + b"\n" + body + b"\n0\n\n", (400,)),
            (chunked + b"f" * 40 + b"\r\n" + body + b"\r\n0\r\n\r\n", (400, 413)),
            (chunked + b"\r\n\r\n", (400,)),
            (chunked + size + b";a=\x01\r\n" + body + b"\r\n0\r\n\r\n", (400,)),
            (chunked + size + b"\r\n" + body + b"\r\n0\r\nbad trailer\r\n\r\n", (400,)),
            (chunked + size + b"\r\n" + body + b"\r\n0\r\nHost: b\r\n\r\n", (400,)),
            (chunked + b"0\r\n\r\n", (400,)),
        ]
        data, statuses = self._random.choice(broken)
        dialect: Dialect = "native" if path == "/v1/inference" else "openai"
        return Request("bad framing", data, "either" if statuses != (413,) else dialect, statuses)

    def _bad_head(self) -> Request:
        path, good = self._good()
        body = json.dumps(good).encode()
        line = f"POST {path} HTTP/1.1"
        head = (*JSON_HEADERS, self._key_header(), f"Content-Length: {len(body)}")
        lines = self._random.choice(
            (
                ("\x00", line, *head),
                (f"POST  {path} HTTP/1.1", *head),
                (f"POST {path}", *head),
                (f"POST {path} HTTP/1.1 extra", *head),
                (f"POST {path} HTTP/2.0", *head),
                (f"POST {path} HTTP/0.9", *head),
                (f"POST {path} HTTP/11", *head),
                (f"POST {path} http/1.1", *head),
                (f"POST {path} ICAP/1.0", *head),
                (f"post {path} HTTP/1.1", *head),
                (f"P\x00ST {path} HTTP/1.1", *head),
                (f"{'P' * 30} {path} HTTP/1.1", *head),
                (f"POST {path}\x01 HTTP/1.1", *head),
                (f"POST {path}\xe9 HTTP/1.1", *head),
                (f"POST /{'a' * 9000} HTTP/1.1", *head),
                ("GET / HTTP/1.1", "no colon here"),
                (line, *head, ": no name"),
                (line, *head, "Bad Name: x"),
                (line, *head, "Name : x"),
                (line, *head, "N\xe4me: x"),
                (line, *head, "X-Test: a\x00b"),
                (line, *head, "X-Test: a\rb"),
                (line, *head, "X-Test: a", " folded"),
                (line, *head, f"X-Test: {'x' * 9000}"),
                (line, *head, *(f"X-{n}: x" for n in range(200))),
                (line, *head, "Host: one", "Host: two"),
                (line, *head, "Content-Type: text/plain"),
                (line, *head, "Expect: 200-maybe"),
                (line, "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off", *head),
                ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",),
                ("PRI * HTTP/2.0", "", "SM", ""),
                ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2", line, *head),
                ("SSH-2.0-OpenSSH_9.2",),
                ("*1", "$4", "PING"),
                (f"GET http://[::1{path} HTTP/1.1", *head),
            )
        )
        data = self._head(*lines, host=self._random.random() < 0.9) + body
        return Request("bad head", data, "either", (400, 414, 417, 431))

    def _bad_target(self) -> Request:
        path, good = self._good()
        stem, _, name = path.rpartition("/")
        target = self._random.choice(
            (
                f"{stem}/../{name}",
                f"{stem}/./{name}",
                f"/..{path}",
                f"/%2e%2e{path}",
                f"{stem}/%2E/{name}",
                f"{stem}%2f{name}",
                f"{stem}%2F{name}",
                f"{stem}%5c{name}",
                f"{stem}\\{name}",
                f"//{path}",
                f"/{path}",
                f"{path}/",
                f"{path}//",
                f"{path}%00",
                f"{path}%0d%0aX:%20y",
                f"{path}%",
                f"{path}%zz",
                f"{path}%25",
                f"{path}#part",
                f"{path};a=b",
                f"{path}/{name}",
                path.upper(),
                path.replace("/v1", "/v2"),
                path[1:],
                f"http://elsewhere{path}/../x",
                f"http://elsewhere:99999//{name}",
                "http://user@/",
                "/v1/models/%e9%ff",
                f"/v1/models/{'m' * 3000}",
                "/v1/models/",
                "/metrics",
                "/admin",
                "/",
                "*",
                "/.git/config",
                "/v1/models/../../etc/passwd",
                f"{path}?{'q' * 9000}",
            )
        )
        body = json.dumps(good).encode()
        head = (*JSON_HEADERS, self._key_header(), f"Content-Length: {len(body)}")
        data = self._head(f"POST {target} HTTP/1.1", *head) + body
        return Request(f"bad target {target[:40]}", data, "either", (400, 404, 405, 414))

    def _bad_method(self) -> Request:
        path = self._random.choice((*PATHS, "/v1/models", "/healthz", "/v1/status/readyz"))
        allowed = "POST" if path in PATHS else "GET"
        methods = {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "LINK", "CONNECT"}
        method = self._random.choice(sorted(methods - {allowed}))
        data = self._head(f"{method} {path} HTTP/1.1", self._key_header(), "Content-Length: 0")
        dialect: Dialect = "openai" if path in GOOD and path != "/v1/inference" else "native"
        return Request(
            f"{method} {path}", data, dialect if path != "/v1/models" else "openai", (405,)
        )

    def _bad_key(self) -> Request:
        path, good = self._good()
        body = json.dumps(good).encode()
        key = self._key
        headers = self._random.choice(
            (
                (),
                ("X-API-Key:",),
                ("Authorization:",),
                ("Authorization: Bearer",),
                (f"Authorization: {key}",),
                (f"Authorization: Basic {key}",),
                (f"Authorization: Bearer {key} {key}",),
                (f"Authorization: Bearer {key}", f"Authorization: Bearer {key}"),
                (f"X-API-Key: {key}", f"X-API-Key: {key}"),
                (f"X-API-Key: {key}", "Authorization: Bearer other"),
                (f"X-API-Key: {key[:-1]}",),
                (f"X-API-Key: {key}x",),
                (f"X-API-Key: {key.upper()}",),
                (f"X-API-Key: {key[:20]}\xe9{key[21:]}",),
                (f"X-API-Key: {'k' * 8000}",),
                (f"X_API_Key: {key}",),
                (f"X-Api-Token: {key}",),
            )
        )
        head = (*JSON_HEADERS, *headers, f"Content-Length: {len(body)}")
        data = self._head(f"POST {path} HTTP/1.1", *head) + body
        return self._refused("bad key", path, data, (401,))

    def _unfinished(self) -> Request:
        """A request whose end the client never sends, though it stays connected."""
        path, good = self._good()
        body = json.dumps(good).encode()
        whole = self._post(path, body)
        line, head = f"POST {path} HTTP/1.1", (*JSON_HEADERS, self._key_header())
        chunked = self._head(line, *head, "Transfer-Encoding: chunked")
        data, statuses = self._random.choice(
            (
                (b"", (0,)),
                (whole[: self._random.randint(1, whole.index(b"\r\n\r\n"))], (0,)),
                (whole[: -self._random.randint(1, len(body))], (408,)),
                (chunked, (408,)),
                (chunked + b"5\r\nab", (408,)),
                (chunked + b"2\r\nab\r\n0\r\n", (408,)),
                (
                    self._head(line, *head, "Expect: 100-continue", "Content-Length: 50"),
                    (408,),
                ),
            )
        )
        dialect: Dialect = "native" if path == "/v1/inference" else "openai"
        return Request("unfinished", data, dialect, statuses, ends=False)

    # --- how it is written ---------------------------------------------------------------------

    def _good(self) -> tuple[str, Any]:
        path = self._random.choice(PATHS)
        return path, GOOD[path]

    def _refused(self, what: str, path: str, data: bytes, statuses: tuple[int, ...]) -> Request:
        return Request(what, data, "native" if path == "/v1/inference" else "openai", statuses)

    def _key_header(self) -> str:
        if self._random.random() < 0.5:
            return f"X-API-Key: {self._key}"
        return f"Authorization: Bearer {self._key}"

    def _post(self, path: str, body: bytes) -> bytes:
        head = (*JSON_HEADERS, self._key_header(), f"Content-Length: {len(body)}")
        return self._head(f"POST {path} HTTP/1.1", *head) + body

    @staticmethod
    def _head(*lines: str, host: bool = True) -> bytes:
        named = (lines[0], "Host: router.example", *lines[1:]) if host else lines
        return "\r\n".join((*named, "", "")).encode("latin-1")

    def _nested(self, opening: str, closing: str) -> bytes:
        depth = self._random.choice((300, 2_000, 100_000))
        return (opening * depth + "1" + closing * depth).encode()

    def _other_than(self, kind: str) -> Any:
        """A JSON value that is neither null nor of this kind."""
        values: dict[str, Any] = {
            "flag": (0, 1, "true", [], {}),
            "count": (0, -1, 1.5, True, "1", [], {}),
            "number": ("0.5", True, [], {}),
            "object": (0, True, "text", [], [1]),
        }
        return self._random.choice(values[kind])

    def _damage(self, data: bytearray) -> None:
        place = self._random.randrange(len(data)) if data else 0
        kind = self._random.randrange(6)
        if not data or kind == 0:
            data[place:place] = self._random.randbytes(self._random.randint(1, 4))
        elif kind == 1:
            data[place] = self._random.randrange(256)
        elif kind == 2:
            del data[place : place + self._random.randint(1, 30)]
        elif kind == 3:
            data[place:place] = data[place : place + self._random.randint(1, 60)]
        elif kind == 4:
            found = list(re.finditer(rb"[\r\n:{}\[\]\",/ ]", data))
            at = self._random.choice(found).start() if found else place
            data[at : at + 1] = self._random.choice(
                (b"", b"\r\n", b"\n", b"::", b'"', b"\x00", b" ")
            )
        else:
            other = self._random.randrange(len(data))
            data[place], data[other] = data[other], data[place]
