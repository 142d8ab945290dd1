"""Comparison of a quick run with the committed results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.figures import figures

if TYPE_CHECKING:
    from collections.abc import Iterator

MARGIN = 0.25
"""Relative change that counts as worse or better. Shared machines vary by half of that."""


def compare(committed: dict[str, Any], now: dict[str, Any], margin: float = MARGIN) -> Iterator[tuple[str, ...]]:
    """Yield title, committed value, current value, change and verdict of each figure."""
    for before, after in zip(figures(committed), figures(now), strict=True):
        if before.plain or before.difference or before.reached is None or after.reached is None:
            continue
        change = after.reached / before.reached - 1
        worse = -change if before.at_least else change
        verdict = "worse" if worse > margin else "better" if worse < -margin else "same"
        yield before.title, f"{before.reached:.3f}", f"{after.reached:.3f}", f"{change:+.0%}", verdict


def table(rows: list[tuple[str, ...]]) -> str:
    """Return the rows as text in columns."""
    rows = [("figure", "committed", "now", "change", ""), *rows]
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
