"""The most that a call can use, and what that costs: a bound, where ``estimates`` are a guess."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, overload

import orjson

from router.call import CHOICE_FIELDS, Call, UsageClass
from router.config.document import Model, Prices
from router.pricing.price_tables import dearest_prices
from router.pricing.prompts import Prompt, prompt_of
from router.pricing.selection import possible_tiers, web_searches

ASCII_BYTES: Final = 3
"""Bytes of JSON per byte of UTF-8 at most, where a provider writes other letters as ``\\uXXXX``."""


@dataclass(slots=True)
class Bound:
    """The most that one call can use."""

    tokens_input: int
    tokens_output: int
    web_searches: int = 0
    service_tiers: tuple[str, ...] = ()
    """Tiers besides the standard one that may serve it."""
    without: frozenset[UsageClass] = frozenset()
    """Classes that nothing in the request can cause."""

    @property
    def tokens(self) -> int:
        """Of input and output together."""
        return self.tokens_input + self.tokens_output

    def cost_nanos(self, prices: Prices) -> int:
        """Nano-USD, at the dearest prices that the call can meet."""
        dearest = dearest_prices(
            prices, self.tokens_input, self.service_tiers, without=self.without
        )
        return dearest.cost_nanos(self.tokens_input, self.tokens_output, self.web_searches)


def bound_of(call: Call, model: Model) -> Bound:
    """The bound of a call whose answer is bounded as :func:`max_output` says.

    A token has at least one byte, so the bytes of the body bound the tokens of its texts and of its
    token ids; the names and brackets around them are more than what a provider puts around a
    message. What else it adds, and what pictures and the like come to, is configured.
    """
    fields, body = call.fields, call.body
    if body is None:
        body = orjson.dumps(fields)
    prompt = prompt_of(call)
    tokens_input = _input_tokens(prompt, model, len(body))
    tokens_output = max_output(call, model)
    searches = web_searches(fields)
    if searches:  # each round reads all that came before again
        found = searches * (searches + 1) // 2 * model.input_bounds.web_search_tokens
        tokens_input = tokens_input * (searches + 1) + found
    return Bound(
        tokens_input,
        tokens_output,
        searches,
        possible_tiers(fields, model.allow),
        _impossible(prompt, model, body),
    )


def bounded_output(call: Call) -> int | None:
    """Tokens of output that are asked for at most; ``None`` where nobody sets a bound."""
    limit = call.client_limit()
    return _all_output(call, call.output_limit if limit is None else limit)


def max_output(call: Call, model: Model) -> int:
    """Tokens of output at most, where the model's bound is asked of the backend if the client
    sets none."""
    limit = call.client_limit()
    return _all_output(call, model.max_output_tokens if limit is None else limit)


@overload
def _all_output(call: Call, limit: int) -> int: ...
@overload
def _all_output(call: Call, limit: int | None) -> int | None: ...
def _all_output(call: Call, limit: int | None) -> int | None:
    """Of all choices, for so many tokens in each; a prediction that is rejected is billed too."""
    if call.operation == "embeddings":
        return 0
    if limit is None:
        return None
    prediction = call.fields.get("prediction")
    return choices(call) * (limit + (len(orjson.dumps(prediction)) if prediction else 0))


def choices(call: Call) -> int:
    """How many texts are generated."""
    fields = call.fields
    each: int = max([fields.get(name) or 1 for name in CHOICE_FIELDS])
    prompts = fields.get("prompt")
    if isinstance(prompts, list) and any(isinstance(part, (str, list)) for part in prompts):
        return each * len(prompts)
    return each


def _input_tokens(prompt: Prompt, model: Model, body_bytes: int) -> int:
    bounds = model.input_bounds
    total = body_bytes - prompt.media_chars + bounds.overhead_tokens
    if prompt.structured:
        # A provider shows it to the model as it likes: with an indent, in its own escapes.
        shown = orjson.dumps(prompt.structured, option=orjson.OPT_INDENT_2)
        total += len(shown) if shown.isascii() else len(shown) * ASCII_BYTES
    if prompt.images or prompt.audios or prompt.documents:
        total += (
            prompt.images * bounds.image_tokens
            + prompt.audios * bounds.audio_tokens
            + prompt.documents * bounds.document_tokens
        )
    return total if model.max_input_tokens is None else min(total, model.max_input_tokens)


def _impossible(prompt: Prompt, model: Model, body: bytes) -> frozenset[UsageClass]:
    # An escape may hide the name: then it is taken to be there.
    caches = b"cache_control" in body or b"\\u00" in body
    reads = bool(prompt.images or prompt.audios or prompt.documents)
    speaks = bool(model.allow) and any(entry.startswith("modalities:") for entry in model.allow)
    return _WITHOUT[caches, reads, speaks]


_CACHE_WRITES: Final[frozenset[UsageClass]] = frozenset({"cache_write_5m", "cache_write_1h"})
_MEDIA_READ: Final[frozenset[UsageClass]] = frozenset({"input_audio", "input_image"})
_MEDIA_WRITTEN: Final[frozenset[UsageClass]] = frozenset({"output_audio", "output_image"})
_NONE: Final[frozenset[UsageClass]] = frozenset()
_WITHOUT: Final = {
    (caches, reads, speaks): (_NONE if caches else _CACHE_WRITES)
    | (_NONE if reads else _MEDIA_READ)
    | (_NONE if speaks else _MEDIA_WRITTEN)
    for caches, reads, speaks in product((False, True), repeat=3)
}
"""By whether a request writes to a cache, has media in its prompt, and may be answered with more
than text: only by a model that allows that."""
