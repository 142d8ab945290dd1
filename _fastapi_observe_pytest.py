"""The pytest plugin: the fixture `observed` is the telemetry of the app of the test.

A module of its own, because pytest imports it at every start: importing a module of the package would import all of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.logging import LogCaptureHandler

    from fastapi_observe import Observability
    from fastapi_observe.testing import CapturedTelemetry

MAX_SEARCHED_RECORDS = 32
"""Last records of a handler among which the one of another sink of loguru is, also if several threads log."""

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50}


@pytest.fixture
def observed(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[CapturedTelemetry]:
    """Collect spans, log lines and metrics of the test's app: that of the fixture `app`, else the only installed one.

    Every trace is sampled meanwhile, and `caplog` gets the lines of loguru and of fastapi-observe, too.
    """
    from loguru import logger  # noqa: PLC0415 - see above

    from fastapi_observe import get_observability  # noqa: PLC0415 - see above
    from fastapi_observe.testing import CapturedTelemetry  # noqa: PLC0415 - see above

    observability: Observability | None
    try:
        app = request.getfixturevalue("app")
    except pytest.FixtureLookupError:
        try:
            observability = get_observability()
        except RuntimeError as error:  # none or several are installed
            step = "have a fixture `app` return the app of the test"
            pytest.fail(f"{error}; in tests {step}", pytrace=False)
    else:
        observability = getattr(getattr(app, "state", None), "observe", None)
        if observability is None:
            pytest.fail("the fixture `app` is no app on which install(app) was called", pytrace=False)

    # The second one writes "Captured log call". The documentation of loguru gets it in this way.
    report = getattr(request.config.pluginmanager.get_plugin("logging-plugin"), "report_handler", None)
    handlers = [caplog.handler] if report is None else [caplog.handler, report]

    def hand_over(line: dict[str, Any]) -> None:
        if line["logger"].startswith("fastapi_observe."):  # the others come through logging or loguru
            number = LEVELS[line["level"]]
            made = _record(line["logger"], number, line["message"], line["fields"])
            _handle(handlers, made, caplog.handler.level)

    def hand_over_loguru(message: Any) -> None:
        record, raised, file = message.record, message.record["exception"], message.record["file"]
        known = {
            "levelname": record["level"].name,  # `logging` has no SUCCESS or TRACE
            "pathname": file.path,
            "filename": file.name,
            "module": record["module"],
            "lineno": record["line"],
            "funcName": record["function"],
            "exc_info": None if raised is None else (raised.type, raised.value, raised.traceback),
        }
        number, fields = record["level"].no, record["extra"]
        # loguru's documentation has fixtures that add the same handlers as sinks. The records that loguru makes for
        # them have the same mapping, which is of this one call.
        missing = [each for each in handlers if not _has(each, fields)]
        made = _record(record["name"] or "", number, record["message"], fields, **known)
        _handle(missing, made, caplog.handler.level)

    sink = logger.add(hand_over_loguru, format="{message}", level=0)
    try:
        with CapturedTelemetry(observability, hand_over) as telemetry:
            yield telemetry
    finally:
        logger.remove(sink)


def _handle(handlers: list[LogCaptureHandler], record: logging.LogRecord, level: int) -> None:
    for handler in handlers:
        if record.levelno >= max(level, handler.level):  # a logger compares them, handle() does not
            handler.handle(record)


def _has(handler: LogCaptureHandler, extra: dict[str, Any]) -> bool:
    return any(getattr(each, "extra", None) is extra for each in handler.records[-MAX_SEARCHED_RECORDS:])


def _record(name: str, number: int, message: str, fields: dict[str, Any], **known: Any) -> logging.LogRecord:
    values = {"name": name, "levelno": number, "levelname": logging.getLevelName(number), "msg": message}
    return logging.makeLogRecord(values | {"fields": fields} | known)
