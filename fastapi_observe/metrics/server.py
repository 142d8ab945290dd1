"""The own port of the metrics: a small HTTP server in threads, away from the app's port and its clients."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.requests.access import CHALLENGE, MetricsAccess

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

    Render = Callable[[str, str], tuple[list[tuple[bytes, bytes]], bytes]]

MAX_CONNECTIONS: Final = 16
"""Connections that are served at one time."""

REQUEST_TIMEOUT: Final = 5.0
"""Seconds that a connection may take to ask, and then to read the answer."""


class MetricsServer:
    """Answers `metrics_path` on `metrics_host`:`metrics_port`.

    Worker processes of one server share the port (`SO_REUSEPORT`): whichever the system chooses answers for all. A
    port that cannot be opened is told in one line, and the app goes on.
    """

    def __init__(self, settings: ObserveSettings, render: Render, faults: InternalErrors) -> None:
        self._settings = settings
        self._render = render
        self._faults = faults
        self._pid = 0
        self._server: _Server | None = None

    @property
    def port(self) -> int | None:
        """The port that is open in this process; None if none is."""
        return self._server.server_address[1] if self._server is not None and self._pid == os.getpid() else None

    def start(self, *, shared: bool) -> None:
        """Open the port, unless this process has opened it, or failed to; `shared`: others of this server do too."""
        settings = self._settings
        if not settings.metrics or settings.metrics_port is None or self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._server = None  # what a forked child has of its parent's is not its own
        try:
            self._server = _Server(settings, self._render, self._faults, shared=shared)
        except OSError as exc:
            logging.getLogger("fastapi_observe").error(  # noqa: TRY400 - the reason is all there is to say
                "metrics_port %d of %s cannot be opened: %s; nobody can read the metrics: "
                "choose another port, or end what uses it",
                settings.metrics_port,
                settings.metrics_host,
                exc.strerror or exc,
            )
            return
        threading.Thread(target=self._server.serve_forever, name="fastapi-observe-metrics", daemon=True).start()

    def stop(self) -> None:
        """Close the port; `start` opens it again."""
        server, self._server = self._server, None
        if server is not None and self._pid == os.getpid():
            server.shutdown()
            server.server_close()
        self._pid = 0


class _Server(ThreadingMixIn, HTTPServer):
    """A server whose threads end with the process."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, settings: ObserveSettings, render: Render, faults: InternalErrors, *, shared: bool) -> None:
        host = settings.metrics_host
        self.path = settings.metrics_path
        token = settings.metrics_token
        self.access = MetricsAccess(settings.metrics_access, None if token is None else token.get_secret_value())
        self.render = render
        self.faults = faults
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.allow_reuse_port = shared and hasattr(socket, "SO_REUSEPORT")
        self._lock = threading.Lock()
        self._reading: dict[Any, float] = {}  # since when, the oldest first
        self._answered: set[Any] = set()
        super().__init__((host, settings.metrics_port or 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own.

        Where there are too many, the one that has been asking longest gives way: a scraper asks at once. All being
        answered already, the new one is closed.
        """
        with self._lock:
            is_full = len(self._reading) + len(self._answered) >= MAX_CONNECTIONS
            if is_full and self._reading:
                self._drop(next(iter(self._reading)))
                is_full = False
            if not is_full:
                self._reading[request] = monotonic()
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Break off those that take too long to ask; called at least twice a second."""
        with self._lock:
            late = monotonic() - REQUEST_TIMEOUT
            for request in [request for request, since in self._reading.items() if since < late]:
                self._drop(request)

    def mark_request_read(self, request: Any) -> bool:
        """Note that a connection has sent its request; tell whether it was there in time."""
        with self._lock:
            in_time = self._reading.pop(request, None) is not None
            if in_time:
                self._answered.add(request)
            return in_time

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and make room for the next."""
        with self._lock:
            self._reading.pop(request, None)
            self._answered.discard(request)
        super().shutdown_request(request)

    def _drop(self, request: Any) -> None:
        """Break off what is still asking; its thread then closes it."""
        del self._reading[request]
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    timeout = REQUEST_TIMEOUT
    server_version = "fastapi-observe"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Answer with the metrics, or say why not."""
        server = self.server
        if not server.mark_request_read(self.connection):
            return
        try:
            # self.path has another number of slashes than what was asked for
            if self.requestline.split()[1].partition("?")[0] != server.path:
                status, head, body = _plain(HTTPStatus.NOT_FOUND)
            elif not self._is_allowed():
                status, head, body = _plain(
                    HTTPStatus.UNAUTHORIZED if server.access.requires_token else HTTPStatus.NOT_FOUND
                )
            else:
                status = HTTPStatus.OK
                head, body = server.render(self.headers.get("accept", ""), self.headers.get("accept-encoding", ""))
        except Exception as exc:  # noqa: BLE001 - a scrape that fails says so in HTTP
            server.faults("metrics.render", exc)
            status, head, body = _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        with suppress(OSError):  # who does not wait for the answer does not get it
            self.send_response(status)
            for name, value in head:
                if name != b"content-length":
                    self.send_header(name.decode(), value.decode())
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that the standard library calls

    def _is_allowed(self) -> bool:
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        scope = {"type": "http", "client": self.client_address, "headers": headers}
        return self.server.access.allows(scope, dict(headers))

    def log_message(self, *_: Any) -> None:
        """Say nothing: a scrape is in no log."""


def _plain(status: HTTPStatus) -> tuple[HTTPStatus, list[tuple[bytes, bytes]], bytes]:
    more = [CHALLENGE] if status is HTTPStatus.UNAUTHORIZED else []
    return status, [(b"content-type", b"text/plain; charset=utf-8"), *more], status.phrase.encode()
