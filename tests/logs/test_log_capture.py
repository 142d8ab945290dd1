"""Capture of loguru and `logging`: forks, removed handlers, logging that is configured after install."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import interpreter
import pytest
import test_logs
from injection import failing
from loguru import logger
from test_logs import Installed, Lines, inside, record_of, restore_uvicorn

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.logs.capture import LogCapture
from fastapi_observe.logs.messages import parse_traceback_message
from fastapi_observe.logs.request_line import RequestLineEncoder
from fastapi_observe.logs.service import LogService
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

Make = Callable[..., LogService]
lines, make = test_logs.lines, test_logs.make

BEGIN = """
import os, sys, logging, threading
from loguru import logger
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.logs.service import LogService
logs = LogService(ObserveSettings(), InternalErrors())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run `script` after `BEGIN` in a process of its own."""
    done = interpreter.run(BEGIN + textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    return done


def messages(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the messages of the lines on standard output."""
    return [json.loads(row)["message"] for row in done.stdout.splitlines()]


def shown(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the messages that loguru's default handler wrote."""
    return [row.split(" - ")[-1] for row in done.stderr.splitlines()]


@pytest.fixture(autouse=True)  # the first one, so that it ends after the services, which put back what they replaced
def root() -> Iterator[Callable[..., None]]:
    """Return a function that sets the handlers of the root logger until the end of the test."""
    handlers, level = logging.root.handlers, logging.root.level
    yield lambda *given: setattr(logging.root, "handlers", list(given))
    logging.root.handlers = handlers
    logging.root.setLevel(level)


# Forks


def test_the_children_of_multiprocessing_lose_nothing() -> None:
    """Forked processes and pools end with `os._exit`: all their lines are written, of any logger."""
    done = run(
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        def work(name):
            logs.log.info(f"ours {name}")
            logger.info(f"loguru {name}")
            logging.getLogger("x").warning(f"logging {name}")

        logs.start()
        logs.log.info("parent")
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=work, args=("process",))
        child.start()
        child.join()
        with ProcessPoolExecutor(1, fork) as pool:
            pool.submit(work, "pool").result()
        """
    )
    wanted = [f"{how} {who}" for who in ("process", "pool") for how in ("ours", "loguru", "logging")]
    assert sorted(messages(done)) == sorted(["parent", *wanted])


def test_a_forked_server_worker_queues_again() -> None:
    """A worker of a process that had installed (gunicorn --preload) has a thread after `start`."""
    done = run(
        """
        logs.start()
        child = os.fork()
        if not child:
            logs.start()
            logs.start()
            logs.log.info("gathered")
            assert logs.queued
            assert threading.active_count() == 2
            logs.close()
            os._exit(0)
        sys.exit(os.waitpid(child, 0)[1])
        """
    )
    assert messages(done) == ["gathered"]


# loguru


def test_the_default_handler_is_silent_while_installed() -> None:
    """The default handler of loguru writes nothing between start and close, and writes again afterwards."""
    done = run(
        """
        for _ in range(2):
            logs.start()
            logs.start()
            assert logger._core.min_level == 20
            logger.error("ours")
            logs.close()
            logger.debug("plain")
        """
    )
    assert messages(done) == ["ours"] * 2
    assert shown(done) == ["plain"] * 2


@pytest.mark.parametrize("remove", ["logger.remove(0)", "logger.remove()"])
def test_a_user_may_remove_the_default_handler(remove: str) -> None:
    """As in loguru's manual, before and after install; it is not restored then."""
    after = run(f"logs.start(); {remove}; logs.log.error('ours'); logs.close(); logger.error('nobody listens')")
    before = run(f"{remove}; logs.start(); logger.error('ours'); logs.close(); logger.error('nobody listens')")
    for done in (after, before):
        assert messages(done) == ["ours"]
        assert done.stderr == ""
    again = run(f"logs.start(); {remove}; logs.close(); logs.start(); logs.log.error('ours')")
    assert (messages(again), again.stderr) == (["ours"], "")


@pytest.mark.parametrize(
    "configure",
    [
        "logger.remove(); logger.add(sys.stderr, format='{message}')",
        "logger.configure(handlers=[{'sink': sys.stderr, 'format': '{message}'}])",
    ],
)
def test_removed_handlers_are_added_again(configure: str) -> None:
    """When loguru is configured after install, the next call of our logger, or the start, adds our handlers again."""
    script = f"logs.start(); {configure}; %s; logger.info('loguru'); logs.log.debug('unwanted'); logs.flush(1)"
    by_call, by_start = run(script % "logs.log.info('ours')"), run(script % "logs.start()")
    assert messages(by_call) == ["ours", "loguru"]
    assert by_call.stderr.splitlines() == ["ours", "loguru", "unwanted"]
    assert messages(by_start)[1:] == ["loguru"]
    assert messages(by_start)[0].startswith("loguru has a handler of its own on the console, (id=")
    closed = run(f"logs.start(); logs.close(); {configure}; logs.log.info('theirs')")
    assert (closed.stdout, closed.stderr) == ("", "theirs\n")


def test_without_private_names_the_default_handler_is_removed() -> None:
    """It is added again at the end."""
    done = run(
        """
        from fastapi_observe.internal import loguru
        loguru.CORE = loguru.CONTEXT = None
        for _ in range(2):
            logs.start()
            logger.error("ours")
            logs.close()
            logger.error("plain")
        logs.start()
        sys.stderr = None
        logs.close()
        logger.error("nobody listens")
        """
    )
    assert messages(done) == ["ours"] * 2
    assert shown(done) == ["plain"] * 2


def test_handler_0_may_be_the_users_own() -> None:
    """With LOGURU_AUTOINIT off there is no default handler: handler 0 is not silenced."""
    script = "logger.add(sys.stderr); logs.start(); logger.error('both'); logs.close(); logger.error('theirs')"
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", BEGIN + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "LOGURU_AUTOINIT": "0"},
    )
    assert (messages(done)[1:], shown(done)) == (["both"], ["both", "theirs"])


def test_a_forked_child_has_a_new_lock() -> None:
    """The parent may have held it."""
    capture = LogCapture()
    with capture._lock:
        capture._reset_lock()
        assert capture._lock.acquire(blocking=False)


# Tracebacks in messages


def deep_traceback(reason: str, frames: int = 200) -> str:
    """Return a traceback as uvicorn logs it when a startup fails."""
    frame = '  File "/srv/app/main.py", line 7, in start\n    await connect()\n'
    return f"Traceback (most recent call last):\n{frame * frames}{reason}\n"


@pytest.mark.parametrize("how", ["logging", "loguru", "ours"])
def test_a_message_that_is_a_traceback_keeps_its_end(
    make: Make, lines: Lines, root: Callable[..., None], how: str
) -> None:
    """The last line of a long traceback is the message; the traceback is the stack trace."""
    root()
    logs = make()
    text = deep_traceback("shop.db.NoDatabase: no route to host\nfirst: look\n  at the cable")
    assert len(text) > 8192
    write: dict[str, Callable[[str], None]] = {
        "logging": logging.getLogger("uvicorn.error").error,
        "loguru": logger.error,
        "ours": logs.log.error,
    }
    write[how](text)
    (line,) = lines()
    assert line["message"] == "NoDatabase: no route to host\nfirst: look\n  at the cable"
    assert line["exception"]["type"] == "NoDatabase"
    assert line["exception"]["message"] == "no route to host\nfirst: look\n  at the cable"
    assert line["exception"]["stacktrace"].startswith("…")
    assert line["exception"]["stacktrace"].rstrip().endswith("at the cable")
    assert len(line["exception"]["stacktrace"]) <= 8192


def test_odd_tracebacks_in_messages(make: Make, lines: Lines, root: Callable[..., None]) -> None:
    """Chained, incomplete and short ones are parsed; with a real exception the text stays the message."""
    root()
    make()
    chained = deep_traceback("KeyError: 1", 1) + "\nDuring handling of it:\n\n" + deep_traceback("Stop", 1)
    log = logging.getLogger("x")
    for text in (chained, "Traceback (most recent call last):", deep_traceback("", 1).rstrip()):
        log.error(text)
    log.error(chained, exc_info=ValueError("real"))
    rows = lines()
    assert [line["message"] for line in rows] == [
        "Stop",
        "Traceback (most recent call last):",
        "    await connect()",
        chained.rstrip(),
    ]
    assert rows[0]["exception"] == {"type": "Stop", "message": "", "stacktrace": chained.rstrip()}
    assert rows[3]["exception"]["message"] == "real"
    assert parse_traceback_message("Traceback? No.", DEFAULT_REDACTOR) is None


# Access lines


UVICORN_LINES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("uvicorn.error", '%s - "WebSocket %s" [accepted]', ("127.0.0.1:5", "/ws?token=hunter2&page=1")),
    ("uvicorn.error", '%s - "WebSocket %s" 403', ("127.0.0.1:5", '/ws?a=hunter2"quoted')),
    ("uvicorn.access", '%s - "%s %s HTTP/%s" %d', ("127.0.0.1:5", "GET", "/x?hunter2", "1.1", 200)),
)


@pytest.fixture
def served() -> Iterator[None]:
    """Restore uvicorn's loggers."""
    yield
    restore_uvicorn()


@pytest.mark.usefixtures("served")
def test_websocket_access_lines_are_left_out(make: Make, lines: Lines) -> None:
    """Like uvicorn's other access lines."""
    make()
    for name, message, args in UVICORN_LINES:
        logging.getLogger(name).info(message, *args)
    logging.getLogger("uvicorn.error").error({"not": "text"})
    assert [line["fields"] for line in lines()] == [{"not": "text"}]


@pytest.mark.usefixtures("served")
def test_access_lines_show_no_query_values(make: Make, lines: Lines) -> None:
    """Queries in access lines are redacted."""
    logs = make(log_requests=False, capture_query_parameters=("page",))
    for name, message, args in UVICORN_LINES:
        logging.getLogger(name).info(message, *args)
    logs.flush(1.0)
    assert [line["message"] for line in lines()] == [
        '127.0.0.1:5 - "WebSocket /ws?token=REDACTED&page=1" [accepted]',
        '127.0.0.1:5 - "WebSocket /ws?a=REDACTED" 403',
        '127.0.0.1:5 - "GET /x?REDACTED HTTP/1.1" 200',
    ]


@pytest.mark.usefixtures("served")
def test_access_lines_of_granian(make: Make, lines: Lines) -> None:
    """They have a format of the user, so that their values are redacted."""
    logs = make(log_requests=False, capture_query_parameters=("page",))
    values = {"addr": "192.0.2.7", "path": "/a%20b", "query_string": "page=1&token=hunter2", "status": 200}
    access = logging.getLogger("granian.access")
    access.setLevel("INFO")
    access.info("%(addr)s %(path)s?%(query_string)s %(status)d", values)
    logs.flush(1.0)
    assert [line["message"] for line in lines()] == ["192.0.2.0/24 /a%20b?page=1&token=REDACTED 200"]
    make()
    access.info("%(addr)s", values)
    assert lines() == []


@pytest.mark.usefixtures("served")
def test_a_crash_has_its_stack_trace_once(make: Make, lines: Lines) -> None:
    """On the request line; the server's line has its ids. A second, equal one has the stack trace itself."""
    logs = make()
    exc = ValueError("broken")
    record = record_of(outcome="server_error", exception=exc, error_type="ValueError")
    exc.__observe_ids__ = (record.trace_id, record.span_id, record.request_id)  # type: ignore[attr-defined]
    text = "Application callable raised an exception\n" + deep_traceback("ValueError: broken", 2)
    uvicorn, granian = logging.getLogger("uvicorn.error"), logging.getLogger("_granian.utils")
    for server in (uvicorn, granian):
        logs.on_request_end(record)
        for _ in range(2):
            server.error("crashed" if server is uvicorn else text, exc_info=exc if server is uvicorn else None)
        request, first, second = lines()
        assert request["exception"]["message"] == second["exception"]["message"] == "broken"
        assert "exception" not in first
        assert (first["trace_id"], first["request_id"]) == (record.trace_id, record.request_id)
        assert first["fields"] == {"error_type": "ValueError"}
        assert first["message"] == second["message"]


def test_a_request_line_that_cannot_be_encoded(make: Make, lines: Lines) -> None:
    """The internal error is counted, and a line with the URL is written."""
    logs = make()
    with failing(RequestLineEncoder.encode):
        logs.on_request_end(record_of())
        logs.flush(1.0)
    line, error = sorted(lines(), key=lambda each: "fields" not in each or "url" not in each["fields"])
    assert (line["message"], line["fields"]) == ("HTTP request completed", {"url": "/orders/7"})
    assert logs.internal_errors.counts == {"logs.request_line": 1}
    assert error["message"].startswith("Internal error in fastapi-observe (logs.request_line")


# The root logger


def test_logging_configured_after_install(make: Make, lines: Lines, root: Callable[..., None]) -> None:
    """After `dictConfig` or `basicConfig(force=True)` start captures the root again; close restores the new one."""
    first = logging.StreamHandler(sys.stderr)
    root(first)
    logs = make()
    assert first not in logging.root.handlers
    config = {"version": 1, "disable_existing_loggers": False, "handlers": {"h": {"class": "logging.StreamHandler"}}}
    for again in (False, True):
        if again:
            logging.basicConfig(force=True, level="WARNING")
        else:
            logging.config.dictConfig({**config, "root": {"level": "WARNING", "handlers": ["h"]}})
        (second,) = logging.root.handlers
        logs.start()
        logging.getLogger("x").info("once")
        logs.flush(1.0)
        assert [line["message"] for line in lines()] == ["once"]
    logs.close()
    assert logging.root.handlers == [second]
    assert logging.root.level == logging.WARNING


def test_a_handler_with_filters_stays(make: Make, root: Callable[..., None]) -> None:
    """It was made by the user, not by `basicConfig`."""
    filtered, plain = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stdout)
    filtered.addFilter(lambda record: False)
    root(filtered, plain)
    make()
    assert filtered in logging.root.handlers
    assert plain not in logging.root.handlers


# Several installs


def test_each_apps_logger_writes_as_its_app(make: Make, lines: Lines) -> None:
    """A line of an app's logger is that app's, at its level, also in a request of another app."""
    quiet, loud = make(service_name="quiet", log_level="error"), make(service_name="loud", log_level="debug")
    loud.log.with_fields(x=1).debug("outside")
    quiet.log.info("unwanted")
    with inside(record_of(observability=Installed(quiet))):
        loud.log.info("inside the other's request")
        logger.info("unwanted too")
    logger.error("the first one open")
    loud.flush(1.0)
    assert [(line["service"], line["message"]) for line in lines()] == [
        ("loud", "outside"),
        ("loud", "inside the other's request"),
        ("quiet", "the first one open"),
    ]
    third = LogService(ObserveSettings(service_name="never started"), InternalErrors())
    third.log.error("x")
    assert [line["service"] for line in lines()] == ["quiet"]
