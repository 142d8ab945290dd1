"""What each alert means in numbers: how many failures it needs, when it fires, what of the budget is spent then."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from fastapi_observe.settings.objectives import Latency, parse_duration
from fastapi_observe.slo.burn_rates import budget_spent, burn_rate, format_number

if TYPE_CHECKING:
    from fastapi_observe.slo.burn_rates import BurnWindow
    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

SHARES: Final = (Decimal(1), Decimal("0.1"), Decimal("0.01"))
MAX_ENDPOINTS: Final = 12
"""Endpoints of one objective that a table names."""

Rows = list[tuple[str, ...]]


def report_rows(plan: SLOPlan) -> Rows:
    """Return a row for each burn alert: threshold, failures needed, time until it fires, budget spent then."""
    shares = [f"at {format_number(share * 100)}%" for share in SHARES]
    rows: Rows = [("objective", "alert", "fires above", "burn", "failures needed", *shares, "budget spent")]
    for slo in plan.slos:
        for window, limit in slo.windows:
            times = [detection_time(slo, window, limit, share) for share in SHARES]
            rows.append((
                slo.name, f"{window.severity} {window.long}/{window.short}", f"{_rounded(limit * 100)}%",
                f"{_rounded(burn_rate(window, plan.period))}x", _failures(slo, window, limit),
                *("never" if each is None else format_duration(each) for each in times),
                f"{_rounded(budget_spent(window, plan.period) * 100)}%",
            ))  # fmt: skip
    return rows


def detection_time(slo: ResolvedObjective, window: BurnWindow, limit: Decimal, share: Decimal) -> Decimal | None:
    """Return after how many seconds an alert fires if that share of requests fails, after a long time of none.

    None: never. With `expected_rpm` also until enough requests failed.
    """
    if share <= limit:
        return None
    needed = parse_duration(window.long) * limit / share
    if slo.objective.expected_rpm:
        a_second = Decimal(str(slo.objective.expected_rpm)) / 60 * share
        enough = slo.objective.min_bad_events / a_second
        if enough > parse_duration(window.long):
            return None
        needed = max(needed, enough)
    return needed


def _failures(slo: ResolvedObjective, window: BurnWindow, limit: Decimal) -> str:
    least = slo.objective.min_bad_events
    if not slo.objective.expected_rpm:
        return f"{least}, and {_rounded(limit * 100)}% of {window.long}"
    all_of_them = Decimal(str(slo.objective.expected_rpm)) * parse_duration(window.long) / 60
    return str(max(least, int(all_of_them * limit) + 1))


def check_rows(plan: SLOPlan) -> Rows:
    """Return a row for each objective with what it counts."""
    rows: Rows = [("objective", "promise", "counts", "alerts")]
    for slo in plan.slos:
        what = f"{format_number(slo.percent)}% " + (
            f"within {slo.objective.within}" if isinstance(slo.objective, Latency) else
            f"without {', '.join(slo.objective.bad_statuses)}"
        )  # fmt: skip
        names = [f"{method} {template}" for method, template in slo.endpoints]
        counted = ", ".join(names[:MAX_ENDPOINTS]) + (", ..." if len(names) > MAX_ENDPOINTS else "")
        where = counted if slo.groups else f"all {len(names)} measured: {counted}"
        alerts = " ".join(f"{window.severity}:{window.long}" for window, _ in slo.windows)
        rows.append((slo.name, what, where, alerts or "none"))
    return rows


def format_duration(number: Decimal) -> str:
    """Write seconds for people: `52s`, `8m 38s`, `2h 24m`."""
    left = int(number.to_integral_value("ROUND_CEILING"))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        value, left = divmod(left, size)
        if value:
            parts.append(f"{value}{unit}")
    return " ".join(parts[:2]) or "0s"


def _rounded(number: Decimal) -> str:
    return format_number(number.quantize(Decimal("0.001")))
