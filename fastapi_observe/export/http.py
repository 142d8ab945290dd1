"""`HttpTransport`: OTLP over HTTP by the standard library, with limits of time and bytes."""

from __future__ import annotations

import http.client
import io
import select
import socket
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from fastapi_observe.export.causes import (
    HEAD_BYTES,
    UNREACHABLE,
    WEB_PAGE,
    connection_cause,
    response_cause,
    status_cause,
    timeout_cause,
)
from fastapi_observe.export.transport import (
    COMPRESS_ABOVE,
    Certificates,
    ExportResult,
    rejected_items,
    retry_after_header,
    strip_credentials,
)
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.version import package_version

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

MAX_RESPONSE_BYTES: Final = 65_536
"""Bytes read of one response."""

BODY_TIMEOUT: Final = 1.0
"""Seconds to read the body of a successful response. Only its count of rejected items matters."""

GZIP_LEVEL: Final = 1

RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504})
"""Statuses that a client may retry (OTLP/HTTP specification)."""

PROTOBUF: Final = "application/x-protobuf"


class _TooMuchError(OSError):
    """The response is longer than `MAX_RESPONSE_BYTES`."""


class _DeadlineSocket:
    """The part of a socket that `http.client` uses, with a deadline for all calls together and a limit of bytes read.

    A socket's own timeout starts again with every byte, so that a peer could keep a request open without end.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = 0.0
        self.unread = MAX_RESPONSE_BYTES
        # The first bytes of the response, from which a log message derives the likely cause of a failure.
        self.head = b""

    def start_request(self, deadline: float) -> None:
        self.deadline = deadline
        self.unread = MAX_RESPONSE_BYTES
        self.head = b""

    def _set_timeout(self) -> None:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def sendall(self, data: bytes) -> None:
        self._set_timeout()
        self.sock.sendall(data)  # applies its timeout to the whole call

    def receive(self, buffer: Any) -> int:
        if self.unread <= 0:
            raise _TooMuchError
        self._set_timeout()
        received = self.sock.recv_into(buffer)
        self.unread -= received
        if not self.head:
            self.head = bytes(buffer[: min(received, HEAD_BYTES)])
        return received

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the file that `http.client` reads from."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        # Without a TLS close_notify: in a forked child that would end the parent's session.
        self.sock.close()


class _Reader(io.RawIOBase):
    """A file on a `DeadlineSocket`; closing it leaves the socket open."""

    def __init__(self, sock: _DeadlineSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.receive(buffer)


class HttpTransport:
    """Sends POST requests to one URL over a connection that is kept open (keep-alive)."""

    def __init__(self, url: str, headers: Mapping[str, str], signal: str) -> None:
        # getaddrinfo imports it on first use. Two threads that do so at once may fail (circular import).
        import encodings.idna  # noqa: F401, PLC0415

        parts = urlsplit(url)
        self.target = strip_credentials(url)
        self.encrypted = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self.encrypted else 80)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._signal = signal
        self._certificates = Certificates.from_environment(signal)
        self._headers: dict[str, bytes] = {
            "content-type": PROTOBUF.encode(),
            "user-agent": f"fastapi-observe/{package_version('fastapi-observe')}".encode(),
        }
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["authorization"] = b"Basic " + b64encode(user.encode())
        self._headers.update({name.lower(): value.encode() for name, value in headers.items()})
        self._context: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._sock: _DeadlineSocket | None = None

    def send(self, body: bytes, deadline: float) -> ExportResult:
        """Send one request and return its result, at `deadline` at the latest."""
        headers = self._headers
        if len(body) > COMPRESS_ABOVE:
            import zlib  # noqa: PLC0415 - not needed without exports

            body = zlib.compress(body, GZIP_LEVEL, wbits=31)
            headers = {**headers, "content-encoding": b"gzip"}
        if self._sock is not None and is_closed_by_peer(self._sock.sock):
            self.close()
        reused = self._sock is not None
        result = self._request(body, headers, deadline)
        if reused and result.reason == "broken":  # the peer may close a kept connection just as it is used again
            result = self._request(body, headers, deadline)
        return result

    def _request(self, body: bytes, headers: Mapping[str, bytes], deadline: float) -> ExportResult:
        sock: _DeadlineSocket | None = None
        try:
            connection, sock = self._connect(deadline)
            sock.start_request(deadline)
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            return self._read_result(response, sock)
        except (OSError, UnicodeError, http.client.HTTPException) as exc:  # UnicodeError: an invalid host name
            self.close()
            return self._connection_failed(exc) if sock is None else self._request_failed(exc, sock.head)

    def _connect(self, deadline: float) -> tuple[http.client.HTTPConnection, _DeadlineSocket]:
        if self._connection is None or self._sock is None:
            sock = _DeadlineSocket(self._open(deadline))
            connection = http.client.HTTPConnection(self._host, self._port)
            connection.sock = sock
            connection.auto_open = 0  # else it would open a connection of its own, without a deadline
            self._connection, self._sock = connection, sock
        return self._connection, self._sock

    def _open(self, deadline: float) -> socket.socket:
        """Connect to the first address that accepts; the time left is shared evenly among the addresses."""
        addresses = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failure: OSError = TimeoutError()
        for at, (family, kind, protocol, _, address) in enumerate(addresses):
            seconds = (deadline - monotonic()) / (len(addresses) - at)
            if seconds <= 0:
                raise TimeoutError
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(seconds)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not self.encrypted:
                    return sock
                sock.settimeout(max(deadline - monotonic(), 0.001))
                return self._tls().wrap_socket(sock, server_hostname=self._host)
            except OSError as exc:
                sock.close()
                failure = exc
        raise failure

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            import ssl  # noqa: PLC0415 - not needed for http

            files = self._certificates
            context = ssl.create_default_context(cafile=files.authorities)
            if files.certificate is not None:
                context.load_cert_chain(files.certificate, files.key)
            self._context = context
        return self._context

    def _read_result(self, response: http.client.HTTPResponse, sock: _DeadlineSocket) -> ExportResult:
        if not 200 <= response.status < 300:  # noqa: PLR2004 - the statuses of success
            self.close()
            return self._rejected(response)
        sock.deadline = min(sock.deadline, monotonic() + BODY_TIMEOUT)
        body = b""
        try:
            body = response.read(MAX_RESPONSE_BYTES)
        except (OSError, ValueError, http.client.HTTPException):  # ValueError: a negative chunk size
            self.close()
        else:
            if not response.isclosed() or response.will_close:
                self.close()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/html":
            return ExportResult("broken", f"the response is a web page. {WEB_PAGE}")
        return ExportResult(rejected=rejected_items(body) if kind == PROTOBUF else 0)

    def _connection_failed(self, exc: Exception) -> ExportResult:
        if isinstance(exc, TimeoutError):
            return ExportResult("timeout", f"no connection in time. {UNREACHABLE}", retry=True, maybe_received=False)
        reason = "tls" if type(exc).__module__ == "ssl" or isinstance(exc, FileNotFoundError) else "connect"
        message = f"{_describe(exc)}. {connection_cause(exc, self._host)}"
        return ExportResult(reason, message, retry=True, maybe_received=False)

    def _request_failed(self, exc: Exception, head: bytes) -> ExportResult:
        if isinstance(exc, TimeoutError):
            return ExportResult("timeout", f"no response in time. {timeout_cause(head, self._port)}", retry=True)
        cause = response_cause(exc, head, self._port, encrypted=self.encrypted)
        return ExportResult("broken", f"{_describe(exc)}. {cause}", retry=True)

    def _rejected(self, response: http.client.HTTPResponse) -> ExportResult:
        status = response.status
        cause = status_cause(status, self._signal, self._port, self._path, encrypted=self.encrypted)
        message = f"the Collector responded {status}. {cause}"
        if status in RETRYABLE_STATUSES:
            reason = "http_429" if status == 429 else "http_5xx"  # noqa: PLR2004 - Too Many Requests
            retry_after = retry_after_header(response.headers.get("retry-after"))
            return ExportResult(reason, message, retry=True, retry_after=retry_after, retry_later=True)
        return ExportResult(f"http_{str(status)[0]}xx", message)

    def abort(self) -> None:
        """Make a `send` in another thread return early."""
        sock = self._sock
        if sock is not None:
            try:
                # Not SSLSocket.shutdown: it would drop the TLS layer while the other thread reads.
                socket.socket.shutdown(sock.sock, socket.SHUT_RDWR)
            except OSError:  # it was closed meanwhile
                return

    def close(self) -> None:
        """Close the connection."""
        connection, sock = self._connection, self._sock
        self._connection = self._sock = None
        if connection is not None:
            connection.close()
        if sock is not None:
            sock.close()

    def detach_after_fork(self) -> None:
        """Close the child's copy of the connection. Nothing is sent; the parent's stays open."""
        self.close()


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Return whether an idle connection has something to read, which can only be its end."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])  # pragma: no cover - Windows


def _describe(exc: Exception) -> str:
    """Return the error without anything that the peer sent, which may be anything."""
    name, detail = type(exc).__name__, getattr(exc, "strerror", None)
    if isinstance(exc, http.client.RemoteDisconnected):
        return f"the connection was closed without a response ({name})"
    if isinstance(exc, http.client.HTTPException):
        return f"the response is not HTTP ({name})"
    return f"{name}: {detail}" if detail else name
