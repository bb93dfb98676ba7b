"""One call, from top to bottom: each step is one call into one folder.

``enter`` runs as the ``before_request`` hook of every blueprint behind authentication, ``serve`` is
the view of every endpoint that can reach a backend, ``answer`` runs when an answer is whole and not
sent yet, and ``end`` when the response has closed, however it ended.
"""

from __future__ import annotations

import logging
import time

from flask import Response

from router.api.endpoints import ENDPOINTS, read
from router.api.scope import Scope, current_scope
from router.api.steps.authentication import authenticate, authorize, verify_signature
from router.api.steps.call_usage import call_outcome, ending_of
from router.api.steps.delivery import deliver, replay
from router.api.steps.forwarding import forward
from router.api.steps.limiting import admit
from router.api.steps.rate_limiting import take_rates
from router.api.steps.recording import record_end
from router.api.steps.settlement import charge_before_last_byte, settle

log = logging.getLogger("router")


def enter() -> Response | None:
    """Let the current request in; a step that refuses it raises a ``RouterError``.

    Answers in place of the view when the same call was answered before.
    """
    scope = current_scope()
    endpoint = ENDPOINTS[scope.endpoint]
    # Who calls? First of all: an unauthenticated client costs one hash and one look-up.
    authenticate(scope)
    # May the key do this? Before the body is read: a forbidden call costs no parsing.
    authorize(scope, endpoint.scope)
    # Does it come too often? Before a long body is read; a short one is there already, and then
    # `admit` takes the rates together with all else, which saves an exchange with Redis.
    take_rates(scope, endpoint)
    # Is the request signed where it must be? What is wrong with it is refused by `admit`, so that
    # it counts for the rates like any other.
    verify_signature(scope, may_be_in_body=endpoint.signature_in_body)
    # What is asked? The body becomes a call, or is refused by `admit` as well.
    read(scope, endpoint)
    # Is it new, and do its budgets cover what it may cost? That is known only now.
    admit(scope)
    return None if scope.limits.replay is None else replay(scope)


def serve() -> Response:
    """Serve the call that was admitted."""
    scope = current_scope()
    # Backends in the order of the policy, until one of them answers.
    forward(scope)
    # The reply in the client's dialect. It is recorded before its last byte goes out, so that a
    # complete answer always has a record on disk.
    return deliver(scope)


def answer(scope: Scope) -> None:
    """The answer is whole, and none of it has gone out: finish with the limits of the call."""
    limits = scope.limits
    if limits.admitted is None and limits.rate_specs is None:
        return  # it holds nothing
    try:
        outcome = call_outcome(scope)
        # Recorded already, unless it is an error.
        record_end(scope, outcome, time.monotonic())
        # Now and not at the end, so that the caller's next call finds it charged.
        charge_before_last_byte(scope, outcome)
    except Exception:
        log.exception("a call could not be charged", extra={"request_id": scope.request_id})


def end(scope: Scope) -> None:
    """The response has closed, however it ended: finish the call, once."""
    if scope.ended:
        return
    scope.ended = True
    scope.services.metrics.running -= 1
    ended_s = time.monotonic()
    reply = scope.backend_reply
    try:
        if reply is not None and reply.stream is not None:
            reply.stream.close()  # may read on for a while, and the worker may end meanwhile
    finally:
        try:
            ending = ending_of(scope, ended_s)
            # What a client broke off, or what was refused, is not recorded yet.
            record_end(scope, ending.outcome, ended_s)
            # After the record, so that the records always have at least what the budgets have. What
            # was answered whole is charged already.
            settle(scope, ending)
        except Exception:  # the server below would break the client's connection off
            log.exception("a call could not be settled", extra={"request_id": scope.request_id})
        # An error holds the frames that it has passed, and they the scope with the body. It must
        # not take a search for cycles, which comes long after, to free ten megabytes.
        scope.unreadable = scope.request.routing_exception = None
