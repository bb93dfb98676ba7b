"""Just enough HTTP/1.1 framing to tell where a message ends; both ends of the benchmark use it."""

from __future__ import annotations

_HEAD_END = b"\r\n\r\n"
_CONTENT_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class MessageError(Exception):
    """A message whose end cannot be told, or a reply that is not a 200."""


def request_end(received: bytes | bytearray) -> int | None:
    """Length of the first request in `received`; None while it is incomplete.

    A request without Content-Length has no body. Raises MessageError for a chunked body.
    """
    head_end = received.find(_HEAD_END)
    if head_end < 0:
        return None
    head = received[:head_end].lower()
    if _CHUNKED in head:
        raise MessageError("chunked request bodies are not read here")
    end = head_end + len(_HEAD_END) + (_content_length(head) or 0)
    return end if len(received) >= end else None


def reply_end(received: bytes | bytearray) -> int | None:
    """Length of the one reply in `received`; None while it is incomplete.

    Raises MessageError when the reply is complete as far as its head and is not a 200, or
    has neither a Content-Length nor a chunked body.
    """
    head_end = received.find(_HEAD_END)
    if head_end < 0:
        return None
    if not received.startswith(b"HTTP/1.1 200 "):
        raise MessageError(f"not a 200: {bytes(received[:600])!r}")
    head = received[:head_end].lower()
    length = _content_length(head)
    if length is not None:
        end = head_end + len(_HEAD_END) + length
        return end if len(received) >= end else None
    if _CHUNKED not in head:
        raise MessageError(f"a reply without framing: {bytes(received[:600])!r}")
    return len(received) if received.endswith(_LAST_CHUNK) else None


def _content_length(head: bytes | bytearray) -> int | None:
    start = head.find(_CONTENT_LENGTH)
    if start < 0:
        return None
    start += len(_CONTENT_LENGTH)
    end = head.find(b"\r\n", start)
    digits = head[start:].strip() if end < 0 else head[start:end].strip()
    if not digits.isdigit():
        raise MessageError(f"Content-Length {bytes(digits)!r}")
    return int(digits)
