"""The checks of objectives and their options; each problem has a code, its cause and the next step."""

from __future__ import annotations

import re
from decimal import Decimal
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.settings.objectives import (
    NAME_PATTERN,
    Availability,
    Latency,
    Objective,
    SLOOptions,
    parse_duration,
    parse_percent,
)
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, WINDOWS, BurnWindow, burn_rate, format_number, threshold

if TYPE_CHECKING:
    from fastapi_observe.settings.model import ObserveSettings

Windows = tuple[tuple[BurnWindow, Decimal], ...]

MAX_OBJECTIVE: Final = Decimal("99.999")
MAX_SCRAPE_INTERVAL: Final = Decimal(15)
"""Longest scrape interval, in seconds, at which the base window of a minute holds enough scrapes."""

MIN_PERIOD: Final = "7d"
"""Shortest period: the longest window of an alert (3d) must be a fraction of it."""

EXTRA_LABEL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STATUS_CLASSES: Final = frozenset({"1xx", "2xx", "3xx", "4xx", "5xx"})
STATUS: Final = re.compile(r"[1-5](?:xx|\d\d)", re.IGNORECASE)


class Problem(NamedTuple):
    """A problem of an objective; `level` is `error`, `warning` or `info`, `code` is SLO01 to SLO11."""

    code: str
    level: str
    slo: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.slo}: {self.text}"


class ProblemCollector:
    """Appends the problems of one objective to a list."""

    def __init__(self, problems: list[Problem], name: str) -> None:
        self._problems = problems
        self._name = name

    def __call__(self, code: str, message: str, level: str = "error") -> None:
        """Append a problem. Information that an earlier objective has given, such as a shared bucket, is left out."""
        if level != "info" or all((code, message) != (each.code, each.text) for each in self._problems):
            self._problems.append(Problem(code, level, self._name, message))


def check_all(
    objective: Objective, names: set[str], settings: ObserveSettings, period: Decimal, report: ProblemCollector
) -> tuple[Decimal | None, Windows]:
    """Check an objective except for its routes; return its percentage and the windows whose alert can fire."""
    check_name(objective, names, report)
    percent = check_percent(objective, report)
    check_bad_statuses(objective, report)
    windows = () if percent is None else usable_windows(percent, period, report)
    if isinstance(objective, Latency):
        check_threshold(objective, settings, report)
    check_traffic(objective, percent, report)
    return percent, windows


def check_name(objective: Objective, names: set[str], report: ProblemCollector) -> None:
    """Report SLO09: a name that is used twice or invalid."""
    name = objective.name
    if name in names:
        report("SLO09", f"the name {name!r} is used twice; choose another name for one of the objectives")
    elif not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        report("SLO09", f"invalid name {name!r}; use a-z, 0-9 and single hyphens")


def check_percent(objective: Objective, report: ProblemCollector) -> Decimal | None:
    """Report SLO05 and SLO07; return the percentage, None if it is invalid."""
    percent = _read_percent(objective.objective, report)
    if percent is None:
        return None
    if 0 < percent <= 1:
        report(
            "SLO05",
            f"{format_number(percent)} is a ratio, but an objective is a percentage; "
            f"did you mean {format_number(percent * 100)}?",
        )
        return None
    if percent <= 0 or percent > MAX_OBJECTIVE:
        report(
            "SLO05",
            f"{format_number(percent)} leaves no error budget; use more than 1 and at most "
            f"{format_number(MAX_OBJECTIVE)}",
        )
        return None
    sla = None if objective.sla is None else _read_percent(objective.sla, report)
    if sla is not None and not 0 < sla < percent:
        report(
            "SLO07",
            f"sla={objective.sla} must be lower than objective={objective.objective}, otherwise the SLA is violated "
            "before an alert fires",
        )
    return percent


def _read_percent(value: Any, report: ProblemCollector) -> Decimal | None:
    try:
        return parse_percent(value)
    except ValueError as exc:
        report("SLO05", f"{exc}; use a number such as 99.9")
        return None


def check_bad_statuses(objective: Objective, report: ProblemCollector) -> None:
    """Report SLO05: bad statuses that no request or every request has."""
    if isinstance(objective, Availability):
        statuses = objective.bad_statuses
        invalid = [status for status in statuses if not isinstance(status, str) or not STATUS.fullmatch(status)]
        if not statuses:
            report("SLO05", "bad_statuses is empty, so no request would ever fail; use codes such as 429 and 5xx")
        elif invalid:
            report("SLO05", f"invalid bad_statuses {', '.join(map(repr, invalid))}; use codes such as 429 and 5xx")
        elif {status.lower() for status in statuses} >= STATUS_CLASSES:
            report("SLO05", "bad_statuses has every class, so every request would fail; leave out those of successes")


def usable_windows(percent: Decimal, period: Decimal, report: ProblemCollector) -> Windows:
    """Return the windows whose alert can fire, with its threshold; report SLO06 for the others."""
    thresholds = [(window, threshold(window, percent, period)) for window in WINDOWS]
    usable = tuple((window, limit) for window, limit in thresholds if limit < 1)
    remaining = ", ".join(f"{window.long} {window.severity} ({_format_percent(limit)} %)" for window, limit in usable)
    highest = max(burn_rate(window, period) for window in WINDOWS)
    all_usable = (100 - 100 / highest).quantize(Decimal("0.01"), "ROUND_CEILING")
    for window, limit in thresholds:
        if limit >= 1:
            can_page = any(other.severity == "page" for other, _ in usable)
            report(
                "SLO06",
                f"the {window.long} {window.severity} can never fire: with {format_number(100 - percent)} % of budget "
                f"it would need {_format_percent(limit)} % errors; it is left out. "
                f"Remaining alerts: {remaining or 'none'}. Above {format_number(all_usable)} % all alerts can fire",
                "warning" if can_page else "error",
            )
    return usable


def _format_percent(limit: Decimal) -> str:
    return format_number((limit * 100).quantize(Decimal("0.1")))


def check_threshold(objective: Latency, settings: ObserveSettings, report: ProblemCollector) -> None:
    """Report SLO03 and SLO04: a threshold that is added to the buckets, or that is invalid."""
    try:
        limit = objective.threshold
    except ValueError as exc:
        report("SLO04", f"within: {exc}")
        return
    bounds = settings.duration_buckets
    if limit > bounds[-1]:
        report(
            "SLO04",
            f"within={objective.within} is above the highest bucket, {bounds[-1]:g}s. A bucket is added for it; raise "
            "duration_buckets too, to see how slow the slow requests are",
            "warning",
        )
    elif limit not in bounds:
        shown = [f"{bound:g}" for bound in sorted({*bounds, limit})]
        at = shown.index(f"{limit:g}")
        around = ", ".join(shown[max(0, at - 1) : at + 2])
        report(
            "SLO03",
            f"added a histogram bucket at {objective.within} for this objective ({around}; one more series per route)",
            "info",
        )


def check_traffic(objective: Objective, percent: Decimal | None, report: ProblemCollector) -> None:
    """Report SLO11: traffic so low that single failures fire or suppress alerts."""
    needed = objective.min_bad_events
    if not isinstance(needed, int) or isinstance(needed, bool) or needed < 1:
        report(
            "SLO11", f"invalid min_bad_events={needed!r}; use a whole number of at least 1 (5 ignores single failures)"
        )
        return
    if percent is None or objective.expected_rpm is None:
        return
    if not isinstance(objective.expected_rpm, int | float | Decimal) or not 0 < objective.expected_rpm < inf:
        report(
            "SLO11",
            f"invalid expected_rpm={objective.expected_rpm!r}; use requests per minute, above 0, or leave it out",
        )
        return
    per_minute = Decimal(str(objective.expected_rpm))
    burn = 100 / (per_minute * 60 * (100 - percent))
    page_burn_rate = WINDOWS[0].budget_spent * 30 * 24
    if burn * needed > page_burn_rate:
        minutes = (needed / per_minute).quantize(Decimal("0.1"))
        report(
            "SLO11",
            f"at {format_number(per_minute)} requests per minute one failure in an hour burns the budget "
            f"{format_number(burn.quantize(Decimal('0.1')))} times as fast as allowed; pages need "
            f"min_bad_events={needed}, about {format_number(minutes)} minutes of a full outage. "
            "Add a synthetic probe, count more routes in one objective, or lower the objective",
            "warning",
        )


def check_options(options: SLOOptions, report: ProblemCollector) -> tuple[Decimal, Decimal]:
    """Report SLO10; return the period and the base window in seconds, the default of each invalid option."""
    for name in options.selector or ():
        if not EXTRA_LABEL_NAME.fullmatch(name):
            report("SLO10", f"selector: invalid label name {name!r}; use the labels that Prometheus gives this service")
    period = _read_duration(options, "period", report)
    interval = _read_duration(options, "scrape_interval", report)
    if period < parse_duration(MIN_PERIOD):
        report("SLO10", f"period={options.period} is too short for windows of up to 3d; use {MIN_PERIOD} or more")
        period = parse_duration(MIN_PERIOD)
    # Four scrapes: a rate needs two samples, and one missed scrape must not leave a gap.
    base = max(Decimal(60), (4 * interval).to_integral_value("ROUND_CEILING"))
    if base > 10 * EVALUATION_INTERVAL:
        report(
            "SLO10",
            f"scrape_interval={options.scrape_interval} is too long for windows of 5m; scrape every 75s or more often",
        )
        base = Decimal(10 * EVALUATION_INTERVAL)
    elif interval > MAX_SCRAPE_INTERVAL:
        report(
            "SLO10",
            f"scrape_interval={options.scrape_interval}: the base window is {format_number(base)}s, four scrapes, so "
            "alerts fire later than with 15s",
            "warning",
        )
    return period, base


def _read_duration(options: SLOOptions, name: str, report: ProblemCollector) -> Decimal:
    try:
        return parse_duration(getattr(options, name))
    except ValueError as exc:
        report("SLO10", f"{name}: {exc}")
        return parse_duration(getattr(SLOOptions(), name))
