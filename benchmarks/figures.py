"""The figures to reach, each read from the results and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.apps import PEERS

NOT_A_SIGNAL = frozenset({"correlation_id", "stack"})
"""Peers that "below each single peer that does one signal" does not mean."""

PAGE_NOISE = 256 * 1024
"""Bytes by which the memory of any Python process drifts: growth below that (or bare's) is called none."""


@dataclass(frozen=True)
class Figure:
    """One row of the table: what was to be reached (at most, or at least), and what was."""

    title: str
    reached: float | None
    wanted: float
    better: float | None = None
    at_least: bool = False
    low: float | None = None
    high: float | None = None
    remark: str = ""
    plain: bool = False

    @property
    def verdict(self) -> str:
        """Say it in a word."""
        if self.reached is None:
            return "not measured"
        if self.better is not None and self._reaches(self.better):
            return "met, and the better one"
        return "met" if self._reaches(self.wanted) else "MISSED"

    def _reaches(self, goal: float) -> bool:
        reached = self.reached or 0.0
        return reached >= goal if self.at_least else reached <= goal


def _at(results: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return what stands at a path of the results; empty if it was not measured."""
    found: Any = results
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _figure(title: str, found: dict[str, Any], wanted: float, better: float | None = None, **more: Any) -> Figure:
    return Figure(title, found.get("ratio"), wanted, better, low=found.get("low"), high=found.get("high"), **more)


def figures(results: dict[str, Any]) -> list[Figure]:
    """Return every row, in the order of the goals."""
    variants = _at(results, "inprocess", "variants")
    one_worker = _at(results, "served", "1")
    peak, half = _at(one_worker, "peak", "ours"), _at(one_worker, "half")
    even, poisson = _at(half, "even", "ours", "p99_ratio"), _at(half, "poisson", "ours", "p99_ratio")
    remark = f"even arrivals; Poisson: {poisson['ratio']:.2f}" if poisson else ""
    return [
        _figure("trivial endpoint, all signals, 10 %", _at(variants, "trivial 10%"), 1.40, 1.25),
        _figure("the same, 100 % sampled", _at(variants, "trivial 100%"), 1.90, 1.60),
        _figure(
            "cost added, 1,000 routes against 10",
            _at(results, "inprocess", "routes", "ours", "same position"),
            1.05,
            1.0,
            remark=_last_route(results),
        ),
        _figure(
            "added cost against the hand-wired stack's",
            _at(results, "peers", "stack 10%", "ours_added_part"),
            1 / 14,
            1 / 20,
        ),
        _single_peers(results),
        _figure(
            "served, one worker, requests a second against bare", _at(peak, "rps_ratio"), 0.80, 0.90, at_least=True
        ),
        _figure("p99 at half of bare's peak load", even, 1.10, 1.05, remark=remark),
        _memory(results),
        _figure(
            "import beyond FastAPI's own, against importing FastAPI",
            _at(results, "costs", "start", "import"),
            0.35,
            0.15,
        ),
        _figure(
            "one request line, caller's thread, against loguru `serialize=True`",
            _at(results, "costs", "steps", "100%", "request line", "thread"),
            1 / 4,
            1 / 8,
        ),
        _figure("one `/metrics` scrape at 500 routes against stock", _at(results, "costs", "scrape", "500"), 0.7, 0.4),
    ]


def _last_route(results: dict[str, Any]) -> str:
    last = _at(results, "inprocess", "routes", "ours", "last route")
    return f"the last-registered of 1,000: {last['ratio']:.2f}" if last else ""


def _single_peers(results: dict[str, Any]) -> Figure:
    """Count the single peers that cost no more than ours did in the same rounds."""
    cheaper, measured, skipped = [], 0, []
    for key, found in _at(results, "peers").items():
        name = key.rpartition(" ")[0]
        if name in NOT_A_SIGNAL or name not in PEERS:
            continue
        if "skipped" in found:
            skipped.append(key)
            continue
        measured += 1
        if found["ours_added_part"]["ratio"] >= 1:
            cheaper.append(key)
    remark = ", ".join(cheaper) + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    title = f"single peers that cost less than ours, of {measured} pairs"
    return Figure(title, float(len(cheaper)) if measured else None, 0, remark=remark, plain=True)


def _memory(results: dict[str, Any]) -> Figure:
    """Return ours' growth over the second half in KiB; within the noise of pages, or of bare, it is none."""
    ours, bare = _at(results, "costs", "memory", "ours"), _at(results, "costs", "memory", "bare")
    title = "memory growth over the second half of the requests, KiB"
    if not ours:
        return Figure(title, None, 0)
    allowed = max(PAGE_NOISE, bare["second_half_growth"] + PAGE_NOISE)
    remark = f"bare: {bare['second_half_growth'] / 1024:.0f}; up to {allowed / 1024:.0f} counts as flat"
    return Figure(title, ours["second_half_growth"] / 1024, allowed / 1024, remark=remark, plain=True)
