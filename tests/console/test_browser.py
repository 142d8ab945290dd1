"""The console in a real browser: Chromium against a real uvicorn."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tools import needs, needs_package, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

APP = """
import asyncio, logging
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi_observe import DatabaseDep, ExternalDep, LogDep, install

HOSTILE = {hostile!r}
app = FastAPI(title="shop {hostile_title}")
install(app, log_level="debug")

@app.get("/orders/{{order_id}}")
async def read(order_id: int, db: DatabaseDep, log: LogDep):
    for _ in range(12):
        async with db.query("SELECT", table="items", statement="SELECT * FROM items WHERE id = 7"):
            await asyncio.sleep(0.001)
    log.info("order read", order_id=order_id)
    return order_id

@app.get("/fails")
async def fails():
    raise RuntimeError("out of luck")

@app.get("/hostile")
async def hostile(db: DatabaseDep, external: ExternalDep, log: LogDep):
    log.warn(HOSTILE, value=HOSTILE)
    logging.getLogger(HOSTILE).error(HOSTILE)
    async with db.query("SELECT", table="a", statement="SELECT '" + HOSTILE + "' FROM " + HOSTILE) as query:
        query.add_details(**{{HOSTILE[:100]: HOSTILE, "large": "x" * 1_000_000}})
    raise RuntimeError(HOSTILE)

@app.get("/fast")
async def fast():
    return 1

@app.get("/stream")
async def stream():
    async def chunks():
        yield "a"
        await asyncio.sleep(20)
    return StreamingResponse(chunks())
"""

HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>\u202egnp.exe\u2066\x00${7*7}{{7*7}}' \" </pre>"
)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the app in a uvicorn in development."""
    text = APP.format(hostile=HOSTILE, hostile_title="<b>bold</b>")
    (directory / "browser_app.py").write_text(textwrap.dedent(text), "utf-8")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "FASTAPI_ENV": "development", "PYTHONPATH": f"{root}{os.pathsep}{directory}"}
    command = [sys.executable, "-m", "uvicorn", "browser_app:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            until(lambda: answers(port), 60)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def answers(port: int) -> bool:
    """Return whether the server is there."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/fast", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    path = shutil.which("chromium") or needs("chromium")
    needs_package("playwright")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - may be missing

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[*flags, "--disable-sync", "--no-first-run"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the app for all tests that only look."""
    port = free_port()
    with serving(tmp_path_factory.mktemp("browser"), port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def page_of(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open the console; fail if the browser reports an error or a violation of the policy."""
    context: BrowserContext = browser.new_context(**options)
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(f"{url}/observe/")
    try:
        yield page
        assert messages == []
    finally:
        context.close()


def get(url: str, path: str) -> None:
    """Send one request to the app."""
    httpx.get(url + path, trust_env=False, timeout=30)


def test_a_request_is_shown_within_two_seconds(browser: Browser, server: str) -> None:
    """The page polls: a request that was just sent appears, and its trace opens as a waterfall with its log lines."""
    with page_of(browser, server) as page:
        page.wait_for_selector("header h1")
        get(server, "/orders/41")
        page.wait_for_selector(".requests button:has-text('/orders/41')", timeout=10_000)
        page.click(".requests button:has-text('/orders/41')")
        page.wait_for_selector(".fall:has-text('SELECT items ×12')")  # noqa: RUF001 - the page has it
        page.wait_for_selector(".logline:has-text('order read')")
        page.click(".fall:has-text('SELECT items')")
        assert page.locator(".fall:has-text('SELECT items')").count() == 12
        page.click(".fall:has-text('SELECT items') >> nth=0")
        page.wait_for_selector("text=SELECT * FROM items WHERE id = ?")
        page.wait_for_selector("text=browser_app.py:")
        page.wait_for_selector(".fix li:has-text('N+1')")


def test_the_filter_and_the_keyboard(browser: Browser, server: str) -> None:
    """Requests are filtered by status, text and duration; everything works without a pointer."""
    get(server, "/fails")
    get(server, "/fast?mark=1")
    with page_of(browser, server) as page:
        page.wait_for_selector(".requests button:has-text('mark=1')")
        page.keyboard.press("/")
        page.keyboard.type("5xx")
        page.keyboard.press("Escape")
        shown = page.locator(".requests .bad")
        until(lambda: page.locator(".requests button").count() == shown.count() > 0)
        page.keyboard.press("j")
        page.wait_for_selector(".requests button[aria-current=true]")
        page.wait_for_selector(".frames >> text=browser_app.py")
        assert re.search(r"#trace=[0-9a-f]{32}$", page.url)
        page.keyboard.press("p")
        page.wait_for_selector("[role=status]:has-text('paused')")
        page.keyboard.press("p")
        for _ in range(12):
            page.keyboard.press("Tab")
            focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert focused != "none" or page.evaluate("document.activeElement === document.body")


def test_a_permalink_opens_its_trace(browser: Browser, server: str) -> None:
    """The address with a trace id leads to that trace; an unknown one says that it is not held."""
    get(server, "/fails")
    live = httpx.get(f"{server}/observe/api/live", trust_env=False, timeout=60).json()
    trace_id = next(each["trace_id"] for each in live["requests"] if each["path"] == "/fails")
    with page_of(browser, server) as page:
        page.goto(f"{server}/observe/#trace={trace_id}")
        page.reload()
        page.wait_for_selector("text=out of luck")
        page.wait_for_selector("li.own >> text=browser_app.py")
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server}/observe/#trace={'a' * 32}")
    page.wait_for_selector("text=This trace is not held")
    context.close()


def test_hostile_text_is_shown_as_text(browser: Browser, server: str) -> None:
    """Markup, bidirectional marks and large values of logs, SQL, names and exceptions do nothing but appear."""
    httpx.get(
        f"{server}/hostile",
        params={"q": HOSTILE},
        headers={"user-agent": "<script>window.pwned=1</script>"},
        trust_env=False,
        timeout=60,
    )
    with page_of(browser, server) as page:
        page.click(".requests button:has-text('/hostile')")
        page.wait_for_selector(".logline:has-text('<script>')")
        for row in range(page.locator(".fall").count()):
            page.locator(".fall").nth(row).click()
        page.wait_for_timeout(300)
        assert page.evaluate("window.pwned") is None
        text = page.evaluate("document.body.innerText")
        assert "<script>window.pwned=1</script>" in text
        assert "\u202e" not in text
        assert "\\u202e" in text
        assert len(text) < 200_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, server: str, scheme: Any) -> None:
    """axe-core finds nothing, with a trace open, in both schemes; at 320 pixels nothing scrolls sideways."""
    needs_package("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - may be missing

    get(server, "/fails")
    with page_of(browser, server, color_scheme=scheme) as page:
        page.click(".requests button:has-text('/fails')")
        page.wait_for_selector(".frames")
        page.click("summary:has-text('About this app')")
        page.wait_for_selector("td:has-text('metrics access')")
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
        page.set_viewport_size({"width": 320, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_stream_is_shown_while_it_runs(browser: Browser, server: str) -> None:
    """A response that has not ended is in the list, with the time since it began."""
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("GET", f"{server}/stream"),
        page_of(browser, server) as page,
    ):
        page.wait_for_selector(".requests li:has-text('/stream'):has-text('…')")


def test_a_restart_of_the_server(browser: Browser, tmp_path: Path) -> None:
    """The open page goes on with the new process; earlier requests stay and are marked."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    context = browser.new_context()
    page = context.new_page()
    with serving(tmp_path, port):
        get(url, "/fast?before=1")
        page.goto(f"{url}/observe/")
        page.wait_for_selector(".requests button:has-text('before=1')")
    with serving(tmp_path, port):
        get(url, "/fast?after=1")
        page.wait_for_selector(".requests button:has-text('after=1')", timeout=60_000)
        page.wait_for_selector(".requests .old:has-text('before=1')")
    context.close()


def test_many_requests_while_it_is_open(browser: Browser, server: str) -> None:
    """10,000 requests leave the lists of the page and the store bounded."""
    number = 10_000 if "OBSERVE_SOAK" in os.environ else 2_000
    with page_of(browser, server) as page, httpx.Client(trust_env=False, timeout=60) as client:
        page.wait_for_selector("header h1")
        for _ in range(number):
            client.get(f"{server}/fast")
        page.wait_for_function("document.querySelectorAll('.requests li').length >= 100")
        assert page.locator(".requests li").count() <= 250
        held = httpx.get(f"{server}/observe/api/info", trust_env=False, timeout=60).json()["held"]
        assert held["traces"] <= 450
        assert held["bytes"] <= 16 * 1_048_576
        assert page.evaluate("document.querySelectorAll('*').length") < 12_000
