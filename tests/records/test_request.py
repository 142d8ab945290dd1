"""`RequestRecord` and `WebSocketRecord`: status, outcome, sizes and durations, from the ASGI messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as otel_context

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.records.request import CONTEXT_KEY, RequestRecord, current_record
from fastapi_observe.records.websocket import WebSocketRecord

if TYPE_CHECKING:
    from starlette.types import Message

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
TRAILED: Message = {"type": "http.response.start", "status": 200, "trailers": True}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    """Build a body message."""
    return {"type": "http.response.body", "body": data, "more_body": more}


class Played:
    """A record, the messages it passed on, and how often it was reported."""

    def __init__(self, kind: type[RequestRecord] = RequestRecord, **scope: Any) -> None:
        self.sent: list[Message] = []
        self.coming: list[Message] = []
        self.reports = 0
        self.internal_errors = InternalErrors()
        self.send_raises: BaseException | None = None
        self.report_raises: Exception | None = None
        self.record: Any = kind(
            {"type": "http", "method": "GET", "path": "/", **scope},
            self._receive,
            self._send,
            self.internal_errors,
            self._end,
        )
        self.record.extra_response_headers = {b"x-request-id": b"mine"}

    async def _receive(self) -> Message:
        return self.coming.pop(0)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if self.send_raises is not None:
            raise self.send_raises

    def _end(self, record: RequestRecord) -> None:
        if self.report_raises is not None:
            raise self.report_raises
        self.reports += 1

    async def send(self, *messages: Message) -> Played:
        """Send as the app does."""
        for message in messages:
            await self.record.send(message)
        return self

    async def receive(self, *messages: Message) -> Played:
        """Receive as the app does."""
        self.coming += messages
        for message in messages:
            assert await self.record.receive() is message
        return self

    def leave(self, exc: BaseException | None = None) -> Played:
        """Return from the app, or raise."""
        self.record.finish(exc)
        return self

    @property
    def end(self) -> tuple[int, str, str | None]:
        """Status, outcome and error type; reported exactly once, no internal error."""
        assert self.reports == 1
        assert self.internal_errors.counts == {}
        return self.record.status_code, self.record.outcome, self.record.error_type


async def test_a_response_ends_with_its_last_message() -> None:
    """It is reported when the body is complete; later messages change nothing."""
    played = await Played().send(START, body(b"abc"))
    assert played.end == (200, "ok", None)
    duration = played.record.duration
    await played.send(body(b"late"))
    played.leave(ValueError("in a background task"))
    assert played.end == (200, "ok", None)
    assert (played.record.duration, played.record.response_size) == (duration, 3)
    assert len(played.sent) == 3


@pytest.mark.parametrize(
    ("status", "outcome"), [(204, "ok"), (302, "ok"), (404, "client_error"), (422, "client_error")]
)
async def test_outcome_by_status(status: int, outcome: str) -> None:
    """Below 400 is `ok`, below 500 `client_error`; neither has an error type."""
    assert (await Played().send({**START, "status": status}, body())).end == (status, outcome, None)


async def test_a_server_error_waits_for_the_exception() -> None:
    """A 5xx is reported when the app has returned, because only then its exception is known."""
    played = await Played().send({**START, "status": 500}, body(b"oops"))
    assert played.reports == 0
    duration = played.record.duration
    assert played.leave(KeyError("x")).end == (500, "server_error", "KeyError")
    assert played.record.duration == duration
    handled = await Played().send({**START, "status": 503}, body())
    assert handled.leave().end == (503, "server_error", "503")


async def test_a_handled_exception() -> None:
    """A handled exception is reported with a 5xx and ignored with another status."""
    noted = Played()
    noted.record.inner_exception = KeyError("x")
    await noted.send({**START, "status": 500}, body())
    assert noted.leave().end == (500, "server_error", "KeyError")
    handled = Played()
    handled.record.inner_exception = KeyError("x")
    await handled.send(START, body())
    assert handled.reports == 0
    assert handled.leave().end == (200, "ok", None)


async def test_a_falsy_exception_is_reported() -> None:
    """An exception class may define `__bool__`."""

    class EmptyError(Exception):
        def __len__(self) -> int:
            return 0

    assert Played().leave(EmptyError()).end == (500, "server_error", f"{__name__}.{EmptyError.__qualname__}")


async def test_a_response_that_breaks() -> None:
    """The status that was sent is kept; the outcome states that it broke."""
    assert (await Played().send(START, body(b"a", more=True))).leave(OSError()).end == (200, "server_error", "OSError")
    stopped = await Played().send(START, body(b"a", more=True))
    assert stopped.leave().end == (200, "incomplete_response", "incomplete_response")
    assert Played().leave().end == (500, "incomplete_response", "incomplete_response")
    assert Played().leave(asyncio.CancelledError()).end == (500, "cancelled", "cancelled")
    cancelled = await Played().send(START, body(b"a", more=True))
    assert cancelled.leave(asyncio.CancelledError()).end == (200, "cancelled", "cancelled")


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        (RequestRecord, START, (200, "client_disconnect", "client_disconnect")),
        (WebSocketRecord, {"type": "websocket.accept"}, (101, "client_disconnect", "client_disconnect")),
    ],
)
async def test_a_server_that_cannot_send(kind: type[RequestRecord], start: Message, end: Any) -> None:
    """An `OSError` of the server's send is raised to the app and means that the client has disconnected."""
    for extra in (0, 1):
        played = await Played(kind).send(start)
        played.send_raises = OSError("gone")
        for _ in range(1 + extra):
            with pytest.raises(OSError, match="gone"):
                await played.send({"type": "websocket.send", "body": b"a", "text": "a"})
        assert played.leave(played.send_raises).end == end


async def test_a_cancellation_that_the_app_handled() -> None:
    """If the app cancels and then responds, the status decides the outcome."""
    played = Played()
    played.record.inner_exception = asyncio.CancelledError()
    await played.send({**START, "status": 504}, body())
    assert played.leave().end == (504, "server_error", "504")


async def test_a_client_that_disconnects() -> None:
    """Before the response the status is 499, whatever the app sends; during it the status that was sent."""
    gone: Message = {"type": "http.disconnect"}
    assert (await Played().receive(gone)).leave().end == (499, "client_disconnect", "client_disconnect")
    before = await Played().receive(gone)
    assert (await before.send(START, body())).end == (499, "client_disconnect", "client_disconnect")
    during = await Played().send(START, body(b"a", more=True))
    assert (await during.receive(gone)).leave().end == (200, "client_disconnect", "client_disconnect")
    after = await Played().send(START, body(b"a"))
    assert (await after.receive(gone)).leave().end == (200, "ok", None)


class Cycle:
    """The state of a request in uvicorn, whose method is the `send` of the app."""

    __module__ = "uvicorn.protocols.http.h11_impl"

    def __init__(self) -> None:
        self.disconnected: Any = False
        self.reported: list[RequestRecord] = []
        self.internal_errors = InternalErrors()

    async def send(self, message: Message) -> None:
        """Do nothing, as after a disconnect."""

    async def receive(self) -> Message:
        """Wait for ever, as without a message."""
        raise AssertionError

    def record(self) -> RequestRecord:
        """Start a request."""
        scope = {"type": "http", "method": "GET", "path": "/"}
        return RequestRecord(scope, self.receive, self.send, self.internal_errors, self.reported.append)


@pytest.mark.parametrize(
    ("before_start", "status", "end"),
    [
        (True, 200, (499, "client_disconnect")),
        (False, 200, (200, "client_disconnect")),
        (True, 500, (500, "server_error")),
        (False, 500, (500, "server_error")),
    ],
)
async def test_a_client_that_disconnects_while_the_app_does_not_read(
    *, before_start: bool, status: int, end: tuple[int, str]
) -> None:
    """Uvicorn knows it; an error of the app is still one of the app."""
    cycle = Cycle()
    record = cycle.record()
    cycle.disconnected = before_start
    await record.send({"type": "http.response.start", "status": status})
    cycle.disconnected = True
    await record.send(body())
    record.finish(None)
    assert (record.status_code, record.outcome) == end
    assert len(cycle.reported) == 1
    assert cycle.internal_errors.counts == {}


async def test_an_attribute_of_another_class() -> None:
    """An object of another package, and a value that is not `True`, say nothing about the client."""
    for cycle, value in ((type("Other", (Cycle,), {"__module__": "shop"})(), True), (Cycle(), "perhaps")):
        record = cycle.record()
        cycle.disconnected = value
        await record.send({"type": "http.response.start", "status": 200})
        await record.send(body())
        assert record.outcome == "ok"


async def test_a_client_disconnect_that_the_framework_raises() -> None:
    """Starlette's ClientDisconnect is recognized by its name."""

    class ClientDisconnect(Exception):  # noqa: N818 - Starlette's name
        pass

    assert Played().leave(ClientDisconnect()).end == (499, "client_disconnect", "client_disconnect")


async def test_bytes_are_counted_as_they_pass() -> None:
    """The sizes are the bytes that were transferred."""
    played = await Played().receive(
        {"type": "http.request", "body": b"12345", "more_body": True}, {"type": "http.request"}
    )
    await played.send(START, body(b"ab", more=True), body(b"c", more=True), body())
    assert (played.record.request_size, played.record.response_size) == (5, 3)
    head = await Played(method="HEAD").send(START, body(b"never sent"))
    assert head.record.response_size == 0


async def test_only_streams_have_a_time_to_first_byte() -> None:
    """One chunk is not a stream; two chunks and server-sent events are."""
    one = await Played().send(START, body(b"a", more=True), body())
    assert one.record.ttfb is None
    two = await Played().send(START, body(more=True), body(b"a", more=True), body(b"b"))
    assert 0 < two.record.ttfb <= two.record.duration
    event_stream = {**START, "headers": [(b"Content-Type", b"text/event-stream; charset=utf-8")]}
    events = await Played().send(event_stream, body(b"data: 1\n\n", more=True), body())
    assert 0 < events.record.ttfb <= events.record.duration


async def test_trailers_end_a_response() -> None:
    """If trailers are announced, the body is not the end."""
    played = await Played().send(TRAILED, body(b"a"))
    assert played.reports == 0
    await played.send({"type": "http.response.trailers", "more_trailers": True})
    assert played.reports == 0
    assert (await played.send({"type": "http.response.trailers"})).end == (200, "ok", None)


async def test_files_that_the_server_sends_itself() -> None:
    """The size of a pathsend is its content length, that of a zero-copy send its count."""
    length = {**START, "headers": [(b"content-length", b"77"), (b"content-length", b"x")]}
    path = await Played().send(length, {"type": "http.response.pathsend", "path": "/f"})
    assert (path.end, path.record.response_size) == ((200, "ok", None), 77)
    trailed = await Played().send(TRAILED, {"type": "http.response.pathsend", "path": "/f"})
    assert trailed.reports == 0
    copy = await Played().send(length, {"type": "http.response.zerocopysend", "count": 5, "more_body": True})
    assert copy.reports == 0
    await copy.send({"type": "http.response.zerocopysend", "count": 6})
    assert (copy.end, copy.record.response_size) == ((200, "ok", None), 11)
    whole = await Played().send(length, {"type": "http.response.zerocopysend"})
    assert whole.record.response_size == 77


@pytest.mark.parametrize(
    ("sent", "reported"),
    [
        (b"9f1c2e0a-7b1d-4e2f", "9f1c2e0a-7b1d-4e2f"),
        (b'"},{"level":"fatal', "mine"),
        (b"a" * 129, "mine"),
        (b"", "mine"),
        (b"two words", "mine"),
    ],
)
async def test_the_request_id_of_the_app_wins(sent: bytes, reported: str) -> None:
    """It is sent unchanged, in any case, and reported if it is well formed; the app's message is not changed."""
    given = [(b"X-Request-Id", sent), (b"a", b"b"), (b"x-request-id", b"second")]
    start = {**START, "headers": given}
    played = Played()
    played.record.request_id = "mine"
    await played.send(start)
    assert played.sent[0]["headers"] == given
    assert (start["headers"] is given, len(given)) == (True, 3)
    assert played.record.request_id == reported


async def test_our_headers_are_added() -> None:
    """A response without headers gets ours; another of them that the app sets is kept, and no request id."""
    played = Played()
    played.record.request_id = "mine"
    played.record.extra_response_headers[b"traceresponse"] = b"00-ours"
    await played.send({**START, "headers": [(b"traceresponse", b"00-theirs")]})
    assert played.sent[0]["headers"] == [(b"traceresponse", b"00-theirs"), (b"x-request-id", b"mine")]
    assert played.record.request_id == "mine"
    without = await Played().send({"type": "http.response.start", "status": 200})
    assert without.sent[0]["headers"] == [(b"x-request-id", b"mine")]


async def test_headers_that_can_be_read_once() -> None:
    """Headers may be iterators; the app and the server still read all of them."""
    pairs = [(b"a", b"1"), (b"a", b"2")]
    played = Played(headers=iter(pairs))
    assert played.record.headers == {b"a": b"2"}
    assert played.record.scope["headers"] == pairs
    await played.send({**START, "headers": iter(pairs)})
    assert played.sent[0]["headers"] == [*pairs, (b"x-request-id", b"mine")]


async def test_what_is_missing_has_a_default() -> None:
    """A scope without method, path and headers is valid; an unknown method is `_OTHER`."""
    bare = RequestRecord({"type": "http"}, None, None, InternalErrors(), lambda _: None)  # type: ignore[arg-type]
    assert (bare.method, bare.path, bare.headers) == ("GET", "", {})
    assert Played(method="BREW").record.method == "_OTHER"


async def test_only_the_first_start_counts() -> None:
    """A second start is passed on to the server unchanged."""
    played = await Played().send(START, {**START, "status": 500})
    assert played.record.status_code == 200
    assert played.sent[1] == {**START, "status": 500}


async def test_a_body_without_a_start_does_not_end_the_request() -> None:
    """A body before any start is passed on and ends nothing."""
    played = await Played().send(body(b"early"))
    assert played.leave().end == (500, "incomplete_response", "incomplete_response")


async def test_the_callback_at_the_start_of_the_response() -> None:
    """`on_response_start` is called once, when the response begins and its status is known."""
    seen: list[int] = []
    for kind, start in ((RequestRecord, START), (WebSocketRecord, {"type": "websocket.accept"})):
        played = Played(kind)
        played.record.on_response_start = lambda record: seen.append(record.status_code)
        await played.send(start, start)
    assert seen == [200, 101]


@pytest.mark.parametrize("message", [{}, {"type": "http.response.start", "status": "no"}, {"type": 7}])
async def test_illegal_messages_pass_untouched(message: Message) -> None:
    """Invalid messages of an app or a server reach the other side."""
    for kind in (RequestRecord, WebSocketRecord):
        played = await Played(kind).send(message)
        assert played.sent == [message]
        await played.receive(message)


async def test_internal_errors_are_counted_and_not_raised() -> None:
    """An error while a request is reported neither reaches the app nor stops the report."""
    played = Played()
    played.record.on_response_start = lambda _: 1 / 0
    await played.send(START)
    assert played.sent == [START]
    played.report_raises = ZeroDivisionError()
    await played.send(body())
    assert played.internal_errors.counts == {"request.send": 1, "request.end": 1}
    hostile = Played()
    hostile.record.status_code = "no number"
    hostile.leave(KeyError())
    assert (hostile.reports, hostile.internal_errors.counts) == (1, {"request.set_outcome": 1})
    assert hostile.record.outcome == "server_error"


async def test_the_record_of_the_calling_code() -> None:
    """`current_record` reads the context; any other value under the key is ignored."""
    assert current_record() is None
    record, over = Played().record, Played().record
    over.release()
    for value, expected in ((record.current, record), (over.current, None), ("else", None)):
        token = otel_context.attach(otel_context.set_value(CONTEXT_KEY, value))
        assert current_record() is expected
        otel_context.detach(token)


ACCEPT: Message = {"type": "websocket.accept"}


def disconnect(code: Any = 1005) -> Message:
    """Build a disconnect of the client."""
    return {"type": "websocket.disconnect", "code": code}


@pytest.mark.parametrize(
    ("code", "reported", "outcome", "error_type"),
    [
        (1000, "1000", "ok", None),
        (1001, "1001", "ok", None),
        (1005, "1005", "ok", None),
        (None, "1005", "ok", None),
        (1012, "1012", "ok", None),
        (1006, "1006", "client_disconnect", "client_disconnect"),
        (1009, "1009", "client_error", None),
        (1011, "1011", "client_error", None),
        (4321, "_other", "client_error", None),
        (99999, "_other", "client_error", None),
    ],
)
async def test_a_client_that_closes(code: Any, reported: str, outcome: str, error_type: str | None) -> None:
    """Its code is reported if RFC 6455 defines it; it is never a server error."""
    played = await Played(WebSocketRecord).send(ACCEPT)
    await played.receive(disconnect(code), disconnect(1000))
    assert played.leave().end == (101, outcome, error_type)
    assert played.record.close_code == reported


@pytest.mark.parametrize(
    ("code", "outcome", "error_type"),
    [(1000, "ok", None), (1011, "server_error", "1011"), (4001, "client_error", None)],
)
async def test_an_app_that_closes(code: int, outcome: str, error_type: str | None) -> None:
    """The app's code is reported unchanged; 1011 is a server error."""
    played = await Played(WebSocketRecord).send(ACCEPT, {"type": "websocket.close", "code": code})
    await played.send({"type": "websocket.close", "code": 1000})
    assert played.leave().end == (101, outcome, error_type)
    assert played.record.close_code == str(code)


async def test_a_denied_websocket() -> None:
    """Closing before the acceptance is 403, a denial response has its own status; both are `denied`."""
    closed = await Played(WebSocketRecord).send({"type": "websocket.close"})
    assert closed.leave().end == (403, "client_error", None)
    assert closed.record.close_code == "denied"
    for status, end in ((401, (401, "client_error", None)), (503, (503, "server_error", "503"))):
        played = await Played(WebSocketRecord).send(
            {"type": "websocket.http.response.start", "status": status, "headers": [(b"a", b"b")]},
            {"type": "websocket.http.response.body", "body": b"no"},
        )
        assert played.leave().end == end
        assert played.sent[0]["headers"] == [(b"a", b"b"), (b"x-request-id", b"mine")]


async def test_websocket_messages_are_counted() -> None:
    """The size of text is its UTF-8 bytes, also with lone surrogates; directions are counted separately."""
    counted: list[str] = []
    played = Played(WebSocketRecord)
    await played.send(ACCEPT, {"type": "websocket.send", "bytes": b"123", "text": None})
    played.record.count_sent = lambda: counted.append("sent")
    played.record.count_received = lambda: counted.append("received")
    await played.send({"type": "websocket.send", "text": "ö"}, {"type": "websocket.other"})
    await played.receive({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "\ud800"})
    played.record.count_received = None
    await played.receive({"type": "websocket.receive"})
    record = played.record
    assert (record.messages_sent, record.messages_received) == (2, 2)
    assert (record.response_size, record.request_size) == (5, 3)
    assert counted == ["sent", "received"]
    assert played.sent[0]["headers"] == [(b"x-request-id", b"mine")]


class WebSocketDisconnect(Exception):  # noqa: N818 - Starlette's name
    """What Starlette raises when the client has gone."""


@pytest.mark.parametrize(
    ("messages", "raised", "end", "close_code"),
    [
        ((ACCEPT,), KeyError(), (101, "server_error", "KeyError"), "1011"),
        ((), KeyError(), (500, "server_error", "KeyError"), "denied"),
        ((ACCEPT,), asyncio.CancelledError(), (101, "cancelled", "cancelled"), "1006"),
        ((ACCEPT,), None, (101, "incomplete_response", "incomplete_response"), "1006"),
        ((), None, (500, "incomplete_response", "incomplete_response"), "1006"),
        ((ACCEPT, {"type": "websocket.close"}), WebSocketDisconnect(), (101, "ok", None), "1000"),
        ((ACCEPT, {"type": "websocket.close"}), KeyError(), (101, "server_error", "KeyError"), "1000"),
    ],
)
async def test_a_websocket_that_breaks(
    messages: tuple[Message, ...], raised: BaseException | None, end: Any, close_code: str
) -> None:
    """An exception, a cancellation and an app that returns early have their own outcomes."""
    played = (await Played(WebSocketRecord).send(*messages)).leave(raised)
    assert (played.end, played.record.close_code) == (end, close_code)


def test_slots_hold_everything() -> None:
    """A record has no `__dict__`: a misspelt attribute is an error, and the record is small."""
    for kind in (RequestRecord, WebSocketRecord):
        assert not hasattr(Played(kind).record, "__dict__")
