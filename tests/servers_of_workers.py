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

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent

COMMANDS = {
    "uvicorn": ("uvicorn", "worker_app:app", "--workers", "{workers}", "--port", "{port}", "--log-level", "error"),
    "gunicorn": ("gunicorn", "-w", "{workers}", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}",
                 "--log-level", "error", "worker_app:app"),
    "gunicorn --preload": ("gunicorn", "--preload", "-w", "{workers}", "-k", "uvicorn_worker.UvicornWorker", "-b",
                           "127.0.0.1:{port}", "--log-level", "error", "worker_app:app"),
    "hypercorn": ("hypercorn", "-w", "{workers}", "-b", "127.0.0.1:{port}", "--log-level", "error", "worker_app:app"),
    "granian": ("granian", "--interface", "asgi", "--workers", "{workers}", "--host", "127.0.0.1", "--port", "{port}",
                "--respawn-failed-workers", "--log-level", "error", "worker_app:app"),
}  # fmt: skip
"""How each server is told to run so many workers."""


class Server:
    """A server and its port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
        self.process = process
        self.port = port
        self.directory = directory

    def get(self, path: str, timeout: float = 10.0) -> tuple[int, bytes]:
        """Ask on a connection of its own, so that any worker may answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def count(self, times: int) -> list[int]:
        """Send requests; return the pids that answered."""
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
        """Send requests until so many workers have answered; return how many were sent."""
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
