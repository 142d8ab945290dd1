"""Objectives in the running app: checked at install, resolved at startup, counted over all workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.testclient import TestClient
from injection import failing
from members import Member
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from tools import held

from fastapi_observe import ObserveSettings, SettingsError, install
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics import error_budgets
from fastapi_observe.metrics.error_budgets import PERIOD_SNAPSHOTS, SNAPSHOT_INTERVAL, ErrorBudgets, ObjectiveTarget
from fastapi_observe.metrics.objectives import ObjectiveSpec
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.settings.objectives import Availability, Latency, SLOOptions
from fastapi_observe.slo import plan as plans
from fastapi_observe.slo.decorator import slo
from fastapi_observe.slo.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen

DAY = 86_400.0
MONTH = 30 * DAY


async def answer() -> None:
    """Return nothing."""


def make_app() -> FastAPI:
    """Return an app with a route that responds with the given status."""
    app = FastAPI()

    @app.post("/orders")
    async def order(code: int = 200) -> None:
        if code != 200:
            raise HTTPException(code)

    @app.get("/products")
    async def products() -> None: ...

    return app


# At install


def test_install_reports_every_invalid_objective() -> None:
    """Problems that do not depend on routes are one SettingsError with a line each, and nothing is installed."""
    app = FastAPI()
    wrong: list[Any] = [
        Availability("full", 100),
        Availability("ratio", 0.999),
        Availability("sla", 99, sla=99.5),
        Availability("sla", 99),
        Availability("A B", 99),
        Latency("slow", 95, within="soon"),
        Latency("number", 95, within=300),  # type: ignore[arg-type]  # on purpose
        Availability(["list"], 99),  # type: ignore[arg-type]  # on purpose
    ]
    with pytest.raises(SettingsError) as caught:
        install(app, slos=wrong, slo_options=SLOOptions(period="month", scrape_interval="often"))
    reported = [line.split(":")[:2] for line in caught.value.problems]
    assert [code.strip() for _, code in reported] == [
        *("SLO10 all", "SLO10 all", "SLO05 full", "SLO05 ratio", "SLO07 sla", "SLO09 sla", "SLO09 A B"),
        *("SLO04 slow", "SLO04 number", "SLO09 ['list']"),
    ]
    assert {name for name, _ in reported} == {"slos", "slo_options"}
    assert "did you mean 99.9?" in str(caught.value)
    assert not hasattr(app.state, "observe")


@pytest.mark.parametrize("given", [{"slos": ["checkout"]}, {"slo_options": {"period": "30d"}}])
def test_values_that_are_not_objectives(given: dict[str, Any]) -> None:
    """An object of another class is an invalid setting."""
    with pytest.raises(SettingsError, match=f"{next(iter(given))}: invalid value .*; expected "):
        ObserveSettings(**given)


def test_warnings_do_not_stop_the_install(observed: Callable[..., Seen]) -> None:
    """Warnings do not stop the install, and are logged at startup."""
    observed(make_app(), slos=[Latency("slow", 95, within="30s")], slo_options=SLOOptions())
    observed(make_app(), slo_options=SLOOptions())


def test_thresholds_become_buckets(observed: Callable[..., Seen]) -> None:
    """The threshold of each latency objective is a bucket bound of the request durations."""
    seen = observed(make_app(), slos=[Latency("a", 95, within="300ms"), Latency("b", 90, within="1s")])
    seen.observe.metrics.record_http_request("GET", "/products", 200, 0.2)
    bounds = [dict(labels)["le"] for labels in seen.samples("http_request_duration_seconds_bucket")]
    assert bounds[6:9] == ["0.25", "0.3", "0.5"]
    assert len(bounds) == 16


def test_without_objectives_nothing_is_imported() -> None:
    """An app without objectives imports no other module of `slo`, neither at install nor at startup."""
    code = """
import sys
from starlette.applications import Starlette
from starlette.testclient import TestClient
from fastapi_observe import install
app = Starlette()
install(app, logs=False)
with TestClient(app) as client:
    client.get("/")
    client.get("/metrics")
print(sorted(name for name in sys.modules if any(part in name for part in ("observe.slo.", "objectives", "budget"))))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True, text=True)  # noqa: S603
    imported = set(json.loads(run.stdout.replace("'", '"')))
    assert imported <= {
        "fastapi_observe.slo.live",
        "fastapi_observe.settings.objectives",
        "fastapi_observe.metrics.budget",
        "fastapi_observe.slo.decorator",
    }


# At the start


def test_series_start_at_zero(observed: Callable[..., Seen]) -> None:
    """Before the first request there are series of 200, the usual failures, each named status, and durations."""
    seen = observed(make_app(), slos=[Availability("orders", 99.9, routes=["/orders"], bad_statuses=["5xx", "429"])])
    with TestClient(seen.observe.app):
        requests = seen.samples("http_requests_total")
        assert {dict(labels)["status_code"] for labels in requests} == {"200", "429", "500", "503"}
        assert set(requests.values()) == {0}
        assert list(seen.samples("http_request_duration_seconds_count").values()) == [0]


def test_client_errors_start_at_zero_where_they_count(observed: Callable[..., Seen]) -> None:
    """Where 4xx is bad, its usual codes have series from the start, so that the first failure counts."""
    seen = observed(make_app(), slos=[Availability("orders", 99.9, routes=["/orders"], bad_statuses=["4XX"])])
    with TestClient(seen.observe.app):
        shown = {dict(labels)["status_code"] for labels in seen.samples("http_requests_total")}
        assert shown == {"200", "400", "404", "422", "500"}


def test_other_methods_count(observed: Callable[..., Seen]) -> None:
    """A method that metrics call `_OTHER` spends the budget of its route."""
    app = FastAPI()

    @app.api_route("/cache", methods=["PURGE"])
    async def purge() -> None:
        raise HTTPException(500)

    seen = observed(app, slos=[Availability("cache", 90, routes=["PURGE /cache"])])
    with TestClient(app) as client:
        client.request("PURGE", "/cache")
        assert seen.sample("slo_error_budget_remaining_ratio", slo="cache") == pytest.approx(-9)


def test_series_that_start_at_zero_leave_room(observed: Callable[..., Seen]) -> None:
    """They take at most half of the limit of a metric, so that real requests find room."""
    app = FastAPI()
    for number in range(30):
        app.add_api_route(f"/{number}", answer, methods=["GET"])
    seen = observed(app, max_series_per_metric=20, slos=[Availability("all", 99)])
    with TestClient(app) as client:
        assert len(seen.samples("http_requests_total")) == 10
        client.get("/29")
        assert seen.sample("http_requests_total", method="GET", endpoint="/29", status_code="200") == 1
    assert seen.samples("fastapi_observe_series_overflow_total") == {}


def test_the_hash_of_the_objectives_is_shown(observed: Callable[..., Seen]) -> None:
    """The running app exposes the hash that the rules have."""
    seen = observed(make_app(), slos=[Availability("all", 99)])
    with TestClient(seen.observe.app):
        plan = make_plan(seen.observe.app, seen.observe.settings)
        assert seen.sample("fastapi_observe_slo_config_info", hash=plan.hash) == 1


def test_invalid_routes_are_logged_once(observed: Callable[..., Seen]) -> None:
    """One log record has all problems of routes; the other objectives count, and the app responds."""
    seen = observed(
        make_app(),
        slos=[
            Availability("typo", 99, routes=["/order"]),
            Availability("more", 99, routes=["/product"]),
            Availability("good", 99, routes=["/orders"]),
            Availability("low", 90, routes=["/orders"]),
        ],
    )
    with TestClient(seen.observe.app) as client:
        assert client.post("/orders").status_code == 200
    with TestClient(seen.observe.app):
        assert {dict(labels)["slo"] for labels in seen.samples("slo_error_budget_remaining_ratio")} == {"good", "low"}
    (error,) = [line for line in seen.lines if line["level"] == "error"]
    assert error["message"].count("SLO01") == 2
    assert "did you mean '/orders'" in error["message"]
    (warning,) = [line for line in seen.lines if line["level"] == "warn"]
    assert "SLO06 low" in warning["message"]


def test_no_budgets_without_a_valid_objective(observed: Callable[..., Seen]) -> None:
    """If no objective is valid there are no budgets."""
    seen = observed(make_app(), slos=[Availability("typo", 99, routes=["/order"])])
    with TestClient(seen.observe.app):
        assert seen.observe.objectives.budgets is None
        assert "slo_" not in seen.text


def test_an_internal_error_does_not_stop_the_app(observed: Callable[..., Seen]) -> None:
    """An exception while objectives are resolved is counted, and the app responds."""
    seen = observed(make_app(), slos=[Availability("all", 99)])
    with failing(plans.make_plan), TestClient(seen.observe.app) as client:
        assert client.get("/products").status_code == 200
    assert seen.observe.internal_errors.counts == {"objectives": 1}


def test_decorated_objectives_count(observed: Callable[..., Seen]) -> None:
    """`@slo` needs nothing at install: series and buckets exist before the first request."""
    router = APIRouter()

    @router.get("/reports/{name}")
    @slo(Latency("reports", 95, within="60ms"), Availability("reports-up", 99))
    async def report(name: str) -> str:
        return name

    app = FastAPI()
    seen = observed(app)
    app.include_router(router, prefix="/v1")
    seen.observe.metrics.record_http_request("GET", "/early", 200, 0.06)  # taken before the bound is known
    seen.observe.metrics._duration.labels("GET", "/early").observe(3, {"trace_id": "abc"})
    with TestClient(app) as client:
        client.get("/v1/reports/7")
        assert seen.sample("slo_error_budget_remaining_ratio", slo="reports") == 1
        kept = {"method": "GET", "endpoint": "/v1/reports/{name}"}
        assert seen.sample("http_request_duration_seconds_bucket", le="0.06", **kept) == 1
        early = {"method": "GET", "endpoint": "/early"}
        assert seen.sample("http_request_duration_seconds_bucket", le="0.06", **early) == 0
        assert seen.sample("http_request_duration_seconds_bucket", le="0.075", **early) == 1
        assert seen.sample("http_request_duration_seconds_count", **early) == 2
        text = client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
        (line,) = [each for each in text.splitlines() if 'trace_id="abc"' in each]
        assert 'le="5.0"} 2 #' in line


# Live


def test_failures_spend_the_budget(observed: Callable[..., Seen]) -> None:
    """The rest of the budget is 1 minus failures over allowed failures; the burn rate is their ratio in a window."""
    seen = observed(
        make_app(),
        slos=[
            Availability("all", 90),
            Availability("orders", 90, routes=["POST /orders"], bad_statuses=["5xx", "429"]),
            Latency("slow", 90, within="300ms"),
        ],
    )
    with TestClient(seen.observe.app) as client:
        for code in (200, 200, 200, 200, 200, 200, 200, 404, 429, 503):
            client.post("/orders", params={"code": code})
        for _ in range(10):
            client.get("/products")
        for path in ("/nowhere", "/docs"):
            client.get(path)
        seen.observe.metrics.record_http_request("GET", "/products", 200, 2)
        seen.observe.metrics.record_http_request("GET", "unmatched", 500, 0.1)  # a middleware before the router
        left = {
            dict(labels)["slo"]: value for labels, value in seen.samples("slo_error_budget_remaining_ratio").items()
        }
        burn = {
            (dict(labels)["slo"], dict(labels)["window"]): value
            for labels, value in seen.samples("slo_burn_rate").items()
        }
    assert left["orders"] == pytest.approx(1 - 2 / 10 / 0.1)
    assert left["all"] == pytest.approx(1 - 2 / 22 / 0.1)
    assert left["slow"] == pytest.approx(1 - 1 / 21 / 0.1)
    assert burn["orders", "5m"] == burn["orders", "1h"] == pytest.approx(2)
    assert set(burn) == {(name, window) for name in left for window in ("5m", "1h")}


class Times:
    """Error budgets of one objective of 99 %, with a clock and counts that the test sets."""

    def __init__(self, period: float = MONTH) -> None:
        self.now = 1000.0
        self.events = self.bad = 0.0
        self.internal_errors = InternalErrors()
        self.budgets = ErrorBudgets(
            [ObjectiveTarget("all", 0.01)],
            period,
            "abc",
            lambda: ((self.events, self.bad),),
            self.internal_errors,
            lambda: self.now,
        )

    def play(self, seconds: float, events: float, bad: float, step: float = SNAPSHOT_INTERVAL) -> None:
        """Advance the clock at that many events and bad events per second, with a snapshot at each step."""
        for _ in range(int(seconds / step)):
            self.now += step
            self.events += events * step
            self.bad += bad * step
            self.budgets.now()

    def burn(self, window: str) -> float:
        """Return the burn rate of a window now."""
        return self.budgets.now()[0].burn_rates[window]


def test_windows_forget_older_failures() -> None:
    """Failures leave a window when they are older than it, and stay in the budget."""
    times = Times()
    times.play(600, 10, 0)
    times.play(60, 10, 10)
    assert times.burn("5m") == pytest.approx(20)
    assert times.burn("1h") == pytest.approx(60 / 645 * 100, rel=0.01)  # as far as it has lived
    times.play(300, 10, 0)
    assert times.burn("5m") == 0
    times.play(3600, 10, 0)
    assert times.burn("1h") == 0
    (budget,) = times.budgets.now()
    assert budget.bad == 600
    assert budget.remaining == pytest.approx(1 - 600 / 45600 / 0.01)


def test_the_period_forgets_older_failures() -> None:
    """After a period the budget is whole again, to a hundredth of the period."""
    times = Times(period=DAY)
    times.play(3600, 1, 1, step=60)
    times.play(DAY - 3600, 1, 0, step=60)
    assert times.budgets.now()[0].bad == pytest.approx(3600, rel=0.3)
    times.play(3600 + DAY / PERIOD_SNAPSHOTS, 1, 0, step=60)
    (budget,) = times.budgets.now()
    assert budget.bad == 0
    assert budget.remaining == 1
    assert budget.events == pytest.approx(DAY, rel=2 / PERIOD_SNAPSHOTS)


def test_a_night_without_requests_burns_nothing() -> None:
    """Without events the burn rate is 0 and the budget does not change."""
    times = Times()
    times.play(600, 10, 0.05)
    before = times.budgets.now()[0].remaining
    times.play(8 * 3600, 0, 0)
    assert times.burn("5m") == times.burn("1h") == 0
    assert times.budgets.now()[0].remaining == before


def test_counts_that_fell_start_again() -> None:
    """If counts fall, because a process counts by itself again, the windows start again."""
    times = Times()
    times.play(600, 10, 5)
    times.events = times.bad = 0
    assert times.burn("5m") == 0
    times.play(60, 10, 0.1)
    assert times.burn("5m") == pytest.approx(1)


def test_the_number_of_snapshots_is_limited() -> None:
    """Two years of snapshots take no more memory than one, which is an hour's snapshots and a hundred."""
    times = Times()
    times.play(400 * DAY, 1, 0, step=3600)
    times.play(7200, 1, 0, step=1)
    full = held(times.budgets)
    times.play(400 * DAY, 1, 0, step=3600)
    times.play(7200, 1, 0, step=1)
    assert held(times.budgets) < 1.1 * full
    assert full < 1_000_000


def test_snapshots_are_taken_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread takes snapshots from `start` to `stop`; an error there is counted, and the next one may succeed."""
    monkeypatch.setattr(error_budgets, "SNAPSHOT_INTERVAL", 0.001)
    calls, enough = [0], threading.Event()

    def read() -> list[tuple[float, float]]:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError
        if calls[0] == 5:
            enough.set()
        return [(1.0, 0.0)]

    internal_errors = InternalErrors()
    budgets = ErrorBudgets([ObjectiveTarget("all", 0.1)], MONTH, "abc", read, internal_errors)
    budgets.stop()
    budgets.start()
    budgets.start()
    assert len([each for each in threading.enumerate() if each.name == "fastapi-observe-budgets"]) == 1
    assert enough.wait(10)
    budgets.stop()
    assert not [each for each in threading.enumerate() if each.name == "fastapi-observe-budgets"]
    assert internal_errors.counts == {"objectives.sample": 1}


def test_a_restarted_app_takes_snapshots_again(observed: Callable[..., Seen]) -> None:
    """A second lifespan takes snapshots again; no thread is left between them."""
    seen = observed(make_app(), slos=[Availability("all", 90)])
    for _ in range(2):
        with TestClient(seen.observe.app) as client:
            client.post("/orders?code=500")
            assert [each for each in threading.enumerate() if each.name == "fastapi-observe-budgets"]
        assert not [each for each in threading.enumerate() if each.name == "fastapi-observe-budgets"]
    assert seen.sample("slo_error_budget_remaining_ratio", slo="all") == pytest.approx(-9)


def test_snapshots_start_after_the_workers_share(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new worker does not take the counts of the others for its own last five minutes."""
    seen = observed(make_app(), slos=[Availability("all", 90)])
    start = seen.observe.workers.start
    before: list[str] = []

    def share() -> None:
        before.extend(each.name for each in threading.enumerate() if each.name == "fastapi-observe-budgets")
        start()
        for _ in range(10):
            seen.observe.metrics.record_http_request("POST", "/orders", 500, 0.1)  # of the others

    monkeypatch.setattr(seen.observe.workers, "start", share)
    with TestClient(seen.observe.app):
        assert seen.sample("slo_error_budget_remaining_ratio", slo="all") == pytest.approx(-9)
        assert seen.sample("slo_burn_rate", slo="all", window="5m") == 0
    assert before == []


# Many workers

FAILED = re.compile(r"5\d\d")
ALL = ObjectiveSpec((), frozenset(), None, 0.3, (("GET", "/a"),), ("200", "500"))


def add_budgets(member: Member, threshold: float = 0.3) -> None:
    """Give a worker an objective: 90 % of requests within 0.3 seconds."""
    tally = member.metrics.count_objectives([ALL._replace(threshold=threshold)])
    budgets = ErrorBudgets([ObjectiveTarget("fast", 0.1)], MONTH, "abc", tally, member.internal_errors)
    member.metrics.register_collector(budgets)


@pytest.mark.parametrize("names", ["prometheus", "semconv"])
def test_any_worker_shows_the_budget_of_all(tmp_path: Path, names: str) -> None:
    """Every worker exposes the sum of all workers, ended ones included, once and without a pid."""
    settings: dict[str, Any] = {
        "duration_buckets": (0.1, 0.3, 1.0),
        "max_series_per_metric": 10,
        "metric_names": names,
    }
    dead = Member(tmp_path, **settings)
    add_budgets(dead)
    for _ in range(10):
        dead.metrics.record_http_request("GET", "/a", 200, 2)
    assert dead.samples()["slo_error_budget_remaining_ratio"] == {(("slo", "fast"),): pytest.approx(-9)}
    dead.die()
    living = Member(tmp_path, **settings)
    try:
        add_budgets(living)
        other = MetricsService(ObserveSettings(include_default_registry=False, metric_names=names), InternalErrors())
        other.sharing.share(living.worker, "1")
        other.record_http_request("GET", "/a", 200, 2)  # of another install: not ours
        for _ in range(30):
            living.metrics.record_http_request("GET", "/a", 200, 0.2)
        found = living.samples()
        assert found["slo_error_budget_remaining_ratio"] == {(("slo", "fast"),): pytest.approx(1 - 0.25 / 0.1)}
        assert {*found["slo_burn_rate"]} == {(("slo", "fast"), ("window", window)) for window in ("5m", "1h")}
        assert list(found["fastapi_observe_slo_config_info"].values()) == [1]
        living.metrics.record_http_request("GET", "/a", 503, 0.2)
        assert living.metrics.count_objectives([ALL._replace(bad=FAILED)])() == ((41.0, 1.0),)
        other.sharing.unshare()
    finally:
        living.leave()


def test_workers_without_the_bound_are_left_out(tmp_path: Path) -> None:
    """During a deploy that adds a bucket, requests of older workers are not events."""
    dead = Member(tmp_path, duration_buckets=(0.1, 1.0))
    for _ in range(10):
        dead.metrics.record_http_request("GET", "/a", 200, 0.2)
    dead.die()
    living = Member(tmp_path, duration_buckets=(0.1, 0.3, 1.0))
    try:
        add_budgets(living)
        living.metrics.record_http_request("GET", "/a", 200, 0.2)
        assert living.metrics.count_objectives([ALL])() == ((1.0, 0.0),)
    finally:
        living.leave()


def test_local_series_count(tmp_path: Path) -> None:
    """A series for which the disk had no space counts in its worker."""
    living = Member(tmp_path, duration_buckets=(0.1, 0.3, 1.0))
    try:
        living.worker.allocate = lambda *_: None  # type: ignore[method-assign]  # a full disk
        add_budgets(living)
        living.metrics.record_http_request("GET", "/a", 200, 0.2)
        living.metrics.record_http_request("GET", "/a", 200, 2)
        living.metrics.counter("others", "Nobody's.", ["name"]).labels("a").inc()
        assert living.metrics.count_objectives([ALL])() == ((2.0, 1.0),)
        failed = ALL._replace(groups=((("GET",), ("/a",)),), bad=FAILED)
        assert living.metrics.count_objectives([failed])() == ((2.0, 0.0),)
    finally:
        living.leave()


def test_the_cache_of_label_sets_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit label sets are looked up again, and the sums stay correct."""
    monkeypatch.setattr("fastapi_observe.metrics.objectives.MAX_CACHED_MATCHES", 3)
    metrics = MetricsService(ObserveSettings(include_default_registry=False), InternalErrors())
    tally = metrics.count_objectives([ALL._replace(bad=FAILED)])
    for number in range(10):
        metrics.record_http_request("GET", f"/{number}", 500, 0.1)
    assert tally() == tally() == ((10.0, 10.0),)
    assert len(tally._events) <= 3


@pytest.mark.parametrize("openmetrics", [False, True])
def test_both_formats_are_well_formed(observed: Callable[..., Seen], *, openmetrics: bool) -> None:
    """The families are well formed in both formats."""
    app = make_app()
    observed(app, slos=[Availability("all", 99)])
    with TestClient(app) as client:
        accept = "application/openmetrics-text" if openmetrics else ""
        text = client.get("/metrics", headers={"accept": accept}).text
    assert "slo_burn_rate{" in text
    assert text.count("# TYPE slo_burn_rate gauge") == 1
    parse = openmetrics_families if openmetrics else text_string_to_metric_families
    assert {"slo_burn_rate", "slo_error_budget_remaining_ratio"} <= {family.name for family in parse(text)}
