"""OTLP over gRPC, with the extra: encoded requests go out as they are, under a deadline that holds."""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fastapi_observe.export.transport import (
    MAX_RETRY_AFTER,
    Certificates,
    ExportResult,
    header_fields,
    redact_url,
    rejected_items,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICES: Final = {
    "traces": "trace.v1.TraceService",
    "logs": "logs.v1.LogsService",
    "metrics": "metrics.v1.MetricsService",
}

RETRYABLE: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
"""OTLP/gRPC: what a client may retry; `RESOURCE_EXHAUSTED` only where the collector says when."""

CONNECTION_LOST_MESSAGES: Final = ("Stream removed", "Socket closed", "Connection reset", "GOAWAY")
"""What grpc's details say of a connection that ended under a call; any other status is the collector's answer."""

CHANNEL_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 65_536),
    ("grpc.enable_retries", 0),
)

COMPRESS_ABOVE: Final = 1024


class GrpcTransport:
    """Calls `Export` of one signal's service. Raises `RuntimeError` where the extra is missing."""

    def __init__(self, url: str, headers: Mapping[str, str], signal: str) -> None:
        try:
            import grpc  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra
        except ImportError as exc:
            raise RuntimeError(
                "otlp_protocol='grpc' needs the extra: pip install 'fastapi-observe[grpc]', or use 'http/protobuf'"
            ) from exc
        self._grpc: Any = grpc
        self.target = redact_url(url)
        parts = urlsplit(url)
        self._address = parts.netloc.rpartition("@")[2] or url
        said = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_INSECURE") or os.environ.get(
            "OTEL_EXPORTER_OTLP_INSECURE", ""
        )
        self.encrypted = parts.scheme == "https" or (parts.scheme != "http" and said.lower() != "true")
        self._certificates = Certificates.from_environment(signal)
        self._method = f"/opentelemetry.proto.collector.{SERVICES[signal]}/Export"
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._channel: Any = None
        self._call: Any = None
        self._parents: list[Any] = []

    def send(self, body: bytes, deadline: float) -> ExportResult:
        """Send one request; return when it was answered, has failed, or at `deadline`."""
        grpc = self._grpc
        try:
            if self._channel is None:
                self._channel = self._open()
            self._call = self._channel.unary_unary(self._method).future(
                body,
                timeout=max(deadline - monotonic(), 0.001),
                metadata=self._metadata,
                compression=grpc.Compression.Gzip if len(body) > COMPRESS_ABOVE else None,
            )
            return ExportResult(rejected=rejected_items(self._call.result()))
        except grpc.FutureCancelledError:
            return ExportResult("broken", "cancelled", retry=True)
        except grpc.RpcError as exc:
            return _failure(exc)
        except (OSError, ValueError) as exc:  # a certificate that is not there, or is none
            return ExportResult("tls", f"{type(exc).__name__}: {exc}"[:200], retry=True, maybe_received=False)
        finally:
            self._call = None

    def _open(self) -> Any:
        grpc = self._grpc
        if not self.encrypted:
            return grpc.insecure_channel(self._address, CHANNEL_OPTIONS)
        files = (None if name is None else _read(name) for name in self._certificates)
        authorities, certificate, key = files
        return grpc.secure_channel(
            self._address, grpc.ssl_channel_credentials(authorities, key, certificate), CHANNEL_OPTIONS
        )

    def abort(self) -> None:
        """Make a `send` that is under way return."""
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def detach_after_fork(self) -> None:
        """Keep the parent's channel, but never use it: to close or collect it would wait for the parent's threads."""
        if self._channel is not None:
            self._parents.append(self._channel)
            self._channel = None


def _read(name: str) -> bytes:
    with open(name, "rb") as file:  # noqa: PTH123 - no need for a path
        return file.read()


def _failure(exc: Any) -> ExportResult:
    code, details = exc.code().name, str(exc.details() or "")
    told = f"{code}: {details}"[:200]
    if code == "DEADLINE_EXCEEDED":
        return ExportResult("timeout", told, retry=True)
    retry_after = _retry_after(exc)
    retry = code in RETRYABLE or (code == "RESOURCE_EXHAUSTED" and retry_after is not None)
    later = retry and not any(words in details for words in CONNECTION_LOST_MESSAGES)
    if code == "UNAVAILABLE":
        reached = "connect" not in details
        return ExportResult(
            "connect", told, retry=True, maybe_received=reached, retry_after=retry_after, retry_later=later
        )
    return ExportResult(
        "http_5xx" if retry else "http_4xx", told, retry=retry, retry_after=retry_after, retry_later=later
    )


def _retry_after(exc: Any) -> float | None:
    """Read `RetryInfo.retry_delay`, at most LONGEST_RETRY_AFTER seconds."""
    for name, value in exc.trailing_metadata() or ():
        if name == "google.rpc.retryinfo-bin":
            for number, duration in header_fields(value):
                if number == 1 and isinstance(duration, bytes):
                    parts = dict(header_fields(duration))
                    seconds = parts.get(1, 0)
                    return min(float(seconds), MAX_RETRY_AFTER) if isinstance(seconds, int) else None
    return None
