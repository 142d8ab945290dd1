"""Formatting of ratios and rows in the report."""

from __future__ import annotations

from typing import Any

HEAD = "| | ratio to bare | spread | added, us | bare, us | rounds |\n|---|---|---|---|---|---|"


def number(value: float) -> str:
    """Format a ratio."""
    return f"{value:.2f}" if value >= 0.3 else f"{value:.3f}"  # noqa: PLR2004 - small ratios need a digit more


def spread(found: dict[str, Any]) -> str:
    """Format the first and the third quartile."""
    return f"{number(found['low'])} to {number(found['high'])}"


def row(name: str, one: dict[str, Any]) -> str:
    """Format a row under `HEAD`."""
    return (
        f"| {name} | {number(one['ratio'])} | {spread(one)} | {one['added_us']:.1f} | {one['bare_us']:.1f} "
        f"| {one['rounds']} |"
    )
