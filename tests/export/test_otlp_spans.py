"""Spans as OTLP: the same bytes as OpenTelemetry's encoder, and limits where it has none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from tools import held

from fastapi_observe.export.otlp.spans import MAX_SPAN_NAME_LENGTH, SpanEncoder
from fastapi_observe.export.otlp.wire import (
    MAX_ATTRIBUTE_DEPTH,
    MAX_CACHED_ITEMS,
    MAX_VALUES,
    Attributes,
    encode_any_value,
    key_value,
    varint,
)

RESOURCE = Resource({"service.name": "shop", "service.instance.id": "1"}, "https://example.com/schema")

TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.one_of(TEXTS, st.booleans(), INTEGERS, st.floats(allow_nan=False))
VALUES = st.one_of(
    SCALARS,
    st.lists(TEXTS, max_size=5),
    st.lists(st.booleans(), max_size=5),
    st.lists(INTEGERS, max_size=5),
    st.lists(st.floats(allow_nan=False), max_size=5),
)
ATTRIBUTES = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=150), VALUES, max_size=8)
TRACE_IDS, SPAN_IDS = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
CONTEXTS = st.builds(
    SpanContext,
    TRACE_IDS,
    SPAN_IDS,
    is_remote=st.booleans(),
    trace_flags=st.just(TraceFlags(TraceFlags.SAMPLED)),
    trace_state=st.sampled_from([None, TraceState([("vendor", "1"), ("other", "a b")])]),
)
TIMES = st.integers(0, 2**63)
STATUSES = st.sampled_from([Status(), Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "no")])


def request_of(spans: list[ReadableSpan]) -> bytes:
    """Return a request, encoded as the export queue does."""
    encoder = SpanEncoder(lambda: spans[0].resource)
    return encoder.request([(*encoder.encode(span), 0) for span in spans])


def exporter_of(provider: TracerProvider) -> InMemorySpanExporter:
    """Return an exporter of the spans that end."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@given(
    names=st.lists(TEXTS, min_size=1, max_size=4),
    kind=st.sampled_from(SpanKind),
    parent=st.none() | CONTEXTS,
    attributes=ATTRIBUTES,
    events=st.lists(st.tuples(TEXTS, ATTRIBUTES, TIMES), max_size=3),
    links=st.lists(st.tuples(CONTEXTS, ATTRIBUTES), max_size=3),
    status=STATUSES,
    times=st.tuples(TIMES, TIMES),
    most=st.integers(1, 4),
)
def test_the_bytes_are_those_of_the_sdk(  # noqa: PLR0913, PLR0917 - the parts of a span
    names: list[str],
    kind: SpanKind,
    parent: SpanContext | None,
    attributes: dict[str, Any],
    events: list[tuple[str, dict[str, Any], int]],
    links: list[tuple[SpanContext, dict[str, Any]]],
    status: Status,
    times: tuple[int, int],
    most: int,
) -> None:
    """For any name, ids, flags, times, attributes, events, links, trace state, status and dropped counts."""
    limits = SpanLimits(max_span_attributes=most, max_events=most, max_links=most)
    provider = TracerProvider(resource=RESOURCE, span_limits=limits)
    exporter = exporter_of(provider)
    context = None if parent is None else set_span_in_context(NonRecordingSpan(parent))
    for name in names:
        tracer = provider.get_tracer("scope", "1.0", "https://example.com/scope", {"a": 1})
        span = tracer.start_span(
            name, context, kind, attributes, [Link(at, known) for at, known in links], start_time=times[0]
        )
        for event, known, at in events:
            span.add_event(event, known, at)
        span.set_status(status)
        span.end(times[1])
    spans = [*exporter.get_finished_spans()]
    assert request_of(spans) == encode_spans(spans).SerializeToString()


def test_spans_are_grouped_by_scope() -> None:
    """A request of spans of several tracers has each scope once; a span without a scope is allowed."""
    provider = TracerProvider(resource=Resource({}))
    exporter = exporter_of(provider)
    for name in ("a", "b", "a"):
        provider.get_tracer(name).start_span(name).end()
    spans = [*exporter.get_finished_spans(), ReadableSpan("bare", span_context(), resource=Resource({}))]
    request = ExportTraceServiceRequest.FromString(request_of(spans))
    found = {scope.scope.name: [span.name for span in scope.spans] for scope in request.resource_spans[0].scope_spans}
    assert found == {"a": ["a", "a"], "b": ["b"], "": ["bare"]}


def span_context() -> SpanContext:
    """Return a valid span context."""
    return SpanContext(1, 2, is_remote=False)


def test_requests_may_be_joined() -> None:
    """The bytes of two requests, concatenated, are one request with the spans of both."""
    spans = [ReadableSpan(name, span_context()) for name in ("a", "b")]
    joined = ExportTraceServiceRequest.FromString(request_of(spans[:1]) + request_of(spans[1:]))
    assert [each.scope_spans[0].spans[0].name for each in joined.resource_spans] == ["a", "b"]


def test_names_and_statuses_are_truncated() -> None:
    """The limits of the SDK apply to attributes only."""
    provider = TracerProvider()
    exporter = exporter_of(provider)
    span = provider.get_tracer("t").start_span("n" * 100_000)
    span.add_event("e" * 100_000)
    span.set_status(StatusCode.ERROR, "s" * 100_000)
    span.end()
    message = SpanMessage.FromString(SpanEncoder(lambda: RESOURCE).body(exporter.get_finished_spans()[0]))
    sizes = len(message.name), len(message.events[0].name), len(message.status.message)
    assert sizes == (MAX_SPAN_NAME_LENGTH,) * 3


def message_of(value: Any) -> Any:
    """Encode a value and decode it."""
    message = SpanMessage.FromString(b"\x4a" + varint(len(pair := key_value("k", value))) + pair)
    return message.attributes[0].value


@pytest.mark.parametrize(
    ("value", "kind", "seen"),
    [
        (2**63, "string_value", str(2**63)),
        (-(2**63), "int_value", -(2**63)),
        ("\udce4", "string_value", "\\udce4"),
        (b"\x00\xff", "bytes_value", b"\x00\xff"),
        ({1}, "string_value", "{1}"),
        (None, None, None),
    ],
)
def test_unusual_values(value: Any, kind: str | None, seen: Any) -> None:
    """Values without an OTLP type, and lone surrogates, arrive as strings."""
    message = message_of(value)
    assert message.WhichOneof("value") == kind
    assert kind is None or getattr(message, kind) == seen


def test_long_and_deep_values_are_truncated() -> None:
    """A long list, a long mapping, a list that contains itself, and nested mappings."""
    assert len(message_of(list(range(100_000))).array_value.values) == MAX_VALUES
    assert len(message_of(dict.fromkeys(map(str, range(100_000)))).kvlist_value.values) == MAX_VALUES
    loop: list[Any] = []
    loop.append(loop)
    assert len(encode_any_value(loop)) < 100
    deep: Any = "x"
    for _ in range(MAX_ATTRIBUTE_DEPTH + 1):
        deep = {"k": deep}
    assert b"{'k': 'x'}" in encode_any_value(deep)


def test_the_attribute_cache_is_bounded() -> None:
    """It is emptied when it is full, and pairs are encoded correctly afterwards."""
    attributes = Attributes()
    full = 0
    for number in range(4 * MAX_CACHED_ITEMS):
        attributes.encode(b"\x4a", {f"k{number:06}": f"v{number:06}", "n": True})
        full = max(full, held(attributes) if number == MAX_CACHED_ITEMS - 2 else 0)
    assert 0 < held(attributes) <= 1.5 * full
    encoded = attributes.encode(b"\x4a", {"k1": "v1", "n": 1})
    assert [pair.key for pair in SpanMessage.FromString(encoded).attributes] == ["k1", "n"]
    assert not SpanMessage.FromString(encoded).attributes[1].value.bool_value


def test_equal_values_of_different_types_stay_apart() -> None:
    """The cache of pairs does not take `True` or `1.0` for a cached 1, nor the other way round."""
    attributes = Attributes()
    values: tuple[Any, ...] = (1, True, 1.0, 1, False, 0, 0.0)
    kinds = [
        SpanMessage.FromString(attributes.encode(b"\x4a", {"n": value})).attributes[0].value.WhichOneof("value")
        for value in values
    ]
    assert kinds == [{int: "int_value", bool: "bool_value", float: "double_value"}[type(value)] for value in values]


@pytest.mark.parametrize("bits", [7, 14, 16, 21, 28, 63])
def test_numbers_around_a_power_of_two(bits: int) -> None:
    """Each more seven bits need one more byte; the second time, the bytes may be those of the cache."""
    attributes = Attributes()
    for number in (2**bits - 1, 2**bits - 2, -(2**bits)) * 2:
        encoded = attributes.encode(b"\x4a", {"n": number})
        assert SpanMessage.FromString(encoded).attributes[0].value.int_value == number
