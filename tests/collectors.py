"""A collector for tests that misbehaves as it is told: real sockets, every fault a network has."""

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

Mode = Literal["ok", "hang", "drip", "drip_body", "503", "429", "400", "302", "huge", "reset", "reset_body", "partial",
               "close", "garbage"]  # fmt: skip

HUGE: Final = 300 * 1024 * 1024
"""Bytes of the answer in mode `huge`."""

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST."""


STATUSES: Final = {
    "ok": "200 OK",
    "partial": "200 OK",
    "503": "503 Service Unavailable",
    "429": "429 Too Many Requests",
    "400": "400 Bad Request",
    "302": "302 Found",
}

TAKES: Final = frozenset({"ok", "partial", "drip_body", "huge", "reset_body"})
"""Modes in which the status says that everything was taken."""


class Collector:
    """Listens on a free port of this machine. `mode` may be changed at any time.

    `ok` and `partial` (which refuses `rejected` spans of each request) answer as a collector should; `hang` never
    answers; `drip` sends its status line a byte at a time, `drip_body` its body; `503` and `429` ask to come again in
    `retry_after` seconds (unless empty); `302` redirects to itself; `huge` answers with 300 MB; `reset` breaks the
    connection before the status, `reset_body` in the body; `close` closes without an answer; `garbage` does not speak
    HTTP. With `listens=False` there is nobody at the port.
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
        """Begin to listen at the port where nobody was."""
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept)

    @property
    def url(self) -> str:
        """What to set `otlp_endpoint` to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        """Every request about traces that was answered with success, empty ones left out."""
        return [
            ExportTraceServiceRequest.FromString(body)
            for path, body in zip(self.paths, self.bodies, strict=True)
            if path.endswith("/v1/traces") and body
        ]

    @property
    def resources(self) -> list[ResourceSpans]:
        """Every message about a resource."""
        return [resource for request in self.requests for resource in request.resource_spans]

    @property
    def spans(self) -> list[Span]:
        """Every span that was taken."""
        return [span for resource in self.resources for scope in resource.scope_spans for span in scope.spans]

    @property
    def names(self) -> Counter[str]:
        """How often a span of each name was taken."""
        return Counter(span.name for span in self.spans)

    def drop_connections(self) -> None:
        """Close every connection, as an idle one is closed after a while."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        while self._open:
            sock = self._open.pop()
            sock.close()

    def close(self) -> None:
        """End everything."""
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
        with suppress(OSError), sock, sock.makefile("rb") as file:
            while line := file.readline():
                path = line.split()[1].decode()
                headers = {}
                while (line := file.readline().strip()) and b":" in line:
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                body = file.read(int(headers["content-length"]))
                if headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if not self._answer(sock, path, headers, body):
                    return

    def _answer(self, sock: socket.socket, path: str, headers: dict[str, str], body: bytes) -> bool:
        """Answer as the mode says; tell whether the connection goes on."""
        if self.mode in TAKES:
            self._take(path, headers, body)
        if self.mode == "partial" and body:
            refused = ExportTracePartialSuccess(rejected_spans=self.rejected, error_message="no room")
            _send(sock, "200 OK", ExportTraceServiceResponse(partial_success=refused).SerializeToString())
        elif self.mode in STATUSES:
            later = [f"retry-after: {self.retry_after}"] if self.retry_after else []
            _send(sock, STATUSES[self.mode], b"", f"location: {self.url}/v1/traces", *later)
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

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
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
