"""The text and token counts of a completion, derived from the call alone: no clock, no chance.

A token is one word with the white space before it. The reply to "hello there" is
"You said: hello there": four output tokens for two input tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from router.mock_backend.behaviour import Behaviour

# Real dates would make equal calls differ; this one is as good as any.
CREATED = 1_750_000_000
LONGEST_TEXT_TOKENS = 10_000
MOST_CHOICES = 128

_TOKEN = re.compile(r"\s*\S+")


class CallError(ValueError):
    """A call that a real backend would refuse with 400; `param` is the field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Usage:
    """Token counts of one call."""

    prompt_tokens: int
    completion_tokens: int

    def rendered(self) -> dict[str, Any]:
        """Return the counts in OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


@dataclass(frozen=True)
class Choice:
    """One generated text, cut into its tokens."""

    tokens: tuple[str, ...]
    finish_reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True)
class Generation:
    """Everything that a chat or text completion says, buffered or streamed alike."""

    dialect: Literal["chat", "text"]
    id: str
    model: str
    fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage

    def frame(self, kind: str) -> dict[str, Any]:
        """Return the fields that a whole reply and every chunk of a stream have in common."""
        return {
            "id": self.id,
            "object": kind,
            "created": CREATED,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def rendered(self) -> dict[str, Any]:
        """Return the whole reply in OpenAI's shape, usage included."""
        kind = "chat.completion" if self.dialect == "chat" else "text_completion"
        choices = [self._choice(index, choice) for index, choice in enumerate(self.choices)]
        return {**self.frame(kind), "choices": choices, "usage": self.usage.rendered()}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        ending = {"logprobs": None, "finish_reason": choice.finish_reason}
        if self.dialect == "text":
            return {"index": index, "text": choice.text, **ending}
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": index, "message": message, **ending}


def generate_chat(call: Mapping[str, Any], behaviour: Behaviour, fingerprint: str) -> Generation:
    """Answer a chat completion call by echoing its last user message, or else its last one."""
    messages = call.get("messages")
    if not isinstance(messages, list) or not messages:
        raise CallError("'messages' must be a list of at least one message", "messages")
    texts = [_message_text(message, index) for index, message in enumerate(messages)]
    spoken = [
        text for text, message in zip(texts, messages, strict=True) if message.get("role") == "user"
    ]
    limit = _count(call, "max_completion_tokens") or _count(call, "max_tokens")
    choice, length = _reply(spoken[-1] if spoken else texts[-1], limit, behaviour)
    copies = _count(call, "n", most=MOST_CHOICES) or 1
    model = model_of(call)
    return Generation(
        dialect="chat",
        id=f"chatcmpl-{_digest(model, fingerprint, *texts)}",
        model=model,
        fingerprint=fingerprint,
        choices=(choice,) * copies,
        usage=Usage(count_input(texts, behaviour), length * copies),
    )


def generate_text(call: Mapping[str, Any], behaviour: Behaviour, fingerprint: str) -> Generation:
    """Answer a text completion call: `n` echoes of each of its prompts."""
    prompts = texts_of(call, "prompt")
    limit = _count(call, "max_tokens")
    copies = _count(call, "n", most=MOST_CHOICES) or 1
    replies = [_reply(prompt, limit, behaviour) for prompt in prompts for _ in range(copies)]
    model = model_of(call)
    return Generation(
        dialect="text",
        id=f"cmpl-{_digest(model, fingerprint, *prompts)}",
        model=model,
        fingerprint=fingerprint,
        choices=tuple(choice for choice, _ in replies),
        usage=Usage(count_input(prompts, behaviour), sum(length for _, length in replies)),
    )


def model_of(call: Mapping[str, Any]) -> str:
    """Return the model that a call names; any name will do."""
    model = call.get("model")
    if not isinstance(model, str) or not model:
        raise CallError("you must provide a model parameter", "model")
    return model


def texts_of(call: Mapping[str, Any], field: str) -> list[str]:
    """Read a text, a list of texts, token numbers, or a list of such lists, as a list of texts."""
    value = call.get(field)
    if isinstance(value, list) and value and all(_is_integer(item) for item in value):
        value = [value]
    items = value if isinstance(value, list) else [value]
    if not items:
        raise CallError(f"'{field}' must not be empty", field)
    return [_as_text(item, field) for item in items]


def count_input(texts: Sequence[str], behaviour: Behaviour) -> int:
    """Count the words of all texts, at least one, unless the behaviour fixes the number."""
    if behaviour.tokens_input is not None:
        return behaviour.tokens_input
    return max(1, sum(len(text.split()) for text in texts))


def _reply(text: str, limit: int | None, behaviour: Behaviour) -> tuple[Choice, int]:
    tokens = _TOKEN.findall(f"You said: {text}")
    fixed = behaviour.tokens_output
    if fixed is not None:
        return Choice(_stretched(tokens, min(fixed, LONGEST_TEXT_TOKENS)), "stop"), fixed
    if limit is not None and limit < len(tokens):
        return Choice(tuple(tokens[:limit]), "length"), limit
    return Choice(tuple(tokens), "stop"), len(tokens)


def _stretched(tokens: list[str], length: int) -> tuple[str, ...]:
    spaced = [token if token[0].isspace() else f" {token}" for token in tokens]
    repeated = [spaced[position % len(spaced)] for position in range(length)]
    return (repeated[0].lstrip(), *repeated[1:]) if repeated else ()


def _message_text(message: object, index: int) -> str:
    field = f"messages[{index}]"
    if not isinstance(message, dict):
        raise CallError(f"'{field}' must be an object", field)
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise CallError(f"'{field}.content' must be a text or a list of parts", f"{field}.content")
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    return " ".join(part for part in parts if isinstance(part, str))


def _as_text(item: object, field: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and all(_is_integer(number) for number in item):
        return " ".join(str(number) for number in item)
    raise CallError(f"'{field}' must be a text, a list of texts or token numbers", field)


def _count(call: Mapping[str, Any], field: str, *, most: int = 10**9) -> int | None:
    value = call.get(field)
    if value is None:
        return None
    if not _is_integer(value) or not 1 <= value <= most:
        raise CallError(f"'{field}' must be an integer from 1 to {most}", field)
    return int(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _digest(*texts: str) -> str:
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:24]
