"""The logs signal: one line for each request and each failed operation, and the logger that users call."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from loguru import logger as loguru_logger
from opentelemetry import context as otel_context
from opentelemetry.trace import get_current_span

from fastapi_observe.formats.choice import choose_line_format
from fastapi_observe.internal import loguru
from fastapi_observe.logs.capture import LogCapture
from fastapi_observe.logs.context import LogContext, context_fields, is_context_of_ended_request
from fastapi_observe.logs.crashes import CRASHES, Crash, refer_to_request_line
from fastapi_observe.logs.file.file import LogFile
from fastapi_observe.logs.handlers import SERVERS
from fastapi_observe.logs.line import (
    MAX_MESSAGE,
    Timestamps,
    encode_as,
    encode_line,
    exception_object,
    to_text,
    truncate,
)
from fastapi_observe.logs.messages import (
    STRUCTLOG_FIELDS,
    TRACEBACK,
    access_message,
    format_message,
    ids_from_exception,
    is_access_log,
    parse_traceback_message,
    split_mapping,
    to_exception,
)
from fastapi_observe.logs.request_line import (
    JOB_LOGGER,
    OPERATION_LOGGER,
    REQUEST_LOGGER,
    REQUEST_MESSAGE,
    ImmediateRequestLineEncoder,
    RequestLineEncoder,
    job_fields,
    level_of_operation,
    operation_fields,
    operation_message,
    repeated_statement_fields,
)
from fastapi_observe.logs.text import TextFormat
from fastapi_observe.records.fields import current_fields
from fastapi_observe.records.request import CONTEXT_KEY, current_record
from fastapi_observe.records.signal import no_op
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.settings.types import parse_level
from fastapi_observe.terminal.style import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loguru import Record

    from fastapi_observe.export.counts import Counts
    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.logs.request_line import RequestLineParts
    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.time_breakdown import TimeBreakdown
    from fastapi_observe.settings.model import ObserveSettings

LEVEL_THRESHOLDS: Final = {"debug": 0, "info": 20, "warn": 30, "error": 40, "fatal": 50}
"""Level names, and the number from which each applies to records of `logging` and loguru."""

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
"""Attributes of every `LogRecord`, and uvicorn's colored message. All others are fields of the user."""

_CAPTURE: Final = LogCapture()
"""loguru, `logging` and standard output belong to the process, so all services share one capture and writer."""


class LogService:
    """Writes log lines to standard output and to the log file.

    `start` captures the records of loguru and `logging`; called again, it attaches to what was configured since.
    `close` restores both. Lines on standard output are counted for the whole process.
    """

    def __init__(
        self, settings: ObserveSettings, internal_errors: InternalErrors, redactor: Redactor | None = None
    ) -> None:
        self.internal_errors = internal_errors
        self.threshold = LEVEL_THRESHOLDS[settings.log_level]
        self.captures_logging = settings.capture_logging
        self.logs_requests = settings.log_requests
        self.quiet_loggers = settings.quiet_loggers
        self.log = ObserveLogger(loguru_logger.opt(depth=2), self)
        names = ("service", settings.service_name), ("environment", settings.environment)
        self._resource = {key: to_text(value, 256) for key, value in (*names, ("version", settings.service_version))}
        self._timestamps = Timestamps()
        self._slow_query_threshold = settings.slow_query_threshold
        self._repeated_query_threshold = settings.repeated_query_threshold
        self._redactor = redactor or Redactor.from_settings(settings, internal_errors)
        self._request_lines = RequestLineEncoder(self._resource, self._redactor, self._timestamps)
        self._line_format = choose_line_format(settings)
        self._encode_parts = (
            self._encode_request if self._line_format.convert is None else self._encode_formatted_request
        )
        self.push: Callable[[bytes], None] | None = None  # gets each line too, with this package's keys
        self._writer = _CAPTURE.writer
        self._file: LogFile | None = None
        if settings.log_file is not None:
            self._file = LogFile(
                settings.log_file,
                settings.log_rotation,
                settings.log_retention,
                compress=settings.log_compression is not None,
                on_internal_error=internal_errors,
            )
        stream = sys.stdout
        readable = settings.log_format == "text" or (settings.log_format == "auto" and is_terminal(stream))
        self.text = (
            TextFormat(stream, raw_targets=settings.development, all_trees=settings.print_traces) if readable else None
        )

    @property
    def written(self) -> int:
        """Number of lines written to standard output."""
        return self._writer.written

    @property
    def dropped(self) -> int:
        """Number of lines that standard output or the log file did not get."""
        return self._writer.dropped + (0 if self._file is None else sum(self._file.dropped.values()))

    @property
    def queued(self) -> int:
        """Number of lines that are not written yet."""
        return len(self._writer)

    def export_counts(self) -> Iterator[tuple[str, Callable[[], Counts]]]:
        """Yield `logs` (standard output) and `log_file`, if there is one, with functions that return their counts."""
        yield "logs", self._writer.counts
        if self._file is not None:
            yield "log_file", partial(self._writer.file_counts, self._file)

    def start(self) -> None:
        """Capture the records of loguru, `logging` and the server."""
        _CAPTURE.open(self)

    def attach(self) -> None:
        """Capture what was configured after `install`, as the start of the app does."""
        _CAPTURE.update_level()

    def close(self) -> None:
        """Write all queued lines and restore loguru and `logging`. The last service ends the writer's thread."""
        _CAPTURE.close(self)
        self._writer.flush(1.0)
        if self._file is not None:
            self._file.close()

    def flush(self, timeout: float) -> bool:
        """Write all queued lines, within about `timeout` seconds. Returns whether nothing is left."""
        return self._writer.flush(timeout)

    def print_text(self, text: bytes) -> None:
        """Write a text that is not a log line to standard output, in its place among the lines."""
        self._writer.write(text)

    def console_handlers(self) -> list[str]:
        """Return a warning for each handler of `logging` or loguru that writes the same lines to the console."""
        return [*_CAPTURE.console_handlers().values()]

    def detached_loggers(self) -> list[str]:
        """Return the names of loggers of `logging` whose records are not captured, since they do not propagate."""
        return _CAPTURE.detached_loggers()

    def strict_loggers(self) -> list[str]:
        """Return the loggers of `logging` whose own level is above that of the lines, with it."""
        return _CAPTURE.strict_loggers(self.threshold)

    def announce(self, message: str) -> None:
        """Write a line of level info to standard output only, without redaction: it is for the developer's eyes."""
        if LEVEL_THRESHOLDS["info"] < self.threshold:
            return
        line = {**self._line("info", message, "fastapi_observe"), "fields": {}}
        self._writer.write(self._in_format(encode_line(line)) if self.text is None else self.text.line(line))

    def set_level(self, level: str | int) -> None:
        """Write lines of `level` and above from now on. Raises `ValueError` for an unknown level."""
        name = parse_level(level)
        if name not in LEVEL_THRESHOLDS:
            raise ValueError(f"log level: invalid value {level!r}; expected {', '.join(LEVEL_THRESHOLDS)}")
        self.threshold = LEVEL_THRESHOLDS[name]
        _CAPTURE.update_level()

    def encode_immediately(self) -> Callable[[], None]:
        """Encode each request line where the request ends, for tests. Returns a function that reverts this."""
        encoder = self._request_lines

        def restore() -> None:
            self._request_lines = encoder

        self._request_lines = ImmediateRequestLineEncoder(self._resource, self._redactor, self._timestamps)
        return restore

    def on_request_start(self, record: RequestRecord) -> None:  # noqa: ARG002 - a hook
        """Drop the fields of loguru's `contextualize` that the last request of the connection has left behind."""
        context = loguru.CONTEXT
        base = _CAPTURE.base_context
        if context is not None and base is not None and context.get() is not base and is_context_of_ended_request():
            context.set(base)

    @no_op
    def on_response_start(self, record: RequestRecord) -> None:
        """Do nothing."""

    def on_request_end(self, record: RequestRecord) -> None:
        """Write the request line, and before it a warning for each repeated statement."""
        if record.work is not None:
            self._warn_repeated(record, record.work)
        level = OUTCOME_LEVELS.get(record.outcome, "error")
        number = LEVEL_THRESHOLDS[level]
        if not self.logs_requests or number < self.threshold:
            if self.text is not None:
                self._write_tree(self.text, record)
            return
        parts = self._request_lines.capture(record, level) if self.text is None else None
        if parts is not None:
            self._writer.enqueue(parts, self._encode_parts, self._file, number)
            return
        ended = record.started_ns + int(record.duration * 1e9)
        line = self._request_lines.build(record, level, ended)
        self._write(line, text=self._format(TextFormat.request, line, record, self._redactor))
        if record.exception is not None:
            ids = record.trace_id, record.span_id, record.request_id
            exception = line["exception"]
            CRASHES.append(Crash(ids, exception["type"], exception["message"], record.current.fields))

    def _write_tree(self, text: TextFormat, record: RequestRecord) -> None:
        """Write the tree of a request without a line, if trees are wanted. In any case its spans are taken."""
        if text.all_trees:
            tree = text.tree(record)
            if tree:
                self.print_text(tree)
        else:
            text.spans(record.trace_id, record.span_id)

    def _encode_request(self, parts: RequestLineParts) -> bytes:
        """Encode a request line, in the writer's thread. If that fails, write a line with the path only."""
        try:
            data = self._request_lines.encode(parts)
        except Exception as exc:  # noqa: BLE001 - a server may name its client as it likes
            self.internal_errors("logs.request_line", exc)
            line = self._line("error", REQUEST_MESSAGE, REQUEST_LOGGER)
            data = encode_line({**line, "fields": {"url": self._redactor.unmatched_path(parts[2])}})
        if self.push is not None:
            self.push(data)
        return data

    def _encode_formatted_request(self, parts: RequestLineParts) -> bytes:
        return self._in_format(self._encode_request(parts))

    def _in_format(self, data: bytes) -> bytes:
        """Return an encoded line in the chosen format; as it is if that fails."""
        try:
            return encode_as(self._line_format, data)
        except Exception as exc:  # noqa: BLE001 - the line is worth more than its format
            self.internal_errors("logs.format", exc)
            return data

    @no_op
    def on_job_start(self, record: JobRecord) -> None:
        """Do nothing."""

    def on_job_end(self, record: JobRecord) -> None:
        """Write the line of a job, and before it a warning for each repeated statement."""
        if record.work is not None:
            self._warn_repeated(record, record.work)
        level = "info" if record.outcome == "ok" else "error"
        if not self.logs_requests or LEVEL_THRESHOLDS[level] < self.threshold:
            if self.text is not None:
                self.text.spans(record.trace_id, record.span_id)  # takes them
            return
        line = self._line(level, "job completed" if level == "info" else "job failed", JOB_LOGGER)
        if record.trace_id:
            line["trace_id"], line["span_id"] = record.trace_id, record.span_id
        line["fields"] = job_fields(record)
        if record.exception is not None:
            line["exception"] = exception_object(record.exception, self._redactor)
        self._write(line, text=None if self.text is None else self.text.job(line, record, self._redactor))

    @no_op
    def on_operation_start(self, operation: Operation) -> None:
        """Do nothing."""

    def on_operation_end(self, operation: Operation) -> None:
        """Write a line if the operation failed, was rejected or was slow; otherwise one of level debug."""
        if self.threshold and operation.outcome == "ok" and operation.duration < self._slow_query_threshold:
            return  # nearly all
        level = level_of_operation(operation, self._slow_query_threshold)
        if LEVEL_THRESHOLDS[level] < self.threshold:
            return
        line = self._line(level, operation_message(operation, level), OPERATION_LOGGER)
        if operation.span is not None:
            span_context = operation.span.get_span_context()
            line["trace_id"], line["span_id"] = f"{span_context.trace_id:032x}", f"{span_context.span_id:016x}"
        self._complete(line, operation_fields(operation), operation.exception)
        self._write(line, text=self._format(TextFormat.operation, line))

    def _warn_repeated(self, record: RequestRecord, work: TimeBreakdown) -> None:
        """Write a line for each statement that a request has repeated too often."""
        if LEVEL_THRESHOLDS["warn"] < self.threshold:
            return
        for repeated in work.repeated(self._repeated_query_threshold):
            line = self._line("warn", "database query repeated in one request", OPERATION_LOGGER)
            if record.trace_id:
                line["trace_id"], line["span_id"] = record.trace_id, record.span_id
            if record.request_id:  # a job has none
                line["request_id"] = record.request_id
            line["fields"] = repeated_statement_fields(repeated, record)
            if record.current.fields is not None:
                line["fields"] = {**record.current.fields.fields, **line["fields"]}
            self._write(line)

    def handle_loguru(self, record: Record) -> None:
        """Write a record of loguru."""
        raised = record["exception"]
        exc = None if raised is None else raised.value
        line = self._make_line(record["level"].no, record["message"], record["name"] or "", exc)
        self._finish(line, record["extra"], exc)

    def handle_logging(self, record: logging.LogRecord) -> None:
        """Write a record of `logging`."""
        fields = {key: value for key, value in record.__dict__.items() if key not in RECORD_ATTRIBUTES}
        exc = to_exception(record.exc_info) if record.exc_info else None
        try:
            if type(record.msg) is not str and isinstance(record.msg, Mapping) and not record.args:
                message, more, found = split_mapping(record.msg)
                fields = {key: value for key, value in fields.items() if key not in STRUCTLOG_FIELDS} | more
                exc = exc or found
            elif is_access_log(record):
                message = access_message(record, self._redactor)
            else:
                message = str(format_message(record, self._redactor)).rstrip("\n")
        except Exception:  # noqa: BLE001 - arguments that do not fit the message, or cannot be converted to text
            message = to_text(record.msg, MAX_MESSAGE)
            fields["args"] = record.args
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        name = to_text(record.name, 256)
        is_server, is_repeated = name.partition(".")[0] in SERVERS, False
        line = self._make_line(record.levelno, message, name, exc, is_server=is_server)
        if is_server and type(exc).__name__ == "ClientDisconnect":
            # Not an error of the app: its request line has outcome `client_disconnect`. The stack is the framework's.
            if LEVEL_THRESHOLDS["warn"] < self.threshold:
                return
            self._add_ids(line, exc)
            line["level"], fields["error_type"], exc = "warn", "client_disconnect", None
            is_repeated = self.logs_requests
        if is_server and (exc is not None or "exception" in line):
            exc = refer_to_request_line(line, fields, exc)
            is_repeated = exc is None and "exception" not in line
        # A server's last lines come after the last flush, right before the process ends.
        self._finish(line, fields, exc, urgent=is_server, is_repeated=is_repeated)

    def _make_line(
        self, number: int, text: str, logger: str, exc: BaseException | None, *, is_server: bool = False
    ) -> dict[str, Any]:
        """Start the line of a record. A message that is a traceback becomes its last line and an exception.

        So does the traceback that granian appends to its message about a crash.
        """
        head = ""
        if is_server and exc is None and f"\n{TRACEBACK}" in text:
            head, _, rest = text.partition(f"\n{TRACEBACK}")
            text = TRACEBACK + rest
        described = parse_traceback_message(text, self._redactor) if exc is None else None
        if described is None:
            return self._line(level_name(number), truncate(self._redactor.text(text), MAX_MESSAGE), logger)
        message = f"{described['type']}: {described['message']}" if described["message"] else described["type"]
        message = truncate(self._redactor.text(head), MAX_MESSAGE) or message
        return {**self._line(level_name(number), message, logger), "exception": described}

    def _line(self, level: str, message: str, logger: str) -> dict[str, Any]:
        return {
            "timestamp": self._timestamps(time_ns()),
            "level": level,
            "message": message,
            "logger": logger,
            **self._resource,
        }

    def _finish(
        self,
        line: dict[str, Any],
        fields: dict[str, Any],
        exc: BaseException | None,
        *,
        urgent: bool = False,
        is_repeated: bool = False,
    ) -> None:
        """Complete and write a line. As text it is not written if it repeats what the request line has said."""
        self._complete(line, fields, exc)
        text = b"" if is_repeated else None
        if exc is not None:
            text = self._format(TextFormat.line, line, exc, self._redactor)
        self._write(line, text=text, urgent=urgent)

    def _complete(self, line: dict[str, Any], fields: dict[str, Any], exc: BaseException | None) -> None:
        if "request_id" not in line:
            self._add_ids(line, exc)
        context = context_fields()
        line["fields"] = self._redactor.fields({**context, **fields} if context else fields)
        of_request = current_fields()
        if of_request is not None:  # they are redacted
            line["fields"] = {**of_request.fields, **line["fields"]}
        if exc is not None:
            line["exception"] = exception_object(exc, self._redactor)

    def _add_ids(self, line: dict[str, Any], exc: BaseException | None) -> None:
        """Add the ids of the current span and request, or else those that our middleware gave to the exception."""
        trace_id = span_id = ""
        record = current_record()
        context = get_current_span().get_span_context()
        given = ("", "", "") if exc is None else ids_from_exception(exc)
        if record is None:
            ended = otel_context.get_value(CONTEXT_KEY) is not None
        else:
            ended = record.complete and given[2] != record.request_id
        if given[2] and ended:  # a server may log a crash in the context of an earlier request of the connection
            trace_id, span_id, record = given[0], given[1], None
        elif context.is_valid:
            trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        elif record is not None:
            trace_id, span_id = record.trace_id, record.span_id
        if record is not None:
            request_id = record.request_id
        else:
            if not trace_id:
                trace_id, span_id = given[0], given[1]
            request_id = given[2]
        if trace_id and "trace_id" not in line:
            line["trace_id"] = trace_id
            line["span_id"] = span_id
        if request_id:
            line["request_id"] = request_id

    def _format(self, method: Callable[..., bytes], line: dict[str, Any], *details: Any) -> bytes | None:
        """Return a line as text with what is below it; None if there is no text, or that fails: the line is enough."""
        if self.text is None:
            return None
        try:
            return method(self.text, line, *details)
        except Exception as exc:  # noqa: BLE001 - exception classes of users may override anything
            self.internal_errors("logs.text", exc)
            return None

    def _write(self, line: dict[str, Any], *, text: bytes | None = None, urgent: bool = False) -> None:
        """Write a line; `text` is what standard output gets if it gets text, by default the line as such."""
        file = self._file
        level = LEVEL_THRESHOLDS[line["level"]]
        urgent = urgent or level >= 40  # noqa: PLR2004 - see LEVEL_THRESHOLDS
        data = encode_line(line) if self.text is None or file is not None or self.push is not None else b""
        if self.push is not None:
            self.push(data)
        if data:
            data = self._in_format(data)
        if self.text is None:
            self._writer.write(data, urgent=urgent, file=file, file_line=data, level=level)
            return
        readable = self.text.line(line) if text is None else text
        if readable or file is not None:
            self._writer.write(readable, urgent=urgent, file=file, file_line=b"" if file is None else data, level=level)


class ObserveLogger:
    """The logger for users: fields are keyword arguments, braces are not formatted, and no call raises.

    It calls loguru, so that the user's own sinks get the lines, too.
    """

    __slots__ = ("_bound", "_logger", "_owner")

    def __init__(self, logger: Any, owner: LogService, bound: frozenset[str] = frozenset()) -> None:
        self._logger = logger
        self._owner = owner
        self._bound = bound

    def debug(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Log details for debugging."""
        self._emit("DEBUG", 10, message, exception, fields)

    def info(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Log a normal event."""
        self._emit("INFO", 20, message, exception, fields)

    def warn(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Log an event that may become a problem."""
        self._emit("WARNING", 30, message, exception, fields)

    def warning(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Log an event that may become a problem."""
        self._emit("WARNING", 30, message, exception, fields)

    def error(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Log an error."""
        self._emit("ERROR", 40, message, exception, fields)

    def fatal(self, message: object, /, *, exception: BaseException | None = None, **fields: Any) -> None:
        """Log an error that ends the work. It does not exit."""
        self._emit("CRITICAL", 50, message, exception, fields)

    def exception(self, message: object, /, **fields: Any) -> None:
        """Log an error with the exception that is being handled."""
        self._emit("ERROR", 40, message, sys.exc_info()[1], fields)

    def with_fields(self, **fields: Any) -> ObserveLogger:
        """Return a logger that adds `fields` to each of its lines."""
        return ObserveLogger(self._logger.bind(**fields), self._owner, self._bound | fields.keys())

    def contextualize(self, /, **fields: Any) -> LogContext:
        """Add `fields` to every line that is written in a `with` or `async with` block, by any logger or library.

        They apply to the tasks and threads that the block starts, and end with the request at the latest. Can also
        decorate a function.
        """
        return LogContext(fields)

    def set_level(self, level: str | int) -> None:
        """Write lines of `level` and above from now on.

        `level` is debug, info, warn, error or fatal, a name of Python or loguru, in any case, or a number. Raises
        `ValueError` for any other.
        """
        self._owner.set_level(level)

    def _emit(
        self, level: str, number: int, message: object, exception: BaseException | None, fields: dict[str, Any]
    ) -> None:
        logger = self._logger
        core = loguru.CORE
        if getattr(core, "handlers", None) is not _CAPTURE.loguru.own_handlers:
            _CAPTURE.restore_loguru()
        # loguru checks this, too, but only after it has built its options: most of the cost of a line below the level.
        if number < getattr(core, "min_level", 0):
            return
        thread = _CAPTURE.thread
        before, thread.calling_service = thread.calling_service, self._owner
        try:
            if type(message) is not str and isinstance(message, Mapping):  # the first is ten times faster
                message, more, found = split_mapping(message)
                fields, exception = more | fields, exception or found
            context = context_fields()
            if context:  # for sinks of the user; what is bound to this logger, or given to this call, wins
                fields = {key: value for key, value in context.items() if key not in self._bound} | fields
            if fields:
                logger = logger.bind(**fields)
            if exception is not None:
                logger = logger.opt(depth=2, exception=exception)
            whole = isinstance(message, str) and message.startswith(TRACEBACK)
            logger.log(level, message if whole else to_text(message, MAX_MESSAGE))
        except Exception as exc:  # noqa: BLE001 - a patcher or sink of the user may raise; a log call never does
            self._owner.internal_errors("logs.call", exc)
        finally:
            thread.calling_service = before


def level_name(number: int) -> str:
    """Return the name of a level number of `logging` or loguru."""
    if number < 20:  # noqa: PLR2004 - see LEVEL_THRESHOLDS
        return "debug"
    if number < 30:  # noqa: PLR2004
        return "info"
    if number < 40:  # noqa: PLR2004
        return "warn"
    return "error" if number < 50 else "fatal"  # noqa: PLR2004
