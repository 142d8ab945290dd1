"""The command `cardinality`: its figures, its recommendations, and its errors."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from fastapi import FastAPI
from injection import replacing
from prometheus_client import CollectorRegistry
from servers import serving

from fastapi_observe import Observability, install
from fastapi_observe.cli.cardinality import Report
from fastapi_observe.cli.main import main
from fastapi_observe.cli.output import printable
from fastapi_observe.cli.scrape import Scrape, ScrapeError, parse_families, scrape
from fastapi_observe.internal.networks import address_in
from fastapi_observe.slo import http_get

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "open-sesame"  # noqa: S105 - opens nothing


def shop(**options: Any) -> tuple[FastAPI, Observability]:
    """Return an app with a metric whose label a client chooses."""
    app = FastAPI()
    observe = install(
        app,
        logs=False,
        tracing=False,
        include_default_registry=False,
        registry=CollectorRegistry(),
        multiprocess="off",
        **options,
    )
    visits = observe.metrics.counter("visits_total", "Visits.", ["shop", "user"])

    @app.get("/visits/{user}")
    async def visit(user: str) -> None:
        visits.labels("north", user).inc()

    return app, observe


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit status of the command, and its output."""
    status = main(["cardinality", *arguments])
    written = capsys.readouterr()
    return status, written.out, written.err


def as_json(capsys: pytest.CaptureFixture[str], url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return how the command ended, and its JSON with the metrics by name."""
    status, out, _ = printed(capsys, url, "--json", *arguments)
    document = json.loads(out)
    document["metrics"] = {metric["name"]: metric for metric in document["metrics"]}
    return status, document


@contextmanager
def answering(body: bytes, status: int = 200, **headers: str) -> Iterator[str]:
    """Serve one response to every request; `_` in the names of headers is `-`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {"content_type": "text/plain", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_real_app_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Label sets, series and values of each label are those of the app; the growing label comes first."""
    app, observe = shop()
    for user in range(30):
        observe.metrics.counter("visits_total", "", ["shop", "user"]).labels("north", user).inc()
    observe.metrics.histogram("wait_seconds", "Waits.", ["desk"], buckets=[1, 2]).labels("a").observe(1)
    with serving(app, log_level="error") as port:
        status, found = as_json(capsys, f"http://127.0.0.1:{port}")  # the path is /metrics
        status_of_text, text, _ = printed(capsys, f"http://127.0.0.1:{port}/metrics", "--top", "1")
    assert status == status_of_text == 0
    visits, waits = found["metrics"]["visits_total"], found["metrics"]["wait_seconds"]
    assert (visits["label_sets"], visits["series"], visits["percent_of_limit"]) == (30, 30, 6.0)
    assert visits["labels"] == {"shop": {"values": 1, "new": 0}, "user": {"values": 30, "new": 0}}
    assert visits["growing_label"] == "user"
    assert (waits["label_sets"], waits["series"]) == (1, 5)
    assert found["limits"] == {
        "max_series_per_metric": 2000,
        "max_series_per_process": 20000,
        "max_values_per_label": 500,
        "reported_by_server": True,
    }
    assert (found["at_limit"], found["seconds_between"]) == ([], None)
    assert "39           3        1%  python_gc_pause_seconds  generation 3\n... and " in text
    assert text.endswith("Next: Nothing to do: no metric is near its limit.\n")


def test_a_label_at_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """A label at its limit is named with the next step, and the exit status is 1."""
    app, observe = shop(max_values_per_label=5)
    for user in range(7):
        observe.metrics.counter("visits_total", "", ["shop", "user"]).labels("north", user).inc()
    with serving(app, log_level="error") as port:
        status, text, _ = printed(capsys, f"http://127.0.0.1:{port}/metrics")
    assert status == 1
    assert "full  visits_total" in text
    assert "Next: Label user of visits_total is at its limit; new values are recorded as __overflow__. Use a " in text


def test_a_process_at_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """If no metric is at its limit but all together are, the report says so and the exit status is 1."""
    app, observe = shop(max_series_per_process=4)
    for user in range(4):
        observe.metrics.counter("visits_total", "", ["shop", "user"]).labels("north", user).inc()
    with serving(app, log_level="error") as port:
        status, text, _ = printed(capsys, f"http://127.0.0.1:{port}/metrics")
    assert status == 1
    assert "Next: All metrics together are at their limit" in text


def test_a_comparison_names_the_label_that_grows(capsys: pytest.CaptureFixture[str]) -> None:
    """`--compare-after` scrapes twice and shows new label sets and values, and the time until a limit."""
    app, observe = shop()
    visits = observe.metrics.counter("visits_total", "", ["shop", "user"])
    for place in range(20):
        visits.labels(place, "one").inc()

    def grow() -> None:
        for user in range(10):
            visits.labels("0", f"u{user}").inc()

    async def growing(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        if scope["type"] == "http":
            grow()

    with serving(growing, log_level="error") as port:
        url = f"http://127.0.0.1:{port}/metrics"
        status, found = as_json(capsys, url, "--compare-after", "0.1")
        grow = visits.clear
        _, text, _ = printed(capsys, url, "--compare-after", "0.1")
    grown = found["metrics"]["visits_total"]
    assert (status, grown["new_label_sets"], grown["growing_label"]) == (0, 10, "user")
    assert grown["labels"] == {"shop": {"values": 20, "new": 0}, "user": {"values": 11, "new": 10}}
    assert next(iter(found["metrics"])) == "visits_total"
    assert found["next_step"].startswith(
        "Check label user of visits_total: at the current rate it reaches its limit in "
    )
    assert " new " in text
    assert "Nothing" in text


def report_of(text: str, before: str | None = None, seconds: float = 10.0) -> Report:
    """Return the report about a text, parsed as a scrape is."""

    def read(one: str) -> Scrape:
        scraped = Scrape()
        for family in parse_families("http://there", one.splitlines()):
            scraped.add(family)
        return scraped

    return Report(read(text), None if before is None else read(before), seconds)


def many(number: int, first: int = 0) -> str:
    """Return the text of a gauge with `number` values of one label."""
    return "# TYPE g gauge\n" + "".join(f'g{{a="{value}"}} 1\n' for value in range(first, first + number))


def test_a_metric_without_limits() -> None:
    """A metric beyond the limits was not created by `observe.metrics`; the report says how to limit it."""
    registry = CollectorRegistry()
    free = prometheus_client.Counter("free_total", "Made with prometheus_client.", ["user"], registry=registry)
    for user in range(2100):
        free.labels(user).inc()
    report = report_of(prometheus_client.generate_latest(registry).decode())
    (row,) = report.at_limit
    assert row.series == 2 * 2100  # with those that say since when
    assert (row.name, row.label_sets, row.label, row.is_unlimited) == ("free_total", 2100, "user", True)
    assert report.next_step().startswith("Label user of free_total exceeds the limits")
    full = 'logins_total{shop="north"} 1\nlogins_total{shop="__overflow__"} 9\n'
    report = report_of(prometheus_client.generate_latest(registry).decode() + full)
    assert report.next_step().startswith("Label shop of logins_total is at its limit")  # it loses values
    assert report.next_step().endswith(" 1 more metric is at or above a limit.")
    table = report.as_text("http://there", 5)
    assert "no limit  free_total" in table  # no value of it was dropped
    assert "full  logins_total" in table
    assert not report.limits.reported
    assert "(defaults; the server does not report its limits)" in report.as_text("http://there", 5)


def test_workers_have_limits_of_their_own() -> None:
    """Three workers have four times the limit: each its own, and one for the totals of ended workers."""
    workers = "# TYPE fastapi_observe_workers gauge\nfastapi_observe_workers 3\n"
    assert report_of(many(1900) + workers).at_limit == []
    assert [row.name for row in report_of(many(2001) + workers).at_limit] == ["g"]


@pytest.mark.parametrize(
    ("now", "before", "step"),
    [
        (many(450), None, "Check label a of g: it is at 90% of its limit."),
        (many(450), many(400), "Check label a of g: at the current rate it reaches its limit in 10 s."),
        (many(100), many(99), "Check label a of g: at the current rate it reaches its limit in 67 minutes."),
        (many(100, 50), many(100), "Check label a of g: at the current rate it reaches its limit in 80 s."),
        (
            "# TYPE g gauge\ng 1\n",
            "# TYPE h gauge\nh 1\n",
            "Check g: at the current rate it reaches its limit in 6 hours.",
        ),
    ],
)
def test_the_next_step_fits(now: str, before: str | None, step: str) -> None:
    """The recommendation follows from metrics at a limit, near it, and growing."""
    assert report_of(now, before).next_step() == step


def test_a_metric_without_labels_at_its_limit() -> None:
    """A limit of 1 works for a metric without labels."""
    text = '# TYPE fastapi_observe_limits_info gauge\nfastapi_observe_limits_info{max_series_per_metric="1"} 1\n'
    assert "is at its limit" in report_of(text + "# TYPE g gauge\ng 1\n").next_step()


def test_large_metrics_are_parsed_in_parts() -> None:
    """A metric of more lines than a batch is counted as a whole; comments and lines after the end are not."""
    text = "# HELP g Great.\n# a comment\n" + many(4500) + "# TYPE c counter\nc_total 1\n# EOF\nc_total 3"
    parts = list(parse_families("http://there", text.splitlines()))
    assert [len(part.samples) for part in parts if part.name == "g"] == [1000, 1000, 1000, 1000, 500]
    report = report_of(text)
    assert {row.name: (row.label_sets, row.series) for row in report.rows} == {"g": (4500, 4500), "c_total": (1, 1)}


def test_names_are_escaped() -> None:
    """Names that a server chose cannot control the terminal: ESC, line breaks, bidirectional marks."""
    assert printable("a\x1b[2J\n\u202eb\u2028") == r"a\x1b[2J\n\u202eb\u2028"
    report = report_of('# TYPE "g\x1b[2J" gauge\n{"g\x1b[2J",a="1"} 1\n')
    assert r"g\x1b[2J" in report.as_text("http://there", 5)


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (401, {}, b"", "HTTP 401; pass the token with --token"),
        (404, {}, b"", "HTTP 404; check the path"),
        (500, {}, b"", "HTTP 500; see the log of the server"),
        (
            302,
            {"location": "http://me:hush@elsewhere/x?key=hush"},
            b"",
            "it redirects to http://elsewhere/x; redirects are not followed",
        ),
        (301, {}, b"", "it redirects to another URL; redirects"),
        (200, {"content_type": "text/html"}, b"<html>", "the response is not Prometheus text, but 'text/html'"),
        (200, {"content_encoding": "gzip"}, b"x", "the response is not Prometheus text"),
        (200, {}, b"", "there are no metrics; use the URL"),
        (200, {}, b"hello\x1b world\n", r"this is not Prometheus text: 'hello\x1b world'"),
        (
            200,
            {"content_length": "100"},
            b"up 1\n",
            "broken response (peer closed connection without sending complete message body",
        ),
        (200, {"transfer_encoding": "chunked"}, b"zz\r\n", "broken response ("),
        (200, {}, b"x" * 70_000, "a line is longer than 65536 bytes"),
    ],
)
def test_other_responses_exit_with_two(
    capsys: pytest.CaptureFixture[str], status: int, headers: dict[str, str], body: bytes, words: str
) -> None:
    """One line on stderr has the URL, the reason and the next step; the exit status is 2."""
    with answering(body, status, **headers) as url:
        ended, out, err = printed(capsys, url)
    assert (ended, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"cannot read {url}: ")
    assert words in err
    assert "hush" not in err


def test_the_size_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the maximum size."""
    monkeypatch.setattr(http_get, "MAX_DOWNLOAD_BYTES", 2 * 1_048_576)
    with answering(b"up 1\n" * 450_000) as url, pytest.raises(ScrapeError, match="more than 2 MiB"):
        scrape(url)


def test_the_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends nothing reaches a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"
        monkeypatch.setattr(http_get, "READ_TIMEOUT", 0.05)
        with pytest.raises(ScrapeError, match="no response in time"):
            scrape(url)
        monkeypatch.setattr(http_get, "READ_TIMEOUT", 120.0)
        monkeypatch.setattr(http_get, "TOTAL_TIMEOUT", 0.05)
        with pytest.raises(ScrapeError, match="no response in time"):
            scrape(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/metrics", "cannot read ftp://host/metrics: not an http or https URL; use one such as http://"),
        ("metrics", "cannot read metrics: not an http"),
        ("http://", "cannot read http://: not an http"),
        ("http://host:99999/", "not an http"),
        ("http://host/a b", "not an http"),
        ("http://host/\x1b", r"cannot read http://host/\x1b: not an http"),
        ("http://me:hush@host/metrics?key=hush", "cannot read http://host/metrics: user and password are not sent"),
        ("http://" + "a" * 70 + "/", "start the server, or correct host and port"),
        ("http://127.0.0.1:1/metrics", "Connection refused; start the server"),
    ],
)
def test_an_invalid_url_exits_with_two(capsys: pytest.CaptureFixture[str], url: str, words: str) -> None:
    """The error has the URL without parts that may be secret."""
    ended, out, err = printed(capsys, url)
    assert (ended, out) == (2, "")
    assert words in err
    assert "hush" not in err


def test_an_error_of_tls(capsys: pytest.CaptureFixture[str]) -> None:
    """An https URL of a server without TLS is an error of TLS."""
    with answering(b"up 1\n") as url:
        ended, _, err = printed(capsys, url.replace("http:", "https:"))
    assert ended == 2
    assert "TLS failed" in err


def test_the_token_is_sent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is sent, from an argument or standard input; a wrong one is an error that does not repeat it."""
    app, _ = shop(metrics_token=TOKEN)
    with serving(app, log_level="error") as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert printed(capsys, url)[0] == 2
        ended, _, err = printed(capsys, url, "--token", "wrong-token")
        assert (ended, "check the token" in err, "wrong-token" in err) == (2, True, False)
        assert printed(capsys, url, "--token", TOKEN)[0] == 0
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TOKEN}\n"))
        assert printed(capsys, url, "--token", "-")[0] == 0
        for wrong in ("", "two words", "a\nb", "\u00e4"):
            assert "the token is not an ASCII word" in printed(capsys, url, "--token", wrong)[2]


def test_the_token_goes_over_http_to_private_hosts_only() -> None:
    """Without TLS the token is sent to a private address only, unless `--allow-http-token` is passed."""
    with answering(b"up 1\n") as url, replacing(address_in, lambda *_: False):
        with pytest.raises(ScrapeError, match=r"over plain http to a public address; use https"):
            scrape(url, TOKEN)
        assert list(scrape(url, TOKEN, allow_http_token=True).metrics) == ["up"]


@pytest.mark.parametrize(
    "wrong",
    [["--top", "0"], ["--top", "x"], ["--compare-after", "0"], ["--compare-after", "x"], ["--compare-after", "nan"]],
)
def test_invalid_arguments(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    """Invalid numbers exit with 2 and name the accepted ones."""
    with pytest.raises(SystemExit, match="2"):
        main(["cardinality", "http://127.0.0.1:1", *wrong])
    assert "; use " in capsys.readouterr().err


def test_the_command_as_a_process() -> None:
    """A process has the same exit status, and does not use the proxies of the environment."""
    variables = {**os.environ, "http_proxy": "http://127.0.0.1:1", "all_proxy": "http://127.0.0.1:1"}
    with answering(many(501).encode()) as url:
        command = [sys.executable, "-m", "fastapi_observe", "cardinality", url]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)  # noqa: S603 - ours
    assert (done.returncode, done.stderr) == (1, "")
    assert "no limit  g" in done.stdout
