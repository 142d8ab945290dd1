"""Functions that write the PromQL of panels, with `<name>` for the matchers of an app."""

from __future__ import annotations

from typing import Final

RATE_WINDOW: Final = "$__rate_interval"
MAX_SERIES: Final = 10
"""Series of a query whose result grows with the app."""

SECONDS_PER_MONTH: Final = 30 * 86_400


def rate(metric: str, matchers: str, by: str = "") -> str:
    """Write the rate per second of a counter, of all series together or by labels."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{matchers}}}[{RATE_WINDOW}]))"


def quantile(share: float, metric: str, matchers: str, by: str = "") -> str:
    """Write a quantile of a histogram, of all series together or by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{matchers}}}[{RATE_WINDOW}])))"


def top(expr: str, count: int = MAX_SERIES) -> str:
    """Limit a query to its largest series."""
    return f"topk({count}, {expr})"


def top_rate(metric: str, matchers: str, by: str) -> str:
    """Write the rate per second of the largest series of a counter."""
    return top(rate(metric, matchers, by))


def or_zero(expr: str, label: str) -> str:
    """Add a line at 0, called `none`, while there is no series: series of failures appear with the first failure."""
    return f'({expr}) or on () label_replace(vector(0), "{label}", "none", "", "")'


def in_range(metric: str, matchers: str, by: str) -> str:
    """Write the rate per second over the time range of the dashboard, by labels."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$__range]))"


def burn_rate_over(window: str) -> str:
    """Write the burn rate of each selected objective over a window."""
    return f"slo:error_ratio:rate{window}{{<slos>}} / on (slo) (1 - slo:objective:ratio{{<slos>}})"


def per_hour(metric: str) -> str:
    """Write the number of events per hour, 0 before the first."""
    return f"(sum(rate({metric}{{<service>}}[{RATE_WINDOW}])) or vector(0)) * 3600"


def exported_per_month(signal: str) -> str:
    """Write the number of items exported per month at the current rate."""
    exported = f'fastapi_observe_exported_total{{<service>,signal="{signal}"}}'
    return f"(sum(rate({exported}[{RATE_WINDOW}])) or vector(0)) * {SECONDS_PER_MONTH}"
