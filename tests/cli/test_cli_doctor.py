"""The command `doctor`: what it finds, and the next step for each fault."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from collectors import Collector
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_fastapi_instrumentator import Instrumentator
from servers import serving
from tools import tmpfs
from variables import remove_variables

from fastapi_observe import Observability, install
from fastapi_observe.cli.main import main
from fastapi_observe.doctor.app import check_app, check_exports
from fastapi_observe.doctor.check import Check, run_checks
from fastapi_observe.doctor.process import check_log_file, check_settings
from fastapi_observe.internal.version import documentation_url
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

ROOT: Final = Path(__file__).parents[2]

MODULE: Final = """
from fastapi import FastAPI
from fastapi_observe import install
print("printed at the import")
app = FastAPI(title="shop")
install(app)
plain = FastAPI()
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine."""
    remove_variables(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")


def doctor(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder with an app."""
    (folder / "shop.py").write_text(MODULE, encoding="utf-8")
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "fastapi_observe", "doctor", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def by_subject(checks: list[Check]) -> dict[str, Check]:
    """Return the checks by subject."""
    return {check.subject: check for check in checks}


@pytest.fixture
def checked(observed: Callable[..., Seen]) -> Callable[..., dict[str, Check]]:
    """Return a function that installs on an app and checks it."""

    def check(app: FastAPI | None = None, **options: Any) -> dict[str, Check]:
        app = FastAPI(title="shop") if app is None else app
        install(app, **{"otlp_endpoint": None, **options})
        return by_subject(run_checks(lambda: check_app(app.state.observe)))

    return check


def test_a_healthy_app(tmp_path: Path) -> None:
    """Everything is ok; the collector gets an empty request; what the app prints is not part of the JSON."""
    with Collector() as collector:
        run = doctor(tmp_path, "shop:app", "--json", OBSERVE_OTLP_ENDPOINT=collector.url, OBSERVE_LOG_FILE="app.log")
        assert run.returncode == 0, run.stderr
        assert (collector.paths, collector.bodies) == (["/v1/traces", "/"], [b"", b""])  # "/": for the clock
    checks = {each["subject"]: each for each in json.loads(run.stdout)}
    assert {each["verdict"] for each in checks.values()} == {"ok"}
    assert {"versions", "service", "signals", "sampling", "export of traces", "log file", "metrics access"} <= {*checks}
    assert checks["export of traces"]["found"] == f"{collector.url}/v1/traces accepts it (http/protobuf)"
    assert "printed at the import" in run.stderr


def test_a_collector_that_does_not_accept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the endpoint responds is named with the setting to change, and the command exits with 1."""
    with Collector(listens=False) as closed, Collector("400") as refusing:
        cases = (
            (closed.url, "Connection refused", "Check that the Collector runs, and host and port of otlp_endpoint"),
            (refusing.url, "http://", "Its log has the reason"),
            ("http://shop.invalid:4318", "", "The host name cannot be resolved. Check the host in otlp_endpoint"),
        )
        for url, found, step in cases:
            monkeypatch.setenv("OBSERVE_OTLP_ENDPOINT", url)
            assert main(["doctor"]) == 1
            out = capsys.readouterr().out
            assert "wrong  export of traces" in out
            assert found in out
            assert step in out
            assert out.endswith(" 1 wrong\n")


def test_credentials_are_not_sent_unencrypted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that the app would refuse is wrong here too, without its secret."""
    monkeypatch.setenv("OBSERVE_OTLP_ENDPOINT", "http://collector.example.com")
    monkeypatch.setenv("OBSERVE_OTLP_HEADERS", "authorization=hunter22")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "refusing to send credentials" in out
    assert "hunter22" not in out


def test_an_app_that_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such module, an app without install and an invalid setting exit with 2 and say what to do."""
    assert main(["doctor", "no_such_module:app"]) == 2
    assert "there is no module 'no_such_module'" in capsys.readouterr().err
    run = doctor(tmp_path, "shop:plain")
    assert run.returncode == 2
    assert "shop:plain is not installed; call install(app)" in run.stderr
    run = doctor(tmp_path, OBSERVE_SAMPLE_RATIO="3")
    assert run.returncode == 2
    assert "sample_ratio: invalid value '3'" in run.stderr


def test_versions_that_are_not_supported(tmp_path: Path) -> None:
    """A package outside the required versions is wrong, with both versions."""
    metadata = tmp_path / "starlette-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: starlette\nVersion: 0.1\n", encoding="utf-8")
    run = doctor(tmp_path, "--json", PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))))
    check = next(each for each in json.loads(run.stdout) if each["subject"] == "versions")
    assert (run.returncode, check["verdict"]) == (1, "wrong")
    assert check["found"].startswith("not supported: starlette 0.1 (required: >=")


def test_who_can_read_the_metrics(checked: Callable[..., dict[str, Check]]) -> None:
    """Clients with a public address are tried, also behind a proxy."""

    def broken(_: Any) -> bool:
        raise RuntimeError

    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({}, "ok", "/metrics is served to clients of the private network"),
        ({"environment": "development"}, "ok", "/metrics is served to clients of the private network"),
        ({"metrics_access": "always"}, "wrong", "/metrics is served to public clients"),
        ({"metrics_access": "never"}, "ok", "/metrics is served to none of the tried clients"),
        ({"metrics_access": broken}, "ok", "/metrics is served to none of the tried clients"),
        ({"metrics_token": "a-long-token"}, "ok", "/metrics is served to clients that send metrics_token"),
        ({"metrics_port": 9464}, "look", "port 9464 is served to every client"),
        ({"metrics_dependency": lambda: None}, "ok", "metrics_dependency decides"),
    )
    for options, verdict, found in cases:
        check = checked(**options)["metrics access"]
        assert (check.verdict, check.found.startswith(found)) == (verdict, True), (options, check)
    assert "metrics access" not in checked(metrics=False)


def test_what_is_there_twice(checked: Callable[..., dict[str, Check]]) -> None:
    """Another route of the same path, another middleware and a console handler of one's own are named."""
    app = FastAPI(title="shop")
    Instrumentator().instrument(app).expose(app)
    check = checked(app)["duplicates"]
    assert check.verdict == "wrong"
    assert "a route /metrics of its own" in check.found

    app = FastAPI(title="shop")
    Instrumentator().instrument(app)
    assert "PrometheusInstrumentatorMiddleware of prometheus_fastapi_instrumentator" in checked(app)["duplicates"].found

    class Formatter(logging.Formatter):
        """A formatter that is not replaced."""

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logger = logging.getLogger("shop.orders")
    logger.addHandler(handler)
    try:
        check = checked()["duplicates"]
    finally:
        logger.removeHandler(handler)
    assert "'shop.orders' writes to the console itself" in check.found
    assert check.step == f"see {documentation_url('how-to/logging')}"
    assert checked(capture_logging=False)["duplicates"].verdict == "ok"


def test_errors_and_losses_of_the_running_process(checked: Callable[..., dict[str, Check]]) -> None:
    """Errors inside the package and dropped lines are wrong."""
    app = FastAPI(title="shop")
    assert checked(app)["internal errors"].verdict == "ok"
    observe: Observability = app.state.observe
    observe.internal_errors("traces.on_request_end", RuntimeError())
    check = by_subject([*check_app(observe)])["internal errors"]
    assert (check.verdict, check.found) == ("wrong", "errors inside fastapi-observe: traces.on_request_end (1)")
    exports = by_subject([*check_exports(observe)])
    assert exports["export"].step == "set OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.usefixtures("observed")
def test_an_export_that_fails() -> None:
    """The counts of a running process show that nothing arrives."""
    with Collector(listens=False) as closed:
        app = FastAPI(title="shop")
        observe = install(app, otlp_endpoint=closed.url, sample_ratio=1.0, batch_delay=0.01)
        TestClient(app).get("/missing")
        observe.tracing.flush(0.5)
        check = by_subject([*check_exports(observe)])["export of traces"]
    assert check.verdict == "wrong"
    assert " failed requests" in check.found


def test_the_disk_of_the_log_file(tmp_path: Path) -> None:
    """A directory that cannot be written is wrong; little space is reported."""
    (check,) = check_log_file(ObserveSettings(log_file=str(tmp_path / "logs" / "app-{pid}.log")))
    assert check.verdict in {"ok", "look"}
    assert "GiB are free" in check.found
    (check,) = check_log_file(ObserveSettings(log_file=f"{__file__}/app.log"))
    assert (check.verdict, check.found) == ("wrong", f"{__file__} is not a directory")
    assert not [*check_log_file(ObserveSettings())]
    with tmpfs(tmp_path / "small", "size=64k") as folder:
        (check,) = check_log_file(ObserveSettings(log_file=str(folder / "app.log")))
        assert (check.verdict, check.found.split()[0]) == ("look", "0.0")
    with tmpfs(tmp_path / "read-only", "size=64k,ro") as folder:
        (check,) = check_log_file(ObserveSettings(log_file=str(folder / "app.log")))
        assert (check.verdict, check.found) == ("wrong", f"{folder} cannot be written by this user")


def test_settings_that_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored variables, a missing name and what is switched off are reported."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "often")
    checks = [*check_settings(ObserveSettings(metrics=False, sampler="always_off"))]
    assert [(check.subject, check.verdict) for check in checks] == [
        ("settings", "look"),
        ("service", "look"),
        ("signals", "ok"),
        ("sampling", "look"),
    ]
    assert checks[2].found == "on: traces, logs; off: metrics, console"
    assert "sampling" not in by_subject([*check_settings(ObserveSettings(tracing=False))])


def test_a_running_app(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In development the console has the same checks; elsewhere only what can be seen from outside is checked."""
    app = FastAPI(title="shop")
    install(app, environment="development", multiprocess_directory=str(tmp_path), capture_logging=False)
    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        httpx.get(f"{url}/observe/", trust_env=False)
        assert main(["doctor", "--url", url, "--json"]) == 0
        out = capsys.readouterr().out  # with the lines of the app, which runs in this process
        checks = [Check(**each) for each in json.loads(out[out.index("[\n") :])]
    assert {"workers", "internal errors", "duplicates"} <= {*by_subject(checks)}
    assert by_subject(checks)["metrics access"].found == (
        f"{url}/metrics is served to this machine, not to a public client"
    )
    assert by_subject(checks)["clock"].verdict == "ok"


def test_a_running_app_outside_development(capsys: pytest.CaptureFixture[str]) -> None:
    """A public /metrics is wrong; one that needs a token is looked at; an app that is gone is wrong."""
    for options, status, found in (
        ({"metrics_access": "always"}, 1, "/metrics is served to a public client behind a proxy"),
        ({"metrics_token": "a-long-token"}, 0, "/metrics responds 401 to this machine"),
    ):
        app = FastAPI(title="shop")
        install(app, capture_logging=False, **options)  # type: ignore[arg-type]
        with serving(app) as port:
            assert main(["doctor", "--url", f"http://127.0.0.1:{port}"]) == status
            out = capsys.readouterr().out
        assert found in out
        assert "not served to this client" in out
    assert main(["doctor", "--url", f"http://127.0.0.1:{port}"]) == 1
    assert "Start it, or correct --url." in capsys.readouterr().out


def test_a_check_that_fails_is_a_line() -> None:
    """A fault of a check hides no other check."""

    def broken() -> Iterator[Check]:
        yield Check("first", "ok", "seen")
        raise RuntimeError("no luck")

    found = run_checks(broken, lambda: iter([Check("last", "ok", "seen")]))
    assert [check.subject for check in found] == ["first", "doctor", "last"]
    assert found[1].found == "the check failed: RuntimeError: no luck"
