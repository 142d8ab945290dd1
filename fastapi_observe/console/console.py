"""`Console`: the development page of one app, served by the outer middleware without a route of the app."""

from __future__ import annotations

import hashlib
import logging
import secrets
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from fastapi_observe.console.address import address_from_command_line, address_from_request
from fastapi_observe.console.api import Api
from fastapi_observe.console.discovery import ServerFile
from fastapi_observe.console.gates import Gate, in_container
from fastapi_observe.console.signal import ConsoleProcessor, ConsoleSignal
from fastapi_observe.console.store import Store
from fastapi_observe.internal import json
from fastapi_observe.requests.routing import path_in_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from fastapi_observe.observability import Observability
    from fastapi_observe.records.request import RequestRecord

ASSETS: Final = {
    "app.js": b"text/javascript; charset=utf-8",
    "lit-html.js": b"text/javascript; charset=utf-8",
    "style.css": b"text/css; charset=utf-8",
}

SECURITY_HEADERS: Final = (
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
            b"trusted-types lit-html"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""No inline script or style, nothing from elsewhere, no frame: what an app logs is hostile text to this page."""

MAX_QUERY_LENGTH: Final = 1024


class Console:
    """Gathers what the signals report, and serves the requests below `path`."""

    def __init__(self, observability: Observability) -> None:
        settings = observability.settings
        self.path = settings.console_path.rstrip("/")
        self._observability = observability
        self._gate = Gate(settings)
        self.store = Store()
        self.signal = ConsoleSignal(
            self.store,
            observability.redactor,
            observability.own_code,
            settings.repeated_query_threshold,
            settings.slow_query_threshold,
        )
        self.api = Api(observability, self.store, secrets.token_hex(8))
        self._base: str | None = None
        self._server_file = ServerFile(settings.multiprocess_directory)
        self._undo: list[Callable[[], object]] = []
        self._assets = {name: files(__package__).joinpath("static", name).read_bytes() for name in ASSETS}
        digest = hashlib.sha256(b"".join(self._assets.values())).hexdigest()[:12]
        page = files(__package__).joinpath("static", "index.html").read_text("utf-8")
        self._version = digest
        self._page = page.replace("{{version}}", digest).encode()

    def start(self) -> None:
        """Start to gather requests, spans and log lines."""
        self._observability.add_signal("console", self.signal)
        self._observability.startup_steps.append(self.announce)
        self._observability.shutdown_steps.append(self._server_file.remove)
        self._observability.blocked_loops.observers.append(self.signal.on_blocked_loop)
        logs = self._observability.logs
        processor = ConsoleProcessor(self.store)
        self._observability.tracing.add_span_processor(processor)
        self._undo.append(processor.shutdown)
        push = logs.push

        def take(line: bytes) -> None:
            self.store.add_line(line, _trace_id(line))
            if push is not None:
                push(line)

        logs.push = take
        self._undo.append(lambda: setattr(logs, "push", push))
        access = logging.getLogger("uvicorn.access")
        access.addFilter(self._is_not_own)
        self._undo.append(lambda: access.removeFilter(self._is_not_own))

    def announce(self, base: str | None = None) -> None:
        """Log the address of the console once: as soon as it is known, at the first request at the latest."""
        if self._base is None:
            self._base = base or address_from_command_line()
            if self._base is None:
                return
            address = f"{self._base}{self.path}/" + (f"?t={self._gate.token}" if in_container() else "")
            # Not as a log record: the token would be redacted, as it should be in files and exported lines.
            self._observability.logs.announce(f"Development console: {address}")
            self._undo.append(self._server_file.close)
        service = self._observability.settings.service_name
        with suppress(OSError):  # `show` needs --url then
            self._server_file.publish(self._base + self.path, self._gate.token, service)

    def link(self, record: RequestRecord) -> str:
        """Return the address of a request's trace on the page; empty as long as the server's is not known."""
        if self._base is None or not record.trace_id:
            return ""
        return f"{self._base}{self.path}/#trace={record.trace_id}"

    def stop(self) -> None:
        """Gather nothing more."""
        while self._undo:
            self._undo.pop()()

    def _is_not_own(self, record: logging.LogRecord) -> bool:
        """Return whether a line of uvicorn's access log is about the app: the page polls once a second."""
        arguments = record.args
        return not (
            isinstance(arguments, tuple)
            and len(arguments) > 2  # noqa: PLR2004 - client, method, target
            and (str(arguments[2]) == self.path or str(arguments[2]).startswith(self.path + "/"))
        )

    def handles(self, scope: Scope) -> bool:
        """Return whether a request is for the console, and its client may see it; else the app responds."""
        if scope["type"] != "http":
            return False
        if self._base is None:
            self.announce(address_from_request(scope))
        path = path_in_app(scope)
        if path != self.path and not path.startswith(self.path + "/"):
            return False
        try:
            return self._gate.allows(scope, dict(scope.get("headers") or ()))
        except Exception as exc:  # noqa: BLE001 - whatever a client sends: it is refused
            self._observability.internal_errors("console.gate", exc)
            return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer one request."""
        try:
            status, headers, body = self._respond(scope)
        except Exception as exc:  # noqa: BLE001 - an internal error is a 500 of the console, and nothing else
            self._observability.internal_errors("console", exc)
            status, headers, body = 500, [(b"content-type", b"text/plain; charset=utf-8")], b"The console failed.\n"
        headers = [*headers, *SECURITY_HEADERS, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _respond(self, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        inner = path_in_app(scope)[len(self.path) :]
        base = scope.get("root_path", "") + self.path
        if self._gate.has_query_token(scope) and not inner.startswith("/api/"):
            # The token moves into a cookie: in the address it would stay in the browser's history.
            location = (base + "/").encode("latin-1", "replace")
            return 303, [(b"location", location), (b"set-cookie", self._gate.cookie(scope, base)), *_NO_STORE], b""
        if not inner:
            return 307, [(b"location", (base + "/").encode("latin-1", "replace")), *_NO_STORE], b""
        if inner == "/":
            return 200, [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-cache")], self._page
        _, _, rest = inner.partition(f"/assets/{self._version}/")
        if rest in ASSETS:
            caching = (b"cache-control", b"private, max-age=31536000, immutable")
            return 200, [(b"content-type", ASSETS[rest]), caching], self._assets[rest]
        return self._respond_api(scope, inner)

    def _respond_api(self, scope: Scope, inner: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        found: Any = None
        if inner == "/api/live":
            query = parse_qs((scope.get("query_string") or b"")[:MAX_QUERY_LENGTH].decode("latin-1"))
            since = query.get("since", ["0"])[0]
            found = self.api.live(int(since) if since.isdecimal() else 0, query.get("instance", [""])[0])
        elif inner == "/api/info":
            found = self.api.info()
        elif inner == "/api/summary.txt":
            return (
                200,
                [(b"content-type", b"text/plain; charset=utf-8"), *_NO_STORE],
                self.api.summary().encode("utf-8", "backslashreplace"),
            )
        elif inner.startswith("/api/traces/"):
            name = inner.removeprefix("/api/traces/")
            if name.endswith(".otlp.json"):
                found = self.api.otlp(name.removesuffix(".otlp.json"))
            else:
                found = self.api.trace(name)
        if found is None:
            return 404, [(b"content-type", b"text/plain; charset=utf-8"), *_NO_STORE], b"Not found.\n"
        return 200, [(b"content-type", b"application/json"), *_NO_STORE], encode_json(found)


def encode_json(value: Any) -> bytes:
    """Return a value as JSON. Lone surrogates are escaped, integers of more than 64 bits become strings."""
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError):
        # Rare: an app has put a value that JSON does not have into its telemetry.
        return json.dumps(_plain(value), default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    return value


_NO_STORE: Final = ((b"cache-control", b"no-store"),)


def _trace_id(line: bytes) -> str:
    """Return the trace id that a log line names; our lines have it as text of 32 hexadecimal digits."""
    start = line.find(b'"trace_id":"')
    return line[start + 12 : start + 44].decode("latin-1") if start >= 0 else ""
