"""Private names of loguru and `logging` that this package uses, in one place.

loguru has no public way to list its handlers, to silence one for a while, or to read the fields of `contextualize`;
`logging` has none to list its loggers. Each function states what it does when a private name is missing.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import loguru
from loguru import logger

if TYPE_CHECKING:
    from contextvars import ContextVar

CORE: Final[Any] = getattr(logger, "_core", None)
"""State that all loguru loggers of the process share. `CORE.handlers` is a new dict after each change."""

CONTEXT: Final[ContextVar[dict[str, Any]] | None] = getattr(getattr(loguru, "_logger", None), "context", None)
"""The fields of loguru's `contextualize`. None if loguru has moved it: then they are on loguru's own lines only."""


def handlers() -> dict[int, Any] | None:
    """Return loguru's handlers by id, or None if they cannot be listed."""
    found: dict[int, Any] | None = getattr(CORE, "handlers", None)
    return found


def replace_level(handler: Any, level: int) -> int:
    """Set the level of a loguru handler and return the previous one.

    Raises `AttributeError` or `TypeError` if that is not possible; the handler is then unchanged.
    """
    with CORE.lock:
        before: int = handler._levelno  # noqa: SLF001
        handler._levelno = level  # noqa: SLF001
        CORE.min_level = min((each.levelno for each in CORE.handlers.values()), default=sys.maxsize)
    return before


def console_handlers() -> dict[int, str]:
    """Return the loguru handlers that write to the console: their ids and descriptions. Empty if that is unknown."""
    described = {number: repr(handler) for number, handler in (handlers() or {}).items()}
    return {number: text for number, text in described.items() if "sink=<stdout>" in text or "sink=<stderr>" in text}


def contextualize_fields() -> dict[str, Any]:
    """Return the fields of loguru's `contextualize` blocks that are open. Empty if they cannot be read."""
    return {} if CONTEXT is None else CONTEXT.get()


def named_loggers() -> list[logging.Logger]:
    """Return all loggers of `logging` but the root, parents first. Empty if they cannot be listed."""
    registered = getattr(logging.root.manager, "loggerDict", {})
    return [each for _, each in sorted(registered.items()) if isinstance(each, logging.Logger)]
