"""OTLP over HTTP with the standard library: one connection, and never a moment or a byte more than was allowed."""

from __future__ import annotations

import http.client
import io
import select
import socket
from base64 import b64encode
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from fastapi_observe.export.transport import (
    MAX_RETRY_AFTER,
    Certificates,
    ExportResult,
    redact_url,
    rejected_items,
)
from fastapi_observe.internal.version import package_version

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

MAX_RESPONSE_BYTES: Final = 65_536
"""Bytes of an answer that are read."""

MIN_CONNECT_TIME: Final = 1.0
"""Seconds that the body of a success may take: the status has said what matters."""

COMPRESS_ABOVE: Final = 1024
"""Bytes of a request above which it is compressed."""

GZIP_LEVEL: Final = 1

RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""OTLP/HTTP: what a client may retry."""

PROTOBUF: Final = "application/x-protobuf"


class _TooMuchError(OSError):
    """The answer is longer than anyone needs."""


class _DeadlineSocket:
    """A socket that must be done by `deadline`, whatever the peer does, and reads at most MOST_READ bytes a request."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = 0.0
        self.unread = MAX_RESPONSE_BYTES

    def _arm(self) -> None:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def sendall(self, data: bytes) -> None:
        self._arm()
        self.sock.sendall(data)  # its timeout is that of the whole call

    def receive(self, buffer: Any) -> int:
        if self.unread <= 0:
            raise _TooMuchError
        self._arm()
        got = self.sock.recv_into(buffer)
        self.unread -= got
        return got

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what `http.client` reads from."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self.sock.close()  # says no goodbye in TLS: in a forked child that would end the parent's session


class _Reader(io.RawIOBase):
    """Reads from a wire; closing it leaves the socket open."""

    def __init__(self, wire: _DeadlineSocket) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.receive(buffer)


class HttpTransport:
    """Posts to one URL over a connection that is kept."""

    def __init__(self, url: str, headers: Mapping[str, str], signal: str) -> None:
        import encodings.idna  # noqa: F401, PLC0415 - else two threads that look up a host fail while they import it

        parts = urlsplit(url)
        self.target = redact_url(url)
        self.encrypted = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self.encrypted else 80)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
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
        self._wire: _DeadlineSocket | None = None

    def send(self, body: bytes, deadline: float) -> ExportResult:
        """Send one request; return when it was answered, has failed, or at `deadline`."""
        headers = self._headers
        if len(body) > COMPRESS_ABOVE:
            import zlib  # noqa: PLC0415 - not needed without exports

            body = zlib.compress(body, GZIP_LEVEL, wbits=31)
            headers = {**headers, "content-encoding": b"gzip"}
        reused = self._wire is not None
        if self._wire is not None and is_closed_by_peer(self._wire.sock):
            self.close()
            reused = False
        answer = self._request(body, headers, deadline)
        if reused and answer.reason == "broken":  # a kept connection may end just as it is used again
            answer = self._request(body, headers, deadline)
        return answer

    def _request(self, body: bytes, headers: Mapping[str, bytes], deadline: float) -> ExportResult:
        reached = False
        try:
            connection, wire = self._connect(deadline)
            reached = True
            wire.deadline = deadline
            wire.unread = MAX_RESPONSE_BYTES
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            return self._read(response, wire)
        except TimeoutError:
            self.close()
            return ExportResult("timeout", "no answer in time", retry=True, maybe_received=reached)
        except (OSError, UnicodeError, http.client.HTTPException) as exc:  # the second: of a host that is no name
            self.close()
            return _failure(exc, reached=reached)

    def _connect(self, deadline: float) -> tuple[http.client.HTTPConnection, _DeadlineSocket]:
        if self._connection is None or self._wire is None:
            wire = _DeadlineSocket(self._open(deadline))
            connection = http.client.HTTPConnection(self._host, self._port)
            connection.sock = wire  # the part of a socket that it uses
            connection.auto_open = 0
            self._connection, self._wire = connection, wire
        return self._connection, self._wire

    def _open(self, deadline: float) -> socket.socket:
        """Connect to the first address that answers; each has its share of the time."""
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failure: OSError = TimeoutError()
        for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
            seconds = (deadline - monotonic()) / left
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

    def _read(self, response: http.client.HTTPResponse, wire: _DeadlineSocket) -> ExportResult:
        status = response.status
        if not 200 <= status < 300:  # noqa: PLR2004 - the statuses of success
            self.close()
            return _refusal(response)
        wire.deadline = min(wire.deadline, monotonic() + MIN_CONNECT_TIME)
        body = b""
        try:
            body = response.read(MAX_RESPONSE_BYTES)
        except (OSError, ValueError, http.client.HTTPException):  # ValueError: the size of a chunk is negative
            self.close()
        else:
            if not response.isclosed() or response.will_close:
                self.close()
        is_protobuf = response.headers.get_content_type() == PROTOBUF
        return ExportResult(rejected=rejected_items(body) if is_protobuf else 0)

    def abort(self) -> None:
        """Make a `send` that is under way return."""
        wire = self._wire
        if wire is not None:
            try:
                socket.socket.shutdown(wire.sock, socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return

    def close(self) -> None:
        """Close the connection."""
        connection, wire = self._connection, self._wire
        self._connection = self._wire = None
        if connection is not None:
            connection.close()
        if wire is not None:
            wire.close()

    def detach_after_fork(self) -> None:
        """Close the child's copy of the connection: nothing is sent, the parent's stays open."""
        self.close()


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Tell whether a connection on which nothing is expected has something to read: its end."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])  # pragma: no cover - Windows, where numbers may be high


def _failure(exc: Exception, *, reached: bool) -> ExportResult:
    reason = getattr(exc, "strerror", None)  # what the peer has sent is not told: it could be anything
    told = f"{type(exc).__name__}: {reason}" if reason else type(exc).__name__
    if not reached:
        is_tls = type(exc).__module__ == "ssl" or isinstance(exc, FileNotFoundError)
        return ExportResult("tls" if is_tls else "connect", told, retry=True, maybe_received=False)
    return ExportResult("broken", told, retry=True)


def _refusal(response: http.client.HTTPResponse) -> ExportResult:
    status = response.status
    told = f"it answered {status}"
    if status in RETRYABLE:
        word = "http_429" if status == 429 else "http_5xx"  # noqa: PLR2004 - Too Many Requests
        retry_after = _retry_after(response.headers.get("retry-after"))
        return ExportResult(word, told, retry=True, retry_after=retry_after, retry_later=True)
    if 300 <= status < 400:  # noqa: PLR2004 - the statuses of redirection
        told += ", which is not followed: set the endpoint to the address itself"
    return ExportResult(f"http_{str(status)[0]}xx", told)


def _retry_after(given: str | None) -> float | None:
    """Read `Retry-After` (RFC 9110, 10.2.3), at most LONGEST_RETRY_AFTER seconds."""
    if given is None:
        return None
    try:
        seconds = float(given) if given.strip().isdecimal() else parsedate_to_datetime(given).timestamp() - time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
