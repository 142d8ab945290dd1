"""Conclusions of the console: one sentence on how the service does, and a list of what to fix."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.terminal.style import escape_controls
from fastapi_observe.terminal.tree import MAX_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi_observe.console.store import Point
    from fastapi_observe.terminal.spans import SpanRow

MIN_REQUESTS: Final = 5
"""Requests below which nothing is concluded."""

FAILING_RATIO: Final = 0.05
FAILING_MIN_REQUESTS: Final = 20
WARNING_RATIO: Final = 0.01
MAX_LOOP_LAG: Final = 0.05
"""Seconds of event loop lag (95th percentile) above which the state is a warning."""

MAX_FINDINGS: Final = 20


class Health(NamedTuple):
    """`state` is `waiting`, `healthy`, `warning` or `failing`; `reasons` say why."""

    state: str
    text: str
    reasons: list[str]


def sorted_quantile(values: Sequence[float], part: float) -> float:
    """Return a quantile of sorted values; 0 if there are none."""
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def assess_health(points: Sequence[Point], window: float, loop_lag: float, slow_request: float) -> Health:
    """Return the verdict on the requests of the last `window` seconds."""
    if len(points) < MIN_REQUESTS:
        left = MIN_REQUESTS - len(points)
        return Health("waiting", f"Waiting for requests: {left} more until the figures mean something.", [])
    failed = [point for point in points if point.failed]
    ratio = len(failed) / len(points)
    durations = sorted(point.seconds for point in points)
    p95 = sorted_quantile(durations, 0.95)
    reasons = []
    if ratio > WARNING_RATIO:
        reasons.append(f"{ratio:.1%} of the requests failed (more than {WARNING_RATIO:.0%})")
    if p95 > slow_request:
        reasons.append(f"the 95th percentile is {_ms(p95)}, above slow_request_threshold ({_ms(slow_request)})")
    if loop_lag > MAX_LOOP_LAG:
        reasons.append(f"the event loop lags {_ms(loop_lag)} (more than {_ms(MAX_LOOP_LAG)})")
    state = "warning" if reasons else "healthy"
    if ratio > FAILING_RATIO and len(points) >= FAILING_MIN_REQUESTS:
        state = "failing"
    span = min(window, max(1.0, points[-1].time - points[0].time))
    word = {"healthy": "Healthy", "warning": "Worth a look", "failing": "Failing"}[state]
    text = f"{word}: {len(points) / span:.1f} requests/s, {ratio:.1%} errors"
    if failed:
        text += f" (most from {_most_common(failed)})"
    text += f", 95% answered within {_ms(p95)}."
    slowest = max(route_rows(points), key=lambda row: row["p95_ms"])
    text += f" Slowest: {slowest['method']} {slowest['endpoint']}, p95 {slowest['p95_ms']:.0f} ms."
    return Health(state, text, reasons)


def _most_common(points: Iterable[Point]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for point in points:
        counts[f"{point.method} {point.endpoint}"] += 1
    name = max(counts, key=lambda each: counts[each])
    return f"{name}: {counts[name]}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def route_rows(points: Iterable[Point]) -> list[dict[str, Any]]:
    """Return one row for each method and endpoint, by total time: counts, quantiles, and where the time goes."""
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        groups[point.method, point.endpoint].append(point)
    rows = []
    for (method, endpoint), group in groups.items():
        durations = sorted(point.seconds for point in group)
        total = sum(durations)
        database = min(total, sum(point.database for point in group))
        external = min(total - database, sum(point.external for point in group))
        rows.append(
            {
                "method": method,
                "endpoint": endpoint,
                "requests": len(group),
                "failed": sum(point.failed for point in group),
                "p50_ms": round(sorted_quantile(durations, 0.5) * 1000, 1),
                "p95_ms": round(sorted_quantile(durations, 0.95) * 1000, 1),
                "total_ms": round(total * 1000, 1),
                "database_ms": round(database * 1000, 1),
                "external_ms": round(external * 1000, 1),
                "trace_id": max(group, key=lambda point: point.seconds).trace_id,
            }
        )
    return sorted(rows, key=lambda row: -row["total_ms"])


def find_problems(
    summaries: Iterable[dict[str, Any]],
    rows: Iterable[dict[str, Any]],
    slow_statements: Iterable[dict[str, Any]],
    blocked: Iterable[dict[str, Any]] = (),
    server_spans: Iterable[tuple[str, SpanRow]] = (),
) -> list[dict[str, Any]]:
    """Return what to fix, each with its evidence: `title`, `detail`, `trace_id`; one entry for each cause."""
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def add(kind: str, cause: str, title: str, detail: str, trace_id: str) -> None:
        entry = found.setdefault(
            (kind, cause), {"kind": kind, "title": title, "detail": detail, "trace_id": trace_id, "times": 0}
        )
        entry["times"] += 1

    for block in blocked:
        detail = f"{block['ms']} ms in {block['function'] or block['route']}: no other request was served meanwhile"
        add("blocked loop", block["place"], f"{block['place']} blocks the event loop", detail, block["trace_id"])
    for row in rows:
        if row["failed"]:
            name = f"{row['method']} {row['endpoint']}"
            add("failing", name, f"{name} fails", f"{row['failed']} of {row['requests']} requests", row["trace_id"])
    for summary in summaries:
        for repeated in summary.get("repeated") or ():
            detail = f"{repeated['times']} times in one request of {summary['endpoint']}: {repeated['statement']}"
            add("n+1", repeated["statement"], "One statement is repeated (N+1)", detail, summary["trace_id"])
        if summary["failed"] and summary["exception"]:
            first = summary["exception"][0]
            own = next((frame for frame in first["frames"] if frame["own"]), None)
            place = "" if own is None else f" at {own['file']}:{own['line']}"
            add(
                "exception", f"{first['type']}{place}", f"{first['type']}{place}", first["message"], summary["trace_id"]
            )
    for slow in slow_statements:
        place = f" sent at {slow['file']}:{slow['line']}" if slow["file"] else ""
        add(
            "slow statement",
            slow["statement"],
            f"A statement takes {slow['ms']:.0f} ms{place}",
            slow["statement"],
            slow["trace_id"],
        )
    for trace_id, span in server_spans:
        detail = f"{describe_span(span)}: start it with tracing.span or with kind INTERNAL, or remove what starts it"
        add("server span", describe_span(span), "A request has a second server span", detail, trace_id)
    return list(found.values())[:MAX_FINDINGS]


def describe_span(span: SpanRow) -> str:
    """Return the name of a span and of the code that started it."""
    return escape_controls(f"{span.name[:MAX_NAME]} ({span.scope[:MAX_NAME]})")
