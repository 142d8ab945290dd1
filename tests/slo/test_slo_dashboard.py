"""The dashboard: its rows, that Grafana reads every field of it, and that its queries are valid."""

from __future__ import annotations

import copy
import json
import subprocess
import warnings
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from monitored import ROOT
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from tools import needs, needs_package

from fastapi_observe import Availability, DatabaseDep, ExternalDep, Latency, MetricsDep
from fastapi_observe.formats.choice import JSON
from fastapi_observe.slo.features import SELECTABLE, Features, detect_features
from fastapi_observe.slo.grafana.dashboard import dashboard_uid, make_dashboard
from fastapi_observe.slo.grafana.panels import iter_panels
from fastapi_observe.slo.loading import get_plan
from fastapi_observe.slo.prometheus import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen

ALL_ROWS = [
    "At a glance",
    "Golden signals",
    "SLO and error budget",
    "Database",
    "External services",
    "Runtime and saturation",
    "Jobs",
    "Operations",
    "Business",
    "Metrics of the app",
    "Cost of observing",
]
SLOS = [Availability("availability", 99.9, sla=99.5), Latency("latency", 95, within="300ms")]


class Repository:
    """A dependency that has dependencies."""

    def __init__(self, repository: DatabaseDep, tasks: BackgroundTasks) -> None: ...


def uses_class(shared: Annotated[Repository, Depends()]) -> None:
    """Depend on a class."""


class CallableObject:
    """An object that is a dependency."""

    def __call__(self, external: ExternalDep) -> None:
        """Do nothing."""


callable_object = CallableObject()


def large_app() -> FastAPI:
    """Return an app that uses every feature that its routes show."""
    app = FastAPI(title="shop")

    @app.get("/orders/{order_id}")
    async def read_order(
        order_id: int,
        metrics: MetricsDep,
        given: Annotated[None, Depends(uses_class)],
        default: None = Depends(callable_object),  # noqa: FAST002 - the older way
    ) -> StreamingResponse:
        return StreamingResponse(iter(()))

    @app.websocket("/ws")
    async def talk() -> None: ...

    return app


@pytest.fixture
def dashboard(observed: Callable[..., Seen]) -> dict[str, Any]:
    """Return the dashboard of an app that uses every feature."""
    app = large_app()
    seen = observed(app, service_name="shop", slos=SLOS)
    seen.observe.metrics.counter("coupons_total", "Coupons that were redeemed.", ["channel"])
    settings, plan = get_plan(app)
    return make_dashboard(plan, detect_features(app, settings, include=SELECTABLE))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all panels without the rows."""
    return [panel for panel in iter_panels(dashboard["panels"]) if panel["type"] != "row"]


def rows(dashboard: dict[str, Any]) -> list[str]:
    """Return the titles of the rows."""
    return [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries, with variables filled in as Grafana does."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], filled(target["expr"])
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", filled(annotation["expr"])


def filled(expression: str) -> str:
    """Fill in the variables of Grafana."""
    for name, value in (
        ("$__rate_interval", "1m"),
        ("$__range", "5m"),
        ("$instance", ".*"),
        ("$endpoint", ".*"),
        ("$slo", ".*"),
        ("$price_million_samples", "1"),
        ("$price_million_lines", "1"),
        ("$price_million_spans", "1"),
    ):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def test_every_row_is_there(dashboard: dict[str, Any]) -> None:
    """The rows are in the order of the questions: is it healthy, what do users see, why, what does it cost."""
    assert rows(dashboard) == ALL_ROWS
    assert [panel["collapsed"] for panel in dashboard["panels"] if panel["type"] == "row"] == [False] * 3 + [True] * 8


def test_the_page_describes_the_rows() -> None:
    """docs/how-to/dashboard.md lists exactly these rows, in their order."""
    page = (
        (ROOT / "docs" / "how-to" / "dashboard.md")
        .read_text("utf-8")
        .partition("## The dashboard")[2]
        .partition("\n## ")[0]
    )
    lines = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")]
    assert lines[1:] == ALL_ROWS


def test_unused_features_have_no_rows(observed: Callable[..., Seen]) -> None:
    """Without objectives, database, external services and business metrics, their rows and links are left out."""
    app = FastAPI()
    observed(app, tracing=False, logs=False, size_histograms=False)
    settings, plan = get_plan(app)
    features = detect_features(app, settings)
    assert features.not_detected == SELECTABLE
    made = make_dashboard(plan, features)
    assert rows(made) == ["At a glance", "Golden signals", "Runtime and saturation", "Cost of observing"]
    names = [variable["name"] for variable in made["templating"]["list"]]
    assert names[:3] == ["datasource", "instance", "endpoint"]
    text = json.dumps(made)
    for absent in (
        "slo:",
        "size_bytes",
        "db_",
        "external_",
        "websocket_",
        "/explore",
        "background_",
        "first_byte",
        "jobs_",
        "operation",
    ):
        assert absent not in text, absent
    assert not any(target["exemplar"] for panel in panels(made) for target in panel["targets"])


def test_features_are_detected(observed: Callable[..., Seen]) -> None:
    """Features that path operations and their dependencies use are detected; the user can override it."""
    app = large_app()
    seen = observed(app)
    found = detect_features(app, seen.observe.settings)
    flags: dict[str, Any] = dict.fromkeys(Features._fields, True)
    not_in_routes = dict.fromkeys(("pools", "business", "jobs", "operations"), False)
    assert found == Features(**flags | not_in_routes | {"line_format": JSON, "users_metrics": ()})
    assert detect_features(app, seen.observe.settings, include=["database"]).pools
    assert not detect_features(app, seen.observe.settings, exclude=["database"]).database
    assert found.not_detected == ("business", "jobs", "operations")


def test_unusual_dependencies_are_skipped(observed: Callable[..., Seen]) -> None:
    """A dependency without a function, and one that depends on itself, are skipped."""

    def own(again: Any, nothing: Any, number: int = 3, *, last: Any = None) -> None: ...

    own.__defaults__ = (Depends(own), Depends(), 3)
    app = FastAPI()
    seen = observed(app)
    own.__kwdefaults__ = {"last": Depends(partial(own))}
    app.router.routes += [Route("/own", own), Mount("/files", StaticFiles(directory=ROOT))]
    found = detect_features(app, seen.observe.settings)
    assert found.not_detected == SELECTABLE


def test_a_database_without_pools(observed: Callable[..., Seen]) -> None:
    """If queries are measured by hand and no pool is known, panels about connections are left out."""
    app = large_app()
    seen = observed(app)
    _, plan = get_plan(app)
    made = make_dashboard(plan, detect_features(app, seen.observe.settings))
    assert "Database" in rows(made)
    assert "db_connections_active" not in json.dumps(made)


def test_annotations_that_cannot_be_evaluated(observed: Callable[..., Seen]) -> None:
    """If annotations cannot be evaluated, their text decides."""
    app = FastAPI()

    async def read() -> None: ...

    app.add_api_route("/read", read)
    read.__annotations__["tasks"] = "unknown.BackgroundTasks"
    seen = observed(app)
    assert detect_features(app, seen.observe.settings).background


def test_every_query_is_promql(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Promtool parses every query of every panel and annotation."""
    rules = [{"record": f"query:{at}", "expr": expr} for at, (_, expr) in enumerate(queries(dashboard))]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.dump({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    checked = subprocess.run([needs("promtool"), "check", "rules", file], capture_output=True, check=False, text=True)  # noqa: S603
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout
    assert len(rules) > 60


def test_every_panel_is_described(dashboard: dict[str, Any]) -> None:
    """Every panel has a unit and a description of one sentence; titles are unique."""
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    for panel in panels(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        description = panel["description"]
        assert description.endswith(".")
        assert description[0].isupper()
        assert 10 < len(description) < 130
        assert panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_windows_follow_the_resolution(dashboard: dict[str, Any]) -> None:
    """Every rate is over `$__rate_interval` or the selected range; recorded series have their own windows."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            for window in target["expr"].split("[")[1:]:
                assert window.startswith(("$__rate_interval]", "$__range]")), target["expr"]


def test_the_number_of_series_is_limited(dashboard: dict[str, Any]) -> None:
    """Queries whose result grows with the app show the largest series."""
    grow = {"endpoint", "table", "operation", "error_type", "field", "__name__"}
    for panel in panels(dashboard):
        for target in panel["targets"]:
            if panel["type"] == "timeseries" and any(f"{{{{{label}}}}}" in target["legendFormat"] for label in grow):
                assert "topk(" in target["expr"], panel["title"]


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    """Ids are unique, and panels are inside the grid without overlap, also in collapsed rows."""
    ids = [panel["id"] for panel in iter_panels(dashboard["panels"])]
    assert ids == list(range(1, len(ids) + 1))
    closed = [panel["panels"] for panel in dashboard["panels"] if panel["type"] == "row"]
    for group in (dashboard["panels"], *closed):
        taken: set[tuple[int, int]] = set()
        for panel in group:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells


def test_endpoints_link_to_traces_and_logs(dashboard: dict[str, Any]) -> None:
    """An endpoint links to its traces by `span.http.route` and to its log lines."""
    (traffic,) = [panel for panel in panels(dashboard) if panel["title"] == "Traffic"]
    traces, lines = (unquote(link["url"]) for link in traffic["fieldConfig"]["defaults"]["links"])
    panes = json.loads(traces.partition("panes=")[2])
    (query,) = panes["a"]["queries"]
    assert query["query"] == '{resource.service.name="shop" && span.http.route="${__field.labels.endpoint}"}'
    assert panes["a"]["datasource"] == "${tempo}"
    (query,) = json.loads(lines.partition("panes=")[2])["a"]["queries"]
    assert query["expr"] == '{service_name="shop"} | json | fields_endpoint="${__field.labels.endpoint}"'
    table = next(panel for panel in panels(dashboard) if panel["title"] == "Endpoints")
    assert "__data.fields.endpoint" in json.dumps(table)


def test_latency_has_exemplars(dashboard: dict[str, Any]) -> None:
    """The quantiles of latency show exemplars."""
    (latency,) = [panel for panel in panels(dashboard) if panel["title"] == "Latency"]
    assert [target["exemplar"] for target in latency["targets"]] == [True] * 3


def test_the_uid_depends_on_the_service(dashboard: dict[str, Any]) -> None:
    """The uid depends on the service only, so that an import replaces the older dashboard."""
    assert dashboard["uid"] == dashboard_uid("shop") != dashboard_uid("shop2")
    assert len(dashboard_uid("x" * 300)) <= 40


def lost(given: Any, back: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of values that were lost or changed."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            yield from lost(value, back[key], f"{path}.{key}") if key in back else [f"{path}.{key}"]
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for at, (one, other) in enumerate(zip(given, back, strict=True)):
            yield from lost(one, other, f"{path}.{at}")
    elif given != back:
        yield path


def read_by_grafana(dashboard: dict[str, Any]) -> Any:
    """Return a dashboard after Grafana's own library has read and written it."""
    needs_package("grafana_foundation_sdk")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the model that every Grafana reads
        from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: PLC0415 - only if it is installed
        from grafana_foundation_sdk.cog.plugins import register_default_plugins  # noqa: PLC0415
        from grafana_foundation_sdk.models.dashboard import Dashboard  # noqa: PLC0415

        register_default_plugins()
        return json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(dashboard))))


def test_grafana_knows_every_field(dashboard: dict[str, Any]) -> None:
    """Grafana's own model reads every field of the dashboard."""
    assert [*lost(dashboard, read_by_grafana(dashboard))] == []


@pytest.mark.parametrize(
    ("where", "right", "wrong"),
    [
        ("fieldConfig.defaults", "unit", "units"),
        ("options.legend", "placement", "placment"),
        ("targets.0", "legendFormat", "legend"),
        ("", "refresh", "refesh"),
    ],
)
def test_misspelled_fields_are_found(dashboard: dict[str, Any], where: str, right: str, wrong: str) -> None:
    """The comparison with Grafana's model finds misspelled fields."""
    place: Any = dashboard
    if where:
        (place,) = [panel for panel in panels(dashboard) if panel["title"] == "Latency"]
    for step in where.split(".") if where else ():
        place = place[int(step)] if step.isdecimal() else place[step]
    place[wrong] = place.pop(right)
    assert [path.rpartition(".")[2] for path in lost(dashboard, read_by_grafana(dashboard))] == [wrong]
