"""Log lines: one JSON object each, whatever was logged, and no secret in any of them."""

from __future__ import annotations

import errno
import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.telemetry.logs import CallLog, JsonFormatter, configure_logging

KEY = "rtr_live_0123456789ABCDEFGHIJKLMNOPQRSTUV_abcXYZ"
SIGNING_SECRET = "rsk_" + "0123456789abcdef" * 4
MOMENT_S = 1_700_000_000
MOMENT = "2023-11-14T22:13:20"


def record(message: object = "hello", *args: object, **facts: Any) -> logging.LogRecord:
    """A record as a logger makes it; ``facts`` replace its attributes or come on top."""
    made = logging.LogRecord("router.test", logging.WARNING, __file__, 1, message, args, None)
    vars(made).update({"created": float(MOMENT_S), **facts})
    return made


def formatted(*args: Any, **facts: Any) -> dict[str, Any]:
    """The line of a record, which must be one line and one object."""
    text = JsonFormatter().format(record(*args, **facts))
    assert "\n" not in text
    line = orjson.loads(text)
    assert isinstance(line, dict)
    return line


def failure(error: BaseException) -> Any:
    """What ``exc_info`` is inside an ``except`` block."""
    try:
        raise error
    except BaseException:
        return sys.exc_info()


# --- the formatter --------------------------------------------------------------------------


def test_a_line_says_when_how_grave_who_and_what() -> None:
    """Four members, and nothing of what else a record carries."""
    assert formatted("%s of %d", "one", 2) == {
        "ts": f"{MOMENT}.000Z",
        "level": "warning",
        "logger": "router.test",
        "event": "one of 2",
    }


def test_extra_fields_become_members() -> None:
    """With the types that they had, nested ones included."""
    facts = {"request_id": "r-1", "status": 200, "ratio": 0.5, "ok": True, "of": {"a": [1, None]}}
    line = formatted(**facts)
    assert {name: line[name] for name in facts} == facts


def test_an_exception_brings_its_traceback() -> None:
    """All of it, in one member of the same line."""
    line = formatted(exc_info=failure(ValueError("it broke\nin two lines")))
    assert line["event"] == "hello"
    assert line["error"].startswith("Traceback (most recent call last):\n")
    assert line["error"].endswith("ValueError: it broke\nin two lines\n")


@pytest.mark.parametrize("nothing", [None, False, (None, None, None)])
def test_no_exception_means_no_error(nothing: object) -> None:
    """`exc_info=True` outside of an `except` block is not an error."""
    assert "error" not in formatted(exc_info=nothing)


class Speechless:
    """Fails when it is asked what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


UNENCODABLE = {
    "a path": (Path("/tmp"), "/tmp"),
    "bytes": (b"\xff", "b'\\xff'"),
    "a set": ({1}, "{1}"),
    "an exception": (ValueError("bad"), "bad"),
    "no number": (float("nan"), None),
    "a huge integer": (2**64, "18446744073709551616"),
    "an unspeakable integer": (10**5_000, "<int: ValueError>"),
    "a lone surrogate": ("a\ud800", "a\\ud800"),
    "keys that are no strings": ({1: "a"}, "{1: 'a'}"),
    "a list in itself": (endless(), "[[...]]"),
    "too deep": (deep(), "<list: RecursionError>"),
    "what cannot be shown": (Speechless(), "<Speechless: RuntimeError>"),
}


@pytest.mark.parametrize(("value", "expected"), UNENCODABLE.values(), ids=UNENCODABLE)
def test_a_value_that_json_has_no_form_for_is_shown(value: object, expected: object) -> None:
    """A line is never lost for one of its members, and the others stay."""
    line = formatted(odd=value, backend="b-1")
    assert line["odd"] == expected
    assert (line["event"], line["backend"]) == ("hello", "b-1")


def test_a_member_whose_name_is_no_string_is_shown() -> None:
    """`extra` takes any mapping."""
    made = record()
    vars(made)[5] = "five"  # type: ignore[index]
    assert orjson.loads(JsonFormatter().format(made))["5"] == "five"


@pytest.mark.parametrize(
    ("message", "args", "event"),
    [
        ("%d calls", ("many",), "%d calls ('many',)"),
        ("%s and %s", ("one",), "%s and %s ('one',)"),
        ("nothing to fill", ("one",), "nothing to fill ('one',)"),
        (Speechless(), (), "<Speechless: RuntimeError> ()"),
        ("%s", (Speechless(),), "%s <tuple: RuntimeError>"),
        ({"a": 1}, (), "{'a': 1}"),
        ("100 %", (), "100 %"),
        ("a\ud800", (), "a\\ud800"),
    ],
)
def test_a_message_that_does_not_fit_its_arguments_is_shown(
    message: object, args: tuple[object, ...], event: str
) -> None:
    """K6: such a record used to reach stderr as a traceback, with its arguments as they were."""
    assert formatted(message, *args)["event"] == event


@settings(max_examples=60)
@given(
    st.text(),
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name not in vars(record())),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
            max_leaves=5,
        ),
        max_size=3,
    ),
)
def test_whatever_is_logged_is_one_line_of_json(message: str, extra: dict[str, Any]) -> None:
    """No text and no value breaks a line or the formatter."""
    line = formatted(message, **extra)
    assert {"ts", "level", "logger", "event"} <= set(line)


# --- secrets --------------------------------------------------------------------------------

SECRET_PLACES: dict[str, dict[str, Any]] = {
    "the message": {"msg": f"no model {KEY} here"},
    "its arguments": {"msg": "no model %s here", "args": (KEY,)},
    "arguments that do not fit": {"msg": "no model", "args": (KEY,)},
    "a field": {"path": f"/v1/models/{KEY}"},
    "a field's name": {KEY: 1},
    "a nested field": {"headers": [{"X-Other": f"Bearer {KEY}"}]},
    "a value without a JSON form": {"odd": {1: KEY}},
    "a traceback": {"exc_info": failure(KeyError(KEY))},
    "a signing secret": {"msg": f"signed with {SIGNING_SECRET}"},
    "bytes": {"body": KEY.encode()},
}


@pytest.mark.parametrize("facts", SECRET_PLACES.values(), ids=SECRET_PLACES)
def test_no_secret_gets_into_a_line(facts: dict[str, Any]) -> None:
    """K6: wherever it stands it is replaced, and the line stays readable JSON."""
    text = JsonFormatter().format(record(**facts))
    assert KEY[9:41] not in text
    assert SIGNING_SECRET[4:] not in text
    assert "…" in text
    assert orjson.loads(text)["logger"] == "router.test"


# --- time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        (MOMENT_S, f"{MOMENT}.000Z"),
        (MOMENT_S + 0.25, f"{MOMENT}.250Z"),
        (MOMENT_S + 0.0004, f"{MOMENT}.000Z"),
        (MOMENT_S + 0.9994, f"{MOMENT}.999Z"),
        (MOMENT_S + 0.9996, f"{MOMENT}.999Z"),
        (MOMENT_S + 0.999999, f"{MOMENT}.999Z"),
        (MOMENT_S + 1, "2023-11-14T22:13:21.000Z"),
        (MOMENT_S + 39.9996, "2023-11-14T22:13:59.999Z"),
        (1_709_164_800.5, "2024-02-29T00:00:00.500Z"),
        (1_798_761_599.9996, "2026-12-31T23:59:59.999Z"),
        (0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_utc_with_milliseconds(created: float, expected: str) -> None:
    """Cut off rather than rounded: never `.1000`, never a second that has not begun."""
    assert formatted(created=created)["ts"] == expected


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host nine hours ahead."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_times_do_not_follow_the_host() -> None:
    """UTC wherever the host stands; this second is formatted nowhere else."""
    assert time.localtime(0).tm_hour == 9
    assert formatted(created=1_234_567_890.0)["ts"] == "2009-02-13T23:31:30.000Z"


def test_times_follow_the_clock_back_and_forth() -> None:
    """What is kept of one second does not show up in another."""
    seconds = [MOMENT_S + step for step in (0, 1, 2, 3, 4, 5, 0, 86_400, 0)]
    shown = [formatted(created=float(second))["ts"] for second in seconds]
    expected = [datetime.fromtimestamp(second, timezone.utc) for second in seconds]
    assert shown == [moment.strftime("%Y-%m-%dT%H:%M:%S.000Z") for moment in expected]


@given(st.floats(0, 4_102_444_800))
def test_any_time_is_shown_to_the_millisecond(created: float) -> None:
    """What is read back lies within a millisecond before the moment, for every moment."""
    shown = formatted(created=created)["ts"]
    moment = datetime.strptime(shown, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert -1e-6 < created - moment.timestamp() < 0.001 + 1e-6


# --- where lines go -------------------------------------------------------------------------


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], level = before
    logger.setLevel(level)


@contextmanager
def ascii_stdout() -> Iterator[io.BytesIO]:
    """Standard output of a process whose locale knows ASCII only."""
    written = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(written, encoding="ascii")):
        yield written


def lines_in(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_every_logger_writes_json_to_standard_output(root: logging.Logger) -> None:
    """Ours and those of libraries alike, from the chosen level on."""
    with ascii_stdout() as written:
        configure_logging("WARNING")
        logging.getLogger("some.library").warning("watch %s", "out", extra={"code": 7})
        logging.getLogger("router").info("not worth a line")
        [line] = lines_in(written)
    assert (line["logger"], line["event"], line["code"]) == ("some.library", "watch out", 7)


def test_configuring_twice_writes_once(root: logging.Logger) -> None:
    """Handlers are replaced, also those that somebody else has put there."""
    with ascii_stdout() as written:
        root.addHandler(logging.StreamHandler(sys.stdout))
        configure_logging("INFO")
        configure_logging("DEBUG")
        logging.getLogger("router").debug("once")
        assert [line["event"] for line in lines_in(written)] == ["once"]


@pytest.mark.usefixtures("root")
def test_lines_are_utf8_whatever_the_locale() -> None:
    """K6: an ellipsis that could not be encoded used to send the raw arguments to stderr."""
    with ascii_stdout() as written:
        configure_logging("INFO")
        logging.getLogger("router").info("no model %s für dich", KEY)
        [line] = lines_in(written)
    assert line["event"] == "no model … für dich"


# --- the line of a call ---------------------------------------------------------------------


class Stream(io.BytesIO):
    """Notes what was complete at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[bytes] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_a_call_is_one_line_and_flushed_at_once() -> None:
    """Whoever is killed after a call has its line out already."""
    stream = Stream()
    log = CallLog(stream)
    log.write({"request_id": "r-1", "status": 200, "cost_nanos": None})
    log.write({"request_id": "r-2", "event_detail": "a\nb\u2028c"})
    first, second = stream.getvalue().splitlines(keepends=True)
    assert stream.flushed == [first, first + second]
    facts = {"level": "info", "event": "call", "request_id": "r-1", "status": 200}
    line = orjson.loads(first)
    assert line.pop("ts")
    assert line == {**facts, "cost_nanos": None}
    assert orjson.loads(second)["event_detail"] == "a\nb\u2028c"


def test_a_call_is_dated_now() -> None:
    """The line carries the moment at which it was written, to the millisecond."""
    stream = io.BytesIO()
    before_s = time.time()
    CallLog(stream).write({})
    after_s = time.time()
    [line] = lines_in(stream)
    moment = datetime.strptime(line["ts"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert before_s - 0.001 <= moment.timestamp() <= after_s


def test_calls_go_to_standard_output() -> None:
    """Without a stream of its own the log shares the one of all other lines, in order."""
    with ascii_stdout() as written:
        log = CallLog()
        log.write({"number": 1})
        print('{"number": 2}', flush=True)  # noqa: T201
        log.write({"number": 3, "model": "é"})
        assert [line["number"] for line in lines_in(written)] == [1, 2, 3]


class FullDisk(io.BytesIO):
    """A stream that takes nothing."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_line_that_cannot_be_written_fails_nothing() -> None:
    """It used to break the client's connection after the reply."""
    assert CallLog(FullDisk()).write({"status": 200}) is False
