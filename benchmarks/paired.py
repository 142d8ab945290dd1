"""The arithmetic: what one app spent compared with another in the same rounds, its median and its spread."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one request in each round, and those of the bare app in the same rounds."""

    spent: Sequence[float]
    bare: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """The paired ratios, one for each round."""
        return [one / base for one, base in zip(self.spent, self.bare, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the paired ratios."""
        return statistics.median(self.ratios)

    @property
    def added(self) -> float:
        """Median of the CPU seconds that were added to the bare app's."""
        return statistics.median(one - base for one, base in zip(self.spent, self.bare, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Return what the report needs; times in microseconds."""
        low, high = quartiles(self.ratios)
        return {
            "ratio": self.ratio,
            "low": low,
            "high": high,
            "rounds": len(self.bare),
            "added_us": self.added * 1e6,
            "bare_us": statistics.median(self.bare) * 1e6,
        }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; a single value is both."""
    if len(values) < 2:  # noqa: PLR2004 - quantiles() needs two
        return values[0], values[0]
    found = statistics.quantiles(values, n=4, method="inclusive")
    return found[0], found[2]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles under the names that the report reads."""
    low, high = quartiles(values)
    return {"ratio": statistics.median(values), "low": low, "high": high, "rounds": len(values)}


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Summarise first against second, paired round by round."""
    return summary([one / other for one, other in zip(first, second, strict=True)])


def ratio_of_added(first: Cost, second: Cost, parts: int) -> dict[str, float]:
    """Compare what two apps add, each to its own bare one.

    `ratio` is that of the medians: differences of single rounds are too small to divide by each other. `low` and
    `high` are the least and the most that one of the equal `parts` of the run gives, to show how far it can be trusted.
    """
    size = len(first.bare) // parts
    slices = [slice(size * part, size * (part + 1)) for part in range(parts)]
    ratios = [
        Cost(first.spent[at], first.bare[at]).added / Cost(second.spent[at], second.bare[at]).added for at in slices
    ]
    ratio = first.added / second.added
    return {"ratio": ratio, "low": min(ratio, *ratios), "high": max(ratio, *ratios), "rounds": len(first.bare)}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line that fits the points best (least squares)."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
