"""What an operator may write for Redis, and what is said about what may not be written."""

from __future__ import annotations

import ssl

import certifi
import pytest

from router.redis.address import Credentials, RedisAddress, parse_address

CASES = {
    "localhost:6379": RedisAddress("server", (("localhost", 6379),)),
    "redis.internal": RedisAddress("server", (("redis.internal", 6379),)),
    "redis://h:1/3": RedisAddress("server", (("h", 1),), db=3),
    "redis://[::1]:7000": RedisAddress("server", (("::1", 7000),)),
    "redis://[::1]": RedisAddress("server", (("::1", 6379),)),
    "redis://:s%40cret@h": RedisAddress(
        "server", (("h", 6379),), login=Credentials(None, "s@cret")
    ),
    "redis://me:pw@h": RedisAddress("server", (("h", 6379),), login=Credentials("me", "pw")),
    "rediss://h": RedisAddress("server", (("h", 6379),), tls=True),
    "unix:///run/redis.sock?db=2": RedisAddress("server", path="/run/redis.sock", db=2),
    "redis+sentinel://a,b:1/main/4?sentinel_password=x": RedisAddress(
        "sentinel",
        (("a", 26379), ("b", 1)),
        db=4,
        service="main",
        sentinel_login=Credentials(None, "x"),
    ),
    "rediss+cluster://me:pw@a:1,b:2": RedisAddress(
        "cluster", (("a", 1), ("b", 2)), tls=True, login=Credentials("me", "pw")
    ),
}


@pytest.mark.parametrize("text", CASES)
def test_every_kind_of_address_is_understood(text: str) -> None:
    """Host and port, URL, unix socket, Sentinel and cluster."""
    assert parse_address(text) == CASES[text]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://h", "unknown scheme"),
        ("redis://h:port", "no valid port"),
        ("redis://h:70000", "no valid port"),
        ("redis://", "no host"),
        ("redis://a,b", "several hosts"),
        ("redis://h/x", "database number"),
        ("unix://", "needs a path"),
        ("redis+sentinel://a,b", "names the master"),
        ("redis+cluster://a/1", "no database numbers"),
        ("redis://h?ssl_ca_certs=/ca.pem", "unknown option ssl_ca_certs"),
        ("rediss://h?ssl_cert_reqs=maybe", "required or none"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false"),
    ],
)
def test_mistakes_are_named(text: str, complaint: str) -> None:
    """A wrong address is refused at start, in words."""
    with pytest.raises(ValueError, match=complaint):
        parse_address(text)


def test_a_url_cannot_change_the_timeouts() -> None:
    """D2: the promises on latency hold however Redis is configured."""
    with pytest.raises(ValueError, match="unknown option socket_timeout"):
        parse_address("redis://h?socket_timeout=5")


def test_a_separate_password_stands_in_where_the_url_has_none() -> None:
    """The password may come from a variable of its own."""
    assert parse_address("redis://me@h", password="x").login == Credentials("me", "x")
    assert parse_address("redis://:y@h", password="x").login == Credentials(None, "y")


def test_no_password_shows_in_what_is_logged() -> None:
    """P17: neither as text nor in a traceback's repr."""
    address = parse_address("redis+sentinel://me:hush@a/main?sentinel_password=hush")
    assert "hush" not in str(address)
    assert "hush" not in repr(address)


def test_tls_verifies_unless_it_is_told_not_to() -> None:
    """Certificate and name are checked by default, against the authority that is configured."""
    strict = parse_address(f"rediss://h?ssl_ca_certs={certifi.where()}").tls_context()
    assert strict is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    no_name = parse_address("rediss://h?ssl_check_hostname=false").tls_context()
    assert no_name is not None
    assert (no_name.verify_mode, no_name.check_hostname) == (ssl.CERT_REQUIRED, False)
    nothing = parse_address("rediss://h?ssl_cert_reqs=none").tls_context()
    assert nothing is not None
    assert nothing.verify_mode == ssl.CERT_NONE
    assert parse_address("redis://h").tls_context() is None
