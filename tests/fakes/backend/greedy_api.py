"""A backend that counts as many tokens as a request lets any provider count.

It reads what it is sent, without a look at the router: a byte of text a token, JSON with an indent
and its letters escaped, the dearest pictures, and an answer as long as was asked for, or endless.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

from tests.fakes.backend.received import Request
from tests.fakes.backend.scripts import chunked, reply, serving
from tests.fakes.backend.server import FakeServer, Peer

ENDLESS_TOKENS: Final = 1_000_000
"""Of an answer that nobody bounds."""
IMAGE_TOKENS, AUDIO_TOKENS, FILE_TOKENS = 1_445, 900, 4_000
TEMPLATE_TOKENS, MESSAGE_TOKENS, TOOLS_TOKENS = 60, 7, 346
_NOT_READ: Final = {"model", "messages", "prompt", "input", "stream_options", "prediction", "stop"}

Json = dict[str, Any]


class GreedyApi(FakeServer):
    """The API of OpenAI; each answer uses a share of what is permitted, often all of it.

    A server of this kind does not know ``max_completion_tokens`` unless ``knows_both``.
    """

    def __init__(self, chance: random.Random, *, knows_both: bool) -> None:
        self._chance = chance
        self._names = ("max_tokens", "max_completion_tokens")[: 2 if knows_both else 1]
        super().__init__(serving(self._answer))

    def _answer(self, peer: Peer, request: Request) -> bool:
        call = request.fields
        share = self._chance.choice((0.1, 0.9, 1, 1, 1))
        usage = self._usage(call, share)
        frame: Json = {"id": "1", "created": 1, "model": "m", "object": "chat.completion"}
        if call.get("service_tier") == "priority":
            frame["service_tier"] = "priority"
        if call.get("stream") is True:
            chunks = [
                {**frame, "choices": [{"index": 0, "delta": {"content": "word " * 60}}]},
                {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {**frame, "choices": [], "usage": usage},
            ]
            data = [b"data: " + json.dumps(found).encode() + b"\n\n" for found in chunks]
            head = ("Content-Type: text/event-stream",)
            peer.send(chunked(*data, b"data: [DONE]\n\n", headers=head))
        else:
            message = {"role": "assistant", "content": "word " * 60}
            choice = {"index": 0, "message": message, "text": "", "finish_reason": "stop"}
            whole = json.dumps({**frame, "choices": [choice], "usage": usage}).encode()
            peer.send(reply(whole, headers=("Content-Type: application/json",)))
        return True

    def _usage(self, call: Json, share: float) -> Json:
        prompt, completion = int(prompt_tokens(call) * share), self._completion(call, share)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._chance.choice((0, prompt // 2))},
        }

    def _completion(self, call: Json, share: float) -> int:
        if "input" in call:
            return 0
        limits = [call[name] for name in self._names if call.get(name) is not None]
        each = max(limits, default=ENDLESS_TOKENS)
        each += _content(call["prediction"]["content"]) if call.get("prediction") else 0
        prompt = call.get("prompt")
        texts = len(prompt) if isinstance(prompt, list) and not _is_ids(prompt) else 1
        return int(each * share) * max(call.get("n") or 1, call.get("best_of") or 1) * texts


def prompt_tokens(call: Json) -> int:
    """As many as any provider makes of it."""
    total = TEMPLATE_TOKENS + _content(call.get("prompt")) + _content(call.get("input"))
    for message in call.get("messages") or ():
        total += MESSAGE_TOKENS + _content(message.get("content")) + len(message.get("name") or "")
        if message.get("tool_calls"):
            total += len(json.dumps(message["tool_calls"]))
    shown = {name: value for name, value in call.items() if name not in _NOT_READ}
    total += TOOLS_TOKENS if "tools" in shown else 0
    for value in shown.values():
        if isinstance(value, (dict, list)):
            total += len(json.dumps(value, indent=2))
    return total


def _content(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if not isinstance(value, list):
        return 0
    if _is_ids(value):
        return len(value)
    return sum([_part(part) if isinstance(part, dict) else _content(part) for part in value])


def _part(part: Json) -> int:
    kind = part.get("type")
    if kind == "text":
        return len(part["text"].encode())
    media = {"image_url": IMAGE_TOKENS, "input_audio": AUDIO_TOKENS, "file": FILE_TOKENS}
    return media[str(kind)]


def _is_ids(value: list[Any]) -> bool:
    return all(isinstance(entry, int) for entry in value)
