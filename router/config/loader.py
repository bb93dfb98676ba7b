"""Reads, validates and freezes a document; there is no other way in.

``config validate``, ``config apply`` and the workers that read ``state/`` back all come through
here, so what passes the check can be applied, and what was applied can be served.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from marshmallow import ValidationError

from router.config.config_errors import DocumentError
from router.config.document import KeyRecord, LoadedDocument
from router.config.parsing import Parsed, parse_json, parse_yaml, read_text
from router.config.schema.parts import DOCUMENT_SCHEMA
from router.config.schema.references import reference_problems

Source = Callable[[Path], Parsed]
"""Reads a document from where it lies; raises :class:`DocumentError` when nothing can be read."""

SOURCES: Final[Mapping[str, Source]] = {
    ".json": lambda path: parse_json(read_text(path)),
    ".yaml": lambda path: parse_yaml(read_text(path)),
}
"""By the suffix of the path; any other suffix is read as YAML. A new source is a line here."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._:/*-]{1,128}")
_MAX_SHOWN: Final = 60


def load_file(
    path: Path | str, *, demo: bool, pepper: bytes | Callable[[], bytes]
) -> LoadedDocument:
    """Read, validate and freeze a document; ``.json`` is JSON, any other name is YAML.

    ``demo`` allows demo secrets, which are hashed with ``pepper``; a function is called only when a
    valid document has such a key. Raises :class:`DocumentError` with every problem.
    """
    place = Path(path)
    source = SOURCES.get(place.suffix, SOURCES[".yaml"])
    return _load(source(place), demo=demo, pepper=pepper)


def load_serialized(serialized: Any, *, demo: bool = False, pepper: bytes = b"") -> LoadedDocument:
    """Validate and freeze data, such as ``export`` wrote; raises like :func:`load_file`."""
    return _load(Parsed(serialized, []), demo=demo, pepper=pepper)


def _load(parsed: Parsed, *, demo: bool, pepper: bytes | Callable[[], bytes]) -> LoadedDocument:
    serialized, problems = parsed.data, [*parsed.problems]
    if not isinstance(serialized, dict):
        what = "is empty" if serialized is None else "must be a mapping"
        raise DocumentError([*problems, f"the document {what}"])
    loaded = LoadedDocument()
    try:
        loaded = DOCUMENT_SCHEMA.load(serialized)
    except ValidationError as error:
        problems += flatten_messages(error.messages)
    problems += reference_problems(serialized)
    problems += () if demo else _demo_problems(serialized)
    if problems:
        raise DocumentError(problems)
    keys = zip(loaded.keys, serialized.get("keys", ()), strict=True)
    return replace(loaded, keys=_distinct([_hashed(key, entry, pepper) for key, entry in keys]))


def _demo_problems(serialized: dict[str, Any]) -> Iterator[str]:
    keys = serialized.get("keys")
    for index, key in enumerate(keys if isinstance(keys, list) else ()):
        if isinstance(key, dict) and "demo_secret" in key:
            yield f"keys[{index}].demo_secret: allowed only in demo mode (ROUTER_DEMO=true)"


def _hashed(
    key: KeyRecord, entry: dict[str, Any], pepper: bytes | Callable[[], bytes]
) -> KeyRecord:
    """The key with the hash of its demo secret, if it has one."""
    if "demo_secret" not in entry:
        return key
    # The loader stands below ``auth`` and cannot call its hash_key; a test keeps them equal.
    secret = pepper() if callable(pepper) else pepper
    return replace(key, hash=hmac.digest(secret, entry["demo_secret"].encode(), "sha256").hex())


def _distinct(keys: Sequence[KeyRecord]) -> tuple[KeyRecord, ...]:
    """Refuse a hash that is the hash of another key's demo secret."""
    seen: dict[str, int] = {}
    problems = []
    for index, key in enumerate(keys):
        if key.hash in seen:
            problems.append(f"keys[{index}]: the same key as keys[{seen[key.hash]}]")
        seen.setdefault(key.hash, index)
    if problems:
        raise DocumentError(problems)
    return tuple(keys)


def flatten_messages(messages: Any, path: str = "") -> Iterator[str]:
    """marshmallow's nested messages → ``backends[1].timeouts.connect_s: must be …``."""
    if isinstance(messages, dict):
        for name, inner in messages.items():
            yield from flatten_messages(inner, _join(path, name))
    elif isinstance(messages, list):
        for message in messages:
            yield from flatten_messages(message, path)
    else:
        yield f"{path}: {messages}" if path else f"the document {messages}"


def _join(path: str, name: Any) -> str:
    if name in ("_schema", "key", "value"):
        return path
    if isinstance(name, int):
        return f"{path}[{name}]"
    shown = str(name)
    if _PLAIN_NAME.fullmatch(shown) is None:
        shown = ascii(shown[:_MAX_SHOWN])
    return f"{path}.{shown}" if path else shown
