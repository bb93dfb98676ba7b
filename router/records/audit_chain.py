"""The hash chain of audit events, and the signatures that protect its two ends.

Each writer of events (a worker, from its start to its end) has a chain of its own. An event's hash
covers the event and the hash before it, so that nothing inside a chain can be changed, removed
or moved. A chain alone cannot show that its end was cut off; therefore the newest link of each
chain is signed as the chain tip. When old events are removed on purpose, the last removed link is
signed as the prune point, from which the rest of the chain continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from router.records.record_types import AuditEvent, audit_body, canonical, seal

HASH_LENGTH: Final = 64
_SEAL: Final = b',"hash":"'
_SEAL_LENGTH: Final = len(_SEAL) + HASH_LENGTH + len(b'"}')
_KEY_CONTEXT: Final = b"audit-trail\0"


class Link(NamedTuple):
    """A link of a chain: the number of its event, counted from 1, and that event's hash."""

    sequence: int
    hash: str


def genesis(writer_id: str) -> Link:
    """The link before a writer's first event."""
    return Link(0, hashlib.sha256(f"genesis:{writer_id}".encode()).hexdigest())


class AuditChain:
    """Links the events of one writer, in the order in which they are appended to its spool."""

    __slots__ = ("_end", "writer_id")

    def __init__(self, writer_id: str) -> None:
        self.writer_id = writer_id
        self._end = genesis(writer_id)

    @property
    def end(self) -> Link:
        """The link that the next event will follow."""
        return self._end

    def rewind(self, end: Link) -> None:
        """Make an earlier link the end again. No event after it may have been written anywhere."""
        self._end = end

    def link(self, event: AuditEvent, *, max_bytes: int | None = None) -> bytes:
        """Append the event to the chain; its encoding.

        Raises ``TypeError`` for what JSON cannot carry and ``ValueError`` for what is longer than
        ``max_bytes``; the chain is then as it was.
        """
        sequence, previous_hash = self._end
        sequence += 1
        body = audit_body(event, self.writer_id, sequence, previous_hash)
        if max_bytes is not None and len(body) + _SEAL_LENGTH > max_bytes:
            raise ValueError(f"the event has more than {max_bytes} bytes: {len(body)}")
        digest = chain_hash(previous_hash, body)
        self._end = Link(sequence, digest)
        return seal(body, digest)


_EMPTY: Final = hashlib.sha256()


def chain_hash(previous_hash: str, body: bytes) -> str:
    """SHA-256 over the 32 bytes of the previous hash and the event without its own."""
    digest = _EMPTY.copy()  # OpenSSL takes longer to set one up
    digest.update(bytes.fromhex(previous_hash))
    digest.update(body)
    return digest.hexdigest()


def unseal(line: bytes) -> tuple[bytes, str]:
    """Split an encoded event into what its hash covers and the hash; raises ``ValueError``."""
    start = len(line) - _SEAL_LENGTH
    if start < 1 or line[start : start + len(_SEAL)] != _SEAL or line[-2:] != b'"}':
        raise ValueError("it does not end with its hash")
    return line[:start] + b"}", line[start + len(_SEAL) : -2].decode("ascii", "replace")


def encode_event(event: Mapping[str, Any]) -> bytes:
    """A decoded event as exactly the bytes that it was decoded from."""
    body = {name: value for name, value in event.items() if name != "hash"}
    return seal(canonical(body), event["hash"])


def derive_audit_key(pepper: bytes) -> bytes:
    """The key that signs chain tips, prune points and exports."""
    return hmac.digest(pepper, _KEY_CONTEXT, "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTip:
    """The newest link of a writer's chain; ``closed`` when the writer will link no more."""

    SIGNED_AS: ClassVar = "head"

    writer_id: str
    sequence: int
    hash: str
    closed: bool = False
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePoint:
    """The last link that was removed on purpose from the beginning of a writer's chain."""

    SIGNED_AS: ClassVar = "anchor"

    writer_id: str
    sequence: int
    hash: str
    signature: str = ""


SignedLink = TypeVar("SignedLink", ChainTip, PrunePoint)


def with_signature(link: SignedLink, key: bytes) -> SignedLink:
    """The chain tip or prune point with its signature."""
    return dataclasses.replace(link, signature=_signature(link, key))


def is_signed(link: ChainTip | PrunePoint, key: bytes) -> bool:
    """Tell whether the signature was made with ``key`` for exactly these facts."""
    return hmac.compare_digest(link.signature.encode(), _signature(link, key).encode())


def newest_tips(events: Iterable[Mapping[str, Any]], key: bytes) -> list[ChainTip]:
    """The signed tip of each chain that ``events``, in any order, belong to."""
    newest: dict[str, Mapping[str, Any]] = {}
    for event in events:
        known = newest.get(event["writer_id"])
        if known is None or event["sequence"] > known["sequence"]:
            newest[event["writer_id"]] = event
    return [
        with_signature(
            ChainTip(writer_id=writer_id, sequence=event["sequence"], hash=event["hash"]), key
        )
        for writer_id, event in newest.items()
    ]


def sign(context: str, body: bytes, key: bytes) -> str:
    """A signature that is valid for ``context`` only."""
    return hmac.new(key, b"%b\0%b" % (context.encode(), body), hashlib.sha256).hexdigest()


def _signature(link: ChainTip | PrunePoint, key: bytes) -> str:
    facts = dataclasses.asdict(link)
    del facts["signature"]
    return sign(link.SIGNED_AS, canonical(facts), key)
