"""RESULTS.md, generated from the results only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.apps import PEERS
from benchmarks.figures import figures
from benchmarks.instructions import report as instructions
from benchmarks.machine import MISSING
from benchmarks.picture import alt_of
from benchmarks.report_operations import operations
from benchmarks.report_production import production
from benchmarks.report_text import HEAD, number, row, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.figures import Figure

METHOD = """\
## Method and limits

- **In process.** The apps run in one process and are called as an ASGI server calls them, without a socket (`receive`
  and `send` are referenced as in uvicorn, so the collection of reference cycles is part of an app's cost). A round
  sends the same number of requests to each app, in a random order that is the same in every run. The CPU time of a
  round (`time.process_time`, all threads) is divided by that of the bare app *in the same round*. A figure is the
  median of these paired ratios; the spread is their first and third quartile. Everything is repeated in several
  processes with different hash seeds, since two equal processes differ by some percent. Work that ours defers (queued
  log lines, spans to export) is finished within the measured time.
- **Bare** is the same FastAPI app without middleware and with FastAPI's native telemetry switched off. Each run first
  checks that its requests start no span while ours is installed in the same process and every trace is sampled.
- **Ours** is `install(app)` with default settings except for the sampling ratio. Its lines, and those of the loguru
  peers, go through standard output to a real file, which must contain exactly one line for each request at the end.
- **Peers** each run in a process with bare and ours, on the trivial endpoint. OpenTelemetry peers get a provider with
  our sampler and no exporter; ours has no exporter either, except in the variant `exporting`. logfire and sentry-sdk
  patch the whole process, so they have a separate one, and their ratio is taken across processes. A peer that does not
  sample (metrics, logs) is compared with ours at both ratios.
- **Not comparable**: each peer does one thing, and not the same: a loguru line of four fields is not our request line,
  asgi-correlation-id provides an id and no signal, sentry-sdk and logfire are made for their own back ends. The ratios
  hold for an endpoint that does nothing; with real work the added microseconds are the same and the ratio is smaller.
  The cost of the driver is part of every app and makes every ratio slightly smaller.
- **Noise.** The rows `bare against bare` compare two bare apps in the same way. Their difference from 1 is the error
  of the method: two equal apps differ in memory layout, more so with 1,000 routes.
- **One process or two.** A few parts of ours belong to the process (a callback of the garbage collector), so the bare
  app in the same process pays for them, too. The rows `apart` measure ours and bare in separate processes with
  interleaved rounds.
- **`traceparent`** has a sampled parent, so everything is sampled at both ratios. **`exporting`** sends to a receiver
  in another process, whose cost is not included, and checks the number of spans received.
- **Added cost** is the median of the paired differences. Where two added costs are divided, the spread is the minimum
  and maximum of the processes. Before the last-registered of 1,000 routes the framework walks through all others for
  about a millisecond, which evicts the processor caches: all code that follows is slower, the stack's code, too.
- **Served.** uvicorn without access log for all three. The server's workers are pinned to separate cores, the load to
  the others, if there are enough. With one worker, the servers that do not take part in a round are stopped. Peak: wrk
  with 32 connections. Half of bare's peak: an open-loop generator (`load.py`) that counts latency from the time a
  request was due. `even` sends at equal distances, as rate-limited load generators do; `poisson` as independent users,
  which is harder. Latencies at peak compare servers under different load, each at its own maximum.
- **Start** is measured in fresh processes, alternately, after one that warms the file cache.
  `import_install_first_request` includes the work that ours defers until `install` and the first request.
- **Memory** is the resident set of a process that serves mixed requests (ids and unknown paths never repeat, bodies,
  422s, streams, a scrape every thousand). Growth is the slope of a line through the second half, times its length.
- **Scrape** is the CPU time of a complete `GET /metrics` through the middleware, compared with `generate_latest` alone
  on a registry of prometheus_client's own metrics with exactly the same series (checked), including the collectors of
  the process.
- **Queries and calls** run inside a request of an app with ours, with all signals, at a ratio of 0 (unsampled) and of
  1. Each step is repeated in a separate request (1,000 queries, 500 statements, 20 calls), the steps of a round in
  random order; work deferred to the end of the request is included. Queries and statements are measured in CPU time of
  the caller's thread. Calls are measured in wall-clock time: sequential calls over a kept-alive connection to the bare
  app under uvicorn, in a process on a separate core; their CPU time is listed, too. The SDK's span has the same
  attributes, a provider without processors, and the request's span as parent. Ours has no exporter either.
- **Contrib's instrumentors** run with ours and bare ones in a separate process, of another environment where they do
  not install with the newest SDK or SQLAlchemy (its versions are listed).
- **Statements.** SQLite in memory selects one of 1,000 rows by its key. `same` is one statement with a placeholder,
  which our cache and that of Python's `sqlite3` have; `new` has another literal each time, so both miss. Hostile texts
  repeat parts that slow down a parser, parsed by the rules of three systems, without a cache.
- **In production.** One uvicorn worker on one core, requests at equal distances by `load.py` on another; 500 routes
  with series (20,080 samples, OpenMetrics, gzip). Clients on other cores send the requests of a Prometheus server.
  Clients of the plain route are as many, at the same times, and get as many bytes; compared with scrapers without a
  pause, they request as often as those got responses. Rounds are interleaved, p99 is that of one round, ratios are
  paired by round. Where allowed, server, clients and load have real-time priority, so that other processes of the
  machine do not interfere; but then the server's threads do not switch by themselves on its one core, which is harder
  for it. Scrapes of one app share responses and use at most a twentieth of a core, so 50 scrapers without a pause wait
  for each other. Wrong tokens come from 50 clients, one per millisecond on average, to a server with `metrics_token`;
  for comparison, a bare app gets as many requests for an unknown path.
- **Lag** is the delay of an event loop that sleeps for a millisecond, while it creates 3,000 spans of 12 attributes per
  second, sent to a receiver in another process. p99.9 of a round; differences are paired.
- **Workers** are compared with prometheus_client's multiprocess mode with the same metrics, in wall-clock time and in
  separate processes. `client` are prometheus_client's own metrics in our multiprocess mode. A request in a worker is a
  complete one, in process as above, with all signals and 10 % sampled, in CPU time.
"""

MISSED = "Why targets are missed: [Performance](../docs/explanation/performance.md#what-is-missed-and-why)."

MAX_BUSY_PERCENT = 10
"""CPU usage of other processes, in percent, beyond which the report has a warning."""


def write(results: dict[str, Any]) -> str:
    """Return the report."""
    parts = [
        "# Benchmark results",
        "Written by `python -m benchmarks` (`make bench`). Do not edit.",
        *_made(results),
    ]
    parts += ["## Targets", "\n".join(_figures(figures(results))), MISSED]
    if "inprocess" in results:
        parts += [f"![{alt_of(results)}](results.svg)", *_inprocess(results["inprocess"])]
    if "instructions" in results:
        parts += ["## Instructions", *instructions(results["instructions"])]
    if "peers" in results:
        parts += ["## Peers, trivial endpoint", *_peers(results)]
    if "served" in results:
        parts += ["## Served by uvicorn, 10 % sampled", *_served(results["served"])]
    if "costs" in results:
        parts += ["## Other costs", *_costs(results["costs"])]
    if "operations" in results:
        parts += ["## Queries and calls", *operations(results["operations"])]
    if "production" in results:
        parts += ["## In production", *production(results["production"])]
    return "\n\n".join([*parts, METHOD])


def _made(results: dict[str, Any]) -> Iterator[str]:
    made = {name: section["made"] for name, section in results.items() if "made" in section}
    if any(one["quick"] for one in made.values()):
        yield "**At least in part from a quick run with few rounds: for orientation only.**"
    for name, one in made.items():
        if one["busy"] > MAX_BUSY_PERCENT:
            yield (
                f"**Other processes used {one['busy']:.0f} % of the processor when `{name}` started: "
                "wall-clock results, such as latencies, are unreliable.**"
            )
    for name, one in made.items():
        cpu = f"{one['cpu']}, {one['cores']} cores, {one['system']}, {one['python']}"
        yield f"- {name}: {one['date']}; {cpu}; other processes used {one['busy']:.0f} % of it at the start"
    versions: dict[str, str] = {}
    for one in made.values():  # sections may be measured in environments of their own
        versions |= {name: version for name, version in one["versions"].items() if version != MISSING}
    if versions:
        yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _figures(rows: Iterable[Figure]) -> Iterator[str]:
    yield "| | target | stretch target | measured | spread | | remark |\n|---|---|---|---|---|---|---|"
    for one in rows:
        sign = ">=" if one.at_least else "<="
        show = (lambda value: f"{value:.0f}") if one.plain else number
        better = "" if one.better is None else f"{sign} {show(one.better)}"
        reached = "" if one.reached is None else f"**{show(one.reached)}**"
        found = "" if one.low is None or one.high is None else f"{show(one.low)} to {show(one.high)}"
        yield (
            f"| {one.title} | {sign} {show(one.target)} | {better} | {reached} | {found} | {one.verdict} "
            f"| {one.remark} |"
        )


def _inprocess(found: dict[str, Any]) -> Iterator[str]:
    yield "## Ours in process, by kind of request"
    rows = [row(name, one) for name, one in found["variants"].items()]
    rows += [row(f"{name}, apart", one) for name, one in found["apart"].items()]
    rows += [row(f"bare against bare, {name}", one) for name, one in found["noise"].items()]
    yield "\n".join([HEAD, *rows])
    yield f"The driver takes {found['driver_us']:.1f} us of each request, bare's included."
    yield "### 1,000 routes against 10 (10 % sampled)"
    rows = [
        row(f"{app}, {variant}", one)
        for app, parts in found["routes"].items()
        for variant, one in parts.items()
        if "bare_us" in one
    ]
    yield "\n".join([HEAD, *rows])
    for app, parts in found["routes"].items():
        same, last = parts["same position"], parts["last route"]
        yield (
            f"The time that {app} adds to a request of an app with 1,000 routes, divided by that with 10 routes: "
            f"{number(same['ratio'])} ({spread(same)}) for a route at the same position, {number(last['ratio'])} "
            f"({spread(last)}) for the route that was registered last."
        )


def _peers(results: dict[str, Any]) -> Iterator[str]:
    for part in ("10%", "100%"):
        found = {key.rpartition(" ")[0]: one for key, one in results["peers"].items() if key.endswith(f" {part}")}
        measured = {name: one for name, one in found.items() if "ratio" in one}
        rows = [
            f"| {name} | {PEERS[name][1]} | {number(one['ratio'])} | {spread(one)} | {one['added_us']:.1f} "
            f"| {number(one['ours']['ratio'])} | {number(one['ours_added_part']['ratio'])} |"
            for name, one in sorted(measured.items(), key=lambda pair: pair[1]["ratio"])
        ]
        head = "| | provides | ratio to bare | spread | added, us | ours, same rounds | our added cost relative to it |"
        yield "\n".join([f"### {part} sampled", "", head, "|---|---|---|---|---|---|---|", *rows])
        for name, one in found.items():
            if "skipped" in one:
                yield f"{name} was skipped: {one['skipped']}"


def _served(found: dict[str, Any]) -> Iterator[str]:
    if "skipped" in found:
        yield f"Skipped: {found['skipped']}"
        return
    head = "| | requests/s | against bare | spread | p50, ms | p99, ms | p99 against bare | spread |"
    for workers, one in found.items():
        if not workers.isdigit():
            continue
        note = " **They share cores: there are too few.**" if one["shared"] else ""
        lines = [f"### {workers} worker{'s' * (workers != '1')}, as much as they take", ""]
        lines += [f"Server on cores {one['server_cores']}, load on {one['load_cores']}.{note}", ""]
        lines += [head, "|---" * 8 + "|", *_peak(one["peak"])]
        yield "\n".join(lines)
        for arrivals, half in one.get("half", {}).items():
            yield f"### Half of bare's peak: {one['half_rate']:.0f} requests a second, {arrivals} arrivals"
            yield "\n".join(["| | p50, ms | p99, ms | p99 against bare | spread |", "|---" * 5 + "|", *_half(half)])


def _peak(found: dict[str, Any]) -> Iterator[str]:
    for name, one in found.items():
        rps, p99 = one["rps_ratio"], one["p99_ratio"]
        yield (
            f"| {name} | {one['rps']:.0f} | {number(rps['ratio'])} | {spread(rps)} | {one['p50'] * 1000:.2f} "
            f"| {one['p99'] * 1000:.2f} | {number(p99['ratio'])} | {spread(p99)} |"
        )


def _half(found: dict[str, Any]) -> Iterator[str]:
    for name, one in found.items():
        if "skipped" in one:
            yield f"| {name} | | | does not keep up | |"
            continue
        p99 = one["p99_ratio"]
        yield (
            f"| {name} | {one['p50'] * 1000:.3f} | {one['p99'] * 1000:.3f} | {number(p99['ratio'])} | {spread(p99)} |"
        )


def _costs(found: dict[str, Any]) -> Iterator[str]:
    yield "\n".join(_start(found["start"]))
    yield "\n".join(_memory(found["memory"]))
    yield "\n".join(_scrapes(found["scrape"]))
    for sampled, steps in found["steps"].items():
        yield "\n".join(_steps(sampled, steps))


def _start(found: dict[str, Any]) -> Iterator[str]:
    names = ("fastapi", "package", "build", "install", "first_request")
    yield "### Start (milliseconds of the clock, medians)\n"
    yield "| | import fastapi | import fastapi_observe | build the app | install | first request |\n" + "|---" * 6 + "|"
    for app, one in found["milliseconds"].items():
        yield f"| {app} | " + " | ".join(f"{one[name]:.1f}" for name in names) + " |"
    yield ""
    for name, said in (
        ("import", "Import of the package, against importing FastAPI"),
        ("import_install_first_request", "The same with `install` and what the first request adds"),
        ("whole", "The whole start, against bare"),
    ):
        yield f"- {said}: {number(found[name]['ratio'])} ({spread(found[name])})"
    yield f"- Modules that the package imports beyond FastAPI's: {found['modules']}"


def _memory(found: dict[str, Any]) -> Iterator[str]:
    yield f"### Memory of one worker over {found['requests']:,} mixed requests (MiB resident)\n"
    yield "| | at rest | after the first | at the end | growth, second half, KiB | lines dropped | internal errors |"
    yield "|---" * 7 + "|"
    for app in ("bare", "ours"):
        one = found[app]
        sizes = " | ".join(f"{one[name] / 2**20:.1f}" for name in ("rest", "warm", "end"))
        grown = one["second_half_growth"] / 1024
        dropped = "" if one["dropped_lines"] is None else one["dropped_lines"]
        errors = "" if one["internal_errors"] is None else sum(one["internal_errors"].values())
        yield f"| {app} | {sizes} | {grown:.0f} | {dropped} | {errors} |"


def _scrapes(found: dict[str, Any]) -> Iterator[str]:
    yield "### One scrape of `/metrics` (CPU milliseconds)\n"
    yield "| routes | series | ours | stock `generate_latest` | ratio | spread |\n" + "|---" * 6 + "|"
    for routes, one in found.items():
        yield (
            f"| {routes} | {one['series']} | {one['ours_ms']:.1f} | {one['stock_ms']:.1f} | {number(one['ratio'])} "
            f"| {spread(one)} |"
        )


def _steps(sampled: str, steps: dict[str, Any]) -> Iterator[str]:
    yield f"### Single calls inside a request, {sampled} sampled (CPU microseconds)\n"
    yield "| | ours, caller's thread | others' way | ratio | spread | ours, all threads |\n" + "|---" * 6 + "|"
    for name, one in steps.items():
        thread, process = one["thread"], one["process"]
        title = "`db.query` beside `start_as_current_span` alone" if name == "span alone" else f"`{name}`"
        yield (
            f"| {title} | {thread['ours_us']:.2f} | {thread['stock_us']:.2f} | {number(thread['ratio'])} "
            f"| {spread(thread)} | {process['ours_us']:.2f} |"
        )
    yield ""
    yield (
        "Others' way: an SDK span with a counter and a histogram of prometheus_client (`db.query`, `external.call`); "
        "loguru with `serialize=True`; prometheus_client."
    )
