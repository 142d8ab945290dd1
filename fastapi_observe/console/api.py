"""Responses of the console's endpoints: JSON for the page and for shells, made from the store on each request."""

from __future__ import annotations

import os
import platform
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.console.advice import assess_health, describe_span, find_problems, route_rows, sorted_quantile
from fastapi_observe.doctor.app import check_app, check_exports, check_open_requests
from fastapi_observe.doctor.check import run_checks
from fastapi_observe.doctor.process import check_log_file, check_settings, check_versions
from fastapi_observe.internal import json
from fastapi_observe.internal.version import package_version
from fastapi_observe.terminal.style import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_observe.console.store import Store, Trace
    from fastapi_observe.doctor.check import Check
    from fastapi_observe.observability import Observability
    from fastapi_observe.terminal.spans import SpanRow

WINDOW: Final = 300.0
"""Seconds that the figures of the page cover."""

MAX_SUMMARIES: Final = 300
"""Summaries in one answer; a page that has none asks again."""

MAX_SCATTER: Final = 2000
"""Points in one answer."""

REQUEST_RATE_WINDOW: Final = 10.0
"""Seconds for the request rate: over minutes, a burst would look like nothing."""

MIN_PREFIX: Final = 4
"""Digits of a trace id that are enough to ask for it."""

_KINDS: Final = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_STATUSES: Final = {"UNSET": 0, "OK": 1, "ERROR": 2}


class Api:
    """Makes the JSON responses for one app."""

    def __init__(self, observability: Observability, store: Store, instance: str) -> None:
        self._observability = observability
        self._store = store
        self._instance = instance
        self._started = time()

    def live(self, since: int, instance: str) -> dict[str, Any]:
        """Return what has changed since an earlier response; everything if that came from another process."""
        if instance != self._instance or since > self._store.seq:
            since = 0
        settings = self._observability.settings
        points = self._store.recent_points(WINDOW)
        rows = route_rows(points)
        lag = self._loop_lag()
        verdict = assess_health(points, WINDOW, lag, settings.slow_request_threshold)
        summaries = self._store.summaries(since)
        return {
            "instance": self._instance,
            "seq": self._store.seq,
            "now": int(time() * 1000),
            "service": {
                "name": settings.service_name,
                "environment": settings.environment,
                "version": settings.service_version,
                "pid": os.getpid(),
                "workers": self._observability.workers.live_workers,
                "up": int(time() - self._started),
            },
            "held": self._store.counts(),
            "verdict": verdict._asdict(),
            "tiles": self._tiles(points, lag),
            "routes": rows[:100],
            "problems": find_problems(
                self._store.summaries(),
                rows,
                list(self._store.slow_statements),
                list(self._store.blocked),
                self._store.nested_server_spans(),
            ),
            "requests": summaries[:MAX_SUMMARIES],
            "points": [
                [int(point.time * 1000), round(point.seconds * 1000, 3), point.status, point.trace_id]
                for point in points
                if point.seq > since
            ][-MAX_SCATTER:],
            "running": list(self._store.running.values())[:50],
            "exports": self._exports(),
        }

    def _tiles(self, points: list[Any], lag: float) -> dict[str, Any]:
        durations = sorted(point.seconds for point in points)
        now = time()
        recent = sum(point.time >= now - REQUEST_RATE_WINDOW for point in points)
        return {
            "rate": round(recent / REQUEST_RATE_WINDOW, 2),
            "requests": len(points),
            "failed": sum(point.failed for point in points),
            "client_errors": sum(400 <= point.status < 500 for point in points),  # noqa: PLR2004 - 4xx
            "p50_ms": round(sorted_quantile(durations, 0.5) * 1000, 1),
            "p95_ms": round(sorted_quantile(durations, 0.95) * 1000, 1),
            "p99_ms": round(sorted_quantile(durations, 0.99) * 1000, 1),
            "in_progress": len(self._store.running),
            "loop_lag_ms": round(lag * 1000, 1),
            "budgets": [
                {"name": each.name, "remaining": each.remaining, "burn_rates": each.burn_rates}
                for each in self._budgets()
            ],
        }

    def _loop_lag(self) -> float:
        """Return the 95th percentile of the event loop's lag, in seconds, as its histogram knows it."""
        buckets = self._observability.saturation.lag.buckets()
        total = buckets[-1][1] if buckets else 0
        for bound, count in buckets:
            if total and count >= 0.95 * total:
                return 0.0 if bound == "+Inf" else float(bound)
        return 0.0

    def _budgets(self) -> list[Any]:
        budgets = self._observability.objectives.budgets
        return [] if budgets is None else budgets.now()

    def _exports(self) -> list[dict[str, Any]]:
        """Return for each exported signal how much was sent and dropped, and whether the Collector responds."""
        found = []
        for name, counts in self._observability.export_counts():
            read = counts()
            found.append(
                {
                    "signal": name,
                    "exported": read.exported,
                    "dropped": sum(read.dropped.values()),
                    "queued": read.queued,
                    "failed_requests": sum((read.failures or {}).values()),
                }
            )
        return found

    def _find(self, name: str) -> Trace | None:
        """Return a trace by its id, the start of it, or `last`, `slow` or `failed`; None if it is not held."""
        return self._store.trace(name) or self._store.trace(self._find_id(name))

    def _find_id(self, name: str) -> str:
        summaries = self._store.summaries()
        if name == "slow":
            summaries = [each for each in summaries if each["kind"] == "http"]
            summaries.sort(key=lambda each: each["duration_ms"] if each["ttfb_ms"] is None else each["ttfb_ms"])
            summaries.reverse()
        elif name == "failed":
            summaries = [each for each in summaries if each["failed"]]
        elif name != "last":
            usable = len(name) >= MIN_PREFIX
            summaries = [each for each in summaries if usable and each["trace_id"].startswith(name)]
        return summaries[0]["trace_id"] if summaries else ""

    def trace(self, name: str) -> dict[str, Any] | None:
        """Return one trace: its spans by start, its log lines, and its summaries; None if it is not held.

        `name` is its id, at least the first four digits of it, or `last`, `slow` or `failed`.
        """
        trace = self._find(name)
        if trace is None:
            return None
        lines = [parsed for parsed in map(_parse, trace.lines) if parsed is not None]
        return {
            "trace_id": trace.trace_id,
            "summaries": sorted(trace.summaries, key=lambda summary: summary["time"]),
            "spans": [span._asdict() for span in sorted(trace.spans, key=lambda span: span.start)],
            "lines": sorted(lines, key=lambda line: str(line.get("timestamp", ""))),
            "dropped_spans": trace.dropped_spans,
            "dropped_lines": trace.dropped_lines,
        }

    def otlp(self, name: str) -> dict[str, Any] | None:
        """Return one trace as OTLP/JSON, to be opened elsewhere; None if it is not held."""
        trace = self._find(name)
        return None if trace is None else to_otlp(trace, self._observability.settings.service_name)

    def info(self) -> dict[str, Any]:
        """Return versions, limits and what `doctor` finds without sending anything."""
        names = ("fastapi-observe", "fastapi", "starlette", "opentelemetry-sdk", "uvicorn")
        return {
            "instance": self._instance,
            "python": platform.python_version(),
            "versions": {name: package_version(name) for name in names},
            "held": self._store.counts(),
            "exports": self._exports(),
            "checks": [check._asdict() for check in self._checks()],
        }

    def _checks(self) -> list[Check]:
        observability, settings = self._observability, self._observability.settings
        names = [describe_span(row) for _, row in self._store.nested_server_spans()]
        return run_checks(
            check_versions,
            partial(check_settings, settings),
            partial(check_exports, observability),
            partial(check_open_requests, observability),
            partial(check_log_file, settings),
            partial(check_app, observability, dict.fromkeys(names)),
        )

    def summary(self) -> str:
        """Return the verdict, the problems and the routes as text, for terminals."""
        live = self.live(0, "")
        lines = [live["verdict"]["text"], *(f"  {reason}" for reason in live["verdict"]["reasons"]), ""]
        lines += [f"{each['title']} ({each['times']}x): {each['detail']}" for each in live["problems"]]
        lines += ["", f"{'requests':>8} {'failed':>6} {'p50 ms':>8} {'p95 ms':>8}  route"]
        for row in live["routes"]:
            lines.append(
                f"{row['requests']:8} {row['failed']:6} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f}  "
                f"{row['method']} {row['endpoint']}"
            )
        return "\n".join(map(escape_controls, lines)) + "\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def to_otlp(trace: Trace, service: str) -> dict[str, Any]:
    """Return a trace in the JSON encoding of OTLP (`ExportTraceServiceRequest`)."""
    scopes: dict[str, list[dict[str, Any]]] = {}
    for span in trace.spans:
        scopes.setdefault(span.scope, []).append(_otlp_span(span, trace.trace_id))
    resource = {"attributes": _otlp_attributes({"service.name": service})}
    groups = [{"scope": {"name": name}, "spans": spans} for name, spans in scopes.items()]
    return {"resourceSpans": [{"resource": resource, "scopeSpans": groups}]}


def _otlp_span(span: SpanRow, trace_id: str) -> dict[str, Any]:
    return {
        "traceId": trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "name": span.name,
        "kind": _KINDS.get(span.kind, 0),
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _otlp_attributes(span.attributes),
        "events": [
            {"timeUnixNano": str(at), "name": name, "attributes": _otlp_attributes(held)}
            for at, name, held in span.events
        ],
        "status": {"code": _STATUSES.get(span.status, 0)},
    }


def _otlp_attributes(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _otlp_value(value)} for key, value in attributes.items()]


def _otlp_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    items: Iterable[Any] = value
    return {"arrayValue": {"values": [_otlp_value(item) for item in items]}}
