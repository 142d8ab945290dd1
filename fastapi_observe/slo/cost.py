"""The cost of an app's telemetry, estimated from one scrape: by metric, by route, and possible savings."""

from __future__ import annotations

import re
from math import isfinite
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.formats.metric_names import PROMETHEUS, SEMCONV
from fastapi_observe.slo.datasources import SECONDS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

MAX_COST_ROWS: Final = 15
"""Metrics and routes that are listed one by one."""

SIZE_METRICS: Final = tuple(
    size for names in (PROMETHEUS, SEMCONV) for size in (names.request_size, names.response_size)
)
DURATIONS: Final = (PROMETHEUS.duration, SEMCONV.duration)
REQUEST_METRICS: Final = (PROMETHEUS.requests, SEMCONV.requests)
ENDPOINT_LABELS: Final = (PROMETHEUS.endpoint, SEMCONV.endpoint)
"""A scrape does not say which `metric_names` it has, so both are read."""

DEFAULT_REGISTRY_METRICS: Final = (
    "python_info",
    "python_gc_collections_total",
    "python_gc_objects_collected_total",
    "python_gc_objects_uncollectable_total",
)
PROBE_ROUTE: Final = re.compile(r"/(health|live|ready|ping|status|heartbeat)(z|check|ness|y)?$")
"""Common names of routes for health checks."""

MIN_UPTIME: Final = 1.0
"""Shortest assumed uptime of a process, in seconds, for finite rates."""


class Prices(NamedTuple):
    """Prices of a million samples, log lines and spans; 0 if unknown."""

    samples: float = 0.0
    lines: float = 0.0
    spans: float = 0.0


class ScrapeTotals:
    """The totals of one scrape: its size, series by metric and route, and what was exported since the start."""

    def __init__(self) -> None:
        self.bytes = 0
        self.series: dict[str, int] = {}
        self.routes: dict[str, int] = {}
        self.buckets: dict[str, int] = {}
        self.exported: dict[str, float] = {}
        self.requests = 0.0
        self.started: float | None = None

    def count_bytes(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines and add up their bytes."""
        for line in lines:
            self.bytes += len(line.encode()) + 1
            yield line

    def add(self, family: Metric) -> None:
        """Add a metric, or another part of one."""
        name = f"{family.name}_total" if family.type == "counter" else family.name
        self.series[name] = self.series.get(name, 0) + len(family.samples)
        for sample in family.samples:
            route = next((sample.labels[label] for label in ENDPOINT_LABELS if label in sample.labels), None)
            if route is not None:
                self.routes[route] = self.routes.get(route, 0) + 1
            if "le" in sample.labels:
                self.buckets[name] = self.buckets.get(name, 0) + 1
            if not isfinite(sample.value):  # it would turn the sums below into NaN
                continue
            if name == "fastapi_observe_exported_total":
                signal = sample.labels.get("signal", "")
                self.exported[signal] = self.exported.get(signal, 0.0) + sample.value
            elif sample.name in REQUEST_METRICS:
                self.requests += sample.value
            elif name == "process_start_time_seconds":
                self.started = min(sample.value, self.started or sample.value)


def estimate_cost(
    totals: ScrapeTotals, interval: float, prices: Prices, *, bytes_per_line: float, now: float | None = None
) -> dict[str, Any]:
    """Return the estimate; `interval` is the scrape interval in seconds, prices are for a month of 30 days."""
    total = sum(totals.series.values())
    daily = SECONDS_PER_DAY / interval
    elapsed = None if totals.started is None else max((time() if now is None else now) - totals.started, MIN_UPTIME)
    lines = None if elapsed is None else totals.exported.get("logs", 0.0) * SECONDS_PER_DAY / elapsed
    spans = None if elapsed is None else totals.exported.get("traces", 0.0) * SECONDS_PER_DAY / elapsed
    requests = None if elapsed is None else totals.requests * SECONDS_PER_DAY / elapsed
    return {
        "series": total,
        "scrape_interval_seconds": interval,
        "scrape_bytes": totals.bytes,
        "samples_per_day": round(total * daily),
        "scrape_bytes_per_day": round(totals.bytes * daily),
        "running_for_seconds": None if elapsed is None else round(elapsed),
        "requests_per_day": _rounded(requests),
        "log_lines_per_day": _rounded(lines),
        "log_bytes_per_day_estimated": _rounded(None if lines is None else lines * bytes_per_line),
        "spans_per_day": _rounded(spans),
        "price_per_month": {
            "samples": _money(total * daily, prices.samples),
            "lines": _money(lines, prices.lines),
            "spans": _money(spans, prices.spans),
        },
        "metrics": _parts(totals.series, total, daily, prices),
        "routes": _parts(totals.routes, total, daily, prices),
        "savings": [*_savings(totals, total, daily, lines, requests, spans)],
    }


def _parts(series: dict[str, int], total: int, daily: float, prices: Prices) -> list[dict[str, Any]]:
    largest = sorted(series.items(), key=lambda each: (-each[1], each[0]))
    return [
        {
            "name": name,
            "series": count,
            "share": round(count / total, 4),
            "samples_per_day": round(count * daily),
            "price_per_month": _money(count * daily, prices.samples),
        }
        for name, count in largest
    ]


def _savings(  # noqa: PLR0913, PLR0917 - the totals of each signal
    totals: ScrapeTotals, total: int, daily: float, lines: float | None, requests: float | None, spans: float | None
) -> Iterator[dict[str, Any]]:
    """Yield what can be switched off, what that saves and what it loses; savings in series first, largest first."""
    savings: list[dict[str, Any]] = []

    def series(what: str, count: int, loses: str) -> None:
        if count:
            share = round(count / total, 4)
            saves = {"series": count, "share": share, "samples_per_day": round(count * daily)}
            savings.append({"what": what, "loses": loses, **saves})

    series(
        "size_histograms=False",
        sum(totals.series.get(name, 0) for name in SIZE_METRICS),
        "request and response sizes; spans and log lines still have them",
    )
    bounds = sum(totals.buckets.get(name, 0) for name in DURATIONS)
    series(
        "duration_buckets with half the bounds",
        bounds // 2,
        "precision of quantiles; thresholds of objectives stay exact",
    )
    series(
        "include_default_registry=False",
        sum(totals.series.get(name, 0) for name in DEFAULT_REGISTRY_METRICS),
        "python_info, python_gc_*, and your own metrics in prometheus_client's default registry",
    )
    for route, count in totals.routes.items():
        if PROBE_ROUTE.search(route):
            series(f"exclude_paths={[route]}", count, "everything about it; health checks are not requests of users")
    savings.sort(key=lambda each: -int(each["series"]))
    yield from savings
    if lines and requests:
        count = round(min(lines, requests))
        loses = "the log line of each request; warnings and errors of your own code stay"
        yield {"what": "log_requests=False", "loses": loses, "lines_per_day": count}
    if spans:
        loses = "half of the traces"
        yield {"what": "half the sample_ratio", "loses": loses, "spans_per_day": round(spans / 2)}


def as_text(found: dict[str, Any]) -> str:
    """Write an estimate as text."""
    each, daily = f"{found['scrape_interval_seconds']:g} s", _size(found["scrape_bytes_per_day"])
    lines = [
        f"{found['series']:,} series, {found['samples_per_day']:,} samples per day at a scrape interval of {each}",
        f"{found['scrape_bytes']:,} bytes per scrape before compression, {daily} per day",
    ]
    if found["running_for_seconds"] is None:
        lines.append("The scrape has no process start time, so log lines and spans per day are unknown")
    else:
        lines.append(
            f"{found['log_lines_per_day']:,} log lines per day, about {_size(found['log_bytes_per_day_estimated'])}; "
            f"{found['spans_per_day']:,} spans per day (from the {found['running_for_seconds']:,} s since the start)"
        )
    money = {what: price for what, price in found["price_per_month"].items() if price is not None}
    if money:
        lines.append("Per month: " + ", ".join(f"{price:,.2f} for {what}" for what, price in money.items()))
    for heading, key in (("metric", "metrics"), ("route", "routes")):
        parts = found[key]
        width = max([len(heading), *(len(each["name"]) for each in parts[:MAX_COST_ROWS])])
        priced = "samples" in money
        lines += [
            "",
            f"{heading:<{width}}  {'series':>8}  {'share':>6}  {'samples per day':>15}" + "  per month" * priced,
        ]
        lines += [
            f"{each['name']:<{width}}  {each['series']:>8,}  {each['share']:>6.1%}  {each['samples_per_day']:>15,}"
            + (f"  {each['price_per_month']:>9,.2f}" if priced else "")
            for each in parts[:MAX_COST_ROWS]
        ]
        if len(parts) > MAX_COST_ROWS:
            rest = sum(each["series"] for each in parts[MAX_COST_ROWS:])
            lines.append(f"and {len(parts) - MAX_COST_ROWS} more with {rest:,} series")
    lines += ["", "Possible savings" if found["savings"] else "No savings found"]
    lines += [f"  {each['what']} saves {_saved(each)}; it loses {each['loses']}" for each in found["savings"]]
    return "\n".join(lines) + "\n"


def _saved(each: dict[str, Any]) -> str:
    if "series" in each:
        return f"{each['series']:,} series ({each['share']:.0%}), {each['samples_per_day']:,} samples per day"
    what = "lines" if "lines_per_day" in each else "spans"
    return f"about {each[f'{what}_per_day']:,} {what} per day"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 - SI units
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _rounded(number: float | None) -> int | None:
    return None if number is None else round(number)


def _money(daily: float | None, price: float) -> float | None:
    return None if daily is None or not price else round(daily * 30 / 1e6 * price, 2)
