"""W3C Trace Context: which headers are continued, which begin a new trace, what the next hop gets.

The cases are those of https://www.w3.org/TR/trace-context/ and of its published test suite.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.traces import TraceContext, open_trace

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
DIGITS = st.sampled_from("0123456789abcdefF")
SHAPE = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def header(
    version: str = "00", trace: str = TRACE, parent: str = PARENT, flags: str = "01", more: str = ""
) -> str:
    return f"{version}-{trace}-{parent}-{flags}{more}"


CONTINUED = {
    "as in the standard": header(),
    "not sampled": header(flags="00"),
    "a version to come": header("01"),
    "a version to come with more": header("01", more="-what-the-future-will-be-like"),
    "a version to come with a bare dash": header("01", more="-"),
    "the last version there can be": header("fe", more="-x"),
    "version cc": header("cc"),
    "spaces around": f"  {header()} ",
    "tabs around": f"\t{header()}\t",
    "ids of one bit": header(trace="0" * 31 + "1", parent="1" + "0" * 15),
    "512 characters": header("01", more="-" + "x" * (512 - 56)),
}

BEGUN_ANEW = {
    "no header": None,
    "an empty one": "",
    "spaces": "   ",
    "the forbidden version": header("ff"),
    "the forbidden version with more": header("ff", more="-x"),
    "version 00 with more": header(more="-what-the-future-will-be-like"),
    "version 00 with a bare dash": header(more="-"),
    "a dot after it": header(more="."),
    "a version to come with a dot": header("01", more=".x"),
    "a version to come run on": header("01", more="x"),
    "a line after a version to come": header("01", more="-a\nb"),
    "an uppercase trace id": header(trace=TRACE.upper()),
    "an uppercase parent id": header(parent=PARENT.upper()),
    "an uppercase version": header("CC"),
    "uppercase flags": header(flags="0B"),
    "a trace id of zeros": header(trace="0" * 32),
    "a parent id of zeros": header(parent="0" * 16),
    "zeros in a version to come": header("01", parent="0" * 16),
    "a trace id that is too short": header(trace=TRACE[:-1]),
    "a trace id that is too long": header(trace=TRACE + "0"),
    "a parent id that is too short": header(parent=PARENT[:-1]),
    "a parent id that is too long": header(parent=PARENT + "0"),
    "a version of one digit": header("0"),
    "a version of three digits": header("000"),
    "flags of one digit": header(flags="1"),
    "flags of three digits": header(flags="001"),
    "no flags": header(flags=""),
    "no hex in the version": header("0g"),
    "no hex in the trace id": header(trace="." + TRACE[1:]),
    "no hex in the parent id": header(parent=PARENT[:-1] + "z"),
    "no hex in the flags": header(flags=".0"),
    "digits of another script": header(flags="٠١"),
    "spaces inside": header(more=" x").replace("-", " - ", 1),
    "two headers in one": f"{header()},{header()}",
    "underscores": header().replace("-", "_"),
    "no dashes": header().replace("-", ""),
    "513 characters": header("01", more="-" + "x" * (513 - 56)),
    "a megabyte": header("01", more="-" + "x" * 2**20),
    "a megabyte of spaces": header() + " " * 2**20,
}


@pytest.mark.parametrize("traceparent", CONTINUED.values(), ids=CONTINUED)
def test_a_valid_header_is_continued(traceparent: str) -> None:
    """The trace stays the caller's, the caller's span is our parent, our span is new."""
    trace = open_trace(traceparent)
    _, trace_id, parent_id, _ = traceparent.strip().split("-")[:4]
    assert (trace.trace_id, trace.parent_span_id) == (trace_id, parent_id)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id)
    assert trace.span_id != parent_id


@pytest.mark.parametrize("traceparent", BEGUN_ANEW.values(), ids=BEGUN_ANEW)
def test_anything_else_begins_a_trace(traceparent: str | None) -> None:
    """What cannot be read is not believed in part either: all ids are new, nobody is parent."""
    trace = open_trace(traceparent)
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id)
    assert (trace.parent_span_id, trace.flags) == (None, "00")
    assert trace.trace_id.lower() != TRACE


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        ("00", "00"),
        ("01", "01"),
        ("02", "02"),
        ("03", "03"),
        ("04", "00"),
        ("09", "01"),
        ("fe", "02"),
        ("ff", "03"),
    ],
)
@pytest.mark.parametrize("version", ["00", "01", "fe"])
def test_flags_without_a_meaning_are_sent_as_zero(version: str, flags: str, sent: str) -> None:
    """Sampled and random are passed on; the standard reserves the other bits."""
    assert open_trace(header(version, flags=flags)).flags == sent


def test_the_next_hop_gets_a_child_header() -> None:
    """Version 00 whatever came in, the caller's trace, our span as the parent, no extra fields."""
    trace = open_trace(header("cc", flags="01", more="-future"))
    assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-01"
    assert TraceContext("a" * 32, "b" * 16, None, "00").traceparent == (
        "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00"
    )


def test_the_next_hop_understands_it() -> None:
    """A header of ours is one that we would continue ourselves."""
    first = open_trace(None)
    second = open_trace(first.traceparent)
    assert (second.trace_id, second.parent_span_id) == (first.trace_id, first.span_id)


def test_every_call_has_a_span_of_its_own() -> None:
    """Neither spans of one trace nor traces are ever the same."""
    spans = {open_trace(header()).span_id for _ in range(1_000)}
    traces = {open_trace(None).trace_id for _ in range(1_000)}
    assert (len(spans), len(traces)) == (1_000, 1_000)


@given(
    st.text(max_size=60)
    | st.builds(
        header,
        st.lists(DIGITS, min_size=2, max_size=2).map("".join),
        DIGITS.map(lambda digit: digit * 32),
        DIGITS.map(lambda digit: digit * 16),
        st.lists(DIGITS, min_size=2, max_size=2).map("".join),
        st.sampled_from(["", "-", "-more", "x", " "]),
    )
)
def test_any_header_gives_a_trace_that_can_be_sent(traceparent: str) -> None:
    """Whatever a client sends, what we send is well-formed and never all zeros."""
    trace = open_trace(traceparent)
    assert SHAPE.fullmatch(trace.traceparent)
    assert trace.trace_id != "0" * 32
    assert trace.parent_span_id is None or trace.parent_span_id in traceparent
