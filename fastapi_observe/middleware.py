"""`ObserveMiddleware` around the whole app, and `InnerMiddleware` inside the user's middleware."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.fastapi import TELEMETRY_SCOPE_KEY
from fastapi_observe.internal.opentelemetry import attach_context, detach_context
from fastapi_observe.internal.starlette import OPENTELEMETRY_SCOPE_KEY
from fastapi_observe.metrics_endpoint import MetricsEndpoint
from fastapi_observe.records.request import CONTEXT_KEY, EXCEPTION_IDS_ATTRIBUTE, RECORD_SCOPE_KEY
from fastapi_observe.requests.routing import ENTRY_ROOT_SCOPE_KEY, matched_route

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastapi_observe.console.console import Console
    from fastapi_observe.observability import Observability
    from fastapi_observe.records.request import RequestRecord

OBSERVABILITY_SCOPE_KEY: Final = "fastapi_observe.observability"
"""Key in the ASGI scope of the `Observability` of the outermost installed app, which measures the request."""


class ObserveMiddleware:
    """The outermost ASGI middleware. Creates the record of a request, calls the app and reports the request once."""

    def __init__(self, app: ASGIApp, observability: Observability, console: Console | None = None) -> None:
        self.app = app
        self._observability = observability
        self._metrics_endpoint = MetricsEndpoint(observability)
        self._metrics_path = self._metrics_endpoint.path
        self._filter = observability.filter or None
        self._console = console

    async def __call__(  # noqa: C901, PLR0912, PLR0915 - hot path: the common branches are inline
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Handle one request, connection or lifespan."""
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or RECORD_SCOPE_KEY in scope:  # noqa: PLR1714 - hot path
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        path = scope.get("path", "")
        excluded = 0
        if path == self._metrics_path or scope.get("root_path"):
            handler = self._metrics_endpoint.handler(scope)
            if handler is not None:
                await handler(scope, receive, send)
                return
            excluded = self._enter_root_path(scope)
        if self._console is not None and self._console.handles(scope):
            await self._console(scope, receive, send)
            return
        observability, record, context = self._observability, None, None
        try:
            scope[OBSERVABILITY_SCOPE_KEY] = observability
            if observability.loop is None:
                observability.on_startup()
            # The telemetry of FastAPI and Starlette in mounted apps and middleware does nothing if these are set.
            if TELEMETRY_SCOPE_KEY not in scope:
                scope[TELEMETRY_SCOPE_KEY] = None
            if OPENTELEMETRY_SCOPE_KEY not in scope:
                scope[OPENTELEMETRY_SCOPE_KEY] = True
            if self._filter is None:
                record = observability.start_request(scope, receive, send, excluded)
            else:
                excluded |= self._filter.excluded_signals(scope)
                if excluded & observability.all_signals == observability.all_signals:
                    context = observability.exclude_request()
                else:
                    record = observability.start_request(scope, receive, send, excluded)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
            observability.internal_errors("request.start", exc)
        if record is None:  # excluded, or an internal error
            await self._call_unreported(context, scope, receive, send)
            return
        scope[RECORD_SCOPE_KEY] = record
        token = attach_context(record.context)  # type: ignore[arg-type]  # set by `start_request`
        try:
            await self.app(scope, record.receive, record.send)
        except BaseException as exc:
            self._finish(record, exc)
            self._attach_ids(exc, record)
            raise
        else:
            if not record.reported:
                self._finish(record, None)
        finally:
            try:
                record.release()
            except Exception as exc:  # noqa: BLE001 - as above
                observability.internal_errors("request.finish", exc)
            scope.pop(RECORD_SCOPE_KEY, None)
            try:  # noqa: SIM105 - suppress() costs more
                detach_context(token)
            except ValueError:  # closed in another task, whose context has nothing to restore
                pass

    def _enter_root_path(self, scope: Scope) -> int:
        """Return the signals that do not report a request with a `root_path`, or one for the metrics."""
        excluded = self._metrics_endpoint.excluded_signals(scope)
        if scope.get("root_path"):
            if "app_root_path" in scope:  # by a mount outside the app: it says where the outermost app begins
                scope[ENTRY_ROOT_SCOPE_KEY] = scope["root_path"]
            if self._filter is not None:
                excluded |= self._filter.excluded_below_root(scope)
        return excluded

    async def _call_unreported(self, context: Context | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app without a record, in the context of an excluded request if there is one."""
        if context is None:
            await self.app(scope, receive, send)
            return
        token = attach_context(context)
        try:
            await self.app(scope, receive, send)
        finally:
            context[CONTEXT_KEY].fields = None  # type: ignore[attr-defined]  # the context may outlive the request
            with contextlib.suppress(ValueError):  # closed in another task, whose context has nothing to restore
                detach_context(token)

    def _finish(self, record: RequestRecord, raised: BaseException | None) -> None:
        try:
            record.finish(raised)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
            self._observability.internal_errors("request.finish", exc)

    def _attach_ids(self, exc: BaseException, record: RequestRecord) -> None:
        try:
            setattr(exc, EXCEPTION_IDS_ATTRIBUTE, (record.trace_id, record.span_id, record.request_id))
        except Exception:  # noqa: BLE001 - an exception may forbid attributes; the server's crash log then has no ids
            return

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start with the app, and flush after it has shut down."""
        observability = self._observability

        async def send_and_follow(message: Message) -> None:
            try:
                if message["type"] == "lifespan.startup.complete":
                    observability.on_startup()
                elif message["type"].startswith("lifespan.shutdown."):
                    await observability.on_shutdown()
            except Exception as exc:  # noqa: BLE001 - an internal error never stops the app's startup or shutdown
                observability.internal_errors("lifespan", exc)
            await send(message)

        await self.app(scope, receive, send_and_follow)


class InnerMiddleware:
    """The innermost middleware. Gives the record the scope that the router fills, and the exception that it raises.

    The user's middleware may replace the scope and handle the exception, so the outer middleware may see neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        record: RequestRecord | None = scope.get(RECORD_SCOPE_KEY)
        if record is None:
            await self.app(scope, receive, send)
            return
        record.scope = scope
        try:
            await self.app(scope, receive, send)
        except BaseException as exc:
            record.inner_exception = exc
            raise


def wrap_validation_handler(handler: Any) -> Any:
    """Wrap the app's handler of validation errors: their locations and types are recorded before it is called."""
    from fastapi_observe.requests.validation import validation_error_locations  # noqa: PLC0415 - only with FastAPI

    def record_errors(connection: Any, exc: Any) -> None:
        scope = connection.scope
        record: RequestRecord | None = scope.get(RECORD_SCOPE_KEY)
        if record is None:
            return
        try:
            record.validation_errors = validation_error_locations(exc.errors(), matched_route(scope))
        except Exception as error:  # noqa: BLE001 - an internal error never reaches the request
            record.observability.internal_errors("validation", error)

    function = handler
    while isinstance(function, functools.partial):  # as Starlette decides whether to await
        function = function.func
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        async def handle_async(connection: Any, exc: Any) -> Any:
            record_errors(connection, exc)
            return await handler(connection, exc)

        return handle_async

    def handle(connection: Any, exc: Any) -> Any:
        record_errors(connection, exc)
        return handler(connection, exc)

    return handle
