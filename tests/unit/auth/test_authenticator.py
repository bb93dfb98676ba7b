"""Every way to be let in, and every way not to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.auth.authenticator import (
    KEY_REFUSALS,
    SIGNATURE_REFUSALS,
    Authenticator,
    KeyRefusal,
    SignatureRefusal,
)
from router.auth.keys import generate_key, is_well_formed
from router.call import Caller
from router.config.document import KeyRecord
from router.errors import NotConfigured, SignatureInvalid, Unauthenticated

if TYPE_CHECKING:
    from tests.unit.auth.conftest import Stand

Active = Callable[[str], bool]
BODY = b'{"model": "gpt-4o"}'
WRONG = "0" * 64


def refusal(
    auth: Authenticator,
    x_api_key: str | None = None,
    authorization: str | None = None,
    *,
    active: bool = True,
) -> Unauthenticated:
    """The error with which the two headers are refused."""
    with pytest.raises(Unauthenticated) as caught:
        auth.authenticate(x_api_key, authorization, lambda organization_id: active)
    return caught.value


def with_key(text: str | None, key: str) -> str | None:
    """A header of a table, with the stand's key filled in."""
    return text and text.format(key=key)


def signature_refusal(check: Callable[[], None]) -> SignatureInvalid:
    """The error with which a signature is refused."""
    with pytest.raises(SignatureInvalid) as caught:
        check()
    return caught.value


# --- which key ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_api_key", "authorization"),
    [
        ("{key}", None),
        ("{key}", ""),
        (None, "Bearer {key}"),
        ("", "bearer {key}"),
        (None, "BEARER   {key} "),
        ("{key}", "Bearer {key}"),
        ("{key}", "Basic dXNlcjpwYXNz"),
        ("{key}", "Bearer "),
        ("{key}", "Bearer"),
    ],
)
def test_a_key_is_found_in_either_header(
    stand: Stand, any_organization: Active, x_api_key: str | None, authorization: str | None
) -> None:
    """Either header carries a key; empty ones and other schemes count as absent."""
    record = stand.put()
    headers = with_key(x_api_key, stand.key), with_key(authorization, stand.key)
    assert stand.authenticator().authenticate(*headers, any_organization) is record


@pytest.mark.parametrize(
    ("x_api_key", "authorization"),
    [
        (None, None),
        ("", ""),
        (None, "Bearer"),
        (None, "Bearer  "),
        (None, "Basic {key}"),
        (None, "{key}"),
        (None, "Bearer\t{key}"),
    ],
)
def test_a_request_without_a_key_is_missing_one(
    stand: Stand, x_api_key: str | None, authorization: str | None
) -> None:
    """Without a key in either header nothing is looked up."""
    stand.put()
    headers = with_key(x_api_key, stand.key), with_key(authorization, stand.key)
    assert refusal(stand.authenticator(), *headers).reason == "missing"
    assert stand.store.lookups == 0


@pytest.mark.parametrize("other", [generate_key("test"), "junk"], ids=["a key", "junk"])
def test_two_different_keys_conflict(stand: Stand, other: str) -> None:
    """Two keys in one request are refused even if one or both are good."""
    stand.put()
    auth = stand.authenticator()
    assert refusal(auth, stand.key, f"Bearer {other}").reason == "conflicting_keys"
    assert refusal(auth, other, f"Bearer {stand.key}").reason == "conflicting_keys"
    assert stand.store.lookups == 0


# --- malformed ------------------------------------------------------------------------------


@pytest.mark.parametrize("demo", [False, True])
@pytest.mark.parametrize(
    "key",
    [
        "a" * 65,
        "a" * 1_000_000,
        "dev test key",
        "dev-test-key\n",
        "dev-test-key\x00",
        "schlüssel",
        "\ud800",
        "Ã©",
        "key,key",
        "../../etc/passwd",
        "'; --",
    ],
)
def test_junk_is_malformed_in_every_mode(stand: Stand, key: str, demo: bool) -> None:
    """K4: control characters, foreign and huge texts never reach the look-up."""
    assert refusal(stand.authenticator(demo=demo), key).reason == "malformed"
    assert stand.store.lookups == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(min_size=1).filter(lambda text: not is_well_formed(text)))
def test_malformed_keys_never_call_the_look_up(stand: Stand, key: str) -> None:
    """K4: whatever is not a key by shape and checksum costs no look-up."""
    assert refusal(stand.authenticator(), key).reason == "malformed"
    assert stand.store.lookups == 0


def test_a_mistyped_key_never_calls_the_look_up(stand: Stand) -> None:
    """K4: one wrong character anywhere is found before the store is asked."""
    stand.put()
    auth = stand.authenticator()
    for at, character in enumerate(stand.key):
        mistyped = stand.key[:at] + ("x" if character != "x" else "y") + stand.key[at + 1 :]
        assert refusal(auth, mistyped).reason == "malformed"
    assert stand.store.lookups == 0


# --- known, but not good --------------------------------------------------------------------


def test_an_unknown_key_costs_one_look_up(stand: Stand) -> None:
    """K4: a well-formed key is looked up once and is unknown."""
    assert refusal(stand.authenticator(), stand.key).reason == "unknown"
    assert stand.store.lookups == 1


def test_a_key_is_unknown_under_another_pepper(stand: Stand) -> None:
    """The stored hashes open nothing for a server with another pepper."""
    stand.put()
    assert refusal(stand.authenticator(pepper=b"q" * 32), stand.key).reason == "unknown"


@pytest.mark.parametrize(
    ("facts", "active", "reason"),
    [
        ({"status": "revoked"}, True, "revoked"),
        ({"expires_at_s": 1_799_999_999.0}, True, "expired"),
        ({"expires_at_s": 1_800_000_000.0}, True, "expired"),
        ({"expires_at_s": 0.0}, True, "expired"),
        ({"demo": True}, True, "demo_key"),
        ({}, False, "organization_inactive"),
        ({"status": "revoked", "expires_at_s": 1.0, "demo": True}, False, "revoked"),
    ],
)
def test_a_record_that_is_not_good_refuses_its_key(
    stand: Stand, facts: dict[str, Any], active: bool, reason: str
) -> None:
    """Each state of a record has its reason."""
    stand.put(**facts)
    assert refusal(stand.authenticator(), stand.key, active=active).reason == reason


def test_a_key_is_good_until_it_expires(stand: Stand, any_organization: Active) -> None:
    """The moment of expiry is the first at which a key is refused."""
    record = stand.put(expires_at_s=stand.clock.now_s() + 1)
    auth = stand.authenticator()
    assert auth.authenticate(stand.key, None, any_organization) is record
    stand.clock.advance(1)
    assert refusal(auth, stand.key).reason == "expired"


def test_the_organization_of_the_record_is_asked(stand: Stand) -> None:
    """The organization that must be active is the one that owns the key."""
    stand.put(organization_id="org_7")
    asked: list[str] = []

    def active(organization_id: str) -> bool:
        asked.append(organization_id)
        return True

    stand.authenticator().authenticate(stand.key, None, active)
    assert asked == ["org_7"]


def test_a_revoked_key_is_refused_on_the_next_call(stand: Stand, any_organization: Active) -> None:
    """K1: nothing of a record is kept between calls."""
    stand.put()
    auth = stand.authenticator()
    auth.authenticate(stand.key, None, any_organization)
    stand.put(status="revoked")
    assert refusal(auth, stand.key).reason == "revoked"


def test_an_unreadable_store_is_not_a_wrong_key(stand: Stand, any_organization: Active) -> None:
    """K5: when the store cannot be read the caller hears that, never that its key is wrong."""
    stand.store.failure = NotConfigured()
    with pytest.raises(NotConfigured):
        stand.authenticator().authenticate(stand.key, None, any_organization)


# --- demo mode ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["dev-test-key", "a", "A_b-9", "k" * 64])
def test_a_demo_key_works_in_demo_mode_only(
    stand: Stand, any_organization: Active, key: str
) -> None:
    """A published key opens a demo and, without a look-up, nothing else."""
    record = stand.put(key, demo=True)
    demo = stand.authenticator(demo=True)
    assert demo.authenticate(None, f"Bearer {key}", any_organization) is record
    assert stand.store.lookups == 1
    assert refusal(stand.authenticator(), key).reason == "malformed"
    assert stand.store.lookups == 1


def test_ordinary_keys_work_in_demo_mode(stand: Stand, any_organization: Active) -> None:
    """Demo mode adds keys and takes none away."""
    record = stand.put()
    demo = stand.authenticator(demo=True)
    assert demo.authenticate(stand.key, None, any_organization) is record


def test_an_unknown_demo_key_is_unknown(stand: Stand) -> None:
    """Demo mode looks a short plain text up and does not find it."""
    assert refusal(stand.authenticator(demo=True), "dev-test-key").reason == "unknown"


# --- one face for every refusal -------------------------------------------------------------


def test_every_refusal_has_one_message_without_the_key(stand: Stand) -> None:
    """K6: all causes read the same and none repeats what was sent."""
    auth = stand.authenticator()
    errors = [
        refusal(auth),
        refusal(auth, stand.key[:-1]),
        refusal(auth, stand.key, f"Bearer {stand.key}x"),
        refusal(auth, stand.key),
    ]
    for facts in ({"status": "revoked"}, {"expires_at_s": 1.0}, {"demo": True}):
        stand.put(**facts)
        errors.append(refusal(auth, stand.key))
    stand.put()
    errors.append(refusal(auth, stand.key, active=False))
    assert {error.reason for error in errors} == set(KEY_REFUSALS)
    assert {str(error) for error in errors} == {"missing or invalid API key"}
    assert not any(stand.key[-20:-1] in f"{error!r}{vars(error)}" for error in errors)


def test_the_lists_of_reasons_are_their_types() -> None:
    """Metrics label by these lists, so they hold each reason once."""
    assert get_args(KeyRefusal) == KEY_REFUSALS
    assert get_args(SignatureRefusal) == SIGNATURE_REFUSALS


def test_an_authenticator_needs_a_pepper(stand: Stand) -> None:
    """A forgotten pepper stops the router instead of storing bare hashes."""
    with pytest.raises(ValueError, match="pepper"):
        stand.authenticator(pepper=b"")


@pytest.mark.parametrize("signed", [False, True])
def test_a_caller_is_what_its_record_says(stand: Stand, signed: bool) -> None:
    """The caller carries organization, key, scopes, models and whether it signed."""
    record = stand.put(
        scopes=frozenset({"inference"}), models=frozenset({"gpt-4o"}), require_signature=True
    )
    assert stand.authenticator().to_caller(record, signed=signed) == Caller(
        organization_id="org_1",
        key_id="key_1",
        scopes=frozenset({"inference"}),
        models=frozenset({"gpt-4o"}),
        require_signature=True,
        signed=signed,
    )


# --- signatures -----------------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [-300, -299, 0, 299, 300])
def test_a_clock_within_the_tolerance_is_fresh(stand: Stand, skew_s: int) -> None:
    """Exactly ±300 s is still fresh."""
    record = stand.put()
    parts = stand.parts(timestamp=str(int(stand.clock.now_s()) + skew_s))
    signature = stand.sign(record, parts, BODY)
    stand.authenticator().verify_signature(record, parts, BODY, signature)


@pytest.mark.parametrize("skew_s", [-(10**9), -301, 301, 10**11])
def test_a_clock_outside_the_tolerance_is_stale(stand: Stand, skew_s: int) -> None:
    """One second beyond the tolerance, either way, is stale."""
    record = stand.put()
    parts = stand.parts(timestamp=str(int(stand.clock.now_s()) + skew_s))
    signature, auth = stand.sign(record, parts, BODY), stand.authenticator()
    error = signature_refusal(lambda: auth.verify_signature(record, parts, BODY, signature))
    assert error.reason == "stale"


def test_a_fraction_of_a_second_beyond_the_tolerance_is_stale(stand: Stand) -> None:
    """The router's clock is not rounded in anybody's favour."""
    record, parts = stand.put(), stand.parts()
    signature, auth = stand.sign(record, parts, BODY), stand.authenticator()
    stand.clock.advance(300.001)
    error = signature_refusal(lambda: auth.verify_signature(record, parts, BODY, signature))
    assert error.reason == "stale"


def test_a_signature_is_fresh_for_twice_the_tolerance(stand: Stand) -> None:
    """From 300 s before its timestamp to 300 s after it, which nonces have to outlive."""
    record = stand.put()
    parts = stand.parts(timestamp=str(int(stand.clock.now_s()) + 300))
    signature, auth = stand.sign(record, parts, BODY), stand.authenticator()
    auth.verify_signature(record, parts, BODY, signature)
    stand.clock.advance(600)
    auth.verify_signature(record, parts, BODY, signature)
    stand.clock.advance(1)
    error = signature_refusal(lambda: auth.verify_signature(record, parts, BODY, signature))
    assert error.reason == "stale"


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"path": "/v1/models"},
        {"query": ""},
        {"nonce": "fedcba9876543210"},
        {"path": "/v1/inference\ntrace=1", "query": ""},
        {"path": "/v1/modèle"},
    ],
)
def test_a_changed_request_is_a_mismatch(stand: Stand, changes: dict[str, str]) -> None:
    """A signature of one request is no good for another, however that is written."""
    record, auth = stand.put(), stand.authenticator()
    signature = stand.sign(record, stand.parts(), BODY)
    error = signature_refusal(
        lambda: auth.verify_signature(record, stand.parts(**changes), BODY, signature)
    )
    assert error.reason == "mismatch"


def test_a_changed_body_is_a_mismatch(stand: Stand) -> None:
    """A signature covers every byte of the body."""
    record, auth, parts = stand.put(), stand.authenticator(), stand.parts()
    signature = stand.sign(record, parts, BODY)
    error = signature_refusal(lambda: auth.verify_signature(record, parts, BODY + b" ", signature))
    assert error.reason == "mismatch"


@pytest.mark.parametrize("facts", [{"id": "key_2"}, {"hash": "ab" * 32}])
def test_the_secret_of_another_key_is_a_mismatch(stand: Stand, facts: dict[str, Any]) -> None:
    """Neither another key's secret nor that of the key before its rotation signs for this one."""
    other, record, parts = stand.put(**facts), stand.put(), stand.parts()
    signature, auth = stand.sign(other, parts, BODY), stand.authenticator()
    error = signature_refusal(lambda: auth.verify_signature(record, parts, BODY, signature))
    assert error.reason == "mismatch"


@pytest.mark.parametrize(
    ("changes", "signature", "named"),
    [
        ({"timestamp": ""}, WRONG, "X-Router-Timestamp"),
        ({"timestamp": "soon"}, WRONG, "X-Router-Timestamp"),
        ({"nonce": ""}, WRONG, "X-Router-Nonce"),
        ({"nonce": "short"}, WRONG, "X-Router-Nonce"),
        ({}, "", "X-Router-Signature"),
        ({}, "A" * 64, "X-Router-Signature"),
    ],
)
def test_a_malformed_value_is_named(
    stand: Stand, changes: dict[str, str], signature: str, named: str
) -> None:
    """A missing or misshapen value is refused with the name of its header."""
    record, auth = stand.put(), stand.authenticator()
    parts = stand.parts(**changes)
    error = signature_refusal(lambda: auth.verify_signature(record, parts, BODY, signature))
    assert error.reason == "malformed"
    assert error.message.startswith(named)


def test_shape_comes_before_freshness_before_the_signature(stand: Stand) -> None:
    """The cheap checks come first: of several faults the first in this order is told."""
    record, auth = stand.put(), stand.authenticator()
    old = stand.parts(timestamp="1", nonce="short")
    assert (
        signature_refusal(lambda: auth.verify_signature(record, old, BODY, WRONG)).reason
        == "malformed"
    )
    old = stand.parts(timestamp="1")
    assert (
        signature_refusal(lambda: auth.verify_signature(record, old, BODY, WRONG)).reason == "stale"
    )


def native_body(signature: str, payload: str = "x") -> bytes:
    """A native body with its signature filled in."""
    return f'{{"payload": "{payload}", "hmac_signature": "{signature}"}}'.encode()


def test_a_body_that_carries_its_signature_is_accepted(stand: Stand) -> None:
    """The client signs with the field empty; the router blanks it again."""
    record, auth, parts = stand.put(), stand.authenticator(), stand.parts()
    signature = stand.sign(record, parts, native_body(""))
    body = native_body(signature)
    auth.verify_body_signature(record, parts, body, signature)


def test_a_changed_native_body_is_a_mismatch(stand: Stand) -> None:
    """Everything around the field is covered."""
    record, auth, parts = stand.put(), stand.authenticator(), stand.parts()
    signature = stand.sign(record, parts, native_body(""))
    body = native_body(signature, payload="y")
    error = signature_refusal(lambda: auth.verify_body_signature(record, parts, body, signature))
    assert error.reason == "mismatch"


@pytest.mark.parametrize(
    ("signature", "body", "changes"),
    [
        (WRONG, native_body(WRONG, payload=WRONG), {}),
        (WRONG, native_body(""), {}),
        ("", native_body(""), {}),
        ("x", native_body("x"), {}),
        (WRONG, native_body(WRONG), {"nonce": ""}),
    ],
    ids=["twice", "not there", "empty", "no signature", "no nonce"],
)
def test_a_body_signature_must_be_in_its_place_once(
    stand: Stand, signature: str, body: bytes, changes: dict[str, str]
) -> None:
    """An ambiguous, absent or misshapen body signature is malformed."""
    record, auth, parts = stand.put(), stand.authenticator(), stand.parts(**changes)
    error = signature_refusal(lambda: auth.verify_body_signature(record, parts, body, signature))
    assert error.reason == "malformed"


def test_a_stale_body_signature_is_stale(stand: Stand) -> None:
    """A signature in the body ages like one in a header."""
    record, auth, parts = stand.put(), stand.authenticator(), stand.parts()
    signature = stand.sign(record, parts, native_body(""))
    stand.clock.advance(301)
    error = signature_refusal(
        lambda: auth.verify_body_signature(record, parts, native_body(signature), signature)
    )
    assert error.reason == "stale"


def test_no_signature_error_tells_a_secret(stand: Stand) -> None:
    """K6: neither the key, its hash, the right signature nor the sent one is in any message."""
    record: KeyRecord = stand.put()
    auth, parts = stand.authenticator(), stand.parts()
    right = stand.sign(record, parts, BODY)
    auth.verify_signature(record, parts, BODY, right)
    late = stand.parts(timestamp="1")
    errors = [
        signature_refusal(lambda: auth.verify_signature(record, parts, BODY, WRONG)),
        signature_refusal(lambda: auth.verify_signature(record, late, BODY, right)),
        signature_refusal(lambda: auth.verify_signature(record, parts, BODY, right + "0")),
        signature_refusal(lambda: auth.verify_body_signature(record, parts, BODY, right)),
    ]
    assert {error.reason for error in errors} == set(SIGNATURE_REFUSALS) - {"replayed"}
    secrets = (stand.key, record.hash, right, WRONG, parts.nonce, "rsk_")
    assert not [error for error in errors for secret in secrets if secret in error.message]
