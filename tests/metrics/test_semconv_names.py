"""`metric_names="semconv"`: OpenTelemetry's HTTP server metrics, in the app and in everything generated for it."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from opentelemetry.semconv.attributes import error_attributes, http_attributes, network_attributes, url_attributes
from opentelemetry.semconv.metrics.http_metrics import HTTP_SERVER_REQUEST_DURATION
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tools import needs

from fastapi_observe import Availability, Latency, ObserveSettings, SettingsError
from fastapi_observe.formats.metric_names import PROMETHEUS, SEMCONV, SEMCONV_LABELS
from fastapi_observe.slo.bundle import make_bundle
from fastapi_observe.slo.cost import Prices, ScrapeTotals, estimate_cost
from fastapi_observe.slo.features import detect_features
from fastapi_observe.slo.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen

DURATION = "http_server_request_duration_seconds"
SLOS = (
    Availability("availability", 99.9),
    Availability("checkout", 99.95, routes=["POST /orders"], bad_statuses=["5xx", "429"], min_bad_events=1),
    Latency("latency", 95, within="300ms", routes=["/items/{item_id}"]),
)


def shop() -> FastAPI:
    """Return an app with routes that respond, refuse and fail."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def read_item(item_id: int) -> str:
        return "ok"

    @app.post("/orders")
    async def order(code: int = 0) -> None:
        if code:
            raise HTTPException(code)
        raise ZeroDivisionError

    return app


def requests(client: TestClient) -> None:
    """Send one request of each kind."""
    client.get("/items/1")
    client.post("/orders")
    client.post("/orders?code=503")
    client.post("/orders?code=404")
    client.get("/nowhere")
    client.request("BREW", "/items/1")


def counts(seen: Seen) -> dict[tuple[str, ...], float]:
    """Return the number of requests by the values of all labels."""
    return {
        tuple(dict(labels).get(name, "") for name in SEMCONV_LABELS): value
        for labels, value in seen.samples(f"{DURATION}_count").items()
    }


def test_names_and_labels_are_those_of_the_conventions() -> None:
    """Each name is OpenTelemetry's with dots as underscores and the unit at its end, each label an attribute."""
    assert f"{HTTP_SERVER_REQUEST_DURATION.replace('.', '_')}_seconds" == SEMCONV.duration
    attributes = (
        http_attributes.HTTP_REQUEST_METHOD,
        http_attributes.HTTP_ROUTE,
        http_attributes.HTTP_RESPONSE_STATUS_CODE,
        url_attributes.URL_SCHEME,
        network_attributes.NETWORK_PROTOCOL_VERSION,
        error_attributes.ERROR_TYPE,
    )
    assert tuple(name.replace(".", "_") for name in attributes) == SEMCONV_LABELS


def test_requests_are_recorded_with_all_attributes(observed: Callable[..., Seen]) -> None:
    """One histogram has method, route, status, scheme, version and cause; no metric has a default name."""
    seen = observed(app := shop(), metric_names="semconv")
    requests(TestClient(app, raise_server_exceptions=False))
    assert counts(seen) == {
        ("GET", "/items/{item_id}", "200", "http", "1.1", ""): 1,
        ("POST", "/orders", "500", "http", "1.1", "ZeroDivisionError"): 1,
        ("POST", "/orders", "503", "http", "1.1", "503"): 1,
        ("POST", "/orders", "404", "http", "1.1", ""): 1,
        ("GET", "", "404", "http", "1.1", ""): 1,
        ("_OTHER", "/items/{item_id}", "405", "http", "1.1", ""): 1,
    }
    assert seen.total("http_server_request_body_size_bytes_count") == 6
    assert seen.total("http_server_response_body_size_bytes_count") == 6
    assert seen.sample("http_server_active_requests") == 0
    for name in (PROMETHEUS.requests, PROMETHEUS.duration, PROMETHEUS.request_size, PROMETHEUS.errors):
        assert not seen.total(name)
        assert f"# TYPE {name} " not in seen.text


def test_the_default_names_do_not_change(observed: Callable[..., Seen]) -> None:
    """Without the option no metric of the conventions exists."""
    seen = observed(app := shop())
    requests(TestClient(app, raise_server_exceptions=False))
    assert "http_server_" not in seen.text
    assert seen.total("http_requests_total") == 6


@pytest.mark.anyio
async def test_scheme_and_version_are_bounded(observed: Callable[..., Seen]) -> None:
    """What a server passes on in `scheme` and `http_version` is one of a few values."""
    seen = observed(app := shop(), metric_names="semconv")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None: ...

    for number in range(20):
        scope = {
            "type": "http", "method": "GET", "path": "/items/1", "raw_path": b"/items/1", "query_string": b"",
            "headers": [], "scheme": f"h{number}", "http_version": f"{number}.7", "root_path": "",
        }  # fmt: skip
        await app(scope, receive, send)
    assert counts(seen) == {("GET", "/items/{item_id}", "200", "_OTHER", "_OTHER", ""): 20}


def test_fields_are_labels_too(observed: Callable[..., Seen]) -> None:
    """`metric_labels` and `constant_labels` are on the metrics of the conventions, within the same limits."""
    app = FastAPI()
    seen = observed(
        app, metric_names="semconv", metric_labels=["tenant"], constant_labels={"team": "a"}, max_values_per_label=2
    )

    @app.get("/{tenant}")
    async def read(tenant: str) -> None:
        seen.observe.set(tenant=tenant)

    client = TestClient(app)
    for tenant in ("a", "b", "c", "d"):
        client.get(f"/{tenant}")
    found = {dict(labels)["tenant"]: value for labels, value in seen.samples(f"{DURATION}_count").items()}
    assert found == {"a": 1, "b": 1, "__overflow__": 2}
    assert all(dict(labels)["team"] == "a" for labels in seen.samples(f"{DURATION}_count"))
    with pytest.raises(SettingsError, match="metric_labels"):
        ObserveSettings(metric_labels=["http_route"])


def test_exemplars_are_on_the_histogram(observed: Callable[..., Seen]) -> None:
    """A sampled request is an exemplar of its bucket."""
    seen = observed(app := shop(), metric_names="semconv")
    TestClient(app).get("/items/1")
    _, body = seen.observe.metrics.render("application/openmetrics-text; version=1.0.0", "")
    families = {one.name: one for one in text_string_to_metric_families(body.decode())}  # type: ignore[no-untyped-call]
    exemplars = [sample.exemplar for sample in families[DURATION].samples if sample.exemplar is not None]
    (span,) = seen.server_spans
    position = span.get_span_context()
    assert position is not None
    assert [one.labels["trace_id"] for one in exemplars] == [f"{position.trace_id:032x}"]


def test_requests_that_the_middleware_did_not_see(observed: Callable[..., Seen]) -> None:
    """`record_http_request` fills the same histogram; scheme and version are unknown."""
    seen = observed(shop(), metric_names="semconv")
    seen.observe.metrics.record_http_request("GET", "/batch", 503, 0.1, 5, 6)
    assert counts(seen) == {("GET", "/batch", "503", "", "", "503"): 1}
    assert seen.total("http_server_request_body_size_bytes_sum") == 5


def test_objectives_count_the_histogram(observed: Callable[..., Seen]) -> None:
    """Error budgets in the app are those of the same requests with the default names."""
    budgets = []
    for names in ("prometheus", "semconv"):
        seen = observed(app := shop(), metric_names=names, slos=SLOS, service_name=names)
        with TestClient(app, raise_server_exceptions=False) as client:
            requests(client)
            budgets.append(
                {
                    name: seen.samples(name)
                    for name in ("slo_error_budget_remaining_ratio", "slo_events_total", "slo_bad_events_total")
                }
            )
            seen.observe.close()
    assert any(budgets[0].values())
    assert budgets[0] == budgets[1]


def run(program: str, *arguments: str, directory: Path) -> None:
    """Run a program that must succeed."""
    done = subprocess.run([needs(program), *arguments], cwd=directory, capture_output=True, check=False, text=True)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_bundle_follows(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """Rules pass their own tests by promtool; no file has a default name; the plan has another hash."""
    seen = observed(app := shop(), metric_names="semconv", slos=SLOS, service_name="shop")
    settings = seen.observe.settings
    plan = make_plan(app, settings)
    for slo in plan.slos[1:]:  # the tests of several objectives take much longer than those of each
        alone = plan._replace(slos=(slo,))
        files = make_bundle(alone, settings, detect_features(app, settings))
        for name in ("rules.yml", "rules_test.yml"):
            (tmp_path / name).write_text(files[name], "utf-8")
        run("promtool", "check", "rules", "--lint=all", "--lint-fatal", "rules.yml", directory=tmp_path)
        run("promtool", "test", "rules", "rules_test.yml", directory=tmp_path)
    files = make_bundle(plan, settings, detect_features(app, settings))
    for name, text in files.items():
        assert not re.search(r"http_requests_total|http_request_duration_seconds|http_request_errors_total", text), name
        assert not re.search(r"(?<![a-z_])status_code=|(?<![a-z_])method=", text), name
    assert 'http_server_request_duration_seconds_count{job=\\"shop\\"' in files["dashboard.json"]
    assert "{{http_request_method}} {{http_route}}" in files["dashboard.json"]
    assert plan.hash != make_plan(app, settings.model_copy(update={"metric_names": "prometheus"})).hash
    titles = {panel["title"]: panel for panel in json.loads(files["dashboard.json"])["panels"]}
    assert "${__field.labels.http_route}" in json.dumps(titles["Traffic"])
    assert "${__field.labels.endpoint}" in json.dumps(titles["Validation errors"])


def test_every_query_of_the_dashboard_finds_series(observed: Callable[..., Seen]) -> None:
    """Each metric of the conventions that the dashboard reads is exposed by the app."""
    seen = observed(app := shop(), metric_names="semconv", service_name="shop")
    requests(TestClient(app, raise_server_exceptions=False))
    settings = seen.observe.settings
    files = make_bundle(make_plan(app, settings), settings, detect_features(app, settings))
    for name in set(re.findall(r"http_server_\w+", files["dashboard.json"])):
        assert f"\n{name}{{" in seen.text or f"\n{name} " in seen.text, name


def test_cost_reads_both_names(observed: Callable[..., Seen]) -> None:
    """Requests per day and series by route are found in a scrape with either names."""
    found = []
    for names in ("prometheus", "semconv"):
        seen = observed(app := shop(), metric_names=names, service_name=names)
        client = TestClient(app, raise_server_exceptions=False)
        client.get("/items/1")
        client.get("/items/2")
        totals = ScrapeTotals()
        for family in seen.observe.metrics.registry.collect():
            totals.add(family)
        estimate = estimate_cost(totals, 15, Prices(), bytes_per_line=500)
        assert any(route["name"] == "/items/{item_id}" for route in estimate["routes"])
        assert any(saving["what"].startswith("duration_buckets") for saving in estimate["savings"])
        found.append(totals.requests)
    assert found == [2, 2]
