"""Capture of the records of loguru, `logging` and the web server.

loguru and `logging` belong to the whole process, so one capture serves all installed apps.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from fastapi_observe.internal import loguru
from fastapi_observe.internal.forks import register_at_fork
from fastapi_observe.logs.handlers import (
    SERVER_LOGGERS,
    describe_console_handlers,
    is_intercepting,
    is_plain,
    is_server_default,
    reaches,
    writes_to_console,
)
from fastapi_observe.logs.loguru import LoguruHandlers
from fastapi_observe.logs.messages import ACCESS_LOGGERS, is_access_log
from fastapi_observe.logs.writer import LineWriter
from fastapi_observe.records.guard import fail_safe
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from loguru import Record

    from fastapi_observe.internal.errors import InternalErrors

MAX_NESTED_LINES: Final = 3
"""Lines that writing a line may write in turn, such as an object that logs while it is converted to text."""

MAX_LOGGING_FRAMES: Final = 16
"""Frames of the stack in which a call between loguru and `logging` is looked for."""


class RecordSink(Protocol):
    """Writes captured records. The implementation is `logs.service.LogService`, which imports this module."""

    internal_errors: InternalErrors
    threshold: int
    captures_logging: bool
    logs_requests: bool
    quiet_loggers: tuple[str, ...]

    def handle_loguru(self, record: Record, /) -> None:
        """Write a record of loguru."""

    def handle_logging(self, record: logging.LogRecord, /) -> None:
        """Write a record of `logging`."""


class LoggerState(NamedTuple):
    """Handlers and propagation of a logger before it was changed."""

    handlers: list[logging.Handler]
    propagate: bool


class ThreadState(threading.local):
    """State of one thread.

    `depth` counts nested lines, `calling_service` is the one whose logger was called, `last_record` the record that was
    written last: it may come a second time, from another logger or by way of loguru.
    """

    depth = 0
    calling_service: RecordSink | None = None
    last_record: Callable[[], logging.LogRecord | None] | None = None


class LogCapture:
    """Passes each record of the process to one service.

    That is the one whose logger was called, else that of the current request, else the first that is open.
    """

    def __init__(self) -> None:
        self.writer = LineWriter()
        self.writer.on_internal_error = self._report
        self.thread = ThreadState()
        self.loguru = LoguruHandlers(self._handle_loguru)
        self.base_context: dict[str, Any] | None = None
        self._open: tuple[RecordSink, ...] = ()
        self._handler = RootHandler(self)
        self._filter = ServerFilter(self)
        self._intercepts = False
        self._root_removed: list[logging.Handler] = []
        self._root_level: tuple[int, int] | None = None
        self._replaced: dict[str, LoggerState] = {}
        self._servers: dict[str, LoggerState] = {}
        self._quiet: dict[str, int] = {}
        self._warned: set[tuple[str, str]] = set()
        self._reset_lock()
        register_at_fork(self, LogCapture._reset_lock)

    def _reset_lock(self) -> None:
        # Reentrant: attaching to a logger may log. A forked child may have inherited it locked.
        self._lock = threading.RLock()

    def _report(self, site: str, exc: BaseException) -> None:
        for each in self._open[:1]:  # the writer is shared by all
            each.internal_errors(site, exc)

    def open(self, service: RecordSink) -> None:
        """Pass records to `service`. Called again, it attaches to what was configured in the meantime."""
        with self._lock:
            self.writer.open()
            if service not in self._open:
                self._open = (*self._open, service)
            self.base_context = loguru.contextualize_fields()
            self.loguru.mute_default()
            self.update_level()
            warnings = self._find_warnings()
        for warning in warnings:
            logging.getLogger("fastapi_observe").warning(warning)

    def close(self, service: RecordSink) -> None:
        """Pass no more records to `service`. After the last one, loguru and `logging` are as they were."""
        with self._lock:
            if service not in self._open:
                return
            self._open = tuple(each for each in self._open if each is not service)
            self.update_level()
            if not self._open:
                self._warned.clear()
                self.loguru.restore_default()
                self.writer.close()

    def update_level(self) -> None:
        """Capture records from the lowest level of any open service."""
        with self._lock:
            self.loguru.add_handlers(self._lowest())
            capturing = [each for each in self._open if each.captures_logging]
            if capturing:
                own = logging.getLogger("fastapi_observe")
                own.disabled = False  # dictConfig disables the loggers that it does not know
                self._attach_root(min(each.threshold for each in capturing))
                self._attach_named_loggers()
                self._silence({name for each in capturing for name in each.quiet_loggers})
                self.attach_server_loggers()
            else:
                self._restore()

    # loguru

    @fail_safe("logs.capture")
    def restore_loguru(self) -> None:
        """Add our handlers again: `logger.remove()` and `logger.configure(handlers=...)` remove them, too."""
        with self._lock:
            self.loguru.add_handlers(self._lowest())

    def _lowest(self) -> int:
        return min((each.threshold for each in self._open), default=sys.maxsize)

    def _handle_loguru(self, end: int, record: Record) -> bool:
        """Write a record of loguru whose level is below `end`. Returns False: loguru has nothing more to do."""
        if record["level"].no >= end:
            return False
        service = self._responsible()
        if service is None:
            return False
        intercepted = _intercepted_record(sys._getframe(1)) if self._intercepts else None  # noqa: SLF001 - documented
        if intercepted is not None and service.captures_logging:
            self.handle_logging(intercepted)  # the original has the fields and the logger's name, and comes only once
        elif record["level"].no >= service.threshold:
            self._hand_over(service, service.handle_loguru, record)
        return False

    # logging

    def handle_logging(self, record: logging.LogRecord) -> None:
        """Pass a record of `logging` to the responsible service, once."""
        thread = self.thread
        if thread.last_record is not None and thread.last_record() is record:  # from a logger further down
            return
        if "extra" in record.__dict__ and _is_from_loguru(sys._getframe(1)):  # noqa: SLF001 - documented
            return  # loguru has passed it to a handler of `logging`, and to us
        service = self._responsible()
        if service is None or not service.captures_logging or record.levelno < service.threshold:
            return
        thread.last_record = weakref.ref(record)
        self._hand_over(service, service.handle_logging, record)

    def _attach_root(self, lowest: int) -> None:
        root = logging.root
        if self._handler not in root.handlers:
            self._root_removed = []  # the new configuration of the root has removed these, too
        plain = [handler for handler in root.handlers if is_plain(handler)]
        for handler in plain:
            root.removeHandler(handler)
        self._root_removed += plain
        if self._handler not in root.handlers:
            root.addHandler(self._handler)
        if self._root_level is None or root.level != self._root_level[1]:
            self._root_level = (root.level, root.level)
        before = self._root_level[0]
        level = min(before, max(lowest, 1))  # the user's own handlers may want more than we do
        root.setLevel(level)
        self._root_level = (before, level)

    def _attach_named_loggers(self) -> None:
        """Replace the plain console handlers of all other loggers. Where records do not propagate, add ours."""
        loggers = loguru.named_loggers()
        for logger in loggers:
            plain = [handler for handler in logger.handlers if is_plain(handler)]
            if not plain or logger.name in SERVER_LOGGERS:
                continue
            before = self._replaced.get(logger.name, LoggerState([], logger.propagate))
            self._replaced[logger.name] = before._replace(handlers=[*before.handlers, *plain])
            for handler in plain:
                logger.removeHandler(handler)
            if not reaches(logger, self._handler):
                logger.addHandler(self._handler)
        self._intercepts = any(
            is_intercepting(handler) for logger in (logging.root, *loggers) for handler in logger.handlers
        )

    def _silence(self, names: set[str]) -> None:
        for name in names - self._quiet.keys():
            logger = logging.getLogger(name)
            if logger.level < logging.WARNING:
                self._quiet[name] = logger.level
                logger.setLevel(logging.WARNING)

    def attach_server_loggers(self) -> None:
        """Connect the servers' loggers to the root. The filter calls it again if a server configures logging later."""
        with self._lock:
            silent = any(each.captures_logging and each.logs_requests for each in self._open)
            for name in SERVER_LOGGERS:
                logger = logging.getLogger(name)
                if self._filter not in logger.filters:
                    logger.addFilter(self._filter)
                defaults = [handler for handler in logger.handlers if is_server_default(handler)]
                # The user's own format, or way to loguru: joined to the root, each line would come twice.
                configured = any(
                    writes_to_console(handler) or is_intercepting(handler)
                    for handler in logger.handlers
                    if handler not in defaults
                )
                propagate = logger.propagate if configured else True
                if name in ACCESS_LOGGERS:
                    before = self._servers.get(name) or LoggerState(logger.handlers, logger.propagate)
                    switched_off = not before.handlers and not before.propagate  # uvicorn --no-access-log
                    propagate = propagate and not (silent or switched_off)
                if not defaults and logger.propagate == propagate:
                    continue
                if name not in self._servers or defaults:
                    self._servers[name] = LoggerState(list(logger.handlers), logger.propagate)
                for handler in defaults:
                    logger.removeHandler(handler)
                logger.propagate = propagate

    def should_write(self, record: logging.LogRecord) -> bool:
        """Return whether a server's record is written. Access lines are not where there are request lines."""
        return not is_access_log(record) or not any(each.logs_requests for each in self._open)

    def console_handlers(self) -> dict[tuple[str, str], str]:
        """Return a warning for each handler that writes to the console as we do."""
        if not any(each.captures_logging for each in self._open):
            return {}
        found = describe_console_handlers(
            [logging.root, *loguru.named_loggers()], lambda logger: reaches(logger, self._handler)
        )
        for number, text in loguru.console_handlers().items():
            if number != 0 or not self.loguru.is_default_muted:
                found["loguru", str(number)] = (
                    f"loguru has a handler of its own on the console, {text}: each of its lines is there twice, once "
                    f"as JSON. Remove it with logger.remove({number})."
                )
        return found

    def detached_loggers(self) -> list[str]:
        """Return the names of loggers whose records do not come to us, since they do not propagate."""
        return sorted(
            logger.name
            for logger in loguru.named_loggers()
            if not logger.propagate
            and not logger.name.startswith("opentelemetry.")  # its own, about failures of its exporters
            and logger.name not in SERVER_LOGGERS
            and not reaches(logger, self._handler)
            and not logger.disabled
            and not any(writes_to_console(handler) for handler in logger.handlers)
        )

    def strict_loggers(self, threshold: int) -> list[str]:
        """Return the loggers whose own level is above `threshold`, with it. Not those that we made quiet."""
        return sorted(
            f"{logger.name} ({logging.getLevelName(logger.level)})"
            for logger in loguru.named_loggers()
            if logger.level > threshold and logger.name not in {*self._quiet, *SERVER_LOGGERS}
        )

    def _find_warnings(self) -> list[str]:
        """Return the warnings about console handlers that were not returned before."""
        found = self.console_handlers()
        new = [text for key, text in found.items() if key not in self._warned]
        self._warned.update(found)
        return new

    def _restore(self) -> None:
        root = logging.root
        root.removeHandler(self._handler)
        for handler in self._root_removed:
            root.addHandler(handler)
        self._root_removed = []
        if self._root_level is not None and root.level == self._root_level[1]:
            root.setLevel(self._root_level[0])
        self._root_level = None
        for name in SERVER_LOGGERS:
            logging.getLogger(name).removeFilter(self._filter)
        for name, state in self._servers.items():
            logger = logging.getLogger(name)
            for handler in state.handlers:
                logger.addHandler(handler)
            logger.propagate = state.propagate
        for name, state in self._replaced.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self._handler)
            for handler in state.handlers:
                logger.addHandler(handler)
        for name, level in self._quiet.items():
            logging.getLogger(name).setLevel(level)
        self._servers, self._replaced, self._quiet = {}, {}, {}

    # Both

    def _responsible(self) -> RecordSink | None:
        services = self._open
        if len(services) > 1:
            caller = self.thread.calling_service
            if caller in services:
                return caller
            record = current_record()
            if record is not None:
                own: Any = getattr(record.observability, "logs", None)
                if own in services:
                    return own  # type: ignore[no-any-return]
        return services[0] if services else None

    def _hand_over(self, service: RecordSink, handle: Any, record: Any) -> None:
        """Call `handle(record)`. The caller is any line of any library: nothing is raised to it."""
        depth = self.thread.depth
        if depth >= MAX_NESTED_LINES:
            return
        self.thread.depth = depth + 1
        try:
            handle(record)
        except Exception as exc:  # noqa: BLE001 - a log call never raises
            service.internal_errors("logs.line", exc)
        finally:
            self.thread.depth = depth


class NoLock(contextlib.nullcontext[None]):
    """Replaces the lock of a handler. False for `Handler.acquire`; a context manager for `Handler.handle` of 3.13."""

    def __bool__(self) -> bool:
        return False


class RootHandler(logging.Handler):
    """Captures the records of the root logger, and of loggers that do not propagate to it."""

    def __init__(self, capture: LogCapture) -> None:
        super().__init__()
        self._capture = capture

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Have no lock: the writer has its own, and formatting a line must not block other threads."""
        self.lock = NoLock()  # type: ignore[assignment]

    @fail_safe("logs.capture")
    def emit(self, record: logging.LogRecord) -> None:
        """Pass the record on."""
        self._capture.handle_logging(record)


class ServerFilter(logging.Filter):
    """Stays on a server's logger when `logging.config` replaces its handlers, and attaches to it again in time."""

    def __init__(self, capture: LogCapture) -> None:
        super().__init__()
        self._capture = capture

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
        self._capture.attach_server_loggers()
        return self._capture.should_write(record)


def _intercepted_record(frame: FrameType | None) -> logging.LogRecord | None:
    """Return the record of `logging` that an `InterceptHandler` is passing to loguru in the calling thread, if any."""
    for _ in range(MAX_LOGGING_FRAMES):
        if frame is None:
            return None
        if frame.f_code.co_name == "emit" and frame.f_code.co_argcount > 1:
            record = frame.f_locals.get(frame.f_code.co_varnames[1])
            if isinstance(record, logging.LogRecord):
                return record
        frame = frame.f_back
    return None


def _is_from_loguru(frame: FrameType | None) -> bool:
    """Return whether loguru, with a handler of `logging` as a sink, is passing a record to `logging` in this thread."""
    for _ in range(MAX_LOGGING_FRAMES):
        if frame is None:
            return False
        if str(frame.f_globals.get("__name__")).startswith("loguru."):
            return True
        frame = frame.f_back
    return False
