"""Handlers of `logging` that write to the console: those that are replaced, and those that a warning names."""

from __future__ import annotations

import logging.handlers
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SERVER_LOGGERS: Final = (
    "uvicorn",
    "uvicorn.error",
    "uvicorn.asgi",
    "uvicorn.access",
    "gunicorn.error",
    "gunicorn.access",
    "hypercorn.error",
    "hypercorn.access",
    "_granian",
    "granian.access",
)
"""Loggers that servers give their own handlers and detach from the root."""

SERVERS: Final = frozenset(name.partition(".")[0] for name in SERVER_LOGGERS)

SERVER_PACKAGES: Final = frozenset({"logging", "uvicorn", "gunicorn", "hypercorn", "fastapi_cli"})
"""Packages whose formatters are a server's defaults, not a choice of the user."""


def is_plain(handler: logging.Handler) -> bool:
    """Return whether `handler` writes plain text to the console and nothing about it was chosen by the user."""
    return _is_console_stream(handler) and not handler.filters and type(handler.formatter) in {logging.Formatter, _NONE}


def is_server_default(handler: logging.Handler) -> bool:
    """Return whether `handler` is the console handler that a server makes by itself."""
    return _is_console_stream(handler) and (
        handler.formatter is None or type(handler.formatter).__module__.partition(".")[0] in SERVER_PACKAGES
    )


def writes_to_console(handler: logging.Handler) -> bool:
    """Return whether `handler`, of any class, writes to standard output or error.

    Also through rich's console, and through handlers to which a `MemoryHandler` or the listener of a queue passes on.
    """
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    return _is_console(stream) or any(writes_to_console(each) for each in _next_handlers(handler))


def _writes_to_its_file(handler: logging.Handler) -> bool:
    """Return whether `handler` writes to the file of standard output or error, such as `FileHandler("/dev/stdout")`."""
    if not isinstance(handler, logging.FileHandler):
        return False
    try:
        # Its file is opened late with delay=True.
        status = os.fstat(handler.stream.fileno()) if handler.stream else Path(handler.baseFilename).stat()
        nowhere = Path(os.devnull).stat()
    except Exception:  # noqa: BLE001 - a subclass may have anything as its stream, or a closed one
        return False
    return not os.path.samestat(status, nowhere) and any(_is_file_of(descriptor, status) for descriptor in (1, 2))


def _is_file_of(descriptor: int, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), status)
    except OSError:  # closed
        return False


def _next_handlers(handler: logging.Handler) -> list[logging.Handler]:
    """Return the handlers that `handler` passes records on to, as far as it knows them."""
    target = getattr(handler, "target", None)
    listener = getattr(handler, "listener", None)  # Python 3.12 and later, if `dictConfig` has made it
    handlers = (target, *getattr(listener, "handlers", ()))
    return [each for each in handlers if isinstance(each, logging.Handler) and each is not handler]


def is_intercepting(handler: logging.Handler) -> bool:
    """Return whether `handler` is from loguru's recipe, which passes records on to `logger.opt(...)` of loguru."""
    kind = type(handler)
    code = getattr(kind.emit, "__code__", None)
    return kind.__name__ == "InterceptHandler" or "opt" in getattr(code, "co_names", ())


def reaches(logger: logging.Logger, handler: logging.Handler) -> bool:
    """Return whether records of `logger` come to `handler`, there or further up."""
    current: logging.Logger | None = logger
    while current is not None:
        if handler in current.handlers:
            return True
        current = current.parent if current.propagate else None
    return False


def describe_console_handlers(
    loggers: list[logging.Logger], is_captured: Callable[[logging.Logger], bool]
) -> dict[tuple[str, str], str]:
    """Return a warning for each logger and class of handler that writes lines of its own to the console."""
    warnings: dict[tuple[str, str], str] = {}
    for logger in loggers:
        if logger.name.partition(".")[0] in {"fastapi_cli", "fastapi_cloud_cli"}:  # for the person at the terminal
            continue
        for handler in logger.handlers:
            if _hides_its_listener(handler):
                writes = "passes records to a listener; if that writes to the console, "
            elif is_intercepting(handler) or not (writes_to_console(handler) or _writes_to_its_file(handler)):
                continue
            else:
                writes = "writes to the console itself: "
            kind = type(handler).__name__
            if handler.formatter is not None and type(handler.formatter) is not logging.Formatter:
                kind += f" with {type(handler.formatter).__name__}"
            replaced = "fastapi-observe replaces only handlers with a plain logging.Formatter"
            if isinstance(handler, logging.FileHandler):
                replaced = "fastapi-observe replaces no FileHandler"
            elif is_plain(handler):
                replaced = "fastapi-observe replaces those that are there when the app starts"
            if is_captured(logger):
                effect = "each of its records is on the console twice, once as a JSON line. Remove the handler"
            else:
                effect = "its records are not JSON lines. Remove the handler and let the logger propagate"
            warnings[logger.name, kind] = (
                f"The handler {kind} of the logger {logger.name!r} {writes}{effect} "
                f"({replaced}), or set capture_logging=False."
            )
    return warnings


def _hides_its_listener(handler: logging.Handler) -> bool:
    """Return whether `handler` is a plain `QueueHandler` whose listener, and what that writes to, cannot be found."""
    return type(handler) is logging.handlers.QueueHandler and getattr(handler, "listener", None) is None


_NONE: Final = type(None)


def _is_console_stream(handler: logging.Handler) -> bool:
    """Return whether `handler` is exactly a `StreamHandler` on the console: a subclass is the user's own."""
    return type(handler) is logging.StreamHandler and _is_console(handler.stream)


def _is_console(stream: Any) -> bool:
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return stream is not None and (
        any(stream is each for each in standard) or getattr(stream, "name", None) in {"<stdout>", "<stderr>"}
    )
