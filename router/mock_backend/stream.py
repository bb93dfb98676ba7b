"""A completion as server-sent events: which chunks, where usage goes, how bytes are laid out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from router.mock_backend.behaviour import Behaviour, UsageStyle
from router.mock_backend.generation import Generation, Usage
from router.mock_backend.replies import Event, encode_json

DONE = b"[DONE]"


class _Step(NamedTuple):
    """One thing that one choice says; `text` is None where it only opens or ends."""

    choice: int
    text: str | None = None
    finish_reason: str | None = None


def usage_style_of(behaviour: Behaviour, call: Mapping[str, Any]) -> UsageStyle:
    """Say where the usage of one stream goes.

    OpenAI's own style reports only when `stream_options.include_usage` asks for it; the servers
    whose habits the other styles follow report unasked.
    """
    if behaviour.failure == "no_usage":
        return "none"
    options = call.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    if behaviour.usage_style == "last_empty_choices" and not asked:
        return "none"
    return behaviour.usage_style


def stream_chunks(generation: Generation, style: UsageStyle) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream in order, those that only carry usage included."""
    kind = "chat.completion.chunk" if generation.dialect == "chat" else "text_completion"
    frame = generation.frame(kind)
    total = generation.usage
    said = 0
    steps = list(_steps(generation))
    for position, step in enumerate(steps, start=1):
        chunk = {**frame, "choices": [_delta(generation, step)]}
        said += step.text is not None
        if style == "last_empty_choices":
            chunk["usage"] = None
        elif position == len(steps) and style != "none":
            chunk["usage"] = total.rendered()
        elif style == "every_chunk":
            so_far = min(said, total.completion_tokens)
            chunk["usage"] = Usage(total.prompt_tokens, so_far).rendered()
        yield chunk
    if style == "last_empty_choices":
        yield {**frame, "choices": [], "usage": total.rendered()}


def encode_events(chunks: Iterable[dict[str, Any]], behaviour: Behaviour) -> Iterator[Event]:
    """Lay chunks out as events in the behaviour's manner and pace, `[DONE]` at the end."""
    delay_s = behaviour.first_token_ms / 1000
    for chunk in chunks:
        data = encode_json(chunk)
        if behaviour.failure == "bad_json":
            data = data[: len(data) // 2]
        yield Event(delay_s, _layout(data, behaviour), last=False)
        delay_s = behaviour.token_interval_ms / 1000
    yield Event(0.0, _layout(DONE, behaviour), last=True)


def _layout(data: bytes, behaviour: Behaviour) -> bytes:
    newline = b"\r\n" if behaviour.line_ending == "crlf" else b"\n"
    comment = b": keep-alive" + newline * 2 if behaviour.comments else b""
    return comment + b"data: " + data + newline * 2


def _steps(generation: Generation) -> Iterator[_Step]:
    """Interleave the choices, token by token, as OpenAI does."""
    choices = generation.choices
    if generation.dialect == "chat":
        yield from (_Step(index) for index in range(len(choices)))
    for position in range(max(len(choice.tokens) for choice in choices)):
        for index, choice in enumerate(choices):
            if position < len(choice.tokens):
                yield _Step(index, choice.tokens[position])
    for index, choice in enumerate(choices):
        yield _Step(index, finish_reason=choice.finish_reason)


def _delta(generation: Generation, step: _Step) -> dict[str, Any]:
    ending = {"logprobs": None, "finish_reason": step.finish_reason}
    if generation.dialect == "text":
        return {"index": step.choice, "text": step.text or "", **ending}
    delta: dict[str, str] = {}
    if step.text is not None:
        delta = {"content": step.text}
    elif step.finish_reason is None:
        delta = {"role": "assistant", "content": ""}
    return {"index": step.choice, "delta": delta, **ending}
