"""Every ending of a call, and what it is charged then: the table of docs/records.md, by hand.

``cases`` makes the product of the ways to report usage, of whole and streamed answers, and of the
endings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.fakes.backend.scripts import chunk, event_stream, reply
from tests.fakes.backend.server import RawEnd
from tests.fakes.backend.usage_reports import (
    NUMBERS,
    REPORTERS,
    SAID,
    Report,
    Reporter,
    Vary,
    in_full,
    sse,
    without,
)
from tests.fakes.backend.usage_spellings import INPUT, OUTPUT, Split
from tests.fakes.exact_money import AMOUNTS, PROMPT, WAYS, Asked, Charge

# Four bytes a token, by docs/records.md.
GUESSED_INPUT, GUESSED_OUTPUT = len(PROMPT) // 4, len(SAID) // 4
GUESSED: Split = {"input": GUESSED_INPUT, "output": GUESSED_OUTPUT}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "no", "code": None}}
_JSON = ("Content-Type: application/json",)
_HEAD = reply(
    headers=("Content-Type: text/event-stream", "Transfer-Encoding: chunked"),
    length=False,
    body=b"",
)

Leave = Literal["before", "unread", "said", "after"] | None
"""When a client leaves: before the head of an answer, with it, behind the text, behind all."""


@dataclass(frozen=True)
class Backend:
    """What a backend does."""

    raw: bytes
    stop: RawEnd = None


@dataclass(frozen=True)
class Ending:
    """One way in which a call ends."""

    name: str
    charge: Callable[[Report], Charge]
    whole: Callable[[Report], Backend] | None
    """Asked for a whole answer; ``None`` where only a stream can end like this."""
    streamed: Callable[[Report], Backend] | None
    leave: Leave = None
    vary: Vary | None = None
    """How the usage is reported; as it should be where this is ``None``."""
    amounts: Split | None = None


@dataclass(frozen=True)
class Case:
    """One call."""

    reporter: Reporter
    asked: Asked
    ending: Ending
    report: Report

    @property
    def name(self) -> str:
        """For the message of a failure."""
        return f"{self.ending.name}, {self.asked}"

    @property
    def charge(self) -> Charge:
        """By the table."""
        return self.ending.charge(self.report)

    @property
    def backend(self) -> Backend:
        """What its backend is to do."""
        made = self.ending.streamed if self.asked.stream else self.ending.whole
        assert made is not None
        return made(self.report)


def cases(reporter: Reporter) -> Iterator[Case]:
    """All endings of whole and of streamed answers of a backend; the kinds of number and the ways
    to ask take turns. Calls that end well are made in all of them."""
    for number, ending in enumerate(ENDINGS):
        for stream in (False, True):
            if (ending.streamed if stream else ending.whole) is None:
                continue
            ways = [asked for asked in WAYS if asked.stream is stream]
            pairs = [(spell, asked) for spell in NUMBERS.values() for asked in ways]
            if ending.name != "completed":
                pairs = [pairs[(number + REPORTERS.index(reporter)) % len(pairs)]]
            for spell, asked in pairs:
                vary = ending.vary or in_full(spell)
                report = reporter.report(ending.amounts or AMOUNTS, vary)
                yield Case(reporter, asked, ending, report)


# --- what backends do ------------------------------------------------------------------------


def _answers(report: Report) -> Backend:
    return Backend(reply(json.dumps(report.whole).encode(), headers=_JSON))


def _streams(report: Report) -> Backend:
    return Backend(event_stream(*report.events))


def _both(raw: bytes, stop: RawEnd = None) -> dict[str, Any]:
    backend = Backend(raw, stop)
    return {"whole": lambda _: backend, "streamed": lambda _: backend}


def _status(status: int) -> dict[str, Any]:
    """An error that claims to have used something."""

    def refuse(report: Report) -> Backend:
        body = {**report.whole, **ERROR}
        return Backend(reply(json.dumps(body).encode(), status, headers=_JSON))

    return {"whole": refuse, "streamed": refuse}


def _after(stage: int, stop: RawEnd) -> dict[str, Any]:
    """A stream goes wrong at this stage: begun, said its text, reported its usage."""

    def break_off(report: Report) -> Backend:
        events = report.events[: report.stages[stage]]
        return Backend(_HEAD + b"".join(map(chunk, events)), stop)

    return {"whole": None, "streamed": break_off}


def _cut_whole(report: Report) -> Backend:
    raw = _answers(report).raw
    return Backend(raw[: raw.index(b"\r\n\r\n") + 6], "ends")


def _half_whole(report: Report) -> Backend:
    return Backend(_cut_whole(report).raw, "hangs")


def _error_event(report: Report) -> bytes:
    if report.model == "claude":
        return sse(ERROR, "error")
    return sse({"error": ERROR["error"]})


def _error_after(stage: int) -> dict[str, Any]:
    def give_up(report: Report) -> Backend:
        events = report.events[: report.stages[stage]] if stage >= 0 else ()
        return Backend(event_stream(*events, _error_event(report)))

    return {"whole": None, "streamed": give_up}


_WELL: dict[str, Any] = {"whole": _answers, "streamed": _streams}

# --- what is charged -------------------------------------------------------------------------


def _reported(outcome: str = "completed") -> Callable[[Report], Charge]:
    return lambda report: Charge(outcome, "reported", report.split, report.tier)


def _estimated(report: Report) -> Charge:
    """Nothing that the backend reports makes sense."""
    return Charge("completed", "estimated", GUESSED)


def _estimated_output(report: Report) -> Charge:
    """The input is as reported, searches too."""
    return Charge("completed", "estimated", _told(report, GUESSED_OUTPUT), report.tier)


def _abandoned(outcome: str) -> Callable[[Report], Charge]:
    return lambda report: Charge(outcome, "estimated", {"input": GUESSED_INPUT})


def _seen(outcome: str, said: bool = True) -> Callable[[Report], Charge]:
    """What came before the end, and the input as the backend told it, if it did."""

    def charge(report: Report) -> Charge:
        if report.told_at_start:
            split = _told(report, GUESSED_OUTPUT if said else 1)
            return Charge(outcome, "estimated", split, report.tier)
        return Charge(outcome, "estimated", GUESSED if said else {"input": GUESSED_INPUT})

    return charge


def _free(outcome: str = "upstream_error") -> Callable[[Report], Charge]:
    return lambda report: Charge(outcome, "none", {})


def _told(report: Report, tokens_output: int) -> Split:
    rest = {name: amount for name, amount in report.split.items() if name not in OUTPUT}
    return {**rest, "output": tokens_output}


def _spelled(spell: Callable[[int], Any]) -> Vary:
    """The numbers are not those that they should be; so none of them says anything."""
    return in_full(spell)


ENDINGS = (
    Ending("completed", _reported(), **_WELL),
    Ending(
        "more than reserved",
        _reported(),
        **_WELL,
        amounts={name: 1000 * amount for name, amount in AMOUNTS.items()},
    ),
    Ending("usage absent", _estimated, **_WELL, vary=lambda _write, _split: {}),
    Ending("usage null", _estimated, **_WELL, vary=_spelled(lambda _: None)),
    Ending("usage zero", _estimated, **_WELL, vary=_spelled(lambda _: 0)),
    Ending("usage negative", _estimated, **_WELL, vary=_spelled(lambda number: -1 - number)),
    Ending("usage fractional", _estimated, **_WELL, vary=_spelled(lambda number: number + 0.5)),
    Ending("usage absurd", _estimated, **_WELL, vary=_spelled(lambda number: 10**12 + number)),
    Ending("usage without the output", _estimated_output, **_WELL, vary=without(OUTPUT)),
    Ending("usage without the input", _estimated, **_WELL, vary=without(INPUT)),
    Ending("client gone before the first byte", _abandoned("client_aborted"), **_both(b"", "hangs"),
           leave="before"),
    Ending("client gone with the head", _abandoned("client_aborted"), **_after(0, "hangs"),
           leave="unread"),
    Ending("client gone midway", _seen("client_aborted"), **_after(1, "hangs"), leave="said"),
    Ending("client gone behind the report", _reported("client_aborted"),
           **_after(2, "hangs"), leave="said"),
    Ending("client gone after the last byte", _reported(), **_WELL, leave="after"),
    *(
        Ending(f"status {status}", _free(), **_status(status))
        for status in (400, 402, 408, 429, 500, 503)
    ),
    Ending("error with status 200", _free("upstream_aborted"),
           **_both(reply(json.dumps(ERROR).encode(), headers=_JSON))),
    Ending("nonsense with status 200", _abandoned("upstream_aborted"),
           **_both(reply(b"{", headers=_JSON))),
    Ending("closed before the head", _abandoned("upstream_error"), **_both(b"", "ends")),
    Ending("reset before the head", _abandoned("upstream_error"), **_both(b"", "resets")),
    Ending("silent before the head", _abandoned("timeout"), **_both(b"", "hangs")),
    Ending("cut after the head", _abandoned("upstream_aborted"), _cut_whole,
           lambda _: Backend(_HEAD, "ends")),
    Ending("silent after the head", _abandoned("timeout"), _half_whole,
           lambda _: Backend(_HEAD, "hangs")),
    Ending("empty stream", _abandoned("upstream_aborted"), None,
           lambda _: Backend(event_stream())),
    Ending("cut before any text", _seen("upstream_aborted", said=False),
           **_after(0, "ends")),
    Ending("cut midway", _seen("upstream_aborted"), **_after(1, "ends")),
    Ending("cut behind the report", _reported("upstream_aborted"), **_after(2, "ends")),
    Ending("silent before any text", _seen("timeout", said=False), **_after(0, "hangs")),
    Ending("silent midway", _seen("timeout"), **_after(1, "hangs")),
    Ending("silent behind the report", _reported("timeout"), **_after(2, "hangs")),
    Ending("error event first", _free("upstream_aborted"), **_error_after(-1)),
    Ending("error event midway", _seen("upstream_aborted"), **_error_after(1)),
    Ending("error event behind the report", _reported("upstream_aborted"), **_error_after(2)),
)  # fmt: skip
