"""A document's way from file to frozen parts, and every mistake on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from router.auth.keys import hash_key
from router.config.config_errors import DocumentError
from router.config.document import (
    Backend,
    LoadedDocument,
    Model,
    Organization,
    Policy,
    Prices,
    Share,
    Timeouts,
)
from router.config.loader import load_file, load_serialized

PEPPER = b"a pepper for the tests, 32 bytes"
Plain = dict[str, Any]


def problems(plain: Any, **options: Any) -> list[str]:
    """What the loader has against a document."""
    with pytest.raises(DocumentError) as refused:
        load_serialized(plain, **options)
    return refused.value.problems


def put(plain: Plain, path: str, value: Any) -> Plain:
    """Change one value; ``path`` reads like ``backends.0.timeouts``."""
    *parents, last = path.split(".")
    place: Any = plain
    for name in parents:
        place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
    place[int(last) if last.isdigit() else last] = value
    return plain


def test_a_document_becomes_frozen_parts(loaded: LoadedDocument) -> None:
    """Every section arrives in the types that the workers use, defaults filled in."""
    assert loaded.organizations == (Organization("acme", "Acme", True),)
    assert loaded.models == (
        Model("gpt-4o", ("gpt",), Prices(2_500_000_000, 10_000_000_000, None), 4096),
    )
    assert loaded.backends == (
        Backend("a", "openai", "http://127.0.0.1:9101/v1", None, {}, Timeouts()),
    )
    assert loaded.policies == (Policy("*", "*", (Share("a", 70),)),)


def test_a_document_is_indexed_for_serving(loaded: LoadedDocument) -> None:
    """Aliases lead to their model and the revision is the one that was given."""
    document = loaded.build(7)
    assert document.revision == 7
    assert document.model_names["gpt"] is document.model_names["gpt-4o"]


def test_a_key_has_everything_by_default(loaded: LoadedDocument) -> None:
    """A key without further words is active, for all scopes and models, and never expires."""
    [key] = loaded.keys
    assert (key.status, key.expires_at_s, key.models) == ("active", None, None)
    assert key.scopes == {"inference", "models:read"}
    assert not key.require_signature
    assert not key.demo


@pytest.mark.parametrize("name", ["document.yaml", "document.json", "document"])
def test_a_file_is_yaml_unless_it_says_json(tmp_path: Path, plain: Plain, name: str) -> None:
    """JSON is read as JSON under its own name and as the YAML that it is under any other."""
    file = tmp_path / name
    file.write_text(json.dumps(plain), encoding="utf-8")
    assert load_file(file, demo=False, pepper=b"") == load_serialized(plain)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """A slip of the pen, a wrong type, an unknown field and a dangling reference, with paths."""
    file = tmp_path / "bad.yaml"
    file.write_text(
        """
version: 1
version: 1
organizations: [{id: acme, active: yes}]
keys: [{id: k, organization: nobody, hash: 12}]
backends: [{id: a, kind: openai, base_url: "http://a", timeouts: {connect_s: 0}, weight: 1}]
policies: [{organization: "*", model: gone, backends: [{id: b}]}]
""",
        encoding="utf-8",
    )
    with pytest.raises(DocumentError) as refused:
        load_file(file, demo=False, pepper=b"")
    assert refused.value.problems == [
        "line 3: duplicate key 'version'",
        "organizations[0].active: must be true or false",
        "keys[0].hash: must be a string",
        "backends[0].timeouts.connect_s: must be between 0.001 and 3600 seconds",
        "backends[0].weight: unknown field",
        "keys[0].organization: no organization has the id 'nobody'",
        "policies[0].model: no model has the id 'gone'",
        "policies[0].backends[0].id: no backend has the id 'b'",
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "the document is empty"),
        ([], "the document must be a mapping"),
        ("words", "the document must be a mapping"),
        ({}, "version: is missing"),
        ({"version": 2}, "version: must be 1"),
        ({"version": True}, "version: must be 1"),
        ({"version": 1, "keys": {}}, "keys: must be a list"),
        ({"version": 1, "keys": None}, "keys: must not be null"),
        ({"version": 1, "keys": [None]}, "keys[0]: must not be null"),
        ({"version": 1, "keys": ["a"]}, "keys[0]: must be a mapping"),
    ],
)
def test_a_wrong_frame_is_refused(data: Any, problem: str) -> None:
    """What is no document at all is told apart from a document with a mistake."""
    assert problems(data) == [problem]


@pytest.mark.parametrize(
    "path",
    [
        "extra",
        "organizations.0.extra",
        "keys.0.extra",
        "models.0.extra",
        "models.0.prices.extra",
        "backends.0.extra",
        "backends.0.timeouts.extra",
        "policies.0.extra",
        "policies.0.backends.0.extra",
    ],
)
def test_unknown_fields_are_refused_everywhere(plain: Plain, path: str) -> None:
    """A misspelt field never goes unnoticed, however deep it stands."""
    [problem] = problems(put(plain, path, 1))
    assert problem.endswith("extra: unknown field")


def test_strange_field_names_are_escaped(plain: Plain) -> None:
    """A name with control characters cannot rewrite the operator's terminal."""
    assert problems(put(plain, "\x1b[2Jx", 1)) == ["'\\x1b[2Jx': unknown field"]


WORD = "must be a string"
ID = "must be 1 to 128 of A-Z a-z 0-9 . _ : / - and begin with a letter or digit"
WEIGHT = "must be a whole number between 0 and 1000000"
SECONDS = "must be between 0.001 and 3600 seconds"
CREDENTIAL = "must be 'env:NAME' or 'file:/absolute/path', never the secret itself"
MOMENT = "must be a time with its zone, such as 2027-01-31T00:00:00Z"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("organizations.0.name", 5, WORD),
        ("organizations.0.name", "a\nb", "must not hold control characters"),
        ("organizations.0.name", "\ud800", "must not hold control characters"),
        ("organizations.0.name", "x" * 257, "must have 0 to 256 characters"),
        ("organizations.0.active", 1, "must be true or false"),
        ("keys.0.hash", "AB" * 32, "must be 64 lowercase hex digits"),
        ("keys.0.hash", None, "must not be null"),
        ("keys.0.status", "deleted", "must be one of active, revoked"),
        ("keys.0.scopes", ["inference", "inference"], "must not name anything twice"),
        ("keys.0.scopes", "inference", "must be a list"),
        ("keys.0.expires_at", "2027-01-31T00:00:00", MOMENT),
        ("keys.0.expires_at", "2027-02-30T00:00:00Z", MOMENT),
        ("keys.0.expires_at", 1_800_000_000, MOMENT),
        ("keys.0.require_signature", "true", "must be true or false"),
        ("models.0.max_output_tokens", 0, "must be a whole number between 1 and 10000000"),
        ("models.0.max_output_tokens", "4096", "must be a whole number between 1 and 10000000"),
        ("models.0.prices", {}, None),
        ("models.0.prices", 5, "must be a mapping"),
        ("backends.0.kind", "bedrock", "must be one of openai, anthropic"),
        ("backends.0.kind", ["openai"], "must be one of openai, anthropic"),
        ("backends.0.credential", "sk-0123456789", CREDENTIAL),
        ("backends.0.credential", "env:A B", CREDENTIAL),
        ("backends.0.credential", "file:relative", CREDENTIAL),
        ("backends.0.models", [], "must be a mapping"),
        ("backends.0.timeouts.connect_s", 0, SECONDS),
        ("backends.0.timeouts.connect_s", -1, SECONDS),
        ("backends.0.timeouts.connect_s", 3600.5, SECONDS),
        ("backends.0.timeouts.connect_s", float("nan"), SECONDS),
        ("backends.0.timeouts.connect_s", "1", "must be a number of seconds"),
        ("backends.0.timeouts.connect_s", True, "must be a number of seconds"),
        ("policies.0.backends", [], "must name 1 to 1000 backends"),
        ("policies.0.backends.0.weight", -1, WEIGHT),
        ("policies.0.backends.0.weight", 1.5, WEIGHT),
        ("policies.0.backends.0.weight", True, WEIGHT),
    ],
)
def test_a_wrong_value_is_refused(plain: Plain, path: str, value: Any, problem: str | None) -> None:
    """Each field takes one type and one range, and its problem begins with its path."""
    found = problems(put(plain, path, value))
    start = path.replace(".0", "[0]")
    assert all(line.startswith(start) for line in found)
    if problem is not None:
        assert found == [f"{start}: {problem}"]


@pytest.mark.parametrize("value", ["", "-a", "a b", "a\n", "ü", "*", "x" * 129, "a?"])
@pytest.mark.parametrize(
    "path",
    ["organizations.0.id", "keys.0.id", "models.0.id", "backends.0.id", "models.0.aliases.0"],
)
def test_ids_have_one_shape(plain: Plain, path: str, value: str) -> None:
    """What stands in records, paths and headers holds no surprise."""
    del plain["keys"], plain["policies"]
    plain["keys"] = [{"id": "k", "organization": "acme", "hash": "00" * 32}]
    found = problems(put(plain, path, value))
    assert f"{path.replace('.0', '[0]')}: " in found[0]


@pytest.mark.parametrize("value", ["a", "9", "gpt-4o", "org/model:tag_1.0", "x" * 128])
def test_ids_may_look_like_model_names(plain: Plain, value: str) -> None:
    """Names of models as their makers write them are ids."""
    assert load_serialized(put(plain, "models.0.id", value)).models[0].id == value


def test_a_policy_names_both_sides(plain: Plain) -> None:
    """A forgotten model used to mean every model."""
    del plain["policies"][0]["model"]
    assert problems(plain) == ["policies[0].model: is missing"]


# --- prices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "nanos"),
    [
        ('"2.50"', 2_500_000_000),
        ("2.50", 2_500_000_000),
        ("0.1", 100_000_000),
        ("0.3", 300_000_000),
        ("3", 3_000_000_000),
        ('"0"', 0),
        ("0.000000001", 1),
        ('"0.000000001"', 1),
        ("1e-9", 1),
        ("100000", 100_000 * 10**9),
        ("99999.999999999", 99_999_999_999_999),
        ("2.5000000000000", 2_500_000_000),
    ],
)
def test_prices_are_exact(tmp_path: Path, written: str, nanos: int) -> None:
    """What is written is what is charged, to the last nano-USD (B9)."""
    file = tmp_path / "prices.yaml"
    file.write_text(
        "version: 1\nmodels:\n- id: m\n  prices:\n"
        f"    input_usd_per_million_tokens: {written}\n"
        f"    output_usd_per_million_tokens: {written}\n",
        encoding="utf-8",
    )
    [model] = load_file(file, demo=False, pepper=b"").models
    assert model.prices == Prices(nanos, nanos, None)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (-1, "must not be negative"),
        ("-0.01", "must not be negative"),
        ("0.0000000001", "must not be finer than 0.000000001 USD per million tokens"),
        (100_001, "is out of a sane range: more than 100000 USD per million tokens"),
        ("100000.000000001", "is out of a sane range: more than 100000 USD per million tokens"),
        ("1e3", 'must be a decimal number such as "2.50"'),
        ("2,50", 'must be a decimal number such as "2.50"'),
        ("$2", 'must be a decimal number such as "2.50"'),
        ("٣", 'must be a decimal number such as "2.50"'),
        ("", 'must be a decimal number such as "2.50"'),
        ("9" * 41, 'must be a decimal number such as "2.50"'),
        (True, 'must be a decimal number such as "2.50"'),
        (float("inf"), 'must be a decimal number such as "2.50"'),
    ],
)
def test_a_price_out_of_range_is_refused(plain: Plain, value: Any, problem: str) -> None:
    """A price that nobody can mean is refused before anybody pays it (B10, B11)."""
    path = "models.0.prices.input_usd_per_million_tokens"
    assert problems(put(plain, path, value)) == [f"{path.replace('.0', '[0]')}: {problem}"]


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("http://127.0.0.1:9101/v1", "http://127.0.0.1:9101/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com//", None),
        ("https://api.example.com", "https://api.example.com"),
        (
            "HTTPS://api.example.com/openai/deployments/x_1",
            "https://api.example.com/openai/deployments/x_1",
        ),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://vllm:8000/v1", "http://vllm:8000/v1"),
    ],
)
def test_an_address_is_kept_without_its_last_slash(
    plain: Plain, written: str, kept: str | None
) -> None:
    """The path of a request is appended to exactly this text."""
    put(plain, "backends.0.base_url", written)
    if kept is None:
        assert len(problems(plain)) == 1
    else:
        assert load_serialized(plain).backends[0].base_url == kept


@pytest.mark.parametrize(
    "address",
    [
        "ftp://example.com/v1",
        "//example.com/v1",
        "example.com/v1",
        "http:///v1",
        "http://",
        "http://user@example.com/v1",
        "http://user:secret@example.com/v1",
        "http://example.com/v1?",
        "http://example.com/v1?a=b",
        "http://example.com/v1#",
        "http://example.com/v1#frag",
        "http://example.com/../v1",
        "http://example.com/v1/..",
        "http://example.com/./v1",
        "http://example.com/%2e%2e/v1",
        "http://example.com/a%2fb",
        "http://example.com/a%5Cb",
        "http://example.com\\@evil.com/v1",
        "http://example.com/a b",
        "http://example.com/a\r\nX: y",
        "http://example.com//v1",
        "http://example.com:0/v1",
        "http://example.com:/v1",
        "http://example.com:65536/v1",
        "http://example.com:http/v1",
        "http://exa%6dple.com/v1",
        "http://-example.com/v1",
        "http://ex ample.com",
        "http://münchen.example/v1",
        "http://[::1/v1",
        "http://[nonsense:]/v1",
        "http://example.com/v1/chat/completions",
        "http://example.com/v1/messages",
    ],
)
def test_an_ambiguous_address_is_refused(plain: Plain, address: str) -> None:
    """No address lets a request go elsewhere than it seems to (Z1)."""
    [problem] = problems(put(plain, "backends.0.base_url", address))
    assert problem.startswith("backends[0].base_url: must ")
    assert "secret" not in problem


# --- references -----------------------------------------------------------------------------


def again(section: str) -> Callable[[Plain], None]:
    return lambda plain: plain[section].append(dict(plain[section][0]))


def change(path: str, value: Any) -> Callable[[Plain], None]:
    return lambda plain: put(plain, path, value) and None


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (again("organizations"), ["organizations[1].id: the same as organizations[0].id"]),
        (
            again("keys"),
            ["keys[1].id: the same as keys[0].id", "keys[1].hash: the same as keys[0].hash"],
        ),
        (
            again("models"),
            [
                "models[1].id: the same as models[0].id",
                "models[1].aliases[0]: 'gpt' is already at models[0].aliases[0]",
            ],
        ),
        (again("backends"), ["backends[1].id: the same as backends[0].id"]),
        (
            again("policies"),
            ["policies[1]: the same organization and model as policies[0]"],
        ),
        (
            change("models.0.aliases", ["gpt-4o", "x", "x"]),
            [
                "models[0].aliases[0]: 'gpt-4o' is the id of a model",
                "models[0].aliases[2]: 'x' is already at models[0].aliases[1]",
            ],
        ),
        (
            change("keys.0.models", ["gpt-4o", "gpt", "gone"]),
            [
                "keys[0].models[1]: no model has the id 'gpt'; it is an alias, write 'gpt-4o'",
                "keys[0].models[2]: no model has the id 'gone'",
            ],
        ),
        (
            change("keys.0.organization", "gone"),
            ["keys[0].organization: no organization has the id 'gone'"],
        ),
        (
            change("backends.0.models", {"gone": "x"}),
            ["backends[0].models.gone: no model has the id 'gone'"],
        ),
        (
            change("policies.0.organization", "gone"),
            ["policies[0].organization: no organization has the id 'gone'"],
        ),
        (
            change("policies.0.backends", [{"id": "a"}, {"id": "a"}, {"id": "b"}]),
            [
                "policies[0].backends[1].id: 'a' is already in this policy",
                "policies[0].backends[2].id: no backend has the id 'b'",
            ],
        ),
        (
            change("policies.0.backends.0.weight", 0),
            ["policies[0].backends: all weights are 0, so nothing would be served"],
        ),
    ],
)
def test_references_lead_somewhere_once(
    plain: Plain, spoil: Callable[[Plain], None], expected: list[str]
) -> None:
    """Unknown, doubled and useless references are found, each with its path."""
    spoil(plain)
    assert problems(plain) == expected


def test_a_weight_has_a_default(plain: Plain) -> None:
    """A share without a weight weighs 100 (F8)."""
    del plain["policies"][0]["backends"][0]["weight"]
    assert load_serialized(plain).policies[0].shares == (Share("a", 100),)


def test_a_weight_of_zero_may_stand_beside_others(plain: Plain) -> None:
    """A drained backend stays in its policy (F8)."""
    plain["backends"].append({**plain["backends"][0], "id": "b"})
    plain["policies"][0]["backends"].append({"id": "b", "weight": 0})
    assert load_serialized(plain).policies[0].shares[1] == Share("b", 0)


# --- keys -----------------------------------------------------------------------------------


def demo_key(plain: Plain, **fields: Any) -> Plain:
    plain["keys"] = [{"id": "k", "organization": "acme", **fields}]
    return plain


def test_a_demo_secret_needs_demo_mode(plain: Plain) -> None:
    """A published key cannot slip into a real configuration."""
    demo_key(plain, demo_secret="dev-test-key")
    assert problems(plain) == ["keys[0].demo_secret: allowed only in demo mode (ROUTER_DEMO=true)"]


def test_a_demo_secret_is_hashed_as_a_key_is(plain: Plain) -> None:
    """The loader's hash is the one that the authenticator looks up."""
    demo_key(plain, demo_secret="dev-test-key")
    [key] = load_serialized(plain, demo=True, pepper=PEPPER).keys
    assert key.hash == hash_key("dev-test-key", PEPPER).hex()
    assert key.demo


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "keys[0].hash: is missing"),
        (
            {"hash": "00" * 32, "demo_secret": "dev-test-key"},
            "keys[0].hash: must not stand beside 'demo_secret'",
        ),
        (
            {"demo_secret": "short"},
            "keys[0].demo_secret: must be 8 to 64 characters of A-Z a-z 0-9 _ -",
        ),
        (
            {"demo_secret": "has a space"},
            "keys[0].demo_secret: must be 8 to 64 characters of A-Z a-z 0-9 _ -",
        ),
    ],
)
def test_a_key_has_one_secret(plain: Plain, fields: Plain, problem: str) -> None:
    """Exactly one of hash and demo secret says what the key is."""
    assert problems(demo_key(plain, **fields), demo=True, pepper=PEPPER) == [problem]


def test_a_demo_secret_may_not_repeat_a_hash(plain: Plain) -> None:
    """One key under two ids would be billed by chance."""
    plain["keys"][0]["hash"] = hash_key("dev-test-key", PEPPER).hex()
    plain["keys"].append({"id": "k", "organization": "acme", "demo_secret": "dev-test-key"})
    assert problems(plain, demo=True, pepper=PEPPER) == ["keys[1]: the same key as keys[0]"]


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-31T00:00:00Z", datetime(2027, 1, 31, tzinfo=timezone.utc)),
        ("2027-01-31t00:00:00z", datetime(2027, 1, 31, tzinfo=timezone.utc)),
        ("2027-01-31 02:00:00+02:00", datetime(2027, 1, 31, tzinfo=timezone.utc)),
        ("2027-01-30T23:59:59.5Z", datetime(2027, 1, 30, 23, 59, 59, 500_000, timezone.utc)),
    ],
)
def test_an_expiry_is_a_point_in_time(plain: Plain, written: str, moment: datetime) -> None:
    """The zone counts, and fractions of any length are read by every Python."""
    [key] = load_serialized(put(plain, "keys.0.expires_at", written)).keys
    assert key.expires_at_s == moment.timestamp()


def test_no_message_repeats_a_secret(plain: Plain) -> None:
    """A key or credential pasted into the wrong field is not printed (K6)."""
    canary = "sk-canary-5f1d/canary"
    plain["keys"][0] |= {"hash": canary, "demo_secret": canary + " "}
    plain["backends"][0] |= {"credential": canary, "base_url": f"http://{canary}@host/"}
    assert "canary" not in "\n".join(problems(plain))


def test_the_demo_document_is_valid() -> None:
    """The package's own demo loads in demo mode and serves all its models 70 to 30."""
    demo = resources.files("router.demo").joinpath("demo.yaml")
    with resources.as_file(demo) as file:
        loaded = load_file(file, demo=True, pepper=PEPPER)
    secrets = ("dev-test-key", "dev-budget-key", "dev-quota-key")
    assert [key.hash for key in loaded.keys] == [hash_key(each, PEPPER).hex() for each in secrets]
    assert {"gpt-4o", "gpt-4o-mini", "text-embedding-3-small", "claude-sonnet"} == {
        model.id for model in loaded.models if model.prices is not None
    }
    assert loaded.policies == (Policy("*", "*", (Share("demo-a", 70), Share("demo-b", 30))),)
