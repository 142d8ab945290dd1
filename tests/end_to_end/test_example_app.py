"""Holds that the example shop works as a new user starts it: `python -m example_app`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import psutil
import pytest
from pools import running_postgresql
from sqlalchemy import func, select
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

from example_app import database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
RUNNING = "log lines from now on"
TIMEOUT_SECONDS = 120


class Example:
    """One `python -m example_app` in a separate process group, on free ports, in its own directory."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "example_app", "--shop-port", "0", "--payments-port", "0", *arguments],
            cwd=ROOT,
            env=clean_environment() | {"TMPDIR": str(directory)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._watchdog = threading.Timer(TIMEOUT_SECONDS, self.kill)
        self._watchdog.start()

    def read_until(self, text: str) -> str:
        """Return its output up to the line with `text`."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        pytest.fail(f"the example ended without {text!r}:\n{''.join(lines)}")

    def wait(self) -> tuple[int, str]:
        """Return its exit code and the rest of its output."""
        output, _ = self.process.communicate(timeout=TIMEOUT_SECONDS)
        return self.process.returncode, output

    def children(self) -> list[psutil.Process]:
        """Return the processes of both services."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """Kill the process group."""
        self._watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that affect the example.

    It switches on one instrumentor: the environment of the tests has all, that of a user of the example has this one.
    """
    ours = ("OBSERVE_", "OTEL_", "DATABASE_URL", "COVERAGE_", "PROMETHEUS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"OBSERVE_INSTRUMENT": "threading"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Example]]:
    """Start examples, which end with the test."""
    started: list[Example] = []

    def begin(*arguments: str, **environment: str) -> Example:
        started.append(Example(tmp_path, *arguments, **environment))
        return started[-1]

    yield begin
    for example in started:
        example.kill()


class RunningExample(NamedTuple):
    """An example whose tour has ended: both services serve."""

    port: int
    directory: Path
    output: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExample]:
    """Start one example for the tests that only look at it."""
    directory = tmp_path_factory.mktemp("example")
    example = Example(directory)
    try:
        output = example.read_until(RUNNING)
        yield RunningExample(shop_port(output), directory, output)
    finally:
        example.kill()


def shop_port(output: str) -> int:
    """Return the port of the shop that the output names."""
    found = re.search(r"http://127\.0\.0\.1:(\d+)/docs", output)
    assert found is not None, output
    return int(found[1])


TREE = [
    "POST /orders/{order_id}/checkout",
    "  SELECT customers",
    "  SELECT orders",
    "  charge card",
    "    POST /charges payments",
    "      POST /charges",
    "        ask the card network",
    "        INSERT charges",
    "  UPDATE orders",
    "  background send_confirmation",
    "    send_confirmation mail",
]
"""The spans of a checkout; the push to the WebSocket starts before or after the mail."""


def shown_lines(output: str, service: str) -> list[dict[str, Any]]:
    """Return the JSON log lines of one service in the tour."""
    return [json.loads(found) for found in re.findall(rf"^  {service} +(\{{.*\}})$", output, re.MULTILINE)]


def assert_shows_one_checkout(output: str) -> None:
    """Check that trace, log and metrics of the paid checkout are in the tour and agree."""
    found = re.search(r"Trace ([0-9a-f]{32})", output)
    assert found is not None, output
    shop, payments = shown_lines(output, "shop"), shown_lines(output, "payments")
    assert {line["trace_id"] for line in shop + payments} == {found[1]}
    messages = {line["message"] for line in shop}
    assert {"order paid", "HTTP request completed", "confirmation mail for order"} <= {
        re.sub(r" \d+ sent$", "", message) for message in messages
    }
    assert {"card charged", "HTTP request completed"} <= {line["message"] for line in payments}
    drawn = re.findall(r"^  [a-z ]{8} [A-Z ]{8} ( *\S.*?) +[0-9.]+ ms$", output, re.MULTILINE)
    assert drawn.count("  push order event") == 1
    assert [line for line in drawn if line != "  push order event"] == TREE
    (whole,) = [line["fields"] for line in shop if line["message"] == "HTTP request completed"]
    assert (whole["db_count"], whole["external_count"]) == (3, 1)
    assert whole["external_ms"] + whole["self_ms"] <= whole["duration_ms"]
    for sample in (
        r'http_requests_total\{method="POST",endpoint="/orders/\{order_id\}/checkout",status_code="200"\} 1',
        r"orders_created_total 1",
        r'revenue_generated_total\{currency="EUR"\} 44\.13',
        r"cart_size_sum 4",
        r'external_requests_total\{service="payments",operation="POST /charges",outcome="ok"\} 1',
        r'external_requests_total\{service="payments",operation="GET /charges/\{charge_id\}",outcome="ok"\} 1',
        r'operations_total\{operation="charge card",outcome="ok"\} 2',
        r'db_connections_active\{pool="shop"\} 0',
        r"background_tasks_total\{.*\} 1",
    ):
        assert re.search(rf"^  {sample}(\.0)?$", output, re.MULTILINE), sample


def assert_shows_both(output: str) -> None:
    """Check the complete tour."""
    checkout, found, problems = output.partition("Found without configuration")
    assert_shows_one_checkout(checkout)
    assert_shows_what_was_found(found + problems)


def assert_shows_what_was_found(output: str) -> None:
    """Check that N+1 query, slow query and rejected call are in the tour, and that the signals of the N+1 agree."""
    lines = {line["message"]: line for line in shown_lines(output, "shop")}
    repeated = lines["database query repeated in one request"]["fields"]
    assert repeated["endpoint"] == "/reports/customers-slow"
    assert repeated["count"] > 10
    attributes = dict(re.findall(r"^  span +fastapi_observe\.(\w+) = (.*)$", output, re.MULTILINE))
    assert json.loads(attributes["repeated_queries"]) == [repeated["db.query.text"]]
    assert int(attributes["db_count"]) == repeated["count"] + 1
    assert re.search(r'^  db_repeated_queries_total\{endpoint="/reports/customers-slow"\} 1$', output, re.MULTILINE)
    assert lines["slow database query"]["fields"]["duration_ms"] >= 100
    assert "WITH RECURSIVE" in lines["slow database query"]["fields"]["db.query.text"]
    assert lines["external call failed"]["fields"]["outcome"] == "client_error"


def test_one_command_shows_a_checkout_in_three_signals(start: Callable[..., Example]) -> None:
    """`python -m example_app --once` shows one trace through both processes with its lines and metrics, and exits 0."""
    code, output = start("--once").wait()
    assert code == 0, output
    assert "Traceback" not in re.sub(r"\{.*\}", "", output)
    assert_shows_both(output)


def test_the_report_in_one_query_says_what_the_repeating_one_says(running: RunningExample) -> None:
    """Both reports return the same numbers; one is a named query, the other is counted as N+1."""
    address = f"http://127.0.0.1:{running.port}"
    with httpx.Client(base_url=address, trust_env=False, timeout=TIMEOUT_SECONDS) as client:
        report = client.get("/reports/customers").json()
        assert len(report) > 10
        assert client.get("/reports/customers-slow").json() == report
        metrics = client.get("/metrics").text
    assert re.search(r'^db_queries_total\{operation="REPORT",table="orders"\} 2$', metrics, re.MULTILINE)
    repeated = re.findall(r'^db_repeated_queries_total\{endpoint="(.*)"\} (\d+)$', metrics, re.MULTILINE)
    assert repeated == [("/reports/customers-slow", "2")]


def test_threads_of_a_report_are_in_its_trace(running: RunningExample) -> None:
    """The instrumentor of `threading` is switched on by `install`; the spans in threads are below the server span."""
    address = f"http://127.0.0.1:{running.port}"
    trace_id = httpx.get(f"{address}/reports/slow", trust_env=False, timeout=TIMEOUT_SECONDS).headers["traceresponse"][
        3:35
    ]
    (written,) = running.directory.glob("example-shop-*/shop.spans")
    spans = [span for line in written.read_text().splitlines() if (span := json.loads(line))["trace_id"] == trace_id]
    (server,) = [span for span in spans if span["kind"] == "SERVER"]
    crunched = [span for span in spans if span["name"] == "crunch numbers"]
    assert sorted(span["attributes"]["part"] for span in crunched) == ["customers", "orders"]
    assert {span["parent_id"] for span in crunched} == {server["span_id"]}


def test_no_secret_is_in_the_logs(running: RunningExample) -> None:
    """No log line and no span has passwords, tokens or mail addresses of customers."""
    written = "".join(path.read_text() for path in running.directory.glob("example-shop-*/*.log"))
    written += "".join(path.read_text() for path in running.directory.glob("example-shop-*/*.spans"))
    assert '"message":"customer registered"' in written
    for secret in ("ada.", "a wrong guess", "Bearer ", "[parameters:"):
        assert secret not in written + running.output


def test_a_taken_port_is_reported_before_anything_runs(running: RunningExample, start: Callable[..., Example]) -> None:
    """A second start on the same port names the option to use and exits with 1."""
    port = running.port
    code, output = start("--payments-port", str(port)).wait()
    assert code == 1
    assert output == f"payments cannot listen on 127.0.0.1:{port}: Address already in use; use --payments-port 0\n"


def assert_ended(example: Example, children: list[psutil.Process], directory: Path) -> None:
    """Check that an example which got a signal ends with exit code 0, without a traceback, and leaves nothing."""
    code, output = example.wait()
    assert code == 0, output
    assert "Traceback" not in output
    assert output.endswith("stopped\n")
    assert not any(child.is_running() for child in children)
    assert list(directory.glob("example-shop-*")) == []


@pytest.mark.parametrize("whole_group", [True, False])
def test_an_interrupt_stops_both_services(start: Callable[..., Example], tmp_path: Path, *, whole_group: bool) -> None:
    """SIGINT ends the example, also where the services have it as well, as after Ctrl-C in a terminal."""
    example = start()
    example.read_until(RUNNING)
    children = example.children()
    assert len(children) == 2
    (os.killpg if whole_group else os.kill)(example.process.pid, signal.SIGINT)
    assert_ended(example, children, tmp_path)


def test_an_open_websocket_does_not_hold_up_the_end(start: Callable[..., Example], tmp_path: Path) -> None:
    """After SIGTERM a client at /ws/orders receives 1012 (service restart), and the example ends."""
    example = start()
    port = shop_port(example.read_until(RUNNING))
    children = example.children()
    sock = socket.create_connection(("127.0.0.1", port))
    with connect(f"ws://127.0.0.1:{port}/ws/orders", sock=sock) as events:
        example.process.terminate()
        with pytest.raises(ConnectionClosed) as closed:
            events.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART
    assert_ended(example, children, tmp_path)


def test_a_service_that_fails_to_start_is_reported(start: Callable[..., Example]) -> None:
    """If the database is down, the exit code is 1 and the last lines of the service are shown."""
    code, output = start("--once", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none").wait()
    assert code == 1
    assert output.startswith("payments did not start; its last lines:")
    assert "Connect" in output


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Run a real PostgreSQL for this file."""
    with running_postgresql() as url:
        yield url


def test_the_same_on_postgresql(start: Callable[..., Example], postgresql: str) -> None:
    """With DATABASE_URL both services use PostgreSQL; the output is the same, also on the second start."""
    for _ in range(2):
        code, output = start("--once", DATABASE_URL=postgresql).wait()
        assert code == 0, output
        assert_shows_both(output)


async def test_workers_make_and_fill_the_database_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two concurrent starts, one creates and fills the tables."""
    monkeypatch.setenv("EXAMPLE_DIR", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)

    async def worker() -> int:
        engine = database.make_engine("shop")
        async with database.open_database(engine, database.ShopTables) as sessions:
            await database.seed(sessions)
            async with sessions() as session:
                return await session.scalar(select(func.count()).select_from(database.Product)) or 0

    assert await asyncio.gather(*(worker() for _ in range(6))) == [4] * 6
