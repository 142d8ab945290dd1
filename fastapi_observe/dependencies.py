"""The `...Dep` aliases: parameters of path operations that FastAPI resolves through the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from opentelemetry.trace import INVALID_SPAN, Span
from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads the annotations

from fastapi_observe.clients.database.client import DatabaseClient
from fastapi_observe.clients.http.external import ExternalClient
from fastapi_observe.logs.service import ObserveLogger
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.middleware import OBSERVABILITY_SCOPE_KEY
from fastapi_observe.observability import Observability
from fastapi_observe.records.request import RECORD_SCOPE_KEY
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    import httpx


def get_request_observability(connection: HTTPConnection) -> Observability:
    """Return the `Observability` of the app that serves this connection.

    Raises `RuntimeError` if nothing is installed.
    """
    found = connection.scope.get(OBSERVABILITY_SCOPE_KEY)
    if found is None:  # no middleware, or it failed
        found = getattr(getattr(connection.scope.get("app"), "state", None), "observe", None)
    if found is None:
        raise RuntimeError("fastapi-observe is not installed on this app; call install(app) where the app is created")
    return found  # type: ignore[no-any-return]


async def _tracing(connection: HTTPConnection) -> TracingService:
    return get_request_observability(connection).tracing


async def _metrics(connection: HTTPConnection) -> MetricsService:
    return get_request_observability(connection).metrics


async def _log(connection: HTTPConnection) -> ObserveLogger:
    return get_request_observability(connection).log


async def _database(connection: HTTPConnection) -> DatabaseClient:
    return get_request_observability(connection).db


async def _external(connection: HTTPConnection) -> ExternalClient:
    return get_request_observability(connection).external


async def _http(connection: HTTPConnection) -> httpx.AsyncClient:
    return get_request_observability(connection).http


async def _span(connection: HTTPConnection) -> Span:
    get_request_observability(connection)
    record = connection.scope.get(RECORD_SCOPE_KEY)
    return INVALID_SPAN if record is None or record.span is None else record.span


async def _observability(connection: HTTPConnection) -> Observability:
    return get_request_observability(connection)


TracingDep = Annotated[TracingService, Depends(_tracing)]
"""Spans: `with tracing.span("price order", items=3):`"""

MetricsDep = Annotated[MetricsService, Depends(_metrics)]
"""Metrics: `metrics.business.order_created()`"""

LogDep = Annotated[ObserveLogger, Depends(_log)]
"""Log lines: `log.info("order placed", order_id=7)`"""

DatabaseDep = Annotated[DatabaseClient, Depends(_database)]
"""Queries: `async with db.query("SELECT", table="orders"):`"""

ExternalDep = Annotated[ExternalClient, Depends(_external)]
"""Calls to other services: `async with external.call("billing", "get_invoice"):`"""

SpanDep = Annotated[Span, Depends(_span)]
"""The server span of this request: `span.set_attribute("shop.tenant", tenant)`"""

ObservabilityDep = Annotated[Observability, Depends(_observability)]
"""The `Observability` of the app: `observe.settings.service_name`"""

if TYPE_CHECKING:
    HttpClientDep = Annotated[httpx.AsyncClient, Depends(_http)]
    """An httpx client shared by the app: `await http.get("https://billing.example/invoices/7")`"""


def __getattr__(name: str) -> Any:
    """Create `HttpClientDep` on first use, because httpx is slow to import."""
    if name == "HttpClientDep":
        import httpx  # noqa: PLC0415 - see above

        return Annotated[httpx.AsyncClient, Depends(_http)]
    raise AttributeError(f"module 'fastapi_observe.dependencies' has no attribute {name!r}")
