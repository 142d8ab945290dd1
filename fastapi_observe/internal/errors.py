"""Our own failures: counted by site, told once a minute, never passed to the request."""

from __future__ import annotations

import contextlib
import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_INTERVAL = 60.0
"""Seconds until the same site is told again."""


class InternalErrors:
    """Counts what failed inside fastapi-observe, by site."""

    __slots__ = ("_lock", "_told", "counts")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def run_each(self, site: str, *steps: Callable[[], object]) -> None:
        """Take all steps, whichever fails."""
        for step in steps:
            try:
                step()
            except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the app
                self(site, exc)

    def __call__(self, site: str, exc: BaseException) -> None:
        """Count a failure at `site` (a fixed name: it becomes a label); tell it at most once a minute.

        Never raises.
        """
        with self._lock:
            self.counts[site] = self.counts.get(site, 0) + 1
            now = monotonic()
            if now - self._told.get(site, -LOG_INTERVAL) < LOG_INTERVAL:
                return
            self._told[site] = now
        with contextlib.suppress(Exception):  # telling is best effort: there is nobody left to tell
            logging.getLogger("fastapi_observe").error(
                "fastapi-observe failed at %s with %s; the request was not touched (told once a minute)",
                site,
                type(exc).__name__,
            )
