"""`RequestRecord`: the record of one HTTP request and its response, filled in as the ASGI messages pass."""

from __future__ import annotations

import re
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind

from fastapi_observe.internal.uvicorn import is_disconnected_cycle
from fastapi_observe.records.endpoint import UNMATCHED
from fastapi_observe.records.exceptions import error_type_of, is_cancellation, status_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from starlette.types import Message, Receive, Scope, Send

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.records.time_breakdown import TimeBreakdown

RECORD_SCOPE_KEY: Final = "fastapi_observe.record"
"""Key of the record in the ASGI scope."""

CONTEXT_KEY: Final = otel_context.create_key("fastapi_observe.record")
"""Key of the `RecordRef` in the OpenTelemetry context."""

ORIGIN_KEY: Final = otel_context.create_key("fastapi_observe.origin")
"""Key of the span context that a trace outside any request is linked to (see `detached.py`)."""

EXCEPTION_IDS_ATTRIBUTE: Final = "__observe_ids__"
"""Attribute set on an exception that leaves the app: (trace id, span id, request id), for the server's crash log."""

CLIENT_CLOSED_REQUEST: Final = 499
"""Status of a request whose client disconnected before the response started (nginx's number, never sent)."""

KNOWN_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)
"""RFC 9110 with PATCH and QUERY. Any other method is reported as `_OTHER`."""

MAX_METHOD_LENGTH: Final = 32
"""Characters of such another method that a span has."""


_APP_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.:/+=@~-]{0,127}")
"""Format of a request id that the app sets itself and that is reported. It may repeat what a client has sent."""

_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_FINISHED_SCOPE: Final[dict[str, Any]] = {"type": "http", "path": ""}
"""Replaces the scope of a finished request."""


def known_method(method: str) -> str:
    """Return the method, or `_OTHER` if it is not in `KNOWN_METHODS`."""
    return method if method in KNOWN_METHODS else "_OTHER"


def current_record() -> RequestRecord | None:
    """Return the record of the request that the calling code runs for, or None outside any request."""
    current = otel_context.get_value(CONTEXT_KEY)
    return current.record if isinstance(current, RecordRef) else None


class RequestFields(NamedTuple):
    """The fields of a request (`observe.set`): by the names of lines and labels, and by those of span attributes."""

    fields: dict[str, Any]
    attributes: dict[str, Any]


class RecordRef:
    """A reference to a record, stored in the OpenTelemetry context and cleared when the request ends.

    Contexts outlive requests: asyncio keeps the one in which a server set the timer of an idle connection.
    """

    __slots__ = ("fields", "record")

    excluded = 0
    """Signals (`SIGNAL_BITS`) that report neither the request nor the operations inside it."""

    def __init__(self, record: RequestRecord | None) -> None:
        self.record = record
        self.fields: RequestFields | None = None


class ExcludedRef(RecordRef):
    """A reference inside a request that is excluded from some signals, or without a record from all of them."""

    __slots__ = ("excluded",)

    def __init__(self, record: RequestRecord | None, excluded: int) -> None:
        super().__init__(record)
        self.excluded = excluded


def excluded_signals(context: Context) -> int:
    """Return the signals that a context excludes."""
    reference = context.get(CONTEXT_KEY)
    return reference.excluded if isinstance(reference, RecordRef) else 0


class RequestRecord:
    """One HTTP request and its response.

    Set at the start: `method` (`_OTHER` if unknown), `path`, `headers` (lower-case names as servers send them, the last
    value wins). Set at the end: `endpoint` (route template, never a concrete path), `status_code` (as sent; 499 if the
    client disconnected before, 500 if nothing was sent), `outcome`, `error_type`, `duration` and `ttfb` (seconds;
    `ttfb` of streamed responses only), `request_size` and `response_size` (bytes that were transferred).

    `outcome` is `ok`, `client_error`, `server_error`, `client_disconnect`, `cancelled` or `incomplete_response`.
    """

    __slots__ = (
        "_chunks",
        "_closing",
        "_cycle",
        "_internal_errors",
        "_on_end",
        "_receive",
        "_send",
        "_trailers",
        "caller_trusted",
        "complete",
        "context",
        "current",
        "disconnected",
        "duration",
        "endpoint",
        "error_type",
        "exception",
        "extra_response_headers",
        "headers",
        "inner_exception",
        "method",
        "observability",
        "on_late_end",
        "on_response_start",
        "outcome",
        "path",
        "reported",
        "request_id",
        "request_size",
        "response_headers",
        "response_size",
        "sampled",
        "scope",
        "skipped_signals",
        "span",
        "span_adopted",
        "span_id",
        "started",
        "started_ns",
        "status_code",
        "trace_id",
        "ttfb",
        "validation_errors",
        "work",
    )

    websocket = job = False
    span_kind = SpanKind.SERVER

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        internal_errors: InternalErrors,
        on_end: Callable[[RequestRecord], None],
    ) -> None:
        self.started = perf_counter()
        self.started_ns = time_ns()
        self.scope = scope
        self._receive = receive
        self._send = send
        cycle = getattr(send, "__self__", None)
        self._cycle: Any = cycle if hasattr(cycle, "disconnected") else None
        self._internal_errors = internal_errors
        self._on_end = on_end
        method = scope.get("method", "GET")
        self.method: str = method if method in KNOWN_METHODS else "_OTHER"
        self.path: str = scope.get("path", "")
        headers = scope.get("headers") or ()
        if type(headers) is not list and type(headers) is not tuple:
            # ASGI allows any iterable. An iterator would be empty when the app reads it.
            headers = scope["headers"] = list(headers)
        self.headers: dict[bytes, bytes] = dict(headers)
        self.observability: Any = None
        self.skipped_signals = 0
        self.endpoint = UNMATCHED
        self.status_code = 0
        self.outcome = ""
        self.error_type: str | None = None
        self.exception: BaseException | None = None
        self.inner_exception: BaseException | None = None
        self.validation_errors: list[tuple[str, str]] | None = None
        self.work: TimeBreakdown | None = None
        self.duration = 0.0
        self.ttfb: float | None = None
        self.request_size = 0
        self.response_size = 0
        self.response_headers: Any = ()
        self.request_id = ""
        self.trace_id = ""
        self.span_id = ""
        self.sampled: Literal["head", "tail", False] = False
        self.caller_trusted: bool | None = None
        self.span: Span | None = None
        self.context: Context | None = None
        self.current = RecordRef(self)
        self.span_adopted = False
        self.extra_response_headers: dict[bytes, bytes] = {}
        self.on_response_start: Callable[[RequestRecord], None] | None = None
        self.on_late_end: Callable[[RequestRecord, bool], None] | None = None
        self.complete = False
        self.disconnected = False
        self.reported = False
        self._closing = False
        self._trailers = False
        self._chunks = 0

    async def receive(self) -> Message:
        """Return the client's next message to the app and count its bytes."""
        message = await self._receive()
        try:
            kind = message["type"]
            if kind == "http.request" and not self._closing:
                self.request_size += len(message.get("body", b""))
            elif kind == "http.disconnect" and not self._closing:
                self.disconnected = True
        except Exception as exc:  # noqa: BLE001 - whatever a server sends reaches the app
            self._internal_errors("request.receive", exc)
        return message

    async def send(self, message: Message) -> None:  # noqa: C901, PLR0912 - hot path: the common branches are inline
        """Pass the app's message to the server and record the status, the bytes and the end of the response."""
        if self._closing:
            await self._send(message)
            return
        try:
            kind = message["type"]
            if kind == "http.response.body":
                if self._chunks or message.get("more_body"):
                    self._record_chunk(message)
                else:
                    if self.method != "HEAD":
                        self.response_size += len(message.get("body", b""))
                    self._closing = self.status_code != 0 and not self._trailers
            elif kind == "http.response.start":
                if not self.status_code:
                    if type(message.get("headers")) is not list:
                        message = _with_header_list(message)
                    message = self._record_start(message)
            else:
                self._record_extension(kind, message)
        except Exception as exc:  # noqa: BLE001 - whatever an app sends reaches the server
            self._internal_errors("request.send", exc)
        try:
            await self._send(message)
        except OSError:  # since ASGI 2.4 servers raise it after a disconnect
            self.disconnected = True
            raise
        if self._closing:
            try:
                self._end()
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the app
                self._internal_errors("request.end", exc)

    def _record_start(self, message: Message) -> Message:
        """Record the status. Returns a copy of the message with our headers; the app's message is not changed."""
        status = message["status"]
        self.status_code = status if type(status) is int else int(status)
        if self._cycle is not None and self._cycle.disconnected:
            self._check_disconnect()
        if self.disconnected:
            self.status_code = CLIENT_CLOSED_REQUEST
        if "trailers" in message:
            self._trailers = bool(message["trailers"])
        self.response_headers = headers = message.get("headers", ())
        extra = self.extra_response_headers
        for header in headers:
            if header[0].lower() in extra:
                extra = self._headers_to_add(headers)
                break
        if self.on_response_start is not None:
            self.on_response_start(self)
        started = {**message}
        started["headers"] = [*headers, *extra.items()]
        return started

    def _headers_to_add(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """Return our headers without those that the app sets itself. Its request id becomes that of the record."""
        extra = dict(self.extra_response_headers)
        for name, value in headers:
            replaced = extra.pop(name.lower(), None)
            if replaced is not None and replaced == self.request_id.encode() and _APP_REQUEST_ID.fullmatch(value):
                self.request_id = value.decode("ascii")
        return extra

    def _record_chunk(self, message: Message) -> None:
        """Record one message of a body that consists of several."""
        size = len(message.get("body", b""))
        more = message.get("more_body", False)
        if self.method != "HEAD":
            self.response_size += size
        if size:
            self._chunks += 1
        if self._chunks == 1 and self.ttfb is None:
            self.ttfb = perf_counter() - self.started
        self._closing = not (more or self._trailers) and self.status_code != 0

    def _record_extension(self, kind: str, message: Message) -> None:
        """Record the messages of ASGI extensions."""
        if kind == "http.response.trailers":
            self._closing = not message.get("more_trailers", False)
        elif kind == "http.response.pathsend":
            self.response_size = self._content_length()
            self._closing = not self._trailers
        elif kind == "http.response.zerocopysend":
            self.response_size += message.get("count") or self._content_length()
            self._closing = not (message.get("more_body", False) or self._trailers)

    def _response_header(self, wanted: bytes) -> bytes:
        return next((value for name, value in self.response_headers if name.lower() == wanted), b"")

    def _content_length(self) -> int:
        value = self._response_header(b"content-length")
        return int(value) if value.isdigit() else 0

    def _end(self) -> None:
        """Record that the last message was sent. Background tasks are not part of the request's duration."""
        self.duration = perf_counter() - self.started
        self.complete = True
        if self._cycle is not None and self._cycle.disconnected:
            self._check_disconnect()
        if self.inner_exception is None:
            if self.status_code < _CLIENT_ERROR and self.ttfb is None and not self.disconnected:
                self.reported = True
                self.outcome = "ok"
                self._on_end(self)
            # A status of 500 waits: the exception may still pass through the outer middleware.
            elif self.status_code < _SERVER_ERROR:
                self._report(None)

    def _check_disconnect(self) -> None:
        """Record that the client has disconnected, if the server knows it and the app did not fail itself."""
        if self.status_code < _SERVER_ERROR and is_disconnected_cycle(self._cycle):
            self.disconnected = True

    def finish(self, exc: BaseException | None) -> None:
        """Report the request, if it is not reported yet, after the app returned or raised `exc`.

        An exception after the response, as of a background task, is not part of the request, but its trace has it.
        """
        if not self.reported:
            if not self.complete:
                self.duration = perf_counter() - self.started
            self._report(exc)
        elif exc is not None and self.on_late_end is not None and not self.disconnected:
            self.on_late_end(self, True)  # noqa: FBT003 - by position on the hot path

    def _report(self, raised: BaseException | None) -> None:
        self.reported = True
        if self.ttfb is not None and self._chunks < 2 and not self._is_event_stream():  # noqa: PLR2004 - one chunk is not a stream
            self.ttfb = None
        try:
            self._set_outcome(raised)
        except Exception as exc:  # noqa: BLE001 - every signal that was started is ended
            self._internal_errors("request.set_outcome", exc)
            self.outcome, self.status_code = "server_error", self.status_code or 500
        self._on_end(self)

    def _is_event_stream(self) -> bool:
        return self._response_header(b"content-type").startswith(b"text/event-stream")

    def release(self) -> None:
        """Clear all references from contexts to the record and from the record to the request, to avoid cycles."""
        try:
            if self.on_late_end is not None:
                self.on_late_end(self, False)  # noqa: FBT003 - as above
        finally:
            self.current.record = self.on_late_end = None
            self.scope = _FINISHED_SCOPE
            self.inner_exception = self.exception = self.context = None

    def _set_outcome(self, raised: BaseException | None) -> None:
        """Set `outcome`, `error_type`, `exception` and a missing `status_code`, once for all signals."""
        if self.disconnected or type(raised).__name__ == "ClientDisconnect":
            self.outcome = self.error_type = "client_disconnect"
            self.status_code = self.status_code or CLIENT_CLOSED_REQUEST
            if self.status_code == CLIENT_CLOSED_REQUEST:  # the response was not received
                self.response_size = 0
            return
        if raised is not None and is_cancellation(raised):
            self.outcome = self.error_type = "cancelled"
            self.status_code = self.status_code or _SERVER_ERROR
            return
        if raised is None and not self.complete:
            self.outcome = self.error_type = "incomplete_response"
            self.status_code = self.status_code or _SERVER_ERROR
            return
        self.status_code = self.status_code or _SERVER_ERROR
        failed = self.status_code >= _SERVER_ERROR
        if raised is not None or failed:
            self.exception = raised
            # A cancellation that the app answered with a response is not the cause of its status.
            if raised is None and not is_cancellation(self.inner_exception):
                self.exception = self.inner_exception
            self.outcome = "server_error"
            self.error_type = (
                status_label(self.status_code) if self.exception is None else error_type_of(self.exception)
            )
        else:
            self.outcome = "client_error" if self.status_code >= _CLIENT_ERROR else "ok"


def _with_header_list(message: Message) -> Message:
    """Return the message with headers that can be read twice. ASGI allows any iterable."""
    headers = message.get("headers", ())
    return message if isinstance(headers, list | tuple) else {**message, "headers": list(headers)}
