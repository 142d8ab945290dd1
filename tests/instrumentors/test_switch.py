"""Which instrumentors are switched on, what is said about it, and what happens where one misbehaves."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from libraries import instrumentor
from opentelemetry import propagate, trace
from opentelemetry.instrumentation import dependencies
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from fastapi_observe import SettingsError, install, install_worker
from fastapi_observe.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen
    from opentelemetry.util.types import Attributes

MODULE = """
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor


class Base(BaseInstrumentor):
    def instrumentation_dependencies(self):
        return ()

    def _instrument(self, **kwargs):
        type(self).provider = kwargs["tracer_provider"]

    def _uninstrument(self, **kwargs):
        type(self).provider = None


class Good(Base):
    pass


class Raising(Base):
    def _instrument(self, **kwargs):
        raise RuntimeError("cannot patch")


class RaisingInside(Base):
    # Has patched one of two methods when it fails.

    patched = 0

    def _instrument(self, **kwargs):
        type(self).patched += 1
        raise RuntimeError("cannot patch the second")

    def _uninstrument(self, **kwargs):
        type(self).patched -= 1


class RaisingAtEnd(Base):
    def _uninstrument(self, **kwargs):
        raise RuntimeError("cannot unpatch")


class Keeping(Base):
    # Makes one tracer for ever, as that of pymongo.

    tracer = None

    def _instrument(self, **kwargs):
        if self.tracer is None:
            type(self).tracer = kwargs["tracer_provider"].get_tracer("keeping")


class Exiting(Base):
    def __init__(self):
        raise SystemExit(7)


class Unprintable(BaseException):
    def __str__(self):
        raise ValueError


class ExitingInside(RaisingInside):
    # Ends the process while it is switched on, and again while that is reverted.

    def _instrument(self, **kwargs):
        type(self).patched += 1
        raise Unprintable

    def _uninstrument(self, **kwargs):
        super()._uninstrument()
        raise SystemExit(7)


class ExitingAtEnd(Base):
    def _uninstrument(self, **kwargs):
        raise SystemExit(7)


class Interrupted(Base):
    def _instrument(self, **kwargs):
        raise KeyboardInterrupt


class Old(Base):
    def instrumentation_dependencies(self):
        return ("starlette < 0.1",)


class Absent(Base):
    def instrumentation_dependencies(self):
        return ("no-such-library >= 1",)


not_a_class = 7
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that installs a package with instrumentors of the given names and objects."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fake_instrumentors.py").write_text(MODULE)

    def provide(**objects: str) -> Any:
        directory = tmp_path / "opentelemetry_instrumentation_fake-1.0.dist-info"
        directory.mkdir(exist_ok=True)
        (directory / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: opentelemetry-instrumentation-fake\nVersion: 1.0\n"
        )
        lines = [f"{name} = {value}" for name, value in objects.items()]
        (directory / "entry_points.txt").write_text("\n".join(["[opentelemetry_instrumentor]", *lines, ""]))
        monkeypatch.syspath_prepend(tmp_path)  # forgets what was found before
        return import_module("fake_instrumentors")

    yield provide
    sys.modules.pop("fake_instrumentors", None)


def messages(seen: Seen, level: str = "info") -> list[str]:
    """Return the messages about instrumentors."""
    return [line["message"] for line in seen.lines if line["level"] == level and "nstrument" in line["message"]]


def test_what_is_installed_is_switched_on_and_off(package: Callable[..., Any], observed: Callable[..., Seen]) -> None:
    """One line says what was switched on, what was left alone and why; `close` reverts it."""
    fake = package(
        good="fake_instrumentors:Good",
        flask="fake_instrumentors:Good",
        logging="fake_instrumentors:Good",
        system_metrics="fake_instrumentors:Good",
        old="fake_instrumentors:Old",
        absent="fake_instrumentors:Absent",
    )
    seen = observed(FastAPI(title="shop"), instrument="auto")
    assert fake.Good.provider.resource.attributes["service.name"] == "shop"
    assert not hasattr(fake.Good.provider, "no_such_name")
    (line,) = messages(seen)
    on, _, left_alone = line.partition("Left alone: ")
    assert "good" in on
    for reason in (
        "absent (no-such-library >= 1 is not installed)",
        "flask (a server framework)",
        "logging (logging)",
        "old (supports starlette < 0.1, not starlette ",
        "system_metrics (system metrics)",
    ):
        assert reason in left_alone
    seen.observe.close()
    assert fake.Good.provider is None
    assert not messages(seen, "warn")


def test_versions_that_cannot_check_a_package(
    package: Callable[..., Any], observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With opentelemetry-instrumentation 0.54 conflicts are found when the instrumentor is loaded."""
    monkeypatch.delattr(dependencies, "get_dist_dependency_conflicts", raising=False)
    fake = package(good="fake_instrumentors:Good", old="fake_instrumentors:Old", absent="fake_instrumentors:Absent")
    seen = observed(FastAPI(), instrument=["good", "old", "absent"])
    assert fake.Good.provider is not None
    (line,) = messages(seen)
    assert "switched on: good. Left alone: absent (no-such-library >= 1 is not installed), old (supports" in line
    assert seen.observe.internal_errors.counts == {}


def test_an_instrumentor_that_fails_is_named_with_the_remedy(
    package: Callable[..., Any], observed: Callable[..., Seen]
) -> None:
    """Whatever it raises, the others are switched on, the app works, and a warning names the package."""
    fake = package(
        a_raising="fake_instrumentors:Raising",
        b_missing="fake_instrumentors:Missing",
        c_number="fake_instrumentors:not_a_class",
        d_module="opentelemetry.no_such_module:Instrumentor",
        e_end="fake_instrumentors:RaisingAtEnd",
        f_inside="fake_instrumentors:RaisingInside",
        good="fake_instrumentors:Good",
    )
    app = FastAPI()
    seen = observed(app, instrument="auto")
    warnings = messages(seen, "warn")
    for name in ("a_raising", "b_missing", "c_number", "d_module", "f_inside"):
        (warning,) = [each for each in warnings if f" {name} " in each]
        assert "pip install --upgrade opentelemetry-instrumentation-fake" in warning
        assert "could not be switched on" in warning
    assert "RuntimeError: cannot patch" in warnings[0]
    assert fake.Good.provider is not None
    with TestClient(app) as client:
        assert client.get("/").status_code == 404
    seen.observe.close()
    assert fake.Good.provider is None
    assert fake.RaisingInside.patched == 0
    (warning,) = [each for each in messages(seen, "warn") if "switched off" in each]
    assert "e_end could not be switched off: RuntimeError: cannot unpatch" in warning
    assert seen.observe.internal_errors.counts == {}


def test_an_instrumentor_that_would_end_the_process(package: Callable[..., Any], observed: Callable[..., Seen]) -> None:
    """Whatever is not an `Exception` is a warning with package and remedy too; only Ctrl-C ends the start."""
    fake = package(
        a_load="fake_instrumentors:Exiting",
        b_inside="fake_instrumentors:ExitingInside",
        c_end="fake_instrumentors:ExitingAtEnd",
        good="fake_instrumentors:Good",
    )
    seen = observed(FastAPI(), instrument="auto")
    load, inside = messages(seen, "warn")
    assert "a_load could not be switched on: SystemExit: 7. Update its package (pip install --upgrade open" in load
    assert "b_inside could not be switched on: Unprintable: <unprintable Unprintable>" in inside
    assert "a_load (failed), " in messages(seen)[0]
    assert fake.ExitingInside.patched == 0
    assert fake.Good.provider is not None
    seen.observe.close()
    assert "c_end could not be switched off: SystemExit: 7" in messages(seen, "warn")[2]
    assert fake.Good.provider is None
    package(interrupted="fake_instrumentors:Interrupted")
    with pytest.raises(KeyboardInterrupt):
        observed(FastAPI(), instrument=["interrupted"])


def test_names_choose_and_none_switches_nothing_on(package: Callable[..., Any], observed: Callable[..., Seen]) -> None:
    """A name in any spelling is found; one that is not installed is warned of; None looks for nothing."""
    fake = package(good_one="fake_instrumentors:Good", other="fake_instrumentors:Old")
    seen = observed(FastAPI(), instrument=["Good-One", "nothing"])
    assert fake.Good.provider is not None
    (warning,) = messages(seen, "warn")
    assert "instrument names nothing" in warning
    assert "pip install opentelemetry-instrumentation-nothing" in warning
    assert messages(seen)[0].count("good_one") == 1
    seen.observe.close()
    none = observed(FastAPI(), instrument=None)
    assert fake.Good.provider is None
    assert not messages(none)


def test_the_variables_choose(
    package: Callable[..., Any], observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`OBSERVE_INSTRUMENT` is a list or a word; OpenTelemetry's own variable leaves out single ones."""
    fake = package(good="fake_instrumentors:Good")
    monkeypatch.setenv("OBSERVE_INSTRUMENT", "good,other")
    seen = observed(FastAPI())
    assert seen.observe.settings.instrument == ("good", "other")
    assert fake.Good.provider is not None
    seen.observe.close()
    for text, value in (("none", None), ("", None), ("AUTO", "auto")):
        monkeypatch.setenv("OBSERVE_INSTRUMENT", text)
        monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "a,good")
        seen = observed(FastAPI())
        assert seen.observe.settings.instrument == value
        assert fake.Good.provider is None
        seen.observe.close()


def test_settings_show_what_would_be_switched_on(
    package: Callable[..., Any],
    observed: Callable[..., Seen],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command has a row for it, which is what `install` logs, without switching anything on."""
    fake = package(
        good="fake_instrumentors:Good",
        flask="fake_instrumentors:Good",
        old="fake_instrumentors:Old",
        absent="fake_instrumentors:Absent",
        elsewhere="no_such_library.instrumentor:Instrumentor",
        exiting="fake_instrumentors:Exiting",
    )
    monkeypatch.setenv("OBSERVE_INSTRUMENT", "auto")
    assert main(["settings"]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("OpenTelemetry instrumentors switched on: ")]
    on, _, left_alone = row.partition("Left alone: ")
    assert "good" in on
    assert not hasattr(fake.Good, "provider")
    for reason in (
        "absent (no-such-library >= 1 is not installed)",
        "elsewhere (no_such_library is not installed)",
        "exiting (failed)",
        "flask (a server framework)",
        "old (supports starlette < 0.1, not starlette ",
    ):
        assert reason in left_alone
    assert f"{row}. The option instrument chooses." in messages(observed(FastAPI()))
    assert main(["settings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["instrument"]["value"] == "auto"


@pytest.mark.parametrize(("variable", "value"), [("OBSERVE_INSTRUMENT", "none"), ("OBSERVE_TRACING", "false")])
def test_settings_show_that_nothing_is_switched_on(
    package: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    """Without tracing there is no provider, so that no instrumentor is switched on either."""
    package(good="fake_instrumentors:Good")
    monkeypatch.setenv("OBSERVE_INSTRUMENT", "auto")
    monkeypatch.setenv(variable, value)
    assert main(["settings"]) == 0
    assert "OpenTelemetry instrumentors switched on: none. Left alone: none\n" in capsys.readouterr().out


def test_a_worker_has_instrumentors_too(package: Callable[..., Any]) -> None:
    """`install_worker` switches them on, and `close` off."""
    fake = package(good="fake_instrumentors:Good")
    observe = install_worker(instrument="auto", metrics=False)
    assert fake.Good.provider is not None
    observe.close()
    assert fake.Good.provider is None


def test_what_the_user_has_switched_on_stays_on(package: Callable[..., Any], observed: Callable[..., Seen]) -> None:
    """An instrumentor that is on already is left alone, and stays on after `close`."""
    fake = package(good="fake_instrumentors:Good")
    provider = TracerProvider()
    fake.Good().instrument(tracer_provider=provider)
    try:
        seen = observed(FastAPI(), instrument="auto")
        assert "good (already switched on)" in messages(seen)[0]
        seen.observe.close()
        assert fake.Good.provider is provider
    finally:
        fake.Good().uninstrument()


def test_the_next_app_takes_over(package: Callable[..., Any], observed: Callable[..., Seen]) -> None:
    """Of two apps the first has the instrumentors; when it closes, the other one keeps them and closes them."""
    fake = package(good="fake_instrumentors:Good")
    before = propagate.get_global_textmap()
    first, second = observed(FastAPI(), instrument="auto"), observed(FastAPI(), instrument="auto")
    first.observe.close()
    assert fake.Good.provider is not None
    second.observe.close()
    assert fake.Good.provider is None
    assert propagate.get_global_textmap() is before


PROVIDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "own": dict,
    "given": lambda: {"tracer_provider": TracerProvider(resource=Resource({"service.name": "shop"}))},
}
"""Options with which an app has a provider of its own, and with which it has one of the user's that is not global."""


def querying(tracer_of: Callable[[], trace.Tracer]) -> FastAPI:
    """Return an app that makes the span of a query with a tracer."""
    app = FastAPI()

    @app.get("/")
    def read() -> None:
        call(tracer_of(), {"db.system": "mongodb", "db.operation": "find", "db.collection.name": "orders"})

    return app


def check_query(seen: Seen, service: str, number: int = 1) -> None:
    """Check that an app has counted its queries, and that their spans are its own, in the traces of its requests."""
    assert seen.samples("db_queries_total") == {(("operation", "find"), ("table", "orders")): number}
    spans = [span for span in seen.spans if span.name == "call"]
    assert {span.resource.attributes["service.name"] for span in spans} == {service}
    assert {span.context.trace_id for span in spans} == {span.context.trace_id for span in seen.server_spans}
    assert len(spans) == number


@pytest.mark.parametrize("second", PROVIDERS)
@pytest.mark.parametrize("first", PROVIDERS)
def test_a_tracer_of_a_closed_app_is_that_of_the_next(
    package: Callable[..., Any], observed: Callable[..., Seen], first: str, second: str
) -> None:
    """An instrumentor that keeps its first tracer works for each app that is installed later."""
    fake = package(keeping="fake_instrumentors:Keeping")
    closed = []
    for options in (PROVIDERS[first](), PROVIDERS[second](), {}):
        seen = observed(querying(lambda: fake.Keeping.tracer), instrument=["keeping"], service_name="shop", **options)
        with TestClient(seen.observe.app) as client:
            client.get("/")
        check_query(seen, "shop")
        assert [line["fields"]["db_count"] for line in seen.request_lines] == [1]
        call(fake.Keeping.tracer, {"db.system": "mongodb", "db.operation": "ping"})  # outside requests
        assert seen.total("db_queries_total") == 2
        seen.observe.close()
        assert not fake.Keeping.tracer.start_span("lost").is_recording()
        closed.append(seen)
    assert [seen.total("db_queries_total") for seen in closed] == [2, 2, 2]


@pytest.mark.parametrize("source", ["instrumentor", "global"])
@pytest.mark.usefixtures("no_global_provider")
def test_each_of_two_apps_has_the_calls_of_its_requests(
    package: Callable[..., Any], observed: Callable[..., Seen], source: str
) -> None:
    """Whichever has switched the instrumentors on, and whose provider is the global one, which that of gRPC uses."""
    fake = package(keeping="fake_instrumentors:Keeping")
    app = querying(lambda: fake.Keeping.tracer if source == "instrumentor" else trace.get_tracer("grpc"))
    other = querying(lambda: fake.Keeping.tracer if source == "instrumentor" else trace.get_tracer("grpc"))
    first, second = (
        observed(each, instrument=["keeping"], service_name=name) for each, name in ((app, "a"), (other, "b"))
    )
    for each in (app, other):
        with TestClient(each) as client:
            client.get("/")
    check_query(first, "a")
    check_query(second, "b")
    first.observe.close()
    with TestClient(other) as client:
        client.get("/")
    check_query(second, "b", 2)


@pytest.mark.parametrize(("first", "second"), [("own", "given"), ("given", "own"), ("given", "given")])
def test_each_of_two_apps_counts_with_any_provider(
    package: Callable[..., Any], observed: Callable[..., Seen], first: str, second: str
) -> None:
    """A provider of the user's for one of the apps, or one for both, changes nothing about whose call it is."""
    fake = package(keeping="fake_instrumentors:Keeping")
    options = [PROVIDERS[first](), PROVIDERS[second]()]
    if first == second:
        options[1] = options[0]
    seen = [observed(querying(lambda: fake.Keeping.tracer), instrument=["keeping"], **each) for each in options]
    for number, one in enumerate(seen):
        with TestClient(one.observe.app) as client:
            client.get("/")
            client.get("/")
        assert [each.total("db_queries_total") for each in seen] == [2, 2 * number]


@pytest.mark.usefixtures("no_global_provider")
def test_a_failed_install_leaves_no_global_provider() -> None:
    """Its spans would go nowhere, and those of the next install too where an instrumentor uses the global provider."""
    with pytest.raises(SettingsError, match="contrib_options"):
        install(FastAPI(), server_span="contrib", contrib_options={"no_such": 1})
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@pytest.mark.parametrize("order", ["set before", "set after"])
def test_a_providers_own_decision_holds(observed: Callable[..., Seen], no_global_provider: None, order: str) -> None:
    """With a provider of the user's, calls count as far as it records them; their statements have no values."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = FastAPI()

    @app.get("/")
    def read() -> None:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.cursor().execute("SELECT 'geheim' AS one")

    if order == "set before":
        trace.set_tracer_provider(provider)
    seen = observed(app, instrument=[instrumentor("sqlite3")], span_processors=())
    if order == "set after":
        trace.set_tracer_provider(provider)
    with TestClient(app) as client:
        client.get("/")
        client.get("/")
    assert seen.samples("db_queries_total") == {(("operation", "SELECT"), ("table", "unknown")): 2}
    assert [line["fields"]["db_count"] for line in seen.request_lines] == [1, 1]
    spans = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert [(span.attributes or {})["db.statement"] for span in spans] == ["SELECT ? AS one"] * 2


def call(tracer: trace.Tracer, attributes: Attributes, kind: SpanKind = SpanKind.CLIENT) -> None:
    """Make a span, as an instrumentor does."""
    with tracer.start_as_current_span("call", kind=kind) as span:
        span.set_attributes(attributes or {})


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER])
@pytest.mark.filterwarnings("ignore")
def test_attributes_of_any_kind_do_no_harm(observed: Callable[..., Seen], ratio: float, kind: SpanKind) -> None:
    """Wrong types, huge and hostile values: the span ends, the app goes on, the series are bounded."""
    hostile: list[Any] = [
        7,
        -1.5,
        True,
        None,
        "",
        "x" * 100_000,
        "\ud800",
        "a\nb{c}",
        b"\xff",
        ["a", 1],
        object(),
        {},
        (),
    ]
    names = (
        "db.system", "db.statement", "db.operation", "db.sql.table", "http.method", "http.url", "http.status_code",
        "server.address", "rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code", "messaging.system",
        "messaging.destination.name", "messaging.operation", "error.type", "url.template",
    )  # fmt: skip
    seen = observed(FastAPI(), sample_ratio=ratio, log_level="fatal")
    tracer = seen.observe.tracing.provider.get_tracer("opentelemetry.instrumentation.other")
    for value in hostile:
        for family in ("db.system", "rpc.system", "messaging.system", "http.method", "no.such"):
            call(tracer, {**dict.fromkeys(names, value), family: "grpc"}, kind)
            call(tracer, dict.fromkeys(names, value), kind)
    for number in range(1000):
        call(tracer, {"http.method": f"M{number}", "http.url": f"http://h{number}/"}, kind)
        call(tracer, {"rpc.system": "grpc", "rpc.service": f"s{number}", "rpc.method": f"m{number}"}, kind)
        call(tracer, {"messaging.system": "kafka", "messaging.destination.name": f"d{number}"}, kind)
    assert seen.total("fastapi_observe_internal_errors_total") == 0
    assert len(seen.samples("external_requests_total")) <= 1000
    services = {dict(labels)["service"] for labels in seen.samples("external_requests_total")}
    assert len(services) <= 302
    assert all(len(service) <= 256 for service in services)


def test_a_status_without_an_exception_is_an_error(observed: Callable[..., Seen]) -> None:
    """The span says that the call failed: the operation does too, with the type that it names."""
    seen = observed(FastAPI())
    tracer = seen.observe.tracing.provider.get_tracer("opentelemetry.instrumentation.other")
    with tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as span:
        span.set_attributes({"db.system": "cassandra", "db.statement": "SELECT a FROM b", "error.type": "Overloaded"})
        span.set_status(StatusCode.ERROR, "password=geheim")
    assert seen.sample("db_query_errors_total", operation="SELECT", table="b", error_type="Overloaded") == 1
    (ended,) = seen.spans
    assert "geheim" not in str(ended.status.description)


def test_what_a_database_quotes_is_not_in_the_status(observed: Callable[..., Seen]) -> None:
    """The status of pymongo's instrumentor repeats the key; that of another call may quote names."""
    seen = observed(FastAPI())
    tracer = seen.observe.tracing.provider.get_tracer("opentelemetry.instrumentation.other")
    for attribute, value in (("db.system", "mongodb"), ("http.method", "GET")):
        with tracer.start_as_current_span("call", kind=SpanKind.CLIENT, attributes={attribute: value}) as span:
            span.set_status(StatusCode.ERROR, 'dup key: { email: "alice@example.com" }')
    assert [span.status.description for span in seen.spans] == [
        'dup key: { email: "REDACTED" }',
        'dup key: { email: "alice@example.com" }',
    ]


def test_handling_a_message_is_no_call(observed: Callable[..., Seen]) -> None:
    """Only receiving it is; calls while it is handled count by themselves."""
    seen = observed(FastAPI())
    tracer = seen.observe.tracing.provider.get_tracer("opentelemetry.instrumentation.other")
    message = {"messaging.system": "rabbitmq", "messaging.destination": "orders"}
    call(tracer, {**message, "messaging.operation": "receive"}, SpanKind.CONSUMER)
    with tracer.start_as_current_span("handle", kind=SpanKind.CONSUMER) as span:
        span.set_attributes({**message, "messaging.operation": "process"})
        call(tracer, {"http.method": "GET", "http.url": "http://billing/"})
    assert {tuple(dict(labels).values()) for labels in seen.samples("external_requests_total")} == {
        ("receive orders", "ok", "rabbitmq"),
        ("GET", "ok", "billing"),
    }


def test_an_sdk_over_http_is_one_call(observed: Callable[..., Seen]) -> None:
    """The outermost span counts, whether it is of a query or of a call: what is inside is the same call."""
    seen = observed(FastAPI())
    get_tracer = seen.observe.tracing.provider.get_tracer
    search, http = get_tracer("elasticsearch"), get_tracer("opentelemetry.instrumentation.urllib3")
    with search.start_as_current_span("search", kind=SpanKind.CLIENT) as span:
        span.set_attributes({"db.system": "elasticsearch", "db.operation": "search", "db.collection.name": "orders"})
        call(http, {"http.method": "POST", "http.url": "http://search/"})
    assert seen.samples("db_queries_total") == {(("operation", "search"), ("table", "orders")): 1}
    assert seen.total("external_requests_total") == 0


def test_without_instrumentors_nothing_is_logged(observed: Callable[..., Seen]) -> None:
    """An app whose environment has none hears nothing of them, and its propagator stays the same."""
    before = propagate.get_global_textmap()
    seen = observed(FastAPI(), instrument=[])
    assert not messages(seen)
    assert propagate.get_global_textmap() is before


def test_an_install_without_traces_switches_nothing_on(package: Callable[..., Any]) -> None:
    """`tracing=False` touches nothing global."""
    fake = package(good="fake_instrumentors:Good")
    observe = install(FastAPI(), instrument="auto", tracing=False)
    assert getattr(fake.Good, "provider", None) is None
    observe.close()
