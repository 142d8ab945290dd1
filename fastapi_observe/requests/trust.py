"""`TrustPolicy`: decides whether the caller of a request is trusted, by the address of the TCP peer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Iterator
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

CLIENT_ADDRESS_HEADERS: Final = frozenset(
    {
        # Standards and reverse proxies
        b"forwarded",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-forwarded",
        b"x-forwarded-for",
        b"x-original-forwarded-for",
        b"x-original-remote-addr",
        b"x-real-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"proxy-client-ip",
        b"wl-proxy-client-ip",
        # Service meshes, content delivery networks and platforms
        b"ali-cdn-real-ip",
        b"cdn-src-ip",
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"cf-pseudo-ipv4",
        b"cloudfront-viewer-address",
        b"do-connecting-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"incap-client-ip",
        b"true-client-ip",
        b"x-appengine-remote-addr",
        b"x-appengine-user-ip",
        b"x-azure-clientip",
        b"x-azure-socketip",
        b"x-envoy-external-address",
        b"x-nf-client-connection-ip",
        b"x-sucuri-clientip",
        b"x-vercel-forwarded-for",
    }
)
"""Headers in which proxies send the address of their client."""

PROXY_HEADERS: Final = CLIENT_ADDRESS_HEADERS | {
    b"cdn-loop",
    b"cf-ray",
    b"cf-visitor",
    b"front-end-https",
    b"tailscale-user-login",
    b"via",
    b"x-amz-cf-id",
    b"x-amzn-trace-id",
    b"x-appengine-https",
    b"x-arr-log-id",
    b"x-arr-ssl",
    b"x-azure-fdid",
    b"x-azure-ref",
    b"x-cloud-trace-context",
    b"x-envoy-attempt-count",
    b"x-envoy-decorator-operation",
    b"x-envoy-expected-rq-timeout-ms",
    b"x-envoy-internal",
    b"x-envoy-original-path",
    b"x-original-host",
    b"x-original-uri",
    b"x-original-url",
    b"x-proxyuser-ip",
    b"x-real-port",
    b"x-request-start",
    b"x-scheme",
    b"x-script-name",
    b"x-url-scheme",
    b"x-varnish",
    b"x-vercel-id",
}
"""Headers by which a proxy is recognized, as by every header that begins with `X-Forwarded-`."""

_ANONYMOUS_PROXY_HEADERS: Final = PROXY_HEADERS - CLIENT_ADDRESS_HEADERS
_OLD_VERSIONS: Final = frozenset({"0.9", "1.0"})
_FORWARDED_PREFIX: Final = b"x-forwarded-"
_FORWARDED_FOR: Final = re.compile(r'for="?\[?([^;,"\]]+)', re.IGNORECASE)
_PORT: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+):\d+")


class TrustPolicy:
    """Trusts `always`, `never`, by a function of the scope, or by the networks of the TCP peer.

    `private` means `PRIVATE_NETWORKS`, UNIX sockets and Starlette's test client. Clients can forge forwarding headers,
    so these headers can only take trust away: every address in them must be in the networks too, and a proxy that
    sends no address is not trusted. HTTP/1.0 means a proxy too: nginx sends it before 1.29.7. A peer address
    that the server replaced by one from a header is not trusted either, because the real peer is unknown.

    Whether a proxy or its client has sent an address is unknown. With `trusts_addresses=False` they do not help
    a request that shows otherwise that it came through a proxy.
    """

    __slots__ = ("_function", "_known", "_networks", "_trusts_addresses", "_unix", "always")

    def __init__(self, policy: str | Iterable[str] | Callable[[Any], object], *, trusts_addresses: bool = True) -> None:
        self._trusts_addresses = trusts_addresses
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
            trusted = self._function(scope)
            # Of a function that calls an async one or a generator: it would count as true.
            if isinstance(trusted, Awaitable | Iterator | AsyncIterator):
                kind = type(trusted).__name__
                raise TypeError(f"the function that decides whom to trust returned a {kind}, not whether it does")
            return bool(trusted)
        return self.reason_for_distrust(scope, headers) == ""

    def reason_for_distrust(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """Return why the networks do not include the peer, for a log message; empty if they do."""
        client = scope.get("client") or ("", 0)
        peer: str = client[0] or ""
        if peer and client[1] == 0:
            # Servers that replace the address by one from a header set port 0, which a TCP peer never has.
            return "the server has replaced the peer's address by one from a header"
        if not (self._has(peer) if peer and peer not in TEST_CLIENT_HOSTS else self._unix):
            return "the peer's address is not in the allowed networks"
        is_old_version = scope.get("http_version") in _OLD_VERSIONS
        proxy_header = find_proxy_header(headers)
        if not proxy_header and not is_old_version:
            return ""
        return self._reason_for_proxy(scope, headers, peer, proxy_header, "HTTP/1.0" if is_old_version else "")

    def _reason_for_proxy(
        self, scope: Scope, headers: Mapping[bytes, bytes], peer: str, proxy_header: str, version: str
    ) -> str:
        """Return why the client of a proxy is not trusted; empty if it is. `version` is the old one, if it is one."""
        addresses = _forwarded_addresses(scope.get("headers") or ())
        if not addresses:
            return f"it came through a proxy ({proxy_header or version}) that does not send its client's address"
        # uvicorn takes the port from the header too: a replaced address is recognized because the header has it.
        if peer in addresses or not all(self._has(address) for address in addresses):
            return f"it came through a proxy ({proxy_header}) for a client that is not in the allowed networks"
        sign = find_proxy_header(headers, _ANONYMOUS_PROXY_HEADERS) or version
        if sign and not self._trusts_addresses:
            return f"it came through a proxy ({sign}) whose client can have sent the address in {proxy_header} itself"
        return ""

    def _has(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = address_in(address, self._networks)
            if len(self._known) < MAX_CACHED_PEERS and len(address) <= MAX_CACHED_ADDRESS_LENGTH:
                self._known[address] = known
        return known


def find_proxy_header(headers: Mapping[bytes, bytes], known: frozenset[bytes] = PROXY_HEADERS) -> str:
    """Return a header by which a proxy is recognized, one of `known` or `X-Forwarded-*`; empty if there is none."""
    if known.isdisjoint(headers) and _FORWARDED_PREFIX not in b" ".join(
        headers
    ):  # usually, at a tenth of the loop's cost
        return ""
    for name in headers:
        if name in known:
            return name.decode("latin-1")
        if name.startswith(_FORWARDED_PREFIX) and name not in CLIENT_ADDRESS_HEADERS:
            return "x-forwarded-*"  # the client may choose the rest of the name
    return ""


def _forwarded_addresses(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the client addresses in forwarding headers. Invalid ones are included and are in no network."""
    addresses: list[str] = []
    for name, value in headers:
        if name not in CLIENT_ADDRESS_HEADERS:
            continue
        parts = value.decode("latin-1").split(",", MAX_FORWARDED_ADDRESSES)
        if len(parts) > MAX_FORWARDED_ADDRESSES:
            return [""]
        if name in {b"forwarded", b"x-forwarded"}:
            parts = [each for part in parts for each in _FORWARDED_FOR.findall(part)] or [""]
        addresses += [_without_port(part.strip()) for part in parts]
    return addresses


def _without_port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if match:
        return match[1]
    return text[1:].partition("]")[0] if text.startswith("[") else text
