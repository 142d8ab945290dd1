"""What a transport of exports promises, and how it tells what came of a request."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RETRY_AFTER: Final = 30.0
"""Seconds that a collector may ask us to wait."""


class ExportResult(NamedTuple):
    """What came of one request.

    `reason` is empty for success, else a short fixed word: it becomes a label. `retry` says that the same items may be
    sent again, `reached` that the collector may have seen them, `later` that it has said itself that it took none and
    wants them again. `rejected` items of a success were not taken.
    """

    reason: str = ""
    message: str = ""
    retry: bool = False
    maybe_received: bool = True
    retry_after: float | None = None
    rejected: int = 0
    retry_later: bool = False


class Transport(Protocol):
    """Carries encoded requests to a collector; used by one thread, but for `abort` and `forget`."""

    target: str
    encrypted: bool
    """Whether nobody can read on the way what is sent, its headers included."""

    def send(self, body: bytes, deadline: float) -> ExportResult:
        """Send one request; return when it was answered, has failed, or at `deadline` (`time.monotonic`)."""

    def abort(self) -> None:
        """Make a `send` that is under way in another thread return soon, if that is possible."""

    def close(self) -> None:
        """Close the connection; a later `send` opens a new one."""

    def detach_after_fork(self) -> None:
        """Let go of the connection in a forked child, unseen by the collector: it is the parent's."""


def redact_url(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    port = f":{parts.port}" if parts.port is not None else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}".removeprefix("://")


class Certificates(NamedTuple):
    """Files for TLS, from OpenTelemetry's variables."""

    authorities: str | None
    certificate: str | None
    key: str | None

    @classmethod
    def from_environment(cls, signal: str) -> Certificates:
        """Read the variables of a signal (`traces`, `logs`, `metrics`), else those of all signals."""
        names = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
        found = (
            os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}")
            or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}")
            or None
            for name in names
        )
        return cls(*found)


def rejected_items(message: bytes) -> int:
    """Read how many items a collector refused from the response of any signal: `partial_success.rejected_*`."""
    for number, value in header_fields(message):
        if number == 1 and isinstance(value, bytes):
            for inner, count in header_fields(value):
                if inner == 1 and isinstance(count, int) and count < 1 << 63:
                    return count
    return 0


def header_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of the protobuf fields that are varints or have a length; stop at anything else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, value
        elif kind == 2 and at + value <= len(message):  # noqa: PLR2004 - protobuf's wire type for bytes
            yield tag >> 3, message[at : at + value]
            at += value
        else:
            return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in message[at : at + 10]:
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:  # noqa: PLR2004 - the last byte has no eighth bit
            break
    return number, at
