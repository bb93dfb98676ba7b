"""A live fake of Anthropic's Messages API: as strict, the same shapes, answers one can predict."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from tests.fakes.backend.anthropic_messages import Event, compose, encode_event, stream_events
from tests.fakes.backend.anthropic_requests import InvalidCall, Json, check_request
from tests.fakes.backend.received import Request
from tests.fakes.backend.scripts import chunk, reply, serving
from tests.fakes.backend.server import FakeServer, Peer, RawEnd

API_VERSION = "2023-06-01"
OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}


class ApiError(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"type": kind, "message": message}


class AnthropicApi(FakeServer):
    """The API on a port of its own; its switches may be turned while it serves.

    ::

        with AnthropicApi(api_key="sk-ant-test") as fake:
            anthropic.Anthropic(base_url=fake.url, api_key="sk-ant-test")
    """

    def __init__(self, *, api_key: str) -> None:
        self.api_key = api_key
        self._turn_switches_off()
        super().__init__(serving(self._answer))

    def _turn_switches_off(self) -> None:
        self.overloaded = False
        """Answer every request with 529 ``overloaded_error``."""
        self.error_after_deltas: int | None = None
        """Put an ``error`` event into streams after so many content deltas, and end them."""
        self.cut_after_deltas: int | None = None
        """Break the connection in the middle of an event after so many content deltas."""
        self.raw: bytes | None = None
        """These very bytes in place of an answer."""
        self.raw_ends: RawEnd = None
        """What becomes of the connection after them."""

    def reset(self) -> None:
        """Every switch off, nothing received."""
        self._turn_switches_off()
        super().reset()

    def _answer(self, peer: Peer, request: Request) -> bool:
        request_id = f"request-id: req_{len(self.requests):08}"
        if self.raw is not None:
            return peer.say(self.raw, self.raw_ends)
        try:
            fields = self._admit(request)
        except ApiError as refusal:
            body = {"type": "error", "error": refusal.error, "request_id": request_id[12:]}
            peer.send(_whole(body, request_id, refusal.status))
            return True
        message = compose(fields)
        if fields.get("stream"):
            return self._stream(peer, message, request_id)
        peer.send(_whole(message, request_id, 200))
        return True

    def _admit(self, request: Request) -> Json:
        """The checked fields of a request that is served; raises ApiError."""
        if request.path != "/v1/messages":
            raise ApiError(404, "not_found_error", "Not Found")
        if request.method != "POST":
            raise ApiError(405, "invalid_request_error", "Method Not Allowed")
        if request.header("x-api-key") != self.api_key:
            raise ApiError(401, "authentication_error", "invalid x-api-key")
        if request.header("anthropic-version") != API_VERSION:
            raise ApiError(400, "invalid_request_error", "anthropic-version: is not valid")
        if (request.header("content-type") or "").partition(";")[0] != "application/json":
            raise ApiError(400, "invalid_request_error", "content-type: must be application/json")
        if self.overloaded:
            raise ApiError(529, "overloaded_error", "Overloaded")
        try:
            fields = request.fields
            check_request(fields)
        except InvalidCall as error:
            raise ApiError(400, "invalid_request_error", str(error)) from None
        except ValueError:
            raise ApiError(400, "invalid_request_error", "the body is not valid JSON") from None
        if not fields["model"].startswith("claude-"):
            raise ApiError(404, "not_found_error", f"model: {fields['model']}")
        return dict(fields)

    def _stream(self, peer: Peer, message: Json, request_id: str) -> bool:
        headers = ("Content-Type: text/event-stream; charset=utf-8", request_id)
        peer.send(reply(b"", headers=(*headers, "Transfer-Encoding: chunked"), length=False))
        for event in self._with_faults(stream_events(message)):
            if event is None:
                return False
            peer.send(chunk(event))
        peer.send(chunk(b""))
        return True

    def _with_faults(self, events: Iterator[Event]) -> Iterator[bytes | None]:
        """The events of a stream as bytes; None where the connection breaks."""
        deltas = 0
        for kind, data in events:
            if kind == "content_block_delta":
                if deltas == self.cut_after_deltas:
                    whole = encode_event((kind, data))
                    yield whole[: len(whole) // 2]
                    yield None
                if deltas == self.error_after_deltas:
                    yield encode_event(("error", {"type": "error", "error": OVERLOADED}))
                    return
                deltas += 1
            yield encode_event((kind, data))


def _whole(body: Json, request_id: str, status: int) -> bytes:
    headers = ("Content-Type: application/json", request_id)
    return reply(orjson.dumps(body), status, headers=headers)
