"""`ContribGuard`: contrib's ASGI middleware, whose exceptions do not reach the request.

It decodes headers and queries in ways that a client can make fail, which would be a 500 for any request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.opentelemetry import RestoreSpan
from fastapi_observe.records.request import RECORD_SCOPE_KEY

if TYPE_CHECKING:
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
