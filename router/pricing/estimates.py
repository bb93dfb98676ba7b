"""About how much a call uses, where nobody has reported it. For what it uses at most see
``bounds``."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import orjson

from router.call import Call, Usage
from router.config.document import Model
from router.pricing.bounds import bounded_output
from router.pricing.prompts import Prompt, prompt_of
from router.pricing.token_counter import TokenCounter
from router.providers.generated_bytes import utf8_bytes

BYTES_PER_TOKEN: Final = 4
"""A token is about four bytes of UTF-8, in every script: four characters of English, as OpenAI
says; two of Russian, Greek or Arabic; one and a third of Chinese, Japanese, Korean, Thai or Hindi.
tests/unit/pricing/test_estimates.py has what two tokenizers count."""

IMAGE_TOKENS: Final = 765
"""Of a picture of 1024 by 1024 pixels at GPT-4o (OpenAI, "Images and vision")."""
AUDIO_TOKENS: Final = 600
"""Of a minute at ten tokens a second (OpenAI, "Audio")."""
DOCUMENT_TOKENS: Final = 3_000
"""Of a page at the upper end of 1500 to 3000 tokens (Anthropic, "PDF support")."""


def estimate(
    call: Call,
    model: Model,
    output_bytes: int,
    at_start: Usage | None = None,
    counter: TokenCounter | None = None,
) -> Usage:
    """Usage of a call whose backend reported none, from the length of its texts: never more output
    than was asked for.

    ``at_start`` is what the backend said before its reply broke off: all of the input, and the
    least that the output can be.
    """
    tokens_output, bound = -(-output_bytes // BYTES_PER_TOKEN), bounded_output(call)
    if bound is not None:
        tokens_output = min(tokens_output, bound)
    if at_start is not None and at_start.tokens_input:  # a backend that says 0 does not count
        tokens_output = max(tokens_output, at_start.tokens_output)
        return replace(at_start, tokens_output=tokens_output, source="estimated")
    return Usage(estimated_input(call, model, counter), tokens_output, source="estimated")


def estimated_input(call: Call, model: Model, counter: TokenCounter | None = None) -> int:
    """Tokens that the backend reads: texts, tools, schemas, pictures and whatever else there is.

    Texts are counted by ``counter``; without one they are reckoned from their length.
    """
    prompt, bounds = prompt_of(call), model.input_bounds
    parts = (
        prompt.images * min(IMAGE_TOKENS, bounds.image_tokens)
        + prompt.audios * min(AUDIO_TOKENS, bounds.audio_tokens)
        + prompt.documents * min(DOCUMENT_TOKENS, bounds.document_tokens)
    )
    total = _text_tokens(prompt, counter) + prompt.token_ids + parts
    return total if model.max_input_tokens is None else min(total, model.max_input_tokens)


def _text_tokens(prompt: Prompt, counter: TokenCounter | None) -> int:
    text = "".join(prompt.texts)  # half as dear as one by one, where there are many
    structured = orjson.dumps(prompt.structured)[1:-1] if prompt.structured else b""
    if counter is not None:
        return counter.count(text + structured.decode())
    return -(-(utf8_bytes(text) + len(structured)) // BYTES_PER_TOKEN)
