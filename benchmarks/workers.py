"""Multiprocess mode: the cost of a scrape, an observation and a request.

Scrape and observation are compared with prometheus_client's multiprocess mode, in separate processes: WORKERS processes
create the series of a number of routes as requests do, and stay; then one of them is scraped.
"""
# ruff: noqa: PLC0415, T201 - each side imports its modules after setting its environment; the parent reads the output

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import IO, Any, cast

from benchmarks import process
from benchmarks.apps import shared_memory
from benchmarks.inprocess import progress
from benchmarks.paired import Cost, paired

WORKERS = 4
SCRAPES = 7
OBSERVATIONS = 100_000
ROUNDS = 9
ROUTES = (200, 2000)
TURNS = 30
REQUESTS = 300
"""Requests in one turn. Each of the three apps has TURNS turns in each process."""


def _time(function: object, count: int) -> float:
    """Return the best time of one call, in seconds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = perf_counter()
        for _ in range(count // ROUNDS):
            function()  # type: ignore[operator]
        best = min(best, (perf_counter() - started) / (count // ROUNDS))
    return best


class Ours:
    """fastapi-observe in multiprocess mode."""

    def __init__(self, directory: str) -> None:
        from fastapi_observe.internal.errors import InternalErrors
        from fastapi_observe.metrics.service import MetricsService
        from fastapi_observe.settings.model import ObserveSettings
        from fastapi_observe.workers.worker import Worker

        self.metrics = MetricsService(
            ObserveSettings(include_default_registry=False, max_series_per_metric=5000), InternalErrors()
        )
        self.worker = Worker(Path(directory) / "0-1-1", InternalErrors())
        self.metrics.sharing.share(self.worker, "0")

    def fill(self, routes: int) -> None:
        """Count a request on each route."""
        for route in range(routes):
            self.request(f"/route/{route}/{{item_id}}")

    def request(self, endpoint: str) -> None:
        """Count a request."""
        self.metrics.record_http_request("GET", endpoint, 200, 0.0123, 0, 1234)

    def observation(self) -> object:
        """Return a function that records one sample."""
        histogram = self.metrics.histogram("observed_seconds", "x", ["route"]).labels("/a")
        return lambda: histogram.observe(0.0123)

    def scrape(self) -> int:
        """Scrape once and return the size in bytes."""
        return len(self.metrics._render("", "")[1])  # noqa: SLF001 - bypasses the cache

    def close(self) -> None:
        """Leave multiprocess mode."""
        self.metrics.sharing.unshare()
        self.worker.leave()


class Stock:
    """prometheus_client's multiprocess mode, with the same metrics."""

    def __init__(self, directory: str) -> None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        import prometheus_client as client

        from fastapi_observe.metrics.service import SIZE_BUCKETS
        from fastapi_observe.settings.model import ObserveSettings

        self.client = client
        route = ["method", "endpoint"]
        buckets = ObserveSettings().duration_buckets
        self.requests = client.Counter("http_requests_total", "x", [*route, "status_code"])
        self.duration = client.Histogram("http_request_duration_seconds", "x", route, buckets=buckets)
        self.sizes = [
            client.Histogram(name, "x", route, buckets=SIZE_BUCKETS)
            for name in ("http_request_size", "http_response_size")
        ]

    def fill(self, routes: int) -> None:
        """Count a request on each route."""
        for route in range(routes):
            endpoint = f"/route/{route}/{{item_id}}"
            self.requests.labels("GET", endpoint, "200").inc()
            self.duration.labels("GET", endpoint).observe(0.0123)
            for size in self.sizes:
                size.labels("GET", endpoint).observe(1234)

    def observation(self) -> object:
        """Return a function that records one sample."""
        histogram = self.client.Histogram("observed_seconds", "x", ["route"]).labels("/a")
        return lambda: histogram.observe(0.0123)

    def scrape(self) -> int:
        """Scrape once and return the size in bytes."""
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self.client.CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return len(self.client.generate_latest(registry))

    def close(self) -> None:
        """Do nothing."""


class Client(Stock):
    """prometheus_client's own metrics in our multiprocess mode."""

    def __init__(self, directory: str) -> None:
        from fastapi_observe.internal.errors import InternalErrors
        from fastapi_observe.metrics.service import MetricsService
        from fastapi_observe.settings.model import ObserveSettings
        from fastapi_observe.workers.worker import Worker

        self.metrics = MetricsService(ObserveSettings(), InternalErrors())
        self.worker = Worker(Path(directory) / "0-1-1", InternalErrors())
        self.metrics.sharing.share(self.worker, "0")
        super().__init__(directory)

    def scrape(self) -> int:
        """Scrape once and return the size in bytes."""
        return len(self.metrics._render("", "")[1])  # noqa: SLF001 - bypasses the cache

    def close(self) -> None:
        """Leave multiprocess mode."""
        self.metrics.sharing.unshare()
        self.worker.leave()


SIDES: dict[str, Any] = {"ours": Ours, "stock": Stock, "client": Client}


def _child(side: str, directory: str, routes: int) -> None:
    """Create the series, report that, then run commands of the parent."""
    one = SIDES[side](directory)
    one.fill(routes)
    print("filled", flush=True)
    for line in sys.stdin:
        if line.strip() == "scrape":
            times = []
            size = 0
            for _ in range(SCRAPES):
                started = perf_counter()
                size = one.scrape()
                times.append(perf_counter() - started)
            print(json.dumps({"first": times[0], "median": median(times), "bytes": size}), flush=True)
    one.close()


def scrape(side: str, routes: int) -> dict[str, float]:
    """Return the times of a scrape with WORKERS workers, in seconds."""
    with tempfile.TemporaryDirectory(dir=shared_memory()) as directory:
        command = [sys.executable, "-m", "benchmarks.workers", "--child", side, directory, str(routes)]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this module
            for _ in range(WORKERS)
        ]
        try:
            for child in children:
                cast("IO[str]", child.stdout).readline()
            asked, answers = cast("IO[str]", children[0].stdin), cast("IO[str]", children[0].stdout)
            asked.write("scrape\n")
            asked.flush()
            found: dict[str, float] = json.loads(answers.readline())
            return found
        finally:
            for child in children:
                child.communicate()


def observe(side: str) -> dict[str, float]:
    """Return the time of one observation in a worker, in seconds."""
    code = f"from benchmarks.workers import _observe; _observe({side!r})"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this module
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def _observe(side: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        one = SIDES[side](directory)
        found = {"observe": _time(one.observation(), OBSERVATIONS)}
        one.close()
        print(json.dumps(found))


def run(rounds: int) -> dict[str, Any]:
    """Measure everything, alternating between ours and stock."""
    return {
        "scrape": {str(routes): _scrapes(routes, rounds) for routes in ROUTES},
        "observe": _observations(rounds),
        "request": _requests(rounds),
    }


def _scrapes(routes: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"ours": [], "client": [], "stock": []}
    for at in range(rounds):
        progress(f"workers: scrape of {WORKERS} x {routes} routes, round {at + 1} of {rounds}")
        for side, times in found.items():
            times.append(scrape(side, routes)["median"])
    return _compare_with_stock(found, 1e3, "ms")


def _observations(rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"ours": [], "client": [], "stock": []}
    for at in range(rounds):
        progress(f"workers: observations, round {at + 1} of {rounds}")
        for side, times in found.items():
            times.append(observe(side)["observe"])
    return _compare_with_stock(found, 1e6, "us")


def _compare_with_stock(found: dict[str, list[float]], scale: float, unit: str) -> dict[str, Any]:
    return {
        **paired(found["ours"], found["stock"]),
        "client": paired(found["client"], found["stock"]),
        unit: {side: median(times) * scale for side, times in found.items()},
    }


def _requests(processes: int) -> dict[str, Any]:
    """Compare a whole request in a worker with one in a single process; `noise` compares two single ones."""
    names = [f"{name}@trivial" for name in ("ours", "ours_worker", "ours_again")]
    spent: dict[str, list[float]] = {name: [] for name in names}
    for at in range(processes):
        progress(f"workers: requests, process {at + 1} of {processes}")
        with process.Worker("worker", "0.1", *names[:: 1 if at % 2 else -1], extra={"PYTHONHASHSEED": str(at)}) as one:
            for turn in range(TURNS):
                for name in names[turn % 3 :] + names[: turn % 3]:
                    spent[name].append(one.ask(name, REQUESTS))
    single, worker, again = spent.values()
    return {**Cost(worker, single).as_dict(), "noise": Cost(again, single).as_dict()}


if __name__ == "__main__":
    side, directory, routes = sys.argv[2:]
    _child(side, directory, int(routes))
