"""Target figures, read from the results and compared with their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.apps import PEERS
from benchmarks.operations import worst

NOT_A_SIGNAL = frozenset({"correlation_id", "stack"})
"""Peers that are not counted as a single peer with one signal."""

CONTRIB = ("engine", "client")
"""Steps for which contrib has an instrumentor."""

ADDED_MS = 0.2
ADDED_PART = 0.05
"""Allowed increase of p99 by exporting: the larger of milliseconds and fraction."""

PAGE_NOISE = 256 * 1024
"""Bytes by which the memory of any Python process drifts. Growth below that, or below bare's, counts as none."""


@dataclass(frozen=True)
class Figure:
    """One row of the table: a target (at most, or at least) and the measured value."""

    title: str
    reached: float | None
    target: float
    better: float | None = None
    at_least: bool = False
    low: float | None = None
    high: float | None = None
    remark: str = ""
    plain: bool = False
    difference: bool = False

    @property
    def verdict(self) -> str:
        """The verdict in a word or two."""
        if self.reached is None:
            return "not measured"
        if self.better is not None and self._reaches(self.better):
            return "met, and the better one"
        return "met" if self._reaches(self.target) else "MISSED"

    def _reaches(self, goal: float) -> bool:
        reached = self.reached or 0.0
        return reached >= goal if self.at_least else reached <= goal


def _at(results: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return the results at a path; empty if they were not measured."""
    found: Any = results
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _figure(title: str, found: dict[str, Any], target: float, better: float | None = None, **more: Any) -> Figure:
    return Figure(title, found.get("ratio"), target, better, low=found.get("low"), high=found.get("high"), **more)


def figures(results: dict[str, Any]) -> list[Figure]:
    """Return all rows, in the order of the targets."""
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
            "served, one worker, requests per second against bare", _at(peak, "rps_ratio"), 0.80, 0.90, at_least=True
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
        *_operations(_at(results, "operations")),
        *_production(_at(results, "production")),
    ]


def _production(found: dict[str, Any]) -> list[Figure]:
    scrapers, collectors = _at(found, "scrapers"), _at(found, "collectors")
    rows = []
    for name, plain, said in (
        ("scraped", "plain", "each once per second"),
        ("flooded", "plain flood", "without a pause"),
    ):
        one = _at(scrapers, name, "p99_ratio")
        beside = {"as many plain answers": plain, "no scraper again": "again"}
        remark = _others({text: _at(scrapers, other, "p99_ratio") for text, other in beside.items()}, "ratio")
        rows.append(_figure(f"p99 with 50 scrapers, {said}, against none", one, 1.10, remark=remark))
    guesses = _at(found, "guesses")
    beside = {"as many 404s of the bare app": "bare nothing", "no scraper again": "again"}
    remark = _others({text: _at(guesses, other, "p99_ratio") for text, other in beside.items()}, "ratio")
    one = _at(guesses, "guessed", "p99_ratio")
    rows.append(_figure("p99 with 1,000 wrong tokens per second, against none", one, 1.05, remark=remark))
    for name, said in (("ok", "accepts spans"), ("refused", "is down"), ("hang", "hangs")):
        title, one = f"p99 added by a collector that {said}, ms", _at(collectors, name)
        off = _at(collectors, "off").get("p99", 0.0) * 1e3
        remark = _others({"no export again": _at(collectors, "again")}, "p99_more", 1e3)
        wanted = max(ADDED_MS, ADDED_PART * off)
        rows.append(Figure(title, _times(one, "p99_more"), wanted, remark=remark, difference=True))
    lag, workers = _at(found, "lag"), _at(found, "workers")
    others = {"the SDK's processor": _at(lag, "stock"), "bare again": _at(lag, "again")}
    low, high = _times(_at(lag, "ours"), "low"), _times(_at(lag, "ours"), "high")
    rows.append(
        Figure(
            "event loop lag p99.9 above bare, 3,000 spans per second, ms",
            *(_times(_at(lag, "ours"), "more"), 1.0),
            low=low,
            high=high,
            remark=_others(others, "more", 1e3),
            difference=True,
        )
    )
    noise = _others({"single against single": _at(workers, "request", "noise")}, "ratio")
    return [
        *rows,
        *(
            _figure(f"scrape, 4 workers x {routes} routes, against stock", _at(workers, "scrape", number), 0.28)
            for number, routes in (("200", "200"), ("2000", "2,000"))
        ),
        _figure("`observe` in a worker, against stock", _at(workers, "observe"), 0.5),
        _figure("a request in a worker, against a single process", _at(workers, "request"), 1.05, remark=noise),
    ]


def _times(found: dict[str, Any], name: str) -> float | None:
    """Return seconds as milliseconds; None if they were not measured."""
    return found[name] * 1e3 if name in found else None


def _others(found: dict[str, dict[str, Any]], name: str, scale: float = 1.0) -> str:
    """Return the results of other cases in the same rounds as text."""
    return "; ".join(f"{text}: {one[name] * scale:.2f}" for text, one in found.items() if one)


WANTED = (
    ("query", "`db.query` around nothing, against the SDK's own span", 0.4, 1.2),
    ("engine_ours", "`SELECT 1` through SQLAlchemy on SQLite, against a bare engine", 1.25, 1.75),
    ("client_ours", "call of an httpx client to a local uvicorn, against a bare client", 1.05, 1.10),
)
"""Step, title, and maximum cost in an unsampled and in a sampled request."""


def _operations(found: dict[str, Any]) -> list[Figure]:
    rows = []
    for step, title, *wanted in WANTED:
        for sampled, maximum in zip(("unsampled", "sampled"), wanted, strict=True):
            rows.append(_figure(f"{title}, {sampled}", _at(found, sampled, step), maximum, remark=_error(found, step)))
    hostile = _at(found, "statements", "hostile")
    name, growth = worst(hostile, -1) if hostile else ("", {})
    shorter, more = worst(hostile, 0) if hostile else ("", {"ratio": 0.0})
    return [
        *rows,
        _contrib(_at(found, "contrib")),
        _figure("parsing a known statement, against executing it on SQLite", _at(found, "statements", "same"), 0.1),
        _figure("parsing 8 KB of hostile text against 2 KB (linear: 4)", more if hostile else {}, 5, remark=shorter),
        _figure("parsing 64 KB of hostile text against 8 KB (linear: 8)", growth, 8, 1.25, remark=name),
    ]


def _error(found: dict[str, Any], step: str) -> str:
    """Return the difference between two bare runs as text: the error of the method."""
    again = [_at(found, sampled, step.replace("_ours", "_again")) for sampled in ("unsampled", "sampled")]
    if step == "query" or not all(again):
        return ""
    return "bare against bare: " + " and ".join(f"{one['ratio']:.2f}" for one in again)


def _contrib(found: dict[str, Any]) -> Figure:
    """Count contrib's instrumentors that cost no more than ours in the same rounds."""
    pairs = {f"{kind}, {name}": _at(found, name, kind) for name in ("unsampled", "sampled") for kind in CONTRIB}
    measured = {title: one["ours_added_part"]["ratio"] for title, one in pairs.items() if one}
    cheaper = [title for title, ratio in measured.items() if ratio >= 1]
    title = f"contrib's instrumentors that cost less than ours, of {len(measured)} pairs"
    remark = ", ".join(cheaper) or str(found.get("skipped", ""))
    return Figure(title, float(len(cheaper)) if measured else None, 0, remark=remark, plain=True)


def _last_route(results: dict[str, Any]) -> str:
    last = _at(results, "inprocess", "routes", "ours", "last route")
    return f"the last-registered of 1,000: {last['ratio']:.2f}" if last else ""


def _single_peers(results: dict[str, Any]) -> Figure:
    """Count the single peers that cost no more than ours in the same rounds."""
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
    """Return our growth over the second half in KiB. Within the noise of pages, or of bare, it counts as flat."""
    ours, bare = _at(results, "costs", "memory", "ours"), _at(results, "costs", "memory", "bare")
    title = "memory growth over the second half of the requests, KiB"
    if not ours:
        return Figure(title, None, 0)
    allowed = max(PAGE_NOISE, bare["second_half_growth"] + PAGE_NOISE)
    remark = f"bare: {bare['second_half_growth'] / 1024:.0f}; up to {allowed / 1024:.0f} counts as flat"
    return Figure(title, ours["second_half_growth"] / 1024, allowed / 1024, remark=remark, plain=True)
