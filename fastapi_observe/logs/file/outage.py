"""Tells in a log line why lines for the log file are lost: seldom, and without anything of them."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

LOG_INTERVAL: Final = 60.0
"""Seconds until something that lasts is told again."""

PAUSE: Final = 10.0
"""Seconds at least between any two lines."""


class FileErrorLog:
    """Tells at once that lines are lost, and when they are written again, how many were."""

    def __init__(self, path: str) -> None:
        self.lost = 0
        self._path = path
        self._told = False
        self._spoke = self._cared = -LOG_INTERVAL

    def lines_lost(self, exc: OSError) -> None:
        """Tell why lines are lost."""
        if not self._told or monotonic() - self._spoke >= LOG_INTERVAL:
            self._told |= self._tell("loses lines", exc)

    def maintenance_failed(self, exc: OSError) -> None:
        """Tell why the file cannot be rotated, or rotated files be compressed or removed; no line is lost by that."""
        if monotonic() - self._cared >= LOG_INTERVAL and self._tell("cannot be rotated or tidied up", exc):
            self._cared = self._spoke

    def recovered(self) -> None:
        """Tell how many lines were lost; the line may have to wait for a later call."""
        if self._may_speak():
            lost, self.lost, self._told = self.lost, 0, False
            _logger().warning("the log file %s is written again, %d lines were lost", self._path, lost)

    def _tell(self, what: str, exc: OSError) -> bool:
        if not self._may_speak():
            return False
        reason = exc.strerror or type(exc).__name__
        _logger().error("the log file %s %s: %s (it is tried again twice a second)", self._path, what, reason)
        return True

    def _may_speak(self) -> bool:
        now = monotonic()
        if now - self._spoke < PAUSE:
            return False
        self._spoke = now
        return True


def _logger() -> logging.Logger:
    return logging.getLogger("fastapi_observe")
