"""`TrustPolicy`: decides whether the caller of a request is trusted, by the address of the TCP peer."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.networks import PRIVATE_NETWORKS, address_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from starlette.types import Scope

    from fastapi_observe.internal.networks import Network
    from fastapi_observe.records.request import RequestRecord

MAX_CACHED_PEERS: Final = 1024
"""Addresses whose result is cached."""

MAX_CACHED_ADDRESS_LENGTH: Final = 64
"""Characters of an address that is cached (an IPv6 address has at most 45, and a zone)."""

MAX_FORWARDED_ADDRESSES: Final = 16
"""Addresses of one forwarding header that are parsed. A longer list is not trusted."""

TEST_CLIENT_HOSTS: Final = frozenset({"testclient"})
"""Peer names of test clients. A network peer has an address."""

_FORWARDED_FOR: Final = re.compile(r'for="?\[?([^;,"\]]+)', re.IGNORECASE)
_CLIENT_ADDRESS_HEADERS: Final = frozenset(
    {
        b"x-forwarded-for",
        b"x-real-ip",
        b"forwarded",
        b"cf-connecting-ip",
        b"true-client-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"fastly-client-ip",
    }
)
"""Headers in which proxies send the address of their client."""
_FORWARDING_HEADERS: Final = _CLIENT_ADDRESS_HEADERS | {b"via", b"x-forwarded-host", b"x-forwarded-proto"}
"""Headers that proxies add."""
_PORT: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+):\d+")


class TrustPolicy:
    """Trusts `always`, `never`, by a function of the scope, or by the networks of the TCP peer.

    `private` means `PRIVATE_NETWORKS`, UNIX sockets and Starlette's test client. Clients can forge forwarding headers,
    so these headers can only take trust away: every address in them must be in the networks too, and a proxy that
    names no address is not trusted. A peer address that the server replaced by one from a header is not trusted either,
    because the real peer is unknown.
    """

    __slots__ = ("_function", "_known", "_networks", "_unix", "always")

    def __init__(self, policy: str | Iterable[str] | Callable[[Any], object]) -> None:
        self._function = policy if callable(policy) else None
        self.always = policy == "always"
        words = () if callable(policy) or policy == "never" else (policy,) if isinstance(policy, str) else tuple(policy)
        networks: list[Network] = []
        for word in words:
            if word == "private":
                networks += PRIVATE_NETWORKS
            elif word != "always":
                networks.append(ip_network(word, strict=False))
        self._networks = tuple(networks)
        self._unix = "private" in words
        self._known: dict[str, bool] = {}

    def is_trusted(self, record: RequestRecord) -> bool:
        """Return whether the caller of this request is trusted. The result is stored in the record."""
        trusted = record.caller_trusted
        if trusted is None:
            record.caller_trusted = False  # if the user's function raises, it is not called again
            record.caller_trusted = trusted = self.trusts_peer(record.scope, record.headers)
        return trusted

    def trusts_peer(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the peer of a request is trusted. `headers` have lower-case names and the last value of each.

        Exceptions of the user's function are raised.
        """
        if self.always:
            return True
        if self._function is not None:
            return bool(self._function(scope))
        client = scope.get("client")
        if client and client[0]:
            peer = client[0]
            # Servers that replace the address by one from a header set port 0, which a TCP peer never has.
            trusted = client[1] != 0 and (self._has(peer) or (self._unix and peer in TEST_CLIENT_HOSTS))
        else:
            peer = None
            trusted = self._unix
        if not trusted or _FORWARDING_HEADERS.isdisjoint(headers):
            return trusted
        addresses = _forwarded_addresses(scope.get("headers") or ())
        # uvicorn takes the port from the header too: a replaced address is recognized because the header has it.
        return bool(addresses) and peer not in addresses and all(self._has(address) for address in addresses)

    def _has(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = address_in(address, self._networks)
            if len(self._known) < MAX_CACHED_PEERS and len(address) <= MAX_CACHED_ADDRESS_LENGTH:
                self._known[address] = known
        return known


def _forwarded_addresses(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the client addresses in forwarding headers. Invalid ones are included and are in no network."""
    addresses: list[str] = []
    for name, value in headers:
        if name not in _CLIENT_ADDRESS_HEADERS:
            continue
        parts = value.decode("latin-1").split(",", MAX_FORWARDED_ADDRESSES)
        if len(parts) > MAX_FORWARDED_ADDRESSES:
            return [""]
        if name == b"forwarded":
            parts = [each for part in parts for each in _FORWARDED_FOR.findall(part)] or [""]
        addresses += [_without_port(part.strip()) for part in parts]
    return addresses


def _without_port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if match:
        return match[1]
    return text[1:].partition("]")[0] if text.startswith("[") else text
