"""The Lua files: what they promise about keys and about failover, read from their text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import router.limits
from router.limits.redis_keys import quoted, tag
from router.redis.scripts import ScriptCall, load_script, packed, script

FOLDER = Path(router.limits.__file__).parent
FILES = sorted(FOLDER.rglob("*.lua"))


def code(file: Path) -> str:
    """Without comments."""
    return re.sub(r"--.*", "", file.read_text("utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_build_no_key_names(file: Path) -> None:
    """R5: every key that a script touches was named by the caller, in its one hash slot."""
    for command, first in re.findall(r"redis\.call\('([A-Z]+)'(?:, *([^,)]+))?", code(file)):
        if command == "TIME":
            continue
        is_named = first.startswith(("KEYS[", "unpack(KEYS")) or first in (
            "key", "counter", "leases", "opened", "slot.key",
        )  # fmt: skip
        assert is_named, f"{command} {first}"
        assert ".." not in first


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_do_not_depend_on_the_moment_beyond_redis_own_clock(file: Path) -> None:
    """R4: no argument is a time of the caller's clock to count with, and nothing is random."""
    assert "math.random" not in code(file)
    assert "os." not in code(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_say_what_they_are_called_with(file: Path) -> None:
    """Each opens with its keys, its arguments and an example."""
    text = file.read_text("utf-8")
    head = text[: text.index("\nlocal ")]
    assert [word for word in ("KEYS", "ARGV", "Example") if word not in head] == []


def test_a_script_is_known_by_its_digest() -> None:
    """R6: EVALSHA first, EVAL to teach it; both carry the same keys and arguments."""
    made = script("return 1")
    assert made.sha == hashlib.sha1(b"return 1").hexdigest()
    call = ScriptCall(made, ["{a}k"], ["x", b"\x00y", 3])
    tail = b"$1\r\n1\r\n$4\r\n{a}k\r\n$1\r\nx\r\n$2\r\n\x00y\r\n$1\r\n3\r\n"
    assert (
        call.by_digest() == b"*7\r\n$7\r\nEVALSHA\r\n$40\r\n" + made.sha.encode() + b"\r\n" + tail
    )
    assert call.by_source() == b"*7\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n" + tail
    assert packed(("PING",)) == b"*1\r\n$4\r\nPING\r\n"


def test_a_script_may_be_made_of_several_files() -> None:
    """The ledger's scripts share one file, which stands first."""
    source = load_script("budgets/window.lua", "budgets/reserve.lua").source
    assert source.index("local function totals") < source.index("local status, lost")


def test_all_keys_of_an_organization_share_a_tag() -> None:
    """R5: the tag is the organization, so its keys lie in one slot and others' elsewhere."""
    assert tag("acme") == "router:{acme}:"


@pytest.mark.parametrize(("part", "name"), [("a:b", "a%3Ab"), ("a%3Ab", "a%253Ab"), ("a", "a")])
def test_names_of_parts_are_never_mixed_up(part: str, name: str) -> None:
    """What contains the separator, or looks like its quotation, stays itself."""
    assert quoted(part) == name
