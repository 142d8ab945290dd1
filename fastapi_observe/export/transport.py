"""The `Transport` protocol, the result of a request, and what the HTTP and gRPC transports share."""

from __future__ import annotations

import os
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPRESS_ABOVE: Final = 1024
"""Bytes of a request above which it is compressed."""

MAX_RETRY_AFTER: Final = 30.0
"""Seconds by which the Collector may delay the next request."""


class ExportResult(NamedTuple):
    """The result of one request.

    `reason` is empty for success, else a metric label: `connect`, `tls`, `timeout`, `broken` (the connection ended, or
    the response is not HTTP), `http_429`, `http_4xx`, `http_5xx` or `internal_error`. `message` is for logs.

    `retry`: the same items may be sent again. `maybe_received`: the Collector may have received them. `retry_later`: it
    responded that it accepted none and wants them later, in `retry_after` seconds if it said when. `rejected`: items
    that a successful response did not accept.
    """

    reason: str = ""
    message: str = ""
    retry: bool = False
    maybe_received: bool = True
    retry_after: float | None = None
    rejected: int = 0
    retry_later: bool = False


class Transport(Protocol):
    """Sends encoded requests to the Collector. Used by one thread, except for `abort` and `detach_after_fork`."""

    target: str
    """The URL without credentials, for log messages."""

    encrypted: bool
    """Whether the connection uses TLS."""

    def send(self, body: bytes, deadline: float) -> ExportResult:
        """Send one request and return its result, at `deadline` (`internal.clock.monotonic`) at the latest."""

    def abort(self) -> None:
        """Make a `send` in another thread return early, if possible."""

    def close(self) -> None:
        """Close the connection. A later `send` opens a new one."""

    def detach_after_fork(self) -> None:
        """Drop the parent's connection in a forked child without sending anything on it."""


def strip_credentials(url: str) -> str:
    """Return a URL without user, password and query."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    port = f":{parts.port}" if parts.port is not None else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}".removeprefix("://")


def bounded_retry_after(seconds: float) -> float:
    """Return the delay that the Collector asks for, between 0 and `MAX_RETRY_AFTER` seconds."""
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def retry_after_header(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header (RFC 9110, 10.2.3), or None if it is missing or invalid."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError, OverflowError):
        return None
    return bounded_retry_after(seconds)


def retry_info(message: bytes) -> float | None:
    """Return the seconds of a `google.rpc.RetryInfo` message, or None if it has no delay."""
    for number, duration in read_fields(message):
        if number == 1 and isinstance(duration, bytes):
            seconds = dict(read_fields(duration)).get(1, 0)
            return bounded_retry_after(float(seconds)) if isinstance(seconds, int) else None
    return None


class Certificates(NamedTuple):
    """Paths of files for TLS, from OpenTelemetry's variables."""

    authorities: str | None
    certificate: str | None
    key: str | None

    @classmethod
    def from_environment(cls, signal: str) -> Certificates:
        """Read the variables of a signal (`traces`, `logs`, `metrics`), then those for all signals."""
        names = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
        paths = (
            os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}")
            or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}")
            or None
            for name in names
        )
        return cls(*paths)


# Responses are decoded by hand: all that is needed is one number, and the Collector's error text must not be trusted.


def rejected_items(message: bytes) -> int:
    """Return the number of rejected items in a response of any signal: `partial_success.rejected_*`."""
    for number, value in read_fields(message):
        if number == 1 and isinstance(value, bytes):
            for inner, count in read_fields(value):
                if inner == 1 and isinstance(count, int) and count < 1 << 63:
                    return count
    return 0


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of the protobuf fields that are varints or length-delimited; stop at any other."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        wire_type = tag & 7
        if wire_type == 0:
            yield tag >> 3, value
        elif wire_type == 2 and at + value <= len(message):  # noqa: PLR2004 - protobuf's wire type LEN
            yield tag >> 3, message[at : at + value]
            at += value
        else:
            return


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in message[at : at + 10]:
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:  # noqa: PLR2004 - the last byte has no eighth bit
            break
    return number, at
