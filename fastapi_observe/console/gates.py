"""Access to the console: in development a browser on this machine, elsewhere only a holder of the token."""

from __future__ import annotations

import hmac
import os
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from fastapi_observe.console.token import make_token
from fastapi_observe.requests.trust import find_proxy_header
from fastapi_observe.workers.directory import app_identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope

    from fastapi_observe.settings.model import ObserveSettings

COOKIE: Final = "fastapi_observe_console_"
"""Beginning of the cookie's name; browsers send one host's cookies to all its ports, so the rest is of the app."""
LOCAL_HOST_HEADERS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names in the `Host` header that only a page of this machine's can have: DNS rebinding brings another one."""

MAX_TOKEN_LENGTH: Final = 256


class Gate:
    """Decides for each request of the console. What is refused is left to the app, which responds with 404."""

    def __init__(self, settings: ObserveSettings) -> None:
        given = settings.console_token
        self._development = settings.development
        self._cookie = COOKIE + app_identity(settings.service_name)
        self.token = (
            make_token(settings.multiprocess_directory, settings.service_name)
            if given is None
            else given.get_secret_value()
        )

    def allows(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the client of a request may see the console. Header names are lower case."""
        if scope.get("method") not in {"GET", "HEAD"}:
            return False
        if headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
            return False
        if self.has_token(scope, headers):
            return True
        return self._development and _is_local(scope, headers)

    def has_token(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request carries the token: in its cookie, its query, or as a bearer token."""
        scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return (
            self._matches(_cookie(headers.get(b"cookie", b""), self._cookie))
            or self.has_query_token(scope)
            or (scheme.lower() == "bearer" and self._matches(bearer.strip()))
        )

    def has_query_token(self, scope: Scope) -> bool:
        """Return whether the query of a request carries the token."""
        return self._matches(query_token(scope))

    def _matches(self, given: str) -> bool:
        return 0 < len(given) <= MAX_TOKEN_LENGTH and hmac.compare_digest(given.encode(), self.token.encode())

    def cookie(self, scope: Scope, path: str) -> bytes:
        """Return the `Set-Cookie` header that keeps the token out of the address."""
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{self._cookie}={self.token}; Path={path}; HttpOnly; SameSite=Strict{secure}".encode("latin-1")


def _is_local(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request came from this machine, without a proxy and under a name of this machine."""
    client: Any = scope.get("client")
    if not client or not _is_loopback(client[0]) or find_proxy_header(headers):
        return False
    if scope.get("http_version") == "1.0":  # the default of nginx before 1.29.7
        return False
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name in LOCAL_HOST_HEADERS


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def query_token(scope: Scope) -> str:
    """Return the value of `t` in the query; empty if there is none or more than one."""
    query = scope.get("query_string") or b""
    if len(query) > 2 * MAX_TOKEN_LENGTH:
        return ""
    values = parse_qs(query.decode("latin-1")).get("t", [])
    return values[0] if len(values) == 1 else ""


def _cookie(header: bytes, wanted: str) -> str:
    if len(header) > 16_384:  # noqa: PLR2004 - longer than servers let through
        return ""
    for part in header.decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return value
    return ""


def in_container() -> bool:
    """Return whether the browser is likely to be on another machine than this process."""
    return Path("/.dockerenv").exists() or "CODESPACES" in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ
