"""Text → plain data: what is understood, what is refused, what cannot explode."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.config import parsing
from router.config.config_errors import DocumentError
from router.config.parsing import MAX_BYTES, MAX_DEPTH, Parsed, parse_json, parse_yaml, read_text
from router.config.serialized import dump_yaml

SCALARS = [
    ("1", 1),
    ("-7", -7),
    ("2.50", Decimal("2.50")),
    ("1e3", Decimal("1e3")),
    (".5", Decimal("0.5")),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("no", "no"),
    ("on", "on"),
    ("1:30", "1:30"),
    ("010", "010"),
    ("0x1f", "0x1f"),
    ("1_000", "1_000"),
    (".inf", ".inf"),
    (".nan", ".nan"),
    ("2027-01-31T00:00:00Z", "2027-01-31T00:00:00Z"),
    ("'1'", "1"),
    ('"null"', "null"),
]


@pytest.fixture(params=["libyaml", "python"])
def any_yaml_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers of PyYAML; wheels bring libyaml, builds without it fall back to Python's."""
    loader = getattr(yaml, "CSafeLoader", None) if request.param == "libyaml" else yaml.SafeLoader
    if loader is None:
        pytest.skip("this PyYAML was built without libyaml")
    monkeypatch.setattr(parsing, "_YAML_LOADER", loader)


@pytest.mark.parametrize(("written", "expected"), SCALARS)
def test_scalars_mean_what_yaml_1_2_says(written: str, expected: object) -> None:
    """Words stay words, numbers keep all their digits, dates stay text."""
    [(_, value)] = parse_yaml(f"value: {written}").data.items()
    assert value == expected
    assert type(value) is type(expected)


def test_yaml_and_json_say_the_same(any_yaml_parser: None) -> None:
    """One document in both languages is one value."""
    text = '{"a": [1, 2.50, null, true, "x"], "b": {"c": []}}'
    assert parse_yaml(text) == parse_json(text)


@pytest.mark.parametrize("parse", [parse_yaml, parse_json])
def test_a_duplicate_key_is_reported(parse: Any) -> None:
    """A key that stands twice used to win silently with its last value."""
    problems = parse('{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}').problems
    assert [problem.split(": ")[-1] for problem in problems] == [
        "duplicate key 'c'",
        "duplicate key 'a'",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x [1]\nb: *x", "line 2: the alias *x is not allowed; write the value out"),
        ("a: !!str 1", "line 1: the tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: !!python/name:os.system ''", "line 1: the tag"),
        ("a: !local {}", "line 1: the tag '!local' is not allowed"),
        ("a: 1\n---\nb: 2", "holds more than one YAML document"),
        ("[a, b]: 1", "line 1: a key must be a plain word"),
        ("a: 1e41", "line 1: a number has an exponent beyond 40"),
        (f"a: {'9' * 41}", "line 1: a number has more than 40 digits"),
    ],
)
def test_what_yaml_may_not_say_is_reported(text: str, problem: str, any_yaml_parser: None) -> None:
    """Everything that JSON could not say is a problem with its line."""
    [found] = parse_yaml(text).problems
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, f"line 1: nested deeper than {MAX_DEPTH} levels"),
        ("a: b: c", "line 1: not YAML: mapping values are not allowed"),
        ("a: [1,\nb: 2", "not YAML: "),
        ("a: \x07", "not YAML: "),
    ],
)
def test_broken_yaml_is_refused(text: str, problem: str, any_yaml_parser: None) -> None:
    """Neither depth nor bytes that are no text reach anything that could fall over them."""
    with pytest.raises(DocumentError) as refused:
        parse_yaml(text)
    assert problem in refused.value.problems[0]


def test_an_alias_bomb_costs_nothing(any_yaml_parser: None) -> None:
    """Nine levels of nine aliases used to stand for 387 million values."""
    lines = ["l0: &l0 [x]"]
    lines += [f"l{n}: &l{n} [{','.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert len(parse_yaml("\n".join(lines)).problems) == 81


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 1_000_000, f"nested deeper than {MAX_DEPTH} levels"),
        ('{"a": 1,', "line 1: not JSON: "),
        ("", "line 1: not JSON: "),
        (f'{{"a": {"9" * 5000}}}', "a number has more than 40 digits"),
        ('{"a": 1e999999999}', "a number has an exponent beyond 40"),
    ],
)
def test_broken_json_is_refused(text: str, problem: str) -> None:
    """Depth, truncation and numbers that would fill the memory end in one sentence."""
    with pytest.raises(DocumentError) as refused:
        parse_json(text)
    assert refused.value.problems[0].startswith(problem)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_json_constants_are_reported(name: str) -> None:
    """Python's JSON takes NaN; JSON does not."""
    assert parse_json(f'{{"a": {name}}}').problems == [f"{name} is not a number that JSON knows"]


def test_a_file_is_bounded(tmp_path: Path) -> None:
    """A document of 8 MiB and one byte is refused unread."""
    file = tmp_path / "large.yaml"
    file.write_bytes(b" " * MAX_BYTES)
    assert len(read_text(file)) == MAX_BYTES
    file.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(DocumentError, match="larger than the limit"):
        read_text(file)


def test_a_file_must_be_utf_8(tmp_path: Path) -> None:
    """Other encodings are refused with the place, and a byte order mark is skipped."""
    file = tmp_path / "document.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(file) == "a: 1"
    file.write_bytes(b"a: \xff")
    with pytest.raises(DocumentError, match="not UTF-8 at byte 3"):
        read_text(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The system's reason is passed on without a traceback."""
    with pytest.raises(DocumentError, match=r"gone\.yaml: No such file"):
        read_text(tmp_path / "gone.yaml")


PLAIN_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
    | st.sampled_from([written for written, _ in SCALARS]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abc-1~", min_size=1, max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN_VALUES)
def test_yaml_that_was_written_is_read_back(value: object) -> None:
    """Whatever text looks like a number, a date or a truth value comes back as text."""
    parsed = parse_yaml(dump_yaml({"value": value}))
    assert (parsed.data, parsed.problems) == ({"value": value}, [])


@given(PLAIN_VALUES)
def test_yaml_that_was_written_is_read_alike_by_others(value: object) -> None:
    """A YAML 1.1 reader finds the same value in an export."""
    assert yaml.safe_load(dump_yaml({"value": value})) == {"value": value}


@given(st.text(max_size=200) | st.text("[]{}&*!:,-'\"\n \t#|>?%@`a1.~", max_size=200))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    """Any text is data, a list of problems, or a DocumentError."""
    for parse in (parse_yaml, parse_json):
        with contextlib.suppress(DocumentError):
            assert isinstance(parse(text), Parsed)
