"""Tries the candidates within one deadline. The only place where a call is ever sent again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from router.call import Attempt, Call, Usage
from router.config.document import Backend
from router.errors import (
    BackendBusy,
    BackendFailed,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    RouterError,
)
from router.upstream.reply_stream import ReplyStream
from router.upstream.retry_budget import RetryBudget
from router.upstream.session import BackendRequest, BackendSession
from router.upstream.targets import CredentialMissing, ReadCredential, Target
from router.upstream.transport import Deadlines, Exchange, TransportError

MAX_ERROR_BYTES: Final = 64 * 1024
ERROR_BODY_S: Final = 1.0
"""How long the body of an error may take; a failover does not wait longer for it."""
MAX_RETRY_AFTER_S: Final = 3600


@dataclass(slots=True)
class ForwardContext:
    """What is sent with a call besides its body, and how to see that its client has left."""

    headers: list[tuple[str, str]]
    """The client's headers that a backend may see, plus request id and trace context."""
    client_gone: Callable[[], bool] | None = None
    on_send: Callable[[Attempt], None] | None = None
    """Runs right before an attempt sends its first byte; what it raises keeps the call unsent."""
    more_headers: Sequence[tuple[str, str]] = ()
    """Further headers of the client, for the backends whose ``forward_headers`` name them."""


@dataclass(slots=True)
class BackendReply:
    """A backend's reply in the OpenAI dialect: either ``body`` or ``stream``."""

    backend_id: str
    body: bytes | None = None
    stream: ReplyStream | None = None
    usage: Usage | None = None
    output_bytes: int = 0
    usage_at_start: Usage | None = None
    """As in :class:`~router.providers.provider.ReadReply`."""


class Forwarder:
    """Sends calls to backends."""

    def __init__(
        self,
        session: BackendSession,
        *,
        read_credential: ReadCredential,
        max_reply_bytes: int,
        drain_on_abort: bool,
        retry_budget: RetryBudget,
    ) -> None:
        self._session = session
        self._read_credential = read_credential
        self._max_reply_bytes = max_reply_bytes
        self._drain = drain_on_abort
        self._retries = retry_budget
        self._targets: dict[str, Target] = {}

    def target(self, backend: Backend) -> Target:
        """A backend, ready to be written to; rebuilt when the document has changed it."""
        target = self._targets.get(backend.id)
        if target is None or target.backend is not backend:
            target = self._targets[backend.id] = Target(backend, self._read_credential)
        return target

    def send(
        self,
        call: Call,
        candidates: Sequence[Backend],
        context: ForwardContext,
        attempts: list[Attempt],
        max_output_tokens: int,
    ) -> BackendReply:
        """The first reply that counts; every try is appended to ``attempts``.

        A call goes to another candidate only while no backend can have processed it: the
        connection was never made, or the backend's status says so (``StatusMeaning``).
        Raises a subclass of ``RouterError``: the failure of the last candidate.
        """
        started_s = time.monotonic()
        deadline_s = started_s + max(backend.timeouts.total_s for backend in candidates)
        self._retries.count_call()
        last: RouterError = BackendUnavailable()
        for backend in candidates:
            if attempts and (time.monotonic() >= deadline_s or not self._retries.take()):
                break
            attempt = Attempt(backend.id)
            attempts.append(attempt)
            begun_s = time.monotonic()
            try:
                return self._try(
                    self.target(backend), call, context, attempt, deadline_s, max_output_tokens
                )
            except _TryNext as failure:
                last = failure.error
            except RouterError as error:
                attempt.error = attempt.error or type(error).__name__
                raise
            finally:
                attempt.duration_s = time.monotonic() - begun_s
        raise last

    def _try(
        self,
        target: Target,
        call: Call,
        context: ForwardContext,
        attempt: Attempt,
        deadline_s: float,
        max_output_tokens: int,
    ) -> BackendReply:
        upstream_model = target.backend.models.get(call.model, call.model)
        body = target.provider.write_request(
            call, upstream_model, max_output_tokens, output_limit_field=target.output_limit_field
        )
        exchange = self._exchange(target, call, context, attempt, deadline_s, body)
        attempt.status = exchange.status
        attempt.ttfb_s = exchange.ttfb_s
        attempt.reused_connection = exchange.reused
        if exchange.status != 200:
            attempt.declined = True
            attempt.error = f"status {exchange.status}"
            raise _error_of(target, exchange)
        try:
            return self._read_reply(target, call, exchange, attempt)
        except TransportError as error:
            attempt.error = error.reason
        except ValueError as error:
            attempt.error = f"reply is not JSON that the API writes: {error}"
        raise BackendFailed(attempt.error, status=exchange.status)

    def _exchange(
        self,
        target: Target,
        call: Call,
        context: ForwardContext,
        attempt: Attempt,
        deadline_s: float,
        body: bytes,
    ) -> Exchange:
        timeouts = target.backend.timeouts
        deadlines = Deadlines(
            timeouts.connect_s,
            timeouts.first_byte_s,
            timeouts.idle_s,
            min(deadline_s, time.monotonic() + timeouts.total_s),
            context.client_gone,
        )

        def on_send() -> None:
            if context.on_send is not None:
                context.on_send(attempt)
            attempt.dispatched = True

        try:
            headers = context.headers
            if context.more_headers:
                wanted = target.backend.forward_headers
                headers = headers + [each for each in context.more_headers if each[0] in wanted]
            head = target.head(call.operation) + _call_head(headers, len(body))
            url = target.url(call.operation)
            return self._session.exchange(
                BackendRequest(
                    endpoint=target.endpoint,
                    url=url,
                    head=head,
                    body=body,
                    deadlines=deadlines,
                    on_send=on_send,
                )
            )
        except CredentialMissing:
            attempt.error = "credential missing"
            raise _TryNext(BackendUnavailable()) from None
        except TransportError as error:
            attempt.error = error.reason
            if not error.sent:
                raise _TryNext(BackendUnavailable()) from None
            raise BackendFailed(error.reason) from None

    def _read_reply(
        self, target: Target, call: Call, exchange: Exchange, attempt: Attempt
    ) -> BackendReply:
        if call.stream and _is_event_stream(exchange):
            translator = target.provider.open_stream(call)
            stream = ReplyStream(exchange, translator, drain=self._drain)
            return BackendReply(target.backend.id, stream=stream)
        raw = exchange.read_all(self._max_reply_bytes)
        try:
            read = target.provider.read_reply(call, raw)
            if read.is_empty and target.provider.read_error(raw) is not None:
                raise ValueError("it is an error")
        except ValueError:
            attempt.declined = target.provider.read_error(raw) is not None
            raise
        return BackendReply(
            target.backend.id,
            body=read.body,
            usage=read.usage,
            output_bytes=read.output_bytes,
            usage_at_start=read.usage_at_start,
        )


class _TryNext(Exception):
    """No backend has processed the call; ``error`` counts if there is no further candidate."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(error)
        self.error = error


def _error_of(target: Target, exchange: Exchange) -> Exception:
    """The error that a status other than 200 is for the client, or for the loop."""
    status, retry_after_s = exchange.status, _retry_after_s(exchange)
    body = _error_body(exchange)
    meaning = target.provider.status_meaning(status)
    if meaning == "rejected":
        return _rejection(target, status, body)
    if meaning == "busy":
        return _TryNext(BackendBusy(retry_after_s=retry_after_s))
    if meaning == "unavailable":
        return _TryNext(BackendUnavailable(retry_after_s=retry_after_s))
    if meaning == "credential_refused":  # the body may quote the credential: nothing of it is shown
        return _TryNext(BackendFailed("backend refuses our credential", status=status))
    failure = BackendFailed(f"status {status}", status=status)
    return _TryNext(failure) if meaning == "not_served" else failure


def _error_body(exchange: Exchange) -> bytes:
    """The body of an error, read to its end so that its connection can be used again."""
    exchange.shorten_deadline(ERROR_BODY_S)
    try:
        return exchange.read_all(MAX_ERROR_BYTES)
    except (TransportError, BackendTimeout):
        return b""


def _rejection(target: Target, status: int, body: bytes) -> BackendRejected:
    message = None if target.repeats_credential(body) else target.provider.read_error(body)
    return BackendRejected(
        message or f"the backend refused the request with status {status}",
        status=status,
        body=body if message is not None and target.provider.shows_error_bodies else None,
    )


def _call_head(headers: list[tuple[str, str]], body_bytes: int) -> bytes:
    """The part of a request's head that differs from call to call, and the head's end."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{lines}Content-Length: {body_bytes}\r\n\r\n".encode("latin-1")


def _is_event_stream(exchange: Exchange) -> bool:
    if not (exchange.header("content-type") or "").lower().startswith("text/event-stream"):
        return False
    # Identity was asked for; a stream that is compressed all the same is refused as a body.
    return exchange.header("content-encoding") in (None, "identity")


def _retry_after_s(exchange: Exchange) -> int:
    """Whole seconds to wait, which a backend gives as a number or a date; 1 where it gives none."""
    raw = exchange.header("retry-after") or ""
    try:
        seconds = math.ceil(float(raw))
    except (ValueError, OverflowError):
        seconds = _seconds_until(raw)
    return min(max(seconds, 1), MAX_RETRY_AFTER_S)


def _seconds_until(http_date: str) -> int:
    try:
        return math.ceil(parsedate_to_datetime(http_date).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 1
