"""The logs signal: each record of the process is one line, with the ids of its request."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from injection import failing
from loguru import logger
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from uvicorn.config import LOGGING_CONFIG

from fastapi_observe.export.counts import Counts
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.logs import loguru as log_loguru
from fastapi_observe.logs.handlers import SERVER_LOGGERS
from fastapi_observe.logs.messages import ids_from_exception
from fastapi_observe.logs.service import LogService, level_name
from fastapi_observe.records.exceptions import MAX_CHAIN_LENGTH
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import CONTEXT_KEY, RequestRecord
from fastapi_observe.records.websocket import WebSocketRecord
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Message

Lines = Callable[[], list[dict[str, Any]]]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Return a function that parses the lines since its last call. Standard error must be empty."""

    def read() -> list[dict[str, Any]]:
        written = capsys.readouterr()
        assert written.err == ""
        return [json.loads(each) for each in written.out.splitlines()]

    return read


@pytest.fixture
def make() -> Iterator[Callable[..., LogService]]:
    """Return a function that starts a log service with the given settings. All are closed at the end."""
    made: list[LogService] = []

    def build(**settings: Any) -> LogService:
        logs = LogService(
            ObserveSettings(**{"service_name": "shop", "service_version": "1.2", **settings}), InternalErrors()
        )
        logs.start()
        made.append(logs)
        return logs

    yield build
    for each in made:
        each.close()


async def nothing(*args: Any) -> Message:
    """Receive or send nothing."""
    return {}


def record_of(kind: type[RequestRecord] = RequestRecord, **facts: Any) -> RequestRecord:
    """Build the record of a request that has ended."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/orders/7",
        "query_string": b"page=2&token=secret",
        "headers": [(b"user-agent", b"caf\xe9/1")],
        "client": ("192.0.2.1", 4711),
        **facts.pop("scope", {}),
    }
    record = kind(scope, nothing, nothing, InternalErrors(), lambda _: None)  # type: ignore[arg-type]
    known = {
        "endpoint": "/orders/{order_id}",
        "status_code": 200,
        "outcome": "ok",
        "duration": 0.0123456,
        "request_size": 3,
        "response_size": 42,
        "trace_id": TRACE,
        "span_id": SPAN,
        "request_id": "request-1",
    }
    for name, value in {**known, **facts}.items():
        setattr(record, name, value)
    return record


class Installed:
    """An `Observability` with nothing but a log service."""

    def __init__(self, logs: LogService | None) -> None:
        self.logs = logs


@contextmanager
def inside(record: RequestRecord, span: bool = False) -> Iterator[None]:  # noqa: FBT001, FBT002 - read at the call
    """Run a block inside a request, with or without a span."""
    context = otel_context.set_value(CONTEXT_KEY, record.current)
    if span:
        ids = SpanContext(int(TRACE, 16), int("1", 16), is_remote=False, trace_flags=TraceFlags(0))
        context = trace.set_span_in_context(NonRecordingSpan(ids), context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def fail() -> NoReturn:
    """Raise."""
    raise ValueError("broken")


# The request line


def test_the_request_line(make: Callable[..., LogService], lines: Lines) -> None:
    """It has all documented keys, with redacted query values."""
    logs = make(capture_query_parameters=("page",))
    logs.on_request_start(record_of())
    logs.on_response_start(record_of())
    logs.on_request_end(record_of())
    assert logs.flush(1.0)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert list(line) == [
        *("level", "message", "logger", "service", "environment", "version"),
        *("trace_id", "span_id", "request_id", "fields"),
    ]
    assert line == {
        "level": "info",
        "message": "HTTP request completed",
        "logger": "fastapi_observe.request",
        "service": "shop",
        "environment": "production",
        "version": "1.2",
        "trace_id": TRACE,
        "span_id": SPAN,
        "request_id": "request-1",
        "fields": {
            "method": "GET",
            "url": "/orders/7?page=2&token=REDACTED",
            "endpoint": "/orders/{order_id}",
            "status_code": 200,
            "outcome": "ok",
            "sampled": False,
            "duration_ms": 12.346,
            "request_size": 3,
            "response_size": 42,
            "user_agent": "café/1",
            "remote_addr": "192.0.2.0/24",
        },
    }


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        ("ok", "info"),
        ("client_error", "warn"),
        ("client_disconnect", "warn"),
        ("server_error", "error"),
        ("cancelled", "error"),
        ("incomplete_response", "error"),
        ("unheard of", "error"),
    ],
)
def test_the_outcome_decides_the_level(make: Callable[..., LogService], lines: Lines, outcome: str, level: str) -> None:
    """Server errors are errors, those of clients warnings."""
    logs = make()
    logs.on_request_end(record_of(outcome=outcome, error_type="X"))
    logs.flush(1.0)
    (line,) = lines()
    assert (line["level"], line["fields"]["error_type"]) == (level, "X")


def test_optional_fields_of_a_request(make: Callable[..., LogService], lines: Lines) -> None:
    """Unknown values are null or missing; a stream has its first byte, a failure its exception."""
    logs = make()
    bare: dict[str, Any] = {"headers": [], "client": None, "query_string": b"", "path": "/" + "x" * 2000}
    logs.on_request_end(record_of(scope=bare, trace_id="", request_id=""))
    try:
        fail()
    except ValueError as exc:
        logs.on_request_end(record_of(outcome="server_error", exception=exc, ttfb=0.001))
    first, second = lines()
    assert first["fields"]["user_agent"] is first["fields"]["remote_addr"] is None
    assert len(first["fields"]["url"]) == 1024
    assert not {"trace_id", "span_id", "request_id", "exception"} & first.keys()
    assert second["fields"]["ttfb_ms"] == 1.0
    assert second["exception"]["type"] == "ValueError"
    assert second["exception"]["message"] == "broken"
    assert "in fail" in second["exception"]["stacktrace"]


def test_a_websocket_has_its_own_line(make: Callable[..., LogService], lines: Lines) -> None:
    """It has the close code and the numbers of messages."""
    logs = make()
    logs.on_request_end(record_of(WebSocketRecord, close_code="1000", messages_received=2, messages_sent=3))
    logs.flush(1.0)
    (line,) = lines()
    assert line["message"] == "WebSocket connection closed"
    fields = line["fields"]
    assert (fields["close_code"], fields["messages_received"], fields["messages_sent"]) == ("1000", 2, 3)


def test_request_lines_can_be_switched_off(make: Callable[..., LogService], lines: Lines) -> None:
    """By the setting, or by the level."""
    make(log_requests=False).on_request_end(record_of(outcome="server_error"))
    make(log_level="warn").on_request_end(record_of())
    assert lines() == []


# Operations


def operation_of(logs: LogService, **facts: Any) -> Operation:
    """Build a query that has ended."""
    operation = Operation(logs, "database", "SELECT orders", {"operation": "SELECT", "table": "orders"}, {"rows": 3})
    for name, value in {"outcome": "ok", "duration": 0.002, **facts}.items():
        setattr(operation, name, value)
    return operation


def test_a_failed_operation_is_an_error_line(make: Callable[..., LogService], lines: Lines) -> None:
    """It has labels, details, ids and exception; a successful query writes no line."""
    logs = make()
    logs.on_operation_start(operation_of(logs))
    logs.on_operation_end(operation_of(logs))
    at = SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False)
    failed = operation_of(
        logs, outcome="error", error_type="ValueError", exception=ValueError("x"), span=NonRecordingSpan(at)
    )
    with inside(record_of(trace_id="f" * 32)):
        logs.on_operation_end(failed)
    (line,) = lines()
    assert (line["level"], line["message"]) == ("error", "database query failed")
    assert (line["trace_id"], line["span_id"], line["request_id"]) == (TRACE, SPAN, "request-1")
    assert line["exception"]["type"] == "ValueError"
    assert line["fields"] == {
        "operation": "SELECT",
        "table": "orders",
        "rows": 3,
        "outcome": "error",
        "duration_ms": 2.0,
        "error_type": "ValueError",
    }


def test_a_successful_operation_is_a_debug_line(make: Callable[..., LogService], lines: Lines) -> None:
    """With level debug, all operations are logged."""
    logs = make(log_level="debug")
    for kind in ("database", "external", "background", "own"):
        logs.on_operation_end(operation_of(logs, kind=kind))
    logs.flush(1.0)
    rows = lines()
    assert {line["level"] for line in rows} == {"debug"}
    assert [line["message"] for line in rows] == [
        "database query completed",
        "external call completed",
        "background task completed",
        "own completed",
    ]


# What users call


def test_the_logger(make: Callable[..., LogService], lines: Lines) -> None:
    """Each level has its method; fields are under `fields`, also with the name of a reserved key."""
    log = make(log_level="debug").log
    log.debug("a", level="mine", message="mine", trace_id="mine")
    log.info("b", order_id=7)
    log.warn("c")  # noqa: G010 - the contract's name
    log.warning("d")
    log.error("e", exception=ValueError("x"))
    log.fatal("f")
    rows = lines()
    assert [line["message"] for line in rows] == list("abcdef")
    assert [line["level"] for line in rows] == ["debug", "info", "warn", "warn", "error", "fatal"]
    assert rows[0]["fields"] == {"level": "mine", "message": "mine", "trace_id": "mine"}
    assert rows[1]["fields"] == {"order_id": 7}
    assert rows[4]["exception"]["message"] == "x"
    assert {line["logger"] for line in rows} == {__name__}


def test_the_exception_that_is_handled(make: Callable[..., LogService], lines: Lines) -> None:
    """`exception` adds it; outside a handler it writes an error line."""
    log = make().log
    try:
        fail()
    except ValueError:
        log.exception("failed", order_id=7)
    log.exception("nothing in hand")  # noqa: LOG004 - that is the point
    first, second = lines()
    assert (first["level"], first["fields"], first["exception"]["type"]) == ("error", {"order_id": 7}, "ValueError")
    assert "exception" not in second


def test_bound_and_contextual_fields(make: Callable[..., LogService], lines: Lines) -> None:
    """`with_fields` adds fields to a logger, `contextualize` to every line of a block."""
    log = make().log.with_fields(tenant="a")
    with log.contextualize(job=1):
        log.error("x", order_id=7)
        logger.error("y")
    log.error("z")
    assert [line["fields"] for line in lines()] == [
        {"job": 1, "tenant": "a", "order_id": 7},
        {"job": 1},
        {"tenant": "a"},
    ]


class Unprintable:
    """Raises when it is converted to text."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("message", ["{", "{}", "{0} {x} {x.__class__}", "%s", "\ud800", 7, Unprintable()], ids=type)
def test_any_message_is_safe(make: Callable[..., LogService], lines: Lines, message: object) -> None:
    """Braces, percent signs and objects without text give a line."""
    make().log.error(message, x=Unprintable())
    (line,) = lines()
    assert line["fields"] == {"x": "<unprintable Unprintable>"}


def test_sinks_of_the_user_get_the_lines(make: Callable[..., LogService], lines: Lines) -> None:
    """With the caller's location; a sink that raises does not reach the caller."""
    logs = make()
    seen: list[Any] = []

    def sink(message: Any) -> None:
        seen.append(message.record)
        raise RuntimeError("sink")

    number = logger.add(sink, level="DEBUG", catch=False)
    try:
        logs.log.debug("a", x=1)
        logs.log.error("b", exception=ValueError())
    finally:
        logger.remove(number)
    assert [(record["function"], record["extra"]) for record in seen] == [
        ("test_sinks_of_the_user_get_the_lines", {"x": 1}),
        ("test_sinks_of_the_user_get_the_lines", {}),
    ]
    assert logs.internal_errors.counts == {"logs.call": 2}
    assert lines()[0]["message"].startswith("Internal error in fastapi-observe (logs.call: RuntimeError)")


def test_the_level_at_run_time(make: Callable[..., LogService], lines: Lines) -> None:
    """It changes for loguru and `logging`, in both directions; names of Python and numbers are accepted."""
    log = make().log
    std = logging.getLogger("std")
    spellings: dict[str, str | int] = {"info": "INFO", "debug": 10, "fatal": "critical", "warn": "Warning"}
    for level in ("info", "debug", "fatal", "debug", "warn"):
        log.set_level(spellings[level])
        for method in (log.debug, log.info, log.warn, log.error, log.fatal):
            method(level)
        for number in (10, 20, 30, 40, 50):
            std.log(number, level)
    with pytest.raises(ValueError, match="log level: invalid value 'loud'; expected debug, info, warn, error, fatal"):
        log.set_level("loud")
    log.error("last")
    rows = [line["message"] for line in lines()]
    assert {level: rows.count(level) for level in set(rows)} == {
        "info": 8,
        "debug": 20,
        "fatal": 2,
        "warn": 6,
        "last": 1,
    }


def test_changing_the_level_repeats_and_loses_no_line(make: Callable[..., LogService], lines: Lines) -> None:
    """While the level changes, each error of other threads is written once."""
    logs = make()

    def work(name: int) -> None:
        for number in range(200):
            logger.error("{} {}", name, number)

    workers = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for each in workers:
        each.start()
    for _ in range(30):
        logs.set_level("debug")
        logs.set_level("error")
    for each in workers:
        each.join()
    logs.flush(1.0)
    assert sorted(line["message"] for line in lines()) == sorted(f"{a} {b}" for a in range(3) for b in range(200))


# Records of others


def test_loguru_records(make: Callable[..., LogService], lines: Lines) -> None:
    """Each level of loguru has a level of the lines; bound values are fields; values of variables are not shown."""
    make(log_level="debug")
    hidden = "hunter2"
    logger.trace("a")
    logger.success("b")
    logger.bind(x=1).critical("c {} {name}", 1, name="n")
    try:
        fail()
    except ValueError:
        logger.exception("d")
    rows = lines()
    assert [(line["level"], line["message"]) for line in rows] == [
        ("debug", "a"),
        ("info", "b"),
        ("fatal", "c 1 n"),
        ("error", "d"),
    ]
    assert rows[2]["fields"] == {"x": 1, "name": "n"}
    assert rows[3]["exception"]["type"] == "ValueError"
    assert hidden not in json.dumps(rows)


def test_standard_library_records(make: Callable[..., LogService], lines: Lines) -> None:
    """Each level of `logging` has a level of the lines; `extra` values are fields."""
    make(log_level="debug")
    std = logging.getLogger("app.orders")
    std.debug("a")
    std.info("b %s", 1, extra={"order_id": 7, "service": "mine"})
    std.warning("c", stack_info=True)
    try:
        fail()
    except ValueError:
        std.exception("d")
    std.critical("e", exc_info=True)
    rows = lines()
    assert [(line["level"], line["message"]) for line in rows] == [
        ("debug", "a"),
        ("info", "b 1"),
        ("warn", "c"),
        ("error", "d"),
        ("fatal", "e"),
    ]
    assert rows[1]["fields"] == {"order_id": 7, "service": "mine"}
    assert (rows[1]["service"], rows[1]["logger"]) == ("shop", "app.orders")
    assert "Stack (most recent call last)" in rows[2]["fields"]["stack_info"]
    assert rows[3]["exception"]["type"] == "ValueError"
    assert "exception" not in rows[4]


def test_arguments_that_do_not_fit_the_message(
    make: Callable[..., LogService], lines: Lines, bare_root: Callable[[], None]
) -> None:
    """The line has the message and the arguments."""
    bare_root()
    make()
    logging.getLogger("x").error("%d and %d", "one")  # noqa: PLE1206 - the fault in question
    logging.getLogger("x").error(Unprintable())
    first, second = lines()
    assert (first["message"], first["fields"]) == ("%d and %d", {"args": ["one"]})
    assert second["message"] == "<unprintable Unprintable>"


def test_a_record_made_by_hand(make: Callable[..., LogService], lines: Lines, bare_root: Callable[[], None]) -> None:
    """Unexpected attributes of a record are written as well."""
    bare_root()
    logs = make()
    odd: dict[str, Any] = {"name": 7, "levelno": 35, "msg": "x", "exc_info": "odd"}
    logging.getLogger("x").handle(logging.makeLogRecord(odd))
    logs.flush(1.0)
    (line,) = lines()
    assert (line["level"], line["logger"]) == ("warn", "7")


def test_an_object_that_logs_does_not_recurse(
    make: Callable[..., LogService], lines: Lines, bare_root: Callable[[], None]
) -> None:
    """It logs when it is converted to text."""
    bare_root()
    make()

    class Chatty:
        def __str__(self) -> str:
            logging.getLogger("x").error("std %s", self)
            logger.error("loguru", x=self)
            return "chatty"

    logging.getLogger("x").error("outer", extra={"x": Chatty()})
    rows = lines()
    assert rows[-1]["fields"] == {"x": "chatty"}
    assert len(rows) < 20


def test_an_internal_error_does_not_reach_the_caller(make: Callable[..., LogService], lines: Lines) -> None:
    """It is counted."""
    logs = make()
    with failing(logs.handle_loguru):
        logger.error("x")
    assert logs.internal_errors.counts == {"logs.line": 1}
    assert lines()[0]["message"].startswith("Internal error in fastapi-observe (logs.line")


# Ids


def test_ids_of_the_request_and_its_span(make: Callable[..., LogService], lines: Lines) -> None:
    """A line has the ids of the current span, or else of its request; the request id in both cases."""
    make()
    logger.error("outside")
    with inside(record_of()):
        logger.error("request")
    with inside(record_of(), span=True):
        logging.getLogger("x").error("span")
    with inside(record_of(trace_id="", span_id="", request_id="r")):
        logger.error("no tracing")
    ids = [(line.get("trace_id"), line.get("span_id"), line.get("request_id")) for line in lines()]
    assert ids == [
        (None, None, None),
        (TRACE, SPAN, "request-1"),
        (TRACE, "0" * 15 + "1", "request-1"),
        (None, None, "r"),
    ]


def marked() -> ValueError:
    """Build an exception that has passed our middleware."""
    exc = ValueError("x")
    exc.__observe_ids__ = (TRACE, SPAN, "request-1")  # type: ignore[attr-defined]
    return exc


def test_an_exception_has_the_ids_of_its_request(make: Callable[..., LogService], lines: Lines) -> None:
    """A server logs a crash after the request; the ids of a current span win."""
    make()
    crashes = [marked(), RuntimeError("linked"), BaseExceptionGroup("group", [KeyError(), marked()])]
    crashes[1].__context__ = marked()
    for exc in crashes:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=exc)
    logger.opt(exception=marked()).error("loguru")
    span = NonRecordingSpan(SpanContext(1, 1, is_remote=False))
    with trace.use_span(span):
        logging.getLogger("x").error("span", exc_info=marked())
    logging.getLogger("x").error("none", exc_info=ValueError())
    rows = [(line.get("trace_id"), line.get("span_id"), line.get("request_id")) for line in lines()]
    assert rows == [
        *[(TRACE, SPAN, "request-1")] * 4,
        ("0" * 31 + "1", "0" * 15 + "1", "request-1"),
        (None, None, None),
    ]


def test_a_crash_logged_inside_an_earlier_request(make: Callable[..., LogService], lines: Lines) -> None:
    """The line has the ids of the crashed request, not of the earlier one of the connection."""
    make()
    with inside(record_of(request_id="earlier", complete=True), span=True):
        logging.getLogger("uvicorn.error").error("crash", exc_info=marked())
    (line,) = lines()
    assert (line["trace_id"], line["span_id"], line["request_id"]) == (TRACE, SPAN, "request-1")


def test_the_search_for_ids_ends() -> None:
    """Circular and endless chains of exceptions are searched up to a limit."""
    first, second = ValueError(), KeyError()
    first.__context__, second.__cause__ = second, first
    assert ids_from_exception(first) == ("", "", "")
    chain: BaseException = marked()
    for _ in range(MAX_CHAIN_LENGTH):
        outer = ValueError()
        outer.__cause__ = chain
        chain = outer
    assert ids_from_exception(chain) == ("", "", "")


@pytest.mark.parametrize(("number", "level"), [(0, "debug"), (25, "info"), (39, "warn"), (40, "error"), (99, "fatal")])
def test_levels_between(number: int, level: str) -> None:
    """A number between two levels has the lower one."""
    assert level_name(number) == level


# Several installs


def test_several_installs_write_a_line_once(make: Callable[..., LogService], lines: Lines) -> None:
    """In a request its own app writes the line, otherwise the first open one; one thread serves all."""
    made = [make(service_name=f"app{number}") for number in range(5)]
    made[0].start()

    def service_of(record: RequestRecord | None) -> str:
        if record is None:
            logger.error("x")
        else:
            with inside(record):
                logger.error("x")
        (line,) = lines()
        service: str = line["service"]
        return service

    assert service_of(None) == "app0"
    assert service_of(record_of(observability=Installed(made[3]))) == "app3"
    assert service_of(record_of(observability=Installed(None))) == "app0"
    assert service_of(record_of()) == "app0"
    made[0].close()
    made[0].close()
    made[3].close()
    assert service_of(None) == "app1"
    assert service_of(record_of(observability=Installed(made[3]))) == "app1"
    assert sum(thread.name == "fastapi-observe-log-writer" for thread in threading.enumerate()) <= 1


def test_each_install_has_its_level(make: Callable[..., LogService], lines: Lines) -> None:
    """The level of the app that writes the line decides."""
    quiet, loud = make(service_name="quiet", log_level="error"), make(service_name="loud", log_level="debug")
    for observability in (Installed(quiet), Installed(loud)):
        with inside(record_of(observability=observability)):
            logger.debug("x")
            logging.getLogger("x").debug("x")
    loud.flush(1.0)
    assert [line["service"] for line in lines()] == ["loud", "loud"]


def test_logging_is_not_captured_on_request(make: Callable[..., LogService], lines: Lines) -> None:
    """Without `capture_logging` records of `logging` are not written, those of loguru are."""
    before = list(logging.root.handlers)
    alone = make(capture_logging=False)
    assert logging.root.handlers == before
    capturing = make()
    with inside(record_of(observability=Installed(alone))):
        logging.getLogger("x").error("not written")
    capturing.close()
    logger.error("written")
    assert [line["message"] for line in lines()] == ["written"]
    assert logging.root.handlers == before


# Taking over and giving back


def test_everything_is_restored(make: Callable[..., LogService], lines: Lines) -> None:
    """After the last close handlers, levels, filters and threads are as before."""
    own, plain = logging.NullHandler(), logging.StreamHandler(sys.stdout)
    root = logging.root
    root.addHandler(plain)
    root.addHandler(own)
    try:
        before = (set(root.handlers), root.level, logging.getLogger("httpx").level, threading.active_count())
        logs = make()
        assert plain not in root.handlers
        assert own in root.handlers
        logging.getLogger("httpx").info("quiet")
        logging.getLogger("httpx").warning("heard")
        logging.getLogger("x").info("once")
        logs.close()
        assert [line["message"] for line in lines()] == ["heard", "once"]
        assert (set(root.handlers), root.level, logging.getLogger("httpx").level, threading.active_count()) == before
        assert all(not logging.getLogger(name).filters for name in SERVER_LOGGERS)
    finally:
        root.removeHandler(plain)
        root.removeHandler(own)


def test_the_users_levels_are_respected(make: Callable[..., LogService]) -> None:
    """A root level below ours stays, a later one is kept, a stricter quiet logger stays strict."""
    root, quiet = logging.root, logging.getLogger("strict")
    before = root.level
    quiet.setLevel(logging.ERROR)
    try:
        root.setLevel(5)
        logs = make(quiet_loggers=("strict",))
        assert (root.level, quiet.level) == (5, logging.ERROR)
        root.setLevel(logging.ERROR)
        logs.start()
        assert root.level == logging.INFO
        root.setLevel(logging.CRITICAL)
        logs.close()
        assert root.level == logging.CRITICAL
    finally:
        root.setLevel(before)
        quiet.setLevel(logging.NOTSET)


def restore_uvicorn() -> None:
    """Reset uvicorn's loggers to those of a process that has not served."""
    for name in SERVER_LOGGERS:
        found = logging.getLogger(name)
        found.handlers, found.propagate = [], True
        found.setLevel(logging.NOTSET)


@pytest.fixture
def uvicorn_logging() -> Iterator[Callable[[], None]]:
    """Return a function that configures logging as uvicorn does before it imports the app."""
    yield lambda: logging.config.dictConfig(LOGGING_CONFIG)
    restore_uvicorn()


@pytest.fixture
def bare_root() -> Iterator[Callable[[], None]]:
    """Return a function that removes pytest's handlers, which raise on unexpected records, from the root logger."""
    before = logging.root.handlers
    yield lambda: setattr(logging.root, "handlers", [])
    logging.root.handlers = before


def test_server_loggers_are_captured(
    make: Callable[..., LogService], lines: Lines, uvicorn_logging: Callable[[], None]
) -> None:
    """Lines of uvicorn are JSON lines, without access lines; both are restored at the end."""
    uvicorn_logging()
    names = ("uvicorn", "uvicorn.access")
    before = [(logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names]
    logs = make()
    logging.getLogger("uvicorn.error").info("started", extra={"color_message": "\x1b[1mstarted"})
    access = logging.getLogger("uvicorn.access")
    assert not access.hasHandlers()
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/", "1.1", 200)
    (line,) = lines()
    assert (line["message"], line["logger"], line["fields"]) == ("started", "uvicorn.error", {})
    logs.close()
    assert [(logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names] == before


def test_access_lines_are_written_without_request_lines(
    make: Callable[..., LogService], lines: Lines, uvicorn_logging: Callable[[], None]
) -> None:
    """Unless they were switched off."""
    uvicorn_logging()
    both = make(log_requests=True)
    logs = make(log_requests=False)
    both.close()
    access = logging.getLogger("uvicorn.access")
    access.info('%s "%s"', "127.0.0.1:1", "GET")
    logs.start()
    logs.flush(1.0)
    assert [line["message"] for line in lines()] == ['127.0.0.1:1 "GET"']
    logs.close()
    access.handlers, access.propagate = [], False
    make(log_requests=False)
    assert not access.propagate


def test_a_server_that_configures_logging_later(
    make: Callable[..., LogService], lines: Lines, uvicorn_logging: Callable[[], None]
) -> None:
    """`uvicorn.run(app)` replaces handlers after install: its first line is JSON."""
    logs = make()
    uvicorn_logging()
    access = logging.getLogger("uvicorn.access")
    before = access.handlers[:]
    access.info("not written")
    logging.getLogger("uvicorn.error").info("started")
    assert [line["message"] for line in lines()] == ["started"]
    logs.close()
    assert access.handlers == before


def test_other_handlers_stay(make: Callable[..., LogService], lines: Lines) -> None:
    """Only handlers on standard output and error are replaced: files and other classes keep getting records."""

    class Own(logging.StreamHandler[io.StringIO]):
        pass

    kept = [logging.StreamHandler(io.StringIO()), Own(io.StringIO())]
    server = logging.getLogger("uvicorn.error")
    for handler in kept:
        server.addHandler(handler)
    try:
        make()
        server.error("x")
        assert len(lines()) == 1
        assert [handler.stream.getvalue() for handler in kept] == ["x\n", "x\n"]
    finally:
        restore_uvicorn()


def test_the_intercept_handler_on_the_root(make: Callable[..., LogService], lines: Lines) -> None:
    """With loguru's recipe a record is one line."""

    class InterceptHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.opt(depth=6, exception=record.exc_info).log(record.levelname, record.getMessage())

    handler = InterceptHandler()
    logging.root.addHandler(handler)
    try:
        make()
        logging.getLogger("x").error("once")
        assert [line["message"] for line in lines()] == ["once"]
    finally:
        logging.root.removeHandler(handler)


def test_a_removed_handler_is_added_at_the_next_start(make: Callable[..., LogService], lines: Lines) -> None:
    """`logger.remove()` removes our handlers, too."""
    logs = make()
    logger.remove()
    logger.error("lost")
    logs.start()
    logger.error("found")
    assert [line["message"] for line in lines()] == ["found"]


def test_without_private_names_of_loguru_lines_are_written(
    make: Callable[..., LogService], lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state may be elsewhere in another version."""
    logs = make()
    monkeypatch.setattr(log_loguru, "logger", PublicLogger())
    logs.start()
    monkeypatch.undo()
    logs.log.error("x")
    logs.log._logger = PublicLogger()
    logs.log.error("y")
    assert [line["message"] for line in lines()] == ["x", "y"]


class PublicLogger:
    """Delegates to loguru's logger, without its private names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(logger, name)


# Formats, files and counts


def test_the_text_format(make: Callable[..., LogService], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is for the terminal; the file has JSON in any case."""
    logs = make(log_format="text", log_file=str(tmp_path / "app.log"), log_compression=None)
    logs.on_request_end(record_of())
    logs.log.error("x", order_id=7)
    logs.close()
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].endswith("✓ GET /orders/7?page=REDACTED&token=REDACTED  200  12 ms  ○ 0af76519")
    assert rows[1].endswith("ERROR x  order_id=7")
    (path,) = tmp_path.iterdir()
    assert [json.loads(row)["message"] for row in path.read_text().splitlines()] == ["HTTP request completed", "x"]
    make(log_format="text").log.error("y")
    assert capsys.readouterr().out.endswith("ERROR y\n")


def test_auto_on_a_real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets text in any environment; anything else, and a standard output that is closed, gets JSON."""
    for environment in ("development", "production"):
        with monkeypatch.context() as patch:
            assert LogService(ObserveSettings(environment=environment), InternalErrors()).text is None
            patch.setattr(sys.stdout, "isatty", lambda: True)
            assert LogService(ObserveSettings(environment=environment), InternalErrors()).text is not None
        with redirect_stdout(None):
            assert LogService(ObserveSettings(environment=environment), InternalErrors()).text is None


def test_counts(make: Callable[..., LogService], lines: Lines, tmp_path: Path) -> None:
    """Written, dropped and queued lines are counted, for standard output and the file."""
    logs = make()
    before = (logs.written, logs.dropped)
    logs.log.info("x")
    assert logs.written - before[0] + logs.queued == 1
    logs.flush(1.0)
    assert (logs.written - before[0], logs.dropped - before[1], logs.queued) == (1, 0, 0)
    failing = make(log_file=str(tmp_path / "blocked" / "app.log"))
    (tmp_path / "blocked").write_text("")
    with inside(record_of(observability=Installed(failing))):
        failing.log.error("y")
    assert failing.dropped - before[1] >= 1
    assert dict(failing.export_counts())["log_file"]() == Counts(
        2, 0, {"queue_full": 0, "file_write": 2, "internal_error": 0}, 0
    )
    assert failing.internal_errors.counts == {}


# A real server

APP = """
    import asyncio, json, logging, sys
    import uvicorn
    from loguru import logger
    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.logs.service import LogService

    logs = LogService(ObserveSettings(service_name="shop"), InternalErrors())
    logs.start()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            logging.getLogger("app").info("from logging")
            logger.info("from loguru")
            logs.log.info("from the logger")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            logs.flush(1.0)
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/crash":
            exc = RuntimeError("crashed")
            exc.__observe_ids__ = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "request-1")
            raise exc
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    if __name__ == "__main__":
        uvicorn.run(app, port=0)
"""


@pytest.mark.parametrize("how", ["command line", "uvicorn.run"])
def test_a_real_uvicorn_writes_json_lines_only(tmp_path: Path, how: str) -> None:
    """From the first to the last line of a server."""
    import httpx  # noqa: PLC0415 - only this test needs it

    (tmp_path / "served.py").write_text(textwrap.dedent(APP))
    by_command = [sys.executable, "-m", "uvicorn", "served:app", "--port", "0"]
    command = by_command if how == "command line" else [sys.executable, "served.py"]
    path = os.pathsep.join([each for each in (os.environ.get("PYTHONPATH", ""), *sys.path[:1]) if each])
    with subprocess.Popen(  # noqa: S603 - our own script
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        rows: list[dict[str, Any]] = []
        for row in server.stdout:
            rows.append(json.loads(row))
            if rows[-1]["message"].startswith("Uvicorn running on"):
                break
        address = rows[-1]["message"].split()[3]
        assert httpx.get(f"{address}/", trust_env=False, timeout=60).status_code == 200
        assert httpx.get(f"{address}/crash", trust_env=False, timeout=60).status_code == 500
        server.send_signal(signal.SIGTERM)
        rest, errors = server.communicate(timeout=120)
    rows += [json.loads(row) for row in rest.splitlines()]
    assert errors == ""
    messages = [line["message"] for line in rows]
    assert {"from logging", "from loguru", "from the logger", "Application startup complete."} <= set(messages)
    assert messages[-1].startswith("Finished server process")
    assert len(messages) == len(set(messages))
    (crash,) = (line for line in rows if "exception" in line)
    assert crash["message"] == "Exception in ASGI application"
    assert (crash["trace_id"], crash["span_id"], crash["request_id"]) == (TRACE, SPAN, "request-1")
    assert crash["exception"]["type"] == "RuntimeError"
    assert not any("HTTP/1.1" in message for message in messages)
