"""The pytest plugin: what a user's tests see of the app, and that it costs nothing where it is not used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

PLUGIN: Final = (
    "-p",
    "_fastapi_observe_pytest",
    "-p",
    "no:fastapi_observe",
    "-p",
    "no:xdist",
    "-p",
    "no:cacheprovider",
)
"""The plugin by its module: the environment of these tests may have registered the one of another directory."""

APP: Final = """
import logging
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from loguru import logger
from sqlalchemy import create_engine, text
from fastapi_observe import install, get_observability

engine = create_engine("sqlite://")

def make() -> FastAPI:
    app = FastAPI()
    install(app, engines=[engine], sample_ratio=0.0, log_format="json")

    @app.get("/orders/{number}")
    def order(number: int, queries: int = 1) -> dict[str, int]:
        logger.info("loguru says {}", number)
        logging.getLogger("shop").warning("logging says %s", number)
        with engine.connect() as connection:
            for index in range(queries):
                connection.execute(text(f"SELECT {index}"))
        return {"number": number}

    return app
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Return a function that runs a test module of a user in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))

    def run(tests: str, *arguments: str, app: str = APP) -> pytest.RunResult:
        pytester.makepyfile(app + tests)
        return pytester.runpytest_subprocess(*PLUGIN, *arguments, timeout=120)

    return run


def test_the_telemetry_of_the_app(run: Callable[..., pytest.RunResult]) -> None:
    """`observed` has the spans, lines and samples of the fixture `app`; `caplog` has each line once."""
    tests = """
@pytest.fixture
def app():
    return make()

def test_order(app, observed, caplog):
    with caplog.at_level(logging.INFO), TestClient(app) as client:
        client.get("/orders/7")
        assert [span.name for span in observed.spans] == ["SELECT", "GET /orders/{number}"]
        messages = [record.getMessage() for record in caplog.records]
        expected = ["loguru says 7", "logging says 7", "HTTP request completed"]
        assert [message for message in messages if message in expected] == expected
        line = next(record for record in caplog.records if record.name == "fastapi_observe.request")
        assert line.fields["endpoint"] == "/orders/{number}"
        assert line.levelname == "INFO"
    assert [line["message"] for line in observed.lines if "application" not in line["message"]][-3:] == expected
    assert observed.sample("http_requests_total", endpoint="/orders/{number}", method="GET") == 1
    assert observed.sample("http_requests_total", endpoint="/other") == 0
    observed.assert_queries(max=1)
    with pytest.raises(AssertionError, match="leaked"):
        observed.assert_no_leak("logging says")

def test_the_next_test_starts_anew(app, observed):
    assert observed.spans == [] == observed.lines

def test_too_many_queries(app, observed):
    TestClient(app).get("/orders/7?queries=3")
    observed.assert_queries(max=3)
    observed.assert_queries(max=2)

def test_one_query_too_many(app, observed):
    TestClient(app).get("/orders/7?queries=1")
    observed.assert_queries(max=0)

class TestNotInstalled:
    @pytest.fixture
    def app(self):
        return FastAPI()

    def test_order(self, observed):
        pass
"""
    result = run(tests)
    result.assert_outcomes(passed=2, failed=2, errors=1)
    result.stdout.re_match_lines([r".*trace [0-9a-f]{32} has 1 query, more than max=0:"])
    result.stdout.re_match_lines([r".*trace [0-9a-f]{32} has 3 queries, more than max=2:", r".*3 x SELECT \?"])
    result.stdout.fnmatch_lines(["*the fixture `app` is no app on which install(app) was called*"])


def test_the_level_of_caplog(run: Callable[..., pytest.RunResult]) -> None:
    """`caplog.set_level` and `caplog.at_level` apply to the lines of loguru and of fastapi-observe too."""
    tests = """
@pytest.fixture
def app():
    return make()

def levels(app, caplog):
    caplog.clear()
    TestClient(app).get("/orders/7")
    logger.error("an error of loguru")
    return {record.levelname for record in caplog.records}

def test_levels(app, observed, caplog):
    with caplog.at_level("ERROR"):
        assert levels(app, caplog) == {"ERROR"}
    with caplog.at_level("INFO"):
        assert levels(app, caplog) == {"INFO", "WARNING", "ERROR"}
    caplog.set_level("ERROR")
    assert levels(app, caplog) == {"ERROR"}
"""
    run(tests).assert_outcomes(passed=1)


def test_exceptions_and_places_of_loguru(run: Callable[..., pytest.RunResult]) -> None:
    """A record of loguru has its exception, file, line, function and level; a line without an exception has none."""
    tests = """
@pytest.fixture
def app():
    return make()

def test_exception(app, observed, caplog):
    try:
        raise KeyError("number")
    except KeyError:
        logger.exception("no such order")
    logger.success("done")
    failed, done = caplog.records[-2:]
    assert failed.exc_info[0] is KeyError and "KeyError: 'number'" in caplog.text
    assert (failed.pathname, failed.funcName, failed.levelname) == (__file__, "test_exception", "ERROR")
    assert failed.filename == failed.module + ".py" == __name__ + ".py"
    assert open(__file__).readlines()[failed.lineno - 1].strip() == 'logger.exception("no such order")'
    assert (done.exc_info, done.levelname, done.lineno) == (None, "SUCCESS", failed.lineno + 1)
"""
    run(tests).assert_outcomes(passed=1)


def test_the_report_of_a_failed_test(run: Callable[..., pytest.RunResult]) -> None:
    """The section "Captured log call" has the same lines as `caplog`, and its level applies there too."""
    tests = """
@pytest.fixture
def app():
    return make()

def test_report(app, observed, caplog):
    TestClient(app).get("/orders/7")
    caplog.set_level("ERROR")
    TestClient(app).get("/orders/8")
    assert False
"""
    result = run(tests, "--show-capture=log")
    result.stdout.fnmatch_lines(["*Captured log call*", "*loguru says 7", "*logging says 7", "*HTTP request completed"])
    for text in ("loguru says 7", "logging says 7", "HTTP request completed"):
        assert sum(line.endswith(text) for line in result.outlines) == 1
    assert not any(line.endswith("says 8") for line in result.outlines)


@pytest.mark.parametrize("recipe", ["handler", "propagation"])
def test_fixtures_of_the_documentation_of_loguru(run: Callable[..., pytest.RunResult], recipe: str) -> None:
    """With a fixture that gives loguru's lines to `caplog` or the report by itself, each line is there once."""
    sink = {"handler": "caplog.handler", "propagation": "Propagate()"}[recipe]
    tests = f"""
class Propagate(logging.Handler):
    def emit(self, record):
        logging.getLogger(record.name).handle(record)

@pytest.fixture
def caplog(caplog):
    number = logger.add({sink}, format="{{message}}", level=0)
    yield caplog
    logger.remove(number)

@pytest.fixture(autouse={recipe == "handler"})
def reportlog(pytestconfig):
    report = pytestconfig.pluginmanager.getplugin("logging-plugin").report_handler
    number = logger.add(report, format="{{message}}")
    yield
    logger.remove(number)

@pytest.fixture
def app():
    return make()

def test_caplog(app, observed, caplog):
    logger.info("loguru says 1")
    logger.info("loguru says 1")
    assert caplog.messages.count("loguru says 1") == 2
    assert False, "the section is shown"
"""
    result = run(tests, "--show-capture=log")
    result.stdout.fnmatch_lines(["*the section is shown", "*Captured log call*"])
    assert sum(line.startswith("INFO ") and line.endswith("loguru says 1") for line in result.outlines) == 2


def test_without_a_fixture_of_that_name(run: Callable[..., pytest.RunResult]) -> None:
    """Without a fixture `app` it is the only installed app."""
    tests = """
app_of_module = make()

def test_order(observed):
    TestClient(app_of_module).get("/orders/7")
    assert observed.spans
"""
    run(tests).assert_outcomes(passed=1)


def test_several_apps_without_a_fixture(run: Callable[..., pytest.RunResult]) -> None:
    """The error says how a test names its app."""
    tests = """
apps = [make(), make()]

def test_order(observed):
    pass
"""
    result = run(tests)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*2 apps are installed*; in tests have a fixture `app` return the app of the test*"])


def test_nothing_is_imported_until_it_is_used(run: Callable[..., pytest.RunResult]) -> None:
    """A run that does not use the fixture imports neither the package nor its dependencies; without an app it fails."""
    tests = """
import sys

def test_nothing():
    names = {name.partition(".")[0] for name in sys.modules}
    assert not names & {"fastapi_observe", "fastapi", "starlette", "opentelemetry", "loguru", "prometheus_client"}

def test_order(observed):
    pass
"""
    # Logfire's plugins import OpenTelemetry; they are there after `make bench`.
    result = run(tests, "-pno:logfire", "-pno:pytest_logfire", app="")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fastapi-observe is not installed; call install(app)*"])
