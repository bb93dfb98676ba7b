"""Script calls as bytes: made from a template or not, Redis reads the same words."""

from __future__ import annotations

import hiredis
import pytest

from router.redis.scripts import Blank, ScriptCall, Template, script

SCRIPT = script("return 1")
KEYS = ("{acme}rate", Blank(0), "{acme}100%")
ARGUMENTS = ("take", Blank(1), 7, b"\x00%d\r\n", Blank(0), -1, "é", "", Blank(2))


@pytest.mark.parametrize(
    "values",
    [
        ("{acme}lease", "lease", "12"),
        ("", "", ""),
        ("a%sb", "%b%%", "\r\n$3\r\n"),
        ("ключ", "€", "0"),
    ],
)
def test_a_template_says_what_its_words_say(values: tuple[str, str, str]) -> None:
    """The bytes that hiredis, which knows nothing of templates, makes of all words one by one."""
    first, second, third = values
    keys = ["{acme}rate", first, "{acme}100%"]
    arguments = ["take", second, "7", b"\x00%d\r\n", first, "-1", "é", "", third]
    call = Template(SCRIPT, KEYS, ARGUMENTS).filled(values)
    expected = hiredis.pack_command(("EVALSHA", SCRIPT.sha, "3", *keys, *arguments))
    assert call.by_digest() == expected
    assert call.key == keys[0]
    plain = ScriptCall(SCRIPT, keys, [*arguments[:2], 7, *arguments[3:5], -1, *arguments[6:]])
    assert (list(call.keys), list(call.arguments)) == (list(plain.keys), list(plain.arguments))
    assert (call.by_source(), call.in_one_key()) == (plain.by_source(), plain.in_one_key())


def test_a_blank_may_be_the_first_key() -> None:
    """It tells the server."""
    assert Template(SCRIPT, [Blank(1), "b"], ()).filled(("x", "a")).key == "a"
