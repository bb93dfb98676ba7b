"""Addresses that no backend may have: where a machine asks who it is, and what leads nowhere.

A document that names such an address, or a name that leads to one, would have the router fetch the
credentials of its own host and hand them to a client.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address

_METADATA: Final = tuple(
    map(
        ip_network,
        (
            "169.254.0.0/16",  # link-local: 169.254.169.254 at nearly every cloud, ECS at .170.2
            "fe80::/10",
            "fd00:ec2::/32",  # AWS over IPv6
            "fd20:ce::/32",  # Google Cloud over IPv6
            "100.100.100.200/32",  # Alibaba Cloud
            "168.63.129.16/32",  # Azure's host
            "192.0.0.192/32",  # Oracle Cloud
        ),
    )
)
METADATA_NAMES: Final = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata.azure.com",
        "metadata.platformequinix.com",
        "metadata.tencentyun.com",
    }
)
_NAT64: Final = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
_COMPATIBLE: Final = ip_network("::/96")


def refusal_of(address: str) -> str | None:
    """Why no connection may be made to an address in its usual notation; ``None`` if one may.

    An IPv6 address that stands for an IPv4 address is judged by both. Raises ``ValueError`` for
    what is no address.
    """
    for each in _meanings(ip_address(address.partition("%")[0])):
        if any(each in network for network in _METADATA):
            return "is where machines ask for metadata and credentials, or link-local"
        if each.is_unspecified or each.is_multicast or _is_reserved(each):
            return "is no address of a server"
    return None


def _is_reserved(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_reserved or address.packed[0] == 0  # 0.0.0.0/8 is this host
    return address.is_site_local


def _meanings(address: Address) -> Iterator[Address]:
    yield address
    if isinstance(address, IPv4Address) or address.packed == b"\0" * 15 + b"\1":
        return
    for inner in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if inner is not None:
            yield inner
    if any(address in network for network in (*_NAT64, _COMPATIBLE)):
        yield IPv4Address(address.packed[-4:])
