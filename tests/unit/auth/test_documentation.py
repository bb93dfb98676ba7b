"""The documented example and the documented figures are the ones that work."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request

import pytest

from router.auth.keys import derive_signing_secret
from router.auth.signatures import SignedParts, sign
from router.errors import SignatureInvalid

if TYPE_CHECKING:
    from tests.unit.auth.conftest import Stand

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "authentication.md").read_text(encoding="utf-8")
EXAMPLE = DOCS / "examples" / "sign_request.py"
BODY = b'{"model": "gpt-4o"}'


def example_request(stand: Stand, secret: str) -> Request:
    """What the example would send."""
    make = runpy.run_path(str(EXAMPLE))["signed_request"]
    request = make("http://127.0.0.1:8080", "/v1/chat/completions", BODY, stand.key, secret)
    assert isinstance(request, Request)
    return request


def sent_parts(request: Request) -> SignedParts:
    """The signed parts as the router would read them off the wire."""
    path, _, query = request.selector.partition("?")
    header = {name.lower(): value for name, value in request.header_items()}
    return SignedParts(
        method=request.get_method(),
        path=path,
        query=query,
        timestamp=header["x-router-timestamp"],
        nonce=header["x-router-nonce"],
    )


def test_the_example_makes_a_request_that_is_accepted(stand: Stand) -> None:
    """The example's key authenticates and its signature verifies."""
    record, auth = stand.put(require_signature=True), stand.authenticator()
    request = example_request(stand, derive_signing_secret(stand.pepper, record.id, record.hash))
    header = {name.lower(): value for name, value in request.header_items()}
    parts = sent_parts(request)
    stand.clock.wall_s = float(parts.timestamp)
    assert auth.authenticate(header["x-api-key"], None, lambda organization_id: True) is record
    assert isinstance(request.data, bytes)
    auth.verify_signature(record, parts, request.data, header["x-router-signature"])


def test_the_example_with_a_wrong_secret_is_refused(stand: Stand) -> None:
    """The test above can fail: another secret gives another signature."""
    record, auth = stand.put(), stand.authenticator()
    request = example_request(stand, "rsk_" + "0" * 64)
    parts = sent_parts(request)
    stand.clock.wall_s = float(parts.timestamp)
    signature = request.get_header("X-router-signature")
    assert signature is not None
    with pytest.raises(SignatureInvalid, match="does not match"):
        auth.verify_signature(record, parts, BODY, signature)


def test_the_page_shows_the_example_as_it_is() -> None:
    """The code on the page is the code of the file."""
    shown = PAGE.split("```python\n")[1].split("```")[0]
    assert shown in EXAMPLE.read_text(encoding="utf-8")


def test_the_page_gives_a_signature_that_is_right() -> None:
    """Who implements the scheme elsewhere can rely on the published vector."""
    parts = SignedParts("POST", "/v1/inference", "trace=1", "1800000000", "0123456789abcdef")
    assert sign("rsk_" + "0" * 64, parts, b"{}") in PAGE
