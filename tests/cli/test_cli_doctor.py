"""The command `doctor`: what it finds, and the next step for each problem."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from collectors import Collector
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from servers import serving
from tools import tmpfs
from variables import remove_variables

from fastapi_observe import Observability, install
from fastapi_observe.cli.main import main
from fastapi_observe.doctor.app import check_app, check_exports, check_open_requests
from fastapi_observe.doctor.check import Check, run_checks
from fastapi_observe.doctor.page import MetricsPage
from fastapi_observe.doctor.probe import probe_exports
from fastapi_observe.doctor.process import check_log_file, check_multiprocess_directory, check_settings
from fastapi_observe.requests.access import DOCTOR_AGENT, PUBLIC_PEER
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

INFO: Final = 'fastapi_observe_info{version="0.2.0"} 1.0'

SEPARATE: Final = ": if the server runs several worker processes, each /metrics has only its own"

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


def doctor(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory with an app."""
    (directory / "shop.py").write_text(MODULE, encoding="utf-8")
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "fastapi_observe", "doctor", *arguments],
        cwd=directory,
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
        run = doctor(
            tmp_path,
            "shop:app",
            "--json",
            OBSERVE_OTLP_ENDPOINT=collector.url,
            OBSERVE_LOG_FILE="app.log",
            OBSERVE_SAMPLE_RATIO="1",
        )
        assert run.returncode == 0, run.stderr
        assert (collector.paths, collector.bodies) == (["/v1/traces", "/"], [b"", b""])  # "/": for the clock
    checks = {each["subject"]: each for each in json.loads(run.stdout)}
    assert {each["verdict"] for each in checks.values()} == {"ok"}
    assert {"versions", "service", "signals", "sampling", "export of traces", "log file", "metrics access"} <= {*checks}
    found = "shop in production; with FASTAPI_ENV=development, doctor checks what `fastapi dev` runs"
    assert checks["service"]["found"] == found
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
        ({"metrics_access": "203.0.113.0/24"}, "ok", "/metrics is served to none of the tried clients"),
        ({"metrics_access": ["private", "198.51.100.0/24", "2001:db8::/32"]}, "ok", "/metrics is served to clients of"),
        ({"metrics_access": "0.0.0.0/0"}, "wrong", "/metrics is served to public clients"),
        ({"metrics_access": "::/0"}, "wrong", "/metrics is served to public clients"),
        ({"metrics_access": broken}, "ok", "/metrics is served to none of the tried clients"),
        ({"metrics_token": "a-long-token"}, "ok", "/metrics is served to clients that send metrics_token"),
        ({"metrics_port": 9464}, "ok", "port 9464 of 127.0.0.1 is served to clients on this machine"),
        ({"metrics_port": 9464, "metrics_host": "localhost"}, "ok", "port 9464 of localhost is served to clients on"),
        ({"metrics_port": 9464, "metrics_access": "never"}, "ok", "port 9464 of 127.0.0.1 is served to no client"),
        ({"metrics_port": 9464, "metrics_host": "::"}, "ok", "port 9464 of :: is served to clients of the private"),
        (
            {"metrics_port": 9464, "metrics_host": "0.0.0.0", "metrics_access": "always"},  # noqa: S104 - not bound
            "wrong",
            "port 9464 of 0.0.0.0 is served to public clients",
        ),
        ({"metrics_dependency": lambda: None}, "ok", "metrics_dependency decides"),
    )
    for options, verdict, found in cases:
        check = checked(**options)["metrics access"]
        assert (check.verdict, check.found.startswith(found)) == (verdict, True), (options, check)
    assert "metrics access" not in checked(metrics=False)


def test_workers_that_do_not_share(checked: Callable[..., dict[str, Check]]) -> None:
    """With `multiprocess` off, each worker has its own values: a look, unless the server is a single process."""
    app = FastAPI(title="shop")
    check = checked(app, multiprocess="off")["workers"]
    assert (check.verdict, check.found) == ("look", f"multiprocess is off (multiprocess of install){SEPARATE}")
    assert check.step == "remove multiprocess from install, unless the server runs one worker process"
    with TestClient(app):
        assert by_subject([*check_app(app.state.observe)])["workers"] == Check("workers", "ok", "one process")
    assert checked(multiprocess="auto")["workers"].verdict == "ok"


@pytest.mark.usefixtures("gunicorn")
def test_workers_of_a_running_app(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """The metrics alone say how many workers share them, and that they do not with `multiprocess` off."""
    for options, number, verdict, found in (
        ({"multiprocess": "off"}, 0, "look", f"multiprocess is off{SEPARATE}"),
        ({"multiprocess_directory": str(tmp_path)}, 1, "ok", "one process"),
    ):
        app = FastAPI(title="shop")
        seen = observed(app, **options)
        with TestClient(app):
            check = by_subject([*MetricsPage(seen.text.splitlines()).check_counts()])["workers"]
            assert (check.verdict, check.found) == (verdict, found)
            assert seen.sample("fastapi_observe_workers") == number
    check = by_subject([*MetricsPage([INFO, "fastapi_observe_workers 3.0"]).check_counts()])["workers"]
    assert check.found == "3 worker processes share /metrics"


def test_the_directory_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing, a file or not writable is wrong; a relative one is to be looked at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    cases = (
        (str(tmp_path / "none"), "wrong", f"the directory {tmp_path}/none does not exist (multiprocess_directory of "),
        (__file__, "wrong", f"the directory {__file__} is not a directory"),
        ("/proc", "wrong", "/proc cannot be written by this user"),
        ("shared", "look", f"the directory shared depends on the current directory, here {tmp_path}/shared"),
    )
    for directory, verdict, found in cases:
        (check,) = check_multiprocess_directory(ObserveSettings(multiprocess_directory=directory))
        assert (check.verdict, check.found.startswith(found)) == (verdict, True), check
    for settings in (
        ObserveSettings(multiprocess_directory=str(tmp_path)),
        ObserveSettings(multiprocess_directory="none", multiprocess="off"),
        ObserveSettings(),
    ):
        assert not [*check_multiprocess_directory(settings)]
    monkeypatch.setenv("OBSERVE_MULTIPROCESS_DIRECTORY", "none")
    run = doctor(tmp_path, "shop:app")
    assert run.returncode == 1
    assert re.search(f"wrong  workers +the directory {tmp_path}/none does not exist", run.stdout)


def test_what_an_exit_waits_for(observed: Callable[..., Seen]) -> None:
    """Open requests and WebSockets are counted, by the metrics and from inside. A busy app has some, so it is `ok`."""
    app = FastAPI(title="shop")
    seen = observed(app)
    found: list[Check] = []

    def look() -> list[Check]:
        (inside,) = check_open_requests(seen.observe)
        assert inside == by_subject([*MetricsPage(seen.text.splitlines()).check_counts()])["exit"]
        return [inside]

    @app.get("/orders")
    async def read_orders() -> None:
        found.extend(look())

    @app.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    assert look() == [Check("exit", "ok", "no request or WebSocket is open; running background tasks are not counted")]
    with TestClient(app) as client, client.websocket_connect("/live") as websocket:
        client.get("/orders")
        (check,) = look()
        websocket.send_text("end")
    assert check.found.startswith("1 WebSocket is open; uvicorn waits for open requests without limit unless ")
    assert (found[0].verdict, found[0].found[:36]) == ("ok", "1 request and 1 WebSocket are open; ")
    app = FastAPI(title="shop")
    install(app, metrics=False)
    assert not [*check_open_requests(app.state.observe)]


def test_errors_and_losses_of_the_running_process(checked: Callable[..., dict[str, Check]]) -> None:
    """Errors inside the package and dropped lines are wrong."""
    app = FastAPI(title="shop")
    assert checked(app)["internal errors"].verdict == "ok"
    observe: Observability = app.state.observe
    observe.internal_errors("traces.on_request_end", RuntimeError())
    check = by_subject([*check_app(observe)])["internal errors"]
    assert (check.verdict, check.found) == ("wrong", "errors inside fastapi-observe: traces.on_request_end (1)")
    exports = by_subject([*check_exports(observe)])
    assert exports["export"].found.startswith("no trace is exported: ")


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
    with tmpfs(tmp_path / "small", "size=64k") as directory:
        (check,) = check_log_file(ObserveSettings(log_file=str(directory / "app.log")))
        assert (check.verdict, check.found.split()[0]) == ("look", "0.0")
    with tmpfs(tmp_path / "read-only", "size=64k,ro") as directory:
        (check,) = check_log_file(ObserveSettings(log_file=str(directory / "app.log")))
        assert (check.verdict, check.found) == ("wrong", f"{directory} cannot be written by this user")
    (check,) = check_log_file(ObserveSettings(log_file="/proc/nope/app.log"))
    assert (check.verdict, check.found) == ("wrong", "/proc cannot be written by this user")


def test_settings_that_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored variables, a missing name and what is switched off are reported."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "often")
    checks = [*check_settings(ObserveSettings(metrics=False, sampler="always_off"))]
    assert [(check.subject, check.verdict) for check in checks] == [
        ("settings", "look"),
        ("service", "look"),
        ("signals", "ok"),
        ("sampling", "look"),
        ("exit", "ok"),
    ]
    assert checks[2].found == "on: traces, logs; off: metrics (metrics of install), console"
    assert "sampling" not in by_subject([*check_settings(ObserveSettings(tracing=False))])


def test_a_running_app(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In development the console has the same checks; elsewhere only what can be seen from outside is checked."""
    app = FastAPI(title="shop")
    install(app, environment="development", multiprocess_directory=str(tmp_path), capture_logging=False)
    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        httpx.get(f"{url}/observe/", trust_env=False, timeout=60)
        assert main(["doctor", "--url", url, "--json"]) == 0
        out = capsys.readouterr().out  # with the lines of the app, which runs in this process
        checks = [Check(**each) for each in json.loads(out[out.index("[\n") :])]
    assert {"workers", "internal errors", "duplicates"} <= {*by_subject(checks)}
    assert len({*checks}) == len(checks)
    assert by_subject(checks)["metrics access"].found == (
        f"{url}/metrics is served to this machine, not to a public client"
    )
    assert by_subject(checks)["clock"].verdict == "ok"


def test_a_running_app_outside_development(capsys: pytest.CaptureFixture[str]) -> None:
    """A public /metrics is wrong; one that needs a token is read with it; an app that is gone is wrong."""
    token = {"metrics_token": "a-long-token"}
    for options, status, found, *more in (
        ({"metrics_access": "always"}, 1, "/metrics is served to a public client behind a proxy"),
        ({"metrics_access": "always"}, 1, "no request or WebSocket is open"),
        (token, 0, "/metrics is served to clients that send metrics_token; with --token, doctor reads it"),
        (token, 0, "no request or WebSocket is open", "--token", "a-long-token"),
        (token, 0, "/metrics is served to this machine, not to a public client", "--token", "a-long-token"),
        (token, 0, "Pass the value of metrics_token as --token.", "--token", "another-token"),
        (
            {"metrics_access": ["127.0.0.1", "203.0.113.0/24", "192.0.2.0/24"]},
            0,
            "/metrics is served to this machine, not to a public client",
        ),
        ({"metrics": False}, 0, "on another path or port (metrics_path, metrics_port)"),
    ):
        app = FastAPI(title="shop")
        install(app, capture_logging=False, **options)
        with serving(app) as port:
            assert main(["doctor", "--url", f"http://127.0.0.1:{port}", *more]) == status
            out = capsys.readouterr().out
        assert found in out
        assert "not served to this client" in out
    assert main(["doctor", "--url", f"http://127.0.0.1:{port}"]) == 1
    assert "Start the server, or correct host and port." in capsys.readouterr().out


def test_a_running_app_gets_two_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """The metrics are asked for once by each client; an app without a console is not asked for it."""
    app, sent = FastAPI(title="shop"), []
    install(app, capture_logging=False, metrics_access="private")

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            sent.append((scope["path"], headers.get("x-forwarded-for"), headers["user-agent"]))
        await app(scope, receive, send)

    with serving(recording) as port:
        assert main(["doctor", "--url", f"http://127.0.0.1:{port}"]) == 0
    asked = [("/metrics", None), ("/metrics", PUBLIC_PEER)]
    assert sent == [(path, peer, DOCTOR_AGENT) for path, peer in asked]
    out = capsys.readouterr().out
    assert [subject for subject in ("metrics access", "clock", "export", "requests") if subject not in out] == []


def test_what_is_pasted_as_the_url(capsys: pytest.CaptureFixture[str]) -> None:
    """The address of the metrics, or of the console with its token, means the app; another text exits with 2."""
    app = FastAPI(title="shop")
    install(app, capture_logging=False, console=True, console_token="a-long-token-for-tests")  # noqa: S106 - of a test
    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        for path, has_console in (("/metrics", False), ("/observe/?t=a-long-token-for-tests", True)):
            main(["doctor", "--url", f"{url}{path}"])
            out = capsys.readouterr().out
            assert f"{url}/metrics is served to this machine, not to a public client" in out
            assert ("internal errors" in out) == has_console
    for text in (f"127.0.0.1:{port}", "shop", f"ftp://127.0.0.1:{port}"):
        assert main(["doctor", "--url", text]) == 2
        step = "--url is not an http or https URL; use one such as http://127.0.0.1:8000\n"
        assert capsys.readouterr().err.endswith(step)


def test_a_check_that_fails_is_a_line() -> None:
    """An internal error in a check does not prevent the other checks."""

    def broken() -> Iterator[Check]:
        yield Check("first", "ok", "seen")
        raise RuntimeError("no luck")

    found = run_checks(broken, lambda: iter([Check("last", "ok", "seen")]))
    assert [check.subject for check in found] == ["first", "doctor", "last"]
    assert found[1].found == "the check failed: RuntimeError: no luck"


def test_what_is_switched_off_names_its_source(
    checked: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that is off has the variable or argument; without traces no endpoint is asked for."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    settings = ObserveSettings(logs=False)
    found = by_subject([*check_settings(settings), *probe_exports(settings)])
    assert found["signals"].found == "on: metrics; off: traces (OTEL_SDK_DISABLED), logs (logs of install), console"
    assert "export" not in found
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert by_subject([*check_settings(ObserveSettings())])["sampling"].found.endswith(" (OTEL_TRACES_SAMPLER)")
    check = by_subject([*check_settings(ObserveSettings())])["exit"]
    assert (check.verdict, check.found.startswith("the export takes up to 2 s;")) == (
        "ok",
        True,
    )
    assert by_subject([*check_settings(ObserveSettings(shutdown_timeout=30))])["exit"].found == (
        "the export takes up to 30 s (shutdown_timeout of install)"
    )


def test_an_env_file_that_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` beside the app is named if its variables are neither read nor in the environment."""
    monkeypatch.chdir(tmp_path)
    assert "settings" not in by_subject([*check_settings(ObserveSettings())])
    text = "SECRET=hunter2\nexport OTEL_SERVICE_NAME=shop\n# OBSERVE_LOGS=false\nOBSERVE_SAMPLE_RATIO = 0.5\n"
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    check = by_subject([*check_settings(ObserveSettings())])["settings"]
    assert check.found == ".env has variables that are not read: OBSERVE_SAMPLE_RATIO, OTEL_SERVICE_NAME"
    assert "settings" not in by_subject([*check_settings(ObserveSettings(env_file=".env"))])
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OBSERVE_SAMPLE_RATIO", "0.5")  # as uvicorn --env-file does
    assert "settings" not in by_subject([*check_settings(ObserveSettings())])


def test_no_step_starts_with_a_name() -> None:
    """A step is printed with its first letter in upper case, which no name of an option or metric survives."""
    steps: list[str] = []
    for module in (ROOT / "fastapi_observe" / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Check":
                values = node.args[3:]
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "step":
                values = [node.value]
            for value in values:
                first = value.values[0] if isinstance(value, ast.JoinedStr) else value
                steps += [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    assert len(steps) > 20
    assert [step for step in steps if not re.match("[A-Za-z]+ ", step)] == []


def test_the_metrics_of_a_running_app(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside development, losses, failed exports and overflow are read from the metrics."""
    with Collector(listens=False) as closed:
        app = FastAPI(title="shop")
        observe = install(
            app,
            capture_logging=False,
            otlp_endpoint=closed.url,
            sample_ratio=1.0,
            batch_delay=0.01,
            max_values_per_label=1,
            instrument=[],
        )
        app.get("/orders")(lambda: {"id": 7})
        counter = observe.metrics.counter("logins_total", "Logins.", ["user"])
        with serving(app) as port:
            url = f"http://127.0.0.1:{port}"
            main(["doctor", "--url", url])
            assert "no request was measured yet" in capsys.readouterr().out
            httpx.get(f"{url}/orders", trust_env=False, timeout=60)
            observe.tracing.flush(0.5)
            for user in "abc":
                counter.labels(user).inc()
            assert main(["doctor", "--url", url]) == 1
        out = capsys.readouterr().out
    assert "wrong  export of traces  0 exported, " in out
    assert "new label values are recorded as __overflow__: logins_total" in out
    assert f"cardinality {url}/metrics to see the label" in out
    assert "no request was measured" not in out


def test_a_metrics_page_with_losses() -> None:
    """Lines of all signals and reasons are added up; a page of another server has no counts."""
    lines = [
        INFO,
        'fastapi_observe_exported_total{signal="traces"} 7.0',
        'fastapi_observe_queue_items{signal="traces"} 1.0',
        'fastapi_observe_dropped_total{reason="queue_full",signal="traces"} 2.0',
        'fastapi_observe_dropped_total{reason="queue_full",signal="logs"} 1.0',
        'fastapi_observe_dropped_total{reason="stdout_write",signal="logs"} 2.0',
        "fastapi_observe_metrics_degraded 1.0",
        'http_server_request_duration_seconds_count{http_route="/"} 3.0',
    ]
    checks = by_subject([*MetricsPage(lines).check_counts()])
    assert checks["export of traces"].found == "7 exported, 1 queued, 2 dropped, 0 failed requests"
    assert checks["logs"].found == "3 lines were dropped"
    assert {check.verdict for check in checks.values()} == {"wrong"}
    assert checks.keys() == {"export of traces", "logs", "workers"}
    assert [*MetricsPage(["up 1"]).check_counts()] == [
        Check("metrics", "look", "they are not those of fastapi-observe", "see what serves this path")
    ]
