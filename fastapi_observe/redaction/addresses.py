"""What may be shown of who sent a request: the network of an address; and which headers are secret whoever asks."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_network
from typing import Final

from fastapi_observe.internal.networks import parse_address
from fastapi_observe.redaction.patterns import REDACTED

SECRET_HEADERS: Final = frozenset(
    """authorization proxy-authorization cookie set-cookie x-api-key x-auth-token x-csrf-token x-xsrf-token
    x-amz-security-token x-goog-iam-authorization-token x-forwarded-client-cert x-vault-token private-token
    x-gitlab-token x-hub-signature x-hub-signature-256 stripe-signature sec-websocket-key www-authenticate
    proxy-authenticate authentication-info""".split()  # noqa: SIM905 - a list would be a page long
)
"""Headers whose values are never shown, even if they are asked for."""

SECRET_HEADER_WORDS: Final = ("auth", "cookie", "api-key", "apikey", "token", "secret", "password", "session", "csrf")
"""Parts of a header's name that deny it too."""

ADDRESS_HEADERS: Final = frozenset({"x-forwarded-for", "x-real-ip", "forwarded"})
"""Headers that hold addresses of clients."""

UNREDACTED_ADDRESSES: Final = frozenset({"testclient", ""})
"""What stands for an address where there is no network."""

_IPV4: Final = 24
_IPV6: Final = 48
AUTHORITY: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?")
MAX_PORT: Final = 65535

_WITH_PORT: Final = re.compile(
    r"(?P<v4>\d{1,3}(?:\.\d{1,3}){3}):\d{1,5}|\[(?P<v6>[0-9A-Fa-f:.%\w]{2,64})\](?::\d{1,5})?"
)
MAX_ADDRESS_LENGTH: Final = 64
"""Characters of an address with its port and zone that are looked at, shown and remembered."""


def truncate_to_network(address: str) -> str:
    """Return the network of an address, without its port: `203.0.113.0/24`, `2001:db8:1::/48`.

    This machine's own is shown whole. What is no address reads `REDACTED`: a proxy may pass on what a client writes.
    """
    if address in UNREDACTED_ADDRESSES:
        return address
    if len(address) > MAX_ADDRESS_LENGTH:
        return REDACTED
    with_port = _WITH_PORT.fullmatch(address)
    found = parse_address((with_port["v4"] or with_port["v6"]) if with_port else address)
    if found is None:
        return REDACTED
    if found.is_loopback:
        return address
    width = _IPV4 if isinstance(found, IPv4Address) else _IPV6
    return str(ip_network((found, width), strict=False))
