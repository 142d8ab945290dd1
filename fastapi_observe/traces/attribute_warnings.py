"""What OpenTelemetry says about attributes that it cuts or leaves out: each text once a minute."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGER: Final = "opentelemetry.attributes"

LOG_INTERVAL: Final = 60.0
"""Seconds until the same text is passed on again."""

MAX_TEXTS: Final = 64


class LogThrottle(logging.Filter):
    """Passes a text on once a minute; the next one tells how many were kept back. `users` have added it."""

    def __init__(self) -> None:
        super().__init__()
        self.users = 0
        self._told: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is passed on; texts are told apart before their values are put in."""
        text, now = str(record.msg), monotonic()
        if now - self._told.get(text, -LOG_INTERVAL) < LOG_INTERVAL:
            self._kept_back[text] = self._kept_back.get(text, 0) + 1
            return False
        if len(self._told) >= MAX_TEXTS:
            self._told.clear()
            self._kept_back.clear()
        self._told[text] = now
        more = self._kept_back.pop(text, 0)
        if more:
            record.msg = f"{record.getMessage()} ({more} more since this was last told)"
            record.args = None
        return True


def throttle_attribute_warnings() -> Callable[[], None]:
    """Keep them back in this process: a client that sends long values must not fill the log. Call the result to end."""
    logger = logging.getLogger(LOGGER)
    bound = next((one for one in logger.filters if isinstance(one, LogThrottle)), None) or LogThrottle()
    bound.users += 1
    logger.addFilter(bound)
    ended: list[bool] = []

    def end() -> None:
        if not ended:
            ended.append(True)
            bound.users -= 1
            if not bound.users:
                logger.removeFilter(bound)

    return end
