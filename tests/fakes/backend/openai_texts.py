"""What the OpenAI fake says: texts, token counts, chunks and vectors, derived from the call alone.

A token is one word with the white space before it. The reply to "hello there" is
"You said: hello there": four output tokens for two input tokens.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CREATED = 1_750_000_000  # a real date would make equal calls differ
_ENDLESS_TOKENS = 10_000
_TOKEN = re.compile(r"\s*\S+")

Json = dict[str, Any]


class CallError(ValueError):
    """A call that a real backend would refuse with 400; `param` is the field at fault."""

    def __init__(self, param: str) -> None:
        super().__init__(f"'{param}' is not what it has to be")
        self.param = param


@dataclass(frozen=True)
class Choice:
    """One generated text, cut into its tokens."""

    tokens: tuple[str, ...]
    finish_reason: str


@dataclass(frozen=True)
class Generation:
    """Everything that a chat or text completion says, buffered and streamed alike."""

    chat: bool
    model: str
    fingerprint: str
    choices: tuple[Choice, ...]
    prompt_tokens: int

    def frame(self, *, chunk: bool) -> Json:
        """The fields that a whole reply and every chunk of a stream have in common."""
        kinds = {True: "chat.completion" + chunk * ".chunk", False: "text_completion"}
        said = repr((self.model, self.choices)).encode()
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + hashlib.sha256(said).hexdigest()[:24],
            "object": kinds[self.chat],
            "created": CREATED,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def usage(self, completion_tokens: int | None = None) -> Json:
        """The counts, or those so far."""
        if completion_tokens is None:
            completion_tokens = sum(len(choice.tokens) for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def whole(self) -> Json:
        """The buffered reply."""
        choices = []
        for index, choice in enumerate(self.choices):
            text = "".join(choice.tokens)
            message = {"role": "assistant", "content": text, "refusal": None}
            said = {"message": message} if self.chat else {"text": text}
            ending = {"logprobs": None, "finish_reason": choice.finish_reason}
            choices.append({"index": index, **said, **ending})
        return {**self.frame(chunk=False), "choices": choices, "usage": self.usage()}

    def chunks(self, usage_style: str | None) -> Iterator[Json]:
        """The stream, with usage in the manner of ``openai_api.Behaviour.usage_style``."""
        frame = self.frame(chunk=True)
        steps = list(self._steps())
        said = 0
        for position, (index, text, reason) in enumerate(steps, start=1):
            said += text is not None
            chunk = {**frame, "choices": [self._delta(index, text, reason)]}
            if usage_style == "last_empty_choices":
                chunk["usage"] = None
            elif usage_style is not None and position == len(steps):
                chunk["usage"] = self.usage()
            elif usage_style == "every_chunk":
                chunk["usage"] = self.usage(said)
            yield chunk
        if usage_style == "last_empty_choices":
            yield {**frame, "choices": [], "usage": self.usage()}

    def _steps(self) -> Iterator[tuple[int, str | None, str | None]]:
        """Choice, text and reason of its end, the choices interleaved as OpenAI does."""
        if self.chat:
            yield from ((index, None, None) for index in range(len(self.choices)))
        for row in itertools.zip_longest(*(choice.tokens for choice in self.choices)):
            yield from ((index, token, None) for index, token in enumerate(row) if token)
        for index, choice in enumerate(self.choices):
            yield index, None, choice.finish_reason

    def _delta(self, index: int, text: str | None, reason: str | None) -> Json:
        ending = {"logprobs": None, "finish_reason": reason}
        if not self.chat:
            return {"index": index, "text": text or "", **ending}
        opening = {"role": "assistant", "content": ""} if reason is None else {}
        return {"index": index, "delta": opening if text is None else {"content": text}, **ending}


def generate(call: Json, fingerprint: str, tokens_output: int | None, *, chat: bool) -> Generation:
    """Answer a chat call by its last user message, a completion call by each of its prompts.

    ``tokens_output`` repeats or cuts every text to this many tokens, whatever the call's limits.
    Raises CallError.
    """
    model = _model(call)
    if chat:
        texts = _messages(call)
        heard = [text for role, text in texts if role == "user"][-1:] or [texts[-1][1]]
    else:
        heard = texts_of(call, "prompt")
        texts = [("user", text) for text in heard]
    limit = (_count(call, "max_completion_tokens") if chat else None) or _count(call, "max_tokens")
    copies = min(_count(call, "n") or 1, 128)
    choices = [_choice(text, limit, tokens_output) for text in heard for _ in range(copies)]
    return Generation(
        chat, model, fingerprint, tuple(choices), count_tokens([text for _, text in texts])
    )


def embed(call: Json) -> Json:
    """Answer an embeddings call, as numbers or as base64 of 32-bit floats; raises CallError."""
    texts = texts_of(call, "input")
    dimensions = min(_count(call, "dimensions") or 16, 4096)
    encoding = call.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise CallError("encoding_format")
    data = []
    for index, text in enumerate(texts):
        vector: Any = _vector(text, dimensions)
        if encoding == "base64":
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = count_tokens(texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": _model(call), "usage": usage}


def texts_of(call: Json, field: str) -> list[str]:
    """A text, a list of texts, token numbers or a list of such lists, as a list of texts."""
    value = call.get(field)
    if isinstance(value, list) and value and all(_is_integer(item) for item in value):
        value = [value]
    items = value if isinstance(value, list) else [value]
    if not items:
        raise CallError(field)
    return [_text(item, field) for item in items]


def count_tokens(texts: Sequence[str]) -> int:
    """The words of all texts, at least one."""
    return max(1, sum(len(text.split()) for text in texts))


def _model(call: Json) -> str:
    model = call.get("model")
    if not isinstance(model, str) or not model:
        raise CallError("model")
    return model


def _choice(text: str, limit: int | None, tokens_output: int | None) -> Choice:
    tokens = _TOKEN.findall(f"You said: {text}")
    if tokens_output is not None:
        count = min(tokens_output, _ENDLESS_TOKENS)
        spaced = [token if token[0].isspace() else f" {token}" for token in tokens]
        repeated = [*tokens[:1], *spaced[1:], *itertools.islice(itertools.cycle(spaced), count)]
        return Choice(tuple(repeated[:count]), "stop")
    if limit is not None and limit < len(tokens):
        return Choice(tuple(tokens[:limit]), "length")
    return Choice(tuple(tokens), "stop")


def _messages(call: Json) -> list[tuple[Any, str]]:
    messages = call.get("messages")
    if not isinstance(messages, list) or not messages:
        raise CallError("messages")
    found = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, dict):
            raise CallError(field)
        content = message.get("content") or ""
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = " ".join(part for part in parts if isinstance(part, str))
        if not isinstance(content, str):
            raise CallError(f"{field}.content")
        found.append((message.get("role"), content))
    return found


def _text(item: object, field: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and all(_is_integer(number) for number in item):
        return " ".join(str(number) for number in item)
    raise CallError(field)


def _count(call: Json, field: str) -> int | None:
    value = call.get(field)
    if value is not None and (not _is_integer(value) or value < 1):
        raise CallError(field)
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _vector(text: str, dimensions: int) -> list[float]:
    """Spread a hash of the text over a vector of length one."""
    noise = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(dimensions)
    # Half a step off the middle: no component, and so no length, can be zero.
    raw = [byte - 127.5 for byte in noise]
    length = math.hypot(*raw)
    return [component / length for component in raw]
