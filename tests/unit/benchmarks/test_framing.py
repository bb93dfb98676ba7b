"""Where the load generator and the static backend see the end of a message."""

from __future__ import annotations

import pytest

from tests.benchmarks.framing import MessageError, reply_end, request_end
from tests.benchmarks.messages import REPLY_BODY, http_reply, http_request

CHUNKED_REPLY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


def test_request_ends_with_its_body_however_it_is_cut() -> None:
    """No prefix of a request passes for the whole, and what follows it is left alone."""
    request = http_request("127.0.0.1", 8080)

    assert {request_end(request[:cut]) for cut in range(len(request))} == {None}
    assert request_end(request + b"POST ") == len(request)


def test_request_without_a_length_has_no_body() -> None:
    """A GET ends with its head."""
    request = b"GET /calls HTTP/1.1\r\nHost: a\r\n\r\n"

    assert request_end(request) == len(request)


def test_request_with_a_chunked_body_is_refused() -> None:
    """A body whose end the backend cannot tell must not be taken for the next request."""
    with pytest.raises(MessageError, match="chunked"):
        request_end(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("reply", [http_reply(REPLY_BODY), CHUNKED_REPLY])
def test_reply_ends_with_its_body_however_it_is_cut(reply: bytes) -> None:
    """No prefix of a reply, counted or chunked, passes for the whole."""
    assert {reply_end(reply[:cut]) for cut in range(len(reply))} == {None}
    assert reply_end(reply) == len(reply)


def test_reply_header_names_are_read_in_any_case() -> None:
    """A gateway may write header names as it likes."""
    reply = b"HTTP/1.1 200 OK\r\nCONTENT-length:  2\r\n\r\n{}"

    assert reply_end(reply + b"more") == len(reply)


@pytest.mark.parametrize("status", ["201 Created", "429 Too Many Requests", "500 Oops"])
def test_reply_that_is_no_200_is_an_error(status: str) -> None:
    """Fast refusals would otherwise pass for fast answers; the message shows what came."""
    with pytest.raises(MessageError, match=f"not a 200.*{status}.*why"):
        reply_end(http_reply(b'{"error":"why"}', status))


@pytest.mark.parametrize("header", [b"", b"Content-Length: two\r\n", b"Content-Length: -1\r\n"])
def test_reply_whose_end_cannot_be_told_is_an_error(header: bytes) -> None:
    """Without a readable length the next reply's start would be a guess."""
    with pytest.raises(MessageError):
        reply_end(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n{}")
