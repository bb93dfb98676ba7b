"""Server-sent events are cut out of a stream without changing a byte."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.providers.sse import MAX_EVENT_BYTES, SseSplitter, data_of


def cut(*chunks: bytes) -> list[bytes]:
    splitter = SseSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    rest = splitter.finish()
    return [*events, rest] if rest else events


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_ends_with_a_blank_line(end: bytes) -> None:
    """Whichever of the three line ends the backend writes."""
    events = [b"data: 1" + end * 2, b"event: x" + end + b"data: 2" + end * 2]
    assert cut(b"".join(events)) == events


@pytest.mark.parametrize(
    "stream",
    [
        b"data: a\n\ndata: b\r\n\r\ndata: c\r\rdata: d\n\r\n",
        b": comment\n\ndata: 1\ndata: 2\n\nid: 7\n\n",
        b"data: last without its blank line",
        b"\n\n\n\ndata: x\n\n",
        b"data: \xf0\x9f\x98\x80\n\n",
    ],
)
def test_reads_may_end_anywhere(stream: bytes) -> None:
    """Cut at every byte, the same bytes come out in the same order."""
    for at in range(len(stream) + 1):
        assert b"".join(cut(stream[:at], stream[at:])) == stream
    assert b"".join(cut(*(stream[n : n + 1] for n in range(len(stream))))) == stream


PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b"data: x", b"data:", b":", b"a", b"\n\n", b""])


@given(st.lists(PIECES, max_size=30), st.lists(st.integers(0, 60), max_size=8))
def test_no_byte_is_lost_or_added(pieces: list[bytes], cuts: list[int]) -> None:
    """Also for streams that are no proper events at all."""
    stream = b"".join(pieces)
    marks = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    chunks = [stream[start:end] for start, end in pairwise(marks)]
    assert b"".join(cut(*chunks)) == stream


@given(st.lists(PIECES, max_size=20))
def test_data_does_not_depend_on_the_reads(pieces: list[bytes]) -> None:
    """Read byte by byte or at once, a stream says the same."""
    stream = b"".join(pieces)
    at_once = [data_of(event) for event in cut(stream)]
    singly = [data_of(event) for event in cut(*(stream[n : n + 1] for n in range(len(stream))))]
    assert [data for data in singly if data is not None] == [
        data for data in at_once if data is not None
    ]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\r\n\r\n", b" x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\rdata:b\r\r", b"a\nb"),
        (b"event: message\nid: 1\ndata: x\n\n", b"x"),
        (b": ping\ndata: x\n\n", b"x"),
        (b"\ndata: x\n\n", b"x"),
        (b"data:\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
        (b": ping\n\n", None),
        (b"event: ping\n\n", None),
        (b"database: x\n\n", None),
        (b" data: x\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    """Its data lines joined, without the one blank after the colon (WHATWG HTML §9.2.6)."""
    assert data_of(event) == data


def test_an_endless_event_comes_in_pieces() -> None:
    """Memory is bounded; what is too large to be read is still forwarded."""
    splitter = SseSplitter()
    block = b"x" * (MAX_EVENT_BYTES // 4)
    assert [len(splitter.feed(block)) for _ in range(6)] == [0, 0, 0, 0, 1, 0]
    assert splitter.finish() == block


def test_a_large_event_in_small_reads_costs_no_more_than_its_size() -> None:
    """What was searched before is not searched again: it used to take minutes of CPU."""
    splitter = SseSplitter()
    started_s = time.process_time()
    for _ in range(8_000):
        splitter.feed(b"x" * 128)
    assert splitter.feed(b"\n\n") != []
    assert time.process_time() - started_s < 0.5
