"""An OTLP/HTTP receiver in a separate process that decodes exports and counts spans; with `hang` it never responds."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.process import answers

received: list[int] = []
HANGS = sys.argv[1:] == ["hang"]


class Receiver(BaseHTTPRequestHandler):
    """Handles `POST /v1/traces`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Count the spans of one export."""
        if HANGS:
            threading.Event().wait()
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        export = ExportTraceServiceRequest.FromString(body)
        received.append(sum(len(scope.spans) for resource in export.resource_spans for scope in resource.scope_spans))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def serve() -> None:
    """Report the port, then the number of spans for each command."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out = answers()
    out.write(json.dumps(server.server_port) + "\n")
    for _ in sys.stdin:
        out.write(json.dumps(sum(received)) + "\n")


if __name__ == "__main__":
    serve()
