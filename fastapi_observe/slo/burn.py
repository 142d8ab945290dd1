"""The arithmetic of error budgets: how fast a budget may burn until somebody is told (SRE Workbook, chapter 5)."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple

from fastapi_observe.settings_objectives import seconds

EVALUATION: Final = 30
"""Seconds between two evaluations of the rules of one objective."""


class Window(NamedTuple):
    """A pair of windows: the alert fires where both burn too fast. `spent` is the part of the budget it costs."""

    severity: str
    long: str
    short: str
    spent: Decimal
    keep_firing: str


WINDOWS: Final = (
    Window("page", "1h", "5m", Decimal("0.02"), "5m"),
    Window("page", "6h", "30m", Decimal("0.05"), "15m"),
    Window("ticket", "1d", "2h", Decimal("0.10"), "1h"),
    Window("ticket", "3d", "6h", Decimal("0.10"), "1h"),
)


def budget(objective: Decimal) -> Decimal:
    """Return the part of requests that may fail: 0.001 for 99.9 percent."""
    return (100 - objective) / 100


def factor(window: Window, period: Decimal) -> Decimal:
    """Return how many times faster than allowed the budget burns when the alert fires; `period` in seconds."""
    return window.spent * period / seconds(window.long)


def threshold(window: Window, objective: Decimal, period: Decimal) -> Decimal:
    """Return the ratio of failures above which the alert fires; one of 1 or more never does."""
    return (factor(window, period) * budget(objective)).normalize()


def text(number: Decimal) -> str:
    """Write a number as PromQL reads it, without an exponent and without noise."""
    return format(number.normalize(), "f")
