"""What a request gives a provider to read: texts, JSON, pictures, sound, documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from router.call import Call

Json = dict[str, Any]

_SETTINGS: Final = frozenset({"logit_bias", "metadata", "stop", "stream_options", "modalities"})
"""Lists and objects that no model is shown."""
_PROMPTS: Final = frozenset({"messages", "prompt", "input", "system"})
_TEXTS: Final = frozenset({"prompt", "input", "system", "suffix", "instructions"})
_TEXT_PARTS: Final = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "refusal",
        "thinking",
        "redacted_thinking",
        "reasoning",
        "tool_result",
        "tool_use",
        "server_tool_use",
        "search_result",
        None,
    }
)
_IMAGE_PARTS: Final = frozenset({"image_url", "image", "input_image"})
_AUDIO_PARTS: Final = frozenset({"input_audio", "audio", "audio_url"})
_LONGEST_ROLE: Final = 16
"""Of a role that is only a role; some servers write any text in its place into the prompt."""
_INLINE_MEDIA: Final = ("data:image/", "data:audio/", "data:video/", "data:application/pdf")
_HOLDERS: Final = ("image_url", "audio_url", "video_url", "input_audio", "file", "source")
_DATA: Final = ("url", "data", "file_data")


@dataclass(slots=True)
class Prompt:
    """All of a request that a provider may read."""

    texts: list[str] = field(default_factory=list)
    structured: list[Any] = field(default_factory=list)
    """Tools, schemas, calls of tools …: JSON that a provider writes into the prompt as it likes."""
    token_ids: int = 0
    images: int = 0
    audios: int = 0
    documents: int = 0
    """Files, videos, and parts of any kind that is not known here."""
    media_chars: int = 0
    """Length of pictures, sound and documents within the body, in base64."""


def prompt_of(call: Call) -> Prompt:
    """What the call gives a provider to read; read once, for its bound and its estimate."""
    found: Prompt | None = call.prompt
    if found is None:
        found = call.prompt = read_prompt(call.fields)
    return found


def read_prompt(fields: Json) -> Prompt:
    """The prompt in an OpenAI-shaped body, of whatever vendor's kind; costs no recursion."""
    found = Prompt()
    pending: list[Any] = []
    for name, value in fields.items():
        if isinstance(value, str):
            if name in _TEXTS:
                found.texts.append(value)
        elif not isinstance(value, (list, dict)) or not value or name in _SETTINGS:
            continue
        elif name == "messages":
            for message in value:
                _read_message(message, found, pending)
        elif name in _PROMPTS:
            pending.append(value)
        else:
            found.structured.append(value)
    while pending:
        _read_content(pending.pop(), found, pending)
    return found


def _read_message(message: Any, found: Prompt, pending: list[Any]) -> None:
    if not isinstance(message, dict):
        pending.append(message)
        return
    for name, value in message.items():
        if value is None or (name == "role" and _is_role(value)):
            continue
        if isinstance(value, str):
            found.texts.append(value)
        elif name == "audio":  # an answer that was spoken before, by its id
            found.audios += 1
        elif name == "content":
            pending.append(value)
        else:
            found.structured.append(value)


def _is_role(value: Any) -> bool:
    return not isinstance(value, str) or len(value) <= _LONGEST_ROLE


def _read_content(content: Any, found: Prompt, pending: list[Any]) -> None:
    """One value of a prompt; the values in it are left in ``pending``."""
    if isinstance(content, str):
        found.texts.append(content)
    elif isinstance(content, list):
        if content and type(content[0]) is int:
            found.token_ids += len(content)
        else:
            for part in content:
                _read_item(part, found, pending)
    elif isinstance(content, dict):
        _read_part(content, found, pending)


def _read_item(part: Any, found: Prompt, pending: list[Any]) -> None:
    """One of many: the plain texts among them at once, for there may be thousands in a body."""
    if type(part) is dict and len(part) == 2 and part.get("type") == "text":
        text = part.get("text")
        if type(text) is str:
            found.texts.append(text)
            return
    pending.append(part)


def _read_part(part: Json, found: Prompt, pending: list[Any]) -> None:
    kind = part.get("type")
    if not isinstance(kind, str | None):
        kind = ""
    if kind in _TEXT_PARTS and (kind is not None or _is_plain(part)):
        for name, value in part.items():
            if name == "content":
                pending.append(value)
            elif isinstance(value, str):
                if name != "type":
                    found.texts.append(value)
            elif isinstance(value, (list, dict)):
                found.structured.append(value)
        return
    if kind in _IMAGE_PARTS:
        found.images += 1
    elif kind in _AUDIO_PARTS:
        found.audios += 1
    else:
        found.documents += 1
    found.media_chars += sum(map(len, _inline_media(part)))
    source = part.get("source")
    if isinstance(source, dict):  # a document may be a text, or made of texts and pictures
        pending.append(source.get("content"))
        if source.get("type") == "text":
            pending.append(source.get("data"))


def _is_plain(part: Json) -> bool:
    """Without a type, only what has nothing but text is text: some servers go by the names."""
    return all(name in ("text", "role", "content") for name in part)


def _inline_media(part: Json) -> Iterable[str]:
    """The base64 of a part's picture, sound or PDF: its length says nothing of its tokens."""
    for name in _HOLDERS:
        holder = part.get(name)
        data = [holder] if isinstance(holder, str) else []
        if isinstance(holder, dict):
            data = [holder[key] for key in _DATA if isinstance(holder.get(key), str)]
        is_base64 = name == "input_audio" or (
            name == "source" and isinstance(holder, dict) and holder.get("type") == "base64"
        )
        for text in data:
            if is_base64 or text[:20].lower().startswith(_INLINE_MEDIA):
                yield text
