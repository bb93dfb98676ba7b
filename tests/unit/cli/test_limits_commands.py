"""`routerctl limits` as an operator meets it, on a real redis-server."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from router.limits.rates.decision import BucketSpec, RateDecision, SlotSpec, corrections
from router.limits.rates.limiter import RateLimiter
from router.redis.client import RedisClient
from tests.unit.cli.operator_stand import Run, events, routerctl, succeeded

WHOLE = {
    "requests_per_second": 0.001,
    "burst": 5,
    "tokens_per_minute": 600,
    "concurrent": 3,
}
DOCUMENT = {
    "version": 1,
    "organizations": [
        {
            "id": "acme",
            "rate_limit": WHOLE,
            "model_rate_limits": {
                "gpt": {"requests_per_second": None, "tokens_per_minute": 60, "shadow": True}
            },
        },
        {"id": "free", "rate_limit": {"requests_per_second": None}},
    ],
    "keys": [
        {
            "id": "batch",
            "organization": "acme",
            "hash": "ab" * 32,
            "rate_limit": {"requests_per_second": None, "tokens_per_minute": 600},
        },
        {"id": "plain", "organization": "acme", "hash": "cd" * 32},
    ],
    "models": [{"id": "gpt"}],
    "backends": [{"id": "a", "kind": "openai", "base_url": "http://127.0.0.1:9101/v1"}],
    "policies": [{"organization": "*", "model": "*", "backends": [{"id": "a"}]}],
}
REQUESTS = BucketSpec("org-requests", (), 0.001, 5)
# As slow as can be, so that nothing flows in while a test runs: the script goes by what it is told.
TOKENS = BucketSpec("org-tokens", (), 0.001, 600, cost=200, leased=True)
OF_KEY = BucketSpec("key-tokens", ("batch",), 0.001, 600, cost=200, leased=True)
SLOTS = SlotSpec("org-concurrent", (), 3)


@pytest.fixture
def run(tmp_path: Path, redis_url: str, client: RedisClient) -> Run:
    return routerctl("limits", tmp_path, redis_url, DOCUMENT)


def begin(client: RedisClient, lease: str) -> RateDecision:
    """A call is running."""
    limiter = RateLimiter(client)
    decision = limiter.take("acme", [REQUESTS, TOKENS, OF_KEY], [SLOTS], lease_id=lease)
    assert decision.allowed
    return decision


def end(client: RedisClient, lease: str, decision: RateDecision, used: int) -> None:
    wrong = corrections([REQUESTS, TOKENS, OF_KEY], decision, used)
    RateLimiter(client).finish("acme", wrong, [SLOTS], lease_id=lease)


def limits_of(run: Run, *arguments: str) -> dict[tuple[str, str | None], dict[str, Any]]:
    rows = json.loads(succeeded(run("show", "acme", "--output", "json", *arguments)))
    return {(row["name"], row["key"] or row["model"]): row for row in rows}


def test_the_limits_are_shown_as_redis_has_them(run: Run, client: RedisClient) -> None:
    """Two calls run, and a third has used more than anybody estimated."""
    begin(client, "a"), begin(client, "b")
    found = limits_of(run)
    assert set(found) == {
        ("org-requests", None),
        ("org-tokens", None),
        ("key-tokens", "batch"),
        ("key-requests", "plain"),
        ("model-tokens", "gpt"),
        ("org-concurrent", None),
    }
    requests = found["org-requests", None]
    assert (requests["limit"], requests["remaining"], requests["running"]) == (5, 3, None)
    slots = found["org-concurrent", None]
    assert (slots["limit"], slots["remaining"], slots["running"]) == (3, 1, 2)
    tokens = found["org-tokens", None]
    assert (tokens["limit"], tokens["running"], tokens["wait_s"]) == (600, 400, 0)
    assert 200 <= tokens["remaining"] < 600
    assert found["model-tokens", "gpt"]["shadow"] is True
    assert found["model-tokens", "gpt"]["remaining"] == 60


def test_only_what_holds_for_a_key(run: Run, client: RedisClient) -> None:
    """The other keys are not shown."""
    assert ("key-tokens", "batch") not in limits_of(run, "--key", "plain")
    assert ("key-tokens", "batch") in limits_of(run, "--key", "batch")


def test_the_table_and_csv_have_a_row_for_each_limit(run: Run, client: RedisClient) -> None:
    """For people and for programs; nothing is limited where nothing is configured."""
    [head, *rows] = succeeded(run("show", "acme")).splitlines()
    assert head.split()[:5] == ["KEY", "MODEL", "NAME", "UNIT", "LIMIT"]
    assert len(rows) == 6
    shown = list(csv.DictReader(io.StringIO(succeeded(run("show", "acme", "-o", "csv")))))
    assert [row["name"] for row in shown][:2] == ["org-requests", "org-tokens"]
    assert succeeded(run("show", "free")) == "no rate limits\n"


def test_a_debt_shows_as_a_wait(run: Run, client: RedisClient) -> None:
    """The call used so much that the bucket owes all that it holds: a minute's tokens."""
    end(client, "a", begin(client, "a"), 10**6)
    tokens = limits_of(run)["org-tokens", None]
    assert tokens["remaining"] == 0
    assert 55 <= tokens["wait_s"] <= 61
    assert 110 <= tokens["full_in_s"] <= 120


@pytest.mark.parametrize(
    ("arguments", "name", "subject", "remaining"),
    [
        (("org-requests",), "org-requests", None, 5),
        (("org-tokens",), "org-tokens", None, 600),
        (("key-tokens", "--key", "batch"), "key-tokens", "batch", 600),
        (("org-concurrent",), "org-concurrent", None, 3),
    ],
)
def test_a_reset_fills_one_limit_up_and_is_audited(
    run: Run,
    client: RedisClient,
    tmp_path: Path,
    arguments: tuple[str, ...],
    name: str,
    subject: str | None,
    remaining: int,
) -> None:
    """The others stay, and what runs meanwhile changes nothing of it any more."""
    decision = begin(client, "a")
    before = limits_of(run)
    text = succeeded(run("reset", "acme", *arguments, "--reason", "a wrong estimate"))
    assert text.startswith(f"{name}: remaining ")
    assert text.endswith(f" -> {remaining}\n")
    after = limits_of(run)
    assert after[name, subject]["remaining"] == remaining
    assert not after[name, subject]["running"]
    others = [one for one in before if one != (name, subject) and "tokens" not in one[0]]
    assert [after[one]["remaining"] for one in others] == [
        before[one]["remaining"] for one in others
    ]
    end(client, "a", decision, 10**6)
    if name != "org-requests":
        assert limits_of(run)[name, subject]["remaining"] == remaining
    [event] = events(tmp_path)
    assert (event["action"], event["entity_type"]) == ("LIMIT_RESET", "rate_limit")
    assert event["entity_id"] == (name if subject is None else f"{name}:{subject}")
    assert (event["organization_id"], event["reason"]) == ("acme", "a wrong estimate")
    assert event["actor"].startswith("operator:")
    assert event["before"].keys() == {"remaining"}
    assert event["context"].get("api_key_id") == subject


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "nobody"), 1, "no organization 'nobody'"),
        (("show", "acme", "--key", "x"), 1, "has no key 'x'"),
        (("reset", "acme", "org-money", "--reason", "r"), 1, "has no limit 'org-money'"),
        (("reset", "acme", "key-tokens", "--reason", "r"), 1, "has no limit 'key-tokens'"),
        (("reset", "acme", "model-tokens", "--model", "x", "--reason", "r"), 1, "model 'x'"),
        (("reset", "acme", "org-tokens", "--reason", " "), 2, "must say something"),
        (("reset", "acme", "org-tokens"), 2, "--reason"),
    ],
)
def test_what_is_wrong_is_said(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """1 for what there is not, 2 for wrong usage; nothing is audited."""
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert events(tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [("show", "acme"), ("reset", "acme", "org-tokens", "--reason", "r")]
)
def test_without_redis_nobody_knows(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 3, as all commands have it."""
    result = run(*arguments, RATE_LIMIT_REDIS_ADDR=f"unix://{tmp_path}/no.sock")
    assert result.exit_code == 3
    assert "no answer from" in result.stderr
