"""What it means that span, sample and line agree about every request: `assert_agreement`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.trace import StatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conftest import Seen
    from opentelemetry.sdk.trace import ReadableSpan

FAILED = {"server_error", "cancelled", "incomplete_response"}
NO_ROUTE = {"unmatched", "redirect"}
ROUNDED_MS = 0.0011
"""The line rounds to a microsecond and the span to a nanosecond: they may differ by a microsecond and a bit."""


class Facts(NamedTuple):
    """What is expected of one request, in whichever signal one looks."""

    endpoint: str
    status: int
    outcome: str = "ok"
    error_type: str | None = None
    method: str = "GET"


def facts_of(line: dict[str, Any]) -> Facts:
    """Read the facts from a request line."""
    fields = line["fields"]
    return Facts(
        fields["endpoint"], fields["status_code"], fields["outcome"], fields.get("error_type"), fields["method"]
    )


def http_lines(seen: Seen) -> list[dict[str, Any]]:
    """Every line about an HTTP request."""
    return [line for line in seen.request_lines if line["message"] == "HTTP request completed"]


def websocket_lines(seen: Seen) -> list[dict[str, Any]]:
    """Every line about a WebSocket connection."""
    return [line for line in seen.request_lines if line["message"] == "WebSocket connection closed"]


def assert_agreement(seen: Seen, *expected: Facts) -> list[dict[str, Any]]:
    """Hold that exactly the expected requests were reported, by all three signals, alike; return their lines.

    For each request one server span, one line, one count and one sample each of duration and sizes; nothing is in
    progress, and nothing of ours failed.
    """
    lines = http_lines(seen)
    if expected:
        assert Counter(map(facts_of, lines)) == Counter(expected)
    spans = [span for span in seen.server_spans if not is_websocket(span)]
    pair_up(lines, spans)
    assert_http_samples(seen, lines)
    assert seen.sample("http_requests_in_progress") == 0
    assert seen.observe.internal_errors.counts == {}
    return lines


def assert_websocket_agreement(seen: Seen, *expected: tuple[Facts, str]) -> list[dict[str, Any]]:
    """Hold the same for WebSocket connections; `expected` are the facts and the close code of each."""
    lines = websocket_lines(seen)
    if expected:
        assert Counter((facts_of(line), line["fields"]["close_code"]) for line in lines) == Counter(expected)
    pair_up(lines, [span for span in seen.server_spans if is_websocket(span)])
    by_close: Counter[tuple[str, ...]] = Counter()
    durations: dict[tuple[str, ...], list[float]] = {}
    messages: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        fields = line["fields"]
        key = (fields["endpoint"], fields["close_code"])
        by_close[key] += 1
        durations.setdefault(key, []).append(fields["duration_ms"])
        if fields["status_code"] == 101:
            messages[fields["endpoint"], "received"] += fields["messages_received"]
            messages[fields["endpoint"], "sent"] += fields["messages_sent"]
    name, labels = "websocket_connection_duration_seconds", ("endpoint", "close_code")
    assert by_labels(seen, f"{name}_count", *labels) == by_close
    assert_sums(seen, name, labels, durations, 1000.0)
    assert by_labels(seen, "websocket_messages_total", "endpoint", "direction") == +messages
    assert seen.total("websocket_connections_active") == 0
    assert seen.observe.internal_errors.counts == {}
    return lines


def is_websocket(span: ReadableSpan) -> bool:
    """Return whether a server span is that of a WebSocket connection."""
    return (span.attributes or {}).get("network.protocol.name") == "websocket"


def pair_up(lines: Sequence[dict[str, Any]], spans: Sequence[ReadableSpan]) -> None:
    """Hold that each line has exactly one server span, that it names it, and that both say the same."""
    by_id = {span_ids(span): span for span in spans}
    assert len(by_id) == len(spans) == len(lines)
    assert {(line["trace_id"], line["span_id"]) for line in lines} == by_id.keys()
    for line in lines:
        assert_same(line, by_id[line["trace_id"], line["span_id"]])


def span_ids(span: ReadableSpan) -> tuple[str, str]:
    """Return trace id and span id as lines show them."""
    at = span.get_span_context()
    assert at is not None
    return format(at.trace_id, "032x"), format(at.span_id, "016x")


def assert_same(line: dict[str, Any], span: ReadableSpan) -> None:
    """Hold that a line and its span say the same about their request."""
    fields, attributes = line["fields"], dict(span.attributes or {})
    assert attributes["http.request.method"] == fields["method"]
    assert attributes["http.response.status_code"] == fields["status_code"]
    assert attributes.get("error.type") == fields.get("error_type")
    assert attributes["http.request.body.size"] == fields["request_size"]
    assert attributes["http.response.body.size"] == fields["response_size"]
    matched = fields["endpoint"] not in NO_ROUTE
    assert attributes.get("http.route") == (fields["endpoint"] if matched else None)
    shown = "HTTP" if fields["method"] == "_OTHER" else fields["method"]
    assert span.name == (f"{shown} {fields['endpoint']}" if matched else shown)
    failed = fields["outcome"] in FAILED
    assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert (fields["outcome"] in {"ok", "client_error"}) == ("error_type" not in fields)
    assert line["level"] == {"ok": "info"}.get(fields["outcome"], "error" if failed else "warn")
    assert span.end_time is not None
    assert span.start_time is not None
    assert abs((span.end_time - span.start_time) / 1e6 - fields["duration_ms"]) <= ROUNDED_MS
    events = [dict(event.attributes or {}) for event in span.events if event.name == "exception"]
    assert ("exception" in line) == bool(events)
    if events:
        assert events[-1]["exception.type"] == line["exception"]["type"]


def assert_http_samples(seen: Seen, lines: Iterable[dict[str, Any]]) -> None:
    """Hold that every metric about requests is what the lines add up to."""
    counts: Counter[tuple[str, ...]] = Counter()
    errors: Counter[tuple[str, ...]] = Counter()
    sums: dict[str, dict[tuple[str, ...], list[float]]] = {
        "duration_ms": {},
        "request_size": {},
        "response_size": {},
        "ttfb_ms": {},
    }
    for line in lines:
        fields = line["fields"]
        route = (fields["method"], fields["endpoint"])
        counts[*route, str(fields["status_code"])] += 1
        if "error_type" in fields:
            errors[*route, fields["error_type"]] += 1
        for name, kept in sums.items():
            if name in fields:
                kept.setdefault(route, []).append(fields[name])
    route_labels = ("method", "endpoint")
    assert by_labels(seen, "http_requests_total", *route_labels, "status_code") == counts
    assert by_labels(seen, "http_request_errors_total", *route_labels, "error_type") == errors
    assert_sums(seen, "http_request_duration_seconds", route_labels, sums["duration_ms"], 1000.0)
    assert_sums(seen, "http_time_to_first_byte_seconds", route_labels, sums["ttfb_ms"], 1000.0)
    assert_sums(seen, "http_request_size_bytes", route_labels, sums["request_size"], 1.0)
    assert_sums(seen, "http_response_size_bytes", route_labels, sums["response_size"], 1.0)


def assert_sums(
    seen: Seen, name: str, labels: tuple[str, ...], values: dict[tuple[str, ...], list[float]], scale: float
) -> None:
    """Hold that a histogram has one sample for each value, and their sum; `scale` is values for one of its units."""
    assert by_labels(seen, f"{name}_count", *labels) == {key: len(kept) for key, kept in values.items()}
    for key, total in by_labels(seen, f"{name}_sum", *labels).items():
        rounding = 0.0 if scale == 1.0 else len(values[key]) * ROUNDED_MS
        assert abs(total * scale - sum(values[key])) <= rounding, (name, key)


def by_labels(seen: Seen, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of one series name that are not 0, by the values of `labels`."""
    found = {tuple(dict(key)[label] for label in labels): value for key, value in seen.samples(name).items()}
    return {key: value for key, value in found.items() if value}
