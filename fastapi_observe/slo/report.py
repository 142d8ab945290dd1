"""Tables of the numbers of each alert, and of what each objective counts."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from fastapi_observe.settings.objectives import Latency, parse_duration
from fastapi_observe.slo.burn_rates import ERROR_RATIOS, budget_spent, burn_rate, format_number

if TYPE_CHECKING:
    from fastapi_observe.slo.burn_rates import BurnWindow
    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

MAX_REPORTED_ENDPOINTS: Final = 12
"""Endpoints of one objective that are listed."""

Rows = list[tuple[str, ...]]


def report_rows(plan: SLOPlan) -> Rows:
    """Return a row for each burn alert: threshold, failures needed, time until it fires, budget spent by then."""
    ratios = [f"at {format_number(ratio * 100)}%" for ratio in ERROR_RATIOS]
    rows: Rows = [("objective", "alert", "fires above", "burn", "failures needed", *ratios, "budget spent")]
    for slo in plan.slos:
        for window, limit in slo.windows:
            times = [detection_time(slo, window, limit, ratio) for ratio in ERROR_RATIOS]
            rows.append((
                slo.name, f"{window.severity} {window.long}/{window.short}", f"{_rounded(limit * 100)}%",
                f"{_rounded(burn_rate(window, plan.period))}x", _failures_needed(slo, window, limit),
                *("never" if each is None else format_long_duration(each) for each in times),
                f"{_rounded(budget_spent(window, plan.period) * 100)}%",
            ))  # fmt: skip
    return rows


def detection_time(slo: ResolvedObjective, window: BurnWindow, limit: Decimal, ratio: Decimal) -> Decimal | None:
    """Return after how many seconds an alert fires if that ratio of requests fails, after a long time without failures.

    None if it never fires. With `expected_rpm` it also waits until `min_bad_events` requests have failed.
    """
    if ratio <= limit:
        return None
    needed = parse_duration(window.long) * limit / ratio
    if slo.objective.expected_rpm:
        failures_per_second = Decimal(str(slo.objective.expected_rpm)) / 60 * ratio
        enough = slo.objective.min_bad_events / failures_per_second
        if enough > parse_duration(window.long):
            return None
        needed = max(needed, enough)
    return needed


def _failures_needed(slo: ResolvedObjective, window: BurnWindow, limit: Decimal) -> str:
    minimum = slo.objective.min_bad_events
    if not slo.objective.expected_rpm:
        return f"{minimum}, and {_rounded(limit * 100)}% of {window.long}"
    requests = Decimal(str(slo.objective.expected_rpm)) * parse_duration(window.long) / 60
    return str(max(minimum, int(requests * limit) + 1))


def check_rows(plan: SLOPlan) -> Rows:
    """Return a row for each objective with what it counts."""
    rows: Rows = [("objective", "target", "counts", "alerts")]
    for slo in plan.slos:
        objective = slo.objective
        condition = (
            f"within {objective.within}"
            if isinstance(objective, Latency)
            else f"without {', '.join(objective.bad_statuses)}"
        )
        names = [f"{method} {template}" for method, template in slo.endpoints]
        listed = ", ".join(names[:MAX_REPORTED_ENDPOINTS]) + (", ..." if len(names) > MAX_REPORTED_ENDPOINTS else "")
        counts = listed if slo.groups or not names else f"all {len(names)} measured: {listed}"
        alerts = " ".join(f"{window.severity}:{window.long}" for window, _ in slo.windows)
        rows.append((slo.name, f"{format_number(slo.percent)}% {condition}", counts or "none", alerts or "none"))
    return rows


def format_long_duration(number: Decimal) -> str:
    """Write seconds in at most two units: `52s`, `8m 38s`, `2h 24m`."""
    left = int(number.to_integral_value("ROUND_CEILING"))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        value, left = divmod(left, size)
        if value:
            parts.append(f"{value}{unit}")
    return " ".join(parts[:2]) or "0s"


def _rounded(number: Decimal) -> str:
    return format_number(number.quantize(Decimal("0.001")))
