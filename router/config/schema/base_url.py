"""The address of a backend: every request's target begins with it, so it must be unambiguous."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from router.net.address_policy import METADATA_NAMES, refusal_of

_HOST_SHAPE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
# What some resolvers take for an address: 127.1, 0x7f.1, 017700000001, 2130706433.
_NUMERIC: Final = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*")
_PATH_SHAPE: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*/?")
_ENCODED_SEPARATOR: Final = re.compile("%(2e|2f|5c|00)", re.IGNORECASE)
_NO_HOST: Final = "must name a host"
_ENDPOINTS: Final = ("/chat/completions", "/chat", "/messages")


def normalize_base_url(text: str) -> str:
    """The address without a trailing slash; raises ``ValueError`` that says what is wrong."""
    if not text.isascii() or " " in text or "\\" in text:
        raise ValueError("must be ASCII without spaces and backslashes")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(_NO_HOST) from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password; use 'credential'")
    if "?" in text or "#" in text:
        raise ValueError("must not have a query or a fragment")
    _check_host(parts)
    _check_path(parts.path)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _check_host(parts: SplitResult) -> None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("must have a port between 1 and 65535, or none")
    host = parts.hostname or ""
    if not _is_host(host):
        raise ValueError(_NO_HOST)
    _check_address(host)


def _check_address(host: str) -> None:
    """A host that is an address, in whatever spelling, is one that a backend may have."""
    name = host.rstrip(".").lower()
    if name in METADATA_NAMES:
        raise ValueError("must not be where machines ask for metadata and credentials")
    if _NUMERIC.fullmatch(name) and not _is_plain_ipv4(host):
        raise ValueError("must have its address as four decimal numbers, such as 192.0.2.1")
    if ":" in host or _is_plain_ipv4(host):
        refusal = refusal_of(host)
        if refusal is not None:
            raise ValueError(f"must not have the address {host}: it {refusal}")


def _is_plain_ipv4(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _HOST_SHAPE.fullmatch(host) is not None
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def _check_path(path: str) -> None:
    segments = path.split("/")
    if "." in segments or ".." in segments or _ENCODED_SEPARATOR.search(path):
        raise ValueError("must not have dot segments or encoded dots and slashes in its path")
    if _PATH_SHAPE.fullmatch(path) is None:
        raise ValueError("must have a path of plain segments, without '//'")
    if path.rstrip("/").endswith(_ENDPOINTS):
        raise ValueError("must end before the endpoint, such as https://host/v1")
