"""The HTTP server of `metrics_port`: threads apart from the app's port, so that a busy app can be scraped."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from math import inf
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import start_thread
from fastapi_observe.requests.access import CHALLENGE, MetricsAccess

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

    Render = Callable[[str, str], tuple[list[tuple[bytes, bytes]], bytes]]

MAX_CONNECTIONS: Final = 16
"""Connections that are served at one time."""

REQUEST_TIMEOUT: Final = 5.0
"""Seconds for sending a request, and again for reading the response."""


class MetricsServer:
    """Serves `metrics_path` on `metrics_host`:`metrics_port` for one process.

    Worker processes of one server share the port (`SO_REUSEPORT`); the system chooses the one that responds for all. If
    the port cannot be opened, one error is logged and the app runs without it.
    """

    def __init__(self, settings: ObserveSettings, render: Render, internal_errors: InternalErrors) -> None:
        self._settings = settings
        self._render = render
        self._internal_errors = internal_errors
        self._pid = 0
        self._server: _Server | None = None

    @property
    def port(self) -> int | None:
        """The port that is open in this process, or None."""
        return self._server.server_address[1] if self._server is not None and self._pid == os.getpid() else None

    def start(self, *, shared: bool) -> None:
        """Open the port, unless this process has done so or failed to. `shared` allows other workers the same port."""
        settings = self._settings
        if not settings.metrics or settings.metrics_port is None or self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._server = None  # in a forked child it is the parent's: not closed here, its socket is the parent's too
        try:
            server = _Server(settings, self._render, self._internal_errors, shared=shared)
        except OSError as exc:
            logging.getLogger("fastapi_observe").error(  # noqa: TRY400 - the reason is enough, without a traceback
                "Cannot listen on %s:%d (metrics_port): %s. Metrics are unavailable. "
                "Free the port or set another metrics_port.",
                settings.metrics_host,
                settings.metrics_port,
                exc.strerror or exc,
            )
            return
        consequence = "The port of the metrics (metrics_port) is closed."
        if start_thread(server.serve_forever, "fastapi-observe-metrics", consequence) is None:
            server.server_close()
        else:
            self._server = server

    def stop(self) -> None:
        """Close the port. `start` opens it again."""
        server, self._server = self._server, None
        if server is not None and self._pid == os.getpid():
            server.shutdown()
            server.server_close()
        self._pid = 0


class _Server(ThreadingMixIn, HTTPServer):
    """A threaded server with a limited number of connections and a deadline for each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, settings: ObserveSettings, render: Render, internal_errors: InternalErrors, *, shared: bool
    ) -> None:
        host = settings.metrics_host
        self.path = settings.metrics_path
        token = settings.metrics_token
        self.access = MetricsAccess(settings.metrics_access, None if token is None else token.get_secret_value())
        self.render = render
        self.internal_errors = internal_errors
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.allow_reuse_port = shared and hasattr(socket, "SO_REUSEPORT")
        self._lock = threading.Lock()
        self._deadlines: dict[Any, float] = {}  # by connection, oldest first; infinite once the request was read
        super().__init__((host, settings.metrics_port or 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread.

        At the limit the oldest connection that has not sent its request is closed: a scraper sends it at once. If
        there is none, the new connection is closed.
        """
        with self._lock:
            if len(self._deadlines) >= MAX_CONNECTIONS:
                self._drop([each for each, deadline in self._deadlines.items() if deadline < inf][:1])
            accepted = len(self._deadlines) < MAX_CONNECTIONS
            if accepted:
                self._deadlines[request] = monotonic() + REQUEST_TIMEOUT
        if accepted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that have not sent their request in time; called at least twice per second."""
        with self._lock:
            now = monotonic()
            self._drop([each for each, deadline in self._deadlines.items() if deadline < now])

    def mark_request_read(self, request: Any) -> bool:
        """End the deadline of a connection. Return False if it was closed before."""
        with self._lock:
            in_time = request in self._deadlines
            if in_time:
                self._deadlines[request] = inf
            return in_time

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and free its place."""
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def _drop(self, requests: list[Any]) -> None:
        """Shut down connections. Their threads see the end of input and close them."""
        for request in requests:
            del self._deadlines[request]
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a broken connection, which the base class would print to standard error."""


class _Handler(BaseHTTPRequestHandler):
    """Handles one connection."""

    timeout = REQUEST_TIMEOUT
    server_version = "fastapi-observe"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Send the metrics, or 401, 404 or 500."""
        server = self.server
        if not server.mark_request_read(self.connection):
            return
        try:
            # self.path is normalized; the request line has the path as it was sent.
            if self.requestline.split()[1].partition("?")[0] != server.path:
                status, headers, body = _error(HTTPStatus.NOT_FOUND)
            elif not self._is_allowed():
                status, headers, body = _error(
                    HTTPStatus.UNAUTHORIZED if server.access.requires_token else HTTPStatus.NOT_FOUND
                )
            else:
                status = HTTPStatus.OK
                headers, body = server.render(self.headers.get("accept", ""), self.headers.get("accept-encoding", ""))
        except Exception as exc:  # noqa: BLE001 - becomes a response
            server.internal_errors("metrics.render", exc)
            status, headers, body = _error(HTTPStatus.INTERNAL_SERVER_ERROR)
        with suppress(OSError):  # the client has gone
            self.send_response(status)
            for name, value in headers:
                if name != b"content-length":
                    self.send_header(name.decode(), value.decode())
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _is_allowed(self) -> bool:
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        version = self.request_version.removeprefix("HTTP/")
        scope = {"type": "http", "client": self.client_address, "headers": headers, "http_version": version}
        access, by_name = self.server.access, dict(headers)
        allowed = access.allows(scope, by_name)
        if not allowed:
            access.log_denied(scope, by_name)
        return allowed

    def log_message(self, *_: Any) -> None:
        """Log nothing: scrapes appear in no log."""


def _error(status: HTTPStatus) -> tuple[HTTPStatus, list[tuple[bytes, bytes]], bytes]:
    challenge = [CHALLENGE] if status is HTTPStatus.UNAUTHORIZED else []
    return status, [(b"content-type", b"text/plain; charset=utf-8"), *challenge], status.phrase.encode()
