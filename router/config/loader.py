"""A document's file → validated → frozen; the one way in, whoever asks.

``config validate``, ``config apply`` and the workers that read ``state/`` back all come through
here, so what passes the check can be applied, and what was applied can be served.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from marshmallow import ValidationError

from router.config.document import (
    Backend,
    Document,
    KeyRecord,
    Model,
    Organization,
    Policy,
    build_document,
)
from router.config.faults import DocumentError
from router.config.parsing import Parsed, parse_json, parse_yaml, read_text
from router.config.schema.parts import DOCUMENT_SCHEMA, KeyEntry
from router.config.schema.references import reference_problems

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._:/*-]{1,128}")
_MAX_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class LoadedDocument:
    """The frozen parts of a valid document."""

    organizations: tuple[Organization, ...] = ()
    models: tuple[Model, ...] = ()
    backends: tuple[Backend, ...] = ()
    policies: tuple[Policy, ...] = ()
    keys: tuple[KeyRecord, ...] = ()

    def build(self, revision: int) -> Document:
        """Index all parts but the keys for serving."""
        return build_document(
            revision,
            organizations=self.organizations,
            models=self.models,
            backends=self.backends,
            policies=self.policies,
        )


def load_file(
    path: Path | str, *, demo: bool, pepper: bytes | Callable[[], bytes]
) -> LoadedDocument:
    """Read, validate and freeze a document; ``.json`` is JSON, any other name is YAML.

    ``demo`` allows demo secrets, which are hashed with ``pepper``; a function is asked for it only
    when a valid document has such a key. Raises :class:`DocumentError` with every problem.
    """
    place = Path(path)
    text = read_text(place)
    parsed = parse_json(text) if place.suffix == ".json" else parse_yaml(text)
    return _load(parsed, demo=demo, pepper=pepper)


def load_plain(plain: Any, *, demo: bool = False, pepper: bytes = b"") -> LoadedDocument:
    """Validate and freeze plain data, such as ``export`` wrote; raises like :func:`load_file`."""
    return _load(Parsed(plain, []), demo=demo, pepper=pepper)


def _load(parsed: Parsed, *, demo: bool, pepper: bytes | Callable[[], bytes]) -> LoadedDocument:
    plain, problems = parsed.data, [*parsed.problems]
    if not isinstance(plain, dict):
        what = "is empty" if plain is None else "must be a mapping"
        raise DocumentError([*problems, f"the document {what}"])
    sections: dict[str, Any] = {}
    try:
        sections = DOCUMENT_SCHEMA.load(plain)
    except ValidationError as error:
        problems += flatten_messages(error.messages)
    problems += reference_problems(plain)
    problems += () if demo else _demo_problems(plain)
    if problems:
        raise DocumentError(problems)
    keys = tuple(_record(entry, pepper) for entry in sections["keys"])
    return LoadedDocument(
        organizations=tuple(sections["organizations"]),
        models=tuple(sections["models"]),
        backends=tuple(sections["backends"]),
        policies=tuple(sections["policies"]),
        keys=_distinct(keys),
    )


def _demo_problems(plain: dict[str, Any]) -> Iterator[str]:
    keys = plain.get("keys")
    for index, key in enumerate(keys if isinstance(keys, list) else ()):
        if isinstance(key, dict) and "demo_secret" in key:
            yield f"keys[{index}].demo_secret: allowed only in demo mode (ROUTER_DEMO=true)"


def _record(entry: KeyEntry, pepper: bytes | Callable[[], bytes]) -> KeyRecord:
    key_hash = entry.hash
    if key_hash is None:
        # The loader stands below ``auth`` and cannot call its hash_key; a test keeps them equal.
        secret = pepper() if callable(pepper) else pepper
        key_hash = hmac.digest(secret, str(entry.demo_secret).encode(), "sha256").hex()
    return KeyRecord(
        id=entry.id,
        organization_id=entry.organization,
        hash=key_hash,
        name=entry.name,
        status=entry.status,
        expires_at_s=entry.expires_at,
        scopes=frozenset(entry.scopes),
        models=None if entry.models is None else frozenset(entry.models),
        require_signature=entry.require_signature,
        demo=entry.demo,
        rate_limit=entry.rate_limit,
        budgets=entry.budgets,
    )


def _distinct(keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
    """Refuse a hash that is the hash of another key's demo secret."""
    seen: dict[str, int] = {}
    problems = []
    for index, key in enumerate(keys):
        if key.hash in seen:
            problems.append(f"keys[{index}]: the same key as keys[{seen[key.hash]}]")
        seen.setdefault(key.hash, index)
    if problems:
        raise DocumentError(problems)
    return keys


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
