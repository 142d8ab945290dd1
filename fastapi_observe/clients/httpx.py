"""An httpx transport that measures each call and passes the trace on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry import propagate

if TYPE_CHECKING:
    from fastapi_observe.clients.external import ExternalClient

MOST_SERVICES = 100
"""Different hosts that become a `service` label of their own; the others are called `other`."""


class ObservedTransport(httpx.AsyncBaseTransport):
    """Wraps another transport: each request is one external call and carries `traceparent` and `baggage`."""

    def __init__(self, external: ExternalClient, inner: httpx.AsyncBaseTransport, service: str | None = None) -> None:
        self._external = external
        self._inner = inner
        self._service = service
        self._hosts: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the duration ends with the response's headers."""
        url = request.url
        with self._external.call(
            self._service or self._host(url.host),
            request.method,
            **{"http.request.method": request.method, "server.address": url.host, "url.path": url.path},
        ) as call:
            headers: dict[str, str] = {}
            propagate.inject(headers)
            request.headers.update(headers)
            response = await self._inner.handle_async_request(request)
            call.status(response.status_code)
            return response

    def _host(self, host: str) -> str:
        if host not in self._hosts and len(self._hosts) >= MOST_SERVICES:
            return "other"
        self._hosts.add(host)
        return host

    async def aclose(self) -> None:
        """Close the wrapped transport."""
        await self._inner.aclose()


def observed_client(external: ExternalClient, service: str | None = None, **options: Any) -> httpx.AsyncClient:
    """Return an `httpx.AsyncClient` whose calls are measured; `options` are its own."""
    inner = options.pop("transport", None) or httpx.AsyncHTTPTransport(
        **{name: options.pop(name) for name in ("verify", "cert", "http1", "http2", "limits") if name in options}
    )
    return httpx.AsyncClient(transport=ObservedTransport(external, inner, service), **options)
