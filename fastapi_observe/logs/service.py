"""The log signal: one line for each request and failed operation, and the logger that users call."""

from __future__ import annotations

import logging
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from loguru import logger as loguru_logger
from opentelemetry import context as otel_context
from opentelemetry.trace import get_current_span

from fastapi_observe.logs.capture import SERVER_LOGGERS, LogCapture
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.file.retention import parse_retention
from fastapi_observe.logs.file.rotation import parse_rotation
from fastapi_observe.logs.line import (
    MAX_MESSAGE,
    TextFormat,
    Timestamps,
    describe_exception,
    encode_line,
    to_text,
    truncate,
)
from fastapi_observe.logs.messages import (
    TRACEBACK,
    ids_from_exception,
    is_access_log,
    parse_traceback_message,
    redact_access,
)
from fastapi_observe.logs.request_line import (
    OPERATION_LOGGER,
    REQUEST_LOGGER,
    REQUEST_MESSAGE,
    RequestLineEncoder,
    fields_of_operation,
    level_of_operation,
    operation_message,
    repeated_statement_fields,
)
from fastapi_observe.records.request import CONTEXT_KEY, current_record
from fastapi_observe.records.signal import no_op
from fastapi_observe.redaction.redactor import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from loguru import Record

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.logs.request_line import RequestLineParts
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.time_breakdown import TimeBreakdown
    from fastapi_observe.settings.model import ObserveSettings

LEVELS: Final = {"debug": 0, "info": 20, "warn": 30, "error": 40, "fatal": 50}
"""The contract's levels and where each begins in the numbers of `logging` and loguru."""

OUTCOME_LEVELS: Final = {
    "ok": "info",
    "client_error": "warn",
    "client_disconnect": "warn",
    "server_error": "error",
    "cancelled": "error",
    "incomplete_response": "error",
}

RECORD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "color_message",
    "message",
    "taskName",
}
"""What every record of the standard library has, and uvicorn's coloured copy; anything else is a user's field."""

_CAPTURE: Final = LogCapture()
"""loguru, the root logger and standard output belong to the process, so what is open on them is known in one place."""


class LogService:
    """Writes the contract's log lines to standard output and to the log file.

    `start` begins to take loguru's and the standard library's records too (again: takes over what was changed since),
    `close` puts everything back. Lines on standard output are counted for the whole process.
    """

    def __init__(self, settings: ObserveSettings, faults: InternalErrors, redactor: Redactor | None = None) -> None:
        self.faults = faults
        self.threshold = LEVELS[settings.log_level]
        self.captures_logging = settings.capture_logging
        self.logs_requests = settings.log_requests
        self.quiet_loggers = settings.quiet_loggers
        self.log = ObserveLogger(loguru_logger.opt(depth=2), self)
        who = ("service", settings.service_name), ("environment", settings.environment)
        self._resource = {key: to_text(value, 256) for key, value in (*who, ("version", settings.service_version))}
        self._timestamps = Timestamps()
        self._slow_query = settings.slow_query_threshold
        self._repeat_limit = settings.repeated_query_threshold
        self._redactor = redactor or Redactor.from_settings(settings, faults)
        self._request_lines = RequestLineEncoder(self._resource, self._redactor, self._timestamps)
        self.push: Callable[[bytes], None] | None = None  # also takes each line, as JSON
        self._writer = _CAPTURE.writer
        self._file: LogFile | None = None
        limits = parse_rotation(settings.log_rotation), parse_retention(settings.log_retention)
        if settings.log_file is not None:
            self._file = LogFile(
                settings.log_file, *limits, compress=settings.log_compression is not None, on_internal_error=faults
            )
        stream = sys.stdout
        terminal = settings.environment == "development" and stream is not None and stream.isatty()
        readable = settings.log_format == "text" or (settings.log_format == "auto" and terminal)
        self._text = TextFormat(stream) if readable else None

    @property
    def written(self) -> int:
        """Lines that standard output took."""
        return self._writer.written

    @property
    def dropped(self) -> int:
        """Lines that were lost: there was no room for them, or standard output or the log file refused them."""
        return self._writer.dropped + (0 if self._file is None else sum(self._file.dropped.values()))

    @property
    def queued(self) -> int:
        """Lines that wait to be written."""
        return len(self._writer)

    def tally(self) -> tuple[int, Mapping[str, int], int]:
        """Return at one moment how many lines standard output took, lost (by reason) and waits for."""
        return self._writer.tally()

    def file_tally(self) -> tuple[int, Mapping[str, int], int] | None:
        """Return the same of the log file, if there is one."""
        return None if self._file is None else self._writer.line_tally(self._file)

    def start(self) -> None:
        """Begin to take the records of loguru, the standard library and the server."""
        _CAPTURE.open(self)

    def close(self) -> None:
        """Write what waits and put everything back; the last of several closes ends the writer's thread."""
        _CAPTURE.close(self)
        self._writer.flush(1.0)
        if self._file is not None:
            self._file.close()

    def flush(self, timeout: float) -> bool:
        """Write what waits, for at most about `timeout` seconds; tell whether nothing is left."""
        return self._writer.flush(timeout)

    def set_level(self, level: str) -> None:
        """Write `level` (debug, info, warn, error, fatal) and above from now on. Raises `ValueError` for another."""
        if level not in LEVELS:
            raise ValueError(f"log level: got {level!r}, accepts {', '.join(LEVELS)}")
        self.threshold = LEVELS[level]
        _CAPTURE.update_level()

    @no_op
    def on_request_start(self, exchange: RequestRecord) -> None:
        """A request arrives: nothing to write yet."""

    @no_op
    def on_response_start(self, exchange: RequestRecord) -> None:
        """A response begins: nothing to write yet."""

    def on_request_end(self, exchange: RequestRecord) -> None:
        """Write the request line, and before it what the request repeated."""
        if exchange.work is not None:
            self._warn_repeated(exchange, exchange.work)
        level = OUTCOME_LEVELS.get(exchange.outcome, "error")
        number = LEVELS[level]
        if not self.logs_requests or number < self.threshold:
            return
        record = self._request_lines.capture(exchange, level) if self._text is None else None
        if record is not None:
            self._writer.enqueue(record, self._encode_request, self._file, number)
            return
        ended = exchange.started_ns + int(exchange.duration * 1e9)
        self._write(self._request_lines.build(exchange, level, ended), request=True)

    def _encode_request(self, record: RequestLineParts) -> bytes:
        """Encode a request line when its turn has come; a fault must not end the writer's thread."""
        try:
            data = self._request_lines.encode(record)
        except Exception as exc:  # noqa: BLE001 - a server may name its client as it likes
            self.faults("logs.request_line", exc)
            line = self._line("error", REQUEST_MESSAGE, REQUEST_LOGGER)
            data = encode_line({**line, "fields": {"url": self._redactor.unmatched_path(record[2])}})
        if self.push is not None:
            self.push(data)
        return data

    @no_op
    def on_operation_start(self, operation: Operation) -> None:
        """A piece of work begins: nothing to write yet."""

    def on_operation_end(self, operation: Operation) -> None:
        """Write a line if the work failed, was refused or was slow; else a debug line, if it is wanted."""
        if self.threshold and operation.outcome == "ok" and operation.duration < self._slow_query:
            return  # the usual
        level = level_of_operation(operation, self._slow_query)
        if LEVELS[level] < self.threshold:
            return
        line = self._line(level, operation_message(operation, level), OPERATION_LOGGER)
        if operation.span is not None:
            at = operation.span.get_span_context()
            line["trace_id"], line["span_id"] = f"{at.trace_id:032x}", f"{at.span_id:016x}"
        self._finish(line, fields_of_operation(operation), operation.exception)

    def _warn_repeated(self, exchange: RequestRecord, work: TimeBreakdown) -> None:
        """Write a line for each statement that a request sent too often."""
        if LEVELS["warn"] < self.threshold:
            return
        for repeated in work.repeated(self._repeat_limit):
            line = self._line("warn", "database query repeated in one request", OPERATION_LOGGER)
            if exchange.trace_id:
                line["trace_id"], line["span_id"] = exchange.trace_id, exchange.span_id
            line["request_id"] = exchange.request_id
            line["fields"] = repeated_statement_fields(repeated, exchange)
            self._write(line)

    def handle_loguru(self, record: Record) -> None:
        """Write a record of loguru."""
        raised = record["exception"]
        exc = None if raised is None else raised.value
        line = self._make_line(record["level"].no, record["message"], record["name"] or "", exc)
        self._finish(line, record["extra"], exc)

    def handle_logging(self, record: logging.LogRecord) -> None:
        """Write a record of the standard library."""
        fields = {key: value for key, value in record.__dict__.items() if key not in RECORD_ATTRIBUTES}
        try:
            message = str(record.getMessage()).rstrip("\n")
            if is_access_log(record):
                message = redact_access(message, self._redactor)
        except Exception:  # noqa: BLE001 - arguments that do not fit the message, or cannot be turned into text
            message = to_text(record.msg, MAX_MESSAGE)
            fields["args"] = record.args
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        raised = record.exc_info
        found = raised[1] if isinstance(raised, tuple) else raised
        exc = found if isinstance(found, BaseException) else None
        line = self._make_line(record.levelno, message, to_text(record.name, 256), exc)
        # A server's last lines come after the last flush, right before the process ends.
        last = record.name in SERVER_LOGGERS
        self._finish(line, fields, exc, urgent=last)

    def _make_line(self, number: int, text: str, logger: str, exc: BaseException | None) -> dict[str, Any]:
        """Begin the line of a record; a message that is a traceback becomes its last words and an exception."""
        told = parse_traceback_message(text, self._redactor) if exc is None else None
        if told is None:
            return self._line(level_name(number), truncate(self._redactor.text(text), MAX_MESSAGE), logger)
        message = f"{told['type']}: {told['message']}" if told["message"] else told["type"]
        return {**self._line(level_name(number), message, logger), "exception": told}

    def _line(self, level: str, message: str, logger: str) -> dict[str, Any]:
        return {
            "timestamp": self._timestamps(time_ns()),
            "level": level,
            "message": message,
            "logger": logger,
            **self._resource,
        }

    def _finish(
        self, line: dict[str, Any], fields: dict[str, Any], exc: BaseException | None, *, urgent: bool = False
    ) -> None:
        self._add_ids(line, exc)
        line["fields"] = self._redactor.fields(fields)
        if exc is not None:
            line["exception"] = describe_exception(exc, self._redactor)
        self._write(line, urgent=urgent)

    def _add_ids(self, line: dict[str, Any], exc: BaseException | None) -> None:
        """Add the ids of the current span and request, else those that the exception brought along."""
        trace_id = span_id = ""
        exchange = current_record()
        context = get_current_span().get_span_context()
        brought = ("", "", "") if exc is None else ids_from_exception(exc)
        if exchange is None:
            over = otel_context.get_value(CONTEXT_KEY) is not None
        else:
            over = exchange.complete and brought[2] != exchange.request_id
        if brought[2] and over:  # a server may log a crash in the context of an earlier request of the connection
            trace_id, span_id, exchange = brought[0], brought[1], None
        elif context.is_valid:
            trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        elif exchange is not None:
            trace_id, span_id = exchange.trace_id, exchange.span_id
        if exchange is not None:
            request_id = exchange.request_id
        else:
            if not trace_id:
                trace_id, span_id = brought[0], brought[1]
            request_id = brought[2]
        if trace_id and "trace_id" not in line:
            line["trace_id"] = trace_id
            line["span_id"] = span_id
        if request_id:
            line["request_id"] = request_id

    def _write(self, line: dict[str, Any], *, request: bool = False, urgent: bool = False) -> None:
        text, file = self._text, self._file
        level = LEVELS[line["level"]]
        urgent = urgent or level >= 40  # noqa: PLR2004 - see LEVELS
        data = encode_line(line) if text is None or file is not None or self.push is not None else b""
        if self.push is not None:
            self.push(data)
        if text is None:
            self._writer.write(data, urgent=urgent, file=file, copy=data, level=level)
            return
        shown = text.request(line) if request else text.line(line)
        self._writer.write(shown, urgent=urgent, file=file, copy=b"" if file is None else data, level=level)


class ObserveLogger:
    """The logger users call: fields by keyword, braces are safe, nothing raises.

    It goes through loguru, so that sinks of the user's own see the lines too.
    """

    __slots__ = ("_logger", "_owner")

    def __init__(self, logger: Any, owner: LogService) -> None:
        self._logger = logger
        self._owner = owner

    def debug(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Write a line for those who look for a fault."""
        self._emit("DEBUG", 10, message, exception, fields)

    def info(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Write a line about what happens normally."""
        self._emit("INFO", 20, message, exception, fields)

    def warn(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Write a line about what may become a fault."""
        self._emit("WARNING", 30, message, exception, fields)

    def warning(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Write a line about what may become a fault."""
        self._emit("WARNING", 30, message, exception, fields)

    def error(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Write a line about a fault."""
        self._emit("ERROR", 40, message, exception, fields)

    def fatal(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Write a line about a fault that ends the work. It does not exit."""
        self._emit("CRITICAL", 50, message, exception, fields)

    def exception(self, message: object, /, **fields: Any) -> None:
        """Write an error line with the exception that is being handled."""
        self._emit("ERROR", 40, message, sys.exc_info()[1], fields)

    def with_fields(self, **fields: Any) -> ObserveLogger:
        """Return a logger that adds `fields` to each of its lines."""
        return ObserveLogger(self._logger.bind(**fields), self._owner)

    def contextualize(self, **fields: Any) -> AbstractContextManager[None]:
        """Add `fields` to every line, whoever writes it, within a `with` block."""
        return loguru_logger.contextualize(**fields)

    def set_level(self, level: str) -> None:
        """Write `level` (debug, info, warn, error, fatal) and above from now on. Raises `ValueError` for another."""
        self._owner.set_level(level)

    def _emit(
        self, level: str, number: int, message: object, exception: BaseException | None, fields: dict[str, Any]
    ) -> None:
        logger = self._logger
        core = getattr(logger, "_core", None)
        if getattr(core, "handlers", None) is not _CAPTURE.loguru.own_handlers:
            _CAPTURE.restore_loguru()
        # loguru asks this too, but only after its options were built: that would be most of an unwanted line's cost.
        if number < getattr(core, "min_level", 0):
            return
        thread = _CAPTURE.thread
        before, thread.calling_service = thread.calling_service, self._owner
        try:
            if fields:
                logger = logger.bind(**fields)
            if exception is not None:
                logger = logger.opt(depth=2, exception=exception)
            whole = isinstance(message, str) and message.startswith(TRACEBACK)
            logger.log(level, message if whole else to_text(message, MAX_MESSAGE))
        except Exception as exc:  # noqa: BLE001 - a patcher or sink of the user's may raise; a log call never does
            self._owner.faults("logs.call", exc)
        finally:
            thread.calling_service = before


def level_name(number: int) -> str:
    """Name the contract's level of a level number of `logging` or loguru."""
    if number < 20:  # noqa: PLR2004 - see LEVELS
        return "debug"
    if number < 30:  # noqa: PLR2004
        return "info"
    if number < 40:  # noqa: PLR2004
        return "warn"
    return "error" if number < 50 else "fatal"  # noqa: PLR2004
