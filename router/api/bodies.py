"""Request bodies: read within a time and a size, parsed without surprises."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from json.decoder import JSONDecoder
from typing import Any, Final, cast

import gevent
import orjson
from flask import Request

from router.errors import BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedMediaType

_MAX_INTEGER_DIGITS: Final = 19
_READ_BYTES: Final = 1024 * 1024


def read_body(request: Request, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body; raises ``BodyTooLarge``, ``BodyTimeout`` or ``InvalidRequest``.

    The server below puts no time limit on bodies and hands out a truncated one as if it were
    whole, so both are seen to here.
    """
    environ = request.environ
    expected = _declared_length(environ)
    if expected is not None and expected > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if expected is not None and _has_arrived(environ, expected):
        return cast(bytes, environ["wsgi.input"].read(expected)) if expected else b""
    limit = gevent.Timeout.start_new(timeout_s)
    try:
        body = _read(environ["wsgi.input"], expected, limit_bytes)
    except gevent.Timeout as expired:
        if expired is not limit:
            raise
        _stop_reading(environ)
        raise BodyTimeout(timeout_s) from None
    except (OSError, EOFError) as error:
        # Broken chunks, or a connection that ended in the middle.
        raise InvalidRequest(f"the request body is broken: {type(error).__name__}") from None
    finally:
        limit.close()
    if len(body) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if expected is not None and len(body) < expected:
        raise InvalidRequest(
            f"the request body ended after {len(body)} of {expected} bytes", field="Content-Length"
        )
    return body


def _has_arrived(environ: Mapping[str, Any], expected: int) -> bool:
    """Whether gunicorn holds the whole body already, as it does for most: then nothing can wait."""
    try:
        buffered: int = environ["wsgi.input"].reader.unreader.buf.getbuffer().nbytes
    except AttributeError:
        return False  # another server, or another version of this one
    return buffered >= expected


def _declared_length(environ: Mapping[str, Any]) -> int | None:
    raw = environ.get("CONTENT_LENGTH")
    if raw is None or raw == "":
        return None if environ.get("HTTP_TRANSFER_ENCODING") else 0
    if not (raw.isascii() and raw.isdigit()):
        raise InvalidRequest("Content-Length is not a number", field="Content-Length")
    return int(raw)


def _read(stream: Any, expected: int | None, limit_bytes: int) -> bytes:
    if expected is not None:
        body: bytes = stream.read(expected) if expected else b""
        return body
    chunks: list[bytes] = []
    size = 0
    while size <= limit_bytes and (chunk := stream.read(_READ_BYTES)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _stop_reading(environ: Mapping[str, Any]) -> None:
    """Make the server close the connection instead of waiting for the rest of the body."""
    sock = environ.get("gunicorn.socket")
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # the client has closed it already


def require_json(request: Request) -> None:
    """Raises ``UnsupportedMediaType`` unless the body is declared as plain JSON."""
    declared = request.environ.get("CONTENT_TYPE")
    media_type = (declared or "").partition(";")[0].strip().lower()
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if media_type != "application/json" or encoding not in ("", "identity"):
        raise UnsupportedMediaType(declared)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object; raises ``InvalidRequest`` for whatever a backend might read differently.

    Strict where JSON parsers disagree: duplicate names, NaN and infinities, lone surrogates,
    invalid UTF-8, numbers beyond 64 bits and bottomless nesting are all refused.
    """
    if not body:
        raise InvalidRequest("the request body is empty; a JSON object is needed", field="body")
    try:
        orjson.loads(body)  # strict on everything but duplicate names and huge integers
        parsed = _STRICT.decode(body.decode("utf-8"))
    except RecursionError:
        raise InvalidRequest("the JSON is nested too deeply", field="body") from None
    except _Refused as refused:
        raise InvalidRequest(refused.message, field=refused.field) from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", field="body") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest("the body must be a JSON object", field="body")
    return parsed


class _Refused(ValueError):
    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                shown = name[:64]
                raise _Refused(f"the name '{shown}' occurs twice in one object", shown)
            seen.add(name)
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS:
        value = int(digits) if len(digits) <= _MAX_INTEGER_DIGITS + 1 else 2**64
        if not -(2**63) <= value < 2**63:
            raise _Refused("an integer is beyond 64 bits", "body")
    return int(digits)


_STRICT: Final = JSONDecoder(object_pairs_hook=_unique, parse_int=_integer)
