"""Where no backend may be, in every spelling: at load and, for a name, when it is connected to.

The addresses are those that the clouds document and those of IANA's special-purpose registries.
"""

from __future__ import annotations

import socket

import pytest
from marshmallow import ValidationError

from router.config.schema.parts import BackendSchema
from router.net.address_policy import refusal_of

NEVER = [
    # AWS, Google Cloud, Azure, ECS tasks: 169.254.169.254 and its neighbours
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "169.254.169.254.", "0xa9fea9fe",
    "2852039166", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376", "169.254.43518", "169.16689662",
    "169.254.169.0376", "0251.254.169.254",
    "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[::169.254.169.254]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]", "[2001:0:a9fe:a9fe::]", "[fd00:ec2::254]", "[fd20:ce::254]", "[fe80::1]",
    "[fe80::a9fe:a9fe]", "[febf::1]", "[FE80::1]", "metadata.google.internal",
    "METADATA.GOOGLE.INTERNAL", "metadata.google.internal.", "metadata", "metadata.goog",
    "instance-data", "instance-data.ec2.internal", "metadata.tencentyun.com",
    # other clouds
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "[::ffff:100.100.100.200]",
    # no server's address
    "0.0.0.0", "0", "0x0", "00", "0.1.2.3", "[::]", "[::0.0.0.0]", "224.0.0.1", "239.255.255.250",
    "255.255.255.255", "240.0.0.1", "[ff02::1]", "[fec0::1]", "[::ffff:0.0.0.0]",
    # spellings of addresses that only some parsers understand
    "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "10.1",
    "192.168.257", "1", "1.2.3", "1.2.3.4.5", "0x", "4294967296", "127.0.0.01", "[fe80::1%25eth0]",
]  # fmt: skip
SCHEMES = [
    "redis://h",
    "file:///etc/passwd",
    "gopher://h",
    "unix:///run/redis",
    "ftp://h",
    "//h",
    "h",
]


def backend(base_url: str) -> dict[str, str]:
    return {"id": "b", "kind": "openai", "base_url": base_url}


@pytest.mark.parametrize("host", NEVER)
def test_no_document_can_name_it(host: str) -> None:
    """Refused when it is loaded, with the field and a reason."""
    for url in (f"http://{host}/v1", f"https://{host}:8443/v1"):
        with pytest.raises(ValidationError) as refusal:
            BackendSchema().load(backend(url))
        [[reason]] = refusal.value.messages_dict.values()
        assert set(refusal.value.messages_dict) == {"base_url"}
        assert reason.startswith("must ")


@pytest.mark.parametrize("url", SCHEMES)
def test_no_other_scheme(url: str) -> None:
    """Only HTTP is spoken."""
    with pytest.raises(ValidationError):
        BackendSchema().load(backend(url))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9101/v1", "http://[::1]:9101/v1", "http://10.0.0.7/v1", "http://localhost/v1",
     "http://[fd12:3456::1]/v1", "https://api.openai.com/v1", "https://1.1.1.1/v1",
     "http://vllm.internal:8000/v1", "http://192-168-0-1.example/v1", "http://100.64.0.1/v1"],
)  # fmt: skip
def test_the_operators_own_servers_can_be_named(url: str) -> None:
    """Model servers live on private networks, and the demo's on this machine."""
    assert BackendSchema().load(backend(url)).base_url == url


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0", "0.0.0.0", "ff02::1"]
)
def test_a_resolved_address_is_judged_alike(address: str) -> None:
    """As ``getaddrinfo`` writes it, with the zone."""
    assert refusal_of(address) is not None
    socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.split("%")[0])
