"""Real servers with several worker processes, in a process group of their own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tools import needs_package

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent

WORKERS = 3
UVICORN = ("uvicorn", "{app}", "--port", "{port}")
GUNICORN = ("gunicorn", "-w", "{workers}", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}", "{app}")
SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn": UVICORN,
    "uvicorn --workers": (*UVICORN, "--workers", "{workers}"),
    "gunicorn": GUNICORN,
    "gunicorn --preload": (*GUNICORN, "--preload"),
    "hypercorn": ("hypercorn", "-w", "{workers}", "-b", "127.0.0.1:{port}", "{app}"),
    "granian": ("granian", "--interface", "asgi", "--workers", "{workers}", "--host", "127.0.0.1", "--port", "{port}",
                "--respawn-failed-workers", "{app}"),
}  # fmt: skip
"""Command of each server, all but the first with WORKERS processes."""

COMMANDS = {
    name: (*(part.replace("{app}", "worker_app:app") for part in SERVERS[server]), "--log-level", "error")
    for name, server in (("uvicorn", "uvicorn --workers"), *((name, name) for name in [*SERVERS][2:]))
}
"""Command of each server for `worker_app`."""

SPAWN = "import multiprocessing; multiprocessing.set_start_method('spawn'); import granian.cli as g; g.entrypoint()"
COMMANDS["granian, spawned"] = ("python", "-c", SPAWN, *COMMANDS["granian"][1:])
"""Granian as it starts its workers on Python 3.14 by default, and on macOS."""


class Server:
    """A server and its port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
        self.process = process
        self.port = port
        self.directory = directory

    def get(self, path: str, timeout: float = 10.0, accept: str = "*/*") -> tuple[int, bytes]:
        """Send a request on a new connection, so that any worker may handle it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"accept": accept})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def count(self, times: int) -> list[int]:
        """Send requests. Returns the pids of the workers that handled them."""
        return [json.loads(self.get(f"/count/{number}")[1])["pid"] for number in range(times)]

    def samples(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Scrape: samples by name and sorted labels."""
        status, body = self.get("/metrics")
        assert status == 200
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def total(self, name: str) -> float:
        """Scrape: the sum of one series name."""
        return sum(self.samples().get(name, {}).values())

    def spread(self, workers: int) -> int:
        """Send requests until each of so many workers has handled one. Returns the number of requests."""
        pids: set[int] = set()
        sent = 0
        while len(pids) < workers and sent < 3000:
            pids.update(self.count(20))
            sent += 20
        assert len(pids) == workers
        return sent


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving_workers(name: str, directory: Path, workers: int = 3, **environment: str) -> Iterator[Server]:
    """Run a server until the block ends; SIGTERM then ends it."""
    port = free_port()
    command = [part.format(port=port, workers=workers) for part in COMMANDS[name]]
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    variables: dict[str, Any] = {
        **os.environ, "PYTHONPATH": paths, "WORKERS_DIRECTORY": str(directory), "HOME": str(directory), **environment
    }  # fmt: skip
    executable = Path(sys.executable).parent / command[0]
    process = subprocess.Popen(  # noqa: S603 - a server of our own environment
        [executable, *command[1:]], env=variables, start_new_session=True, stdout=subprocess.DEVNULL, cwd=directory
    )
    server = Server(process, port, directory)
    try:
        deadline = monotonic() + 30
        while True:
            with suppress(OSError, http.client.HTTPException):
                if server.get("/metrics")[0] == 200:
                    break
            assert process.poll() is None
            assert monotonic() < deadline
            sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Crew(Server):
    """A server of `chaos_app` with all its processes, and the number of requests that it has handled."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, directory: Path, name: str) -> None:
        super().__init__(process, port, directory)
        self.name = name
        self.workers = WORKERS if "{workers}" in SERVERS[name] else 1
        self.answered = 0
        self.pids: set[int] = set()

    @property
    def errors(self) -> str:
        """Contents of stderr."""
        return (self.directory / "stderr").read_text("utf-8", "replace")

    def members(self) -> list[psutil.Process]:
        """Return the processes of the session that have not ended."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def meet(self) -> None:
        """Send requests until every worker has handled one: a signal may be lost on a worker that is starting."""
        self.pids = set()
        deadline = monotonic() + 60
        while len(self.pids) < self.workers:
            assert monotonic() < deadline, self.errors
            assert self.process.poll() is None, self.errors
            try:
                status, body = self.get(
                    "/pid", 60
                )  # a request whose client stops waiting may still be served and counted
            except (OSError, http.client.HTTPException):
                sleep(0.01)
                continue
            assert status == 200
            self.answered += 1
            self.pids.add(int(body))

    def ended(self, within: float) -> float:
        """Wait until no process of it is left. Returns the seconds that it took."""
        began = monotonic()
        self.process.wait(within)
        while left := self.members():
            assert monotonic() < began + within, left
            sleep(0.005)
        return monotonic() - began


@contextmanager
def crew(name: str, directory: Path, *, observed: bool, **environment: str) -> Iterator[Crew]:
    """Run `chaos_app` in a server until the block ends, in a session of its own that is then killed, if it still runs.

    Skips the test where the server is not installed. The directory is its home and takes what it prints on stderr.
    """
    for needed in {"gunicorn": ("gunicorn", "uvicorn_worker")}.get(SERVERS[name][0], SERVERS[name][:1]):
        needs_package(needed)
    port = free_port()
    command = [part.format(app="chaos_app:app", port=port, workers=WORKERS) for part in SERVERS[name]]
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    variables = {**os.environ, "PYTHONPATH": paths, "HOME": str(directory), "OBSERVED": str(int(observed)),
                 "OBSERVE_MULTIPROCESS_DIRECTORY": str(directory), **environment}  # fmt: skip
    with (directory / "stderr").open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - a server of our own environment
            [sys.executable, "-m", *command],
            env=variables, cwd=directory, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    try:
        server = Crew(process, port, directory, name)
        server.meet()
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
