"""Costs in production: scrapers, unavailable collectors, event loop lag, and multiprocess mode."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import workers
from benchmarks.inprocess import progress
from benchmarks.load import PATH
from benchmarks.paired import paired, quartiles
from benchmarks.process import ROOT, Worker, ask, cores, environment, pinned, urgent
from benchmarks.served import free_port, paced, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE = 400.0
"""Requests per second, about a tenth of the capacity of a worker."""

SPANS = 3000
"""Spans per second while event loop lag is measured."""

ROUTES = 500
SCRAPERS = 50
FEW_ROUTES_ON = "/r/9"
"""One of the first routes; the cost of the last ones is the framework's route search."""

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

EVERY = 1.0
"""Seconds between two scrapes of one scraper."""

GUESSES = 1000
"""Wrong tokens per second."""

TOKENS = {"OBSERVE_METRICS_TOKEN": "the-right-one"}

WARM = 1.5
"""Seconds that scrapers run before requests are measured, until the free CPU time of scrapes is used up."""


class Effort(NamedTuple):
    """The amount of measurement."""

    rounds: int
    seconds: float


class Others(NamedTuple):
    """Requests of the other clients: path, interval of each client, expected status, token."""

    path: str
    every: float
    status: int = 200
    token: str = ""


class Places(NamedTuple):
    """Cores of the server, of the other clients, and of the load generator."""

    server: list[int]
    others: list[int]
    load: list[int]

    @classmethod
    def of(cls, available: list[int]) -> Places:
        """Assign separate cores, if there are enough."""
        return cls(available[:1], available[1:-1] or available[-1:], available[-1:])


@contextmanager
def scrapers(port: int, others: Others, seconds: float, on: list[int]) -> Iterator[dict[str, float]]:
    """Let SCRAPERS clients request a path during the block. The yielded dict has their results afterwards."""
    found: dict[str, float] = {}
    path, every, status, token = others
    words = (port, path, SCRAPERS, every, seconds, status, token)
    command = [sys.executable, "-m", "benchmarks.scrapers", *map(str, words)]
    with subprocess.Popen(  # noqa: S603 - our own module
        pinned(command, on), stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    ) as process:
        yield found
        found.update(json.loads(process.communicate(timeout=60)[0]))


def scraped(effort: Effort, places: Places) -> dict[str, Any]:
    """Measure requests without scrapers, with many, and with as many clients of a plain body of the same size."""
    found: dict[str, list[dict[str, float]]] = {}
    names = ("alone", "again", "scraped", "plain", "flooded", "plain flood")
    with serving("ours", 1, places.server, variant=f"routes-{ROUTES}") as server, server.awake() as port:
        for route in range(ROUTES):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/r/{route}") as answer:
                answer.read()
        size, flood = 100_000, 200.0
        for at in range(effort.rounds + 1):  # the first one is a warm-up
            progress(f"production: scrapers, round {at} of {effort.rounds}")
            for name in names if at % 2 else names[:2][::-1] + names[2:]:
                path = "/metrics" if name in {"scraped", "flooded"} else f"/plain/{size:.0f}"
                every = {"scraped": EVERY, "plain": EVERY, "flooded": 0.0, "plain flood": SCRAPERS / flood}.get(name)
                others = None if every is None else Others(path, every)
                one = _measure(port, FEW_ROUTES_ON, effort.seconds, places, others)
                if name in {"scraped", "flooded"}:
                    size = one["others"]["size"]
                if name == "flooded":
                    flood = one["others"]["rate"]
                if at:
                    found.setdefault(name, []).append(one)
    return {name: summary(rounds, found["alone"]) for name, rounds in found.items()}


def guessed(effort: Effort, places: Places) -> dict[str, Any]:
    """Measure requests while wrong tokens are sent to `/metrics`, and while as many requests get a 404."""
    every = SCRAPERS / GUESSES
    nothing = Others("/nothing/here", every, 404)
    cases = {
        "alone": ("ours", None),
        "again": ("ours", None),
        "guessed": ("ours", Others("/metrics", every, 401, "the-wrong-one")),
        "bare alone": ("bare", None),
        "bare nothing": ("bare", nothing),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    with ExitStack() as stack:
        servers = {
            app: stack.enter_context(serving(app, 1, places.server, extra=TOKENS if app == "ours" else None))
            for app in ("ours", "bare")
        }
        for at in range(effort.rounds + 1):  # the first one is a warm-up
            progress(f"production: wrong tokens, round {at} of {effort.rounds}")
            for name, (app, others) in list(cases.items())[:: 1 if at % 2 else -1]:
                with servers[app].awake() as port:
                    one = _measure(port, PATH, effort.seconds, places, others)
                if at:
                    found[name].append(one)
    return {
        name: summary(rounds, found["bare alone" if cases[name][0] == "bare" else "alone"])
        for name, rounds in found.items()
    }


def _measure(port: int, path: str, seconds: float, places: Places, others: Others | None = None) -> dict[str, Any]:
    """Measure requests at a fixed rate. `others` are the requests of other clients at the same time."""
    if others is None:
        time.sleep(0.3)
        return {**paced(port, RATE, seconds, places.load, "even", path), "others": {}}
    with scrapers(port, others, seconds + WARM + 0.5, places.others) as found:
        time.sleep(WARM)
        one = paced(port, RATE, seconds, places.load, "even", path)
    return {**one, "others": found}


def exporting(effort: Effort, places: Places) -> dict[str, Any]:
    """Measure sampled requests without export, and with collectors that accept, refuse or hang."""
    with ExitStack() as stack:
        ports = {"ok": _collector(stack, places), "hang": _collector(stack, places, "hang"), "refused": free_port()}
        endpoints = {name: {ENDPOINT: f"http://127.0.0.1:{port}"} for name, port in ports.items()}
        servers = {
            name: stack.enter_context(serving("ours", 1, places.server, ratio="1.0", extra=endpoints.get(name)))
            for name in ("off", "again", *ports)
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
        for at in range(effort.rounds + 1):  # the first one is a warm-up
            progress(f"production: collectors, round {at} of {effort.rounds}")
            for name, server in list(servers.items())[:: 1 if at % 2 else -1]:
                with server.awake() as port:
                    one = _measure(port, PATH, effort.seconds, places)
                if at:
                    found[name].append(one)
    return {name: summary(rounds, found["off"]) for name, rounds in found.items()}


def _collector(stack: ExitStack, places: Places, *arguments: str) -> int:
    port: int = stack.enter_context(Worker("receiver", *arguments, on=places.others)).said
    return port


def summary(rounds: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of some rounds, and their p99 compared with that of undisturbed rounds."""
    shown: dict[str, Any] = {name: statistics.median(one[name] for one in rounds) for name in ("p50", "p99")}
    shown["p99_ratio"] = paired([one["p99"] for one in rounds], [one["p99"] for one in alone])
    shown["p99_more"] = statistics.median(one["p99"] - other["p99"] for one, other in zip(rounds, alone, strict=True))
    if rounds[0]["others"]:
        names = ("rate", "size", "p50", "longest")
        shown["others"] = {name: statistics.median(one["others"][name] for one in rounds) for name in names}
    return shown


def lags(effort: Effort, places: Places, available: list[int]) -> dict[str, Any]:
    """Measure event loop lag while spans are created: without export, exported by ours, exported by the SDK."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in ("bare", "again", "ours", "stock")}
    with ExitStack() as stack:
        endpoint = f"http://127.0.0.1:{_collector(stack, places)}"
        for at in range(effort.rounds):
            progress(f"production: lag of the event loop, round {at + 1} of {effort.rounds}")
            for name, rounds in list(found.items())[:: 1 if at % 2 else -1]:
                side = "bare" if name == "again" else name
                # two cores, so that threads of the process wait for the GIL only, not for a core
                rounds.append(ask("lag", side, endpoint, str(SPANS), str(effort.seconds), on=available[:2]))
    return {name: lag_summary(rounds, found["bare"]) for name, rounds in found.items()}


def lag_summary(rounds: list[dict[str, float]], bare: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of some rounds in seconds, and the lag beyond bare in the same rounds."""
    more = [one["p99.9"] - other["p99.9"] for one, other in zip(rounds, bare, strict=True)]
    low, high = quartiles(more)
    shown = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return {**shown, "more": statistics.median(more), "low": low, "high": high}


def run(effort: Effort, workers_rounds: int) -> dict[str, Any]:
    """Measure everything."""
    available = cores()
    places = Places.of(available)
    with urgent() as alone:
        found = {
            "scrapers": scraped(effort, places),
            "guesses": guessed(effort, places),
            "collectors": exporting(effort, places),
            "lag": lags(effort, places, available),
            "workers": workers.run(workers_rounds),
        }
    return {**found, "urgent": alone, "cores": places._asdict()}
