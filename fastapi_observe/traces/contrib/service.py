"""`ContribTracingService`: the server span as opentelemetry-instrumentation-asgi describes it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fastapi_observe.internal.opentelemetry import Placeholder, SpanFactory, current_context, pass_real_span
from fastapi_observe.records.request import CONTEXT_KEY
from fastapi_observe.settings.sources import SettingsError
from fastapi_observe.traces.contrib.guard import ContribGuard, ContribSpan
from fastapi_observe.traces.pending import PendingServerSpan
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext
    from opentelemetry.util.types import Attributes
    from starlette.types import ASGIApp, Receive, Scope, Send

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.redaction.redactor import Redactor
    from fastapi_observe.settings.model import ObserveSettings

RESERVED: Final = frozenset({"app", "tracer", "tracer_provider"})
"""Arguments of contrib's middleware that `contrib_options` cannot have."""

CAPTURED_HEADERS: Final = frozenset(
    {
        "http_capture_headers_server_request",
        "http_capture_headers_server_response",
        "http_capture_headers_sanitize_fields",
    }
)
"""Arguments with regular expressions for names of headers."""


class ContribTracingService(TracingService):
    """Makes the server span of a request as always, and leaves its description to contrib's middleware.

    Ids, sampling and trust are decided before that middleware runs. It gets the span in place of a new one, names it,
    sets attributes and status, and ends it.
    """

    def __init__(
        self, settings: ObserveSettings, internal_errors: InternalErrors, redactor: Redactor | None = None
    ) -> None:
        contrib = _ContribProvider()
        self._middleware = _make_middleware(settings, contrib)  # first: if it fails, no provider is made
        super().__init__(settings, internal_errors, redactor)
        self._server_tracer = contrib.tracer.inner = self.provider.get_tracer(*contrib.names)
        self._server_factory: SpanFactory | None = None
        if self._factory is not None:
            self._server_factory = SpanFactory(
                self.tracer,  # type: ignore[arg-type]  # of the SDK where there is a factory
                InstrumentationScope(*contrib.names),
                self.provider,  # type: ignore[arg-type]
                self._factory.limits,
            )

    def wrap_app(self, app: ASGIApp) -> ASGIApp:
        """Put contrib's middleware around an app."""
        return ContribGuard(self._middleware, app, self._internal_errors)

    def _start(
        self,
        factory: SpanFactory,
        record: RequestRecord,
        context: Context,
        parent: SpanContext | None,
        links: tuple[Link, ...],
    ) -> None:
        server_factory = None if record.job else self._server_factory
        super()._start(server_factory or factory, record, context, parent, links)

    def _join(self, provider: trace.TracerProvider) -> None:
        before = self._server_tracer
        super()._join(provider)
        self._server_tracer = before  # of the replaced provider, which passes on to the new one

    def _request_attributes(self, record: RequestRecord) -> dict[str, Any]:
        return super()._request_attributes(record) if record.job else {}

    def on_response_start(self, record: RequestRecord) -> None:
        """Do nothing: contrib's middleware sets the status."""

    def _end_server_span(self, span: Span, record: RequestRecord) -> None:
        pending = record.span
        if record.job or not record.span_adopted:  # contrib's middleware was not reached, or excludes the URL
            if not record.job:
                span.set_attributes(super()._request_attributes(record))
            super()._end_server_span(span, record)
        elif type(pending) is PendingServerSpan:  # `span` was made from it
            span.update_name(pending.name)
            span.end(record.started_ns + int(record.duration * 1e9))


class _ContribProvider(trace.TracerProvider):
    """Gives contrib's middleware a tracer that starts no server spans, and notes its names."""

    def __init__(self) -> None:
        self.names: tuple[str, str | None, str | None, Attributes] = ("asgi", None, None, None)
        self.tracer = _ContribTracer()

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        self.names = instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        return self.tracer


class _ContribTracer(trace.Tracer):
    """The tracer of contrib's middleware, which calls `start_span` for the server span only. `inner` makes spans."""

    def __init__(self) -> None:
        self.inner: trace.Tracer = trace.NoOpTracer()

    def start_span(self, name: str, context: Context | None = None, *arguments: Any, **options: Any) -> Span:
        """Return the server span of the request, or a placeholder if it is another instrumentation's."""
        reference: Any = (current_context() if context is None else context).get(CONTEXT_KEY)
        record: RequestRecord | None = None if reference is None else reference.record
        span = trace.get_current_span(context) if record is None else record.span
        if span is None or not span.get_span_context().is_valid:  # an internal error before
            return self.inner.start_span(name, context, *arguments, **options)
        if record is None or record.span_adopted:
            return Placeholder(span)
        record.span_adopted = True
        span.update_name(name)
        return ContribSpan(span)

    def start_as_current_span(self, *arguments: Any, **options: Any) -> AbstractContextManager[Span]:  # type: ignore[override]
        """Start a span of a message that is received or sent."""
        return self.inner.start_as_current_span(*arguments, **options)


def _make_middleware(settings: ObserveSettings, provider: trace.TracerProvider) -> OpenTelemetryMiddleware:
    """Return contrib's middleware without an app. Raises `SettingsError` for arguments that it does not have."""
    captured = {
        "http_capture_headers_server_request": settings.capture_request_headers,
        "http_capture_headers_server_response": settings.capture_response_headers,
    }
    arguments = {name: list(headers) for name, headers in captured.items() if headers} | settings.contrib_options
    reserved = RESERVED & arguments.keys()
    if reserved:
        raise SettingsError([f"contrib_options: {min(reserved)} is set by install(); remove it"])
    for name in CAPTURED_HEADERS & arguments.keys():
        for pattern in arguments[name] or ():
            try:
                re.compile(pattern)  # contrib does it in each request
            except (TypeError, re.error) as exc:
                message = f"contrib_options: {name} has {pattern!r:.80}, which is not a regular expression ({exc})"
                raise SettingsError([message]) from exc
    try:
        middleware = OpenTelemetryMiddleware(_no_app, tracer_provider=provider, **arguments)
    except (TypeError, ValueError, AttributeError) as exc:
        raise SettingsError([f"contrib_options: {exc}; pass arguments of OpenTelemetryMiddleware only"]) from exc
    pass_real_span(middleware)
    return middleware


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for the app until the middleware stack is built."""
