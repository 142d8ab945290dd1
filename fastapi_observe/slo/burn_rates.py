"""The arithmetic of error budgets and burn rates (SRE Workbook, chapter 5)."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple

from fastapi_observe.settings.objectives import UNIT_SECONDS, parse_duration

EVALUATION_INTERVAL: Final = 30
"""Seconds between two evaluations of the rules of one objective."""

ERROR_RATIOS: Final = (Decimal(1), Decimal("0.1"), Decimal("0.01"))
"""Error ratios for which reports and runbooks state how soon an alert fires."""

EXPECTED_FAILURES: Final = 5
"""Failures that a burn rate at the limit would produce among `min_events` events; seeing fewer is not chance."""


class BurnWindow(NamedTuple):
    """A pair of windows; its alert fires while the error ratio of both is above the threshold.

    `budget_spent` is the share of a 30-day budget that is spent when the alert fires. `early_clear` is a window after
    which the alert clears if it held at least `min_events` events and no more failures than the budget allows; with
    less traffic the short window decides.
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
    """Return the share of requests that may fail: 0.001 for an objective of 99.9 percent."""
    return (100 - objective) / 100


def burn_rate(window: BurnWindow, period: Decimal) -> Decimal:
    """Return how many times faster than allowed the budget burns when the alert fires; `period` is in seconds.

    At least 1, also for short periods: a slower rate meets the objective.
    """
    return max(Decimal(1), window.budget_spent * period / parse_duration(window.long))


def budget_spent(window: BurnWindow, period: Decimal) -> Decimal:
    """Return the share of the budget that is spent when the alert fires at a steady rate."""
    return burn_rate(window, period) * parse_duration(window.long) / period


def threshold(window: BurnWindow, objective: Decimal, period: Decimal) -> Decimal:
    """Return the error ratio above which the alert fires; with 1 or more it never does."""
    return (burn_rate(window, period) * budget(objective)).normalize()


def min_events(limit: Decimal) -> int:
    """Return how many events without a failure show that the error ratio is no longer at the limit of an alert."""
    return int((EXPECTED_FAILURES / limit).to_integral_value("ROUND_CEILING"))


def format_number(number: Decimal) -> str:
    """Write a number for PromQL, without an exponent and without trailing zeros."""
    return format(number.normalize(), "f")


def promql_duration(seconds: Decimal) -> str:
    """Write seconds for PromQL, in the largest unit that gives a whole number: `30d`, `90s`."""
    unit = next((unit for unit in ("d", "h", "m", "s") if not seconds % UNIT_SECONDS[unit]), "ms")
    return f"{int(seconds / UNIT_SECONDS[unit])}{unit}"
