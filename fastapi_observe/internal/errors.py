"""`InternalErrors` counts and logs exceptions inside fastapi-observe; `Renamed` raises one for a former name."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, NoReturn

from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.internal.version import REPORT

if TYPE_CHECKING:
    from collections.abc import Callable


class InternalErrors:
    """Counts internal errors by location. Instances are callable: `internal_errors("traces.on_request_end", exc)`."""

    __slots__ = ("_lock", "_throttle", "counts")

    def __init__(self, throttle: LogThrottle | None = None) -> None:
        self.counts: dict[str, int] = {}
        self._throttle = throttle or LogThrottle()
        # Reentrant: a finalizer may run while the lock is held, and fail.
        self._lock = threading.RLock()

    def run_each(self, site: str, *steps: Callable[[], object]) -> None:
        """Call every step, even if an earlier one raises."""
        for step in steps:
            try:
                step()
            except Exception as exc:  # noqa: BLE001 - an internal error never reaches the app
                self(site, exc)

    def __call__(self, site: str, exc: BaseException) -> None:
        """Count an exception at `site`, a fixed name because it becomes a metric label, and log it. Never raises.

        The message of the exception is not logged: it may contain the client's data.
        """
        with self._lock:
            self.counts[site] = self.counts.get(site, 0) + 1
        with contextlib.suppress(Exception):  # a logging handler of the app may raise anything
            if not self._throttle.allow(site):
                return
            logging.getLogger("fastapi_observe").error(
                "Internal error in fastapi-observe (%s: %s). Your app was not affected. Counted in "
                "fastapi_observe_internal_errors_total; logged at most once a minute. %s",
                site,
                type(exc).__name__,
                REPORT,
            )


class Renamed:
    """Class attribute in place of a renamed method. Reading it raises `AttributeError` with the new name."""

    def __init__(self, new_name: str) -> None:
        self._new_name = new_name
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__}.{self._name} was renamed to {self._new_name}")
