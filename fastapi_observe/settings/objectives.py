"""Objectives: what a service promises, as settings."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - a dataclass field
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

NAME_PATTERN: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
"""What an objective may be called: its name becomes a label value, a file name and an anchor."""

DURATION_PATTERN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d|w)")
UNIT_SECONDS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
    "w": Decimal(604800),
}


def parse_duration(text: str) -> Decimal:
    """Read `300ms`, `1.5s`, `30m`, `6h`, `30d`, `4w`. Raises `ValueError` for anything else."""
    match = DURATION_PATTERN.fullmatch(str(text).strip())  # a number alone has no unit
    if match is None or not Decimal(match[1]):
        raise ValueError(
            f"{text!r} is no duration; accepts a number with its unit, such as 300ms, 1.5s, 30m, 6h or 30d"
        )
    return Decimal(match[1]) * UNIT_SECONDS[match[2]]


def parse_percent(value: float | str | Decimal) -> Decimal:
    """Read a percentage exactly as it was written. Raises `ValueError` for what is no number."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is no percentage") from None
    if not number.is_finite():
        raise ValueError(f"{value!r} is no percentage")
    return number


def _make_tuples(objective: object, *names: str) -> None:
    """Keep lists as tuples, so that an objective can be compared and hashed; one text is a tuple of it."""
    for name in names:
        value = getattr(objective, name)
        object.__setattr__(objective, name, (value,) if isinstance(value, str) else tuple(value))


@dataclass(frozen=True, slots=True)
class Availability:
    """So many percent of requests are answered without failing.

    `routes`: exact templates (`/orders/{id}`), with a method (`POST /orders`), globs (`/admin/*`), `tag:public`; none:
    all that are measured. `bad`: status codes (`429`) and classes (`5xx`). An alert needs `min_bad_events` failures in
    its long window. `sla` is what was promised to customers, in percent; `expected_rpm` requests a minute, to judge
    alerts.
    """

    name: str
    objective: float
    routes: tuple[str, ...] | list[str] = ()
    bad_statuses: tuple[str, ...] | list[str] = ("5xx",)
    min_bad_events: int = 5
    sla: float | None = None
    expected_rpm: float | None = None
    kind = "availability"

    def __post_init__(self) -> None:
        _make_tuples(self, "routes", "bad_statuses")


@dataclass(frozen=True, slots=True)
class Latency:
    """So many percent of requests are answered within a time (`within="300ms"`); the rest as in `Availability`."""

    name: str
    objective: float
    within: str
    routes: tuple[str, ...] | list[str] = ()
    min_bad_events: int = 5
    sla: float | None = None
    expected_rpm: float | None = None
    kind = "latency"

    def __post_init__(self) -> None:
        _make_tuples(self, "routes")

    @property
    def threshold(self) -> float:
        """The time in seconds: a bucket bound of `http_request_duration_seconds`."""
        return float(parse_duration(self.within))


Objective = Availability | Latency


@dataclass(frozen=True, slots=True)
class SLOOptions:
    """How rules, alerts and dashboards are made from the objectives.

    `period`: of the error budgets. `scrape_interval`: of the Prometheus that scrapes this service. `selector`: labels
    by which it finds this service (default: `job` is the service name). `runbook_url`, `dashboard_url`: where alerts
    point, `{alert}` and `{slo}` filled in. `team`: a label of alerts. `keep_firing`: use `keep_firing_for` (Prometheus
    2.42).
    """

    period: str = "30d"
    scrape_interval: str = "15s"
    selector: Mapping[str, str] | None = None
    runbook_url: str = "runbooks/{alert}.md#{slo}"
    dashboard_url: str | None = None
    team: str | None = None
    keep_firing: bool = True
