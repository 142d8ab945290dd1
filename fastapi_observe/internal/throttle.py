"""`LogThrottle`: at most one log message a minute for each cause."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_INTERVAL: Final = 60.0
"""Seconds between two log messages with the same cause."""

MAX_CAUSES: Final = 64
"""Causes that one throttle remembers. The next new cause makes it forget all of them."""


class LogThrottle:
    """Limits repeated log messages. Causes are short fixed strings, such as a location or a failure reason.

    `clock` is in seconds and must not run backwards.
    """

    __slots__ = ("_clock", "_last_allowed", "_lock", "_suppressed")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._last_allowed: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}
        # Reentrant: a finalizer may run between any two instructions, fail, and ask the same throttle.
        self._lock = threading.RLock()

    def allow(self, cause: str) -> bool:
        """Return whether a message with this cause may be logged now. If so, the interval starts again."""
        now = self._clock()
        with self._lock:
            last = self._last_allowed.get(cause)
            if last is not None and now - last < LOG_INTERVAL:
                self._suppressed[cause] = self._suppressed.get(cause, 0) + 1
                return False
            if last is None and len(self._last_allowed) >= MAX_CAUSES:
                self._last_allowed.clear()
                self._suppressed.clear()
            self._last_allowed[cause] = now
            return True

    def pop_suppressed(self, cause: str) -> int:
        """Return the number of messages with this cause that were suppressed since the last call, and reset it."""
        with self._lock:
            return self._suppressed.pop(cause, 0)

    def reset(self) -> None:
        """Allow the next message of every cause, such as after an outage has ended."""
        with self._lock:
            self._last_allowed.clear()
            self._suppressed.clear()
