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


def generated_chars(choices: list[dict[str, Any]], part: str) -> int:
    """Characters generated in these choices; ``part`` is ``message`` or ``delta``."""
    total = 0
    for choice in choices:
        message = choice.get(part)
        if isinstance(message, dict):
            total += chars_of(message)
        text = choice.get("text")
        if isinstance(text, str):
            total += len(text)
    return total


def chars_of(message: dict[str, Any]) -> int:
    """Characters of a message or of a delta: text, reasoning, refusals, arguments, transcripts."""
    content = message.get("content")
    if type(content) is str and len(message) == 1:
        return len(content)
    reasoning = [_chars(message[name], _MAX_DEPTH) for name in _REASONING if name in message]
    return _chars(message, _MAX_DEPTH) + max(reasoning, default=0)


def _chars(value: Any, depth: int) -> int:
    if isinstance(value, str):
        return len(value)
    if depth and isinstance(value, dict):
        return sum([_chars(part, depth - 1) for name, part in value.items() if name in _NAMES])
    if depth and isinstance(value, list):
        return sum([_chars(part, depth - 1) for part in value if isinstance(part, dict)])
    return 0
