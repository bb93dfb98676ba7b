"""What holds for every provider of the table, so for the next one, too."""

from __future__ import annotations

import orjson
import pytest

from router.config.document import Backend
from router.config.schema.parts import BackendSchema
from router.providers.provider import Provider
from router.providers.provider_table import PROVIDERS, REPORTED_CLASSES
from router.upstream.headers import forwardable
from router.upstream.targets import Target
from tests.unit.upstream.builders import new_call

pytestmark = pytest.mark.parametrize(("name", "provider"), PROVIDERS.items(), ids=list(PROVIDERS))

MAY_BE_SENT_AGAIN = {"busy", "unavailable", "not_served", "credential_refused"}


def test_a_document_may_name_it(name: str, provider: Provider) -> None:
    """The table is the only list of providers: what stands there is a ``kind`` of a backend."""
    loaded = BackendSchema().load({"id": "b", "kind": name, "base_url": "http://gpu/v1"})
    assert isinstance(loaded, Backend)
    assert Target(loaded, lambda reference: None).provider is provider


def test_what_it_can_report_is_known(name: str, provider: Provider) -> None:
    """So that 'config validate' warns of models at it whose prices lack something."""
    assert REPORTED_CLASSES[name]


def test_no_client_sets_its_reserved_headers(name: str, provider: Provider) -> None:
    """Who pays, and which version of the API answers, is the configuration's choice."""
    assert provider.reserved_headers == {header.lower() for header in provider.reserved_headers}
    spelled = {"HTTP_" + header.upper().replace("-", "_") for header in provider.reserved_headers}
    environ = dict.fromkeys(spelled, "chosen-by-a-client")
    assert forwardable({**environ, "HTTP_ACCEPT": "*/*"}, ()) == [("accept", "*/*")]


def test_its_credential_stands_in_one_header_and_in_no_path(name: str, provider: Provider) -> None:
    """K6: a URL ends up in logs, a header does not; and without a credential none is sent."""
    headers = provider.credential_headers("c4nary")
    assert sum("c4nary" in value for _, value in headers) == 1
    assert not any("c4nary" in value for _, value in provider.credential_headers(None))
    assert all(path.startswith("/") for path in provider.paths.values())


def test_a_status_is_sent_again_only_if_the_call_was_not_served(
    name: str, provider: Provider
) -> None:
    """F4: no status that a backend may give after it worked on a call leads to another try."""
    meanings = {status: provider.status_meaning(status) for status in range(100, 600)}
    again = {status for status, meaning in meanings.items() if meaning in MAY_BE_SENT_AGAIN}
    rejected = {status for status, meaning in meanings.items() if meaning == "rejected"}
    assert {429, 503} <= again <= {401, 403, 429, 502, 503, 504, 529}
    assert {400, 404, 422} <= rejected <= set(range(400, 500)) - {401, 403, 429}


def test_its_requests_are_json_that_names_the_backend_s_model(
    name: str, provider: Provider
) -> None:
    """Each operation that it has a path for can be written, streamed or not."""
    for operation in provider.paths:
        for stream in (False, True):
            call = new_call(operation, stream=stream, prompt="hi", input="hi")
            body = orjson.loads(provider.write_request(call, "upstream-name", 100))
            assert body["model"] == "upstream-name"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"5", b"{", b"\xff"])
def test_nonsense_is_a_value_error(name: str, provider: Provider, body: bytes) -> None:
    """What is no reply of the API reaches no client, and no error of it is shown."""
    for operation in provider.paths:
        with pytest.raises(ValueError, match=r".+"):
            provider.read_reply(new_call(operation), body)
    assert provider.read_error(body) is None


def test_a_stream_that_says_nothing_is_not_complete(name: str, provider: Provider) -> None:
    """U7: an empty stream, or one of comments, is no answer, and nothing is charged as reported."""
    for operation in provider.paths:
        translator = provider.open_stream(new_call(operation, stream=True))
        translator.feed(b": ping\n\n")
        translator.finish()
        assert (translator.complete, translator.usage, translator.output_bytes) == (False, None, 0)
