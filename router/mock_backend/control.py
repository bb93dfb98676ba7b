"""The control paths: behaviour, counts and kept requests over HTTP, never misbehaving."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.mock_backend.behaviour import Behaviour, BehaviourError, Dial
from router.mock_backend.endpoints import method_not_allowed, read_object
from router.mock_backend.journal import Journal
from router.mock_backend.received import ReceivedRequest
from router.mock_backend.replies import Answer, error_answer, json_answer

CONTROL_PREFIX = "/_mock/"

_Action = Callable[[ReceivedRequest], Answer]


class Control:
    """Answers requests on the control paths."""

    def __init__(self, dial: Dial, journal: Journal) -> None:
        self._dial = dial
        self._journal = journal
        self._actions: Mapping[str, Mapping[str, _Action]] = {
            "behaviour": {"GET": self._show, "PUT": self._replace, "PATCH": self._change},
            "reset": {"POST": self._reset},
            "stats": {"GET": self._stats},
            "requests": {"GET": self._requests, "DELETE": self._forget},
        }

    def answer(self, request: ReceivedRequest) -> Answer:
        """Answer one request on a control path."""
        actions = self._actions.get(request.path.removeprefix(CONTROL_PREFIX))
        if actions is None:
            return error_answer(404, "Unknown control path.", code="unknown_url")
        action = actions.get(request.method)
        return method_not_allowed(", ".join(actions)) if action is None else action(request)

    def _show(self, _: ReceivedRequest) -> Answer:
        return json_answer(self._dial.behaviour.as_settings())

    def _replace(self, request: ReceivedRequest) -> Answer:
        settings = read_object(request.body)
        if settings is None:
            return _no_object()
        try:
            self._dial.replace(Behaviour.of(settings))
        except BehaviourError as refusal:
            return _refused(refusal)
        return self._show(request)

    def _change(self, request: ReceivedRequest) -> Answer:
        changes = read_object(request.body)
        if changes is None:
            return _no_object()
        try:
            return json_answer(self._dial.change(changes).as_settings())
        except BehaviourError as refusal:
            return _refused(refusal)

    def _reset(self, _: ReceivedRequest) -> Answer:
        self._journal.reset()
        return json_answer(self._dial.reset().as_settings())

    def _stats(self, _: ReceivedRequest) -> Answer:
        return json_answer(self._journal.stats().as_record())

    def _requests(self, _: ReceivedRequest) -> Answer:
        kept = self._journal.requests()
        return json_answer({"requests": [request.as_record() for request in kept]})

    def _forget(self, _: ReceivedRequest) -> Answer:
        return json_answer({"forgotten": self._journal.forget_requests()})


def _refused(refusal: BehaviourError) -> Answer:
    first = next(iter(refusal.problems))
    return error_answer(400, str(refusal), param=first, code="invalid_behaviour")


def _no_object() -> Answer:
    return error_answer(400, "The body must be a JSON object.", code="invalid_behaviour")
