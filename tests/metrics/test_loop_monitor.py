"""Blocked event loops: each stall is measured once, and led back to the line of the user's code."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request
from interpreter import run
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient
from tools import SOAK, needs_package, no_thread_starts

from fastapi_observe.metrics.loop_monitor import BEAT_INTERVAL, BlockedLoop, BlockedLoopReport, LoopMonitor
from fastapi_observe.records.frames import Location
from fastapi_observe.records.guard import UNATTRIBUTED_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

STALL = 0.3


def block(seconds: float = STALL) -> None:
    """Block the event loop."""
    time.sleep(seconds)


async def test_each_stall_is_measured_once() -> None:
    """The sum is that of the stalls but for half an interval each, and each of them is one sample."""
    lags: list[float] = []
    number = 20 if SOAK else 4
    monitor = LoopMonitor(lags.append)
    monitor.start(asyncio.get_running_loop())
    for at in range(number):
        await asyncio.sleep(0.05 + at * 0.007)
        block()
    await asyncio.sleep(0.1)
    monitor.stop()
    long = [lag for lag in lags if lag > STALL - 2 * BEAT_INTERVAL]
    assert len(long) == number
    assert sum(long) >= 0.95 * number * STALL - BEAT_INTERVAL


async def test_a_stall_is_led_back_to_its_line() -> None:
    """The innermost frame of the user's code is found while the loop is blocked."""
    found: list[BlockedLoop] = []
    monitor = LoopMonitor(lambda _: None, 0.05, found.append, in_progress=lambda: 7)
    monitor.start(asyncio.get_running_loop())
    await asyncio.sleep(0.05)
    block()
    await asyncio.sleep(0.1)
    monitor.stop()
    (blocked,) = [each for each in found if each.location is not None and each.location.function == "block"]
    assert blocked.location is not None
    assert blocked.location.file.endswith("test_loop_monitor.py")
    assert (blocked.record, blocked.in_progress) == (None, 7)


def test_a_loop_that_does_not_run_is_not_blocked() -> None:
    """Between two runs of a loop, as in a notebook, nothing is reported; a stall in a run is."""
    found: list[BlockedLoop] = []
    monitor = LoopMonitor(lambda _: None, 0.05, found.append)
    with asyncio.Runner() as runner:

        async def run(seconds: float) -> None:
            await asyncio.sleep(0.05)
            time.sleep(seconds)  # noqa: ASYNC251 - the stall
            await asyncio.sleep(0.05)

        runner.get_loop().call_soon(monitor.start, runner.get_loop())
        runner.run(run(0))
        block()
        runner.run(run(0))
        assert [each for each in found if each.seconds > STALL - 2 * BEAT_INTERVAL] == []
        runner.run(run(STALL))
        assert len([each for each in found if each.seconds > STALL - 2 * BEAT_INTERVAL]) == 1
        monitor.stop()


async def test_without_a_thread_stalls_are_measured() -> None:
    """Where no thread can be started, the stall is reported without its place."""
    found: list[BlockedLoop] = []
    monitor = LoopMonitor(lambda _: None, 0.05, found.append)
    with no_thread_starts():
        monitor.start(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        block()
        await asyncio.sleep(0.1)
        monitor.stop()
    assert [each.location for each in found if each.seconds > STALL - 2 * BEAT_INTERVAL] == [None]


async def test_processor_time_is_measured_with_a_stall() -> None:
    """It is that of the process, from the start of the timer to its run."""
    for used in (0.0, 0.4):
        found: list[BlockedLoop] = []
        readings = itertools.count()
        monitor = LoopMonitor(lambda _: None, 0.05, found.append, cpu_clock=lambda: next(readings) * used)  # noqa: B023
        monitor.start(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        block()
        await asyncio.sleep(0.1)
        monitor.stop()
        long = [each for each in found if each.seconds > STALL - 2 * BEAT_INTERVAL]
        assert {round(each.cpu_seconds, 9) for each in long} == {used}


LIBRARY = "/opt/site-packages/lib/worker.py"
STOP = "import time\n\nasync def poll(seconds):\n    time.sleep(seconds)\n"


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_code_of_a_library_is_named(name: str) -> None:
    """It sleeps in a task outside requests, so that it uses no processor time and no frame is the user's.

    A function without frames that the loop itself calls is known where the loop has frames.
    """
    found: list[BlockedLoop] = []
    monitor = LoopMonitor(lambda _: None, 0.05, found.append)
    library: dict[str, Any] = {}
    exec(compile(STOP, LIBRARY, "exec"), library)  # noqa: S102 - the code above

    async def work() -> None:
        loop = asyncio.get_running_loop()
        monitor.start(loop)
        await asyncio.sleep(0.1)
        await loop.create_task(library["poll"](STALL))
        await asyncio.sleep(0.1)
        loop.call_soon(time.sleep, STALL)
        await asyncio.sleep(STALL + 0.1)
        monitor.stop()

    loop = import_module(needs_package(name)).new_event_loop()
    try:
        loop.run_until_complete(work())  # this frame is the user's, and has called the loop
    finally:
        loop.close()
    long = [each for each in found if each.seconds > STALL - 2 * BEAT_INTERVAL]
    first, second = (each.location for each in long)
    assert first == Location(LIBRARY, 4, "poll")
    assert (second and second.function) == ("Handle._run" if name == "asyncio" else None)


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_an_idle_process_that_is_stopped_is_not_reported(name: str) -> None:
    """The time is measured. The loop waits for events, so that no code has blocked it."""
    script = """
        import asyncio, importlib, os, subprocess, sys
        from fastapi_observe.metrics.loop_monitor import LoopMonitor
        found = []
        async def work():
            monitor = LoopMonitor(lambda _: None, 0.05, found.append)
            monitor.start(asyncio.get_running_loop())
            await asyncio.sleep(0.1)
            stopping = f"sleep 0.1; kill -STOP {os.getpid()}; sleep 0.5; kill -CONT {os.getpid()}"
            await asyncio.to_thread(subprocess.run, ["sh", "-c", f"({stopping}) &"])
            await asyncio.sleep(1)
            monitor.stop()
        loop = importlib.import_module(sys.argv[1]).new_event_loop()
        loop.run_until_complete(work())
        print([(each.location, each.is_by_code) for each in found if each.seconds > 0.3])
    """
    result = run(script, needs_package(name))
    assert (result.stdout, result.stderr) == ("[(None, False)]\n", "")


def test_a_process_that_did_not_run_is_not_reported_as_blocked(caplog: pytest.LogCaptureFixture) -> None:
    """Without processor time there is no warning unless code was seen. The time is counted in each case."""
    counted: list[tuple[str, float]] = []
    report = BlockedLoopReport(lambda *_: "", lambda *values: counted.append(values))
    observed: list[BlockedLoop] = []
    report.observers.append(lambda blocked, *_: observed.append(blocked))
    location = Location("shop.py", 7, "pay")
    stopped, waits, computes = (
        BlockedLoop(0.5, place, None, 0, cpu) for place, cpu in ((None, 0.02), (location, 0.0), (None, 0.4))
    )
    for blocked in (stopped, waits, computes):
        report(blocked)
    assert counted == [("outside_requests", 0.5)] * 3
    assert observed == [waits, computes]
    assert [record.message.split(" by ")[1].split(" (")[0] for record in caplog.records] == [
        "shop.py:7 in pay",
        "code that could not be found",
    ]


def test_a_blocking_path_operation_is_named(observed: Callable[..., Seen]) -> None:
    """One warning names the line and the route, however often it happens; every block is counted."""
    app = FastAPI()

    @app.get("/blocks/{item}")
    async def blocks(item: int) -> int:
        block(0.2)
        return item

    async def passes(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    seen = observed(app, blocked_loop_threshold=0.05)
    with TestClient(app) as client:
        for item in range(3):
            client.get(f"/blocks/{item}")
            time.sleep(0.1)
        counted = seen.sample("event_loop_blocked_seconds_total", endpoint="/blocks/{item}")
    assert counted is not None
    assert counted >= 3 * 0.2 - 3 * BEAT_INTERVAL
    warnings = [line["message"] for line in seen.lines if line["message"].startswith("The event loop was blocked")]
    (warning,) = [message for message in warnings if "/blocks/{item}" in message]
    assert "test_loop_monitor.py:" in warning
    assert "in block (GET /blocks/{item}); requests in progress: 1" in warning


def blocked_by(seen: Seen, app: FastAPI, url: str) -> tuple[set[str], list[str]]:
    """Send a request. Return the endpoints of the time in which the loop was blocked, and the places in warnings."""
    with TestClient(app) as client:
        client.get(url)
        time.sleep(0.5)  # a task may block after its request
        endpoints = {dict(key)["endpoint"] for key in seen.samples("event_loop_blocked_seconds_total")}
    messages = [line["message"] for line in seen.lines if "loop was blocked" in line["message"]]
    return endpoints, [message.partition(" in ")[2].partition(";")[0] for message in messages if "/test_" in message]


def test_a_deep_recursion_is_led_back_to_its_request(observed: Callable[..., Seen]) -> None:
    """One of a library, which has more frames than are looked through for the caller of an operation."""
    app = FastAPI()
    library: dict[str, Any] = {"sleep": time.sleep}
    code = "def recurse(depth): return recurse(depth - 1) if depth else sleep(0.2)"
    exec(compile(code, json.__file__, "exec"), library)  # noqa: S102 - a function of the standard library, by its file

    @app.get("/recurses/{depth}")
    async def recurses(depth: int) -> None:
        library["recurse"](depth)

    seen = observed(app, blocked_loop_threshold=0.05)
    endpoints, places = blocked_by(seen, app, "/recurses/400")
    assert "/recurses/{depth}" in endpoints
    assert any(place.endswith("recurses (GET /recurses/{depth})") for place in places)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the context of a task cannot be read")
def test_a_task_is_led_back_to_the_request_that_waits_for_it(observed: Callable[..., Seen]) -> None:
    """Also one of several. One that outlives its request is outside of it, and so is a detached one."""
    app = FastAPI()
    tasks: list[asyncio.Task[None]] = []

    async def blocks(delay: float = 0) -> None:
        await asyncio.sleep(delay)
        block(0.2)

    @app.get("/waits")
    async def waits() -> None:
        await asyncio.gather(asyncio.sleep(0), asyncio.create_task(blocks()))

    @app.get("/leaves")
    async def leaves() -> None:
        tasks.append(asyncio.create_task(blocks(0.05)))

    @app.get("/detaches")
    async def detaches() -> None:
        with seen.observe.detached():
            await asyncio.create_task(blocks())

    for path, endpoint in (("/leaves", "outside_requests"), ("/detaches", "outside_requests"), ("/waits", "/waits")):
        seen = observed(app, blocked_loop_threshold=0.05)
        endpoints, places = blocked_by(seen, app, path)
        seen.observe.close()
        assert endpoint in endpoints
        shown = "outside of a request" if endpoint == "outside_requests" else f"GET {endpoint}"
        assert any(place.endswith(f"block ({shown})") for place in places)
        assert path == endpoint or path not in endpoints


def test_it_can_be_switched_off(observed: Callable[..., Seen]) -> None:
    """Without a threshold nothing looks at the stack; the lag is measured."""
    app = FastAPI()

    @app.get("/")
    async def root() -> None:
        block(0.2)

    seen = observed(app, blocked_loop_threshold=None)
    with TestClient(app) as client:
        client.get("/")
        time.sleep(0.1)
        assert (seen.sample("asyncio_event_loop_lag_seconds_sum") or 0.0) > 0.1
    assert seen.samples("event_loop_blocked_seconds_total") == {}
    assert not [line for line in seen.lines if "blocked" in line["message"]]


async def test_a_lag_sample_that_fails() -> None:
    """A failed sample is counted, and the next one is scheduled."""

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    before = UNATTRIBUTED_ERRORS.counts.get("saturation", 0)
    monitor = LoopMonitor(broken, interval=0.0001)
    monitor.start(asyncio.get_running_loop())
    while UNATTRIBUTED_ERRORS.counts.get("saturation", 0) < before + 2:  # noqa: ASYNC110 - a timer sets no event
        await asyncio.sleep(0.001)
    monitor.stop()
