"""An httpx client that measures each call and passes the trace on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httpx
from opentelemetry import propagate

from fastapi_observe.records.exchange import KNOWN_METHODS
from fastapi_observe.records.redaction import redact_query

if TYPE_CHECKING:
    from fastapi_observe.clients.external import ExternalClient

_NOTHING: Final[frozenset[str]] = frozenset()
_PORTS: Final = {"http": 80, "https": 443}


class ObservedClient(httpx.AsyncClient):
    """An `httpx.AsyncClient`: each request is one external call and carries `traceparent` and `baggage`.

    A call lasts until its answer is read, of a streamed one until its headers are there; redirects are part of it.
    """

    # Not a transport: given one, httpx would ignore the proxies of the environment, and those it has would not be seen.

    def __init__(self, external: ExternalClient, service: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._external = external
        self._service = service

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request, measured."""
        url = request.url
        method = request.method if request.method in KNOWN_METHODS else "_OTHER"
        with self._external.call(
            self._service or self._external.service_of(url.host),
            method,
            **{
                "http.request.method": method,
                "server.address": url.host,
                "server.port": url.port or _PORTS.get(url.scheme),
                "url.full": _shown(url),
            },
        ) as call:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            request.headers.update(carrier)
            response = await super().send(request, **options)
            call.status(response.status_code)
            return response


def _shown(url: httpx.URL) -> str:
    """Return a URL without user, password and fragment, every value of its query redacted."""
    query = f"?{redact_query(url.query, _NOTHING)}" if url.query else ""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}{query}"
