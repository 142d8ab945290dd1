"""RESULTS.md, written from the results and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.apps import PEERS
from benchmarks.figures import figures
from benchmarks.machine import MISSING
from benchmarks.picture import alt_of
from benchmarks.report_operations import operations
from benchmarks.report_production import production
from benchmarks.report_text import HEAD, number, row, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.figures import Figure

METHOD = """\
## How it was measured, and what it does not show

- **In process.** The apps stand in one process and are called as an ASGI server calls them, without a socket (`receive`
  and `send` are held as uvicorn holds them, so what an app leaves to the garbage collector is charged to it). A round
  sends the same number of requests to each app, in a random order that is the same in every run; the CPU time of a
  round (`time.process_time`: all threads) is divided by that of the bare app *in the same round*. A figure is the
  median of these paired ratios; the spread is their first and third quartile. All of it is repeated in several
  processes with other hash seeds, since two equal processes differ by some percent. What ours has put off (the queue
  of its log lines, spans to export) is done within the time that is charged to it.
- **Bare** is the same FastAPI app with FastAPI's native telemetry switched off and no middleware. Before each run it is
  shown that with ours installed in the same process, and every trace sampled, its requests start no span.
- **Ours** is `install(app)` at its defaults but for the sampling ratio. Its lines, and those of the loguru peers, go
  through standard output to a real file; at the end the file must hold exactly one line for each request.
- **Peers** each run in a process with bare and ours, on the trivial endpoint. OpenTelemetry peers get a provider with
  ours' sampler and no exporter; ours has none either, except in the variant `exporting`. logfire and sentry-sdk patch
  the whole process, so they have one of their own, and their ratio is taken across processes. A peer that is not
  sampled (metrics, logs) is measured beside ours at both ratios.
- **Not comparable**: the peers do one thing each, and not the same thing: a loguru line of four fields is not ours'
  request line, asgi-correlation-id gives an id and no signal, sentry-sdk and logfire are made for their own back ends.
  Ratios hold for an endpoint that does nothing; one that does real work has the same microseconds added and a smaller
  ratio. The driver's own cost is in all apps alike and makes every ratio a little smaller.
- **Noise.** The rows `bare against bare` compare two bare apps in the same way. What they differ from 1 is the error of
  the method: two equal apps lie differently in memory, the more so with 1,000 routes.
- **One process or two.** A few things that ours does belong to the process (a callback of the garbage collector) and
  are paid by the bare app beside it too. The rows `apart` measure ours and bare in a process each, rounds interleaved.
- **`traceparent`** says that the parent is sampled, so both ratios sample all of it. **`exporting`** sends to a
  receiver in another process, whose own cost is not counted, and checks how many spans came.
- **Added cost** is the median of the paired differences. Where two added costs are divided, the spread is the least
  and the most that one of the processes gave. Before the last-registered of 1,000 routes the framework walks through
  all others for about a millisecond, which empties the processor's caches: whatever runs after it is slower, the
  stack's code too.
- **Served.** uvicorn without access log for all three; the server's workers are pinned to cores of their own, the load
  to the others, as far as there are enough. With one worker, the servers that do not take part in a round are stopped.
  Peak: wrk with 32 connections. Half of bare's peak: an open-loop generator of ours (`load.py`) that counts a latency
  from the moment a request was due. `even` sends at equal distances, as rate-limited load generators do; `poisson` as
  independent users come, which is harder. Latencies at peak compare servers under different load, each its own most.
- **Start** is measured in fresh processes, in turn, after one that fills the file cache. `import_install_first_request`
  counts what ours puts off until `install` and the first request.
- **Memory** is the resident set of a process that answers mixed requests (ids and unknown paths never repeated,
  bodies, 422s, streams, a scrape every thousand). Growth is the slope of a line through the second half, times its
  length.
- **Scrape** is the CPU time of a whole `GET /metrics` through the door, against `generate_latest` alone on a registry
  of prometheus_client's own metrics that shows exactly the same series (checked), the process's collectors included.
- **Queries and calls** run inside a request of an app with ours, all three signals on, at a ratio of 0 (unsampled) and
  of 1. Each step is repeated in a request of its own (1,000 queries, 500 statements, 20 calls), the steps of a round in
  random order; what ours leaves until the request's end is done within the time. Queries and statements count CPU time
  of the caller's thread. Calls count the clock: one after another over a kept connection, the callee (the bare app
  under uvicorn) in a process on a core of its own; the CPU time stands beside it. The SDK's span has the same
  attributes, its provider no processor, and the request's span is its parent. Ours has no exporter either.
- **Contrib's instrumentors** stand beside ours and bare ones in a process of their own, of another environment where
  they do not install with the newest SDK or SQLAlchemy (its versions are given).
- **Statements.** SQLite in memory selects one of 1,000 rows by its key. `same` is one statement with a placeholder,
  which our cache and that of Python's `sqlite3` know; `new` has another literal each time, which neither knows. Hostile
  texts repeat what makes a reader slow, read by the rules of three systems, without a cache.
- **In production.** One uvicorn worker on one core, requests at even distances by `load.py` from another; 500 routes
  with series (20,080 samples, OpenMetrics, gzip). The clients on other cores ask as Prometheus does. Those of the
  plain route are as many, at the same moments, and get as many bytes; beside scrapers without a pause they ask as
  often as those were answered. Rounds are interleaved, p99 is that of one round, ratios are paired round by round.
  Where it is allowed, server, clients and load run in the real-time class: other processes of the machine do not
  disturb them, but the server's threads do not take turns by themselves on its one core either, which is harder for
  it. Scrapes of one app are answered together and take at most a twentieth of a core, so 50 scrapers without a pause
  wait for each other. Wrong tokens come from 50 clients too, on average one in each millisecond, to a server with
  `metrics_token`; beside a bare app as many requests for a path that it has not.
- **Lag** is how much later than asked a loop comes back from sleeping a millisecond while spans of 12 attributes are
  made in it, 3,000 a second, sent to a receiver in another process; p99.9 of a round, the differences paired.
- **Workers** stand beside prometheus_client's multiprocess mode with the same metrics, by the clock, in processes of
  their own. `client` are prometheus_client's own metrics in a worker of ours. A request in a worker is a whole one,
  in process as above, all three signals, 10 % sampled, CPU time.
"""

MISSED = (
    "Why a figure is missed, and what was tried: [docs/performance.md](../docs/performance.md#what-is-missed-and-why)."
)

MOST_BUSY = 10
"""Percent of the processor that others may take before the report says so."""


def write(results: dict[str, Any]) -> str:
    """Return the report."""
    parts = [
        "# What observing costs",
        "Written by `python -m benchmarks` (`make bench`). Do not edit.",
        *_made(results),
    ]
    parts += ["## Figures to reach", "\n".join(_figures(figures(results))), MISSED]
    if "inprocess" in results:
        parts += [f"![{alt_of(results)}](results.svg)", *_inprocess(results["inprocess"])]
    if "peers" in results:
        parts += ["## Peers, trivial endpoint", *_peers(results)]
    if "served" in results:
        parts += ["## Served by uvicorn, 10 % sampled", *_served(results["served"])]
    if "costs" in results:
        parts += ["## Costs elsewhere", *_costs(results["costs"])]
    if "operations" in results:
        parts += ["## Queries and calls", *operations(results["operations"])]
    if "production" in results:
        parts += ["## In production", *production(results["production"])]
    return "\n\n".join([*parts, METHOD])


def _made(results: dict[str, Any]) -> Iterator[str]:
    made = {name: section["made"] for name, section in results.items() if "made" in section}
    if any(one["quick"] for one in made.values()):
        yield "**Of a quick run, at least in part: few rounds. For orientation only.**"
    for name, one in made.items():
        if one["busy"] > MOST_BUSY:
            yield (
                f"**Others kept the processor busy for {one['busy']:.0f} % when `{name}` began: what the clock "
                "measures there, latencies above all, is not to be trusted.**"
            )
    for name, one in made.items():
        cpu = f"{one['cpu']}, {one['cores']} cores, {one['system']}, {one['python']}"
        yield f"- {name}: {one['date']}; {cpu}; others kept {one['busy']:.0f} % of it busy at the start"
    versions: dict[str, str] = {}
    for one in made.values():  # sections may be measured in environments of their own
        versions |= {name: version for name, version in one["versions"].items() if version != MISSING}
    if versions:
        yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _figures(rows: Iterable[Figure]) -> Iterator[str]:
    yield "| | to reach | better still | reached | spread | | remark |\n|---|---|---|---|---|---|---|"
    for one in rows:
        sign = ">=" if one.at_least else "<="
        show = (lambda value: f"{value:.0f}") if one.plain else number
        better = "" if one.better is None else f"{sign} {show(one.better)}"
        reached = "" if one.reached is None else f"**{show(one.reached)}**"
        found = "" if one.low is None or one.high is None else f"{show(one.low)} to {show(one.high)}"
        yield (
            f"| {one.title} | {sign} {show(one.wanted)} | {better} | {reached} | {found} | {one.verdict} "
            f"| {one.remark} |"
        )


def _inprocess(found: dict[str, Any]) -> Iterator[str]:
    yield "## Ours in process, by kind of request"
    rows = [row(name, one) for name, one in found["variants"].items()]
    rows += [row(f"{name}, apart", one) for name, one in found["apart"].items()]
    rows += [row(f"bare against bare, {name}", one) for name, one in found["noise"].items()]
    yield "\n".join([HEAD, *rows])
    yield f"The driver itself is {found['driver_us']:.1f} us of each request, bare's included."
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
            f"Added cost of {app}, 1,000 routes against 10: {number(same['ratio'])} ({spread(same)}) on the same "
            f"route; {number(last['ratio'])} ({spread(last)}) on the last-registered of 1,000."
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
        head = "| | gives | ratio to bare | spread | added, us | ours beside it | ours' added cost against its |"
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
    yield "| | at rest | after the first | at the end | growth over the second half, KiB | lines dropped | faults |"
    yield "|---" * 7 + "|"
    for app in ("bare", "ours"):
        one = found[app]
        sizes = " | ".join(f"{one[name] / 2**20:.1f}" for name in ("rest", "warm", "end"))
        grown = one["second_half_growth"] / 1024
        dropped = "" if one["dropped_lines"] is None else one["dropped_lines"]
        faults = "" if one["faults"] is None else sum(one["faults"].values())
        yield f"| {app} | {sizes} | {grown:.0f} | {dropped} | {faults} |"


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
