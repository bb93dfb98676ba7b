"""A reservation lasts longer than its call, or somebody says so."""

from __future__ import annotations

import pytest

from router.config.document import Backend, Timeouts
from router.config.lease_rule import LeaseWarnings, outlived_leases
from router.config.loader import load_serialized

BACKEND = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(("lease_s", "named"), [(601, []), (600, ["a"]), (5, ["a", "b"])])
def test_backends_that_may_take_too_long_are_named(lease_s: float, named: list[str]) -> None:
    """The default of 600 s is below the default lease of 900 s."""
    backends = [
        Backend("a", "openai", "http://127.0.0.1:1"),
        Backend("b", "openai", "http://127.0.0.1:1", timeouts=Timeouts(total_s=5.0)),
    ]
    found = outlived_leases(lease_s, backends)
    assert [line.split(".")[1] for line in found] == named


def test_a_worker_warns_once_a_revision(caplog: pytest.LogCaptureFixture) -> None:
    """At its start and after a change, not each second."""
    loaded = load_serialized({"version": 1, "backends": [{"id": "a", **BACKEND}]})
    warnings = LeaseWarnings(600.0)
    for revision, lines in ((1, 1), (1, 1), (2, 2)):
        warnings.check(loaded.build(revision))
        assert len(caplog.records) == lines
    assert "raise ROUTER_LEASE" in caplog.text
