"""Frames: their bytes, and finding them again after damage of every kind."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.spool.frames import (
    AUDIT,
    CORRUPT,
    HEAD_BYTES,
    INCOMPLETE,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    USAGE,
    Position,
    draft_name,
    encode_frame,
    find_frame,
    header_format,
    header_frame,
    is_writer_id,
    measure,
    scan,
    segment_name,
    segment_numbers,
    whole_frames,
)

START = Position("w", 1, 0)


def test_a_frame_has_the_documented_bytes() -> None:
    """What is on disks out there must stay readable: the layout is pinned."""
    checked = b"\x02\x00\x00\x00\x00\x05"
    crc = zlib.crc32(checked + b"hello").to_bytes(4, "big")
    assert encode_frame(AUDIT, b"hello") == b"\xff\xf8" + checked + crc + b"hello"
    assert HEAD_BYTES == 12


def test_a_header_tells_format_writer_and_number() -> None:
    """The first frame of a segment is plain to read, also for people."""
    frame = header_frame("w", 7)
    assert frame[HEAD_BYTES:] == b'{"format":1,"writer_id":"w","segment":7}'
    assert frame[2] == 0
    assert header_format(frame + b"more") == 1


@pytest.mark.parametrize("data", [b"", b"junk", encode_frame(USAGE, b"{}"), encode_frame(0, b"[]")])
def test_what_is_no_header_announces_no_format(data: bytes) -> None:
    """A damaged header is no reason to give up the segment."""
    assert header_format(data) is None


def test_no_text_contains_the_magic() -> None:
    """Neither byte occurs in UTF-8, so no client can smuggle a frame into a record."""
    for byte in MAGIC:
        with pytest.raises(UnicodeDecodeError):
            bytes([byte]).decode()
        everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 17)]))
        assert byte not in everything.encode()


def test_a_payload_that_no_reader_would_accept_is_refused() -> None:
    """The limit holds when writing, so that a larger length is damage when reading."""
    assert measure(encode_frame(USAGE, bytes(MAX_PAYLOAD_BYTES)), 0) > MAX_PAYLOAD_BYTES
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        encode_frame(USAGE, bytes(MAX_PAYLOAD_BYTES + 1))


def test_every_proper_prefix_of_a_frame_is_incomplete() -> None:
    """A frame that is still being written is never mistaken for damage."""
    frame = encode_frame(USAGE, b'{"a":1}')
    assert [measure(frame[:end], 0) for end in range(len(frame))] == [INCOMPLETE] * len(frame)
    assert measure(frame, 0) == len(frame)


def test_every_changed_byte_is_noticed() -> None:
    """Requirement Q7: no frame with a changed byte counts as one, and none is just cut off."""
    frame = encode_frame(USAGE, b'{"a":1}')
    for index in range(len(frame)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[index] ^= change
            assert measure(bytes(damaged), 0) in (CORRUPT, INCOMPLETE)


def test_whole_frames_counts_what_a_short_write_left_whole() -> None:
    """After a write of any length it is known where the last whole frame ends."""
    first, second = encode_frame(USAGE, b"a" * 5), encode_frame(AUDIT, b"")
    both = first + second
    for end in range(len(both) + 1):
        whole = len(both) if end == len(both) else len(first) if end >= len(first) else 0
        assert whole_frames(both, end) == whole


payloads = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


@given(payloads=payloads, junk=st.binary(min_size=1, max_size=60), data=st.data())
def test_junk_between_frames_costs_no_frame(
    payloads: list[bytes], junk: bytes, data: st.DataObject
) -> None:
    """Whatever is inserted, all frames come out, in order, and all else is named as a gap."""
    frames = [encode_frame(USAGE, payload) for payload in payloads]
    at = data.draw(st.integers(0, len(frames)))
    content = b"".join(frames[:at]) + junk + b"".join(frames[at:])
    found = scan(content, START, limit=len(content), complete=True, final=True)
    assert [frame.payload for frame in found.frames] == payloads
    assert sum(gap.end - gap.start for gap in found.gaps) == len(junk)
    assert found.stop == len(content)


@given(payloads=payloads, limit=st.integers(1, 200))
def test_scanning_in_pieces_finds_the_same(payloads: list[bytes], limit: int) -> None:
    """However small the limit, each scan moves on and the frames are the same."""
    content = b"".join(encode_frame(AUDIT, payload) for payload in payloads)
    found: list[bytes] = []
    offset = 0
    while offset < len(content):
        start = Position("w", 1, offset)
        piece = scan(content[offset:], start, limit=limit, complete=True, final=False)
        assert piece.stop > 0
        found += [frame.payload for frame in piece.frames]
        assert piece.frames[-1].position_after == Position("w", 1, offset + piece.stop)
        offset += piece.stop
    assert found == payloads


def test_the_search_finds_the_next_whole_frame_only() -> None:
    """Magic bytes alone, and frames that are cut off, are passed by."""
    frame = encode_frame(USAGE, b"x")
    content = MAGIC + b"..." + frame[:-1] + frame
    assert find_frame(content, 0) == len(content) - len(frame)
    assert find_frame(content[:-1], 0) == -1


def test_names_of_segments_sort_and_parse() -> None:
    """Only finished names count; drafts, locks and other files do not."""
    names = [
        segment_name(10),
        segment_name(9),
        draft_name(11),
        "lock",
        "9.seg",
        "x000000000001.seg",
    ]
    assert segment_numbers(names) == [9, 10]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0191d2c5a1b2-17-0a1b2c3d", True),
        ("quarantine", False),
        (".0191d2c5a1b2-17-0a1b2c3d", False),
        ("UPPER", False),
        ("a" * 65, False),
    ],
)
def test_directories_of_writers_are_told_by_name(name: str, expected: bool) -> None:
    """What lies beside the writers' directories is left alone."""
    assert is_writer_id(name) is expected
