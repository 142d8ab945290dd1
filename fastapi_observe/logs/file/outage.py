"""Tells in a log line why lines for the log file are lost: seldom, and without anything of them."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

REPEAT_AFTER: Final = 60.0
"""Seconds until something that lasts is told again."""

PAUSE: Final = 10.0
"""Seconds at least between any two lines."""


class FileOutage:
    """Tells at once that lines are lost, and when they are written again, how many were."""

    def __init__(self, path: str) -> None:
        self.lost = 0
        self._path = path
        self._told = False
        self._spoke = self._cared = -REPEAT_AFTER

    def begin(self, exc: OSError) -> None:
        """Tell why lines are lost."""
        if not self._told or monotonic() - self._spoke >= REPEAT_AFTER:
            self._told |= self._tell("loses lines", exc)

    def neglect(self, exc: OSError) -> None:
        """Tell why the file cannot be rotated, or rotated files be compressed or removed; no line is lost by that."""
        if monotonic() - self._cared >= REPEAT_AFTER and self._tell("cannot be rotated or tidied up", exc):
            self._cared = self._spoke

    def end(self) -> None:
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
