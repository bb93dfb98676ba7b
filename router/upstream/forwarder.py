"""Walks the candidates inside one deadline. The only place where a call is ever sent again."""

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

RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504, 529})
"""The backend says that it has not served the call."""

UNAVAILABLE_STATUSES: Final = frozenset({503, 529})
"""529 is how Anthropic says that it is overloaded."""

CREDENTIAL_STATUSES: Final = frozenset({401, 403})
"""The backend does not accept the router's own credential; never the client's fault."""

MAX_ERROR_BYTES: Final = 64 * 1024
ERROR_BODY_S: Final = 1.0
"""How long the text of a refusal may take; a failover does not wait longer for it."""
MAX_RETRY_AFTER_S: Final = 3600


@dataclass(slots=True)
class ForwardContext:
    """What travels with a call besides its body."""

    headers: list[tuple[str, str]]
    """The client's headers that may be seen, plus request id and trace context."""
    client_gone: Callable[[], bool] | None = None


@dataclass(slots=True)
class BackendReply:
    """A backend's answer in the OpenAI dialect: either ``body`` or ``stream``."""

    backend_id: str
    body: bytes | None = None
    stream: ReplyStream | None = None
    usage: Usage | None = None
    output_chars: int = 0


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
        """The wire side of a backend, rebuilt when the document changed it."""
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
        """The first answer that counts; every try is appended to ``attempts``.

        A call goes to another candidate only while no backend can have processed it: the
        connection was never made, or the backend answered with a status that says so.
        Raises a leaf of ``RouterError`` that tells what the last candidate did.
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
                last = failure.verdict
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
        body = self._write_body(target, call, max_output_tokens)
        exchange = self._dispatch(target, call, context, attempt, deadline_s, body)
        attempt.status = exchange.status
        attempt.ttfb_s = exchange.ttfb_s
        attempt.reused_connection = exchange.reused
        if exchange.status != 200:
            self._refuse(target, exchange, attempt)
        try:
            return self._deliver(target, call, exchange, attempt)
        except TransportError as error:
            attempt.error = error.reason
            raise BackendFailed(error.reason, status=exchange.status) from None
        except BackendFailed as error:
            attempt.error = error.reason
            raise

    def _write_body(self, target: Target, call: Call, max_output_tokens: int) -> bytes:
        backend = target.backend
        upstream_model = backend.models.get(call.model, call.model)
        return target.provider.write_request(call, upstream_model, max_output_tokens)

    def _dispatch(
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
        try:
            head = target.head(call.operation) + _variable_head(context.headers, len(body))
            return self._session.dispatch(
                BackendRequest(
                    endpoint=target.endpoint,
                    url=target.url(call.operation),
                    head=head,
                    body=body,
                    deadlines=deadlines,
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

    def _deliver(
        self, target: Target, call: Call, exchange: Exchange, attempt: Attempt
    ) -> BackendReply:
        if call.stream and _is_event_stream(exchange):
            translator = target.provider.open_stream(call)
            stream = ReplyStream(exchange, translator, drain=self._drain)
            return BackendReply(target.backend.id, stream=stream)
        body, usage, output_chars = target.provider.read_reply(
            call, exchange.read_all(self._max_reply_bytes)
        )
        return BackendReply(target.backend.id, body=body, usage=usage, output_chars=output_chars)

    def _refuse(self, target: Target, exchange: Exchange, attempt: Attempt) -> None:
        """Turn a status other than 200 into the error that the client, or the loop, deserves."""
        status = exchange.status
        attempt.error = f"status {status}"
        retry_after_s = _retry_after_s(exchange)
        exchange.shorten_deadline(ERROR_BODY_S)
        try:
            body = exchange.read_all(MAX_ERROR_BYTES)
        except (TransportError, BackendTimeout):
            body = b""
        if target.repeats_credential(body):
            body = b""
        if status in RETRYABLE_STATUSES:
            if status == 429:
                raise _TryNext(BackendBusy(retry_after_s=retry_after_s))
            if status in UNAVAILABLE_STATUSES:
                raise _TryNext(BackendUnavailable(retry_after_s=retry_after_s))
            raise _TryNext(BackendFailed(f"status {status}", status=status))
        if status in CREDENTIAL_STATUSES:
            # Its body may quote the router's credential; nothing of it is shown.
            raise _TryNext(BackendFailed("backend refuses our credential", status=status))
        if 400 <= status < 500:
            message = target.provider.read_error(status, body)
            raise BackendRejected(
                message or f"the backend refused the request with status {status}",
                status=status,
                body=body if message is not None and target.backend.kind == "openai" else None,
            )
        raise BackendFailed(f"status {status}", status=status)


class _TryNext(Exception):
    """No backend has processed the call; ``verdict`` counts if there is no further candidate."""

    def __init__(self, verdict: RouterError) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def _variable_head(headers: list[tuple[str, str]], body_bytes: int) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{lines}Content-Length: {body_bytes}\r\n\r\n".encode("latin-1")


def _header(exchange: Exchange, name: str) -> str | None:
    for field, value in exchange.headers:
        if field.lower() == name:
            return value
    return None


def _is_event_stream(exchange: Exchange) -> bool:
    if not (_header(exchange, "content-type") or "").lower().startswith("text/event-stream"):
        return False
    # Asked for identity; a stream compressed all the same cannot be read, and is refused as a body.
    return _header(exchange, "content-encoding") in (None, "identity")


def _retry_after_s(exchange: Exchange) -> int:
    """Whole seconds a backend asks to wait, given as a number or a date; 1 when it does not say."""
    raw = _header(exchange, "retry-after") or ""
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
