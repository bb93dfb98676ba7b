"""Bodies: what is read, what is parsed, and everything that is refused on the way."""

from __future__ import annotations

import io
import json
from typing import Any

import gevent
import pytest
from flask import Request
from gunicorn.http.errors import InvalidChunkSize
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api import bodies
from router.api.bodies import MAX_DEPTH, parse_json, read_body, require_json
from router.errors import (
    BodyIncomplete,
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    UnsupportedMediaType,
)

LIMIT_BYTES = 100
MOST_ELEMENTS = 100_000


def parse_object(body: bytes) -> dict[str, Any]:
    return bodies.parse_object(body, MOST_ELEMENTS)


def request_of(body: bytes | io.IOBase, **environ: str) -> Request:
    stream = io.BytesIO(body) if isinstance(body, bytes) else body
    return Request({"REQUEST_METHOD": "POST", "wsgi.input": stream, **environ})


def read(body: bytes | io.IOBase, **environ: str) -> bytes:
    return read_body(request_of(body, **environ), LIMIT_BYTES, 1.0)


class BrokenStream(io.RawIOBase):
    """Breaks in the middle."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def read(self, size: int = -1) -> bytes:
        raise self._error


# --- reading --------------------------------------------------------------------------------


def test_a_body_of_known_length_is_read_to_it_and_no_further() -> None:
    """What follows on the connection belongs to the next request."""
    assert read(b"bodynext", CONTENT_LENGTH="4") == b"body"


def test_a_chunked_body_is_read_to_its_end() -> None:
    """Without a length, the end of the stream is the end."""
    assert read(b"body", HTTP_TRANSFER_ENCODING="chunked") == b"body"


def test_without_framing_there_is_no_body() -> None:
    """Neither header means no body, whatever the connection holds."""
    assert read(b"not a body") == b""
    assert read(b"not a body", CONTENT_LENGTH="") == b""


def test_a_body_at_the_limit_passes_and_one_above_does_not() -> None:
    """P15: the limit holds with a declared length and without."""
    fits, over = b"x" * LIMIT_BYTES, b"x" * (LIMIT_BYTES + 1)
    assert read(fits, CONTENT_LENGTH=str(len(fits))) == fits
    assert read(fits, HTTP_TRANSFER_ENCODING="chunked") == fits
    with pytest.raises(BodyTooLarge):
        read(over, HTTP_TRANSFER_ENCODING="chunked")


def test_a_declared_length_above_the_limit_is_refused_unread() -> None:
    """P15: nothing of an oversize body is waited for."""
    stream = BrokenStream(AssertionError("was read"))
    with pytest.raises(BodyTooLarge) as refusal:
        read(stream, CONTENT_LENGTH=str(LIMIT_BYTES + 1))
    assert (refusal.value.limit, refusal.value.field) == (LIMIT_BYTES, "body")


def test_an_endless_chunked_body_is_not_read_to_its_end() -> None:
    """P15: reading stops once the limit is passed."""

    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return b"x" * size

    endless = Endless()
    with pytest.raises(BodyTooLarge):
        read(endless, HTTP_TRANSFER_ENCODING="chunked")
    assert endless.taken <= 2 * 1024 * 1024


def test_a_truncated_body_is_not_taken_for_a_whole_one() -> None:
    """The server below hands it out as if it were complete."""
    with pytest.raises(BodyIncomplete, match="after 3 of 10 bytes"):
        read(b"abc", CONTENT_LENGTH="10")


@pytest.mark.parametrize("length", ["x", "-1", "+5", "5 5", "0x10", "٣", "1e3", "9" * 5000])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    """Thousands of digits used to be an error of ours: `int` refuses them."""
    with pytest.raises(InvalidRequest) as refusal:
        read(b"x" * 9, CONTENT_LENGTH=length)
    assert refusal.value.field == "Content-Length"


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (ConnectionResetError(), BodyIncomplete),
        (TimeoutError(), BodyIncomplete),
        (EOFError(), BodyIncomplete),
        (InvalidChunkSize(b"z"), InvalidRequest),
    ],
)
def test_a_connection_that_breaks_is_the_clients_affair(
    error: Exception, refusal: type[Exception]
) -> None:
    """Broken chunks and closed connections are 400, not 500, and told apart."""
    with pytest.raises(refusal):
        read(BrokenStream(error), HTTP_TRANSFER_ENCODING="chunked")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """The server below has no time limit of its own."""

    class Silent(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            gevent.sleep(60)
            return b""

    with pytest.raises(BodyTimeout) as refusal:
        read_body(request_of(Silent(), CONTENT_LENGTH="5"), LIMIT_BYTES, 0.01)
    assert refusal.value.timeout_s == 0.01


class Chunks(io.RawIOBase):
    """A body that comes in chunks of so many bytes; counts what went over the wire for it."""

    def __init__(self, size: int, chunk: int) -> None:
        self._left, self._chunk = size, chunk
        self.received = 0

    def read(self, size: int = -1) -> bytes:
        size = min(size, self._left)
        self._left -= size
        framing = len(f"{self._chunk:x}") + 2 * len(b"\r\n")  # RFC 9112, 7.1
        self.received += size + framing * -(-size // self._chunk)
        return b"x" * size


@pytest.mark.parametrize(
    ("size", "chunk", "passes"),
    [(10_000, 1, True), (1_000_000, 50, True), (1_000_000, 1, False), (1_000_000, 16, False)],
)
def test_many_small_chunks_are_refused(size: int, chunk: int, passes: bool) -> None:
    """Each costs as much as kilobytes of data: ten million of them would take a minute."""
    chunks = Chunks(size, chunk)
    request = request_of(chunks, HTTP_TRANSFER_ENCODING="chunked")
    request.environ["gunicorn.socket"] = chunks
    if passes:
        assert len(read_body(request, 1_000_000, 5)) == size
        return
    with pytest.raises(InvalidRequest, match="too many small chunks"):
        read_body(request, 1_000_000, 5)


# --- the declared type ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {"CONTENT_TYPE": "application/json"},
        {"CONTENT_TYPE": "Application/JSON; charset=utf-8"},
        {"CONTENT_TYPE": "application/json", "HTTP_CONTENT_ENCODING": "identity"},
        {"CONTENT_TYPE": "application/json", "HTTP_CONTENT_ENCODING": " "},
    ],
)
def test_json_is_json(environ: dict[str, str]) -> None:
    """However it is spelt."""
    require_json(request_of(b"{}", **environ))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"CONTENT_TYPE": ""},
        {"CONTENT_TYPE": "text/plain"},
        {"CONTENT_TYPE": "application/jsonx"},
        {"CONTENT_TYPE": "application/x-www-form-urlencoded"},
        {"CONTENT_TYPE": "multipart/form-data; boundary=application/json"},
        {"CONTENT_TYPE": "application/json", "HTTP_CONTENT_ENCODING": "gzip"},
        {"CONTENT_TYPE": "application/json", "HTTP_CONTENT_ENCODING": "identity, br"},
    ],
)
def test_anything_else_is_refused(environ: dict[str, str]) -> None:
    """A compressed body is no JSON either: nothing behind the router may unpack it."""
    with pytest.raises(UnsupportedMediaType):
        require_json(request_of(b"{}", **environ))


# --- parsing --------------------------------------------------------------------------------


def nested(levels: int, opening: str, closing: str) -> bytes:
    """An object in which so many levels lie within one another, itself included."""
    return f'{{"a":{opening * (levels - 1)}0{closing * (levels - 1)}}}'.encode()


@settings(max_examples=50)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_json_can_say_is_read_as_it_was_meant(value: Any) -> None:
    """Strictness costs no honest client anything."""
    written = json.dumps(value, ensure_ascii=False).encode()
    assert parse_json(written, field="body") == value
    assert parse_object(json.dumps({"a": value}).encode()) == {"a": value}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b" ", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{}{}", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\n"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"{}"', "must be a JSON object"),
        (b'{"a": 9223372036854775808}', "beyond 64 bits"),
        (b'{"a": 9999999999999999999}', "beyond 64 bits"),
        (b'{"a": -9223372036854775809}', "beyond 64 bits"),
        (b'{"a": ' + b"9" * 300 + b"}", "beyond 64 bits"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON"),
        (nested(100_000, "[", "]"), "not valid JSON"),
        (nested(100_000, '{"a":', "}"), "not valid JSON"),
    ],
)
def test_what_no_two_parsers_read_alike_is_refused(body: bytes, message: str) -> None:
    """P15: bad bodies end here, with the name of what is wrong."""
    with pytest.raises(InvalidRequest, match=message) as refusal:
        parse_object(body)
    assert refusal.value.field == "body"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "model": "b"}',
        b'{"messages": [{"role": "user", "model": 1, "model": 1}]}',
        b'{"a": {"b": [[{"model": 1, "c": 2, "model": null}]]}}',
        b'{"mod\\u0065l": 1, "model": 2}',
    ],
)
def test_a_name_that_occurs_twice_is_refused_at_any_depth(body: bytes) -> None:
    """Two parsers may take two different values for the one that counts."""
    with pytest.raises(InvalidRequest, match="occurs twice") as refusal:
        parse_object(body)
    assert refusal.value.field == "model"


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 10**18, -(10**18), 0])
def test_integers_of_64_bits_are_exact(value: int) -> None:
    """Up to the last one that fits."""
    assert parse_object(b'{"a": %d}' % value) == {"a": value}


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_the_depth_has_one_limit(opening: str, closing: str) -> None:
    """Deeper JSON used to pass and then could not be written again: an error of ours, late."""
    assert parse_object(nested(MAX_DEPTH, opening, closing))
    with pytest.raises(InvalidRequest, match="too deeply"):
        parse_object(nested(MAX_DEPTH + 1, opening, closing))


def test_many_brackets_are_no_depth() -> None:
    """What is wide is not deep."""
    wide: list[Any] = [[] for _ in range(5 * MAX_DEPTH)]
    assert parse_object(json.dumps({"a": wide, "b": "[" * 1000}).encode())["a"] == wide


def test_another_text_has_another_name() -> None:
    """The payload of a native call is JSON within JSON."""
    with pytest.raises(InvalidRequest, match="'payload' is not valid JSON") as refusal:
        parse_json(b"{", field="payload")
    assert refusal.value.field == "payload"
    with pytest.raises(InvalidRequest, match="64 bits") as refusal:
        parse_json(b"[9223372036854775808]", field="payload")
    assert refusal.value.field == "payload"


# --- how much there is to parse -------------------------------------------------------------


@pytest.mark.parametrize(
    "unit", ["[[]],", "{},", "1,", '"",', '{"a":1},', "0.123456789,", "[[[[1]]]],"]
)
def test_more_elements_than_may_be_parsed_are_refused(unit: str) -> None:
    """P5: ten megabytes of them would hold everybody's calls up for seconds."""
    body = f'{{"a":[{unit * 110_000}0]}}'.encode()
    with pytest.raises(BodyTooLarge, match="limit of 100000 elements of JSON") as refusal:
        parse_object(body)
    assert refusal.value.field == "body"


def test_others_are_served_while_many_elements_are_parsed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a native thread; what it raises is the caller's."""
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            gevent.sleep(0)

    ticker = gevent.spawn(tick)
    body = b'{"a":[%b0]}' % (b"12345," * 60_000)
    assert len(parse_object(body)["a"]) == 60_001
    assert ticks > 1
    with pytest.raises(InvalidRequest, match="occurs twice"):
        parse_object(b'{"a":1,"a":[%b0]}' % (b"12345," * 60_000))
    ticker.kill()
    assert capsys.readouterr().err == ""
