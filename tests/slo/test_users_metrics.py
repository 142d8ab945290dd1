"""The app's own metrics, jobs and operations on the dashboard: what is found, what is left out, how it is queried."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from monitored import ROOT, command, free_port, prometheus, scraping
from prometheus_client import REGISTRY, CollectorRegistry, Summary
from prometheus_client import Counter as PlainCounter
from prometheus_client.core import GaugeMetricFamily
from test_slo_dashboard import panels, queries, rows

from fastapi_observe.slo.features import Features, detect_features
from fastapi_observe.slo.grafana.dashboard import make_dashboard
from fastapi_observe.slo.loading import get_plan
from fastapi_observe.slo.prometheus.rules import generate_rules
from fastapi_observe.slo.source_scan import scan_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen

ROW = "Metrics of the app"

APP = """
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_observe import MetricsDep, install
from prometheus_client import Counter


@asynccontextmanager
async def lifespan(_app):
    observe.metrics.gauge("parts_open", "Created in the lifespan.", ["kind"]).labels("bolt").set(3)
    observe.metrics.set_database_connections(pool="main", active=3, idle=7, max=10, waiting=0)
    yield


app = FastAPI(title="own", lifespan=lifespan)
observe = install(app, service_name="own", constant_labels={"team": "one"}, metrics_access="always")
items = observe.metrics.histogram("item_seconds", "Time of an item.", ["instance"], buckets=[1, 2, 5])
parts = observe.metrics.counter("parts_total", "Parts.", ["job"])
temperature = observe.metrics.gauge("hall_celsius", "Temperature.", mode="max")
workers = observe.metrics.gauge("workers_idle", "Idle.", mode="pid")
plain = Counter("plain", "Made with prometheus_client.", ["a", "b"])


@app.post("/work")
def work(metrics: MetricsDep) -> int:
    parts.labels("night").inc()
    items.labels("first").observe(1.5)
    temperature.set(20)
    workers.set(1)
    plain.labels("1", "2").inc()
    metrics.counter("late_total", "Created by a request.").inc()
    with observe.operation("price"):
        return nightly()


@observe.job("nightly")
def nightly() -> int:
    return 1
"""


def panels_of(features: Features, app: FastAPI) -> dict[str, list[str]]:
    """Return the queries of the panels in the row of the app's own metrics, by title."""
    made = make_dashboard(get_plan(app)[1], features)
    (row,) = [panel for panel in made["panels"] if panel["title"] == ROW]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in row["panels"]}


def test_every_type_has_its_query(observed: Callable[..., Seen]) -> None:
    """Labels without values yet, modes of gauges and labels that a target has too are in the query."""
    registry = CollectorRegistry()
    seen = observed(app := FastAPI(), registry=registry, service_name="shop", constant_labels={"team": "one"})
    create = seen.observe.metrics
    create.counter("coupons_total", "Coupons.", ["channel", "job"])
    create.gauge("carts", "Carts.", ["shop"])
    create.gauge("warmest_celsius", "Warmest.", mode="max").set(1)
    create.gauge("idle", "Idle.", mode="pid").set(1)
    create.histogram("wait_seconds", "Waits.").observe(1)
    create.histogram("size_bytes", "Sizes.", ["kind"])
    Summary("sent_bytes", "Sent.", registry=registry)
    found = panels_of(detect_features(app, seen.observe.settings), app)
    service, window = 'job="shop",instance=~"$instance"', "[$__rate_interval]"
    assert found == {
        "carts": [f"topk(10, sum by (shop) (carts{{{service}}}))"],
        "coupons_total": [f"topk(10, sum by (channel, exported_job) (rate(coupons_total{{{service}}}{window})))"],
        "idle": [f"topk(10, sum by (instance, pid) (idle{{{service}}}))"],
        "sent_bytes": [
            f"sum(rate(sent_bytes_sum{{{service}}}{window})) / (sum(rate(sent_bytes_count{{{service}}}{window})) > 0)"
        ],
        "size_bytes": [
            f"topk(10, histogram_quantile(0.95, sum by (kind, le) (rate(size_bytes_bucket{{{service}}}{window}))))"
        ],
        "wait_seconds": [
            f"histogram_quantile({share}, sum by (le) (rate(wait_seconds_bucket{{{service}}}{window})))"
            for share in (0.5, 0.95)
        ],
        "warmest_celsius": [f"max(warmest_celsius{{{service}}})"],
    }


def test_help_texts_are_shown_as_they_are(observed: Callable[..., Seen]) -> None:
    """A help text may contain what a query template calls a placeholder, and lines."""
    seen = observed(app := FastAPI())
    seen.observe.metrics.gauge("carts", "Carts of <service>\nand <nobody>").set(1)
    seen.observe.metrics.gauge("unexplained", "x" * 999).set(1)
    made = make_dashboard(get_plan(app)[1], detect_features(app, seen.observe.settings))
    described = {panel["title"]: panel["description"] for panel in panels(made)}
    assert described["carts"] == "Carts of <service> and <nobody>. All instances and workers added up."
    assert len(described["unexplained"]) < 260


class Broken:
    """A collector that raises."""

    def collect(self) -> list[Any]:
        """Raise."""
        raise RuntimeError("broken")


class Shown:
    """A collector whose families are known only when it is read."""

    def collect(self) -> list[GaugeMetricFamily]:
        """Return a family that has a panel and one whose name PromQL cannot read without quotes."""
        family = GaugeMetricFamily("shown", "Shown.", labels=["kind"])
        family.add_metric(["a"], 1)
        return [family, GaugeMetricFamily("with.dots", "Not shown.", value=1)]


def test_only_metrics_of_the_user_are_found(observed: Callable[..., Seen]) -> None:
    """Ours and those of prometheus_client are left out, and so is a collector that raises."""
    registry = CollectorRegistry()
    registry.register(shown := Shown())
    seen = observed(app := FastAPI(), registry=registry)
    registry.register(
        Broken(),
    )
    assert [metric.name for metric in detect_features(app, seen.observe.settings).users_metrics] == ["shown"]
    registry.unregister(shown)
    made = make_dashboard(get_plan(app)[1], detect_features(app, seen.observe.settings))
    assert ROW not in rows(made)


def test_a_metric_that_has_our_name_is_ours(observed: Callable[..., Seen]) -> None:
    """Those of other tools that count requests too, in the default registry, are not shown twice."""
    seen = observed(app := FastAPI())
    theirs = PlainCounter("http_requests", "Of another tool.")
    try:
        found = detect_features(app, seen.observe.settings).users_metrics
    finally:
        REGISTRY.unregister(theirs)
    assert "http_requests" not in {metric.name for metric in found}


def test_pools_decide_about_their_alert(observed: Callable[..., Seen]) -> None:
    """Without a pool there is no alert about one."""
    for pools in (False, True):
        seen = observed(app := FastAPI())
        if pools:
            seen.observe.metrics.set_database_connections(active=1, max=5)
        names = {rule.get("alert") for group in generate_rules(app)["groups"] for rule in group["rules"]}
        assert ("DBPoolNearlyExhausted" in names) is pools


SOURCES = {
    "jobs": ['with observe.job("a"): ...', '@job("a")\ndef f(): ...', 'async def f():\n async with o.job(f"a"): ...'],
    "operations": ['with operation("a"): ...', '@observe.operation("a")\nasync def f(): ...'],
    "business": ["metrics.business.order_created()"],
    "": ['job("a")', "with job(1): ...", "with open(f): ...", "thing.order_created()", "with job: ...", "\0", "def"],
}


@pytest.mark.parametrize(("feature", "source"), [(each, text) for each, texts in SOURCES.items() for text in texts])
def test_the_source_shows_what_routes_do_not(feature: str, source: str, tmp_path: Path) -> None:
    """Blocks and decorators with a name count, in every imported module of the package; other calls do not."""
    module = type(sys)("scanned_app.inner")
    module.__file__ = str(tmp_path / "inner.py")
    (tmp_path / "inner.py").write_text(source, "utf-8")
    gone = type(sys)("scanned_app.gone")
    gone.__file__ = str(tmp_path / "gone.py")
    function = lambda: None  # noqa: E731
    function.__module__ = "scanned_app.main"
    sys.modules |= {module.__name__: module, gone.__name__: gone}
    try:
        assert [*scan_sources([function])] == [feature] * bool(feature)
    finally:
        del sys.modules[module.__name__], sys.modules[gone.__name__]


def all_names(directory: Path, *arguments: str) -> list[str]:
    """Make the dashboard by the command; return the titles of its rows and of the panels of the last but one."""
    done = command("slo", "bundle", "own_app:app", "-o", "out", *arguments, cwd=directory)
    assert done.returncode == 0, done.stderr
    made = json.loads((directory / "out" / "dashboard.json").read_text("utf-8"))
    return [*rows(made), *(panel["title"] for panel in made["panels"][-2]["panels"])]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Serve the app in another process; yield its address."""
    (tmp_path / "own_app.py").write_text(APP, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a port that was only free can be taken by another test
        server = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-m", "uvicorn", "own_app:app", "--fd", str(listener.fileno()), "--log-level", "error"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        port = listener.getsockname()[1]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


async def test_a_running_app_shows_the_rest(served: str, tmp_path: Path) -> None:
    """What lifespan and requests create is found by `--url`, and every query of the dashboard has data or is valid."""
    import httpx  # noqa: PLC0415

    before = all_names(tmp_path)
    own = ["hall_celsius", "item_seconds", "parts_total", "plain_total", "workers_idle"]
    expected = ["At a glance", "Golden signals", "Runtime and saturation", "Jobs", "Operations", ROW]
    assert before == [*expected, "Cost of observing", *own]
    async with httpx.AsyncClient(base_url=f"http://{served}", trust_env=False, timeout=60) as client:
        assert (await client.post("/work")).is_success  # the socket accepts before the app runs
        after = all_names(tmp_path, "--url", f"http://{served}/metrics")
        assert after[:4] == ["At a glance", "Golden signals", "Database", "Runtime and saturation"]
        assert after[-7:] == [*own[:2], "late_total", "parts_total", "parts_open", *own[3:]]
        assert (tmp_path / "out" / "runbooks" / "DBPoolNearlyExhausted.md").exists()
        made = json.loads((tmp_path / "out" / "dashboard.json").read_text("utf-8"))
        async with prometheus(tmp_path, scraping(served, job="own")) as api:
            await api.until("parts_total offset 2s")
            assert (await client.post("/work")).is_success
            own_panels = {panel["title"] for panel in made["panels"][-2]["panels"]}
            for title, expression in queries(made):
                if title in own_panels or title in {"Jobs ended", "Operations ended", "Time in jobs"}:
                    found = await api.until(expression)
                    assert not any("none" in series["metric"].values() for series in found), title
                else:
                    await api.query(expression)
            (parts,) = await api.query("sum by (exported_job) (parts_total)")
            assert parts["metric"] == {"exported_job": "night"}


async def test_a_url_that_does_not_respond_is_an_error(tmp_path: Path) -> None:
    """Nothing is written, the status is 2, and the message has the next step."""
    (tmp_path / "own_app.py").write_text(APP, "utf-8")
    done = command("slo", "bundle", "own_app:app", "--url", f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot read http://127.0.0.1:" in done.stderr
    assert not (tmp_path / "observability").exists()
