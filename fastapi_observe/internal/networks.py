"""Private networks and host names: addresses that no host on the public Internet has."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Address

MAX_PORT: Final = 65_535

Network = IPv4Network | IPv6Network

PRIVATE_NETWORKS: Final = tuple(
    ip_network(each)
    for each in (
        "127.0.0.0/8",
        "::1/128",
        "0.0.0.0/32",  # connects to this machine
        "::/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Loopback, private (RFC 1918, RFC 4193), shared (RFC 6598) and link-local networks."""


_SINGLE_LABEL: Final = re.compile(r"[a-z0-9_-]+")
_PRIVATE_SUFFIX: Final = re.compile(r"[a-z0-9_.-]+\.(?:local|internal|svc|localhost|lan|test)")
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Names that resolvers read as an IPv4 address (WHATWG URL, "ends in a number"), such as 134744072 for 8.8.8.8."""


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address. An IPv4 address in IPv6 form becomes an IPv4 address. Returns None for an invalid one."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def address_in(text: str, networks: tuple[Network, ...]) -> bool:
    """Return whether `text` is an address in one of the networks."""
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)


def normalize_host(host: str) -> str:
    """Return a host name in lower case, without brackets and final dot."""
    return host.lower().strip("[]").removesuffix(".")


def is_private_host(host: str) -> bool:
    """Return whether a host belongs to a private network, judged by its name. It is not resolved.

    Private are addresses in `PRIVATE_NETWORKS`, names with one label (`payments`), and names below `.local`,
    `.internal`, `.svc`, `.localhost`, `.lan` and `.test`.
    """
    host = normalize_host(host)
    if ":" in host or _NUMBER.fullmatch(host):
        return address_in(host, PRIVATE_NETWORKS)
    return bool(_SINGLE_LABEL.fullmatch(host) or _PRIVATE_SUFFIX.fullmatch(host))
