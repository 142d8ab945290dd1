"""Logging as people set it up: one JSON line for each event, or one warning that names logger, handler and remedy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import httpx
import interpreter
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from servers_of_workers import free_port
from tools import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen

BEGIN = """
import asyncio, json, logging, logging.config, sys
from collections import UserDict
from fastapi import FastAPI
from loguru import logger
from fastapi_observe import install

def dict_config(propagate=False, **handler):
    handler = {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout", **handler}
    logging.config.dictConfig({
        "version": 1,
        "disable_existing_loggers": True,
        "formatters": {"plain": {"format": "%(levelname)s %(message)s"}, "own": {"()": "__main__.OwnFormatter"}},
        "handlers": {"console": handler},
        "loggers": {"shop": {"handlers": ["console"], "level": "INFO", "propagate": propagate}},
    })

async def start(observe):
    observe.on_startup()

class OwnFormatter(logging.Formatter):
    pass

class LoguruHandler(logging.Handler):  # often called InterceptHandler
    def emit(self, record):
        logger.opt(depth=6, exception=record.exc_info).log(record.levelname, record.getMessage())

class PropagateHandler(logging.Handler):
    def emit(self, record):
        logging.getLogger(record.name).handle(record)

class RichHandler(logging.Handler):
    class console:
        file = sys.stderr

    def emit(self, record):
        print("rich", record.getMessage(), file=self.console.file)
"""


class Output:
    """What a process has written: lines of the script, plain text, and our own warnings about the console."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        rows = done.stdout.splitlines()
        lines: list[dict[str, Any]] = [json.loads(row) for row in rows if row.startswith("{")]
        self.lines = [line for line in lines if line["logger"] != "fastapi_observe"]
        self.events = [line["message"] for line in self.lines]
        self.warnings = [line["message"] for line in lines if line not in self.lines and "console" in line["message"]]
        self.plain = [row for row in rows if not row.startswith("{")] + done.stderr.splitlines()


def run(script: str) -> Output:
    """Run a script in a process of its own."""
    done = interpreter.run(BEGIN + textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    return Output(done)


def test_a_named_logger_with_a_console_handler() -> None:
    """Its records are JSON lines, once, with or without propagation, also if it is configured after `install`."""
    for script in (
        "dict_config(); observe = install(FastAPI())",
        "dict_config(propagate=True); observe = install(FastAPI())",
        "observe = install(FastAPI()); dict_config(); asyncio.run(start(observe))",
        "observe = install(FastAPI()); dict_config(propagate=True); [asyncio.run(start(observe)) for _ in range(2)]",
        "dict_config(stream='ext://sys.stderr', formatter=None); observe = install(FastAPI())",
    ):
        output = run(
            f"""
            {script}
            logging.getLogger("shop").warning("parent", extra={{"left": 1}})
            logging.getLogger("shop.stock").warning("child", extra={{"left": 2}})
            observe.close()
            logging.getLogger("shop").warning("closed")
            """
        )
        assert output.events == ["parent", "child"], script
        assert [line["fields"] for line in output.lines] == [{"left": 1}, {"left": 2}]
        assert [row.removeprefix("WARNING ") for row in output.plain] == ["closed"], script


def test_a_formatter_of_the_user_is_left_and_reported_once() -> None:
    """The warning says whether the records are JSON lines as well, and what to do."""
    output = run(
        """
        dict_config(formatter="own")
        observe = install(FastAPI())
        asyncio.run(start(observe))
        logging.getLogger("shop").warning("low")
        observe.close()
        """
    )
    assert (output.events, output.plain) == ([], ["low"])
    (warning,) = output.warnings
    assert warning == (
        "The handler StreamHandler with OwnFormatter of the logger 'shop' writes to the console itself: its records "
        "are not JSON lines. Remove the handler and let the logger propagate (fastapi-observe replaces only handlers "
        "with a plain logging.Formatter), or set capture_logging=False."
    )
    assert run("dict_config(formatter='own'); install(FastAPI(), capture_logging=False)").warnings == []


def test_a_rich_handler_on_the_root_logger() -> None:
    """It stays, and one warning says that each record is on the console twice."""
    output = run(
        """
        logging.root.addHandler(RichHandler())
        observe = install(FastAPI())
        logging.getLogger("shop").warning("low")
        observe.close()
        """
    )
    assert output.events == ["low"]
    assert output.plain[-1] == "rich low"
    assert output.plain.count("rich low") == 1
    (warning,) = output.warnings
    assert warning.startswith("The handler RichHandler of the logger 'root' writes to the console itself: each of its")


def test_handlers_that_pass_records_on() -> None:
    """A buffer or queue whose records are written to the console is named at start; one before a file is not."""
    output = run(
        """
        import logging.handlers, queue
        console, file = logging.StreamHandler(), logging.FileHandler("/dev/null")
        def add(name, handler):
            logging.getLogger(name).addHandler(handler)
        add("buffered", logging.handlers.MemoryHandler(1, target=console))
        add("filed", logging.handlers.MemoryHandler(1, target=file))
        add("queued", logging.handlers.QueueHandler(queue.Queue()))
        for name, target in ("heard", console), ("unheard", file):
            handler = logging.handlers.QueueHandler(queue.Queue())
            handler.listener = logging.handlers.QueueListener(handler.queue, target)
            add(name, handler)
        observe = install(FastAPI())
        observe.close()
        """
    )
    assert [re.sub("each of its records.*", "", warning) for warning in sorted(output.warnings)] == [
        "The handler MemoryHandler of the logger 'buffered' writes to the console itself: ",
        "The handler QueueHandler of the logger 'heard' writes to the console itself: ",
        "The handler QueueHandler of the logger 'queued' passes records to a listener; if that writes to the console, ",
    ]


def test_the_intercept_recipe() -> None:
    """On the root, and on the server's loggers, whether they propagate or not: one line, with the record's fields."""
    for propagate in (True, False):
        output = run(
            f"""
            logger.remove()
            seen = []
            logger.add(lambda message: seen.append(str(message).strip()), format="{{message}}")
            logging.basicConfig(handlers=[LoguruHandler()], level=0, force=True)
            for name in ("uvicorn", "uvicorn.error", "shop"):
                each = logging.getLogger(name)
                each.handlers, each.propagate = [LoguruHandler()], {propagate}
            def log(name):
                logging.getLogger("uvicorn.error").warning("server", extra={{"left": 1}})
                logging.getLogger("shop").warning("%s", {{"event": "shop"}}["event"], extra={{"left": 2}})
                logging.getLogger("lib").warning("library")
                logger.warning("loguru")
            log("bare")
            bare = len(seen)
            observe = install(FastAPI())
            log("installed")
            assert len(seen) == 2 * bare, seen
            observe.close()
            """
        )
        assert output.events == ["server", "shop", "library", "loguru"], propagate
        assert [line["logger"] for line in output.lines] == ["uvicorn.error", "shop", "lib", "__main__"]
        assert [line["fields"] for line in output.lines] == [{"left": 1}, {"left": 2}, {}, {}]
        assert (output.plain, output.warnings) == ([], [])


def test_loguru_that_passes_its_records_to_logging() -> None:
    """The other recipe, a handler of `logging` as a sink of loguru: one line."""
    output = run(
        """
        logger.remove()
        logger.add(PropagateHandler(), format="{message}")
        observe = install(FastAPI())
        logger.bind(left=1).warning("loguru")
        logging.getLogger("shop").warning("logging")
        observe.close()
        """
    )
    assert output.events == ["loguru", "logging"]
    assert output.lines[0]["fields"] == {"left": 1}


def test_a_sink_of_loguru_on_the_console_is_reported() -> None:
    """The warning has the call that removes it."""
    output = run("number = logger.add(sys.stdout, format='own {message}'); install(FastAPI()).close()")
    assert len(output.warnings) == 1
    assert re.search(r"sink=<stdout>.* Remove it with logger\.remove\(1\)\.$", output.warnings[0])


def test_named_arguments_are_redacted_by_their_names() -> None:
    """Also those of a record class that formats messages in its own way; the record of other handlers is unchanged."""
    output = run(
        """
        observe = install(FastAPI())
        log, given = logging.getLogger("shop"), {"user": "ada", "password": "correct horse"}
        log.warning("%(user)s sent %(password)s", given)
        class Braces(logging.LogRecord):
            def getMessage(self):
                return self.msg.format(**self.args)
        log.handle(Braces("shop", 30, "", 0, "{user} sent {password}", (given,), None))
        assert given["password"] == "correct horse"
        observe.close()
        """
    )
    assert output.events == ["ada sent REDACTED", "ada sent REDACTED"]


def test_a_mapping_as_the_only_argument() -> None:
    """`logging` takes it for named arguments. `%s` and `%r` have its text, redacted as other text is."""
    output = run(
        """
        from collections import Counter
        from types import MappingProxyType
        from starlette.datastructures import Headers
        observe = install(FastAPI())
        log = logging.getLogger("shop")
        for message, given in (
            ("headers: %s", Headers({"accept": "*/*", "authorization": "Bearer abcdef0123456789"})),
            ("got %r", MappingProxyType({"user": "ada"})),
            ("got %.9s", Counter("aab")),
            ("payload: %s", {"user": "ada", "password": "correct horse"}),
            ("%s", dict.fromkeys(range(300), 1)),
        ):
            log.warning(message, given)
        observe.close()
        """
    )
    *events, last = (event.replace("'REDACTED'", "REDACTED") for event in output.events)
    assert events == [
        "headers: Headers({'accept': '*/*', 'authorization': REDACTED})",
        "got mappingproxy({'user': 'ada'})",
        "got Counter({",
        "payload: {'user': 'ada', 'password': REDACTED}",
    ]
    assert last == str(dict.fromkeys(range(300), 1))


def test_redacted_named_arguments_keep_the_message() -> None:
    """Whatever the conversion and the mapping are. An ambiguous name redacts only what looks like an id, as in text."""
    output = run(
        """
        observe = install(FastAPI())
        class Computed(dict):
            def __missing__(self, name):
                return len(name)
        log = logging.getLogger("shop")
        for message, given in (
            ("%(token)d tokens, %(left)04d left, 100 %% of %(secret)-9.3f|", {"token": 512, "left": 7, "secret": 1.5}),
            ("%(tokens)d tokens, pin %(pin)04d", {"tokens": 512, "pin": 7}),
            ("%(password)r, %(api_key)2.2s", {"password": "hunter2", "api_key": "abc"}),
            ("status %(code)s, session %(session)s, %(auth)s", {"code": 404, "session": 3, "auth": "basic"}),
            ("session %(session)s", {"session": "7f3a9c21b4d8e6f05a1c"}),
            ("%(session)s %(size)02d %(password)02d", Computed(session="abc")),
            ("%(codes)s %(auth)s", {"codes": ["a1"], "auth": {"user": "ada"}}),
            ("to %(user.email)s", {"user.email": "ada@example.org"}),
            ("%(missing)d", {"password": "hunter2"}),
        ):
            log.warning(message, given)
        observe.close()
        """
    )
    assert output.events == [
        "REDACTED tokens, 0007 left, 100 % of REDACTED|",
        "512 tokens, pin 0007",
        "REDACTED, REDACTED",
        "status 404, session 3, basic",
        "session REDACTED",
        "abc 04 REDACTED",
        "REDACTED REDACTED",
        "to REDACTED",
        "%(missing)d",
    ]
    assert output.lines[-1]["fields"] == {"args": {"password": "REDACTED"}}


def test_a_mapping_as_message() -> None:
    """`event` or `message` is the message and the rest are fields, as structlog's wrap_for_formatter has them."""
    output = run(
        """
        observe = install(FastAPI())
        log = logging.getLogger("shop")
        structlog = {"extra": {"_logger": log, "_name": "shop"}}
        log.warning({"event": "order paid", "order_id": 7, "password": "hunter2", "exc_info": False}, **structlog)
        try:
            1 / 0
        except ZeroDivisionError as exc:
            log.error({"event": "division failed", "exc_info": True, "_record": None}, **structlog)
            log.error({"message": "again", "exc_info": exc})
        log.warning({"message": "plain", "order_id": 8}, extra={"left": 1})
        log.warning({"order_id": 9})
        log.warning("%(order_id)s", {"order_id": 10})
        observe.log.info({"event": "ours", "order_id": 11}, order_id=12)
        class Odd(UserDict):
            def items(self):
                raise RuntimeError
        log.warning(Odd(a=1))
        observe.close()
        """
    )
    assert output.events == ["order paid", "division failed", "again", "plain", "", "10", "ours", "{'a': 1}"]
    assert [line["fields"] for line in output.lines[:7]] == [
        {"order_id": 7, "password": "REDACTED"},
        {},
        {},
        {"order_id": 8, "left": 1},
        {"order_id": 9},
        {},
        {"order_id": 12},
    ]
    assert [line["exception"]["type"] for line in output.lines if "exception" in line] == ["ZeroDivisionError"] * 2


def test_a_clock_that_returns_floats(observed: Callable[..., Seen]) -> None:
    """A patched `time_ns` neither spoils a line nor is an internal error."""
    app = FastAPI()
    seen = observed(app)
    request_line, line = "fastapi_observe.records.request.time_ns", "fastapi_observe.logs.service.time_ns"
    with pytest.MonkeyPatch.context() as patch:
        for name in (request_line, line):
            patch.setattr(name, lambda: 1577836800.25e9)
        TestClient(app).get("/")
        seen.observe.log.info("frozen")
        assert seen.request_lines[0]["timestamp"].startswith("2020-01-01T00:00:00.2")
        (frozen,) = (each["timestamp"] for each in seen.lines if each["message"] == "frozen")
        assert frozen.startswith("2020-01-01T00:00:00.2")
    assert seen.observe.internal_errors.counts == {}


def test_validation_errors_are_on_the_line_and_the_span(observed: Callable[..., Seen]) -> None:
    """Declared names and reasons, never values or names that a client chose."""
    app = FastAPI()

    @app.post("/orders")
    def order(price: int, extra: dict[str, int]) -> None:
        pass

    seen = observed(app)
    response = TestClient(app).post("/orders?price=hunter2", json={"hunter2": "hunter2"})
    assert response.status_code == 422
    expected = ["query.price: int_parsing", "body.*: int_parsing"]
    (line,) = seen.request_lines
    assert line["fields"]["validation_errors"] == expected
    (span,) = seen.server_spans
    assert span.attributes is not None
    assert list(span.attributes["fastapi_observe.validation_errors"]) == expected  # type: ignore[arg-type]
    assert "hunter2" not in json.dumps(line)


APP = """
import logging
from fastapi import BackgroundTasks, FastAPI
from fastapi_observe import install

app = FastAPI()
install(app)

def fail(reason):
    raise RuntimeError(reason)

@app.get("/crash")
async def crash():
    fail("crash")

@app.get("/late")
async def late(tasks: BackgroundTasks):
    tasks.add_task(fail, "late")

@app.get("/log")
async def log():
    logging.getLogger("uvicorn.error").warning("server")
"""


def test_a_server_with_its_own_logging(tmp_path: Path) -> None:
    """Under `uvicorn --log-config` every line is JSON, and a crash has its stack trace once."""
    (tmp_path / "shop.py").write_text(APP)
    handler = {"class": "logging.StreamHandler", "formatter": "plain"}
    config = {
        "version": 1,
        "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
        "handlers": {"console": handler},
        "loggers": {
            name: {"handlers": ["console"], "level": "INFO", "propagate": False}
            for name in ("uvicorn", "uvicorn.error", "uvicorn.access")
        },
    }
    (tmp_path / "logging.json").write_text(json.dumps(config))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port), "--log-config", "logging.json"]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *sys.path[:1]]))
    with subprocess.Popen(  # noqa: S603 - a server of our own environment
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        statuses: list[int] = []

        def serves() -> bool:
            try:
                statuses.append(httpx.get(f"http://127.0.0.1:{port}/log", trust_env=False, timeout=60).status_code)
            except httpx.TransportError:
                return False
            return True

        try:
            until(serves, 60)
            urls = [f"http://127.0.0.1:{port}/{name}" for name in ("crash", "late")]
            statuses += [httpx.get(url, trust_env=False, timeout=60).status_code for url in urls]
        finally:
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=120)
    assert statuses == [200, 500, 200]
    lines = [json.loads(row) for row in out.splitlines() if row.startswith("{")]
    assert [row for row in out.splitlines() if not row.startswith("{")] == []
    assert "server" not in err
    messages = [line["message"] for line in lines]
    assert messages.count("server") == 1
    assert not any("HTTP/1.1" in message for message in messages)
    crashes = [line for line in lines if line["message"] == "Exception in ASGI application"]
    (request,) = (line for line in lines if line["fields"].get("url") == "/crash")
    assert "crash" in request["exception"]["stacktrace"]
    assert "exception" not in crashes[0]
    assert crashes[0]["fields"] == {"error_type": "RuntimeError"}
    assert [crashes[0][key] for key in ("trace_id", "span_id", "request_id")] == [
        request[key] for key in ("trace_id", "span_id", "request_id")
    ]
    stacks = [line for line in lines if "late" in line.get("exception", {}).get("message", "")]
    assert stacks  # the background task failed after its request line was written
