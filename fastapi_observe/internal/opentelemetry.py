"""Names of OpenTelemetry that are not part of its public API, with a fallback for each."""

from __future__ import annotations

# ruff: noqa: SLF001 - this is the one module that uses these names
import contextlib
import logging
import sys
import threading
import weakref
from functools import cached_property
from random import getrandbits
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from starlette.background import BackgroundTask

from fastapi_observe.internal.forks import register_at_fork
from fastapi_observe.internal.version import REPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextvars import ContextVar

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, SpanLimits
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link
    from opentelemetry.util.types import Attributes, AttributeValue
    from starlette.types import ASGIApp, Receive, Scope, Send


class _ContextFunctions:
    """The interface of a `ContextVar`, on top of OpenTelemetry's public functions."""

    def get(self) -> Context:
        """Return the current context."""
        return otel_context.get_current()

    def set(self, context: Context) -> Any:
        """Make a context the current one. Returns the token for `reset`."""
        return otel_context.attach(context)

    def reset(self, token: Any) -> None:
        """Restore the context that was current before `set`."""
        otel_context.detach(token)


def find_context_variable() -> ContextVar[Context]:
    """Return the variable that holds the current context, or an object with its interface if it cannot be found."""
    token = otel_context.attach(otel_context.get_current())
    otel_context.detach(token)
    return cast("ContextVar[Context]", getattr(token, "var", None) or _ContextFunctions())


def find_span_key() -> str:
    """Return the key of the current span in a context."""
    return next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))


def find_baggage_key() -> str:
    """Return the key of the baggage in a context."""
    return next(iter(baggage.set_baggage("key", "value", Context())))


def find_suppression_key() -> str:
    """Return the context key that switches instrumentation off; a key without effect if it cannot be found."""
    key: str | None = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", None)
    if key is None:
        logging.getLogger("fastapi_observe").warning(
            "This version of opentelemetry-api has no key to suppress instrumentation: instrumented HTTP libraries may "
            "record spans for exports. %s",
            REPORT,
        )
    return key or otel_context.create_key("suppress_instrumentation")


# The public functions look up the context implementation and add a call for each get, set and reset of a request.
OTEL_CONTEXT: Final = find_context_variable()
"""The context variable that holds the current OpenTelemetry context."""

# Bound methods: Python compiles the call of a method of an imported name to one that makes a bound method each time.
current_context: Final = OTEL_CONTEXT.get
attach_context: Final = OTEL_CONTEXT.set
detach_context: Final = OTEL_CONTEXT.reset

SPAN_KEY: Final = find_span_key()
"""Key of the current span in an OpenTelemetry context."""

BAGGAGE_KEY: Final = find_baggage_key()
"""Key of the baggage in an OpenTelemetry context."""

SUPPRESSION_KEY: Final = find_suppression_key()
"""Context key that switches instrumentation off."""


# OpenTelemetry lets the global tracer provider be set once. `install` must not use that up: a provider that the user
# sets later has to replace its own, and after `close()` there must be none. So the global is set without its `Once`,
# and the `Once` is wrapped to learn of a provider that is set later.


class _WatchedOnce:
    """Runs the callbacks of `GlobalProvider` after the global tracer provider was set."""

    def __init__(self, once: Any, on_set: Callable[[], None]) -> None:
        self._once = once
        self._on_set = on_set

    def do_once(self, function: Callable[[], None]) -> bool:
        """Call `function` unless the provider was set before. Returns whether it was called."""
        is_first: bool = self._once.do_once(function)
        if is_first:
            self._on_set()
        return is_first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._once, name)


class _Offer(NamedTuple):
    """The provider of an installed app. Weak, so that an app that was never closed can be freed."""

    provider: weakref.ref[trace.TracerProvider]
    on_replaced: weakref.WeakMethod[Callable[[trace.TracerProvider], None]]


class GlobalProvider:
    """The global tracer provider, which installed apps fill until the user sets one."""

    def __init__(self) -> None:
        self._offers: list[_Offer] = []

    def offer(
        self, provider: trace.TracerProvider, on_replaced: Callable[[trace.TracerProvider], None]
    ) -> Callable[[], None]:
        """Make a provider the global one if there is none. Returns a function that reverts this.

        `on_replaced`, a method, is called with the provider that the user sets later.
        """
        if not (hasattr(trace, "_TRACER_PROVIDER") and hasattr(trace, "_TRACER_PROVIDER_SET_ONCE")):
            if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
                trace.set_tracer_provider(provider)
            return lambda: None
        self._offers = [offer for offer in self._offers if offer.provider() is not None]
        entry = _Offer(weakref.ref(provider), weakref.WeakMethod(on_replaced))
        self._offers.append(entry)
        if not isinstance(trace._TRACER_PROVIDER_SET_ONCE, _WatchedOnce):
            watched: Any = _WatchedOnce(trace._TRACER_PROVIDER_SET_ONCE, self._on_set)
            trace._TRACER_PROVIDER_SET_ONCE = watched
        if trace._TRACER_PROVIDER is None:
            trace._TRACER_PROVIDER = provider

        def withdraw() -> None:
            if entry in self._offers:
                self._offers.remove(entry)
            if trace._TRACER_PROVIDER is provider:
                others = (offer.provider() for offer in self._offers)
                trace._TRACER_PROVIDER = next((other for other in others if other is not None), None)

        return withdraw

    def _on_set(self) -> None:
        provider = trace._TRACER_PROVIDER
        for offer in self._offers.copy():
            on_replaced = offer.on_replaced()
            if provider is not None and on_replaced is not None:
                on_replaced(provider)


GLOBAL_PROVIDER: Final = GlobalProvider()


def is_instrumented_by_contrib(app: Any) -> bool:
    """Return whether opentelemetry-instrumentation-fastapi or -starlette has instrumented the app."""
    return bool(getattr(app, _CONTRIB_MARK, False))


def mark_as_instrumented(app: Any) -> Callable[[], None]:
    """Keep contrib's FastAPI instrumentation from instrumenting an app later. Returns a function that reverts this.

    Contrib expects Starlette's own outermost middleware and logs an error for any other.
    """
    if is_instrumented_by_contrib(app):
        return lambda: None
    setattr(app, _CONTRIB_MARK, True)
    return lambda: setattr(app, _CONTRIB_MARK, False)


def revert_instrumentor(instrumentor: Any) -> None:
    """Take back what an instrumentor has patched before it failed, which its `uninstrument` does not do."""
    revert = getattr(instrumentor, "_uninstrument", None)
    if revert is not None:
        revert()


def background_task_call(call: Any) -> Any:
    """Return Starlette's `BackgroundTask.__call__` in place of contrib's, which starts a span of its own."""
    if getattr(call, "__module__", "") == "opentelemetry.instrumentation.fastapi":
        return getattr(BackgroundTask, "_otel_original_call", call)
    return call


_CONTRIB_MARK: Final = "_is_instrumented_by_opentelemetry"
_MAX_MIDDLEWARE: Final = 100


def silence_contrib(stack: Any) -> None:
    """Keep contrib's ASGI middleware inside a middleware stack from recording spans of its own.

    Its metrics and hooks stay; `server_request_hook` gets the server span. Its exception handler is taken out: it
    records exceptions, which the server span has already, without redaction.
    """
    contrib = sys.modules.get("opentelemetry.instrumentation.asgi")
    kind = getattr(contrib, "OpenTelemetryMiddleware", None)
    if kind is None:
        return
    outer, middleware = None, stack
    for _ in range(_MAX_MIDDLEWARE):
        inner = getattr(middleware, "app", None)
        if inner is None:
            return
        if type(middleware).__module__ == "opentelemetry.instrumentation.fastapi" and outer is not None:
            outer.app = inner
        else:
            if isinstance(middleware, kind):
                _silence(middleware)
            outer = middleware
        middleware = inner


def _silence(middleware: Any) -> None:
    middleware.tracer = _NoSpans()
    middleware.app = RestoreSpan(middleware.app)
    pass_real_span(middleware)


def pass_real_span(middleware: Any) -> None:
    """Call the hook of contrib's middleware with the span that a `Placeholder` replaces.

    What the hook raises is recorded there and goes no further, as in newer versions of contrib.
    """
    hook = getattr(middleware, "server_request_hook", None)
    if not callable(hook):
        return

    def call_hook(span: trace.Span, scope: Scope) -> None:
        real = getattr(span, "replaced", span)
        try:
            hook(real, scope)
        except Exception as exc:  # noqa: BLE001 - code of the user
            real.record_exception(exc)

    middleware.server_request_hook = call_hook


class Placeholder(NonRecordingSpan):
    """The span that contrib's middleware gets instead of a new one. Its context is that of the current span."""

    def __init__(self, replaced: trace.Span) -> None:
        super().__init__(replaced.get_span_context())
        self.replaced = replaced


class _NoSpans(trace.Tracer):
    """A tracer for contrib's middleware that starts no spans."""

    def start_span(self, name: str, context: Context | None = None, *_: Any, **__: Any) -> trace.Span:  # noqa: ARG002
        """Return a placeholder for the current span."""
        return Placeholder(trace.get_current_span(context))

    @contextlib.contextmanager
    def start_as_current_span(self, name: str, *_: Any, **__: Any) -> Iterator[trace.Span]:  # type: ignore[override]
        """Yield a placeholder for the current span, which stays the current one."""
        yield self.start_span(name)


class RestoreSpan:
    """ASGI middleware inside contrib's. Makes the span that was replaced the current one again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app."""
        context = current_context()
        current = context.get(SPAN_KEY)
        if not isinstance(current, Placeholder):
            await self.app(scope, receive, send)
            return
        token = attach_context(Context({**context, SPAN_KEY: current.replaced}))
        try:
            await self.app(scope, receive, send)
        finally:
            with contextlib.suppress(ValueError):  # closed in another task, whose context needs no restoring
                detach_context(token)


# The span of a sampled request or operation is the SDK's span, made and ended at a fraction of its cost. The SDK calls
# the sampler, checks every attribute and copies the span when it ends. Here the sampling decision is made already, the
# attributes are ours, and an ended span cannot be changed. `is_sdk_compatible` checks whether the installed SDK builds
# its span in the same way; if not, the SDK makes all spans.

_HAS_ON_ENDING: Final = hasattr(SpanProcessor, "_on_ending")
"""Whether the SDK notifies span processors before a span ends, as newer versions do."""

FLAGS: Final = tuple(TraceFlags(bits) for bits in range(4))
"""All combinations of the known trace flags: sampled and random (W3C Trace Context, Level 2)."""


_NO_STATE: Final = trace.INVALID_SPAN_CONTEXT.trace_state


# A span context is a tuple of its parts and of whether they are valid. Its class would check them again.


def new_context(
    ids: tuple[str | bytes, str | bytes], bits: int, state: TraceState | None, *, is_remote: bool = False
) -> SpanContext:
    """Return the context of a span. `ids` are valid ones, as hexadecimal digits; `bits` are its flags."""
    flags = FLAGS[bits] if bits < len(FLAGS) else TraceFlags(bits)
    state = _NO_STATE if state is None else state
    return tuple.__new__(SpanContext, (int(ids[0], 16), int(ids[1], 16), is_remote, flags, state, True))


def child_context(parent: SpanContext) -> SpanContext:
    """Return the context of a new span below another one."""
    trace_id, _, _, flags, state, valid = parent
    return tuple.__new__(SpanContext, (trace_id, getrandbits(64), False, flags, state, valid))


class UnsampledSpan(NonRecordingSpan):
    """The server span of a request that is not sampled. Its span context is made when it is first read."""

    def __init__(self, trace_id: str, span_id: str, random: int, state: TraceState | None) -> None:
        self._parts = trace_id, span_id, random, state

    @cached_property
    def _context(self) -> SpanContext:  # type: ignore[override]
        trace_id, span_id, random, state = self._parts
        return new_context((trace_id, span_id), random, state)

    def get_span_context(self) -> SpanContext:
        """Return the span context."""
        return self._context


class SpanFactory:
    """Makes the spans of one tracer. `provider` renames itself after a fork, so its resource is read again."""

    __slots__ = (
        "__weakref__",
        "_provider",
        "limits",
        "max_attribute_length",
        "max_attributes",
        "processor",
        "resource",
        "scope",
    )

    def __init__(
        self, tracer: Tracer, scope: InstrumentationScope, provider: TracerProvider, limits: SpanLimits
    ) -> None:
        self._provider = provider
        self.processor = tracer.span_processor
        self.resource = provider.resource
        self.scope = scope
        self.limits = limits
        self.max_attributes = limits.max_span_attributes
        self.max_attribute_length = limits.max_span_attribute_length
        # Hooks run in the order of registration: the provider was made first, so the child is renamed by then.
        register_at_fork(self, SpanFactory._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self.resource = self._provider.resource

    def start(  # noqa: PLR0913, PLR0917 - the parts of a new span
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        parent_context: Context,
        attributes: dict[str, Any],
        start_time: int,
        kind: SpanKind = SpanKind.SERVER,
    ) -> RecordedSpan:
        """Start a span. `attributes` are short and of OpenTelemetry's types; `start_time` is in nanoseconds."""
        span: RecordedSpan = object.__new__(
            RecordedSpan
        )  # `Span.__new__` is a Python function that costs as much again
        span.set_up(self, name, context, parent, attributes, start_time, kind)
        self.processor.on_start(span, parent_context=parent_context)
        return span

    def start_child(
        self, parent: RecordedSpan, name: str, parent_context: Context, start_time: int, kind: SpanKind
    ) -> RecordedSpan:
        """Start a span below another one, without attributes."""
        above = parent.get_span_context()
        return self.start(name, child_context(above), above, parent_context, {}, start_time, kind)


class RecordedSpan(Span):
    """A span of a sampled trace, made without the SDK's constructor."""

    def set_up(  # noqa: PLR0913, PLR0917 - the parts of a new span
        self,
        factory: SpanFactory,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
        start_time: int,
        kind: SpanKind,
    ) -> None:
        """Set all attributes of a new span."""
        ReadableSpan.__init__(
            self,
            name,
            context,
            parent,
            factory.resource,
            kind=kind,
            start_time=start_time,
            instrumentation_scope=factory.scope,
        )
        self._sampler = self._trace_config = self._record_end_metrics = None
        self._record_exception = self._set_status_on_exception = True
        self._span_processor = factory.processor
        self._limits = factory.limits
        self._lock = threading.Lock()
        self._factory = factory
        self._trusted = attributes
        self._attributes = attributes

    def set_trusted_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes without checking them. They are short, few and of OpenTelemetry's types."""
        self._trusted.update(attributes)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        self._limit_attributes()
        super().set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute."""
        self._limit_attributes()
        super().set_attribute(key, value)

    def end(self, end_time: int | None = None) -> None:
        """End the span as the SDK does."""
        self._limit_attributes()
        super().end(end_time)

    def _limit_attributes(self) -> None:
        """Put the attributes into those of the SDK, which check each new one. Most spans have trusted ones only."""
        factory = self._factory
        with self._lock:
            if self._attributes is self._trusted:
                limited = BoundedAttributes(
                    factory.max_attributes, immutable=False, max_value_len=factory.max_attribute_length
                )
                limited._dict = self._trusted
                self._attributes = limited

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event. The list of events is made when it is first needed."""
        if not self._events:
            self._events = BoundedList(self._limits.max_events)
        super().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link. The list of links is made when it is first needed."""
        if not self._links:
            self._links = BoundedList(self._limits.max_links)
        super().add_link(context, attributes)

    def end_operation(self, name: str, attributes: Mapping[str, Any], duration: float) -> None:
        """End the span of an operation that lasted `duration` seconds, with attributes as in the method above."""
        if self._end_time is None:
            self._trusted.update(attributes)
            # Measured with the monotonic clock: the wall clock may have been set in between.
            self.finish(name, (self._start_time or 0) + int(duration * 1e9))

    def finish(self, name: str, end_time: int) -> None:
        """Rename and end the span, and pass it to the span processors without a copy. Idempotent."""
        if self._end_time is not None:
            return
        with self._lock:
            self._name = name
            self._end_time = end_time
            if self._attributes is not self._trusted:
                self._attributes._immutable = True  # type: ignore[union-attr]
        if _HAS_ON_ENDING:
            self._span_processor._on_ending(self)
        self._span_processor.on_end(self)


def is_sdk_compatible(factory: SpanFactory) -> bool:
    """Return whether a `RecordedSpan` can be made, changed and ended with the installed SDK."""
    try:
        span: RecordedSpan = object.__new__(RecordedSpan)
        span.set_up(factory, "GET", trace.INVALID_SPAN_CONTEXT, None, {"a": 1}, 1, SpanKind.SERVER)
        span._span_processor = type(factory.processor)()
        trusted = dict(span.attributes or {})
        span.set_attribute("b", 2)
        span.set_trusted_attributes({"c": 3})
        span.set_status(StatusCode.ERROR)
        span.add_event("event", {"d": 4})
        span.record_exception(ValueError())
        span.add_link(trace.INVALID_SPAN_CONTEXT)
        span.finish("GET /", 2)
        parent = SpanContext(1, 2, is_remote=True, trace_flags=FLAGS[1])
        child = child_context(parent)
        local = new_context(("1", f"{child.span_id:x}"), 1, None)
        expected = SpanContext(1, child.span_id, is_remote=False, trace_flags=FLAGS[1], trace_state=parent.trace_state)
    except Exception:  # noqa: BLE001 - a later SDK may do anything
        return False
    if not child == local == expected or child.span_id == parent.span_id or trusted != {"a": 1}:
        return False
    return dict(span.attributes or {}) == {"a": 1, "b": 2, "c": 3} and bool(span.events) and not span.is_recording()


def replace_attributes(resource: Resource, new: Resource) -> Resource:
    """Return `new`, and give its attributes to `resource` too: tracers keep the resource that they were made with."""
    resource._attributes = new._attributes
    return new


def span_contents(span: ReadableSpan) -> tuple[Mapping[str, Any], Sequence[Event], Sequence[Link]]:
    """Return attributes, events and links of an ended span without the copies that the public properties make."""
    try:
        attributes: Any = span._attributes
        return (attributes if type(attributes) is dict else attributes._dict), span._events, span._links
    except AttributeError:  # no attributes, or names that are gone
        return span.attributes or {}, span.events, span.links


def unwrap_attributes(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the dict inside `BoundedAttributes`, which take a lock for each access and copy to iterate."""
    inner = getattr(attributes, "_dict", None)
    return inner if isinstance(inner, dict) else attributes
