"""`Collector`: a fake OTLP collector on a real socket, with a mode for each way in which one may fail."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from typing import Self

    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

Mode = Literal[
    "ok", "partial", "hang", "drip", "drip_body", "huge", "reset", "reset_body", "close", "garbage", "http2", "tls",
    "302", "400", "401", "403", "404", "405", "413", "415", "429", "500", "502", "503", "504",
]  # fmt: skip

HUGE: Final = 300 * 1024 * 1024
"""Bytes of the response in mode `huge`."""

RESET: Final = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing sends RST."""


ACCEPTING: Final = frozenset({"ok", "partial", "drip_body", "huge", "reset_body"})
"""Modes in which the status is a success."""


class Collector:
    """Listens on a free port of this machine. `mode` may be changed at any time.

    `ok` and `partial` (which rejects `rejected` spans of each request) respond as a collector should. `hang` never
    responds; `drip` sends its status line a byte at a time, `drip_body` its body; a number is the status it responds,
    with `Retry-After: {retry_after}` unless that is empty, and `302` redirects to itself; `huge` responds with 300 MB;
    `reset` resets the connection before the status, `reset_body` in the body; `close` closes without a response;
    `garbage`, `http2` and `tls` send bytes of other protocols. With `listens=False` the port is closed.
    """

    def __init__(self, mode: Mode = "ok", *, listens: bool = True) -> None:
        self.mode: Mode = mode
        self.retry_after = "0"
        self.rejected = 1
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        if listens:
            self._start(self._accept)
        else:
            self._server.close()

    def listen(self) -> None:
        """Start to listen on the port that was closed."""
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept)

    @property
    def url(self) -> str:
        """The value for `otlp_endpoint`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        """Every request for traces that was accepted, without empty ones."""
        return [
            ExportTraceServiceRequest.FromString(body)
            for path, body in zip(self.paths, self.bodies, strict=True)
            if path.endswith("/v1/traces") and body
        ]

    @property
    def resources(self) -> list[ResourceSpans]:
        """Every `ResourceSpans` of these requests."""
        return [resource for request in self.requests for resource in request.resource_spans]

    @property
    def spans(self) -> list[Span]:
        """Every span that was accepted."""
        return [span for resource in self.resources for scope in resource.scope_spans for span in scope.spans]

    @property
    def names(self) -> Counter[str]:
        """Number of accepted spans by name."""
        return Counter(span.name for span in self.spans)

    def drop_connections(self) -> None:
        """Close every connection, as a collector does with idle ones."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        while self._open:
            sock = self._open.pop()
            sock.close()

    def close(self) -> None:
        """Close every socket and end every thread."""
        self._ended.set()
        for sock in (self._server, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                self.connections += 1
                self._open.append(sock)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError, IndexError), sock, sock.makefile("rb") as file:  # IndexError: not HTTP/1
            while line := file.readline():
                path = line.split()[1].decode()
                headers = {}
                while (line := file.readline().strip()) and b":" in line:
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                body = file.read(int(headers.get("content-length", "0")))
                if headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if not self._respond(sock, path, headers, body):
                    return

    def _respond(self, sock: socket.socket, path: str, headers: dict[str, str], body: bytes) -> bool:
        """Respond according to the mode. Returns whether the connection stays open."""
        if self.mode in ACCEPTING:
            self._accept_request(path, headers, body)
        if self.mode == "partial" and body:
            partial = ExportTracePartialSuccess(rejected_spans=self.rejected, error_message="no room")
            _send(sock, "200 OK", ExportTraceServiceResponse(partial_success=partial).SerializeToString())
        elif self.mode in {"ok", "partial"} or self.mode.isdecimal():
            status = f"{self.mode} -" if self.mode.isdecimal() else "200 OK"
            later = [f"retry-after: {self.retry_after}"] if self.retry_after else []
            _send(sock, status, b"", f"location: {self.url}/v1/traces", *later)
        else:
            self._misbehave(sock)
            return False
        return True

    def _misbehave(self, sock: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: "
        match self.mode:
            case "hang":
                self._ended.wait()
            case "drip":
                self._drip(sock, head + b"0\r\n\r\n")
            case "drip_body":
                sock.sendall(head + b"1000\r\n\r\n")
                self._drip(sock, bytes(1000))
            case "huge":
                sock.sendall(head + b"%d\r\n\r\n" % HUGE)
                for _ in range(HUGE // 65_536):
                    sock.sendall(bytes(65_536))
            case "reset" | "reset_body":
                sock.sendall(head + b"1000\r\n\r\nhalf of it" if self.mode == "reset_body" else b"")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case "garbage":
                sock.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
            case "http2":
                sock.sendall(b"\0\0\6\4\0\0\0\0\0\0\5\0\0\x40\0")  # SETTINGS
            case "tls":
                sock.sendall(b"\x15\3\1\0\2\2\x46")  # an alert

    def _accept_request(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.paths.append(path)
        self.headers.append(headers)
        self.bodies.append(body)

    def _drip(self, sock: socket.socket, data: bytes) -> None:
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
            if self._ended.wait(0.05):
                return


def _send(sock: socket.socket, status: str, body: bytes, *headers: str) -> None:
    head = [f"HTTP/1.1 {status}", "content-type: application/x-protobuf", f"content-length: {len(body)}", *headers]
    sock.sendall("\r\n".join([*head, "", ""]).encode() + body)
