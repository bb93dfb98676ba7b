"""The functions that `micro.py` can time: name -> factory of the callable to be timed.

A factory does what happens once (imports, schemas, sample data) and returns what happens per call.
The `reference` entries tell how fast the machine is at the moment.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.messages import API_KEY, CALL_BODY, PATH

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Operation = Callable[[], object]


def _reference_json_loads() -> Operation:
    return lambda: json.loads(CALL_BODY)


def _reference_sha256() -> Operation:
    secret = API_KEY.encode()
    return lambda: hashlib.sha256(secret).digest()


def _cost_nanos() -> Operation:
    from router.call import Usage
    from router.config.document import Prices
    from router.pricing.cost import cost_nanos

    usage = Usage(tokens_input=1_200, tokens_output=350, tokens_cached=1_024)
    prices = Prices(2_500_000_000, 10_000_000_000, cached_input_nanos=1_250_000_000)
    return lambda: cost_nanos(usage, prices)


def _estimate() -> Operation:
    from router.config.document import Model
    from router.pricing.estimates import estimate

    call = _call()
    return lambda: estimate(call, Model(call.model), 1_400)


def _bound() -> Operation:
    from router.config.document import Model, Prices
    from router.pricing.bounds import bound_of

    call, prices = _call(), Prices(2_500_000_000, 10_000_000_000)
    return lambda: bound_of(call, Model(call.model)).cost_nanos(prices)


def _call() -> Any:
    from router.call import Call

    fields = json.loads(CALL_BODY)
    return Call("openai", "chat", fields["model"], fields["model"], fields, CALL_BODY)


_COUNTS: dict[str, Any] = {
    "prompt_tokens": 1_200,
    "completion_tokens": 350,
    "total_tokens": 1_550,
    "prompt_tokens_details": {"cached_tokens": 1_024, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 120, "audio_tokens": 0},
}


def _read_usage() -> Operation:
    from router.providers.openai_usage import read_usage

    return lambda: read_usage(_COUNTS)


def _read_odd_usage() -> Operation:
    """Reasoning outside the completion, a cache hit under DeepSeek's name."""
    from router.providers.openai_usage import read_usage

    counts = {**_COUNTS, "total_tokens": 1_670, "prompt_cache_hit_tokens": 1_024}
    return lambda: read_usage(counts)


def _completion_event() -> Operation:
    from router.providers.openai_api import CompletionStream

    choice = {"index": 0, "delta": {"content": "hello"}, "logprobs": None, "finish_reason": None}
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    event = b"data: %b\n\n" % json.dumps({**frame, "choices": [choice], "usage": None}).encode()
    stream = CompletionStream(strip_usage=True)
    return lambda: stream.feed(event)


def _messages_event() -> Operation:
    from router.providers.anthropic.stream import MessagesStream

    stream = MessagesStream("chat", include_usage=False, created=1)
    message = {"id": "m", "model": "c", "usage": {"input_tokens": 5, "output_tokens": 1}}
    start = {"type": "message_start", "message": message}
    stream.feed(b"data: %b\n\n" % json.dumps(start).encode())
    delta = {"type": "text_delta", "text": "hello"}
    event = {"type": "content_block_delta", "index": 0, "delta": delta}
    wire = b"event: content_block_delta\ndata: %b\n\n" % json.dumps(event).encode()
    return lambda: stream.feed(wire)


def _spool_append() -> Operation:
    from router.spool.frames import AUDIT, USAGE

    writer = _spool_writer()
    usage = b'{"filler":"%b"}' % (b"u" * 1100)
    event = b'{"filler":"%b"}' % (b"a" * 700)
    return lambda: writer.append(((USAGE, usage), (AUDIT, event)))


def _dispatch() -> Operation:
    from router.limits.budgets.lease_notation import lease_of
    from router.limits.budgets.periods import Period
    from router.limits.budgets.windows import Reservation, ReservedWindow, WindowSpec
    from router.records.dispatches import Dispatch
    from router.records.recorder import Recorder

    recorder = Recorder(_spool_writer())
    window = WindowSpec("daily", "usd", "daily", 10**9, thresholds=(80, 95))
    held = ReservedWindow(window, Period(1_800_000_000_000, 1_800_086_400_000), 41_210_000)
    reservation = Reservation("lease", "acme", (held,), 1_800_000_000_123, "1800000000123456")

    def note() -> None:
        recorder.dispatched(
            Dispatch(
                "01a22f0e-b0bd-7534-9e94-4ed401a22f0e",
                "01a22f0e-b0bd-7534-9e94-4ed401a22f0f",
                1_800_000_000.5,
                "acme",
                "key_1",
                "openai.chat_completions",
                "chat",
                "gpt-4o",
                "gpt-4o",
                "primary",
                False,
                "PRIMARY",
                TRACEPARENT[3:35],
                TRACEPARENT[36:52],
                {},
                "estimated",
                120,
                0,
                300_000,
                None,
                (41_210_000, 4_216, 1),
                lease_of(reservation, 900_000),
            )
        )

    return note


def _spool_check() -> Operation:
    return _spool_writer().check


def _spool_writer() -> Any:
    """A writer of the worker's kind: on the real disk, with the syncs beside it."""
    from router.spool.writer import SpoolWriter

    directory = Path(tempfile.mkdtemp(prefix="spool-"))
    writer = SpoolWriter(directory / "spool", max_bytes=4 << 30)
    atexit.register(shutil.rmtree, directory)
    atexit.register(writer.close)
    return writer


def _parse_object() -> Operation:
    from router.api.bodies import parse_object

    return lambda: parse_object(CALL_BODY, 100_000)


def _open_trace() -> Operation:
    from router.telemetry.traces import open_trace

    return lambda: open_trace(TRACEPARENT)


def _forwardable() -> Operation:
    from router.upstream.headers import forwardable

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": PATH,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(CALL_BODY)),
        "HTTP_HOST": "127.0.0.1:8080",
        "HTTP_CONNECTION": "keep-alive",
        "HTTP_USER_AGENT": "OpenAI/Python 3.40.0",
        "HTTP_ACCEPT": "application/json",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate",
        "HTTP_AUTHORIZATION": f"Bearer {API_KEY}",
        "HTTP_TRACEPARENT": TRACEPARENT,
        "HTTP_X_STAINLESS_LANG": "python",
        "HTTP_X_STAINLESS_RETRY_COUNT": "0",
    }
    return lambda: forwardable(environ, (API_KEY,))


def _order() -> Operation:
    from router.config.document import Share
    from router.routing.candidates import order

    shares = (Share("primary", 70), Share("secondary", 30))
    return lambda: order(shares, random.random)


def _redact() -> Operation:
    from router.telemetry.redaction import redact

    text = CALL_BODY.decode()
    return lambda: redact(text)


class _Nowhere(io.BytesIO):
    """Takes everything and keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def _call_log() -> Operation:
    from router.telemetry.logs import CallLog

    fields = {"request_id": "r-1", "trace_id": TRACEPARENT[3:35], "status": 200, "cost_nanos": 7}
    log = CallLog(_Nowhere())
    return lambda: log.write(fields)


OPERATIONS: dict[str, Callable[[], Operation]] = {
    "reference.json_loads": _reference_json_loads,
    "reference.sha256": _reference_sha256,
    "pricing.cost_nanos": _cost_nanos,
    "pricing.bound": _bound,
    "pricing.estimate": _estimate,
    "providers.read_usage": _read_usage,
    "providers.read_odd_usage": _read_odd_usage,
    "providers.completion_event": _completion_event,
    "providers.messages_event": _messages_event,
    "spool.append": _spool_append,
    "spool.check": _spool_check,
    "records.dispatch": _dispatch,
    "api.parse_object": _parse_object,
    "upstream.forwardable": _forwardable,
    "routing.order": _order,
    "telemetry.call_log": _call_log,
    "telemetry.redact": _redact,
    "telemetry.open_trace": _open_trace,
}
