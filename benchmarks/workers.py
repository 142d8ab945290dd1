"""Many workers, one `/metrics`: what a scrape and an observation cost, beside prometheus_client's multiprocess mode.

`python -m benchmarks.workers` prints it. Both sides run in this run, in processes of their own: WORKERS processes make
the series of so many routes as a request does, and stay; then one of them is scraped.
"""
# ruff: noqa: PLC0415, T201 - each side imports what it measures, after its environment; printing is what it is for

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import IO, cast

WORKERS = 4
SCRAPES = 7
OBSERVATIONS = 100_000
REQUESTS = 20_000
ROUNDS = 9


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
    """fastapi-observe, in a worker or (`single`) alone."""

    def __init__(self, directory: str, *, single: bool = False) -> None:
        from fastapi_observe.records.faults import Faults
        from fastapi_observe.runtime.worker_meeting import Worker
        from fastapi_observe.settings import ObserveSettings
        from fastapi_observe.signals.metrics import MetricsService

        self.metrics = MetricsService(ObserveSettings(default_registry=False, series_per_metric=5000), Faults())
        self.worker = None
        if not single:
            self.worker = Worker(Path(directory) / "0-1-1", Faults())
            self.metrics.sharing.share(self.worker, "0")

    def fill(self, routes: int) -> None:
        """Count a request on each route."""
        for route in range(routes):
            self.request(f"/route/{route}/{{item_id}}")

    def request(self, endpoint: str) -> None:
        """Count a request."""
        self.metrics.record_http_request("GET", endpoint, 200, 0.0123, 0, 1234)

    def observation(self) -> object:
        """Return what takes one sample."""
        histogram = self.metrics.histogram("observed_seconds", "x", ["route"]).labels("/a")
        return lambda: histogram.observe(0.0123)

    def exchange(self) -> object:
        """Return what the signal does for one request."""
        from fastapi_observe.records.exchange import Exchange
        from fastapi_observe.records.faults import Faults

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        exchange = Exchange(scope, None, None, Faults(), lambda _: None)  # type: ignore[arg-type]
        exchange.endpoint, exchange.status_code, exchange.duration = "/a", 200, 0.0123

        def one() -> None:
            self.metrics.open_exchange(exchange)
            self.metrics.close_exchange(exchange)

        return one

    def scrape(self) -> int:
        """Return the bytes of what is shown."""
        return len(self.metrics._render("", "")[1])  # noqa: SLF001 - the cache would answer

    def close(self) -> None:
        """Leave the others."""
        if self.worker is not None:
            self.metrics.sharing.unshare()
            self.worker.leave()


class Stock:
    """prometheus_client's multiprocess mode, with the same metrics."""

    def __init__(self, directory: str) -> None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        import prometheus_client as client

        from fastapi_observe.settings import ObserveSettings
        from fastapi_observe.signals.metrics import SIZE_BUCKETS

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
        """Return what takes one sample."""
        histogram = self.client.Histogram("observed_seconds", "x", ["route"]).labels("/a")
        return lambda: histogram.observe(0.0123)

    def scrape(self) -> int:
        """Return the bytes of what is shown."""
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self.client.CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return len(self.client.generate_latest(registry))

    def close(self) -> None:
        """Nothing is left open."""


class Client(Stock):
    """prometheus_client's own metrics, in a worker of ours."""

    def __init__(self, directory: str) -> None:
        from fastapi_observe.records.faults import Faults
        from fastapi_observe.runtime.worker_meeting import Worker
        from fastapi_observe.settings import ObserveSettings
        from fastapi_observe.signals.metrics import MetricsService

        self.metrics = MetricsService(ObserveSettings(), Faults())
        self.worker = Worker(Path(directory) / "0-1-1", Faults())
        self.metrics.sharing.share(self.worker, "0")
        super().__init__(directory)

    def scrape(self) -> int:
        """Return the bytes of what is shown."""
        return len(self.metrics._render("", "")[1])  # noqa: SLF001 - the cache would answer

    def close(self) -> None:
        """Leave the others."""
        self.metrics.sharing.unshare()
        self.worker.leave()


SIDES = {"ours": Ours, "stock": Stock, "client": Client}


def _child(side: str, directory: str, routes: int) -> None:
    """Fill, say so, and then do what the parent asks for."""
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
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a directory of its own is made there
    with tempfile.TemporaryDirectory(dir=base) as directory:
        command = [sys.executable, "-m", "benchmarks.workers", "--child", side, directory, str(routes)]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
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
    """Return the time of one observation in a worker, in seconds; of ours also that of a request, alone and in it."""
    code = f"from benchmarks.workers import _observe; _observe({side!r})"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ourselves
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def _observe(side: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        one = SIDES[side](directory)
        found = {"observe": _time(one.observation(), OBSERVATIONS)}
        if isinstance(one, Ours):
            alone = Ours(directory, single=True)
            shared, single = one.exchange(), alone.exchange()
            ratios = []
            for _ in range(5):
                found["single"], found["worker"] = _time(single, REQUESTS), _time(shared, REQUESTS)
                ratios.append(found["worker"] - found["single"])
            found["more"] = median(ratios)
        one.close()
        print(json.dumps(found))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "DIRECTORY", "ROUTES"))
    arguments = parser.parse_args()
    if arguments.child:
        side, directory, routes = arguments.child
        _child(side, directory, int(routes))
        return
    for routes in (200, 2000):
        stock = scrape("stock", routes)
        for side in ("ours", "client"):
            found = scrape(side, routes)
            print(
                f"scrape, {WORKERS} workers x {routes} routes: {side} {found['median'] * 1e3:.1f} ms "
                f"(first {found['first'] * 1e3:.1f}), stock {stock['median'] * 1e3:.1f} ms, "
                f"ratio {found['median'] / stock['median']:.3f}"
            )
    stock = observe("stock")
    for side in ("ours", "client"):
        found = observe(side)
        print(
            f"observe in a worker: {side} {found['observe'] * 1e6:.2f} us, stock {stock['observe'] * 1e6:.2f} us, "
            f"ratio {found['observe'] / stock['observe']:.2f}"
        )
        if "more" in found:
            print(
                f"metrics signal, one request: single {found['single'] * 1e6:.2f} us, "
                f"worker {found['worker'] * 1e6:.2f} us, {found['more'] * 1e6:+.2f} us"
            )


if __name__ == "__main__":
    main()
