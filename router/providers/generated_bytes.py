"""How much text a reply in the OpenAI dialect has brought, for an estimate of its tokens."""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = frozenset(
    {"content", "text", "refusal", "arguments", "transcript", "thinking", "input"}
)
_REASONING: Final = ("reasoning", "reasoning_content", "reasoning_details")
"""Three names of one text; backends that changed theirs send the same under two."""
_NESTED: Final = frozenset({"tool_calls", "function_call", "function", "custom", "audio"})
_NAMES: Final = _TEXT | _NESTED
_MAX_DEPTH: Final = 6


def utf8_bytes(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def generated_bytes(choices: list[dict[str, Any]], part: str) -> int:
    """Bytes of the texts generated in these choices; ``part`` is ``message`` or ``delta``."""
    total = 0
    for choice in choices:
        message = choice.get(part)
        if isinstance(message, dict):
            total += bytes_of(message)
        text = choice.get("text")
        if isinstance(text, str):
            total += utf8_bytes(text)
    return total


def bytes_of(message: dict[str, Any]) -> int:
    """Bytes of a message or of a delta: text, reasoning, refusals, arguments, transcripts."""
    content = message.get("content")
    if type(content) is str and len(message) == 1:
        return utf8_bytes(content)
    reasoning = [_bytes(message[name], _MAX_DEPTH) for name in _REASONING if name in message]
    return _bytes(message, _MAX_DEPTH) + max(reasoning, default=0)


def _bytes(value: Any, depth: int) -> int:
    if isinstance(value, str):
        return utf8_bytes(value)
    if depth and isinstance(value, dict):
        return sum([_bytes(part, depth - 1) for name, part in value.items() if name in _NAMES])
    if depth and isinstance(value, list):
        return sum([_bytes(part, depth - 1) for part in value if isinstance(part, dict)])
    return 0
