"""The console of an app: who may see it, what it responds with, and that nothing of it exists outside development."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import fastapi
import pytest
import uvicorn
from fastapi import BackgroundTasks, FastAPI, WebSocket
from injection import failing
from opentelemetry import trace
from starlette.testclient import TestClient

from fastapi_observe import DatabaseDep, LogDep, ObserveSettings, SettingsError, install
from fastapi_observe.console.address import address_from_command_line
from fastapi_observe.console.api import Api
from fastapi_observe.console.store import Store
from fastapi_observe.records.frames import OwnCode, describe_exception
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen

TOKEN = "a-token-of-some-length"  # noqa: S105 - a token of the tests
LOCAL = {"host": "localhost:8000"}


def make_app() -> FastAPI:
    """Return an app that works, fails, queries, streams and talks."""
    app = FastAPI(title="shop")

    @app.get("/orders/{order_id}")
    async def read(order_id: int, db: DatabaseDep, log: LogDep, tasks: BackgroundTasks) -> int:
        async with db.query("SELECT", table="orders", statement="SELECT * FROM orders WHERE id = 7"):
            log.info("order read", order_id=order_id)
        tasks.add_task(print, end="")
        return order_id

    @app.get("/fails")
    async def fails() -> None:
        try:
            {"": 1}["key"]
        except KeyError as exc:
            raise RuntimeError("no <b>luck</b>") from exc

    @app.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_text()
        await socket.close()

    return app


def ask(app: Any, path: str = "/observe/", query: str = "", **scope: Any) -> tuple[int, dict[str, str], bytes]:
    """Send one request over ASGI, by default as a browser of this machine does; return status, headers and body."""
    headers = scope.pop("headers", LOCAL)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "http_version": "1.1",
        "scheme": "http",
        **scope,
    }
    asyncio.run(app(whole, receive, send))
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:])


def live(app: Any, query: str = "") -> dict[str, Any]:
    """Return the response of `api/live`."""
    found: dict[str, Any] = json.loads(ask(app, "/observe/api/live", query)[2])
    return found


@pytest.fixture
def shop(observed: Callable[..., Seen]) -> Seen:
    """Return an app in development with the requests that the tests look at."""
    seen = observed(make_app(), environment="development", otlp_endpoint=None)
    client = TestClient(seen.observe.app, raise_server_exceptions=False)
    client.get("/orders/7?q=1")
    client.get("/fails")
    with client.websocket_connect("/talk") as socket:
        socket.send_text("hello")
    seen.observe.flush()
    return seen


def test_requests_are_shown_with_their_spans_and_lines(shop: Seen) -> None:
    """The page gets what happened, newest first; a trace has its spans, lines, and the place of each query."""
    found = live(shop.observe.app)
    kinds = [(each["kind"], each["method"], each["path"], each["status"]) for each in found["requests"]]
    assert ("http", "GET", "/orders/7?q=1", 200) in kinds
    assert ("http", "GET", "/fails", 500) in kinds
    assert ("background", "", "background print", 0) in kinds
    assert any(kind == "websocket" for kind, *_ in kinds)
    (read,) = [each for each in found["requests"] if each["path"] == "/orders/7?q=1"]
    trace = json.loads(ask(shop.observe.app, f"/observe/api/traces/{read['trace_id']}")[2])
    assert {span["name"] for span in trace["spans"]} >= {"GET /orders/{order_id}", "SELECT orders"}
    (query,) = [span for span in trace["spans"] if span["name"] == "SELECT orders"]
    assert query["attributes"]["code.file.path"].endswith("test_console.py")
    assert "7" not in query["attributes"]["db.query.text"]
    assert "order read" in {line["message"] for line in trace["lines"]}
    assert found["service"]["name"] == "shop"


def test_jobs_and_fields_of_requests(shop: Seen) -> None:
    """A job is listed by its name, also while it runs; what `observe.set` has set is with it."""
    with shop.observe.job("send mail"):
        shop.observe.set(tenant="<b>acme</b>")
        running = [each for each in live(shop.observe.app)["running"] if each["kind"] == "job"]
    found = live(shop.observe.app)
    (job,) = [each for each in found["requests"] if each["kind"] == "job"]
    assert [each["path"] for each in running] == [job["path"]] == ["send mail"]
    assert (job["method"], job["fields"], job["failed"]) == ("JOB", {"tenant": "<b>acme</b>"}, False)
    assert "send mail" not in str(found["points"])
    with pytest.raises(LookupError), shop.observe.job("send mail"):
        raise LookupError
    newest = live(shop.observe.app)["requests"]
    assert [each["outcome"] for each in newest if each["kind"] == "job" and each["failed"]] == ["error"]


def test_only_what_is_new_is_sent(shop: Seen) -> None:
    """With the number and the instance of the last response, unchanged requests are left out."""
    first = live(shop.observe.app)
    again = live(shop.observe.app, f"since={first['seq']}&instance={first['instance']}")
    assert (again["requests"], again["points"]) == ([], [])
    other = live(shop.observe.app, f"since={first['seq']}&instance=another")
    assert len(other["requests"]) == len(first["requests"])


def test_an_exception_has_the_user_s_frames_first(shop: Seen) -> None:
    """The innermost frame of the user's code is marked, with its line of source; the cause follows."""
    (failed,) = [each for each in live(shop.observe.app)["requests"] if each["status"] == 500]
    raised, cause = failed["exception"]
    assert (raised["type"], cause["type"]) == ("RuntimeError", "KeyError")
    own = [frame for frame in raised["frames"] if frame["own"]]
    assert own[0]["code"] == 'raise RuntimeError("no <b>luck</b>") from exc'
    assert not raised["frames"][-1]["own"]


def test_a_trace_as_otlp(shop: Seen) -> None:
    """The download is an OTLP/JSON request."""
    (read,) = [each for each in live(shop.observe.app)["requests"] if each["path"].startswith("/orders")]
    status, headers, body = ask(shop.observe.app, f"/observe/api/traces/{read['trace_id']}.otlp.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    scope = json.loads(body)["resourceSpans"][0]["scopeSpans"][0]
    assert {span["traceId"] for span in scope["spans"]} == {read["trace_id"]}
    assert any(span["parentSpanId"] for span in scope["spans"])


def test_the_summary_is_text(shop: Seen) -> None:
    """Shells and agents read the same."""
    _, headers, body = ask(shop.observe.app, "/observe/api/summary.txt")
    assert headers["content-type"].startswith("text/plain")
    assert "GET /fails" in body.decode()


@pytest.mark.parametrize(
    "path",
    ["/observe/api/traces/" + "a" * 32, "/observe/api/nothing", "/observe/assets/x/app.js", "/observe/../app.js"],
)
def test_what_does_not_exist_is_404(shop: Seen, path: str) -> None:
    """Nothing is read from the file system by a path of a client."""
    assert ask(shop.observe.app, path)[0] == 404


def test_the_page_and_its_assets(shop: Seen) -> None:
    """No inline script or style; assets may be cached for ever under their hash."""
    status, headers, body = ask(shop.observe.app)
    page = body.decode()
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "require-trusted-types-for 'script'" in headers["content-security-policy"]
    assert "<style" not in page
    assert "style=" not in page
    sizes = len(body)
    for part in page.split('"'):
        if part.startswith("assets/"):
            status, headers, asset = ask(shop.observe.app, f"/observe/{part}")
            assert status == 200
            assert "immutable" in headers["cache-control"]
            sizes += len(asset)
    assert ask(shop.observe.app, "/observe")[1]["location"] == "/observe/"
    assert sizes + len(ask(shop.observe.app, "/observe/assets/x/lit-html.js")[2]) < 60 * 1024


STRANGERS: list[dict[str, Any]] = [
    {"method": "POST"},
    {"client": ("203.0.113.7", 5)},
    {"client": None},
    {"http_version": "1.0"},
    {"headers": {"host": "evil.example"}},
    {"headers": {"host": "localhost.evil.example"}},
    {"headers": {}},
    {"headers": {**LOCAL, "x-forwarded-for": "127.0.0.1"}},
    {"headers": {**LOCAL, "forwarded": "for=127.0.0.1"}},
    {"headers": {**LOCAL, "via": "1.1 proxy"}},
    {"headers": {**LOCAL, "sec-fetch-site": "cross-site"}},
    {"headers": {**LOCAL, "sec-fetch-site": "same-site"}},
    {"client": ("203.0.113.7", 5), "query": "t=wrong"},
    {"client": ("203.0.113.7", 5), "query": f"t={TOKEN}&t={TOKEN}"},
    {"client": ("203.0.113.7", 5), "query": "t=" + "x" * 100_000},
]


@pytest.mark.parametrize("strange", STRANGERS)
def test_a_stranger_gets_the_app_s_404(observed: Callable[..., Seen], strange: dict[str, Any]) -> None:
    """DNS rebinding, a proxy, another site, another machine, a wrong token: the response is the app's own."""
    seen = observed(FastAPI(), environment="development", console_token=TOKEN)
    status, headers, _ = ask(seen.observe.app, **strange)
    assert status == 404
    assert "content-security-policy" not in headers
    assert len(seen.request_lines) == 1


@pytest.mark.parametrize("headers", [LOCAL, {"host": "[::1]:8000"}, {"host": "127.0.0.1"}, {"host": "LOCALHOST"}])
def test_a_browser_of_this_machine_needs_no_token(observed: Callable[..., Seen], headers: dict[str, str]) -> None:
    """In development loopback is enough. The request itself is in no signal."""
    seen = observed(FastAPI(), environment="development")
    assert ask(seen.observe.app, headers=headers)[0] == 200
    assert ask(seen.observe.app, headers=headers, client=("::1", 1))[0] == 200
    assert seen.request_lines == []
    assert seen.spans == []
    assert seen.total("http_requests_total") == 0


def test_a_token_becomes_a_cookie(observed: Callable[..., Seen]) -> None:
    """From another machine the printed address leads in, and the token leaves the address."""
    seen = observed(FastAPI(), environment="development", console_token=TOKEN)
    far: dict[str, Any] = {"client": ("172.17.0.1", 5), "headers": {"host": "192.168.0.2"}}
    status, headers, _ = ask(seen.observe.app, query=f"t={TOKEN}", **far)
    assert (status, headers["location"]) == (303, "/observe/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    far["headers"] = {**far["headers"], "cookie": f"a=b; {cookie}"}
    assert ask(seen.observe.app, **far)[0] == 200
    assert ask(seen.observe.app, scheme="https", query=f"t={TOKEN}", **far)[1]["set-cookie"].endswith("Secure")
    far["headers"]["sec-fetch-site"] = "cross-site"
    assert ask(seen.observe.app, **far)[0] == 404


def test_two_apps_of_one_host_have_two_cookies(observed: Callable[..., Seen]) -> None:
    """A browser sends the cookies of a host to all its ports: neither app replaces the cookie of the other."""
    far: dict[str, Any] = {"client": ("172.17.0.1", 5), "headers": {"host": "localhost"}}
    cookies, apps = [], []
    for name in ("shop", "payments"):
        token = f"{TOKEN}-{name}"
        seen = observed(FastAPI(title=name), environment="development", console_token=token)
        cookies.append(ask(seen.observe.app, query=f"t={token}", **far)[1]["set-cookie"].partition(";")[0])
        apps.append(seen.observe.app)
    assert len({cookie.partition("=")[0] for cookie in cookies}) == 2
    far["headers"] = {"host": "localhost", "cookie": "; ".join(cookies)}
    assert [ask(app, **far)[0] for app in apps] == [200, 200]
    (shop, token), (payments, other) = (cookie.split("=") for cookie in cookies)
    far["headers"]["cookie"] = f"{shop}={other}; {payments}={token}"
    assert [ask(app, **far)[0] for app in apps] == [404, 404]


def test_outside_development_the_token_is_always_needed(observed: Callable[..., Seen]) -> None:
    """`console=True` in production is for holders of the token, on this machine too."""
    seen = observed(FastAPI(), console=True, console_token=TOKEN)
    assert ask(seen.observe.app)[0] == 404
    assert ask(seen.observe.app, "/observe/api/live", f"t={TOKEN}")[0] == 200
    with pytest.raises(SettingsError, match="needs console_token; set it, or leave out console"):
        ObserveSettings(console=True)


@pytest.mark.parametrize("options", [{}, {"console": False, "environment": "development"}])
def test_it_is_off(observed: Callable[..., Seen], options: dict[str, Any]) -> None:
    """Outside development, or switched off, there is nothing."""
    seen = observed(FastAPI(), **options)
    assert ask(seen.observe.app)[0] == 404


def test_nothing_is_imported_outside_development() -> None:
    """A production process has no module of the console, and no asset in memory."""
    code = """
import sys
from fastapi import FastAPI
from fastapi_observe import install
install(FastAPI())
print([name for name in sys.modules if "observe.console" in name])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)  # noqa: S603
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "development"),
    [
        (["/venv/bin/uvicorn", "main:app", "--reload"], True),
        (["/venv/lib/uvicorn/__main__.py", "main:app", "--reload"], True),
        (["/venv/bin/uvicorn", "main:app"], False),
        (["/venv/bin/other", "--reload"], False),
        ([""], False),
        ([], False),
    ],
)
def test_uvicorn_with_reload_is_development(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    development: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """It is seen on the command line; then every trace is sampled, unless the ratio is given, as is the environment."""
    monkeypatch.setattr(sys, "argv", arguments)
    assert ObserveSettings().development is development
    assert ObserveSettings().sample_ratio == (1.0 if development else 0.1)
    assert ObserveSettings(sample_ratio=0.5).sample_ratio == 0.5
    assert ObserveSettings().environment == ("development" if development else "production")
    staging = ObserveSettings(environment="staging")
    assert (staging.environment, staging.development) == ("staging", development)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    assert ObserveSettings().environment == "test"


@pytest.mark.parametrize("reload", [True, False])
def test_uvicorn_in_python_with_reload_is_development(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reload: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """`uvicorn.run("main:app", reload=True)` is seen where uvicorn imports the app, and holds for its settings."""
    name = f"imported_with_reload_{reload}".lower()
    code = "from fastapi import FastAPI\nfrom fastapi_observe import install\napp = FastAPI()\ninstall(app)\n"
    (tmp_path / f"{name}.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    uvicorn.Config(f"{name}:app", reload=reload, reload_dirs=str(tmp_path), log_config=None).load()
    observe = sys.modules[name].app.state.observe
    try:
        assert observe.settings.development is reload
        assert observe.settings.sample_ratio == (1.0 if reload else 0.1)
        assert ask(observe.app)[0] == (200 if reload else 404)
    finally:
        observe.close()


def test_its_own_requests_are_not_in_the_access_log(observed: Callable[..., Seen]) -> None:
    """The page polls once a second: uvicorn's access log has none of that, where it is written."""
    observed(FastAPI(), environment="development", logs=False)
    access = logging.getLogger("uvicorn.access")
    shown = []
    for path in ("/observe/api/live?since=1", "/observe", "/observed", "/orders/7"):
        arguments = ("127.0.0.1:5", "GET", path, "1.1", 200)
        record = access.makeRecord(access.name, 20, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)
        if access.filter(record):
            shown.append(path)
    assert shown == ["/observed", "/orders/7"]


def test_closing_leaves_nothing_behind(observed: Callable[..., Seen]) -> None:
    """After `close` the access log, the log lines and the spans are no longer looked at."""
    access = logging.getLogger("uvicorn.access")
    before = list(access.filters)
    seen = observed(make_app(), environment="development")
    push = seen.observe.logs.push
    seen.observe.close()
    assert access.filters == before
    assert seen.observe.logs.push is not push


def test_a_fault_of_the_console_is_its_own(observed: Callable[..., Seen]) -> None:
    """A failing store changes no response of the app, and is counted."""
    seen = observed(make_app(), environment="development")
    with failing(Store.add_summary, Api.info):
        assert TestClient(seen.observe.app).get("/orders/7").status_code == 200
        assert ask(seen.observe.app, "/observe/api/info")[0] == 500
    assert {"console.on_request_end", "console"} <= set(seen.observe.internal_errors.counts)


def test_values_that_are_no_json(observed: Callable[..., Seen]) -> None:
    """A file name that cannot be decoded, and a number of 70 bits, are shown; the page goes on."""
    app = FastAPI()

    @app.get("/")
    async def root() -> None:
        trace.get_current_span().set_attribute("large", 2**70)
        raise FileNotFoundError("\udcff.txt")

    seen = observed(app, environment="development")
    TestClient(app, raise_server_exceptions=False).get("/")
    (failed,) = live(app)["requests"]
    assert "\\udcff" in failed["exception"][0]["message"]
    status, _, body = ask(app, f"/observe/api/traces/{failed['trace_id']}")
    assert status == 200
    assert json.loads(body)["trace_id"] == failed["trace_id"]
    assert ask(app, "/observe/api/summary.txt")[0] == 200
    assert seen.observe.internal_errors.counts == {}


def test_only_the_token_is_answered_by_the_cookie(observed: Callable[..., Seen]) -> None:
    """Any other value of `t` from this machine gets the page, and no cookie."""
    seen = observed(FastAPI(), environment="development")
    status, headers, _ = ask(seen.observe.app, query="t=anything")
    assert (status, "set-cookie" in headers) == (200, False)


def test_own_files() -> None:
    """Code of installed packages, of Python and of this package is not the user's."""
    own_code = OwnCode()
    assert own_code.includes(__file__)
    assert not own_code.includes(asyncio.__file__)
    assert not own_code.includes(pytest.__file__)
    assert not own_code.includes("<string>")
    found = own_code.caller_location()
    assert found is not None
    assert found[0].endswith("test_console.py")


INSTALLED_APP = """
from fastapi import FastAPI
from {installer} import install
from {package}.api import router

app = FastAPI()
install(app, environment="development", logs=False, otlp_endpoint=None)
app.include_router(router)
"""
INSTALLED_API = """
from fastapi import APIRouter
from fastapi_observe import DatabaseDep
import {library}

router = APIRouter()

@router.get("/fails")
async def fails(db: DatabaseDep):
    async with db.query("SELECT", table="orders"):
        pass
    {library}.call(boom)

def boom():
    raise RuntimeError("out of luck")
"""
LIBRARY = "def call(function):\n    return function()\n"
PLATFORM = "import fastapi_observe\ndef install(*given, **named):\n    fastapi_observe.install(*given, **named)\n"


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_app_that_is_installed_as_a_package(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrapped: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """As in images of containers: its package is the user's code, the libraries next to it are not.

    A library of the company may call `install`: the modules of the endpoints are the app's too.
    """
    package, library, platform = (f"installed_{name}_{wrapped}".lower() for name in ("shop", "library", "platform"))
    home = tmp_path / "lib" / "site-packages"
    (home / package).mkdir(parents=True)
    names = {"package": package, "library": library, "installer": platform if wrapped else "fastapi_observe"}
    (home / package / "__init__.py").write_text("", "utf-8")
    (home / package / "main.py").write_text(INSTALLED_APP.format(**names), "utf-8")
    (home / package / "api.py").write_text(INSTALLED_API.format(**names), "utf-8")
    (home / f"{library}.py").write_text(LIBRARY, "utf-8")
    (home / f"{platform}.py").write_text(PLATFORM, "utf-8")
    monkeypatch.syspath_prepend(str(home))
    app = importlib.import_module(f"{package}.main").app
    try:
        TestClient(app, raise_server_exceptions=False).get("/fails")
        (failed,) = [each for each in live(app)["requests"] if each["failed"]]
        trace = json.loads(ask(app, f"/observe/api/traces/{failed['trace_id']}")[2])
        frames = failed["exception"][0]["frames"]
        own = [(each["file"].rpartition("/")[2], each["function"]) for each in frames if each["own"]]
        assert own == [("api.py", "boom"), ("api.py", "fails")]
        assert f"{library}.py" in {each["file"].rpartition("/")[2] for each in frames}
        (query,) = [span for span in trace["spans"] if span["name"] == "SELECT orders"]
        assert query["attributes"]["code.file.path"].endswith(f"{package}/api.py")
    finally:
        app.state.observe.close()


def test_a_virtual_environment_inside_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed below the package of the app is not the user's."""
    package = tmp_path / "app_with_environment"
    (package / ".venv" / "lib" / "site-packages").mkdir(parents=True)
    (package / "__init__.py").write_text("", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("app_with_environment")
    own_code = OwnCode(lambda: ["app_with_environment.main", "unknown.module", "asyncio", "fastapi.applications"])
    assert own_code.includes(str(package / "main.py"))
    assert not own_code.includes(str(package / ".venv" / "lib" / "site-packages" / "library.py"))
    assert not own_code.includes(asyncio.__file__)
    assert not own_code.includes(fastapi.__file__)


def test_a_chain_that_leads_back_to_itself() -> None:
    """Each exception of a chain is described once."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert [each["message"] for each in describe_exception(one, DEFAULT_REDACTOR)] == ["one", "two"]


def test_install_reads_the_options() -> None:
    """The path may be another one."""
    app = make_app()
    observe = install(app, environment="development", console_path="/_dev")
    try:
        assert ask(app, "/_dev/")[0] == 200
        assert ask(app, "/observe/")[0] == 404
    finally:
        observe.close()


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["/venv/bin/uvicorn", "main:app"], "http://127.0.0.1:8000"),
        (["/venv/bin/fastapi", "dev", "main.py", "--port", "9000"], "http://127.0.0.1:9000"),
        (["/venv/lib/uvicorn/__main__.py", "main:app", "--host=0.0.0.0", "--port=81"], "http://127.0.0.1:81"),
        (["/venv/bin/uvicorn", "main:app", "--host", "::1"], "http://[::1]:8000"),
        (["/venv/bin/uvicorn", "main:app", "--port", "0"], None),
        (["/venv/bin/uvicorn", "main:app", "--port"], None),
        (["/venv/bin/gunicorn", "main:app"], None),
        ([], None),
    ],
)
def test_the_address_of_the_server(arguments: list[str], address: str | None) -> None:
    """It is read from the command line of uvicorn and fastapi."""
    assert address_from_command_line(arguments or [""]) == address


def test_the_address_is_logged_once(observed: Callable[..., Seen]) -> None:
    """Where the command line does not say it, the first request does."""
    seen = observed(FastAPI(), environment="development")
    for _ in range(3):
        ask(seen.observe.app, "/", server=("127.0.0.1", 4321))
    (line,) = [line for line in seen.lines if line["message"].startswith("Development console")]
    assert line["message"].startswith("Development console: http://127.0.0.1:4321/observe/")
    unix = observed(FastAPI(), environment="development")
    ask(unix.observe.app, "/", server=("/run/app.sock", None))
    assert not [line for line in unix.lines if line["message"].startswith("Development console")][1:]
