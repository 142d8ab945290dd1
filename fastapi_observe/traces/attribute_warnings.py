"""Throttling of OpenTelemetry's warnings about attributes that it cuts or drops."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.throttle import LogThrottle

if TYPE_CHECKING:
    from collections.abc import Callable

ATTRIBUTES_LOGGER: Final = "opentelemetry.attributes"


class ThrottleFilter(logging.Filter):
    """Logs each message at most once a minute, with the number of those that were suppressed in between.

    Messages are compared before their arguments are inserted. `users` is the number of installs that share the filter.
    """

    def __init__(self, throttle: LogThrottle | None = None) -> None:
        super().__init__()
        self.users = 0
        self._throttle = throttle or LogThrottle()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a log record is logged."""
        message = str(record.msg)
        if not self._throttle.allow(message):
            return False
        suppressed = self._throttle.pop_suppressed(message)
        if suppressed:
            record.msg = f"{record.getMessage()} ({suppressed} more in the last minutes)"
            record.args = None
        return True


def throttle_attribute_warnings() -> Callable[[], None]:
    """Throttle these warnings in this process: a client that sends long values must not fill the log.

    Returns a function that reverts this; calling it again has no effect.
    """
    logger = logging.getLogger(ATTRIBUTES_LOGGER)
    throttle = next((one for one in logger.filters if isinstance(one, ThrottleFilter)), None) or ThrottleFilter()
    throttle.users += 1
    logger.addFilter(throttle)
    is_restored = False

    def restore() -> None:
        nonlocal is_restored
        if not is_restored:
            is_restored = True
            throttle.users -= 1
            if not throttle.users:
                logger.removeFilter(throttle)

    return restore
