"""The arithmetic of error budgets: how fast a budget may burn until somebody is told (SRE Workbook, chapter 5)."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple

from fastapi_observe.settings.objectives import UNIT_SECONDS, parse_duration

EVALUATION_INTERVAL: Final = 30
"""Seconds between two evaluations of the rules of one objective."""


EXPECTED_FAILURES: Final = 5
"""Failures to be expected if the budget still burned at the limit of an alert: that none or few came is no chance."""


class BurnWindow(NamedTuple):
    """A pair of windows: the alert fires where both burn too fast. `spent` is the part of 30 days' budget it costs.

    `over`: it is over at once when no more fails within that time than the budget allows, if there was enough traffic
    to say so; with little the short window decides.
    """

    severity: str
    long: str
    short: str
    budget_spent: Decimal
    keep_firing: str
    early_clear: str = ""


WINDOWS: Final = (
    BurnWindow("page", "1h", "5m", Decimal("0.02"), "5m"),
    BurnWindow("page", "6h", "30m", Decimal("0.05"), "8m", early_clear="5m"),
    BurnWindow("ticket", "1d", "2h", Decimal("0.10"), "1h"),
    BurnWindow("ticket", "3d", "6h", Decimal("0.10"), "1h"),
)


def budget(objective: Decimal) -> Decimal:
    """Return the part of requests that may fail: 0.001 for 99.9 percent."""
    return (100 - objective) / 100


def burn_rate(window: BurnWindow, period: Decimal) -> Decimal:
    """Return how many times faster than allowed the budget burns when the alert fires; `period` in seconds.

    Never less than once, which short periods would come to: who burns slower than that keeps the promise.
    """
    return max(Decimal(1), window.budget_spent * period / parse_duration(window.long))


def budget_spent(window: BurnWindow, period: Decimal) -> Decimal:
    """Return the part of the budget that is gone when the alert fires at a steady rate."""
    return burn_rate(window, period) * parse_duration(window.long) / period


def threshold(window: BurnWindow, objective: Decimal, period: Decimal) -> Decimal:
    """Return the ratio of failures above which the alert fires; one of 1 or more never does."""
    return (burn_rate(window, period) * budget(objective)).normalize()


def min_events(limit: Decimal) -> int:
    """Return how many events it takes to see that the budget burns no more at the limit of an alert."""
    return int((EXPECTED_FAILURES / limit).to_integral_value("ROUND_CEILING"))


def format_number(number: Decimal) -> str:
    """Write a number as PromQL reads it, without an exponent and without noise."""
    return format(number.normalize(), "f")


def duration(seconds: Decimal) -> str:
    """Write seconds as PromQL reads them, in the largest unit that gives a whole number: `30d`, `90s`."""
    unit = next((unit for unit in ("d", "h", "m", "s") if not seconds % UNIT_SECONDS[unit]), "ms")
    return f"{int(seconds / UNIT_SECONDS[unit])}{unit}"
