"""Client addresses, shortened to their networks, and the headers that are secret or contain addresses."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_network
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.networks import parse_address
from fastapi_observe.redaction.patterns import REDACTED

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET_HEADERS: Final = frozenset(
    """authorization proxy-authorization cookie set-cookie x-api-key x-auth-token x-csrf-token x-xsrf-token
    x-amz-security-token x-goog-iam-authorization-token x-forwarded-client-cert x-vault-token private-token
    x-gitlab-token x-hub-signature x-hub-signature-256 stripe-signature sec-websocket-key www-authenticate
    proxy-authenticate authentication-info""".split()  # noqa: SIM905 - a list would be a page long
)
"""Headers whose values are always redacted, even if the settings capture them."""

SECRET_HEADER_WORDS: Final = ("auth", "cookie", "api-key", "apikey", "token", "secret", "password", "session", "csrf")
"""Parts of a header's name that make it secret."""

ADDRESS_HEADERS: Final = frozenset({"x-forwarded-for", "x-real-ip", "forwarded"})
"""Headers that contain addresses of clients."""

UNREDACTED_ADDRESSES: Final = frozenset({"testclient", ""})
"""Client hosts of test clients and UNIX sockets, where there is no network."""

MAX_ADDRESS_LENGTH: Final = 64
"""Characters of an address, its port and zone included. Longer values are not addresses."""

AUTHORITY: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?")
"""A `Host` header: a host, with or without a port."""

_IPV4_PREFIX_LENGTH: Final = 24
_IPV6_PREFIX_LENGTH: Final = 48
_WITH_PORT: Final = re.compile(
    r"(?P<v4>\d{1,3}(?:\.\d{1,3}){3}):\d{1,5}|\[(?P<v6>[0-9A-Fa-f:.%\w]{2,64})\](?::\d{1,5})?"
)

_MAX_FORWARDED_ADDRESSES: Final = 16
_MAX_FORWARDED_PARAMETERS: Final = 8


def truncate_to_network(address: str) -> str:
    """Return the network of an address, without its port: `203.0.113.0/24`, `2001:db8:1::/48`.

    Loopback addresses are returned whole. Anything that is not an address is returned as `REDACTED`: a proxy may
    forward whatever the client wrote.
    """
    if address in UNREDACTED_ADDRESSES:
        return address
    if len(address) > MAX_ADDRESS_LENGTH:
        return REDACTED
    with_port = _WITH_PORT.fullmatch(address)
    parsed = parse_address((with_port["v4"] or with_port["v6"]) if with_port else address)
    if parsed is None:
        return REDACTED
    if parsed.is_loopback:
        return address
    prefix_length = _IPV4_PREFIX_LENGTH if isinstance(parsed, IPv4Address) else _IPV6_PREFIX_LENGTH
    return str(ip_network((parsed, prefix_length), strict=False))


def redact_forwarded(value: str, redact_address: Callable[[str], str | None]) -> str:
    """Return the value of `X-Forwarded-For`, `Forwarded` or `X-Real-IP` with redacted addresses."""
    parts = value.split(",")[:_MAX_FORWARDED_ADDRESSES]
    return ", ".join(_redact_forwarded_part(part.strip(), redact_address) for part in parts)


def _redact_forwarded_part(part: str, redact_address: Callable[[str], str | None]) -> str:
    if "=" not in part:
        return str(redact_address(part))
    pairs = [pair.partition("=") for pair in part.split(";")[:_MAX_FORWARDED_PARAMETERS]]
    named = [(name.strip().lower(), value.strip(' "')) for name, _, value in pairs]
    return ";".join(f"{name}={redact_address(value)}" for name, value in named if name in {"for", "by"})
