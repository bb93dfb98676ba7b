"""Names that two parsers read differently are refused wherever the router looks at names.

Servers in Go or .NET read ``Model`` as ``model``, and of two that differ in no more than that they
take the last; those in C end a name at a NUL. They would serve another call than the one that was
checked and paid for. Go's rule is simple case folding (``encoding/json``); NFKC (Unicode Standard
Annex #15) and signs without width cover servers that normalize what they read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from router.call import CHOICE_FIELDS, LIMIT_FIELDS
from router.errors import InvalidRequest
from router.pricing.selection import READ_NAMES as PRICED

READ_NAMES: Final = frozenset(
    {
        *("model", "messages", "prompt", "input", "system", "suffix", "instructions"),
        *("stream", "stream_options", "temperature", "top_p", "stop"),
        *("functions", "function_call", "tool_choice", "response_format", "prediction", "thinking"),
        *chain.from_iterable(LIMIT_FIELDS.values()),
        *CHOICE_FIELDS,
        *PRICED,
    }
)
"""Names by which a call is checked, routed, bounded or priced, here and at backends."""
_OPTIONS: Final = frozenset({"include_usage"})
_TOOL: Final = frozenset({"type", "function", "input_schema", "max_uses", "name", "parameters"})
_MESSAGE: Final = frozenset({"role", "content", "audio", "tool_calls", "function_call", "name"})
_PART: Final = frozenset(
    {
        *("type", "text", "content", "source", "data", "url", "file_data", "file"),
        *("image_url", "audio_url", "video_url", "input_audio", "image", "audio", "refusal"),
    }
)
_INVISIBLE: Final = ("Cf", "Cc", "Mn")
"""Categories of signs that have no width: they change a name and not how it looks."""
_SHOWN_CHARS: Final = 64


def check_spelling(fields: dict[str, Any], path: str = "") -> None:
    """Raises ``InvalidRequest`` that names the field; ``fields`` is an OpenAI-shaped body.

    What stands in free-form values (metadata, schemas of tools, their arguments) is not looked at.
    """
    check_names(fields, READ_NAMES, path)
    options, tools = fields.get("stream_options"), fields.get("tools")
    if isinstance(options, dict):
        check_names(options, _OPTIONS, f"{path}stream_options.")
    if isinstance(tools, list):
        for index, tool in enumerate(tools):
            _check_object(tool, _TOOL, path, "tools", index)
            if isinstance(tool, dict):
                _check_object(tool.get("function"), _TOOL, path, "tools", index, ".function")
    messages = fields.get("messages")
    if isinstance(messages, list):
        check_message_names(messages, f"{path}messages")


def check_message_names(messages: list[Any], name: str) -> None:
    """The names in chat messages and in the parts of their content."""
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        _check_object(message, _MESSAGE, "", name, index)
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for number, part in enumerate(content):
            if not isinstance(part, dict):
                continue
            _check_object(part, _PART, f"{name}[{index}].", "content", number)
            for holder, value in part.items():
                if isinstance(value, dict) and holder in _PART:
                    where = f"{name}[{index}].content"
                    _check_object(value, _PART, "", where, number, f".{holder}")


def check_names(names: Iterable[str], read: frozenset[str], path: str) -> None:
    """No name means one of ``read``, or another of ``names``, to a server that folds names."""
    if _are_plain(names):
        return
    seen: dict[str, str] = {}
    for name in names:
        meant = folded(name)
        shown = name[:_SHOWN_CHARS]
        if meant != name and meant in read:
            raise InvalidRequest(f"'{shown}' must be written '{meant}'", field=path + shown)
        other = seen.setdefault(meant, name)
        if other is not name:
            raise InvalidRequest(
                f"'{shown}' and '{other[:_SHOWN_CHARS]}' are the same name to some servers",
                field=path + shown,
            )


def folded(name: str) -> str:
    """The name as the most lenient parser reads it."""
    read = unicodedata.normalize("NFKC", name.partition("\0")[0]).casefold()
    visible = [sign for sign in read if unicodedata.category(sign) not in _INVISIBLE]
    return unicodedata.normalize("NFKC", "".join(visible))


def _check_object(
    value: Any, read: frozenset[str], path: str, name: str, index: int, rest: str = ""
) -> None:
    """The path of the field is made only for an error: a conversation has a thousand messages."""
    if isinstance(value, dict) and not _are_plain(value):
        check_names(value, read, f"{path}{name}[{index}]{rest}.")


def _are_plain(names: Iterable[str]) -> bool:
    """Whether all of them are lower-case ASCII, as nearly always: those fold to nothing else."""
    joined = "".join(names)
    return joined.isascii() and joined.islower() and joined.isprintable()
