"""Names that another parser reads differently are refused, and no backend is asked.

What folds is taken from outside: Go's ``encoding/json`` matches names by simple case folding
(ſ → s, K → k), the Unicode Character Database has the compatibility forms of NFKC.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest

from router.api.dialects.spelling import check_names
from router.errors import InvalidRequest
from tests.fakes.router_stand import RouterStand, chat_body

LONG_S, KELVIN, FULLWIDTH_M, LIGATURE_ST, SCRIPT_M = "ſ", "\u212a", "ｍ", "ﬆ", "𝓂"
JOINER, SOFT_HYPHEN, MARK, DOTTED_I = "\u200d", "\u00ad", "\ufeff", "\u0130"

TOP = [
    "Model", "MODEL", "mOdel", "mode\u2113", f"{FULLWIDTH_M}odel", f"{SCRIPT_M}odel",
    f"mo{JOINER}del", f"{MARK}model", f"model{SOFT_HYPHEN}", "model\0", "model\0x",
    "Messages", f"me{LONG_S}{LONG_S}ages", f"messages{JOINER}", "messAges",
    "Stream", f"{LONG_S}tream", f"{LIGATURE_ST}ream", "STREAM_OPTIONS", f"stream_option{LONG_S}",
    "Max_Tokens", "MAX_TOKENS", f"max_to{KELVIN}ens", f"max_completion_to{KELVIN}ens", "N", "ｎ",
    "Best_Of", "Service_Tier", f"{LONG_S}ervice_tier", "Tools", f"tool{LONG_S}", "N_Predict",
    "Fallbacks", "API_BASE", "Provider", "Web_Search_Options", "modalitie" + LONG_S,
]  # fmt: skip
"""Of a chat's own fields."""

BELOW: list[tuple[dict[str, Any], str]] = [
    ({"stream": True, "stream_options": {"Include_Usage": True}}, "stream_options.Include_Usage"),
    ({"tools": [{"Type": "web_search"}]}, "tools[0].Type"),
    (
        {"tools": [{"type": "function", "function": {"Parameters": {}}}]},
        "tools[0].function.Parameters",
    ),
    ({"messages": [{"role": "user", "content": "x", "Content": "y"}]}, "messages[0].Content"),
    ({"messages": [{"role": "user", "Role": "system", "content": "x"}]}, "messages[0].Role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "Type": "image_url"}]}]},
        "messages[0].content[0].Type",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"URL": "x"}}]}
            ]
        },
        "messages[0].content[0].image_url.URL",
    ),
]


def refused(stand: RouterStand, path: str, body: Any) -> dict[str, Any]:
    """What the answer says of a body that no backend gets."""
    sent = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    reply = stand.call("POST", path, body=sent, headers=headers)
    assert reply.status == 400, reply.body
    assert stand.received() == 0
    return dict(reply.json)


@pytest.mark.parametrize("name", TOP)
def test_a_name_that_folds_to_one_that_is_read(stand: RouterStand, name: str) -> None:
    """Beside the name itself or alone."""
    for beside in (chat_body(), {**chat_body(), "stream": False, "n": 1}):
        error = refused(stand, "/v1/chat/completions", {**beside, name: 1})["error"]
        assert error["param"] == name


@pytest.mark.parametrize(("change", "field"), BELOW, ids=[field for _, field in BELOW])
def test_names_further_down(stand: RouterStand, change: dict[str, Any], field: str) -> None:
    """Wherever limits, prices or the provider's translation look."""
    error = refused(stand, "/v1/chat/completions", {**chat_body(), **change})["error"]
    assert error["param"] == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"Payload": "x"}, "Payload"),
        ({"MODEL": "x"}, "MODEL"),
        ({"parameters": {"Max_Tokens": 1}}, "parameters.Max_Tokens"),
        ({"parameters": {"MODEL": "x"}}, "parameters.MODEL"),
        (
            {"content_type": "application/json", "payload": {"Messages": []}},
            "payload.Messages",
        ),
        (
            {
                "content_type": "application/json",
                "payload": {"messages": [{"role": "user", "Content": "x"}]},
            },
            "payload.messages[0].Content",
        ),
    ],
)
def test_the_native_dialect_too(stand: RouterStand, fields: dict[str, Any], field: str) -> None:
    """Its parameters and messages become those of a chat."""
    body = {"model": "gpt-4o", "payload": "hello", **fields}
    assert refused(stand, "/v1/inference", body)["details"] == {"field": field}


@pytest.mark.parametrize(
    ("one", "other"),
    [("Seed", "seed"), ("user", "u\u017fer"), ("logprobs", "LogProbs"), ("x\u200by", "xy")],
)
def test_two_names_that_fold_to_each_other(stand: RouterStand, one: str, other: str) -> None:
    """Also where the router reads neither: a backend takes one of the two."""
    error = refused(stand, "/v1/chat/completions", {**chat_body(), one: 1, other: 2})["error"]
    assert error["param"] == other


def test_every_letter_that_go_folds_to_ascii() -> None:
    """All of Unicode: whatever upper, lower or title case turns into a letter of a name."""
    alike = [
        sign
        for sign in map(chr, range(0x110000))
        if not "a" <= sign <= "z" and {sign.lower(), sign.upper().lower()} & set("modelsk")
    ]
    assert len(alike) >= 9
    for sign in alike:
        name = f"x{sign}"
        with pytest.raises(InvalidRequest):
            check_names([name], frozenset(f"x{letter}" for letter in "modelsk"), "")


def test_free_form_values_stay_free(stand: RouterStand) -> None:
    """Schemas, metadata and names of languages that are not English."""
    schema = {"type": "object", "properties": {"Name": {}, "name": {}, "größe": {}, "Model": {}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    extra = {"metadata": {"Model": "x", "model": "y"}, "tools": [tool], "größe": 1}
    assert unicodedata.is_normalized("NFC", "größe")
    assert stand.chat(**extra).status == 200
    assert stand.received() == 1
