"""Which addresses are private: those that no host of the public Internet can have."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Address

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
"""This machine, private (RFC 1918, RFC 4193), shared (RFC 6598) and link-local networks."""


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, an IPv4 one in IPv6 form as what it is; None for anything else."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_in(text: str, networks: tuple[Network, ...]) -> bool:
    """Tell whether `text` is an address of one of the networks."""
    address = address_of(text)
    return address is not None and any(address in network for network in networks)
