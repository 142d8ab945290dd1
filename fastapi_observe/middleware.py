"""The door that every request goes through, and what tells it from inside the app: the seam, the observing handlers."""

from __future__ import annotations

import functools
import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.metrics_endpoint import MetricsEndpoint
from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE, OTEL_CONTEXT, RECORD_SCOPE_KEY
from fastapi_observe.requests.routing import matched_route

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastapi_observe.observability import Observability
    from fastapi_observe.records.request import RequestRecord

OBSERVABILITY_SCOPE_KEY: Final = "fastapi_observe"
"""Key of the `Observability` in the ASGI scope: that of the outermost installed app that measures the request."""


class ObserveMiddleware:
    """Stands outside the whole app: makes the record, opens the signals, calls the app."""

    def __init__(self, app: ASGIApp, observability: Observability) -> None:
        settings = observability.settings
        self.app = app
        self._observability = observability
        self._scraping = MetricsEndpoint(observability)
        self._metrics_path = self._scraping.path
        excluded = PathFilter(settings.exclude_paths, settings.exclude_urls)
        self._excluded = excluded or None

    async def __call__(  # noqa: C901, PLR0912 - the hot path: what is usual is inline
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let a request through, measured once."""
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or RECORD_SCOPE_KEY in scope:  # noqa: PLR1714 - this is the hot path
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        path = scope.get("path", "")
        if (path == self._metrics_path or scope.get("root_path")) and self._scraping.handles(scope):
            await self._scraping(scope, receive, send)
            return
        observability, exchange = self._observability, None
        try:
            scope[OBSERVABILITY_SCOPE_KEY] = observability
            if observability.loop is None:
                observability.on_startup()
            # FastAPI's and Starlette's own telemetry inside (mounted apps, middleware) stand back when they see these.
            if "fastapi.telemetry" not in scope:
                scope["fastapi.telemetry"] = None
            if "starlette.opentelemetry" not in scope:
                scope["starlette.opentelemetry"] = True
            if self._excluded is None or not self._excluded.match(path):
                exchange = observability.start_request(scope, receive, send)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
            observability.internal_errors("open", exc)
        if exchange is None:  # excluded, or we failed
            await self.app(scope, receive, send)
            return
        scope[RECORD_SCOPE_KEY] = exchange
        token = OTEL_CONTEXT.set(exchange.context)  # type: ignore[arg-type]  # `open` made it
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as exc:
            self._leave(exchange, exc)
            self._give_ids(exc, exchange)
            raise
        else:
            if not exchange.reported:
                self._leave(exchange, None)
        finally:
            try:
                exchange.release()
            except Exception as exc:  # noqa: BLE001 - as above
                observability.internal_errors("request.finish", exc)
            scope.pop(RECORD_SCOPE_KEY, None)
            try:  # noqa: SIM105 - suppress() costs more
                OTEL_CONTEXT.reset(token)
            except ValueError:  # closed from another task: there is nothing to restore there
                pass

    def _leave(self, exchange: RequestRecord, raised: BaseException | None) -> None:
        try:
            exchange.finish(raised)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the request
            self._observability.internal_errors("request.finish", exc)

    def _give_ids(self, exc: BaseException, exchange: RequestRecord) -> None:
        try:
            setattr(exc, EXCEPTION_IDS_ATTRIBUTE, (exchange.trace_id, exchange.span_id, exchange.request_id))
        except Exception:  # noqa: BLE001 - an exception may forbid attributes; then the crash log has no ids
            return

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start with the app and flush when it has shut down."""
        observability = self._observability

        async def watched(message: Message) -> None:
            try:
                if message["type"] == "lifespan.startup.complete":
                    observability.on_startup()
                elif message["type"].startswith("lifespan.shutdown."):
                    await observability.on_shutdown()
            except Exception as exc:  # noqa: BLE001 - a fault of ours never stops the app's start or end
                observability.internal_errors("lifespan", exc)
            await send(message)

        await self.app(scope, receive, watched)


class PathFilter:
    """Paths that no signal reports."""

    def __init__(self, paths: tuple[str, ...], patterns: tuple[str, ...]) -> None:
        self._exact = frozenset(path for path in paths if not path.endswith("*"))
        self._prefixes = tuple(path[:-1] for path in paths if path.endswith("*"))
        self._patterns = tuple(re.compile(pattern) for pattern in patterns)
        self._any = bool(paths or patterns)

    def __bool__(self) -> bool:
        return self._any

    def match(self, path: str) -> bool:
        """Tell whether `path` is excluded."""
        return (
            path in self._exact
            or path.startswith(self._prefixes)
            or any(pattern.search(path) for pattern in self._patterns)
        )


class InnerMiddleware:
    """Stands inside all user middleware, if there is any: notes the scope that the router fills and what it raises."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        exchange: RequestRecord | None = scope.get(RECORD_SCOPE_KEY)
        if exchange is None:
            await self.app(scope, receive, send)
            return
        exchange.scope = scope
        try:
            await self.app(scope, receive, send)
        except BaseException as exc:
            exchange.inner_exception = exc
            raise


def wrap_validation_handler(handler: Any) -> Any:
    """Wrap a handler of validation errors: the locations and types of the errors are noted for the exchange."""
    from fastapi_observe.requests.validation import validation_error_locations  # noqa: PLC0415 - only an app with validation

    def note(connection: Any, exc: Any) -> None:
        scope = connection.scope
        exchange: RequestRecord | None = scope.get(RECORD_SCOPE_KEY)
        if exchange is None:
            return
        try:
            exchange.validation_errors = validation_error_locations(exc.errors(), matched_route(scope))
        except Exception as fault:  # noqa: BLE001 - a fault of ours never reaches the request
            exchange.observability.internal_errors("validation", fault)

    called = handler
    while isinstance(called, functools.partial):  # as Starlette looks for what it awaits
        called = called.func
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None)):  # noqa: B004

        async def observing_async(connection: Any, exc: Any) -> Any:
            note(connection, exc)
            return await handler(connection, exc)

        return observing_async

    def observing(connection: Any, exc: Any) -> Any:
        note(connection, exc)
        return handler(connection, exc)

    return observing
