"""gRPC transport, against a real server: requests, codes, causes of failures, deadlines, TLS."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from pydantic import SecretStr

from fastapi_observe import ObserveSettings
from fastapi_observe.export.causes import grpc_cause
from fastapi_observe.export.grpc import GrpcTransport
from fastapi_observe.export.transport import MAX_RETRY_AFTER
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.traces.provider import ObserveTracerProvider
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from collections.abc import Iterator

grpc: Any = pytest.importorskip("grpc")

RETRY_INFO = b"\x0a\x02\x08\x03"
"""RetryInfo(retry_delay=Duration(seconds=3))."""


class Server:
    """An OTLP/gRPC receiver that responds with `code`; with None it never responds."""

    def __init__(self) -> None:
        self.code: Any = grpc.StatusCode.OK
        self.trailers: tuple[tuple[str, bytes], ...] = ()
        self.rejected = 0
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, str]] = []
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool)
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _export(self, body: bytes, context: Any) -> bytes:
        if self.code is None:
            self._ended.wait()
        if self.code is not grpc.StatusCode.OK:
            context.set_trailing_metadata(self.trailers)
            context.abort(self.code, "details")
        self.metadata.append(dict(context.invocation_metadata()))
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        partial = ExportTracePartialSuccess(rejected_spans=self.rejected)
        return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())

    def close(self) -> None:
        """Stop it."""
        self._ended.set()
        self._server.stop(None).wait()
        self._pool.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a receiver for one test."""
    one = Server()
    yield one
    one.close()


def transport_to(server: Server) -> GrpcTransport:
    """Return a transport to a server."""
    return GrpcTransport(server.url, {}, "traces")


def test_spans_arrive(server: Server) -> None:
    """Through the queue, with headers; the spans that a partial success rejects are counted as dropped."""
    settings = ObserveSettings(
        otlp_endpoint=server.url,
        otlp_protocol="grpc",
        otlp_headers={"X-Tenant": SecretStr("acme")},
        sampler="always_on",
        batch_delay=60,
    )
    tracing = TracingService(settings, InternalErrors())
    assert isinstance(tracing.provider, ObserveTracerProvider)
    queue = tracing.provider.queue
    assert queue is not None
    for at in range(20):
        with tracing.span(f"s{at}", text="x" * 200):
            pass
    server.rejected = 4
    assert not tracing.flush(5)
    tracing.close()
    counts = queue.counts()
    assert (counts.produced, counts.exported, counts.dropped, counts.queued) == (20, 16, {"rejected": 4}, 0)
    assert server.metadata[0]["x-tenant"] == "acme"
    assert len(server.requests[0].resource_spans[0].scope_spans[0].spans) == 20


@pytest.mark.parametrize(
    ("code", "trailers", "reason", "retry", "retry_after"),
    [
        ("UNAVAILABLE", (), "connect", True, None),
        ("UNAVAILABLE", (("google.rpc.retryinfo-bin", RETRY_INFO),), "connect", True, 3.0),
        ("RESOURCE_EXHAUSTED", (), "http_4xx", False, None),
        ("RESOURCE_EXHAUSTED", (("other", b"x"), ("google.rpc.retryinfo-bin", RETRY_INFO)), "http_5xx", True, 3.0),
        ("ABORTED", (("google.rpc.retryinfo-bin", b"\x0a\x06\x08\xff\xff\xff\xff\x0f"),), "http_5xx", True,
         MAX_RETRY_AFTER),
        ("ABORTED", (("google.rpc.retryinfo-bin", b"\x08\x01"),), "http_5xx", True, None),
        ("ABORTED", (("google.rpc.retryinfo-bin", b"\x0a\x03\x0a\x01x"),), "http_5xx", True, None),
        ("INVALID_ARGUMENT", (), "http_4xx", False, None),
    ],
)  # fmt: skip
def test_codes(  # noqa: PLR0913, PLR0917 - a row of the table
    code: str,
    trailers: tuple[Any, ...],
    reason: str,
    retry: bool,  # noqa: FBT001
    retry_after: float | None,
    server: Server,
) -> None:
    """Which codes are retried, and when, follows the OTLP specification."""
    server.code, server.trailers = getattr(grpc.StatusCode, code), trailers
    transport = transport_to(server)
    result = transport.send(b"", monotonic() + 30)
    transport.close()
    assert result[2:6] == (retry, True, retry_after, 0)
    assert (result.reason, result.retry_later) == (reason, retry)


def test_requests_end_at_their_deadline(server: Server) -> None:
    """A request to a silent collector ends at its deadline, or sooner if another thread aborts it."""
    server.code = None
    transport = transport_to(server)
    assert transport.send(b"", monotonic() + 0.2).reason == "timeout"
    transport.abort()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(transport.send(b"", monotonic() + 600)))
    thread.start()
    while thread.is_alive():
        transport.abort()
        thread.join(0.01)
    assert results[0].reason == "broken"
    transport.close()
    transport.close()


def test_a_connection_that_ends_during_a_call() -> None:
    """The collector may have received the spans, or crashed on them: they are not deferred but retried once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.sendall(b"\0\0\0\4\0\0\0\0\0")  # empty SETTINGS
                while b"Export" not in sock.recv(65_536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        transport = GrpcTransport(f"http://127.0.0.1:{listening.getsockname()[1]}", {}, "traces")
        result = transport.send(b"x", monotonic() + 30)
        thread.join()
        transport.close()
    assert (result.reason, result.retry, result.maybe_received, result.retry_later) == ("connect", True, True, False)
    assert "The connection ended. See the Collector's log" in result.message


def test_a_refused_connection() -> None:
    """The spans cannot have been received: they stay queued."""
    gone = Server()
    gone.close()
    transport = transport_to(gone)
    result = transport.send(b"", monotonic() + 30)
    assert (result.reason, result.retry, result.maybe_received) == ("connect", True, False)
    assert "Check that the Collector runs" in result.message
    transport.close()


def test_a_forked_child_opens_its_own_channel(server: Server) -> None:
    """It neither uses nor closes its parent's."""
    transport = transport_to(server)
    transport.detach_after_fork()
    assert not transport.send(b"", monotonic() + 30).reason
    parents = transport._channel
    transport.detach_after_fork()
    assert not transport.send(b"", monotonic() + 30).reason
    assert transport._channel is not parents
    transport.close()
    parents.close()


def test_codes_name_their_cause(server: Server) -> None:
    """And the setting to change, by its name."""
    causes = {
        "UNAUTHENTICATED": "Check the credentials in otlp_headers",
        "PERMISSION_DENIED": "Check the credentials in otlp_headers",
        "UNIMPLEMENTED": "Check that otlp_endpoint is an OTLP receiver over gRPC",
        "RESOURCE_EXHAUSTED": "lower batch_size",
        "INTERNAL": "Its log has the reason",
    }
    transport = transport_to(server)
    for code, text in causes.items():
        server.code = getattr(grpc.StatusCode, code)
        assert text in transport.send(b"", monotonic() + 30).message, code
    transport.close()


def test_failures_to_connect_name_their_cause(server: Server) -> None:
    """A server of HTTP/1, an unknown host, a port without TLS; and details as newer and older libraries word them."""
    with Collector() as collector:
        transport = GrpcTransport(collector.url, {}, "traces")
        assert "gRPC" in transport.send(b"", monotonic() + 30).message
        transport.close()
    for url, text in (
        ("http://unknown.invalid:4317", "Check the host in otlp_endpoint"),
        (server.url.replace("http:", "https:"), "The port does not speak TLS"),
    ):
        transport = GrpcTransport(url, {}, "traces")
        assert text in transport.send(b"", monotonic() + 30).message
        transport.close()
    details = "failed to connect to all addresses; last error: "
    for more, text in (
        ("missing selected ALPN property", "otlp_protocol='http/protobuf'"),
        ("Trying to connect an http1.x server", "otlp_protocol='http/protobuf'"),
        ("DNS resolution failed for collector:4317", "Check the host in otlp_endpoint"),
        ("CERTIFICATE_VERIFY_FAILED", "set OTEL_EXPORTER_OTLP_CERTIFICATE"),
        ("Socket closed", "use https:// in otlp_endpoint"),
        ("Failed parsing HTTP/2 (Expected SETTINGS frame)", "Use the Collector's gRPC port (4317)"),
        ("tcp handshaker shutdown", "firewall"),
    ):
        assert text in grpc_cause("UNAVAILABLE", details + more, "collector", 4317)
    assert "Check the host in otlp_endpoint" in grpc_cause("UNAVAILABLE", "DNS resolution failed for x", "x", 4317)
    assert "Port 4318 usually speaks HTTP" in grpc_cause("DEADLINE_EXCEEDED", "", "collector", 4318)
    assert "raise otlp_timeout" in grpc_cause("DEADLINE_EXCEEDED", "", "collector", 4317)


def test_which_endpoints_use_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme decides; without one, TLS is used unless `OTEL_EXPORTER_OTLP_INSECURE=true`."""
    for url, variable, encrypted in (
        ("http://host:4317", "", False),
        ("https://host:4317", "true", True),
        ("host:4317", "", True),
        ("host:4317", "true", False),
    ):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", variable)
        transport = GrpcTransport(url, {}, "traces")
        assert (transport.encrypted, transport.target) == (encrypted, url)


def test_invalid_certificates(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file is a failure of TLS. An invalid one, and an untrusted server, are retried."""
    url = server.url.replace("http:", "https:")
    result = GrpcTransport(url, {}, "traces").send(b"", monotonic() + 30)
    assert result.retry
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem")
    result = GrpcTransport(url, {}, "traces").send(b"", monotonic() + 30)
    assert (result.reason, result.maybe_received) == ("tls", False)
    assert "Check the files in OTEL_EXPORTER_OTLP_CERTIFICATE" in result.message
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", __file__)
    assert GrpcTransport(url, {}, "traces").send(b"", monotonic() + 30).retry
