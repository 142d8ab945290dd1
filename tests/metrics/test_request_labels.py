"""`metric_labels` and `constant_labels`: fields of requests, and fixed values, as labels of metrics."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fastapi_observe import Availability, Latency, ObservabilityDep, ObserveSettings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from members import Member

FAMILIES = (
    "http_requests_total",
    "http_request_duration_seconds_count",
    "http_request_size_bytes_count",
    "http_response_size_bytes_count",
)


def make_app() -> FastAPI:
    """Return an app whose requests have a tenant, or none."""
    app = FastAPI()

    @app.get("/orders")
    async def orders(observe: ObservabilityDep, tenant: str | None = None, fail: bool = False) -> None:  # noqa: FBT001, FBT002 - a query parameter
        if tenant is not None:
            observe.set(tenant=tenant)
        if fail:
            raise ValueError

    @app.get("/stream")
    async def stream(observe: ObservabilityDep) -> StreamingResponse:
        observe.set(tenant="streamed")
        return StreamingResponse(iter([b"a", b"b", b"c"]))

    return app


def by_tenant(seen: Seen, name: str) -> dict[str, float]:
    """Return the samples of a family added up by tenant."""
    found: dict[str, float] = {}
    for labels, value in seen.samples(name).items():
        tenant = dict(labels)["tenant"]
        found[tenant] = found.get(tenant, 0) + value
    return found


def test_fields_are_labels_of_the_request_metrics(observed: Callable[..., Seen]) -> None:
    """Each has its own series, empty where no field was set; other metrics have no such label."""
    app = make_app()
    seen = observed(app, metric_labels=["tenant"])
    with TestClient(app, raise_server_exceptions=False) as client:
        for query in ("?tenant=a", "?tenant=a", "?tenant=b", "", "?tenant=b&fail=1"):
            client.get(f"/orders{query}")
        client.get("/stream")
    for name in FAMILIES:
        assert by_tenant(seen, name) == {"a": 2, "b": 2, "": 1, "streamed": 1}, name
    assert by_tenant(seen, "http_request_errors_total") == {"b": 1}
    assert by_tenant(seen, "http_time_to_first_byte_seconds_count") == {"streamed": 1}
    assert seen.sample("http_requests_total", method="GET", endpoint="/orders", status_code="500", tenant="b") == 1
    assert seen.sample("http_requests_in_progress") == 0
    seen.observe.metrics.record_http_request("GET", "/elsewhere", 200, 0.1, 1, 1)
    assert by_tenant(seen, "http_requests_total")[""] == 2


def test_values_are_limited(observed: Callable[..., Seen]) -> None:
    """Tenants beyond the limit share `__overflow__`, which is counted; known ones keep their series."""
    app = make_app()
    seen = observed(app, metric_labels=["tenant"], max_values_per_label=3)
    with TestClient(app) as client:
        for number in [*range(10), 0, 1, 9]:
            client.get(f"/orders?tenant={number}")
    assert by_tenant(seen, "http_requests_total") == {"0": 2, "1": 2, "2": 1, "__overflow__": 8}
    assert seen.sample("fastapi_observe_series_overflow_total", metric="http_requests_total") == 8
    assert sum("max_values_per_label" in line["message"] for line in seen.lines) >= 1


def test_objectives_count_all_values(observed: Callable[..., Seen]) -> None:
    """Requests with and without a tenant are events of the same objective."""
    app = make_app()
    seen = observed(
        app,
        metric_labels=["tenant"],
        slos=[Availability("up", 99.0), Latency("fast", 99.0, "300ms")],
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        for query in ("?tenant=a", "?tenant=b&fail=1", ""):
            client.get(f"/orders{query}")
        name = "slo_error_budget_remaining_ratio"
        assert seen.sample(name, slo="up") == pytest.approx(1 - (1 / 3) / 0.01)
        assert seen.sample(name, slo="fast") == 1
    assert seen.observe.internal_errors.counts == {}


def test_constant_labels_are_on_every_metric(observed: Callable[..., Seen]) -> None:
    """In both formats, on collectors and on the user's own metrics; not on those of other libraries."""
    app = make_app()
    seen = observed(app, constant_labels={"team": 'check"out', "zone": "eu"}, include_default_registry=False)
    seen.observe.metrics.counter("orders", "Orders.", ["kind"]).labels("new").inc()
    seen.observe.metrics.gauge("depth", "Depth.").set(2)
    with TestClient(app) as client:
        client.get("/orders")
    _, body = seen.observe.metrics.render("application/openmetrics-text", "")
    families = [*text_string_to_metric_families(seen.text), *parse_openmetrics(body.decode())]  # type: ignore[no-untyped-call]
    labels = [(sample.name, sample.labels) for family in families for sample in family.samples]
    without = {name for name, pairs in labels if (pairs.get("team"), pairs.get("zone")) != ('check"out', "eu")}
    assert without == set()
    assert {"orders_total", "depth", "http_requests_total", "asyncio_event_loop_lag_seconds_bucket"} <= {
        name for name, _ in labels
    }
    with pytest.raises(ValueError, match="constant_labels"):
        seen.observe.metrics.counter("more", "More.", ["team"])
    pushed = [family for each in seen.observe.metrics.sharing.local_collectors() for family in each.collect()]
    assert {sample.labels.get("team") for family in pushed for sample in family.samples} == {'check"out'}
    seen.observe.metrics.update_system_metrics()
    assert seen.observe.internal_errors.counts == {}


def test_a_registry_of_the_user_is_left_as_it_was(observed: Callable[..., Seen]) -> None:
    """`close` unregisters collectors with constant labels too."""
    registry = CollectorRegistry()
    seen = observed(make_app(), constant_labels={"team": "a"}, registry=registry)
    assert "team" in seen.text
    seen.observe.close()
    assert [*registry.collect()] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("metric_labels", ["endpoint"]),
        ("metric_labels", ["user-id"]),
        ("metric_labels", ["__name__"]),
        ("constant_labels", {"method": "x"}),
        ("constant_labels", {"a b": "x"}),
        ("constant_labels", "team"),
    ],
)
def test_invalid_labels(option: str, value: Any) -> None:
    """Names that Prometheus does not allow, and our own ones, are errors of the settings."""
    with pytest.raises(SettingsError, match=option):
        ObserveSettings.load(**{option: value})


def test_labels_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are lists in a variable."""
    monkeypatch.setenv("OBSERVE_METRIC_LABELS", "tenant,plan,tenant")
    monkeypatch.setenv("OBSERVE_CONSTANT_LABELS", "team=checkout,zone=eu")
    settings = ObserveSettings.load()
    assert settings.metric_labels == ("tenant", "plan")
    assert settings.constant_labels == {"team": "checkout", "zone": "eu"}


def test_the_label_of_both_is_refused(observed: Callable[..., Seen]) -> None:
    """A field that is a constant label as well would be on a series twice."""
    with pytest.raises(SettingsError, match="tenant is in constant_labels and in metric_labels"):
        observed(FastAPI(), metric_labels=["tenant"], constant_labels={"tenant": "a"})


@pytest.mark.skipif(sys.platform == "win32", reason="workers share metrics on POSIX")
def test_several_workers(member: Callable[..., Member]) -> None:
    """The merged series have both kinds of labels."""
    first, second = (member(metric_labels=["tenant"], constant_labels={"team": "a"}) for _ in range(2))
    for each in (first, second):
        each.metrics.record_http_request("GET", "/", 200, 0.1)
    line = 'http_requests_total{team="a",method="GET",endpoint="/",status_code="200",tenant=""} 2'
    assert line in first.text()
