"""Values are put into a document's text, and nothing else of it changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cli.prices.document_text import CannotEdit, with_values
from router.config.parsing import parse_json, parse_yaml
from router.config.serialized import dump_yaml

VALUE = {"input": "3.00", "tiers": [{"above": 5, "input": "6.00"}], "flex": {"multiplier": "0.5"}}
BLOCK = """\
prices:
    input: '3.00'
    tiers:
    - above: 5
      input: '6.00'
    flex:
      multiplier: '0.5'
"""
FLOW = json.dumps(VALUE)
JSON = '{"models": [\n  {\n    "id": "m"\n  }\n]}\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # a model without prices, the next one's comment, the end of the file
        ("- id: m  # one\n# two\n- id: n\n", f"- id: m  # one\n  {BLOCK}# two\n- id: n\n"),
        ("- id: m", f"- id: m\n  {BLOCK}".rstrip("\n")),
        # prices that are there, in each way of writing them
        (
            "- id: m\n  prices:\n    input: 1  # old\n    # tail\n\n  k: 1\n",
            f"- id: m\n  {BLOCK.rstrip()}  # old\n    # tail\n\n  k: 1\n",
        ),
        ("- id: m\n  prices: {a: 1}\n  k: 1\n", f"- id: m\n  {BLOCK}  k: 1\n"),
        ("- id: m\n  prices: null\n  k: 1\n", f"- id: m\n  {BLOCK}  k: 1\n"),
        ("- id: m\n  prices:\n  k: 1\n", f"- id: m\n  {BLOCK}  k: 1\n"),
        # in braces
        (" [{id: m}, {id: n}]\n", f' [{{id: m, "prices": {FLOW}}}, {{id: n}}]\n'),
        ("- {id: m, prices: {a: 1}, k: ü}\n", f"- {{id: m, prices: {FLOW}, k: ü}}\n"),
        ("- {id: m,}\n", f'- {{id: m, "prices": {FLOW}}}\n'),
    ],
)
def test_a_value_is_put_into_the_text(before: str, after: str) -> None:
    """Written as its surroundings are; comments around it stay."""
    edited = with_values(f"models:\n{before}", [(["models", 0, "prices"], VALUE)])
    assert edited == f"models:\n{after}"


def test_lines_end_as_they_did() -> None:
    """A file that was written on Windows stays so."""
    edited = with_values("models:\r\n- id: m\r\n", [(["models", 0, "prices"], VALUE)])
    assert edited == f"models:\n- id: m\n  {BLOCK}".replace("\n", "\r\n")


def test_json_stays_json() -> None:
    """In one line, for it has no other way to be compact."""
    edited = with_values(JSON, [(["models", 0, "prices"], VALUE)])
    assert edited == JSON.replace('"m"', f'"m", "prices": {FLOW}')


def test_what_cannot_be_read_is_not_edited() -> None:
    """JSON can spell a character that YAML cannot."""
    with pytest.raises(CannotEdit):
        with_values('{"models": [{"id": "\\ud83d\\ude00"}]}', [(["models", 0, "prices"], VALUE)])


def test_what_is_missing_on_the_way_is_written_too() -> None:
    """Several values below one that is not there."""
    text = "# ü\nbackends:\n- id: a\n- id: b\n  prices: {}\n"
    values = [(["backends", at, "prices", name], {"x": name}) for at in (0, 1) for name in "mn"]
    assert with_values(text, values) == (
        "# ü\nbackends:\n"
        "- id: a\n  prices:\n    m:\n      x: m\n    n:\n      x: n\n"
        "- id: b\n  prices:\n    m:\n      x: m\n    n:\n      x: n\n"
    )


TEXT = st.text("aü:#'\" -{[,0~n", max_size=5)
PLAIN = st.recursive(
    TEXT | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=6,
)
MODELS = st.lists(
    st.dictionaries(st.sampled_from(["prices", "a", "b"]), PLAIN, min_size=1),
    min_size=1,
    max_size=3,
)


@given(models=MODELS, as_json=st.booleans(), data=st.data())
def test_any_document_is_the_same_but_for_the_value(
    models: list[dict[str, object]], as_json: bool, data: st.DataObject
) -> None:
    """Whatever stands around it, in YAML and in JSON."""
    at = data.draw(st.integers(0, len(models) - 1))
    plain = {"models": models, "end": 1}
    text = json.dumps(plain, indent=2) if as_json else dump_yaml(plain)
    edited = with_values(text, [(["models", at, "prices"], VALUE)])
    models[at]["prices"] = VALUE
    parsed = parse_json(edited) if as_json else parse_yaml(edited)
    assert parsed.problems == []
    assert parsed.data == plain
