"""Facts about the benchmarks' arithmetic and writing; no time is measured here."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks import check, costs, instructions, lag, operations, paired, picture, process, production, report, served
from benchmarks.__main__ import main
from benchmarks.apps import MAKERS, PEERS, REQUESTS, VARIANTS, plain_app, refuse_telemetry
from benchmarks.figures import figures
from benchmarks.load import due_times
from benchmarks.memory import mixed
from benchmarks.operation_steps import ATTRIBUTES, finish_deferred_work, query_steps
from benchmarks.report_operations import TITLES
from benchmarks.scrape import series, stock_registry
from benchmarks.scrapers import Clients
from benchmarks.statement_steps import HOSTILE, SIZES, hostile
from benchmarks.worker import caller
from fastapi_observe import install

MADE = {
    "date": "2030-01-01 00:00 UTC",
    "cpu": "A Processor",
    "cores": 4,
    "system": "Linux x86_64",
    "python": "CPython 3.11",
    "busy": 1.0,
    "versions": {"fastapi": "0.1", "starlette": "0.2"},
    "quick": False,
}


def part(ratio: float, **more: Any) -> dict[str, Any]:
    """Build one measured ratio as the results hold it."""
    return {"ratio": ratio, "low": ratio * 0.9, "high": ratio * 1.1, "rounds": 5, **more}


def cost(ratio: float) -> dict[str, Any]:
    """Build one measured cost as the results hold it."""
    return part(ratio, added_us=50 * (ratio - 1), bare_us=50.0)


def peer(ratio: float, ours: float) -> dict[str, Any]:
    """Build one peer as the results hold it."""
    return {**cost(ratio), "ours": cost(ours), "ours_added_part": part((ours - 1) / (ratio - 1))}


def server(rps: float, p99: float) -> dict[str, Any]:
    """Build one served app as the results hold it."""
    ratios = {"rps_ratio": part(rps), "p50_ratio": part(1.0), "p99_ratio": part(p99)}
    return {"rps": 9000 * rps, "p50": 0.001, "p99": 0.002, **ratios}


def some_operations() -> dict[str, Any]:
    """Build the results of queries and calls: in a sampled request the engine is too dear."""
    unsampled, sampled = (dict.fromkeys(TITLES, cost(1.02)) for _ in range(2))
    unsampled["query"], sampled["query"] = cost(0.35), cost(1.1)
    sampled["engine_ours"] = cost(1.9)
    beside = {kind: peer(2.0, 1.1) for kind in ("engine", "client")}
    versions = {"sqlalchemy": "2.1", "httpx": "0.28"}
    linear = {"us": [1.0, 4.0, 4.0], "growth": [part(4.0), part(1.0)]}
    return {
        "made": MADE,
        "unsampled": unsampled,
        "sampled": sampled,
        "versions": versions,
        "contrib": {"unsampled": beside, "sampled": beside, "versions": {**versions, "sqlalchemy": "2.0"}},
        "statements": {
            **{name: part(0.08, ours_us=0.2, sqlite_us=2.5) for name in ("same", "uncached", "new")},
            "hostile": {"words, sqlite": linear, "ticks, sqlite": {**linear, "growth": [part(3.0), part(1.1)]}},
        },
    }


def some_production() -> dict[str, Any]:
    """Build the results of production: without a pause the scrapers trouble the requests, one collector slows them."""
    beside = {"p50": 0.0003, "p99": 0.0005, "p99_ratio": part(1.0), "p99_more": 0.0}
    asked = {**beside, "others": {"rate": 50.0, "size": 80_000.0, "p50": 0.17, "longest": 0.4}}
    late = {"p99_ratio": part(1.2), "p99_more": 0.0003}
    quick, slow = (
        {"p50": 0.0001, "p99": 0.001, "p99.9": lag, "more": lag, "low": lag, "high": lag} for lag in (0, 0.01)
    )
    return {
        "made": MADE,
        "urgent": False,
        "scrapers": {
            **dict.fromkeys(("alone", "again"), beside),
            **dict.fromkeys(("scraped", "plain", "plain flood"), asked),
            "flooded": {**asked, **late},
        },
        "guesses": {
            **dict.fromkeys(("alone", "again", "bare alone"), beside),
            **dict.fromkeys(("guessed", "bare nothing"), asked),
        },
        "collectors": {**dict.fromkeys(("off", "again", "ok", "refused"), beside), "hang": {**beside, **late}},
        "lag": {"bare": quick, "again": quick, "ours": quick, "stock": slow},
        "workers": {
            "scrape": {
                routes: part(0.05, client=part(0.3), ms={"ours": 10.0, "client": 60.0, "stock": 200.0})
                for routes in ("200", "2000")
            },
            "observe": part(0.3, client=part(0.5), us={"ours": 0.5, "client": 0.8, "stock": 1.6}),
            "request": {**cost(1.01), "noise": cost(1.0)},
        },
    }


def some_results() -> dict[str, Any]:
    """Build the results of a run in which single things are met, missed or skipped."""
    steps = {"db.query", "request line", "span alone"}
    step = {"thread": part(0.1, ours_us=3.0, stock_us=30.0), "process": part(0.1, ours_us=4.0, stock_us=30.0)}
    memory = {
        "rest": 2**26,
        "warm": 2**26,
        "end": 2**26,
        "dropped_lines": 0,
        "internal_errors": {},
        "second_half_growth": 0.0,
    }
    start = {name: part(0.2) for name in ("import", "import_install_first_request", "whole")}
    names = ("fastapi", "package", "build", "install", "first_request")
    milliseconds = {app: dict.fromkeys(names, 1.0) for app in ("bare", "ours")}
    half = {"bare": server(1, 1), "ours": server(0.8, 1.07), "stack": {"skipped": "too slow"}}
    one = {
        "server_cores": [0],
        "load_cores": [1],
        "shared": False,
        "peak": {"bare": server(1, 1), "ours": server(0.85, 2)},
    }
    return {
        "inprocess": {
            "made": MADE,
            "variants": {f"{name} {at}": cost(1.3) for name in ("trivial", "stream") for at in ("10%", "100%")},
            "apart": {"trivial 10%": cost(1.31)},
            "routes": {
                "ours": {"routes-10": cost(1.3), "same position": part(1.2), "last route": part(1.4)},
            },
            "noise": {"trivial": cost(1.01)},
            "driver_us": 1.5,
        },
        "peers": {
            "made": MADE,
            "stack 10%": peer(6.9, 1.3),
            "native 10%": peer(1.68, 1.3),
            "native 100%": peer(2.18, 1.3),
            "instrumentator 10%": peer(1.2, 1.3),
            "correlation_id 10%": peer(1.1, 1.3),
            "logfire 10%": {"skipped": "not installed"},
        },
        "served": {"made": MADE, "1": {**one, "half": {"even": half, "poisson": half}, "half_rate": 4500.0}},
        "costs": {
            "made": MADE,
            "start": {**start, "modules": 100, "milliseconds": milliseconds},
            "memory": {"requests": 100_000, "bare": memory, "ours": memory},
            "scrape": {"500": part(0.3, ours_ms=3.0, stock_ms=10.0, series=100, bytes=1000)},
            "steps": {"100%": dict.fromkeys(sorted(steps), step)},
        },
        "operations": some_operations(),
        "production": some_production(),
    }


# Arithmetic


def test_ratio_is_the_median_of_the_rounds() -> None:
    """One disturbed round, of either side, changes neither ratio nor added cost."""
    one = paired.Cost([2e-6, 2e-6, 2e-6, 9e-6, 2e-6], [1e-6, 1e-6, 1e-6, 1e-6, 8e-6])
    assert one.ratio == pytest.approx(2)
    assert one.added == pytest.approx(1e-6)
    assert one.as_dict()["rounds"] == 5


def test_ratios_are_paired_within_a_round() -> None:
    """A machine that becomes three times slower halfway does not change the ratio or its spread."""
    found = paired.paired([2, 2, 2, 6, 6, 6], [1, 1, 1, 3, 3, 3])
    assert (found["ratio"], found["low"], found["high"]) == (2, 2, 2)


def test_spread_is_the_quartiles() -> None:
    """The spread leaves out the outer quarters; a single value is its own spread."""
    assert paired.quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert paired.quartiles([7]) == (7, 7)


def test_added_costs_are_compared_by_medians() -> None:
    """Half the added cost is half; the least and the most of the run's parts show how sure that is."""
    first = paired.Cost([1.5, 1.5, 1.4, 1.6], [1, 1, 1, 1])
    second = paired.Cost([2, 2, 2, 2], [1, 1, 1, 1])
    assert paired.ratio_of_added(first, second, 1)["ratio"] == pytest.approx(0.5)
    found = paired.ratio_of_added(first, second, 4)
    assert [found["low"], found["ratio"], found["high"]] == pytest.approx([0.4, 0.5, 0.6])


def test_percentiles_and_slopes() -> None:
    """A percentile is a value that was seen; the slope of a line is its slope."""
    assert paired.percentile(list(range(100)), 0.99) == 99
    assert paired.percentile([3], 0.5) == 3
    assert paired.slope([(0, 1), (10, 21), (20, 41)]) == pytest.approx(2)


def test_memory_growth_is_that_of_the_second_half() -> None:
    """What a process takes while it warms up is not growth."""
    points = [(at, 1000 * min(at, 5)) for at in range(1, 11)]
    found = costs.read_memory({"points": points, "rest": 0, "warm": 0, "dropped_lines": None, "internal_errors": None})
    assert found["second_half_growth"] == pytest.approx(0)
    assert found["end"] == 5000


def test_starts_are_compared_with_the_import_of_fastapi() -> None:
    """What is put off until install and the first request is counted in a figure of its own."""
    bare = {"fastapi": 1.0, "package": 0.0, "build": 0.0, "install": 0.0, "first_request": 0.1, "modules": 0}
    ours = {"fastapi": 1.0, "package": 0.2, "build": 0.0, "install": 0.1, "first_request": 0.2, "modules": 9}
    found = costs.read_starts({"bare": [bare], "ours": [ours]})
    assert found["import"]["ratio"] == pytest.approx(0.2)
    assert found["import_install_first_request"]["ratio"] == pytest.approx(0.4)
    assert found["whole"]["ratio"] == pytest.approx(1.5 / 1.1)


def test_operations_are_compared_within_a_round() -> None:
    """Queries and statements count the CPU time of the thread, calls the clock, each against the bare one's."""
    steps = ("query", "query_with", "operation", "query_span", "operation_span")
    taken = {step: [[2.0, 0.0, 9.0]] for step in (*steps, "engine_ours", "client_ours", "engine_again", "client_again")}
    taken |= {"engine_bare": [[1.0, 0.0, 9.0]], "client_bare": [[1.0, 0.0, 3.0]]}
    found = operations.compare(taken)
    assert (found["query"]["ratio"], found["engine_ours"]["ratio"], found["client_ours"]["ratio"]) == (1, 2, 3)
    assert found["client_ours_cpu"]["ratio"] == 2
    assert set(found) == set(TITLES)


def test_ours_and_contrib_share_their_rounds() -> None:
    """What ours adds is divided by what contrib's adds to the same bare engine and client."""
    taken = {f"{kind}_bare": [[1.0, 0.0, 1.0]] for kind in ("engine", "client")}
    taken |= {f"{kind}_ours": [[1.5, 0.0, 1.5]] for kind in ("engine", "client")}
    taken |= {f"{kind}_contrib": [[3.0, 0.0, 2.0]] for kind in ("engine", "client")}
    found = operations.compare_contrib(taken, 1)
    assert found["engine"]["ours_added_part"]["ratio"] == pytest.approx(0.25)
    assert found["client"]["ours_added_part"]["ratio"] == pytest.approx(0.5)


def test_statements_are_judged_by_their_growth() -> None:
    """The hostile text that grows fastest decides, from one length to the next."""
    typical = {name: [1.0] for name in ("same read", "same executed", "uncached read", "new read", "new executed")}
    found = operations.read_statements({"typical": typical, "hostile": {"a": [[1, 4, 4]], "b": [[1, 16, 32]]}})
    assert found["same"]["ratio"] == 1
    assert [operations.worst(found["hostile"], at)[1]["ratio"] for at in (0, -1)] == [16, 2]
    assert operations.worst(found["hostile"], 0)[0] == "b"


# What is measured


def test_without_contrib_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where contrib's instrumentors are not installed, the section is measured without them and says what to do."""
    monkeypatch.delenv(operations.CONTRIB_PYTHON, raising=False)
    monkeypatch.setattr(operations, "CONTRIB", ("opentelemetry.instrumentation.there_is_none", "nothing.at.all"))
    found = operations.contrib("http://127.0.0.1:9", operations.Effort(1, 1, 1), [])
    assert operations.CONTRIB_PYTHON in found["skipped"]


async def test_spans_that_are_compared_say_the_same() -> None:
    """The SDK's own span is given the attributes that the span of `db.query` has; the request's work is counted."""
    spans = InMemorySpanExporter()
    app = plain_app()
    observe = install(app, sample_ratio=1.0, span_processors=[SimpleSpanProcessor(spans)], logs=False)

    @app.get("/once")
    async def once() -> None:
        await query_steps(observe, 1.0)["query"](1)
        finish_deferred_work()

    await caller(app, {"method": "GET", "path": "/once", "body": b"", "headers": {}})()
    observe.close()
    query, server = spans.get_finished_spans()
    assert dict(query.attributes or {}) == ATTRIBUTES
    assert (server.attributes or {})["fastapi_observe.db_count"] == 1


def test_hostile_texts_have_the_lengths_they_are_named_for() -> None:
    """Each text has exactly the length that its cost is shown under."""
    assert {len(hostile(part, size)) - size for part in HOSTILE.values() for size in SIZES} == {0}


def test_the_bare_app_is_bare() -> None:
    """An app that is observed in any way is refused as bare."""
    app = plain_app()
    refuse_telemetry(app)
    observe = install(app)
    with pytest.raises(RuntimeError, match="not bare"):
        refuse_telemetry(app)
    observe.close()


def test_every_variant_and_peer_can_be_made() -> None:
    """Each variant has a request, each peer a maker."""
    assert set(VARIANTS) < set(REQUESTS)
    assert set(PEERS) < set(MAKERS)


def test_stock_registry_shows_the_same_series() -> None:
    """The registry that a scrape is compared with has the same families, labels and buckets."""
    import prometheus_client  # noqa: PLC0415 - here only

    app = plain_app()
    observe = install(app)
    observe.metrics.record_http_request("GET", '/a"b\\c', 200, 0.1, 1, 2)
    shown = observe.metrics.render("", "")[1].decode()
    observe.close()
    same = prometheus_client.generate_latest(stock_registry(shown)).decode()
    created = {line for line in series(same) if "_created" in line}
    assert series(same) - created == series(shown)


def test_mixed_requests_do_not_repeat_ids() -> None:
    """Ids and unknown paths are new each time; there are scrapes and streams among them."""
    paths = [one["path"] for one in mixed(2000)]
    assert paths.count("/metrics") == 2
    assert paths.count("/stream") == 18
    unknown = [path for path in paths if path.startswith("/nothing")]
    assert len(unknown) == len(set(unknown))


def test_wrk_is_read() -> None:
    """Requests per second and latencies are parsed in their units; failed requests are an error."""
    text = "  Latency Distribution\n 50%  823.00us\n 75% 1.00ms\n 99%  2.50ms\nRequests/sec:   9716.50\n"
    assert served.read_wrk(text) == {"rps": 9716.5, "p50": pytest.approx(823e-6), "p99": pytest.approx(2.5e-3)}
    with pytest.raises(RuntimeError, match="failed"):
        served.read_wrk(text + "  Non-2xx or 3xx responses: 3\n")
    with pytest.raises(RuntimeError, match="no result"):
        served.read_wrk("")


def test_server_and_load_have_cores_of_their_own() -> None:
    """With enough cores, none is shared."""
    assert served.places(1, [0, 1, 2, 3]) == ([0], [1, 2, 3])
    assert served.places(4, [0, 1, 2, 3]) == ([0, 1, 2, 3], [2, 3])
    assert process.pinned(["wrk"], None) == ["wrk"]


def test_arrivals() -> None:
    """Both kinds of arrivals keep the rate; even ones come at equal distances."""
    assert due_times(4, 1, "even") == [0.25, 0.5, 0.75, 1.0]
    poisson = due_times(1000, 10, "poisson")
    assert len(poisson) == pytest.approx(10_000, rel=0.05)
    assert poisson == sorted(poisson)


# What is written


def test_figures_are_judged() -> None:
    """Met, met better, missed and not measured are distinguished, at-least goals too."""
    verdicts = {one.title: one.verdict for one in figures(some_results())}
    assert verdicts["trivial endpoint, all signals, 10 %"] == "met"
    assert verdicts["the same, 100 % sampled"] == "met, and the better one"
    assert verdicts["cost added, 1,000 routes against 10"] == "MISSED"
    assert verdicts["served, one worker, requests per second against bare"] == "met"
    assert verdicts["p99 at half of bare's peak load"] == "met"
    assert verdicts["memory growth over the second half of the requests, KiB"] == "met"
    assert {one.verdict for one in figures({})} == {"not measured"}
    assert verdicts["`db.query` around nothing, against the SDK's own span, unsampled"] == "met"
    assert verdicts["`SELECT 1` through SQLAlchemy on SQLite, against a bare engine, sampled"] == "MISSED"
    assert verdicts["contrib's instrumentors that cost less than ours, of 4 pairs"] == "met"
    assert verdicts["parsing 64 KB of hostile text against 8 KB (linear: 8)"] == "met, and the better one"
    assert len(verdicts) == 32


def test_a_cheaper_instrumentor_is_named() -> None:
    """An instrumentor of contrib's that costs less than ours misses the figure and is named; so is why none ran."""
    results = some_results()
    results["operations"]["contrib"]["sampled"] = {"engine": peer(1.05, 1.1), "client": peer(2.0, 1.1)}
    (row,) = [one for one in figures(results) if one.title.startswith("contrib")]
    assert (row.reached, row.verdict, row.remark) == (1, "MISSED", "engine, sampled")
    results["operations"]["contrib"] = {"skipped": "not installed"}
    (row,) = [one for one in figures(results) if one.title.startswith("contrib")]
    assert (row.reached, row.verdict, row.remark) == (None, "not measured", "not installed")
    assert "Skipped: not installed" in report.write(results)


def test_a_cheaper_peer_is_named() -> None:
    """A single peer that costs less than ours misses the figure and is named; skipped ones are too."""
    (row,) = [one for one in figures(some_results()) if one.title.startswith("single peers")]
    assert (row.reached, row.verdict) == (1, "MISSED")
    assert row.remark == "instrumentator 10%; skipped: logfire 10%"


def test_figures_of_production_are_judged() -> None:
    """Scrapers and collectors are rated by their effect on p99, next to what others did in the same rounds."""
    rows = {row.title: row for row in figures({"production": some_production()}) if row.reached is not None}
    verdicts = {title: row.verdict for title, row in rows.items()}
    assert len(verdicts) == 11
    assert {title for title, verdict in verdicts.items() if verdict != "met"} == {
        "p99 with 50 scrapers, without a pause, against none",
        "p99 added by a collector that hangs, ms",
    }
    assert rows["p99 with 50 scrapers, each once per second, against none"].remark.startswith(
        "as many plain answers: 1"
    )
    assert rows["event loop lag p99.9 above bare, 3,000 spans per second, ms"].remark == (
        "the SDK's processor: 10.00; bare again: 0.00"
    )


def test_what_a_collector_adds_is_paired() -> None:
    """What is added to p99 is the median of the differences of each round; so is what a loop is late."""
    rounds = [{"p50": 1.0, "p99": p99, "others": {}} for p99 in (2.0, 4.0, 7.0)]
    alone = [{"p50": 1.0, "p99": p99, "others": {}} for p99 in (1.0, 2.0, 4.0)]
    found = production.summary(rounds, alone)
    assert (found["p99_ratio"]["ratio"], found["p99_more"]) == (2.0, 2.0)
    assert "others" not in found
    assert production.lag_summary([{"p99.9": 3.0}], [{"p99.9": 1.0}])["more"] == 2.0


def test_everybody_has_a_core_where_there_are_enough() -> None:
    """Server, clients and load run on separate cores; with few they share."""
    assert production.Places.of([0, 1, 2, 3]) == ([0], [1, 2], [3])
    assert production.Places.of([0, 1]) == ([0], [1], [1])
    assert production.Places.of([5]) == ([5], [5], [5])


def test_clients_ask_again_and_again() -> None:
    """The clients of the load take whole responses, each as often as requested, and report their size."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()

    async def main() -> Clients:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        clients = Clients(server.sockets[0].getsockname()[1], "/metrics")
        now = perf_counter()
        await asyncio.gather(*(clients.ask(now, 1.0, now + 0.01) for _ in range(3)))
        server.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        return clients

    clients = asyncio.run(main())
    assert (len(clients.took), clients.size) == (3, 5)


@pytest.mark.parametrize("side", ["bare", "ours", "stock"])
def test_spans_are_made_while_the_loop_is_watched(side: str) -> None:
    """Each side makes the configured spans, at the configured rate."""
    made = lag.provider(side, "http://127.0.0.1:9")
    assert asyncio.run(lag.make(made.get_tracer("x"), 1000, 0.01)) in range(11)
    made.shutdown()


def test_memory_that_grows_is_missed() -> None:
    """Growth beyond bare's and the noise of pages is not flat memory."""
    results = some_results()
    results["costs"]["memory"]["ours"] = {**results["costs"]["memory"]["ours"], "second_half_growth": 2.0**20}
    (row,) = [one for one in figures(results) if one.title.startswith("memory")]
    assert (row.reached, row.verdict) == (1024, "MISSED")


def test_report_holds_the_results() -> None:
    """The report shows figures, peers sorted by cost, what is skipped, the picture in words and the method."""
    text = report.write(some_results())
    for expected in ("| trivial endpoint, all signals, 10 % | <= 1.40 | <= 1.25 | **1.30** |", "A Processor", "MISSED"):
        assert expected in text
    assert text.index("| correlation_id | an id |") < text.index("| native | traces |") < text.index("| stack | all")
    assert "logfire was skipped: not installed" in text
    assert "does not keep up" in text
    assert "](results.svg)" in text
    assert "`SELECT 1`, bare against bare" in text
    assert "In a separate environment: sqlalchemy 2.0." in text
    assert "The slowest 64 KB of 2 texts" in text
    assert "Method and limits" in text
    assert "quick run" not in text
    assert "of the processor when" not in text
    assert "without real-time priority" in text
    assert "| 50 scrapers, each without a pause | 0.300 | 0.500 | 1.20 |" in text
    assert "| 1,000 wrong tokens per second | 0.300 | 0.500 | 1.00 |" in text
    assert "| a collector that never responds | 0.300 | 0.500 | 1.20 | 1.08 to 1.32 | +0.300 |" in text
    assert "| exported by the SDK's `BatchSpanProcessor` | 0.10 | 1.00 | 10.00 | +10.00 | +10.00 to +10.00 |" in text
    assert "| scrape, 4 x 2000 routes, ms | 10.00 | 60.00 | 200.00 | 0.050 |" in text
    assert "| a request in a worker, CPU | 1.01 |" in text


def test_report_of_a_part_says_so() -> None:
    """A quick run is called one; without wrk the report says what is missing; nothing else is needed."""
    text = report.write({"served": {"skipped": "wrk is not installed", "made": {**MADE, "quick": True, "busy": 50.0}}})
    assert "quick run" in text
    assert "used 50 % of the processor" in text
    assert "Skipped: wrk is not installed" in text
    assert "not measured" in text


def test_picture_is_well_formed() -> None:
    """The SVG parses, has a bar for each ratio, and its title is the finding."""
    svg = picture.draw(some_results())
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    title = root.find(f"{space}title")
    assert title is not None
    assert (
        title.text == "All three signals of fastapi-observe: 1.30 times a bare request's CPU time; wired by hand: 6.9"
    )
    assert len(root.findall(f"{space}rect")) == 7 + 8
    assert "contrib, SQLAlchemy 2.00 (2.00), ours, httpx 1.10 (1.10)" in svg
    assert "prefers-color-scheme: dark" in svg


def test_picture_of_requests_alone() -> None:
    """Without queries and calls the picture has the bars of the requests."""
    results = some_results()
    results["operations"]["contrib"] = {"skipped": "not installed"}
    assert picture.draw(results).count("<rect") == 7


def test_check_compares_ratios() -> None:
    """Within the margin a figure is the same; beyond it is worse or better, whichever way its goal points."""
    before, now = some_results(), some_results()
    now["inprocess"]["variants"]["trivial 10%"] = cost(1.3 * 1.3)
    now["inprocess"]["variants"]["trivial 100%"] = cost(1.3 * 1.2)
    now["served"]["1"]["peak"]["ours"] = server(0.5, 1)
    now["costs"]["scrape"]["500"]["ratio"] = 0.1
    rows = {row[0]: row for row in check.compare(before, now)}
    assert rows["trivial endpoint, all signals, 10 %"][1:] == ("1.300", "1.690", "+30%", "worse")
    assert rows["the same, 100 % sampled"][-1] == "same"
    assert rows["served, one worker, requests per second against bare"][-1] == "worse"
    assert rows["one `/metrics` scrape at 500 routes against stock"][-1] == "better"
    assert "worse" in check.table(list(rows.values()))


def test_check_leaves_out_what_was_not_measured() -> None:
    """A run of some sections is compared in these alone."""
    assert {row[0] for row in check.compare(some_results(), {"costs": some_results()["costs"]})} == {
        "import beyond FastAPI's own, against importing FastAPI",
        "one request line, caller's thread, against loguru `serialize=True`",
        "one `/metrics` scrape at 500 routes against stock",
    }


def test_dumps_of_callgrind_are_read() -> None:
    """Only a dump that the worker asked for has a name; a last one is written when the process ends."""
    dump = "desc: Trigger: Client Request: ours@number?a=1\nevents: Ir\nsummary: 4200\n"
    assert instructions.parse_dump(dump) == ("ours@number?a=1", 4200)
    assert instructions.parse_dump("desc: Trigger: Program termination\ntotals: 7\n") is None


def test_instructions_are_compared_and_reported() -> None:
    """Changes within the noise are the same; the report has the cheapest peer first."""
    cheap, dear = instructions.compare(100_000, 125_000), instructions.compare(100_000, 150_000)
    found = {"rows": {"10 %": cheap}, "peers": {"stack 10%": dear, "ours 10%": cheap, "ours 100%": dear}}
    changes = list(instructions.changes({"rows": {"10 %": dear}, "peers": {"stack 10%": dear}}, found))
    assert changes == [
        "10 %: 1.250, committed 1.500 (-0.250, fewer)",
        "stack 10%: 1.500, committed 1.500 (+0.000, same)",
        "ours 10%: 1.250 (new)",
        "ours 100%: 1.500 (new)",
    ]
    text = report.write({**some_results(), "instructions": {"made": MADE, **found}})
    assert "| 10 % | 1.25 | 100 | 25 |" in text
    assert "1.25 times a bare request's instructions; wired by hand: 1.5" in text
    assert text.index("| ours 10% | 1.25") < text.index("| stack 10% | 1.50")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed; the section is skipped."""
    monkeypatch.setenv("PATH", "")
    assert instructions.missing_tools() == ["valgrind", "gcc"]


def test_report_is_written_anew_without_measuring(tmp_path: Any) -> None:
    """`--draw` turns a results.json into report and picture."""
    import json  # noqa: PLC0415 - here only

    (tmp_path / "results.json").write_text(json.dumps(some_results()))
    assert main(["--draw", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "RESULTS.md").read_text() == report.write(some_results())
    ET.fromstring((tmp_path / "results.svg").read_text())  # noqa: S314 - our own text
