"""`ContribGuard`: contrib's ASGI middleware, whose exceptions do not reach the request.

It decodes headers and queries in ways that a client can make fail, which would be a 500 for any request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.opentelemetry import SPAN_KEY, Placeholder, RestoreSpan, current_context
from fastapi_observe.records.request import RECORD_SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanContext, Status, StatusCode
    from opentelemetry.util.types import Attributes, AttributeValue
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastapi_observe.internal.errors import InternalErrors

CALL_KEY: Final = "fastapi_observe.contrib_call"
"""Key in the ASGI scope of the `_Call` of the request."""


class ContribGuard:
    """ASGI middleware that calls contrib's `middleware` around an app, and the app alone where that fails."""

    def __init__(self, middleware: Any, app: ASGIApp, internal_errors: InternalErrors) -> None:
        self._middleware = middleware
        self._app = app
        self._internal_errors = internal_errors
        middleware.app = _Entry(RestoreSpan(app), internal_errors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, connection or lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        call = _Call(send)
        scope[CALL_KEY] = call
        try:
            await self._middleware(scope, receive, call.send)
        except Exception as exc:
            if exc is call.raised or exc is call.send_error:
                raise
            self._internal_errors("contrib", exc)
            record = scope.get(RECORD_SCOPE_KEY)
            if record is not None:
                record.span_adopted = False  # if the span is still open, this package describes and ends it
            if call.raised is not None:
                raise call.raised from None
            if call.reached:
                return
        else:
            return
        finally:
            scope.pop(CALL_KEY, None)
        await self._app(scope, receive, send)


class ContribSpan(Placeholder):
    """The server span as contrib's middleware gets it.

    Until the app is reached, contrib records exceptions, sets a status and ends the span only if it fails itself. That
    is not the outcome of the request, which is handled without it: the span stays open and as it is.
    """

    app_reached = False

    def __getattr__(self, name: str) -> Any:
        if name == "replaced":  # not set yet
            raise AttributeError(name)
        return getattr(self.replaced, name)

    def is_recording(self) -> bool:
        """Return whether the span records."""
        return self.replaced.is_recording()

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute."""
        self.replaced.set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        self.replaced.set_attributes(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event."""
        self.replaced.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link."""
        self.replaced.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """Change the name."""
        self.replaced.update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status."""
        if self.app_reached:
            self.replaced.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - OpenTelemetry's signature
    ) -> None:
        """Record an exception of the app."""
        if self.app_reached:
            self.replaced.record_exception(exception, attributes, timestamp, escaped)

    def end(self, end_time: int | None = None) -> None:
        """End the span."""
        if self.app_reached:
            self.replaced.end(end_time)


class _Call:
    """What has happened to one request: whether the app was called, what it raised, and what was sent."""

    __slots__ = ("_send", "raised", "reached", "send_error", "sent")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.reached = False
        self.raised: BaseException | None = None
        self.send_error: BaseException | None = None
        self.sent = 0

    async def send(self, message: Message) -> None:
        """Send a message that has passed contrib's middleware."""
        self.sent += 1
        try:
            await self._send(message)
        except BaseException as exc:
            self.send_error = exc
            raise


class _Entry:
    """ASGI middleware directly inside contrib's."""

    def __init__(self, app: RestoreSpan, internal_errors: InternalErrors) -> None:
        self._app = app
        self._internal_errors = internal_errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; a message that contrib's middleware fails to pass on is sent without it."""
        span = current_context().get(SPAN_KEY)
        if isinstance(span, ContribSpan):
            span.app_reached = True
        call: _Call | None = scope.get(CALL_KEY)
        if call is None:
            await self._app(scope, receive, send)
            return

        async def send_message(message: Message) -> None:
            sent = call.sent
            try:
                await send(message)
            except Exception as exc:
                if exc is call.send_error:
                    raise
                self._internal_errors("contrib", exc)
                if call.sent == sent:
                    await call.send(message)

        call.reached = True
        try:
            await self._app(scope, receive, send_message)
        except BaseException as exc:
            call.raised = exc
            raise
