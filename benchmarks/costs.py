"""Costs other than requests: import, start, memory, scrapes, and single calls."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from benchmarks.inprocess import MiscountError, progress
from benchmarks.paired import paired, slope, summary
from benchmarks.process import Worker, ask
from benchmarks.steps import STEPS


class Effort(NamedTuple):
    """The amount of measurement."""

    starts: int
    requests: int
    scrapes: int
    rounds: int
    calls: int


def run(effort: Effort) -> dict[str, Any]:
    """Measure everything."""
    return {
        "start": start(effort.starts),
        "memory": memory(effort.requests),
        "scrape": {str(routes): scrape(routes, effort.scrapes) for routes in (50, 500, 2000)},
        "steps": {f"{ratio:.0%}": steps(ratio, effort) for ratio in (0.0, 1.0)},
    }


def start(times: int) -> dict[str, Any]:
    """Start fresh processes alternately with and without ours."""
    found: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    for number in range(times + 1):
        progress(f"costs: start {number} of {times}")
        for app, starts in found.items():
            one = ask("startup", app)
            if number:  # the first pair only warms the file system cache
                starts.append(one)
    return read_starts(found)


def read_starts(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Summarize the seconds of all starts for the report."""
    ours, bare = found["ours"], found["bare"]
    names = ("fastapi", "package", "build", "install", "first_request")
    whole = {app: [sum(one[name] for name in names) for one in starts] for app, starts in found.items()}
    rest = [
        one["package"] + one["install"] + one["first_request"] - no["first_request"]
        for one, no in zip(ours, bare, strict=True)
    ]
    fastapi = [one["fastapi"] for one in ours]
    return {
        "import": paired([one["package"] for one in ours], fastapi),
        "import_install_first_request": paired(rest, fastapi),
        "whole": paired(whole["ours"], whole["bare"]),
        "modules": ours[0]["modules"],
        "milliseconds": {
            app: {name: statistics.median(one[name] for one in starts) * 1000 for name in names}
            for app, starts in found.items()
        },
    }


def memory(requests: int) -> dict[str, Any]:
    """Measure the memory of a worker over many requests of mixed routes, with and without ours."""
    found: dict[str, Any] = {"requests": requests}
    for app in ("bare", "ours"):
        progress(f"costs: memory of {app} over {requests} requests")
        found[app] = read_memory(ask("memory", app, str(requests)))
    return found


def read_memory(found: dict[str, Any]) -> dict[str, Any]:
    """Summarize the memory of a worker: bytes at rest, at the end, and growth over the second half."""
    points = found["points"]
    half = points[len(points) // 2 :]
    grown = slope(half) * (half[-1][0] - half[0][0])
    fields = ("rest", "warm", "dropped_lines", "internal_errors")
    return {
        **{name: found[name] for name in fields},
        "end": points[-1][1],
        "second_half_growth": grown,
        "points": points,
    }


def scrape(routes: int, rounds: int) -> dict[str, Any]:
    """Compare our scrape with that of a stock registry. Raises RuntimeError if their series differ."""
    progress(f"costs: scrape of {routes} routes")
    found = ask("scrape", str(routes), str(rounds))
    if found["differing"]:
        raise RuntimeError(f"the registries do not show the same series: {found['differing']}")
    return {
        **paired(found["ours"], found["stock"]),
        "ours_ms": statistics.median(found["ours"]) * 1000,
        "stock_ms": statistics.median(found["stock"]) * 1000,
        "series": found["series"],
        "bytes": found["bytes"],
    }


def steps(ratio: float, effort: Effort) -> dict[str, Any]:
    """Repeat single steps inside a request, alternating between ours and stock, in one process each."""
    found: dict[str, Any] = {}
    with Worker("steps", "ours", str(ratio)) as ours, Worker("steps", "stock", str(ratio)) as stock:
        due = 0
        for step in STEPS:
            progress(f"costs: {step}, in a request sampled with {ratio:.0%}")
            taken: dict[str, list[list[float]]] = {"ours": [], "stock": [], "span": []}
            for number in range(effort.rounds + 1):
                one = {"ours": ours.ask(step, effort.calls), "stock": stock.ask(step, effort.calls)}
                if step == "db.query":
                    one["span"] = stock.ask("span alone", effort.calls)
                if step in {"log.info", "request line"}:
                    due += effort.calls
                for side, spent in one.items():
                    if number:  # the first one is a warm-up
                        taken[side].append(spent)
            found[step] = _compare(taken)
            if taken["span"]:
                found["span alone"] = _compare({"ours": taken["ours"], "stock": taken["span"]})
        # ours also writes a line for each request that repeats a step
        orders = len(STEPS) * (effort.rounds + 1)
        for side, worker, lines in (("ours", ours, due + orders), ("stock", stock, due)):
            written = worker.end()
            if written != lines:
                raise MiscountError(f"{side}: {lines} lines expected, {written} are in the file")
    return found


def _compare(taken: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return the microseconds of both sides, on the caller's thread (`thread`) and in all threads (`process`)."""
    found: dict[str, Any] = {}
    for at, name in enumerate(("thread", "process")):
        ours, stock = ([one[at] for one in taken[side]] for side in ("ours", "stock"))
        found[name] = {
            **(paired(ours, stock) if all(stock) else summary(ours)),
            "ours_us": statistics.median(ours),
            "stock_us": statistics.median(stock),
        }
    return found
