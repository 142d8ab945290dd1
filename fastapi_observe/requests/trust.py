"""`Trust`: whether who sent a request is believed, judged by the address of the TCP peer."""

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
"""Addresses whose answer is remembered; of further ones it is worked out each time."""

MAX_CACHED_ADDRESS_LENGTH: Final = 64
"""Characters of an address that is remembered (an IPv6 one has at most 45, and a zone)."""

MAX_FORWARDED_ADDRESSES: Final = 16
"""Addresses of one forwarding header that are looked at; a longer list is nobody of ours."""

TEST_CLIENT_HOSTS: Final = frozenset({"testclient"})
"""What test clients call themselves: no peer of a network has a name."""

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
"""Headers in which proxies name for whom they speak."""
_FORWARDING_HEADERS: Final = _CLIENT_ADDRESS_HEADERS | {b"via", b"x-forwarded-host", b"x-forwarded-proto"}
"""Headers by which a proxy shows itself."""
_PORT: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+):\d+")


class TrustPolicy:
    """Who is believed: `always`, `never`, what a function of the scope says, or the peers in some networks.

    The word `private` stands for `PRIVATE_NETWORKS`; a UNIX socket, which has no address, and Starlette's test client
    are private too. What a proxy says of whom it speaks for (`X-Forwarded-For`, `Forwarded`, `X-Real-IP`, their like)
    never wins trust, since clients can write it; it takes trust away: every address it names must be in the networks
    too, and a proxy that names none is not believed. So what a private proxy passes on from the Internet is not
    private. Where the server has put an address from there in the place of its peer's, nobody knows the peer, and it is
    in no network.
    """

    __slots__ = ("_function", "_known", "_networks", "_unix", "always")

    def __init__(self, who: str | Iterable[str] | Callable[[Any], object]) -> None:
        self._function = who if callable(who) else None
        self.always = who == "always"
        words = () if callable(who) or who == "never" else (who,) if isinstance(who, str) else tuple(who)
        networks: list[Network] = []
        for word in words:
            if word == "private":
                networks += PRIVATE_NETWORKS
            elif word != "always":
                networks.append(ip_network(word, strict=False))
        self._networks = tuple(networks)
        self._unix = "private" in words
        self._known: dict[str, bool] = {}

    def is_trusted(self, exchange: RequestRecord) -> bool:
        """Tell whether the peer of this request is believed; worked out once."""
        trusted = exchange.caller_trusted
        if trusted is None:
            exchange.caller_trusted = False  # a function that raises is not asked again
            exchange.caller_trusted = trusted = self.trusts_peer(exchange.scope, exchange.headers)
        return trusted

    def trusts_peer(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Tell whether the peer of a request is believed; `headers` have lower-case names, and the last value of each.

        What the user's function raises goes to the caller.
        """
        if self.always:
            return True
        if self._function is not None:
            return bool(self._function(scope))
        client = scope.get("client")
        if client and client[0]:
            peer = client[0]
            # no peer of a network has port 0: servers leave it where they have replaced the address
            believed = client[1] != 0 and (self._has(peer) or (self._unix and peer in TEST_CLIENT_HOSTS))
        else:
            peer = None
            believed = self._unix
        if not believed or _FORWARDING_HEADERS.isdisjoint(headers):
            return believed
        named = _forwarded_addresses(scope.get("headers") or ())
        # uvicorn takes the port from the header too, so that a replaced address is known only by being named there
        return bool(named) and peer not in named and all(self._has(address) for address in named)

    def _has(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = address_in(address, self._networks)
            if len(self._known) < MAX_CACHED_PEERS and len(address) <= MAX_CACHED_ADDRESS_LENGTH:
                self._known[address] = known
        return known


def _forwarded_addresses(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the addresses for which proxies say they speak; what is none stays as it is, and is in no network."""
    found: list[str] = []
    for name, value in headers:
        if name not in _CLIENT_ADDRESS_HEADERS:
            continue
        parts = value.decode("latin-1").split(",", MAX_FORWARDED_ADDRESSES)
        if len(parts) > MAX_FORWARDED_ADDRESSES:
            return [""]
        if name == b"forwarded":
            parts = [each for part in parts for each in _FORWARDED_FOR.findall(part)] or [""]
        found += [_without_port(part.strip()) for part in parts]
    return found


def _without_port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if match:
        return match[1]
    return text[1:].partition("]")[0] if text.startswith("[") else text
