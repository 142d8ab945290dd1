"""Holds that repeated starts of an app, in one process and under `uvicorn --reload`, leave nothing behind."""

from __future__ import annotations

import gc
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil
from collectors import Collector
from fastapi import FastAPI
from servers_of_workers import free_port
from starlette.testclient import TestClient
from tools import needs_package, until

from fastapi_observe import install

if TYPE_CHECKING:
    from collections.abc import Iterator

SOAK = "OBSERVE_SOAK" in os.environ
RELOADS: Final = 50 if SOAK else 3
LIFESPANS: Final = 1000 if SOAK else 100
HERE = Path(__file__).parents[1]

APP: Final = """
import os
import psutil
from fastapi import FastAPI
from fastapi_observe import install

app = FastAPI()
install(app, sample_ratio=1.0, log_file="app.log")


@app.get("/")
async def root():
    process = psutil.Process()
    sockets = len(process.net_connections("all"))
    return {"generation": GENERATION, "pid": process.pid, "threads": process.num_threads(), "sockets": sockets,
            "others": process.num_fds() - sockets}
"""


def write(directory: Path, generation: int) -> None:
    """Write the app, which triggers a reload."""
    (directory / "reloaded.py").write_text(f"GENERATION = {generation}\n{APP}", "utf-8")


@contextmanager
def reloading(
    directory: Path, *, in_python: bool = False, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `uvicorn --reload`, or a script that calls `uvicorn.run`, until the block ends."""
    port = free_port()
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    variables: dict[str, Any] = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(directory), **environment}
    variables["PYTHONDONTWRITEBYTECODE"] = "1"  # a cache of an app of the same size and second would be taken for it
    command = ["-m", "uvicorn", "reloaded:app", "--reload", "--port", str(port), "--log-level", "error"]
    if in_python:
        run = f'uvicorn.run("reloaded:app", reload=True, port={port}, log_level="error")'
        (directory / "serve.py").write_text(f'import uvicorn\nif __name__ == "__main__":\n    {run}\n', "utf-8")
        command = ["serve.py"]
    process = subprocess.Popen(  # noqa: S603 - a server of our own environment
        [sys.executable, *command], env=variables, start_new_session=True, stdout=subprocess.DEVNULL, cwd=directory
    )
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C does: the reloader ends with its child
        try:
            process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ask(port: int, generation: int) -> dict[str, Any]:
    """Send requests until this generation of the app responds."""
    deadline = monotonic() + 30
    while monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException, ValueError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            connection.close()
            if found["generation"] == generation:
                return found
        sleep(0.05)
    raise AssertionError(f"generation {generation} does not answer")


def settled(port: int, generation: int) -> dict[str, Any]:
    """Send requests until threads have started, and the files that they open, such as the log file, are open."""
    answers = []
    for _ in range(20):
        answers.append(ask(port, generation))
        sleep(0.02)
    return max(answers, key=lambda each: (int(each["others"]), int(each["threads"])))


def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """After each reload the app has as many threads and descriptors as before; no process and no file remains."""
    needs_package("uvicorn")
    write(tmp_path, 0)
    collector = Collector()
    environment: Any = {"OBSERVE_OTLP_ENDPOINT": collector.url, "OBSERVE_OTLP_PROTOCOL": "http/protobuf"}
    found = []
    with reloading(tmp_path, **environment) as (process, port):
        for generation in range(RELOADS + 1):
            if generation:
                write(tmp_path, generation)
            found.append(settled(port, generation))
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) <= 2  # the app, and the resource tracker of multiprocessing
    collector.close()
    assert len({each["pid"] for each in found}) == RELOADS + 1
    assert len({each["threads"] for each in found}) == 1
    others = [each["others"] for each in found]
    assert max(others) - min(others) <= 1, "a connection that opens between the two counts is among them"
    sockets = [each["sockets"] for each in found]
    assert max(sockets) - min(sockets) <= 2, "that to the collector, and that of the last answer, may be open or not"
    # The resource tracker of multiprocessing ends last.
    until(lambda: not [each for each in psutil.process_iter() if _is_of_session(each, process.pid)], 10)
    assert not list(tmp_path.glob("fastapi-observe-*/*"))
    sent = len((tmp_path / "app.log").read_text("utf-8").splitlines())
    assert collector.names["GET /"] == sum('"endpoint":"/"' in line for line in _lines(tmp_path)) > RELOADS, sent


def test_a_server_started_in_python_has_the_console(tmp_path: Path) -> None:
    """`uvicorn.run(..., reload=True)` is development, before and after a reload."""
    needs_package("uvicorn")
    write(tmp_path, 0)
    with reloading(tmp_path, in_python=True) as (_, port):
        for generation in range(2):
            if generation:
                write(tmp_path, generation)
            ask(port, generation)
            assert httpx.get(f"http://127.0.0.1:{port}/observe/", trust_env=False, timeout=60).status_code == 200


def _lines(directory: Path) -> list[str]:
    return (directory / "app.log").read_text("utf-8").splitlines()


def _is_of_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def test_many_lifespans_in_one_process_leave_nothing_behind() -> None:
    """Over many starts and ends in one process, threads, descriptors and memory are flat."""
    app = FastAPI()
    app.get("/")(lambda: "ok")
    collector = Collector()
    observe = install(app, otlp_endpoint=collector.url, otlp_protocol="http/protobuf", sample_ratio=1.0)
    process = psutil.Process()

    def live() -> None:
        with TestClient(app) as client:
            assert client.get("/").text == '"ok"'

    for _ in range(10):
        live()
    gc.collect()
    before = threading.active_count(), process.num_fds()
    memory = process.memory_info().rss
    for _ in range(LIFESPANS):
        live()
    gc.collect()
    # What a thread of the last one closes, it may close a moment later.
    until(lambda: threading.active_count() <= before[0] and process.num_fds() <= before[1], 10)
    assert process.memory_info().rss - memory < 8e6
    observe.close()
    collector.close()
    assert collector.names["GET /"] == LIFESPANS + 10
