"""HTTP transport: requests, results of responses, causes of failures, deadlines, TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector, Mode
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from tools import needs

from fastapi_observe.export.causes import GRPC_PORT, connection_cause, response_cause, status_cause, timeout_cause
from fastapi_observe.export.http import MAX_RESPONSE_BYTES, HttpTransport
from fastapi_observe.export.transport import MAX_RETRY_AFTER, ExportResult, rejected_items, strip_credentials
from fastapi_observe.internal.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _unusable_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set proxies that do not exist: the transport does not use environment proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def send(url: str, body: bytes = b"x", seconds: float = 5.0, headers: dict[str, str] | None = None) -> ExportResult:
    """Send one request and close."""
    transport = HttpTransport(url, headers or {}, "traces")
    result = transport.send(body, monotonic() + seconds)
    transport.close()
    return result


def test_requests() -> None:
    """They have a type, an agent, the user's headers, which win, and credentials and query of the URL."""
    with Collector() as collector:
        url = f"http://me:p%40ss@127.0.0.1:{collector.port}/v1/traces?key=1"
        assert send(url, headers={"X-Tenant": "ä", "User-Agent": "mine"}) == ExportResult()
        headers = collector.headers[0]
        assert collector.paths == ["/v1/traces?key=1"]
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["authorization"] == "Basic bWU6cEBzcw=="
    assert headers["user-agent"] == "mine"
    assert headers["x-tenant"].encode("latin-1").decode() == "ä"
    assert "content-encoding" not in headers


def test_large_requests_are_compressed() -> None:
    """Requests above 1 KiB are compressed with gzip."""
    with Collector() as collector:
        assert not send(collector.url, b"x" * 2000).reason
        assert collector.bodies == [b"x" * 2000]
        assert collector.headers[0]["content-encoding"] == "gzip"
        assert collector.headers[0]["user-agent"].startswith("fastapi-observe/")
        assert collector.paths == ["/"]


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("3", 3, 3),
        ("1e9", None, None),
        ("999999", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("in 20 seconds", 15, 20),
        (formatdate(0, usegmt=True), 0, 0),
        ("soon", None, None),
        ("", None, None),
        ("Mon, 99 Jan 99999999999999 00:00:00 GMT", None, None),
    ],
)
def test_retry_after(value: str, low: float | None, high: float | None) -> None:
    """`Retry-After` is seconds or a date, at most 30 seconds; other values are ignored."""
    with Collector("503") as collector:
        in_20_seconds = formatdate(time() + 20, usegmt=True)
        collector.retry_after = in_20_seconds if value == "in 20 seconds" else value
        result = send(collector.url)
    assert (result.reason, result.retry, result.retry_later) == ("http_5xx", True, True)
    assert (result.retry_after is None) == (low is None)
    if low is not None and high is not None and result.retry_after is not None:
        assert low <= result.retry_after <= high


def test_every_deadline_holds() -> None:
    """A request to a collector that is silent, drips, or does not accept ends at its deadline."""
    with Collector("hang") as hang, Collector("drip") as drip, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.settimeout(0)
            sock.connect_ex(full.getsockname())
        for url in (hang.url, drip.url, f"http://127.0.0.1:{full.getsockname()[1]}"):
            started = monotonic()
            result = send(url, seconds=0.2)
            assert 0.15 < monotonic() - started < 5
            assert (result.reason, result.retry) == ("timeout", True)
        assert send(hang.url, seconds=-1).reason == "timeout"
        for sock in waiting:
            sock.close()


def test_responses_are_read_up_to_a_limit() -> None:
    """A success with an endless body is a success; endless headers are a failure. The limit is 64 KiB."""
    assert MAX_RESPONSE_BYTES == 64 * 1024
    with Collector("huge") as collector:
        assert not send(collector.url).reason
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = server.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 200 OK\r\n")
            try:
                for at in range(100_000):
                    sock.sendall(b"x-%d: " % at + b"y" * 1000 + b"\r\n")
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    assert send(f"http://127.0.0.1:{server.getsockname()[1]}").reason == "broken"
    thread.join()
    server.close()


def test_abort_ends_a_request_of_another_thread() -> None:
    """`abort` ends it before its deadline; without a request it does nothing."""
    with Collector("hang") as collector:
        transport = HttpTransport(collector.url, {}, "traces")
        transport.abort()
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(transport.send(b"x", monotonic() + 600)))
        thread.start()
        while thread.is_alive():  # again, because the connection may not be open yet
            transport.abort()
            thread.join(0.01)
        transport.abort()
    assert results[0].reason == "broken"


def test_a_kept_connection_that_ends_is_replaced() -> None:
    """Once, if the collector closes it just as it is used again; and in a forked child, where it is the parent's."""
    with Collector() as collector:
        transport = HttpTransport(collector.url, {}, "traces")
        assert not transport.send(b"x", monotonic() + 5).reason
        collector.mode = "close"
        assert transport.send(b"x", monotonic() + 5).reason == "broken"
        assert collector.connections == 2
        collector.mode = "ok"
        assert not transport.send(b"x", monotonic() + 5).reason
        transport.detach_after_fork()
        assert not transport.send(b"x", monotonic() + 5).reason
        assert collector.connections == 4
        transport.close()
        transport.abort()


def test_failures_to_connect_are_not_received() -> None:
    """With a refused connection or an unknown host the items cannot have been received: they may be sent again."""
    collector = Collector(listens=False)
    for url in (collector.url, "http://unknown.invalid:4318"):
        result = send(url)
        assert (result.reason, result.retry, result.maybe_received) == ("connect", True, False)


def test_an_invalid_host_name() -> None:
    """It fails like one that does not exist."""
    for host in ("x" * 64 + ".local", "ä" * 64):
        assert send(f"http://{host}:4318/v1/traces").reason == "connect"


def test_the_codec_of_host_names_is_imported_early() -> None:
    """Otherwise two threads that look up their first host at the same moment may get a LookupError."""
    script = """
        import sys
        from fastapi_observe.export.http import HttpTransport
        HttpTransport("http://localhost:4318", {}, "traces")
        assert "encodings.idna" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)  # noqa: S603 - our own code


def test_the_second_address_is_tried() -> None:
    """`localhost` may resolve to ::1 first, where the collector does not listen."""
    with Collector() as collector:
        assert not send(f"http://localhost:{collector.port}").reason


@pytest.mark.parametrize(
    ("message", "rejected"),
    [
        (ExportTraceServiceResponse().SerializeToString(), 0),
        (
            ExportTraceServiceResponse(
                partial_success=ExportTracePartialSuccess(rejected_spans=300, error_message="no room")
            ).SerializeToString(),
            300,
        ),
        (
            ExportTraceServiceResponse(
                partial_success=ExportTracePartialSuccess(error_message="a word")
            ).SerializeToString(),
            0,
        ),
        (
            ExportTraceServiceResponse(
                partial_success=ExportTracePartialSuccess(rejected_spans=-1)
            ).SerializeToString(),
            0,
        ),
        (b"\x08\x05" + b"\x0a\x02\x08\x07", 7),
        (b"<html>", 0),
        (b"\xff" * 100, 0),
        (b"\x0a\xff", 0),
    ],
)
def test_rejected_items(message: bytes, rejected: int) -> None:
    """The count of a partial success is read; unknown fields are skipped, and malformed messages count 0."""
    assert rejected_items(message) == rejected


def test_responses_of_another_type_are_not_parsed() -> None:
    """Only protobuf is parsed, not what a proxy sends."""
    body = b"\x0a\x02\x08\x07"
    for kind, rejected in (b"text/plain", 0), (b"application/x-protobuf", 7):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: 4\r\nconnection: close\r\n\r\n" % kind
        assert send_to_server_of(head + body).rejected == rejected


def test_a_web_page_is_a_failure() -> None:
    """Not an OTLP receiver: a user interface responds 200 to any path, and its spans would be lost unnoticed."""
    for kind in (b"text/html", b"Text/HTML; charset=utf-8"):
        result = send_to_server_of(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: 6\r\n\r\n<html>" % kind)
        assert (result.reason, result.retry) == ("broken", False)
        assert "the response is a web page. Check host, port and path of otlp_endpoint" in str(result.message)


def send_to_server_of(response: bytes, scheme: str = "http") -> ExportResult:
    """Send one request to a server that responds with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        result = send(f"{scheme}://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        return result


def test_the_status_of_a_success_is_enough() -> None:
    """The items of a 200 were accepted, even if its body is malformed: chunks of negative, invalid or endless size."""
    for rest in (b"-5\r\nabc\r\n", b"ZZZZ\r\n", b"", b"F" * 20 + b"\r\nabc", b"\xff\r\n"):
        assert send_to_server_of(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + rest) == ExportResult()


def test_any_other_status_is_a_rejection() -> None:
    """Only 2xx is success, and only 429, 502, 503 and 504 may be retried."""
    for status in (101, 300, 404, 500, 501, 999):
        result = send_to_server_of(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % status)
        assert (result.reason, result.retry, result.retry_later) == (f"http_{status // 100}xx", False, False)


CAUSES: dict[Mode, str] = {
    "302": "the Collector responded 302. Redirects are not followed, set otlp_endpoint to the final URL",
    "400": "If the port expects TLS, use https:// in otlp_endpoint",
    "401": "Check the credentials in otlp_headers (OTEL_EXPORTER_OTLP_HEADERS)",
    "403": "Check the credentials in otlp_headers",
    "404": "Check host, port and path of otlp_endpoint; /v1/traces is appended to it",
    "405": "Check host, port and path of otlp_endpoint",
    "413": "Lower batch_size",
    "415": "Check that otlp_endpoint is an OTLP receiver",
    "429": "Raise its limit or export less",
    "500": "the Collector responded 500. Its log has the reason",
    "503": "It is overloaded or starting",
    "close": "the connection was closed without a response (RemoteDisconnected). Check that otlp_endpoint",
    "garbage": "the response is not HTTP (BadStatusLine). Check that otlp_endpoint is an OTLP receiver over http",
    "hang": "no response in time. Check that otlp_endpoint is an OTLP receiver",
    "http2": "The port speaks HTTP/2, which usually means gRPC. Use port 4318 or otlp_protocol='grpc'",
    "tls": "The port expects TLS. Use https:// in otlp_endpoint",
}
"""What the message of a failure contains, by the mode of the collector."""


def test_failures_name_their_cause() -> None:
    """And the setting to change, by its name."""
    for mode, text in CAUSES.items():
        with Collector(mode) as collector:
            result = send(f"{collector.url}/v1/traces", seconds=0.2 if mode == "hang" else 10.0)
            assert text in result.message, mode


def test_failures_to_connect_name_their_cause() -> None:
    """A closed port, with a hint for containers if it is on localhost, and an unknown host."""
    assert "Inside a container, localhost is the container itself" in send(Collector(listens=False).url).message
    assert send("http://unknown.invalid:4318").message.endswith("Check the host in otlp_endpoint")
    for host in ("10.1.2.3", "collector"):
        assert "container" not in connection_cause(ConnectionRefusedError(), host)
    assert "firewall" in connection_cause(OSError(113, "No route to host"), "10.1.2.3")
    assert "Check the files in OTEL_EXPORTER_OTLP_CERTIFICATE" in connection_cause(ssl.SSLError("other"), "collector")


def test_a_url_that_is_used_as_it_is_may_lack_its_path() -> None:
    """Only the endpoint of the traces variable is used without `/v1/traces`: after 404 the message names it."""
    for path, text in (
        ("/", "Append /v1/traces to OTEL_EXPORTER"),
        ("/x/v1/traces?a=b", "Check host, port and path of"),
    ):
        assert status_cause(404, "traces", 4318, path, encrypted=False).startswith(text)
    assert status_cause(404, "logs", 4318, "/v1/logs", encrypted=False).endswith("/v1/logs is appended to it")


def test_port_4317_usually_speaks_grpc() -> None:
    """Failures on it that are not explained by the response say so."""
    causes = [
        response_cause(ConnectionResetError(), b"", GRPC_PORT, encrypted=False),
        timeout_cause(b"", GRPC_PORT),
        status_cause(400, "traces", GRPC_PORT, "/v1/traces", encrypted=False),
    ]
    assert [cause.startswith("Port 4317 usually speaks gRPC. Use port 4318") for cause in causes] == [True] * 3
    assert "HTTP/2" in timeout_cause(b"\0\0\6\4\0\0\0\0\0", 4000)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://me:secret@host:4318/v1/traces?key=1", "http://host:4318/v1/traces"),
        ("https://host", "https://host"),
        ("http://[::1]:4318/x", "http://[::1]:4318/x"),
        ("host:4317", "host:4317"),
    ],
)
def test_urls_in_messages(url: str, seen: str) -> None:
    """They have no user, password and query."""
    assert strip_credentials(url) == seen


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate for `localhost` and its key."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(  # noqa: S603 - our own arguments
        [needs("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[tuple[str, list[Any]]]:
    """Serve one connection at a time over TLS, and require a client certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate[0]))
    context.load_cert_chain(*map(str, certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    server = socket.create_server(("127.0.0.1", 0))
    seen: list[Any] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as safe:
                try:
                    safe.do_handshake()
                    while safe.recv(4096):
                        seen.append(safe.getpeercert())
                        safe.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                except OSError:
                    # Closed with a request unread, the connection would be reset, at times before the alert is read.
                    with suppress(OSError), socket.socket(fileno=safe.detach()) as bare:
                        bare.shutdown(socket.SHUT_WR)
                        while bare.recv(4096):
                            pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://localhost:{server.getsockname()[1]}", seen
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_tls(secure: tuple[str, list[Any]], certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's variables name the files, else the system's authorities apply. Failures say what to set."""
    url, seen = secure
    result = send(url)
    assert (result.reason, result.maybe_received) == ("tls", False)
    assert "set OTEL_EXPORTER_OTLP_CERTIFICATE" in result.message
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate[0]))
    result = send(url)
    assert result.reason == "broken"
    assert "Set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" in result.message
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", str(certificate[0]))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", str(certificate[1]))
    transport = HttpTransport(url, {}, "traces")
    for _ in range(2):
        assert not transport.send(b"x", monotonic() + 5).reason
        assert not transport.send(b"x", monotonic() + 5).reason
        transport.close()
    assert seen[0]["subject"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem")
    result = send(url)
    assert result.reason == "tls"
    assert "Check the files in OTEL_EXPORTER_OTLP_CERTIFICATE" in result.message
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate[0]))
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE")
    result = send_to_server_of(b"HTTP/1.1 400 Bad Request\r\n\r\n", "https")
    assert "The port does not speak TLS. Use http://" in result.message
