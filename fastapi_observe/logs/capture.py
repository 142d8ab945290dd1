"""Where the lines of others come in: loguru's records, the standard library's, the web server's.

loguru and `logging` belong to the whole process, so this is done once for all installs together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from fastapi_observe.logs.loguru import LoguruHandlers
from fastapi_observe.logs.messages import ACCESS_LOGGERS, is_access_log
from fastapi_observe.logs.writer import LineWriter
from fastapi_observe.records.guard import fail_safe
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from loguru import Record

    from fastapi_observe.internal.errors import InternalErrors

SERVER_LOGGERS: Final = (
    "uvicorn",
    "uvicorn.error",
    "uvicorn.asgi",
    "uvicorn.access",
    "gunicorn.error",
    "gunicorn.access",
    "hypercorn.error",
    "hypercorn.access",
)
"""Loggers that servers give their own handlers and cut off from the root."""

MAX_NESTED_LINES: Final = 3
"""How often writing a line may itself write a line (an object that logs while it is turned into text)."""


class RecordSink(Protocol):
    """Who writes the captured records: the log signal of one install."""

    faults: InternalErrors
    threshold: int
    captures_logging: bool
    logs_requests: bool
    quiet_loggers: tuple[str, ...]

    def handle_loguru(self, record: Record, /) -> None:
        """Write a record of loguru."""

    def handle_logging(self, record: logging.LogRecord, /) -> None:
        """Write a record of the standard library."""


class LoggerState(NamedTuple):
    """How a logger was before it was taken over."""

    handlers: list[logging.Handler]
    propagate: bool


class ThreadState(threading.local):
    """What a thread is in the middle of: how many lines inside each other, and whose logger was called."""

    depth = 0
    calling_service: RecordSink | None = None


class LogCapture:
    """Gives each record of the process to one destination.

    That is the one whose logger was called, else that of the current request, else the first one open.
    """

    def __init__(self) -> None:
        self.writer = LineWriter()
        self.writer.on_internal_error = self._count
        self._open: tuple[RecordSink, ...] = ()
        self._lock = threading.RLock()
        self.thread = ThreadState()
        self.loguru = LoguruHandlers(self._take_loguru)
        self._handler = RootHandler(self)
        self._filter = ServerFilter(self)
        self._root_removed: list[logging.Handler] = []
        self._root_level: tuple[int, int] | None = None
        self._servers: dict[str, LoggerState] = {}
        self._quiet: dict[str, int] = {}
        if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
            os.register_at_fork(after_in_child=self._renew_lock)

    def _count(self, site: str, exc: BaseException) -> None:
        for each in self._open[:1]:  # the writer is everyone's
            each.faults(site, exc)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    def open(self, destination: RecordSink) -> None:
        """Send records to `destination`; once more: take over again what was changed since."""
        with self._lock:
            self.writer.open()
            if destination not in self._open:
                self._open = (*self._open, destination)
            self.loguru.mute_default()
            self.update_level()

    def close(self, destination: RecordSink) -> None:
        """Send nothing more to `destination`; after the last one everything is as it was."""
        with self._lock:
            if destination not in self._open:
                return
            self._open = tuple(each for each in self._open if each is not destination)
            self.update_level()
            if not self._open:
                self.loguru.restore_default()
                self.writer.close()

    def update_level(self) -> None:
        """Listen at the lowest level that someone open wants."""
        with self._lock:
            self.loguru.add_handlers(self._lowest())
            capturing = [each for each in self._open if each.captures_logging]
            if capturing:
                self._take_root(min(each.threshold for each in capturing))
                self._silence({name for each in capturing for name in each.quiet_loggers})
                self.attach_server_loggers()
            else:
                self._give_back()

    # loguru

    @fail_safe("logs.capture")
    def restore_loguru(self) -> None:
        """Put our handlers back: `logger.remove()` and `logger.configure(handlers=...)` take them as well."""
        with self._lock:
            self.loguru.add_handlers(self._lowest())

    def _lowest(self) -> int:
        return min((each.threshold for each in self._open), default=sys.maxsize)

    def _take_loguru(self, high: int, record: Record) -> bool:
        if record["level"].no < high:
            destination = self._responsible()
            if destination is not None and record["level"].no >= destination.threshold:
                self._hand_over(destination, destination.handle_loguru, record)
        return False

    # The standard library

    def handle_logging(self, record: logging.LogRecord) -> None:
        """Give a record of the standard library to who is responsible."""
        if any(type(handler).__name__ == "InterceptHandler" for handler in logging.root.handlers):
            return  # loguru's recipe: the record comes to us by way of loguru
        destination = self._responsible()
        if destination is None or not destination.captures_logging or record.levelno < destination.threshold:
            return
        self._hand_over(destination, destination.handle_logging, record)

    def _take_root(self, lowest: int) -> None:
        root = logging.root
        if self._handler not in root.handlers:
            self._root_removed = []  # whoever configured the root anew would have removed these too
        plain = [handler for handler in root.handlers if _is_plain(handler) and not handler.filters]
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

    def _silence(self, names: set[str]) -> None:
        for name in names - self._quiet.keys():
            found = logging.getLogger(name)
            if found.level < logging.WARNING:
                self._quiet[name] = found.level
                found.setLevel(logging.WARNING)

    def attach_server_loggers(self) -> None:
        """Join the loggers of servers to the root; the filter does it again after a server configured its logging."""
        with self._lock:
            silent = any(each.captures_logging and each.logs_requests for each in self._open)
            for name in SERVER_LOGGERS:
                found = logging.getLogger(name)
                if self._filter not in found.filters:
                    found.addFilter(self._filter)
                plain = [handler for handler in found.handlers if _is_plain(handler)]
                propagate = True
                if name in ACCESS_LOGGERS:
                    before = self._servers.get(name) or LoggerState(found.handlers, found.propagate)
                    switched_off = not before.handlers and not before.propagate  # uvicorn --no-access-log
                    propagate = not (silent or switched_off)
                if not plain and found.propagate == propagate:
                    continue
                if name not in self._servers or plain:
                    self._servers[name] = LoggerState(list(found.handlers), found.propagate)
                for handler in plain:
                    found.removeHandler(handler)
                found.propagate = propagate

    def should_write(self, record: logging.LogRecord) -> bool:
        """Tell whether a server's record is written: the request line stands for its access line."""
        return not is_access_log(record) or not any(each.logs_requests for each in self._open)

    def _give_back(self) -> None:
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
        for name, saved in self._servers.items():
            found = logging.getLogger(name)
            for handler in saved.handlers:
                found.addHandler(handler)
            found.propagate = saved.propagate
        self._servers = {}
        for name, level in self._quiet.items():
            logging.getLogger(name).setLevel(level)
        self._quiet = {}

    # Both

    def _responsible(self) -> RecordSink | None:
        opened = self._open
        if len(opened) > 1:
            speaker = self.thread.calling_service
            if speaker in opened:
                return speaker
            exchange = current_record()
            if exchange is not None:
                own: Any = getattr(exchange.observability, "logs", None)
                if own in opened:
                    return own  # type: ignore[no-any-return]
        return opened[0] if opened else None

    def _hand_over(self, destination: RecordSink, take: Any, record: Any) -> None:
        """Guard the call: here the caller is any line of any library, not our door."""
        depth = self.thread.depth
        if depth >= MAX_NESTED_LINES:
            return
        self.thread.depth = depth + 1
        try:
            take(record)
        except Exception as exc:  # noqa: BLE001 - a log call never raises
            destination.faults("logs.line", exc)
        finally:
            self.thread.depth = depth


class NoLock(contextlib.nullcontext[None]):
    """Is no lock to `Handler.acquire`, and can be entered: Python 3.13's `Handler.handle` does not ask."""

    def __bool__(self) -> bool:
        return False


class RootHandler(logging.Handler):
    """Stands on the root logger; holds no lock while a record is turned into a line."""

    def __init__(self, capture: LogCapture) -> None:
        super().__init__()
        self._capture = capture

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Have no lock: the writer has its own."""
        self.lock = NoLock()  # type: ignore[assignment]

    @fail_safe("logs.capture")
    def emit(self, record: logging.LogRecord) -> None:
        """Pass the record on."""
        self._capture.handle_logging(record)


class ServerFilter(logging.Filter):
    """Stays on a server's logger when `logging.config` replaces its handlers: takes it over anew in time."""

    def __init__(self, capture: LogCapture) -> None:
        super().__init__()
        self._capture = capture

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is written."""
        self._capture.attach_server_loggers()
        return self._capture.should_write(record)


def _is_plain(handler: logging.Handler) -> bool:
    """Tell whether `handler` writes plain text to standard output or error, and is no one's own class."""
    if type(handler) is not logging.StreamHandler:
        return False
    stream = handler.stream
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return any(stream is each for each in standard) or getattr(stream, "name", None) in {"<stdout>", "<stderr>"}
