"""Spans of a request that the head sampler did not choose, held until the request ends.

Whether they are exported is decided then (tail sampling). Until then a span is a plain object: no sampler and no span
processor is called, and no attribute is checked. If the request is kept, each of them becomes a `RecordedSpan` with the
ids that were already sent downstream and written on log lines. Otherwise they are discarded.
"""

from __future__ import annotations

from collections import OrderedDict
from math import floor
from time import time_ns
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from fastapi_observe.internal.opentelemetry import FLAGS, child_context, new_context
from fastapi_observe.records.request import CONTEXT_KEY
from fastapi_observe.traces.context import RANDOM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, TraceState
    from opentelemetry.util.types import Attributes, AttributeValue

    from fastapi_observe.internal.opentelemetry import RecordedSpan, SpanFactory
    from fastapi_observe.records.operation import Operation

    FinishOperation = Callable[[RecordedSpan, Operation, int], None]

MAX_PENDING_SPANS: Final = 1000
"""Ended spans that one request holds. The oldest are dropped and counted: the last ones lead to the failure."""

MAX_PENDING_BYTES: Final = 1_048_576
"""Approximate bytes of attributes and events that one request holds; what exceeds them is counted and dropped."""

MAX_TOTAL_BYTES: Final = 64 * 1_048_576
"""Approximate bytes that all requests in progress of one worker hold."""

MAX_HELD_EXCEPTIONS: Final = 8
"""Exceptions that one request holds as objects, with their frames. Further ones are formatted at once."""

MAX_KEPT_IDS: Final = 1000
"""Traces whose id is remembered after they were kept, the newest ones."""

MAX_TEXT_LENGTH: Final = 8192
"""Characters of one held text. The limits of the recorded span are lower."""

TAIL_SAMPLED: Final = "fastapi_observe.tail_sampled"
"""Attribute of server spans: why the trace was exported."""

SPAN_BYTES: Final = 512
"""Bytes that a span counts for without its attributes."""

ITEM_BYTES: Final = 64
"""Bytes that an attribute, event or exception counts for in addition to its text."""


_new_object: Final = object.__new__


def _finish_operation(span: RecordedSpan, operation: Operation, end_time: int) -> None:
    span.finish(operation.name, end_time)


class PendingTotal:
    """What all requests in progress hold: the bytes, and the traces that may go on in another request or job.

    Threads may change it at the same time: the sum is approximate. `finish_operation` describes and ends the span of an
    operation, which is exported.
    """

    __slots__ = ("_kept", "finish_operation", "held", "open")

    def __init__(self) -> None:
        self.finish_operation: FinishOperation = _finish_operation
        self.held = 0
        self.open: WeakValueDictionary[int, PendingTrace] = WeakValueDictionary()
        self._kept: OrderedDict[int, str] = OrderedDict()

    def remember(self, trace_id: int, reason: str) -> None:
        """Remember why a trace was kept, for parts of it that start later."""
        self._kept[trace_id] = reason
        if len(self._kept) > MAX_KEPT_IDS:
            self._kept.popitem(last=False)

    def reason_to_keep(self, trace_id: int) -> str | None:
        """Return why an earlier part of a trace was kept; None if none was."""
        return self._kept.get(trace_id)


class PendingTrace:
    """The spans of one request, and what was decided about them.

    There are three states: undecided, kept (for a `reason`), and discarded. In any thread, a span that ends is appended
    before the state is read, and `keep` sets the state before it empties the list, so that no span is lost in between.
    `pop` is atomic, so that no span is exported twice.

    If a request calls its own app, both are `parts` of one pending trace: it is kept with the first part that has a
    reason, and discarded when the last part has ended.
    """

    __slots__ = ("__weakref__", "_bytes", "_ended", "_exceptions", "_total", "discarded", "dropped", "parts", "reason")

    def __init__(self, total: PendingTotal) -> None:
        self._ended: list[tuple[PendingSpan, Operation | None]] = []
        self._total = total
        self._bytes = 0
        self._exceptions = 0
        self.dropped = 0
        self.reason: str | None = None
        self.discarded = False
        self.parts: list[PendingServerSpan] | None = None

    def start_span(  # noqa: PLR0913, PLR0917 - the parts of a new span
        self,
        parent_span: PendingSpan,
        factory: SpanFactory,
        name: str,
        kind: SpanKind,
        start_time: int,
        start_context: Context,
    ) -> PendingSpan | None:
        """Start a span. If too much is held already, it is counted as dropped, and None is returned."""
        if self.discarded:
            return None
        total = self._total
        if total.held > MAX_TOTAL_BYTES:
            self.dropped += 1
            return None
        self._bytes += SPAN_BYTES
        total.held += SPAN_BYTES
        # Not by calling the class, which costs as much again. What most spans do not change is left to the class.
        span: PendingSpan = _new_object(PendingSpan)
        span.trace = self
        span.parent_span = parent_span
        span.factory = factory
        span.name = name
        span.kind = kind
        span.start_time = start_time
        span.start_context = start_context
        return span

    def holds_exception(self) -> bool:
        """Return whether one more exception may be held as an object."""
        self._exceptions += 1
        return self._exceptions <= MAX_HELD_EXCEPTIONS

    def reserve(self, size: int) -> bool:
        """Return whether a text of `size` characters may be held. If not, it is counted as dropped."""
        if self.discarded:
            return False
        size += ITEM_BYTES
        if self._bytes + size > MAX_PENDING_BYTES or self._total.held > MAX_TOTAL_BYTES:
            self.dropped += 1
            return False
        self._hold(size)
        return True

    def __del__(self) -> None:
        self._release()

    def _hold(self, size: int) -> None:
        self._bytes += size
        self._total.held += size

    def _release(self) -> None:
        self._total.held -= self._bytes
        self._bytes = 0

    def add(self, span: PendingSpan, operation: Operation | None = None) -> None:
        """Take a span that has ended. With `operation`, end it first; the operation describes it if it is exported."""
        if operation is not None:
            if span.end_time is not None:
                return
            # Measured with the monotonic clock: the wall clock may have been set in between.
            span.end_time = span.start_time + floor(operation.duration * 1e9)
        self._ended.append((span, operation))
        if self.reason is not None:
            self._export()
        elif self.discarded:
            self._ended.clear()
        elif len(self._ended) > MAX_PENDING_SPANS:
            self.dropped += 1
            self._hold(-self._ended.pop(0)[0].held_bytes)

    def keep(self, reason: str) -> None:
        """Export the ended spans now, and each later span when it ends."""
        self.reason = reason
        self._export()
        self._release()

    def discard(self) -> None:
        """Forget the ended spans, and record no further ones."""
        self.discarded = True
        self._ended.clear()
        self._release()

    def _export(self) -> None:
        ended = []
        while self._ended:
            try:
                ended.append(self._ended.pop(0))
            except IndexError:  # another thread took the last one
                break
        # Processors get the starts in their order, parents first, and the ends in their order.
        starts = sorted((span for span, _ in ended), key=lambda span: span.start_time)
        recorded = {id(span): span.start_recording() for span in starts}
        for span, operation in ended:
            end_time = span.end_time or span.start_time
            if operation is None:
                recorded[id(span)].finish(span.name, end_time)
            else:
                self._total.finish_operation(recorded[id(span)], operation, end_time)


DISCARDED: Final = PendingTrace(PendingTotal())
"""The trace of every request without spans that is not sampled."""
DISCARDED.discard()


class PendingSpan(trace.Span, ReadableSpan):
    """A span that is recorded only if tail sampling keeps its request.

    Its context says "not sampled", as the trace context sent to downstream services did. Attributes are held as they
    are given and checked when the span is recorded; a list is copied, since the caller may change it. It has the
    attributes of the SDK's span, which code that sees `is_recording()` may read; events, links and status are empty
    until it is recorded.
    """

    trace: PendingTrace
    """The spans of the request. Of a server span it is None until `pending` is read."""
    parent_span: PendingSpan
    factory: SpanFactory
    start_context: Context
    # They replace the properties of the SDK's span. Each span sets its own `kind`: were the default of the class an
    # enum member, Python 3.11 would take several times as long to set it.
    name: str = ""
    kind: SpanKind = None  # type: ignore[assignment]
    start_time: int = 0
    end_time: int | None = None
    status = Status()
    events: tuple[Any, ...] = ()
    links: Sequence[Link] = ()
    held_bytes = SPAN_BYTES
    _context: SpanContext | None = None
    _attributes: dict[str, Any] | None = None
    _changes: list[Callable[[RecordedSpan], object]] | None = None
    _keeps_exceptions = True
    _sets_status = True

    # OpenTelemetry's API

    @property
    def pending(self) -> PendingTrace:
        """The spans of the request."""
        return self.trace

    @property
    def context(self) -> SpanContext:
        """The span context, made when it is first read."""
        # Not a `cached_property`, which takes a lock. `setdefault` is atomic: two threads may read it at once.
        return self._context or self.__dict__.setdefault("_context", self._make_context())

    @property
    def parent(self) -> SpanContext | None:
        """The context of the parent span."""
        return self.parent_span.context

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes set so far."""
        return self._attributes or {}

    @property
    def resource(self) -> Resource:
        """The resource of the tracer provider."""
        return self.factory.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """The scope of the tracer."""
        return self.factory.scope

    def get_span_context(self) -> SpanContext:
        """Return the span context. Its flags say "not sampled"."""
        return self.context

    def is_recording(self) -> bool:
        """Return whether a change may still be exported."""
        return self.end_time is None and not self.pending.discarded

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute."""
        self.set_attributes({key: value})

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        if self.end_time is not None:
            return
        held = self._attributes
        if held is None:
            held = self._attributes = {}
        for key, value in attributes.items():
            cut = value[:MAX_TEXT_LENGTH] if type(value) is str else value
            if self._reserve(len(key) + _text_length(cut)):
                held[key] = tuple(cut) if type(cut) is list else cut

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event that happens now, or at `timestamp` (nanoseconds)."""
        at = time_ns() if timestamp is None else timestamp
        held = {
            key: value[:MAX_TEXT_LENGTH] if type(value) is str else value for key, value in (attributes or {}).items()
        }
        size = len(name) + sum(len(key) + _text_length(value) for key, value in held.items())
        self.change(lambda span: span.add_event(name, held, at), size)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link."""
        self.change(lambda span: span.add_link(context, attributes))

    def update_name(self, name: str) -> None:
        """Change the name."""
        if self.end_time is None:
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status. It is never dropped."""
        self.change(lambda span: span.set_status(status, description), None)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - OpenTelemetry's signature
    ) -> None:
        """Record an exception. The stack trace of the first ones is formatted only if the span is recorded."""
        at = time_ns() if timestamp is None else timestamp
        if self.pending.holds_exception():
            self.change(lambda span: span.record_exception(exception, attributes, at, escaped))
            return
        held = {
            "exception.type": type(exception).__qualname__,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(format_exception(exception))[-MAX_TEXT_LENGTH:],
            "exception.escaped": str(escaped),
            **(attributes or {}),
        }
        self.add_event("exception", held, at)

    def end(self, end_time: int | None = None) -> None:
        """End the span at `end_time` (nanoseconds), or now. Idempotent."""
        if self.end_time is None:
            self.end_time = time_ns() if end_time is None else end_time
            self.pending.add(self)

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        """End the span. An exception that leaves its block is recorded, as the SDK does."""
        if exc is not None and self.is_recording():
            if self._keeps_exceptions:
                self.record_exception(exc)
            if self._sets_status:
                self.set_status(Status(StatusCode.ERROR, f"{type(exc).__name__}: {exc}"))
        self.end()

    # Internal

    def _make_context(self) -> SpanContext:
        return child_context(self.parent_span.context)

    def _reserve(self, size: int) -> bool:
        if not self.pending.reserve(size):
            return False
        self.held_bytes += size + ITEM_BYTES
        return True

    def set_exception_handling(self, *, record: bool, set_status: bool) -> None:
        """Set what happens if an exception leaves the `with` block of the span."""
        if not (record and set_status):
            self._keeps_exceptions, self._sets_status = record, set_status

    def change(self, change: Callable[[RecordedSpan], object], size: int | None = 0) -> None:
        """Apply `change` to the recorded span, if there will be one. It holds `size` characters until then.

        A change without a size is small and never dropped.
        """
        if self.end_time is None and (size is None or self._reserve(size)):
            if self._changes is None:
                self._changes = []
            self._changes.append(change)

    def start_recording(self) -> RecordedSpan:
        """Start the span that is exported: the same ids with the sampled flag. Span processors see its start."""
        started_in = self.start_context
        if CONTEXT_KEY in started_in:
            # The span has the fields that the request had at its start. A processor would set those of its end.
            started_in = Context({**started_in, CONTEXT_KEY: None})
        return self._record(started_in, {})

    def _record(self, context: Context, attributes: dict[str, Any]) -> RecordedSpan:
        """Start the span that is exported, and make all changes of this span on it, in their order."""
        parent = self.parent
        span = self.factory.start(
            self.name,
            sampled(self.context),
            parent and sampled(parent),
            context,
            attributes,
            self.start_time,
            self.kind,
        )
        if self._attributes:
            span.set_attributes(self._attributes)
        for change in self._changes or ():
            change(span)
        return span


class PendingServerSpan(PendingSpan):
    """The server span of a request that the head sampler did not choose.

    Most of them are discarded untouched, so that everything but the ids is made when it is first needed, and what only
    a trace of another service has is left to the class.
    """

    kind = SpanKind.SERVER
    parent: SpanContext | None = None
    trace: PendingTrace | None = None  # type: ignore[assignment]
    """The spans of the request; None until the first one starts, or the trace may go on in another request."""
    start_context = Context()
    _flags = RANDOM
    _state: TraceState | None = None

    def __init__(
        self, ids: tuple[str, str], start_time: int, name: str, factory: SpanFactory, total: PendingTotal
    ) -> None:
        self._ids = ids
        self.start_time = start_time
        self.name = name
        self.factory = factory
        self._total = total

    def continue_trace(self, parent: SpanContext, flags: int) -> None:
        """Continue the trace of `parent`, and join the request of this process that this one is called from."""
        self.parent, self._flags, self._state = parent, flags, parent.trace_state
        self._join(parent)

    @property
    def pending(self) -> PendingTrace:
        """The spans of the request, made when they are first needed."""
        # As in `context`: the first two spans may start in two threads at once.
        return self.trace or self.__dict__.setdefault("trace", PendingTrace(self._total))

    def _make_context(self) -> SpanContext:
        context = new_context(self._ids, self._flags, self._state)
        # From now on the trace may go on in another request or job of this process.
        pending = self.pending
        if pending.parts is None and not pending.discarded:
            pending.parts = [self]
            self._total.open[context.trace_id] = pending
        return context

    def _join(self, parent: SpanContext) -> None:
        """Become a part of the pending trace of the request that this one is called from, if it is in progress here."""
        pending = self._total.open.get(parent.trace_id)
        # What starts after a trace was kept has to find a place in the allowance: its caller chooses the trace.
        if pending is not None and pending.parts is not None and pending.reason is None:
            pending.parts.append(self)
            if not pending.discarded:  # by another thread
                self.trace = pending

    @property
    def kept_before(self) -> str | None:
        """The reason for which an earlier part of the trace was kept; None if none was."""
        return None if self.parent is None else self._total.reason_to_keep(self.parent.trace_id)

    def end(self, end_time: int | None = None) -> None:
        """Take no more changes. Whether the span is recorded, and as what, is decided when its request ends."""
        if self.end_time is None:
            self.end_time = time_ns() if end_time is None else end_time

    def keep(self, reason: str, context: Context, attributes: dict[str, Any]) -> RecordedSpan:
        """Start the span that is exported, and export all spans of its trace."""
        self.end_time = self.start_time
        span = self._record(context, {**attributes, TAIL_SAMPLED: reason})
        pending = self.pending
        pending.keep(reason)
        self._total.remember(self.context.trace_id, reason)
        self._leave(pending)
        if pending.dropped:
            span.set_trusted_attributes({"fastapi_observe.dropped_items": pending.dropped})
        return span

    def discard(self) -> bool:
        """Discard the span and all spans of its trace, unless another part of it is in progress. Returns whether it is.

        That part decides about this one, which then has to be described and ended.
        """
        if self._leave(self.pending):
            return True
        self.pending.discard()
        return False

    def reopen(self, kind: SpanKind, context: Context) -> None:
        """Allow changes again. `context` is the one in which the span started."""
        self.kind, self.start_context, self.end_time = kind, context, None

    def _leave(self, pending: PendingTrace) -> bool:
        """End this part of a trace. Returns whether there are others."""
        if pending.parts is None:
            return False
        pending.parts.remove(self)
        if pending.parts:
            return True
        self._total.open.pop(self.context.trace_id, None)
        return False

    def start_recording(self) -> RecordedSpan:
        """Start the span that is exported because another part of its trace is."""
        return self._record(self.start_context, {TAIL_SAMPLED: self.pending.reason})

    def _record(self, context: Context, attributes: dict[str, Any]) -> RecordedSpan:
        span = super()._record(context, attributes)
        for link in self.links:
            span.add_link(link.context)
        return span


def sampled(context: SpanContext) -> SpanContext:
    """Return a context with the sampled flag set. A remote context is returned as it is: it is the caller's."""
    if context.is_remote:
        return context
    return SpanContext(
        context.trace_id,
        context.span_id,
        is_remote=False,
        trace_flags=FLAGS[context.trace_flags & 2 | 1],
        trace_state=context.trace_state,
    )


def _text_length(value: object) -> int:
    """Return about how many characters an attribute value holds."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(map(_text_length, value[:1024]))
    return 8
