"""The plan: the routes that objectives count, the problems of objectives, and PromQL and YAML as text."""

from __future__ import annotations

import functools
import importlib
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import yaml as stock
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from fastapi_observe import Availability, Latency, ObserveSettings, SLOOptions, install, slo
from fastapi_observe.slo.burn_rates import WINDOWS, budget_spent, burn_rate, format_number, promql_duration, threshold
from fastapi_observe.slo.loading import LoadError, get_plan, load_plan
from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan, check_objective_settings, make_plan
from fastapi_observe.slo.prometheus import promql, yaml
from fastapi_observe.slo.route_selection import group_routes

if TYPE_CHECKING:
    from pathlib import Path

MONTH = Decimal(30 * 86400)


async def answer() -> str:
    """Answer."""
    return "ok"


async def stream() -> StreamingResponse:
    """Answer in parts."""
    return StreamingResponse(iter(["a"]))


def shop() -> FastAPI:
    """Return an app with a router, tags, methods that share a path, a stream, a WebSocket and a mount."""
    app = FastAPI(title="shop")
    router = APIRouter(prefix="/orders", tags=["public"])
    router.get("")(answer)
    router.post("")(answer)
    router.get("/{order_id}")(answer)
    router.post("/{order_id}/pay")(answer)
    router.get("/{order_id}/pay")(answer)
    app.include_router(router)
    app.get("/healthz")(answer)
    app.get("/admin/users")(answer)
    app.get("/admin/log", response_model=None)(stream)
    app.add_api_websocket_route("/ws", answer)
    app.mount("/inner", Starlette(routes=[Route("/{name}", lambda _: PlainTextResponse("ok"))]))
    return app


def plan(*objectives: Any, app: Any = None, options: Any = None, **settings: Any) -> SLOPlan:
    """Resolve objectives against the shop."""
    given_settings = ObserveSettings(service_name="shop", slos=objectives, slo_options=options, **settings)
    return make_plan(app or shop(), given_settings)


def only(*objectives: Any, **settings: Any) -> ResolvedObjective:
    """Resolve one objective without problems."""
    made = plan(*objectives, **settings)
    assert not made.errors
    return made.slos[0]


def codes(*objectives: Any, **settings: Any) -> list[str]:
    """Return the codes of the problems, in order."""
    return [problem.code for problem in plan(*objectives, **settings).problems]


def said(*objectives: Any, **settings: Any) -> str:
    """Return the problems as text."""
    return "\n".join(f"{problem.level}: {problem}" for problem in plan(*objectives, **settings).problems)


def test_an_objective_without_routes_counts_all() -> None:
    """An objective without routes counts all measured routes: no documentation, no excluded path, no WebSocket."""
    found = only(Availability("all", 99.9), exclude_paths=("/admin*",))
    assert found.groups == ()
    assert found.endpoints == (
        ("GET", "/healthz"),
        ("GET", "/inner/{name}"),
        ("GET", "/orders"),
        ("GET", "/orders/{order_id}"),
        ("GET", "/orders/{order_id}/pay"),
        ("POST", "/orders"),
        ("POST", "/orders/{order_id}/pay"),
    )
    assert plan().excluded_templates == ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc", "redirect")


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        (["/orders"], [("GET", "/orders"), ("POST", "/orders")]),
        ("POST /orders", [("POST", "/orders")]),
        (["post /orders"], [("POST", "/orders")]),
        (["/admin/*"], [("GET", "/admin/log"), ("GET", "/admin/users")]),
        (["POST /orders*"], [("POST", "/orders"), ("POST", "/orders/{order_id}/pay")]),
        (["/inner/{name}"], [("GET", "/inner/{name}")]),
        (["/orders/{order_id}", "/orders/{order_id}"], [("GET", "/orders/{order_id}")]),
    ],
)
def test_routes_are_selected(routes: list[str] | str, expected: list[tuple[str, str]]) -> None:
    """A template, with a method or as a glob, selects routes; braces are not a pattern; duplicates count once."""
    assert only(Availability("some", 99.9, routes=routes)).endpoints == tuple(expected)


def test_tags_select_routes() -> None:
    """`tag:public` selects the routes with that tag, including those of a router with it."""
    found = only(Availability("some", 99.9, routes=["tag:public"])).endpoints
    assert len(found) == 5
    assert {template.split("/")[1] for _, template in found} == {"orders"}


def test_exactly_the_chosen_pairs_are_selected() -> None:
    """Pairs that are not a cross product become several selectors, and no series matches two of them."""
    objective = Availability(
        "checkout", 99.95, routes=["POST /orders", "/orders/{order_id}/pay"], bad_statuses=["5xx", "429"]
    )
    made = plan(objective)
    assert made.slos[0].groups == (
        (("GET", "POST"), ("/orders/{order_id}/pay",)),
        (("POST",), ("/orders",)),
    )
    assert promql.events(made, made.slos[0], "1m") == (
        'rate(http_requests_total{job="shop",method=~"GET|POST",endpoint="/orders/{order_id}/pay"}[1m])'
        ' or rate(http_requests_total{job="shop",method="POST",endpoint="/orders"}[1m])'
    )
    assert 'status_code=~"429|5.."' in promql.bad(made, made.slos[0], "1m")


@given(st.sets(st.tuples(st.sampled_from("ABC"), st.sampled_from(["/x", "/y", "/z", "/{w}"]))))
def test_groups_multiply_out_to_the_pairs(pairs: set[tuple[str, str]]) -> None:
    """Groups multiply out to the pairs, each once."""
    found = [(method, name) for methods, names in group_routes(pairs) for method in methods for name in names]
    assert sorted(found) == sorted(pairs)


def test_unmatched_requests_count_if_they_failed() -> None:
    """Scanners do not dilute the error ratio; a middleware that fails before the router counts."""
    made = plan(Availability("all", 99.9, bad_statuses=["503"]))
    every = promql.events(made, made.slos[0], "1m")
    assert r"endpoint!~`/docs|/docs/oauth2-redirect|/openapi\.json|/redoc|redirect|unmatched`" in every
    assert every.endswith(' or rate(http_requests_total{job="shop",endpoint="unmatched",status_code="503"}[1m])')
    assert promql.bad(made, made.slos[0], "1m").count('status_code="503"') == 2


def test_latency_compares_series_that_have_the_bucket() -> None:
    """Both sides of the ratio are series that have the threshold, written as the client writes `le`."""
    made = plan(Latency("fast", 95, within="1s", routes=["GET /orders"]))
    series = 'http_request_duration_seconds_bucket{job="shop",method="GET",endpoint="/orders",le='
    assert promql.events(made, made.slos[0], "1m") == (
        f'(rate({series}"+Inf"}}[1m]) and ignoring(le) rate({series}"1.0"}}[1m]))'
    )
    assert promql.good(made, made.slos[0], "1m") == f'rate({series}"1.0"}}[1m])'


def test_a_decorated_path_operation_counts() -> None:
    """`@slo` works above and below `@app.get`, on wrapped functions and on classes, and returns the function."""
    app = FastAPI()
    both = Availability("both", 99.9)

    @slo(both)
    @app.get("/above")
    async def above() -> int:
        return 1

    @app.get("/below")
    @app.post("/also")
    @slo(both, Latency("fast", 99, within="100ms"))
    async def below() -> int:
        return 2

    @app.get("/wrapped")
    @functools.wraps(below)
    async def wrapped() -> int:
        return 3

    @slo(both)
    class Thing(HTTPEndpoint):
        async def get(self) -> None: ...

    app.router.routes.append(Route("/thing", Thing))
    made = plan(app=app)
    assert made.problems == ()
    assert [each.name for each in made.slos] == ["both", "fast"]
    assert [template for _, template in made.slos[0].endpoints] == ["/above", "/below", "/thing", "/wrapped", "/also"]
    assert made.slos[1].endpoints == (("GET", "/below"), ("GET", "/wrapped"), ("POST", "/also"))
    assert above.__name__ == "above"


def test_the_decorator_checks_its_arguments() -> None:
    """No objective, an argument of another type and an objective with routes raise at the decorator."""
    with pytest.raises(TypeError, match=r"needs an objective, such as"):
        slo()
    with pytest.raises(TypeError, match=r"needs Availability\(...\) or Latency\(...\), got 'x'"):
        slo("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"leave out routes=\['/a'\]"):
        slo(Availability("x", 99, routes=["/a"]))
    with pytest.raises(TypeError, match=r"the name of an objective must be a string, got \['x'\]"):
        slo(Availability(["x"], 99))  # type: ignore[arg-type]  # on purpose


def test_the_decorator_keeps_the_name_of_the_package() -> None:
    """`fastapi_observe.slo` stays the decorator after modules of the package `slo` are imported."""
    importlib.import_module("fastapi_observe.slo.report")
    fastapi_observe = importlib.import_module("fastapi_observe")
    assert callable(fastapi_observe.slo)
    assert sys.modules["fastapi_observe.slo"].__name__ == "fastapi_observe.slo"


def test_all_problems_are_reported_at_once() -> None:
    """All problems are reported at once, each with its code and the next step."""
    shown = said(
        Availability("checkout", 99.9, routes=["POST /order"]),
        Availability("Checkout!", 100),
        Availability("checkout", 0.999),
        Availability("sla", 99.9, sla=99.95, routes=["tag:secret"]),
        Latency("slow", 99, within="soon", routes=["/ws"]),
        Latency("late", 99, within="30s", routes=["/admin/log"]),
        Latency("odd", 99, within="300ms"),
        Availability("health", 99.9, routes=["/healthz"], expected_rpm=1),
        Availability("low", 90),
        Availability("none", 20),
        options=SLOOptions(scrape_interval="30s"),
        exclude_paths=("/healthz",),
    )
    for line in (
        "error: SLO01 checkout: 'POST /order' matches no route; did you mean 'POST /orders'? Routes: GET /admin/log, ",
        "error: SLO09 Checkout!: invalid name 'Checkout!'; use a-z, 0-9 and single hyphens",
        "error: SLO05 Checkout!: 100 leaves no error budget; use more than 1 and at most 99.999",
        "error: SLO09 checkout: the name 'checkout' is used twice; choose another name for one of the objectives",
        "error: SLO05 checkout: 0.999 is a ratio, but an objective is a percentage; did you mean 99.9?",
        "error: SLO07 sla: sla=99.95 must be lower than objective=99.9, otherwise the SLA is violated",
        "error: SLO01 sla: 'tag:secret' matches no route; use a tag of this app: public",
        "error: SLO04 slow: within: ",
        "error: SLO08 slow: /ws is a WebSocket: it has no response status",
        "warning: SLO04 late: within=30s is above the highest bucket, 10s. A bucket is added for it; raise",
        "warning: SLO08 late: /admin/log streams: its duration is that of the whole stream; leave it out",
        "info: SLO03 odd: added a histogram bucket at 300ms for this objective (0.25, 0.3, 0.5; one more series",
        "error: SLO02 health: /healthz is in exclude_paths or exclude_urls, so the objective never counts it; ",
        "warning: SLO11 health: at 1 requests per minute one failure in an hour burns the budget 16.7 times",
        "pages need min_bad_events=5, about 5 minutes of a full outage. Add a synthetic probe",
        "warning: SLO06 low: the 1h page can never fire: with 10 % of budget it would need 144 % errors; it is",
        "Remaining alerts: 6h page (60 %), 1d ticket (30 %), 3d ticket (10 %). Above 93.06 % all alerts can fire",
        "error: SLO06 none: the 6h page can never fire: with 80 % of budget it would need 480 % errors",
        "warning: SLO10 all: scrape_interval=30s: the base window is 120s, four scrapes, so alerts fire later than",
    ):
        assert line in shown, line


def test_a_bucket_of_two_objectives_is_reported_once() -> None:
    """The second objective adds no bucket. An error of both is reported for each."""
    assert codes(Latency("a", 99, within="300ms"), Latency("b", 99, within="300ms")) == ["SLO03"]
    assert codes(Latency("a", 99, within="300ms"), Latency("b", 99, within="400ms")) == ["SLO03", "SLO03"]
    assert codes(Latency("a", 99, within="soon"), Latency("b", 99, within="soon")) == ["SLO04", "SLO04"]


@pytest.mark.parametrize(
    ("objective", "settings", "expected"),
    [
        (Availability("a", "x"), {}, ["SLO05"]),  # type: ignore[arg-type]
        (Availability("a", float("nan")), {}, ["SLO05"]),
        (Availability("a", -3), {}, ["SLO05"]),
        (Availability("a", 99.9, sla="much"), {}, ["SLO05"]),  # type: ignore[arg-type]
        (Availability("a", 99.9, sla=0), {}, ["SLO07"]),
        (Availability("a", 99.9, bad_statuses=["5x"]), {}, ["SLO05"]),
        (Availability("a", 99.9, bad_statuses=[]), {}, ["SLO05"]),
        (Availability("a", 99.9, bad_statuses=["1xx", "2XX", "3xx", "4xx", "5xx"]), {}, ["SLO05"]),
        (Availability("a", 99.9, bad_statuses=[429]), {}, ["SLO05"]),  # type: ignore[list-item]
        (Availability(None, 99.9), {}, ["SLO09"]),  # type: ignore[arg-type]
        (Availability("a", 99.9, min_bad_events=0), {}, ["SLO11"]),
        (Availability("a", 99.9, expected_rpm=-1), {}, ["SLO11"]),
        (Availability("a", 99.9, expected_rpm=float("inf")), {}, ["SLO11"]),
        (Availability("a", 99.9, expected_rpm=1000), {}, []),
        (Availability("a", 99.9, expected_rpm="many"), {}, ["SLO11"]),  # type: ignore[arg-type]
        (Availability("a", 99.9), {"metrics": False}, ["SLO02"]),
        (Availability("a", 99.9), {"options": SLOOptions(period="a month")}, ["SLO10"]),
        (Availability("a", 99.9), {"options": SLOOptions(period="1d")}, ["SLO10"]),
        (Availability("a", 99.9), {"options": SLOOptions(selector={"app": "a", "no-label": "b"})}, ["SLO10"]),
        (Availability("a", 99.9), {"options": SLOOptions(scrape_interval="5m")}, ["SLO10"]),
        (Availability("a", 99.9, routes=["/admin/*"]), {"exclude_urls": ("log",)}, ["SLO02"]),
        (Availability("a", 99.9, routes=["/*"]), {}, ["SLO08"]),
        (Availability("a", 99.9, routes=["tag:public"]), {"app": Starlette()}, ["SLO01"]),
        (Latency("a", 99, within="10s"), {}, []),
    ],
)
def test_each_problem(objective: Any, settings: dict[str, Any], expected: list[str]) -> None:
    """Any objective gives a plan with its problems."""
    assert codes(objective, **settings) == expected


def test_the_path_of_the_metrics_is_not_measured() -> None:
    """A route at the path of the metrics is never measured, unless the metrics have their own port."""
    app = Starlette(routes=[Route("/metrics", lambda _: PlainTextResponse("mine"))])
    named = Availability("a", 99.9, routes=["/metrics"])
    assert codes(named, app=app) == ["SLO02"]
    assert codes(named, app=app, metrics_port=0) == []


def test_messages_list_twenty_routes() -> None:
    """A message lists twenty routes and counts the others."""
    app = Starlette(routes=[Route(f"/r{at}", lambda _: PlainTextResponse("ok")) for at in range(50)])
    assert said(Availability("a", 99.9, routes=["nothing"]), app=app).endswith(" and 30 more")


def test_settings_are_checked_without_routes() -> None:
    """`install` rejects invalid objectives before there are routes, including values of the wrong type."""
    settings = ObserveSettings(slos=(Availability("a", 100), Availability([], 99), Latency("b", 99, within=3)))  # type: ignore[arg-type]
    assert [problem.code for problem in check_objective_settings(settings)] == ["SLO05", "SLO09", "SLO04"]


def test_the_hash_changes_with_the_rules_alone() -> None:
    """A new route does not change the hash of an objective of all routes; a threshold and a named route do."""
    app, more = shop(), shop()
    more.get("/new")(answer)
    everything, some = Availability("a", 99.9), Availability("b", 99.9, routes=["/*"])
    assert plan(everything, app=app).hash == plan(everything, app=more).hash
    assert plan(some, app=app).hash != plan(some, app=more).hash
    hashes = {
        plan(everything).hash,
        plan(Availability("a", 99.95)).hash,
        plan(Availability("a", 99.9, bad_statuses=["500"])).hash,
        plan(Availability("a", 99.9, min_bad_events=3)).hash,
        plan(everything, options=SLOOptions(period="28d")).hash,
        plan(everything, options=SLOOptions(team="shop")).hash,
        plan(everything, options=SLOOptions(selector={"app": "shop"})).hash,
    }
    assert len(hashes) == 7


def test_thresholds_are_exact() -> None:
    """The thresholds of the SRE Workbook, without errors of binary fractions."""
    assert [format_number(threshold(window, Decimal("99.9"), MONTH)) for window in WINDOWS] == [
        "0.0144",
        "0.006",
        "0.003",
        "0.001",
    ]
    four_weeks = [format_number(burn_rate(window, Decimal(28 * 86400))) for window in WINDOWS]
    assert four_weeks == ["13.44", "5.6", "2.8", "1"]
    week = Decimal(7 * 86400)
    assert [format_number(budget_spent(window, week).quantize(Decimal("0.001"))) for window in WINDOWS] == [
        "0.02",
        "0.05",
        "0.143",
        "0.429",
    ]


def test_durations_are_written_as_promql_reads_them() -> None:
    """Durations use the largest unit that gives a whole number."""
    written = [promql_duration(Decimal(each)) for each in ("2592000", "5400", "90", "3600", "0.25")]
    assert written == ["30d", "90m", "90s", "1h", "250ms"]


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("/orders", '"/orders"'),
        (r"a\.b", r"`a\.b`"),
        ('say "hi"', '`say "hi"`'),
        ('`"\\', '"`\\"\\\\"'),
        ("a\nb", '"a\\u000ab"'),
        ("käse🧀", '"käse🧀"'),
        ("\U000e0001", '"\\U000e0001"'),
    ],
)
def test_strings_of_promql(value: str, literal: str) -> None:
    """Strings are raw where that is easier to read and possible, otherwise with escapes of Go."""
    assert promql.quoted(value) == literal


def test_yaml_is_readable() -> None:
    """Words have no quotes, ambiguous strings have quotes, strings of several lines are a block."""
    document = {
        "plain": "slo:events:rate1m",
        "time": "30s",
        "quoted": ["no", "1.0", "a: b", "it's", "", "12:30", "1e3"],
        "number": [1, 1.5, Decimal("0.0144"), True, None, 1e20],
        "block": "sum(a)\n/ sum(b)",
        "empty": [{}, []],
        "nested": [{"a": {"b": [1]}}, ["x"]],
        "odd": "tab\tand\x07bell\n",
    }
    written = yaml.dump(document)
    assert (
        "plain: slo:events:rate1m\ntime: 30s\nquoted:\n  - 'no'\n  - '1.0'\n  - 'a: b'\n  - 'it''s'\n  - ''\n"
        in written
    )
    assert "block: |-\n  sum(a)\n  / sum(b)\n" in written
    assert "nested:\n  - a:\n      b:\n        - 1\n  - - x\n" in written
    assert stock.safe_load(written) == {**document, "number": [1, 1.5, 0.0144, True, None, 1e20]}
    assert yaml.dump(document) == written
    assert yaml.dump({}) == "{}\n"
    with pytest.raises(TypeError, match="cannot write <object"):
        yaml.dump({"a": object()})


def test_lone_surrogates_are_replaced() -> None:
    """A lone surrogate, which UTF-8 cannot encode, becomes the replacement character."""
    assert stock.safe_load(yaml.dump(["a\ud800"])) == ["a\ufffd"]


TEXT = st.text(st.characters(codec="utf-8"))


@given(
    st.recursive(
        TEXT | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
        max_leaves=12,
    )
)
def test_yaml_is_read_back(value: Any) -> None:
    """A YAML reader gets back the same document, with any string."""
    assert stock.safe_load(yaml.dump(value)) == value


def test_apps_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:attribute` is imported from the current directory; the app's own settings make the plan."""
    (tmp_path / "loaded_shop.py").write_text(
        "from fastapi import FastAPI\nfrom fastapi_observe import Availability, install\n"
        "from starlette.middleware.cors import CORSMiddleware\n"
        "class Made:\n    app = FastAPI()\nbare = FastAPI()\ndef make(): return bare\n"
        "def make_app(): return Made.app\ndef make_of(path): return Made.app\n"
        "observe = install(Made.app, service_name='loaded', slos=(Availability('all', 99),), logs=False)\n"
        "wrapped = CORSMiddleware(CORSMiddleware(Made.app))\nwrapped_bare = CORSMiddleware(bare)\n"
        "async def make_later(): return Made.app\n",
        "utf-8",
    )
    (tmp_path / "broken_shop.py").write_text("1 / 0\n", "utf-8")
    (tmp_path / "ending_shop.py").write_text("raise SystemExit(0)\n", "utf-8")
    (tmp_path / "exiting_shop.py").write_text("import os\nos._exit(3)\n", "utf-8")
    (tmp_path / "base_shop.py").write_text("def app(): raise BaseException('no')\n", "utf-8")
    (tmp_path / "needing_shop.py").write_text("import module_that_is_not_there\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    app, settings, made = load_plan("loaded_shop:Made.app")
    assert (settings.service_name, made.service, [each.name for each in made.slos]) == ("loaded", "loaded", ["all"])
    for target in ("loaded_shop:make_app", "loaded_shop:make_app()", "loaded_shop:wrapped"):
        assert load_plan(target)[0] is app
    app.state.observe.close()
    for target, message in (
        ("shop.main", "invalid app 'shop.main'; use MODULE:APP, such as shop.main:app"),
        ("loaded_shop.py", "invalid app 'loaded_shop.py'; use MODULE:APP, such as loaded_shop:app"),
        ("shops/loaded_shop.py:shop", "invalid app 'shops/loaded_shop.py:shop'; .* such as shops.loaded_shop:shop"),
        ("loaded_shop:observe.settings.sources", "is of type dict; name the app that install"),
        ("no_such_shop:app", "there is no module 'no_such_shop' in "),
        ("loaded_shop.sub:app", "importing loaded_shop.sub failed: |there is no module 'loaded_shop.sub'"),
        ("broken_shop:app", "importing broken_shop failed at broken_shop.py:1: ZeroDivisionError: division by zero"),
        (
            "needing_shop:app",
            r"importing needing_shop failed at needing_shop.py:1: No module named 'module_that_is_not_",
        ),
        ("loaded_shop:shop", "loaded_shop has no attribute 'shop'; did you mean loaded_shop:bare?"),
        ("json:app", "json has no attribute 'app'"),
        ("loaded_shop:bare", "loaded_shop:bare is not installed; call install"),
        ("loaded_shop:make", "loaded_shop:make is not installed; call install"),
        ("loaded_shop:wrapped_bare", "loaded_shop:wrapped_bare is not installed; call install"),
        ("loaded_shop:make_later", "loaded_shop:make_later is an async function; an app factory is a def that "),
        ("loaded_shop:make_of", "loaded_shop:make_of is a function, and calling it .* failed: TypeError: make_of"),
        ("ending_shop:app", "importing ending_shop failed at ending_shop.py:1: SystemExit: 0"),
        ("exiting_shop:app", r"importing exiting_shop failed at exiting_shop.py:2: SystemExit: os._exit\(3\)"),
        ("base_shop:app", "base_shop:app is a function, .* failed at base_shop.py:1: BaseException: no"),
    ):
        with pytest.raises(LoadError, match=message):
            load_plan(target)


def test_methods_are_named_as_in_metrics() -> None:
    """An unknown method has the name that metrics give it; a class has the methods of its functions."""

    class Page(HTTPEndpoint):
        async def get(self, _: Any) -> None: ...

        async def post(self, _: Any) -> None: ...

    app = FastAPI()
    app.add_api_route("/cache", answer, methods=["GET", "PURGE", "BAN"])
    app.router.routes.append(Route("/page", Page))
    assert only(Availability("c", 99, routes=["/cache"]), app=app).endpoints == (
        ("GET", "/cache"),
        ("_OTHER", "/cache"),
    )
    assert only(Availability("c", 99, routes=["PURGE /cache"]), app=app).endpoints == (("_OTHER", "/cache"),)
    assert only(Availability("p", 99, routes=["/page"]), app=app).endpoints == (("GET", "/page"), ("POST", "/page"))


def test_mounts_and_websockets_of_starlette() -> None:
    """Plain Starlette works; a mounted app without routes counts as one; HEAD does not count separately."""

    async def files(scope: Any, receive: Any, send: Any) -> None: ...

    app = Starlette(
        routes=[Mount("/static", files), WebSocketRoute("/ws", answer), Route("/x", lambda _: PlainTextResponse("x"))]
    )
    install(app, slos=(Availability("all", 99),), logs=False)
    _, made = get_plan(app)
    any_of_them = tuple((method, "/static/{path}") for method in ("DELETE", "GET", "PATCH", "POST", "PUT"))
    assert {*made.slos[0].endpoints} == {*any_of_them, ("GET", "/x")}
    assert only(Availability("s", 99, routes=["/static/*"]), app=app).endpoints == any_of_them
    app.state.observe.close()
