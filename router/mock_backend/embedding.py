"""Embeddings that mean nothing but are always the same for the same text."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Mapping
from typing import Any

from router.mock_backend.behaviour import Behaviour
from router.mock_backend.generation import CallError, count_input, model_of, texts_of

DEFAULT_DIMENSIONS = 16
MOST_DIMENSIONS = 4096


def embed(call: Mapping[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    """Answer an embeddings call in OpenAI's shape, as numbers or as base64 of 32-bit floats."""
    texts = texts_of(call, "input")
    dimensions = call.get("dimensions") or DEFAULT_DIMENSIONS
    if type(dimensions) is not int or not 1 <= dimensions <= MOST_DIMENSIONS:
        raise CallError(f"'dimensions' must be an integer up to {MOST_DIMENSIONS}", "dimensions")
    encoding = call.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise CallError("'encoding_format' must be float or base64", "encoding_format")
    vectors = [_vector(text, dimensions) for text in texts]
    tokens = count_input(texts, behaviour)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if encoding == "base64" else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": model_of(call),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(text: str, dimensions: int) -> list[float]:
    """Spread a hash of the text over a vector of length one."""
    noise = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(dimensions)
    # Half a step off the middle: no component, and so no length, can be zero.
    raw = [byte - 127.5 for byte in noise]
    length = math.sqrt(sum(component * component for component in raw))
    return [component / length for component in raw]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
