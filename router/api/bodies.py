"""Request bodies: read within a time and a size, parsed without surprises."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from json.decoder import JSONDecoder
from typing import Any, Final

import gevent
import orjson
from flask import Request
from gunicorn.http.errors import ParseException

from router.api.scope import Scope
from router.errors import (
    BodyIncomplete,
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    UnsupportedMediaType,
)
from router.providers.json_elements import count_elements

MAX_DEPTH: Final = 200
"""How deeply JSON may be nested; less than what the writer below can write again."""

SHORT_BYTES: Final = 64 * 1024
"""Up to here reading a body costs less than an exchange with Redis."""

_WRITER_DEPTH: Final = 254
_SAFE_INTEGER_DIGITS: Final = 18
_LONGEST_INTEGER: Final = 20
_LONGEST_LENGTH: Final = 18
_ELEMENTS_AT_ONCE: Final = 20_000
"""Parsing so many takes 10 to 20 ms."""

_STEP_BYTES: Final = 64 * 1024
# A chunk has at least five bytes besides its data, and takes as long as kilobytes of them: so many
# bytes are free, and beyond them one for each eight of data, which chunks of 40 bytes stay below.
_FREE_OVERHEAD_BYTES: Final = 64 * 1024
_LEAST_SHARE: Final = 8


def read_body(request: Request, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body; raises ``BodyTooLarge``, ``BodyTimeout``, ``BodyIncomplete`` or
    ``InvalidRequest``.

    The server below puts no time limit on bodies and hands out a truncated one as if it were
    whole, so both are seen to here.
    """
    environ = request.environ
    expected = _declared_length(environ)
    if expected is not None and expected > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if expected is not None and _has_arrived(environ, expected):
        body: bytes = environ["wsgi.input"].read(expected) if expected else b""
        return body
    limit = gevent.Timeout.start_new(timeout_s)
    try:
        body = _read(environ, expected, limit_bytes)
    except gevent.Timeout as expired:
        if expired is not limit:
            raise
        raise BodyTimeout(timeout_s) from None
    except (OSError, EOFError, ParseException) as error:
        if isinstance(error, (OSError, EOFError)):  # the connection ended in the middle
            raise BodyIncomplete from None
        raise InvalidRequest(
            f"the request body is broken: {type(error).__name__}", field="body"
        ) from None
    finally:
        limit.close()
    if len(body) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if expected is not None and len(body) < expected:
        raise BodyIncomplete(len(body), expected)
    return body


def request_body(scope: Scope) -> bytes:
    """The current request's body, read once; raises like :func:`read_body`."""
    if scope.body is None:
        settings = scope.services.settings
        scope.body = read_body(scope.request, settings.max_body_bytes, settings.body_timeout_s)
    return scope.body


def is_at_hand(environ: Mapping[str, Any]) -> bool:
    """Whether a short body is there already, so that reading it takes neither time nor memory."""
    try:
        expected = _declared_length(environ)
    except InvalidRequest:
        return False
    if expected is None or expected > SHORT_BYTES:
        return False
    return isinstance(environ["wsgi.input"], BytesIO) or _has_arrived(environ, expected)


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
    # ``int`` refuses thousands of digits, in words of its own.
    if not (raw.isascii() and raw.isdigit()) or len(raw) > _LONGEST_LENGTH:
        raise InvalidRequest("Content-Length is not a number", field="Content-Length")
    return int(raw)


def _read(environ: Mapping[str, Any], expected: int | None, limit_bytes: int) -> bytes:
    stream, client = environ["wsgi.input"], environ.get("gunicorn.socket")
    if expected is not None:
        body: bytes = stream.read(expected) if expected else b""
        return body
    chunks: list[bytes] = []
    size, received_before = 0, getattr(client, "received", 0)
    while size <= limit_bytes and (chunk := stream.read(_STEP_BYTES)):
        chunks.append(chunk)
        size += len(chunk)
        overhead = getattr(client, "received", 0) - received_before - size - _held(stream)
        if overhead > _FREE_OVERHEAD_BYTES + size // _LEAST_SHARE:
            raise InvalidRequest("the body comes in too many small chunks", field="body")
    return b"".join(chunks)


def _held(stream: Any) -> int:
    """How many bytes of a body in chunks gunicorn has decoded and not handed out."""
    try:
        held: int = stream.reader.buf.getbuffer().nbytes
    except AttributeError:
        return 0
    return held


def require_json(request: Request) -> None:
    """Raises ``UnsupportedMediaType`` unless the body is declared as plain JSON."""
    declared = request.environ.get("CONTENT_TYPE")
    media_type = (declared or "").partition(";")[0].strip().lower()
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if media_type != "application/json" or encoding not in ("", "identity"):
        raise UnsupportedMediaType(declared)


def parse_object(body: bytes, most_elements: int) -> dict[str, Any]:
    """The body as a JSON object; raises ``BodyTooLarge``, or like :func:`parse_json`.

    A body of many elements is parsed on a native thread, which the event loop interrupts.
    """
    if not body:
        raise InvalidRequest("the request body is empty; a JSON object is needed", field="body")
    elements = count_elements(body, most_elements)
    if elements > most_elements:
        raise BodyTooLarge(most_elements, unit="elements of JSON")
    if elements <= _ELEMENTS_AT_ONCE:
        parsed = parse_json(body, field="body")
    else:
        parsed, refusal = gevent.get_hub().threadpool.apply(_parsed_or_refused, (body,))
        if refusal is not None:
            raise refusal
    if not isinstance(parsed, dict):
        raise InvalidRequest("the body must be a JSON object", field="body")
    return parsed


def _parsed_or_refused(body: bytes) -> tuple[Any, InvalidRequest | None]:
    """On a native thread of gevent, which prints what is raised there."""
    try:
        return parse_json(body, field="body"), None
    except InvalidRequest as refusal:
        return None, refusal.with_traceback(None)


def parse_json(text: bytes, *, field: str) -> Any:
    """A JSON value; raises ``InvalidRequest`` for whatever a backend might read differently.

    Strict where JSON parsers disagree: duplicate names, NaN and infinities, lone surrogates,
    invalid UTF-8, integers beyond 64 bits and bottomless nesting are all refused. ``field`` is
    what an error names.
    """
    try:
        orjson.loads(text)  # strict on everything but duplicate names and huge integers
        parsed = _STRICT.decode(text.decode("utf-8"))
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
            _check_depth(parsed)
    except RecursionError:
        raise InvalidRequest(_TOO_DEEP, field=field) from None
    except _Refused as refused:
        raise InvalidRequest(refused.message, field=refused.field or field) from None
    except ValueError as error:
        raise InvalidRequest(f"'{field}' is not valid JSON: {error}", field=field) from None
    return parsed


def _check_depth(parsed: Any) -> None:
    """Raises ``_Refused`` for more than ``MAX_DEPTH`` levels.

    The writer finds out in C, and refuses what is deeper than its own limit.
    """
    for _ in range(_WRITER_DEPTH - MAX_DEPTH):
        parsed = [parsed]
    try:
        orjson.dumps(parsed)
    except orjson.JSONEncodeError:
        raise _Refused(_TOO_DEEP) from None


class _Refused(ValueError):
    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


_TOO_DEEP: Final = "the JSON is nested too deeply"


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
    if len(digits) <= _SAFE_INTEGER_DIGITS:
        return int(digits)
    # Looked at first: ``int`` itself refuses thousands of digits, in words of its own.
    value = int(digits) if len(digits) <= _LONGEST_INTEGER else 2**63
    if not -(2**63) <= value < 2**63:
        raise _Refused("an integer is beyond 64 bits")
    return value


_STRICT: Final = JSONDecoder(object_pairs_hook=_unique, parse_int=_integer)
