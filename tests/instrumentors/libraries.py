"""Libraries that OpenTelemetry's instrumentors see, and the servers that they talk to."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tools import needs, needs_package, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLING: Final[dict[str, dict[str, Any]]] = {
    "sampled": {"sample_ratio": 1.0},
    "pending": {"sample_ratio": 0.0, "tail_sampling": ["errors"]},
    "unsampled": {"sample_ratio": 0.0, "tail_sampling": None},
}
"""Options with which a trace is sampled, held until the request ends, and neither."""


def library(name: str) -> Any:
    """Import a library whose instrumentor the tests need; where it is missing, skip or fail as `needs` does."""
    return import_module(needs_package(name))


def instrumentor(name: str) -> str:
    """Return the name of an installed instrumentor; where it is missing, skip or fail as `needs` does."""
    library(f"opentelemetry.instrumentation.{name.partition('_aio')[0].removesuffix('_client').replace('-', '_')}")
    return name


@contextmanager
def redis_server() -> Iterator[int]:
    """Run a real Redis, whose port is yielded."""
    program = needs("redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:  # noqa: S603 - our own program
        try:
            until(lambda: _answers(port))
            yield port
        finally:
            process.terminate()
            process.wait(15)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
    except OSError:
        return False


class HttpService:
    """An HTTP server that responds to `/404` and the like with that status, everything else with 200."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.received: list[dict[str, str]] = []


@contextmanager
def http_service() -> Iterator[HttpService]:
    """Run a server that keeps the headers of its requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.received.append({name.lower(): value for name, value in self.headers.items()})
            status = self.path.partition("?")[0].strip("/")
            self.send_response(int(status) if status.isdecimal() else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service = HttpService(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
