"""The likely cause of a failed export and the setting to change, as one or two sentences for the log."""

from __future__ import annotations

import socket
from typing import Final

HEAD_BYTES: Final = 9
"""First bytes of a response that are kept to recognize its protocol: a frame header of HTTP/2."""

GRPC_PORT: Final = 4317
HTTP_PORT: Final = 4318

USE_HTTP_PORT: Final = "Use port 4318 or otlp_protocol='grpc'"
SPEAKS_GRPC: Final = f"The port speaks HTTP/2, which usually means gRPC. {USE_HTTP_PORT}"
USUALLY_GRPC: Final = f"Port 4317 usually speaks gRPC. {USE_HTTP_PORT}"
SPEAKS_HTTP: Final = (
    "The port does not speak gRPC. Use the Collector's gRPC port (4317) or otlp_protocol='http/protobuf'"
)
USUALLY_HTTP: Final = "Port 4318 usually speaks HTTP. Use port 4317 or otlp_protocol='http/protobuf'"
MAY_SPEAK_TLS: Final = "If the port expects TLS, use https:// in otlp_endpoint"
SPEAKS_TLS: Final = "The port expects TLS. Use https:// in otlp_endpoint"
NO_TLS: Final = "The port does not speak TLS. Use http:// in otlp_endpoint, or the Collector's TLS port"
NOT_RUNNING: Final = "Check that the Collector runs, and host and port of otlp_endpoint"
UNKNOWN_HOST: Final = "The host name cannot be resolved. Check the host in otlp_endpoint"
NO_GRPC: Final = "Check that otlp_endpoint is an OTLP receiver over gRPC, and the network and firewall on the way to it"
UNREACHABLE: Final = "Check the host in otlp_endpoint, and the network and firewall on the way to it"
SLOW: Final = "Check that otlp_endpoint is an OTLP receiver and is not overloaded, or raise otlp_timeout"
CREDENTIALS: Final = "Check the credentials in otlp_headers (OTEL_EXPORTER_OTLP_HEADERS)"
UNTRUSTED: Final = (
    "Use a host name that the certificate contains, and set OTEL_EXPORTER_OTLP_CERTIFICATE to the file of its authority"
)
CLIENT_CERTIFICATE: Final = (
    "The Collector may require a client certificate. Set OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and "
    "OTEL_EXPORTER_OTLP_CLIENT_KEY"
)
TLS_FILES: Final = (
    "Check the files in OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and "
    "OTEL_EXPORTER_OTLP_CLIENT_KEY"
)

WEB_PAGE: Final = "Check host, port and path of otlp_endpoint: an OTLP receiver, not the user interface of one"
"""Servers of web pages, such as Jaeger's user interface, respond 200 to any path."""

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def status_cause(status: int, signal: str, port: int, path: str, *, encrypted: bool) -> str:
    """Explain a response with this HTTP status to a request for `path`."""
    if 300 <= status < 400:  # noqa: PLR2004 - the statuses of redirection
        return "Redirects are not followed, set otlp_endpoint to the final URL"
    if status == 400 and port == GRPC_PORT:  # noqa: PLR2004 - what some gRPC servers answer to HTTP/1
        return USUALLY_GRPC
    if status == 400 and not encrypted:  # noqa: PLR2004 - what some servers answer to plain HTTP on a TLS port
        return f"Its log has the reason. {MAY_SPEAK_TLS}"
    if status in {404, 405}:
        if not path.partition("?")[0].endswith(f"/v1/{signal}"):  # the only variable with a whole URL
            return f"Append /v1/{signal} to OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT, which is used as it is"
        return f"Check host, port and path of otlp_endpoint; /v1/{signal} is appended to it"
    return _STATUS_CAUSES.get(status, "Its log has the reason")


_STATUS_CAUSES: Final = {
    401: CREDENTIALS,
    403: CREDENTIALS,
    413: "The request is too large for it. Lower batch_size",
    415: "It does not accept protobuf. Check that otlp_endpoint is an OTLP receiver",
    429: "It limits the rate. Raise its limit or export less",
    502: "It is overloaded or not running. See its log and the proxy's",
    503: "It is overloaded or starting. See its log",
    504: "It is overloaded. See its log and the proxy's",
}


def connection_cause(exc: Exception, host: str) -> str:
    """Explain why no connection could be opened."""
    if type(exc).__module__ == "ssl":
        return _tls_cause(exc)
    if isinstance(exc, socket.gaierror | UnicodeError):
        return UNKNOWN_HOST
    if isinstance(exc, FileNotFoundError):
        return TLS_FILES
    if isinstance(exc, ConnectionRefusedError):
        return _refused_cause(host)
    return UNREACHABLE


def _refused_cause(host: str) -> str:
    inside = ". Inside a container, localhost is the container itself" if host in LOCAL_HOSTS else ""
    return f"{NOT_RUNNING}{inside}"


def _tls_cause(exc: Exception) -> str:
    if type(exc).__name__ == "SSLCertVerificationError":
        return UNTRUSTED
    if getattr(exc, "reason", None) in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}:
        return NO_TLS
    return TLS_FILES


def response_cause(exc: Exception, head: bytes, port: int, *, encrypted: bool) -> str:
    """Explain a connection that ended, or a response that is not HTTP. `head` are the first bytes received."""
    if _is_http2(head):
        return SPEAKS_GRPC
    if not encrypted and head[:2] == b"\x15\x03":  # an alert of TLS
        return SPEAKS_TLS
    if port == GRPC_PORT:
        return USUALLY_GRPC
    if type(exc).__module__ == "ssl":  # with TLS 1.3 a server checks the client's certificate after the handshake
        return CLIENT_CERTIFICATE
    return f"Check that otlp_endpoint is an OTLP receiver over {'https' if encrypted else 'http'}"


def timeout_cause(head: bytes, port: int) -> str:
    """Explain a response that did not come in time. `head` are the first bytes received."""
    return SPEAKS_GRPC if _is_http2(head) else USUALLY_GRPC if port == GRPC_PORT else SLOW


def _is_http2(head: bytes) -> bool:
    """Return whether these are a SETTINGS frame: a length (3 bytes), type 4, flags, and stream 0 (4 bytes)."""
    return len(head) == HEAD_BYTES and head[3] == 4 and head[5:] == b"\0\0\0\0"  # noqa: PLR2004


def grpc_cause(code: str, details: str, host: str, port: int | None) -> str:
    """Explain a gRPC status. `details` are those of the gRPC library, whose wording has no stable form."""
    if code == "UNAVAILABLE":
        if "connect" not in details and "resol" not in details:
            return "The connection ended. See the Collector's log, and that of a proxy before it"
        if "Connection refused" in details:
            return _refused_cause(host)
        return next((cause for text, cause in _GRPC_CAUSES if text in details), NO_GRPC)
    if code == "DEADLINE_EXCEEDED" and port == HTTP_PORT:
        return USUALLY_HTTP
    return _CODE_CAUSES.get(code, "Its log has the reason")


_CODE_CAUSES: Final = {
    "DEADLINE_EXCEEDED": SLOW,
    "PERMISSION_DENIED": CREDENTIALS,
    "RESOURCE_EXHAUSTED": "It limits the rate or the size of requests. Raise its limit or lower batch_size",
    "UNAUTHENTICATED": CREDENTIALS,
    "UNIMPLEMENTED": "Check that otlp_endpoint is an OTLP receiver over gRPC that accepts this signal",
}

_GRPC_CAUSES: Final = (
    ("Failed parsing HTTP/2", SPEAKS_HTTP),
    ("http1.x server", SPEAKS_HTTP),
    ("missing selected ALPN", SPEAKS_HTTP),
    ("errors resolving", UNKNOWN_HOST),
    ("DNS resolution failed", UNKNOWN_HOST),
    ("CERTIFICATE_VERIFY_FAILED", UNTRUSTED),
    ("Hostname Verification", UNTRUSTED),
    ("WRONG_VERSION_NUMBER", f"{NO_TLS}. Without a scheme, TLS is used unless OTEL_EXPORTER_OTLP_INSECURE=true"),
    ("not in peer certificate", UNTRUSTED),
    ("Socket closed", MAY_SPEAK_TLS),
    ("reset by peer", MAY_SPEAK_TLS),
)
"""Parts of details with their causes, the first that matches; as worded by grpcio 1.66 to 1.85."""
