"""The HTTP transport: what it sends, what it makes of answers, and that it ends in time."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from tools import needs

from fastapi_observe.export.http import MAX_RESPONSE_BYTES, HttpTransport
from fastapi_observe.export.transport import MAX_RETRY_AFTER, redact_url, rejected_items
from fastapi_observe.internal.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi_observe.export.transport import ExportResult


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of the environment are not asked: nobody listens there."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def send(url: str, body: bytes = b"x", seconds: float = 5.0, headers: dict[str, str] | None = None) -> ExportResult:
    """Send one request and close."""
    transport = HttpTransport(url, headers or {}, "traces")
    answer = transport.send(body, monotonic() + seconds)
    transport.close()
    return answer


def test_what_is_sent() -> None:
    """Type, agent and the user's headers, which win; a user and password of the URL; the query stays."""
    with Collector() as collector:
        url = f"http://me:p%40ss@127.0.0.1:{collector.port}/v1/traces?key=1"
        assert send(url, headers={"X-Tenant": "ä", "User-Agent": "mine"}) == ("", "", False, True, None, 0, False)
        headers = collector.headers[0]
        assert collector.paths == ["/v1/traces?key=1"]
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["authorization"] == "Basic bWU6cEBzcw=="
    assert headers["user-agent"] == "mine"
    assert headers["x-tenant"].encode("latin-1").decode() == "ä"
    assert "content-encoding" not in headers


def test_large_requests_are_compressed() -> None:
    """Above 1 KiB."""
    with Collector() as collector:
        assert not send(collector.url, b"x" * 2000).reason
        assert collector.bodies == [b"x" * 2000]
        assert collector.headers[0]["content-encoding"] == "gzip"
        assert collector.headers[0]["user-agent"].startswith("fastapi-observe/")
        assert collector.paths == ["/"]


@pytest.mark.parametrize(
    ("given", "low", "high"),
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
def test_retry_after(given: str, low: float | None, high: float | None) -> None:
    """Seconds or a date, at most 30 seconds; what is neither says nothing."""
    with Collector("503") as collector:
        in_20_seconds = formatdate(time() + 20, usegmt=True)
        collector.retry_after = in_20_seconds if given == "in 20 seconds" else given
        answer = send(collector.url)
    assert (answer.reason, answer.retry, answer.retry_later) == ("http_5xx", True, True)
    assert (answer.retry_after is None) == (low is None)
    if low is not None and high is not None and answer.retry_after is not None:
        assert low <= answer.retry_after <= high


def test_every_deadline_holds() -> None:
    """A collector that is silent, drips, or never accepts costs the time that was given, and no more."""
    with Collector("hang") as hang, Collector("drip") as drip, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.settimeout(0)
            sock.connect_ex(full.getsockname())
        for url in (hang.url, drip.url, f"http://127.0.0.1:{full.getsockname()[1]}"):
            started = monotonic()
            answer = send(url, seconds=0.2)
            assert monotonic() - started < 1.0
            assert (answer.reason, answer.retry) == ("timeout", True)
        assert send(hang.url, seconds=-1).reason == "timeout"
        for sock in waiting:
            sock.close()


def test_the_answer_is_read_up_to_a_bound() -> None:
    """A success is a success however long its body is; endless headers are none."""
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
    """At once, whatever its deadline; without a request it does nothing."""
    with Collector("hang") as collector:
        transport = HttpTransport(collector.url, {}, "traces")
        transport.abort()
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(transport.send(b"x", monotonic() + 60)))
        thread.start()
        while not collector.connections or transport._sock is None or not transport._sock.deadline:
            pass
        while thread.is_alive():
            transport.abort()
            thread.join(0.01)
        transport.abort()
    assert answers[0].reason == "broken"


def test_a_kept_connection_may_end_at_any_time() -> None:
    """It is replaced, once, where the collector closes it just as it is used again; a child forgets its parent's."""
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
        assert transport._sock is not None
        transport._sock.sock.close()
        transport.abort()
        transport.close()


def test_nobody_is_reached() -> None:
    """A refused connection, and a name that nobody has, were not reached: what was sent may be sent again."""
    collector = Collector(listens=False)
    for url in (collector.url, "http://nobody.invalid:4318"):
        answer = send(url)
        assert (answer.reason, answer.retry, answer.maybe_received) == ("connect", True, False)


def test_a_host_that_is_no_name() -> None:
    """It is not found, like any other that does not exist."""
    for host in ("x" * 64 + ".local", "ä" * 64):
        assert send(f"http://{host}:4318/v1/traces").reason == "connect"


def test_two_threads_may_look_up_their_first_host_at_once() -> None:
    """The codec that Python asks for is there by then: what imports it second would get a LookupError."""
    script = """
        import sys
        from fastapi_observe.export.http import HttpTransport
        HttpTransport("http://localhost:4318", {}, "traces")
        assert "encodings.idna" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)  # noqa: S603 - ours


def test_the_second_address_is_tried() -> None:
    """`localhost` may stand for ::1 first, where nobody listens."""
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
    """The count of a partial success; fields of a later protocol are passed over, nonsense counts nothing."""
    assert rejected_items(message) == rejected


def test_an_answer_of_another_type_is_not_read() -> None:
    """Only protobuf is parsed: a page of a proxy says nothing about spans."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = server.accept()
        with sock:
            sock.recv(1000)
            body = b"\x0a\x02\x08\x07"
            sock.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\nconnection: close\r\n\r\n" + body
            )

    thread = threading.Thread(target=serve)
    thread.start()
    assert send(f"http://127.0.0.1:{server.getsockname()[1]}").rejected == 0
    thread.join()
    server.close()


def answering(response: bytes) -> ExportResult:
    """Send one request to somebody who answers with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        answer = send(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        return answer


@pytest.mark.parametrize(
    "rest",
    [b"-5\r\nabc\r\n", b"ZZZZ\r\n", b"", b"F" * 20 + b"\r\nabc", b"\xff\r\n"],
    ids=["negative", "no number", "none", "endless", "no text"],
)
def test_the_status_of_a_success_is_enough(rest: bytes) -> None:
    """Items of a 200 were taken, whatever its body is."""
    answer = answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + rest)
    assert answer == ("", "", False, True, None, 0, False)


@pytest.mark.parametrize("status", [101, 300, 404, 500, 501, 999])
def test_any_other_status_is_a_refusal(status: int) -> None:
    """Only 2xx is success, and only 429, 502, 503 and 504 ask for the same again."""
    answer = answering(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % status)
    assert (answer.reason, answer.retry, answer.retry_later) == (f"http_{status // 100}xx", False, False)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://me:secret@host:4318/v1/traces?key=1", "http://host:4318/v1/traces"),
        ("https://host", "https://host"),
        ("http://[::1]:4318/x", "http://[::1]:4318/x"),
        ("host:4317", "host:4317"),
    ],
)
def test_what_is_shown_of_a_url(url: str, seen: str) -> None:
    """Where it goes, and nothing secret."""
    assert redact_url(url) == seen


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a key and a certificate for `localhost`."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(  # noqa: S603 - our own words
        [needs("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[tuple[str, list[Any]]]:
    """Serve one connection at a time over TLS; clients must show a certificate."""
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
            try:
                with context.wrap_socket(sock, server_side=True) as safe:
                    while safe.recv(4096):
                        seen.append(safe.getpeercert())
                        safe.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://localhost:{server.getsockname()[1]}", seen
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_tls(secure: tuple[str, list[Any]], certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's variables name the files; without them the system's authorities decide."""
    url, seen = secure
    answer = send(url)
    assert (answer.reason, answer.maybe_received) == ("tls", False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate[0]))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", str(certificate[0]))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", str(certificate[1]))
    transport = HttpTransport(url, {}, "traces")
    for _ in range(2):
        assert not transport.send(b"x", monotonic() + 5).reason
        assert not transport.send(b"x", monotonic() + 5).reason
        transport.close()
    assert seen[0]["subject"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem")
    assert send(url).reason == "tls"


def test_a_bound_is_smaller_than_it_could_hurt() -> None:
    """64 KiB."""
    assert MAX_RESPONSE_BYTES == 64 * 1024
