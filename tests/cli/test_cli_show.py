"""The command `show`: which server it reads, what it prints, and what it says where it cannot."""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI
from servers import serving
from starlette.testclient import TestClient
from tools import until

from fastapi_observe import DatabaseDep, LogDep, install
from fastapi_observe.cli.main import main
from fastapi_observe.console.discovery import ServerFile, running_servers
from fastapi_observe.workers.directory import open_root, process_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "a-token-of-some-length"  # noqa: S105 - a token of the tests


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Look for servers in a directory of the test."""
    monkeypatch.setenv("OBSERVE_MULTIPROCESS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    logging.getLogger("uvicorn.error").addFilter(lambda _: False)  # removed by a fixture of all tests


@contextmanager
def shop(**options: Any) -> Iterator[str]:
    """Serve an app in development, after it has responded, failed and was slow. Yields its URL."""
    app = FastAPI(title="shop")
    observe = install(app, **{"environment": "development", "capture_logging": False, **options})

    @app.get("/orders/{order_id}")
    async def read(order_id: int, db: DatabaseDep, log: LogDep, tasks: BackgroundTasks) -> int:
        for _ in range(3):
            async with db.query("SELECT", table="items"):
                pass
        log.info("order\x1b read", order_id=order_id)
        tasks.add_task(print, end="")
        return order_id

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("out of\nluck")

    with serving(app) as port:
        for path in ("/orders/7?page=2", "/fails"):
            httpx.get(f"http://127.0.0.1:{port}{path}", headers={"connection": "close"}, timeout=60)
        headers = {"authorization": f"Bearer {TOKEN}"}
        held = partial(httpx.get, f"http://127.0.0.1:{port}/observe/api/live", headers=headers)
        until(lambda: len([each for each in held().json()["requests"] if each["kind"] == "http"]) == 2)
        observe.flush()  # what the app writes itself is not what the command prints
        yield f"http://127.0.0.1:{port}"
    observe.close()


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command; return its exit status, standard output and standard error."""
    capsys.readouterr()
    status = main(["show", *arguments])
    written = capsys.readouterr()
    return status, written.out, written.err


def test_the_newest_server_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--url` its file leads there; a trace is printed with tree, exception and log lines."""
    with shop() as url:
        status, text, said = show(capsys, "failed")
        assert (status, said) == (0, f"Reading shop at {url}/observe (pid {os.getpid()}, in {Path.cwd()}).\n")
        assert text.startswith("✗ GET /fails  500  ")
        assert "✗ RuntimeError: out of\n    luck\n  tests/cli/test_cli_show.py:" in text
        assert "  server_error  " in text
        trace_id = text.split("#trace=")[1].strip()
        assert len(trace_id) == 32
        assert show(capsys, trace_id)[1] == show(capsys, trace_id[:8])[1] == text

        _, text, _ = show(capsys, "slow", "--url", f"{url}/observe/")
        assert "  GET /orders/{order_id}  " in text or "  500  " in text
        document = json.loads(show(capsys, "last", "--json")[1])
        assert document["summaries"][0]["endpoint"] == "/fails"
        assert document["server"] == {
            "url": f"{url}/observe",
            "service": "shop",
            "pid": os.getpid(),
            "directory": str(Path.cwd()),
        }


def test_the_whole_trace_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Repeated spans are one row, a background task is a part of it, and control characters are escaped."""
    with shop() as url:
        listed = httpx.get(f"{url}/observe/api/live", timeout=60).json()["requests"]
        trace_id = next(each["trace_id"] for each in listed if each["endpoint"] == "/orders/{order_id}")
        _, text, _ = show(capsys, trace_id, "--url", url)
    assert "✓ GET /orders/7?page=2  200  " in text
    assert "├ SELECT items \u00d73 " in text
    assert "background print" in text
    assert "INFO  order\\x1b read  order_id=7" in text
    assert "HTTP request completed" not in text


def test_others_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The newest of several servers is read; files of ended ones are removed, foreign ones left alone."""
    root = open_root(str(tmp_path))
    ended = root / "console-1-2-3-00000000.json"
    stale = root / f"console-{process_identity(999_999_999)}-0a0b0c0d.json"
    link, foreign = root / "console-1-2-3-00000001.json", root / "console.json"
    for path in (ended, stale, foreign):
        path.write_text("{}")
        path.chmod(0o600)
    link.symlink_to(ended)
    file = ServerFile(str(tmp_path))
    with shop() as url:
        file.publish("http://127.0.0.1:1/observe", "t", "older\x1b")
        status, _, said = show(capsys, "last", "--url", url)
        assert (status, said) == (0, "")
        status, _, said = show(capsys, "last")
        assert "Reading older\\x1b at http://127.0.0.1:1/observe" in said
        assert f"Also running, for --url: shop at {url}/observe" in said
        assert status == 2
        file.remove()
        assert show(capsys, "last")[0] == 0
    assert not stale.exists()
    assert foreign.exists()
    status, _, said = show(capsys, "last")
    assert (status, said.split(";")[0]) == (2, "no development server of this user was found")


def test_the_server_of_this_directory_is_preferred(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer one of another directory is named on standard error only."""
    other = tmp_path / "other"
    other.mkdir()
    file, here = ServerFile(str(tmp_path)), Path.cwd()
    with shop() as url:
        monkeypatch.chdir(other)
        file.publish("http://127.0.0.1:1/observe", "t", "newer")
        monkeypatch.chdir(here)
        status, text, said = show(capsys, "failed")
        file.remove()
    assert (status, text.splitlines()[0][:12]) == (0, "✗ GET /fails")
    assert f"Reading shop at {url}/observe" in said
    assert f"Also running, for --url: newer at http://127.0.0.1:1/observe (pid {os.getpid()}, in {other})" in said


def test_a_server_of_another_directory_is_named_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output says whose request it is. With several servers elsewhere none of them is read."""
    here, other = Path.cwd(), tmp_path / "other"
    other.mkdir()
    workers, second = ServerFile(str(tmp_path)), ServerFile(str(tmp_path))
    with shop() as url:
        workers.publish(f"{url}/observe", TOKEN, "shop")  # another worker of the same server
        monkeypatch.chdir(other)
        status, text, _ = show(capsys, "failed")
        first, request = text.splitlines()[:2]
        described = f"shop at {url}/observe (pid {os.getpid()}, in {here})"
        assert (status, first) == (0, f"No development server of this directory runs. This is {described}:")
        assert request.startswith("✗ GET /fails")
        assert json.loads(show(capsys, "last", "--json")[1])["server"]["directory"] == str(here)

        monkeypatch.chdir(tmp_path)
        second.publish("http://127.0.0.1:1/observe", "t", "second")
        monkeypatch.chdir(other)
        status, text, said = show(capsys, "last")
        assert (status, text) == (2, "")
        assert said.startswith("no development server of this directory was found, but several of others: second at ")
        assert described in said
        assert said.endswith(
            "; pass --url, such as --url http://127.0.0.1:1/observe, or change to the directory of one\n"
        )
        other.rmdir()  # the working directory of this process: it is that of no server
        assert show(capsys, "last")[0] == 2
        monkeypatch.chdir(here)
    workers.close()
    second.close()


def test_the_file_is_for_this_user_only(tmp_path: Path) -> None:
    """It has mode 0600, in a directory of mode 0700; it is removed when the app is closed."""
    with shop(console_token=TOKEN):
        (path,) = (tmp_path / f"fastapi-observe-{os.geteuid()}").glob("console-*.json")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert json.loads(path.read_text())["token"] == TOKEN
    assert not path.exists()


def test_an_open_directory_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where another user may write, no file is trusted, and none is written; the app works."""
    open_root(str(tmp_path)).chmod(0o777)
    status, _, said = show(capsys, "last")
    assert status == 2
    assert said.startswith("development servers cannot be looked up: ")
    assert "chmod 700" in said
    with shop() as url:
        assert show(capsys, "last", "--url", url)[0] == 0


def test_a_file_that_others_can_read_is_ignored(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """So is one that is not JSON."""
    with shop():
        (path,) = (tmp_path / f"fastapi-observe-{os.geteuid()}").glob("console-*.json")
        path.chmod(0o644)
        assert show(capsys, "last")[0] == 2
        path.chmod(0o600)
        assert show(capsys, "last")[0] == 0
        path.write_text("[]")
        assert show(capsys, "last")[0] == 2


def test_a_token_opens_a_console_outside_development(capsys: pytest.CaptureFixture[str]) -> None:
    """It is found in the file, or given as `--token` or in the URL that is logged at start."""
    with shop(environment="production", console=True, console_token=TOKEN, sample_ratio=1.0) as url:
        assert show(capsys, "last")[0] == 0
        assert show(capsys, "last", "--url", url, "--token", TOKEN)[0] == 0
        assert show(capsys, "last", "--url", f"{url}/observe/?t={TOKEN}")[0] == 0
        status, _, said = show(capsys, "last", "--url", url, "--token", "another-token")
        assert status == 2
        assert said.startswith(f"there is no console for this client at {url}/observe (HTTP 404); the app must run")


def test_what_is_not_held(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown trace is exit status 1; anything that cannot be an id is 2."""
    with shop() as url:
        for name in ("0" * 32, "abc"):
            status, text, said = show(capsys, name, "--url", url)
            assert (status, text) == (1, "")
            assert said == f"{url}/observe holds no such trace: {name}; open it to see those it has\n"
        for name in ("../info", "a/b", "\x1b"):
            status, text, said = show(capsys, name, "--url", url)
            assert (status, text) == (2, "")
            assert said == f"invalid trace {name!r}; use last, slow, failed or a trace id\n"


def test_an_app_without_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no last request and no failed one yet."""
    app = FastAPI()
    with closing(install(app, environment="development", capture_logging=False)), serving(app) as port:
        for name, text in (("last", "no request yet; send the app one"), ("failed", "no request that has failed")):
            status, _, said = show(capsys, name, "--url", f"http://127.0.0.1:{port}")
            assert (status, said) == (1, f"http://127.0.0.1:{port}/observe holds {text}\n")


def test_a_server_is_found_while_it_runs(tmp_path: Path) -> None:
    """From its first request to its shutdown, and again from the next start: uvicorn ends without exit handlers."""
    app, found = FastAPI(), partial(running_servers, str(tmp_path))
    local = {"base_url": "http://127.0.0.1:8000", "client": ("127.0.0.1", 50000)}
    with closing(install(app, environment="development", multiprocess_directory=str(tmp_path))):
        with TestClient(app, **local) as client:  # type: ignore[arg-type]
            assert found() == []
            client.get("/")
            assert [server.url for server in found()] == ["http://127.0.0.1:8000/observe"]
        assert found() == []
        with TestClient(app, **local):  # type: ignore[arg-type]
            assert len(found()) == 1
        assert found() == []


@pytest.mark.parametrize("url", ["ftp://h/", "http://", "http://a b/", "http://u:p@h/", "http://h:0/", "http://[", "h"])
def test_unusable_urls(capsys: pytest.CaptureFixture[str], url: str) -> None:
    """They are refused with an example."""
    status, _, said = show(capsys, "last", "--url", url)
    assert (status, said) == (2, "--url is not an http or https URL; use one such as http://127.0.0.1:8000\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "the response is not a JSON object"),
        (b"[]", "the response is not a JSON object"),
        (b"[" * 100_000, "the response is not a JSON object"),
        (b'{"trace_id": "x"}', "is not the console of this version"),
        (b'{"trace_id": 1, "summaries": [], "spans": [{"name": []}], "lines": []}', "is not the console of this"),
    ],
)
def test_another_server(capsys: pytest.CaptureFixture[str], body: bytes, said: str) -> None:
    """What is not the console is reported as that, whatever it sends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as above
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        status, _, written = show(capsys, "last", "--url", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert status == 2
    assert said in written


def test_long_traces_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    """Fifty log lines are printed, further lines and spans that were not held are counted."""
    app = FastAPI(title="shop")
    observe = install(app, environment="development", capture_logging=False)

    @app.get("/")
    async def read(db: DatabaseDep, log: LogDep) -> None:
        for number in range(60):
            log.info("line", number=number)
        for number in range(600):
            async with db.query("SELECT", table=f"t{number % 3}"):
                pass

    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        httpx.get(url, timeout=60)
        until(lambda: httpx.get(f"{url}/observe/api/live", timeout=60).json()["requests"])
        observe.flush()
        text = show(capsys, "last", "--url", url)[1]
    observe.close()
    assert text.count("INFO  line") == 50
    assert "more lines\n" in text
    assert "further spans were not held\n" in text


def test_without_numeric_users(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows no file is written and none is looked for; `--url` works."""
    monkeypatch.delattr(os, "geteuid")
    with shop() as url:
        assert show(capsys, "last")[0] == 2
        assert show(capsys, "last", "--url", url)[0] == 0
