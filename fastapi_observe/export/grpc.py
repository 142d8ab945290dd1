"""`GrpcTransport`: OTLP over gRPC (extra `grpc`) with requests that are encoded already, and a deadline."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fastapi_observe.export.causes import TLS_FILES, grpc_cause
from fastapi_observe.export.transport import (
    COMPRESS_ABOVE,
    Certificates,
    ExportResult,
    rejected_items,
    retry_info,
    strip_credentials,
)
from fastapi_observe.internal.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICES: Final = {
    "traces": "trace.v1.TraceService",
    "logs": "logs.v1.LogsService",
    "metrics": "metrics.v1.MetricsService",
}

RETRYABLE_CODES: Final = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that a client may retry (OTLP/gRPC specification); `RESOURCE_EXHAUSTED` only with a `RetryInfo`."""

CONNECTION_LOST_MESSAGES: Final = ("Stream removed", "Socket closed", "Connection reset", "GOAWAY")
"""Details of a status that the gRPC library made because the connection ended. All others come from the Collector."""

CHANNEL_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 65_536),
    ("grpc.enable_retries", 0),
)

MAX_DETAILS_LENGTH: Final = 200
"""Characters of a status's details that are logged."""


class GrpcTransport:
    """Calls `Export` of the service of one signal. Raises `RuntimeError` without the extra."""

    def __init__(self, url: str, headers: Mapping[str, str], signal: str) -> None:
        try:
            import grpc  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra
        except ImportError as exc:
            raise RuntimeError(
                "otlp_protocol='grpc' needs an extra; run pip install 'fastapi-observe[grpc]' or use 'http/protobuf'"
            ) from exc
        self._grpc: Any = grpc
        self.target = strip_credentials(url)
        parts = urlsplit(url if "://" in url else f"//{url}")
        self._address = parts.netloc.rpartition("@")[2] or url
        self._host, self._port = parts.hostname, parts.port
        insecure = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_INSECURE") or os.environ.get(
            "OTEL_EXPORTER_OTLP_INSECURE", ""
        )
        # The scheme decides; the variable is for endpoints without one (OTLP exporter specification).
        self.encrypted = parts.scheme == "https" or (parts.scheme != "http" and insecure.lower() != "true")
        self._certificates = Certificates.from_environment(signal)
        self._method = f"/opentelemetry.proto.collector.{SERVICES[signal]}/Export"
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._channel: Any = None
        self._call: Any = None
        self._channels_of_parents: list[Any] = []

    def send(self, body: bytes, deadline: float) -> ExportResult:
        """Send one request and return its result, at `deadline` at the latest."""
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
            return self._failed(exc)
        except (OSError, ValueError) as exc:  # a certificate file that is missing or invalid
            message = f"{_shorten(f'{type(exc).__name__}: {exc}')}. {TLS_FILES}"
            return ExportResult("tls", message, retry=True, maybe_received=False)
        finally:
            self._call = None

    def _open(self) -> Any:
        grpc = self._grpc
        if not self.encrypted:
            return grpc.insecure_channel(self._address, CHANNEL_OPTIONS)
        authorities, certificate, key = (None if path is None else _read_file(path) for path in self._certificates)
        return grpc.secure_channel(
            self._address, grpc.ssl_channel_credentials(authorities, key, certificate), CHANNEL_OPTIONS
        )

    def _failed(self, exc: Any) -> ExportResult:
        code, details = exc.code().name, str(exc.details() or "")
        cause = grpc_cause(code, details, self._host or "", self._port)
        message = f"{_shorten(f'{code}: {details}')}. {cause}"
        if code == "DEADLINE_EXCEEDED":
            return ExportResult("timeout", message, retry=True)
        retry_after = _retry_after(exc)
        retry = code in RETRYABLE_CODES or (code == "RESOURCE_EXHAUSTED" and retry_after is not None)
        retry_later = retry and not any(lost in details for lost in CONNECTION_LOST_MESSAGES)
        if code == "UNAVAILABLE":
            maybe_received = "connect" not in details
            return ExportResult("connect", message, retry, maybe_received, retry_after, retry_later=retry_later)
        return ExportResult(
            "http_5xx" if retry else "http_4xx", message, retry, retry_after=retry_after, retry_later=retry_later
        )

    def abort(self) -> None:
        """Make a `send` in another thread return early."""
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def detach_after_fork(self) -> None:
        """Keep the parent's channel without using it."""
        # Closing or collecting it would wait for threads that do not exist in the child.
        if self._channel is not None:
            self._channels_of_parents.append(self._channel)
            self._channel = None


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not needed
        return file.read()


def _shorten(text: str) -> str:
    return text[:MAX_DETAILS_LENGTH].rstrip(".! ")


def _retry_after(exc: Any) -> float | None:
    for name, value in exc.trailing_metadata() or ():
        if name == "google.rpc.retryinfo-bin":
            return retry_info(value)
    return None
