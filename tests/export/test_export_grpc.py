"""Export over gRPC: the same promises as over HTTP, held against a real server."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from pydantic import SecretStr

from fastapi_observe import ObserveSettings
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
    """An OTLP/gRPC receiver that answers with `code`, and with None never."""

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
            context.abort(self.code, "as told")
        self.metadata.append(dict(context.invocation_metadata()))
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        partial = ExportTracePartialSuccess(rejected_spans=self.rejected)
        return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())

    def close(self) -> None:
        """End it."""
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
    """Through the queue, with headers, compressed where they are long; a partial success counts the refused ones."""
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
    """What may be sent again, and when, is as OTLP says."""
    server.code, server.trailers = getattr(grpc.StatusCode, code), trailers
    transport = transport_to(server)
    answer = transport.send(b"", monotonic() + 5)
    transport.close()
    assert (answer.reason, answer.retry, answer.maybe_received, answer.retry_after) == (
        reason,
        retry,
        True,
        retry_after,
    )
    assert answer.retry_later == retry


def test_a_deadline_holds(server: Server) -> None:
    """A collector that is silent costs the time that was given; another thread can end a request sooner."""
    server.code = None
    transport = transport_to(server)
    started = monotonic()
    assert transport.send(b"", started + 0.2).reason == "timeout"
    assert monotonic() - started < 2
    transport.abort()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(transport.send(b"", monotonic() + 60)))
    thread.start()
    while thread.is_alive():
        transport.abort()
        thread.join(0.01)
    assert answers[0].reason == "broken"
    transport.close()
    transport.close()


def test_a_connection_that_ends_under_a_call_is_no_answer() -> None:
    """The collector may have taken the spans, or broken on them: they are not sent again for ever."""
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
        answer = transport.send(b"x", monotonic() + 5)
        thread.join()
        transport.close()
    assert (answer.reason, answer.retry, answer.maybe_received, answer.retry_later) == ("connect", True, True, False)


def test_nobody_listens() -> None:
    """A refused connection was not reached: the spans are kept."""
    gone = Server()
    gone.close()
    transport = transport_to(gone)
    answer = transport.send(b"", monotonic() + 5)
    assert (answer.reason, answer.retry, answer.maybe_received) == ("connect", True, False)
    transport.close()


def test_a_forked_child_opens_its_own(server: Server) -> None:
    """The parent's channel is let alone."""
    transport = transport_to(server)
    transport.detach_after_fork()
    assert not transport.send(b"", monotonic() + 5).reason
    parents = transport._channel
    transport.detach_after_fork()
    assert not transport.send(b"", monotonic() + 5).reason
    assert transport._channel is not parents
    transport.close()
    parents.close()


@pytest.mark.parametrize(
    ("url", "variable", "insecure"),
    [
        ("http://host:4317", None, True),
        ("https://host:4317", "true", False),
        ("host:4317", None, False),
        ("host:4317", "true", True),
    ],
)
def test_who_is_trusted(url: str, variable: str | None, insecure: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """The scheme decides; without one `OTEL_EXPORTER_OTLP_INSECURE`, else it is TLS."""
    if variable is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", variable)
    transport = GrpcTransport(url, {}, "traces")
    assert (not transport.encrypted, transport._address) == (insecure, "host:4317")


def test_certificates_that_are_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is missing is told as a fault of TLS; the system's authorities know nobody here."""
    url = server.url.replace("http:", "https:")
    answer = GrpcTransport(url, {}, "traces").send(b"", monotonic() + 5)
    assert answer.retry
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem")
    answer = GrpcTransport(url, {}, "traces").send(b"", monotonic() + 5)
    assert (answer.reason, answer.maybe_received) == ("tls", False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", __file__)
    assert GrpcTransport(url, {}, "traces").send(b"", monotonic() + 5).retry
