"""The story of one call: who may use which model, and what the forwarder is given to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from router.call import Attempt, Call, Caller, Operation
from router.config.document import (
    Backend,
    Document,
    Model,
    Organization,
    Policy,
    Share,
    build_document,
)
from router.errors import BackendUnavailable, InvalidRequest, ModelForbidden, ModelNotFound
from router.routing.engine import RoutingEngine
from router.routing.models import Gateway, find_model, may_use, visible_models
from router.upstream.forwarder import BackendReply, ForwardContext
from router.upstream.targets import Target

KINDS: dict[str, str] = {
    "first": "openai",
    "second": "openai",
    "messages": "anthropic",
    "more-messages": "anthropic",
}


def policy(organization: str, model: str, *backend_ids: str) -> Policy:
    return Policy(organization, model, tuple(Share(name, 1) for name in backend_ids))


DOCUMENT = build_document(
    7,
    organizations=(Organization("acme"), Organization("other")),
    models=(
        Model("gpt-4o", aliases=("gpt", "vendor/gpt-4o"), max_output_tokens=1234),
        Model("claude"),
        Model("mixed"),
        Model("unserved", aliases=("also-unserved",)),
    ),
    backends=tuple(Backend(name, kind, "http://127.0.0.1:9/v1") for name, kind in KINDS.items()),
    policies=(
        policy("acme", "gpt-4o", "first", "second"),
        policy("acme", "claude", "messages", "more-messages"),
        policy("acme", "mixed", "messages", "first", "more-messages", "second"),
    ),
)
ACME = Caller("acme", "key-1", frozenset({"inference"}))
OTHER = Caller("other", "key-2", frozenset({"inference"}))
LIMITED = Caller("acme", "key-3", frozenset({"inference"}), models=frozenset({"gpt-4o"}))


def call(model: str = "gpt-4o", operation: Operation = "chat", name: str | None = None) -> Call:
    return Call("openai", operation, model, name or model, fields={"model": model}, body=b"{}")


@dataclass
class RecordingForwarder:
    """Keeps what it is given; knows what each kind of backend can do from the real providers."""

    error: Exception | None = None
    call: Call | None = None
    candidates: list[str] = field(default_factory=list)
    context: ForwardContext | None = None
    max_output_tokens: int | None = None
    sends: int = 0

    def target(self, backend: Backend) -> Target:
        return Target(backend, lambda reference: None)

    def send(
        self,
        call: Call,
        candidates: Sequence[Backend],
        context: ForwardContext,
        attempts: list[Attempt],
        max_output_tokens: int,
    ) -> BackendReply:
        self.sends += 1
        self.call, self.context, self.max_output_tokens = call, context, max_output_tokens
        self.candidates = [backend.id for backend in candidates]
        attempts.append(Attempt(self.candidates[0]))
        if self.error is not None:
            raise self.error
        return BackendReply(self.candidates[0], body=b"answer")


def serve(
    forwarder: RecordingForwarder,
    asked: Call,
    *,
    caller: Caller = ACME,
    draw: float = 0.0,
    context: ForwardContext | None = None,
    attempts: list[Attempt] | None = None,
) -> BackendReply:
    """Serve one call; a ``draw`` of 0 plans in the order of the policy, of almost 1 backwards."""
    gateway = Gateway(RoutingEngine(lambda: draw), forwarder)  # type: ignore[arg-type]
    return gateway.serve(
        DOCUMENT, caller, asked, context or ForwardContext([]), [] if attempts is None else attempts
    )


# --- what is forwarded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "expected"), [(0.0, ["first", "second"]), (0.999, ["second", "first"])]
)
def test_the_forwarder_gets_the_plan_in_its_order(draw: float, expected: list[str]) -> None:
    """F8: what the policy drew first is tried first, the rest is there for a failover."""
    forwarder = RecordingForwarder()
    backend_reply = serve(forwarder, call(), draw=draw)
    assert forwarder.candidates == expected
    assert backend_reply == BackendReply(expected[0], body=b"answer")


def test_the_call_travels_as_it_is() -> None:
    """The very call and the very passage, with the model's bound on output."""
    forwarder, asked, context = (
        RecordingForwarder(),
        call(name="gpt"),
        ForwardContext([("X-A", "b")]),
    )
    serve(forwarder, asked, context=context)
    assert forwarder.call is asked
    assert forwarder.context is context
    assert forwarder.max_output_tokens == 1234


def test_attempts_are_the_callers_own_list() -> None:
    """What was tried is there for the record, after what was there before."""
    earlier = Attempt("earlier")
    attempts = [earlier]
    serve(RecordingForwarder(), call(), attempts=attempts)
    assert attempts == [earlier, Attempt("first")]


def test_attempts_are_there_also_when_the_call_fails() -> None:
    """The error passes unchanged, and the record still says who was tried."""
    error = BackendUnavailable()
    attempts: list[Attempt] = []
    with pytest.raises(BackendUnavailable) as raised:
        serve(RecordingForwarder(error), call(), attempts=attempts)
    assert raised.value is error
    assert attempts == [Attempt("first")]


@pytest.mark.parametrize("operation", ["chat", "completions"])
def test_backends_of_every_kind_serve_text(operation: Operation) -> None:
    """A plan may mix kinds; nobody is left out of what all can do."""
    forwarder = RecordingForwarder()
    serve(forwarder, call("mixed", operation))
    assert forwarder.candidates == ["messages", "first", "more-messages", "second"]


def test_backends_that_cannot_serve_the_operation_are_left_out() -> None:
    """The others keep their order among themselves."""
    forwarder = RecordingForwarder()
    serve(forwarder, call("mixed", "embeddings"))
    assert forwarder.candidates == ["first", "second"]


# --- what is refused ------------------------------------------------------------------------


def test_an_operation_that_no_backend_supports_is_the_clients_mistake() -> None:
    """The refusal names the model as the client wrote it, and nothing is forwarded."""
    forwarder = RecordingForwarder()
    attempts: list[Attempt] = []
    with pytest.raises(InvalidRequest, match="'the-alias' does not support embeddings") as raised:
        serve(forwarder, call("claude", "embeddings", "the-alias"), attempts=attempts)
    assert raised.value.field == "model"
    assert (forwarder.sends, attempts) == (0, [])


@pytest.mark.parametrize(("caller", "model"), [(OTHER, "gpt-4o"), (ACME, "unserved")])
def test_a_model_that_nobody_serves_does_not_exist(caller: Caller, model: str) -> None:
    """Without a policy for it a model is not found, by the name that was used."""
    forwarder = RecordingForwarder()
    with pytest.raises(ModelNotFound) as raised:
        serve(forwarder, call(model, name="as-asked-for"), caller=caller)
    assert (raised.value.model, forwarder.sends) == ("as-asked-for", 0)


# --- models and who may use them ------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt-4o", "gpt", "vendor/gpt-4o"])
@pytest.mark.parametrize("caller", [ACME, LIMITED], ids=["any model", "this model"])
def test_a_model_is_found_by_each_of_its_names(caller: Caller, name: str) -> None:
    """An alias is as good as the id, also for a key that lists ids."""
    assert find_model(DOCUMENT, caller, name) is DOCUMENT.models["gpt-4o"]


@pytest.mark.parametrize(
    "name", ["", "GPT-4o", "gpt-4", "gpt-4o ", "*", "unserved", "also-unserved"]
)
def test_a_name_that_leads_nowhere_is_not_found(name: str) -> None:
    """Names are exact; a model without a policy is as unknown as one that is not there."""
    with pytest.raises(ModelNotFound) as raised:
        find_model(DOCUMENT, ACME, name)
    assert raised.value.model == name


def test_a_model_of_another_organization_is_not_found() -> None:
    """What is served to others only looks as if it did not exist."""
    with pytest.raises(ModelNotFound):
        find_model(DOCUMENT, OTHER, "gpt-4o")


def test_a_model_that_the_key_does_not_list_is_forbidden() -> None:
    """The organization could use it, this key may not; the error repeats what was asked for."""
    with pytest.raises(ModelForbidden) as raised:
        find_model(DOCUMENT, LIMITED, "claude")
    assert raised.value.model == "claude"


def test_a_key_learns_of_forbidden_models_only_where_they_are_served() -> None:
    """Not found comes before forbidden: a list on a key is no way to ask what others have."""
    stranger = Caller("other", "key-4", frozenset(), models=frozenset({"claude"}))
    with pytest.raises(ModelNotFound):
        find_model(DOCUMENT, stranger, "gpt-4o")


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        (ACME, ["gpt-4o", "claude", "mixed"]),
        (LIMITED, ["gpt-4o"]),
        (OTHER, []),
        (Caller("acme", "key-5", frozenset(), models=frozenset()), []),
        (Caller("acme", "key-6", frozenset(), models=frozenset({"unserved"})), []),
    ],
)
def test_visible_models_are_those_that_can_be_called(caller: Caller, expected: list[str]) -> None:
    """In the document's order: served to the organization and allowed to the key."""
    assert [model.id for model in visible_models(DOCUMENT, caller)] == expected


@pytest.mark.parametrize("caller", [ACME, OTHER, LIMITED], ids=["acme", "other", "limited"])
def test_a_list_of_models_and_a_look_up_agree(caller: Caller) -> None:
    """Every listed model is found by its id, and every other one is refused."""
    visible = visible_models(DOCUMENT, caller)
    for model in DOCUMENT.models.values():
        if model in visible:
            assert find_model(DOCUMENT, caller, model.id) is model
        else:
            with pytest.raises((ModelNotFound, ModelForbidden)):
                find_model(DOCUMENT, caller, model.id)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (None, True),
        (frozenset({"gpt-4o", "x"}), True),
        (frozenset({"x"}), False),
        (frozenset(), False),
    ],
)
def test_a_key_without_a_list_may_use_every_model(
    models: frozenset[str] | None, expected: bool
) -> None:
    """No list is not an empty list."""
    assert may_use(Caller("acme", "key", frozenset(), models), Model("gpt-4o")) is expected


def test_a_wildcard_policy_serves_every_organization() -> None:
    """With `*` for both, whoever has a valid key finds every model."""
    document: Document = build_document(
        1,
        organizations=(Organization("acme"),),
        models=tuple(DOCUMENT.models.values()),
        backends=tuple(DOCUMENT.backends.values()),
        policies=(policy("*", "*", "first"),),
    )
    assert visible_models(document, OTHER) == list(DOCUMENT.models.values())
    assert find_model(document, OTHER, "also-unserved").id == "unserved"
