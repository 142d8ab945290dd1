"""`start_thread`: starts a daemon thread, or logs what is missing if the limit of threads is reached."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal.throttle import LogThrottle

if TYPE_CHECKING:
    from collections.abc import Callable

_THROTTLE: Final = LogThrottle()


def start_thread(
    target: Callable[..., object], name: str, consequence: str, args: tuple[Any, ...] = ()
) -> threading.Thread | None:
    """Start a daemon thread and return it.

    If no thread can start, log a warning with the `consequence` (a sentence) and return None.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        log_no_thread(exc, consequence)
        return None
    return thread


def log_no_thread(exc: RuntimeError, consequence: str) -> None:
    """Log a warning, at most once a minute for each consequence, that a thread could not start."""
    if _THROTTLE.allow(consequence):
        logging.getLogger("fastapi_observe").warning(
            "No thread can start: %s. %s Raise the limit of threads or processes (ulimit -u, or pids.max).",
            exc,
            consequence,
        )
