"""The text format: one line for each record and request, and what is below a request that failed or was slow."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fastapi_observe import DatabaseDep, LogDep, get_observability, install
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.logs import text as text_module
from fastapi_observe.logs.text import INDENT, TextFormat, legible_text
from fastapi_observe.records.request import RequestRecord
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastapi_observe import Observability


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the terminal's encoding."""
        return self._encoding

    def isatty(self) -> bool:
        """Say so."""
        return True


def record_of(**facts: Any) -> RequestRecord:
    """Build the record of a successful request."""
    scope = {"type": "http", "path": "/", "headers": [], **facts.pop("scope", {})}
    record = RequestRecord(scope, None, None, InternalErrors(), lambda _: None)  # type: ignore[arg-type]
    record.status_code, record.outcome, record.trace_id = 200, "ok", "1a2b3c4d" * 4
    for name, value in facts.items():
        setattr(record, name, value)
    return record


def line(**fields: Any) -> dict[str, Any]:
    """Build a line."""
    return {"level": "info", "message": "m", "fields": fields}


def request_line(level: str = "info", **fields: Any) -> dict[str, Any]:
    """Build a request line."""
    known = {
        "method": "GET",
        "url": "/orders/1?token=REDACTED",
        "endpoint": "/orders/{order_id}",
        "status_code": 200,
        "outcome": "ok",
        "sampled": False,
        **fields,
    }
    return {**line(**known), "level": level, "trace_id": "1a2b3c4d" * 4}


def shown(text: TextFormat, written: dict[str, Any], **facts: Any) -> str:
    """Return a request line as text, without its time."""
    facts = {"scope": {"path": "/orders/1", "query_string": b"token=x\x1b"}, "duration": 0.0123, **facts}
    return text.request(written, record_of(**facts), DEFAULT_REDACTOR).decode()[13:]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the terminal of a test is like."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_a_request_is_one_readable_line() -> None:
    """It has mark, path, status, duration, sampled mark and short trace id; the query is redacted."""
    text = TextFormat(Terminal())
    assert shown(text, request_line()) == "✓ GET /orders/1?token=REDACTED  200  12 ms  ○ 1a2b3c4d\n"
    left = request_line("warn", status_code=404, outcome="client_disconnect", sampled="tail")
    assert shown(text, left).startswith("! GET /orders/1?token=REDACTED  404  12 ms  client_disconnect  ◐ 1a2b3c4d")


def test_development_shows_targets_as_they_were_sent() -> None:
    """Path and query are shown, with control characters escaped; time in the database and other services follows."""
    text = TextFormat(Terminal(), raw_targets=True)
    written = request_line(db_ms=3.25, db_count=3, external_ms=1500.0, external_count=1, sampled="head")
    expected = "✓ GET /orders/1?token=x\\x1b  200  12 ms  db 3.2 ms \u00d73  external 1.50 s  ● 1a2b3c4d\n"
    assert shown(text, written) == expected
    assert "closed 1000" in shown(text, request_line(close_code="1000"))
    assert shown(text, request_line(), scope={"path": "/x"}).startswith("✓ GET /x  200")


def test_wide_terminals_have_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 100 columns on, status and duration are below each other; wide characters take two columns."""
    monkeypatch.setenv("COLUMNS", "120")
    text = TextFormat(Terminal(), raw_targets=True)
    first = shown(text, request_line(), scope={"path": "/a"}, duration=1.5)
    second = shown(text, request_line(), scope={"path": "/漢字"})
    assert first.index("200") == second.index("200") + 2
    assert first == "✓ GET /a" + " " * 28 + "  200    1.50 s  ○ 1a2b3c4d\n"


def test_only_terminals_get_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colors are for terminals, unless NO_COLOR is set; FORCE_COLOR asks for them elsewhere."""
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[32m" in TextFormat(Terminal()).request(request_line(), record_of(), DEFAULT_REDACTOR).decode()
    assert b"\x1b[31m" in TextFormat(Terminal()).line({**line(), "level": "fatal"})
    assert b"\x1b" not in TextFormat(io.StringIO()).line(line())
    assert b"\x1b" not in TextFormat(None).line(line())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert b"\x1b[32m" in TextFormat(io.StringIO()).line(line())
    monkeypatch.setenv("TERM", "dumb")
    assert b"\x1b" not in TextFormat(Terminal()).line(line())


@pytest.mark.parametrize("encoding", ["ascii", "no-such-encoding"])
def test_a_terminal_without_the_marks_gets_ascii(encoding: str) -> None:
    """The encoding of the terminal decides."""
    text = TextFormat(Terminal(encoding))
    assert shown(text, request_line(db_ms=1.0, db_count=2)).startswith("+ GET")
    assert "db 1.0 ms x2  - 1a2b3c4d" in shown(text, request_line(db_ms=1.0, db_count=2))
    assert b"caf\\xe9" in text.line({**line(), "message": "café"})


def test_fields_are_readable() -> None:
    """Fields follow as key=value: quoted if they have spaces, objects as JSON, the trace id last."""
    found = TextFormat(None).line({**line(a=1, b="two words", c="", d=[1], e="x"), "trace_id": "1a2b3c4d" * 4})
    assert found.decode()[13:] == 'INFO  m  a=1 b="two words" c="" d=[1] e=x  1a2b3c4d\n'


def test_text_cannot_be_forged() -> None:
    """Line ends, escape sequences, direction marks and invisible characters are escaped."""
    for code in (*range(0x200B, 0x2010), *range(0x2060, 0x2065), *range(0x2066, 0x2070), 0xFEFF, 0xAD, 0x180E, 0xFFF9):
        assert legible_text(chr(code)) == (f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}")
    assert legible_text("\U000e0041") == "\\U000e0041"
    assert legible_text("café 漢字 שלום 👍") == "café 漢字 שלום 👍"
    assert legible_text("a\nb\x1b[31m\u202e\x9b\ud800") == "a\\x0ab\\x1b[31m\\u202e\\x9b\\ud800"


def test_a_stack_trace_is_indented() -> None:
    """Each row of a stack trace starts with a mark that no line starts with; other line ends are escaped."""
    forged = "one\n12:00:00.000 INFO  x\n\ntwo\x1b\r12\u2028\x85\x0b\x1c\n"
    found = TextFormat(None).line({**line(), "exception": {"stacktrace": forged}}).decode()
    rows = ["one", "12:00:00.000 INFO  x", "", "two\\x1b\\x0d12\\u2028\\x85\\x0b\\x1c"]
    assert found.split("m\n", 1)[1] == "".join(f"    | {row}\n" for row in rows)


def test_an_exception_that_forbids_attributes_is_printed() -> None:
    """Where it cannot be marked as printed, it is printed each time."""

    class Sealed(Exception):  # noqa: N818 - as a user may call it
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError(name)

    written = request_line("error", error_type="Sealed")
    text = TextFormat(None)
    for _ in range(2):
        assert f"{INDENT}✗ " in INDENT + shown(text, written, exception=Sealed("no\nsecond\x1b"))
        assert "printed above" not in shown(text, written, exception=Sealed("no"))


# With an app


class Reset(ConnectionError):  # noqa: N818 - as a user may call it
    """A cause."""


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Return a function that sends a request to an app on a terminal, and returns what it prints, without times."""
    installed: list[Observability] = []

    def send(path: str, **options: Any) -> str:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        options.setdefault("blocked_loop_threshold", None)  # a busy machine would warn
        application = make_app()
        installed.append(install(application, metrics_access="private", sample_ratio=1.0, **options))
        TestClient(application, raise_server_exceptions=False).get(path)
        installed[-1].flush()
        return re.sub(r"\d\d:\d\d:\d\d\.\d{3} ", "", re.sub(r"\b[0-9a-f]{8}\b", "<id>", capsys.readouterr().out))

    yield send
    for observe in installed:
        observe.close()


def make_app() -> FastAPI:  # noqa: C901 - one function for each way
    """Return an app whose requests fail in several ways."""
    application = FastAPI()

    async def fail() -> None:
        try:
            raise Reset("no\nline two")  # noqa: TRY301 - what is tested
        except Reset as exc:
            raise RuntimeError("payment") from exc

    @application.get("/queries")
    async def queries(db: DatabaseDep) -> None:
        for _ in range(3):
            async with db.query("SELECT", table="items"):
                pass

    @application.get("/fails")
    async def fails(db: DatabaseDep) -> None:
        await queries(db)
        await fail()

    @application.get("/logged")
    async def logged(log: LogDep) -> None:
        try:
            await fail()
        except RuntimeError:
            log.exception("it failed")
            raise

    @application.get("/query")
    async def query(db: DatabaseDep) -> None:
        async with db.query("SELECT", table="items"):
            raise LookupError("gone")

    @application.get("/group")
    async def group() -> None:
        raise ExceptionGroup("several", [KeyError("one"), RuntimeError("two")])

    @application.get("/status")
    async def status() -> Any:
        from starlette.responses import Response  # noqa: PLC0415 - used here only

        return Response(status_code=503)

    return application


def test_a_failure_prints_its_tree_and_its_exception_once(app: Callable[..., str]) -> None:
    """Below its line are its spans, repeated ones folded, own frames with their source, libraries' folded, causes."""
    rows = app("/fails?page=2").splitlines()
    assert rows[0].startswith("✗ GET /fails?page=REDACTED  500  ")
    assert re.search(r"db [\d.]+ ms ×3  ● <id>$", rows[0])  # noqa: RUF001 - the sign of the text
    assert re.match(rf"{INDENT}└ SELECT items ×3 +█+ +[\d.]+ ms", rows[1])  # noqa: RUF001
    body = "\n".join(rows[2:])
    assert body.startswith(f"{INDENT}✗ RuntimeError: payment\n{INDENT}  ")
    assert re.search(r'test_text\.py:\d+ in make_app\.<locals>\.fail\n +raise RuntimeError\("payment"\) from exc', body)
    assert re.search(r"test_text\.py:\d+ in make_app\.<locals>\.fails\n +await fail\(\)", body)
    assert re.search(r"… \d+ frames of libraries", body)
    assert f"{INDENT}caused by Reset: no\n{INDENT}    line two" in body
    assert body.count("raise RuntimeError") == 1
    assert "Traceback" not in body


def test_the_servers_crash_line_is_not_repeated(app: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """What uvicorn logs about an exception that the request line has shown is not printed on the terminal."""
    caught: list[BaseException] = []
    application = make_app()
    observe = install(application, metrics_access="private", sample_ratio=1.0, log_format="text")
    try:
        TestClient(application).get("/fails")
    except RuntimeError as exc:
        caught.append(exc)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=caught[0])
    logging.getLogger("uvicorn.error").error("another", exc_info=ValueError("x"))
    observe.flush()
    written = capsys.readouterr().out
    observe.close()
    assert "Exception in ASGI" not in written
    assert "another" in written
    assert app("/status").startswith("✗ GET /status  503")


def test_what_was_logged_is_not_printed_again(app: Callable[..., str]) -> None:
    """An exception that was logged in the same request has one row on the request line."""
    written = app("/logged")
    assert written.count("raise RuntimeError") == 1
    assert written.index("it failed") < written.index("raise RuntimeError") < written.index("GET /logged")
    assert "✗ RuntimeError: payment (printed above)" in written


def test_a_failed_operation_has_type_and_message(app: Callable[..., str]) -> None:
    """Its frames are on the request line, which has all of them."""
    written = app("/query")
    assert written.startswith("ERROR database query failed  ")
    assert f"\n{INDENT}✗ LookupError: gone\n✗ GET /query" in written
    assert written.count('raise LookupError("gone")') == 1
    assert re.search(r"└ SELECT items +█+ +[\d.]+ ms  ✗ LookupError", written)


class Hostile(Exception):  # noqa: N818 - as a user may call it
    """An exception that cannot be described."""

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise OSError


def test_an_exception_that_cannot_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    """The request has its line with what is known; the failure is counted."""
    application = FastAPI()

    @application.get("/")
    async def fail() -> None:
        raise Hostile

    observe = install(application, log_format="text", blocked_loop_threshold=None, metrics_access="private")
    TestClient(application, raise_server_exceptions=False).get("/")
    observe.flush()
    written = capsys.readouterr().out
    metrics = observe.metrics.render("", "")[1].decode()
    observe.close()
    assert "ERROR HTTP request completed  method=GET" in written
    assert re.search(r'fastapi_observe_internal_errors_total\{[^}]*"logs\.text"[^}]*\} 1', metrics)


def test_the_log_file_has_what_the_terminal_leaves_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It has the request line and the server's line as JSON; each line counts once."""
    application = make_app()
    path = tmp_path / "app.log"
    observe = install(
        application, log_format="text", log_file=str(path), log_compression=None, blocked_loop_threshold=None
    )
    caught: list[BaseException] = []
    try:
        TestClient(application).get("/fails")
    except RuntimeError as exc:
        caught.append(exc)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=caught[0])
    observe.close()
    messages = [json.loads(row)["message"] for row in path.read_text().splitlines()]
    assert messages[-2:] == ["HTTP request completed", "Exception in ASGI application"]
    written = capsys.readouterr().out
    assert "Exception in ASGI" not in written
    assert written.count("raise RuntimeError") == 1


def test_members_of_a_group_are_printed(app: Callable[..., str]) -> None:
    """Each has a row of its own."""
    written = app("/group")
    assert "✗ ExceptionGroup: several (2 sub-exceptions)" in written
    assert "in the group: KeyError: 'one'" in written
    assert "in the group: RuntimeError: two" in written


def test_a_slow_request_prints_its_tree(app: Callable[..., str]) -> None:
    """It is slow from `slow_request_threshold` on; an ordinary request is one line."""
    assert app("/queries").count("\n") == 1
    assert "└ SELECT items" in app("/queries", slow_request_threshold=1e-9)


def test_requests_without_a_line_leave_nothing_behind(app: Callable[..., str]) -> None:
    """With `log_requests=False` nothing is printed, and no span is held."""
    assert app("/queries", log_requests=False) == ""
    text = get_observability().logs.text
    assert text is not None
    take: Any = text.spans
    assert len(take.__self__) == 0


def test_concurrent_requests_do_not_mix(app: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """The tree of each is right below its line."""
    application, names = FastAPI(), [f"n{number}" for number in range(20)]

    @application.get("/{name}")
    async def read(name: str, db: DatabaseDep) -> None:
        for _ in range(3):
            async with db.query("SELECT", table=name):
                await asyncio.sleep(0)
        raise RuntimeError(name)

    observe = install(application, metrics_access="private", sample_ratio=1.0, log_format="text")

    async def send() -> None:
        await asyncio.gather(*(_call(application, f"/{name}") for name in names), return_exceptions=True)

    asyncio.run(send())
    observe.flush()
    written = capsys.readouterr().out
    observe.close()
    blocks = re.split(r"^\d\d:\d\d:\d\d\.\d{3} ", written, flags=re.MULTILINE)[1:]
    blocks = [block for block in blocks if "GET /n" in block]  # a busy machine may warn of a blocked loop
    assert len(blocks) == len(names), blocks
    for block in blocks:
        name = re.findall(r"GET /(n\d+)", block)[0]
        assert set(re.findall(r"\bn\d+\b", block)) == {name}
        assert re.search(rf"SELECT {name} ×3", block)  # noqa: RUF001
    assert app("/status").count("\n") == 1 + bool("rows below")


async def _call(application: FastAPI, path: str) -> None:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)


@pytest.mark.parametrize("options", [{}, {"log_format": "text"}, {"log_format": "text", "log_requests": False}])
def test_all_trees_are_printed_if_the_settings_say_so(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`OTEL_TRACES_EXPORTER=console` prints each tree once, in any format, and those outside requests."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    application = make_app()
    observe = install(application, metrics_access="private", sample_ratio=1.0, **options)
    assert observe.settings.print_traces
    assert not [message for message in observe.settings.warnings() if "OTEL_TRACES_EXPORTER" in message]
    TestClient(application).get("/queries")
    with observe.tracing.span("outer"), observe.tracing.span("inner"):
        pass
    observe.flush()
    written = capsys.readouterr().out
    observe.close()
    with observe.tracing.span("after the end"):
        pass
    assert "after the end" not in capsys.readouterr().out
    assert len(re.findall(r"└ SELECT items ×3 +█+ +[\d.]+ ms", written)) == 1  # noqa: RUF001
    assert re.search(r"^trace [0-9a-f]{32}\nouter +█+ +[\d.]+ ms\n└ inner ", written, flags=re.MULTILINE)


@pytest.mark.parametrize("print_traces", [True, False])
def test_a_job_prints_its_tree_once(capsys: pytest.CaptureFixture[str], *, print_traces: bool) -> None:
    """A job that failed has its spans and its exception; with `print_traces` the tree is not printed twice."""
    observe = install(
        FastAPI(), log_format="text", sample_ratio=1.0, print_traces=print_traces, blocked_loop_threshold=None
    )
    with pytest.raises(LookupError), observe.job("nightly"), observe.operation("load"):
        raise LookupError("gone")
    observe.flush()
    written = capsys.readouterr().out
    observe.close()
    assert len(re.findall(r"^ *└ load +█+", written, re.MULTILINE)) == 1
    assert written.count('raise LookupError("gone")') == 1
    assert "job failed" in written


def test_a_request_without_spans_has_no_tree() -> None:
    """Nothing is written for it where its line is not either."""
    assert TextFormat(None, all_trees=True).tree(record_of()) == b""


def test_times_are_those_of_the_day() -> None:
    """A line begins with the time of the day in milliseconds."""
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} INFO  m\n", TextFormat(None).line(line()).decode())
    assert text_module.INDENT == " " * 13
