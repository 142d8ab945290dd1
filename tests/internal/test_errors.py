"""`InternalErrors`: every internal error is counted by location, few are logged, none is raised."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.throttle import LOG_INTERVAL, LogThrottle

if TYPE_CHECKING:
    import pytest


def test_errors_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each error counts; each location is logged once a minute, with the exception's type and never its message."""
    now = [5.0]
    internal_errors = InternalErrors(LogThrottle(clock=lambda: now[0]))
    for _ in range(3):
        internal_errors("traces.on_request_start", ValueError("secret"))
    internal_errors("routing", KeyError("secret"))
    now[0] += LOG_INTERVAL
    internal_errors("routing", KeyError("secret"))
    assert internal_errors.counts == {"traces.on_request_start": 3, "routing": 2}
    messages = [record.getMessage() for record in caplog.records if record.name == "fastapi_observe"]
    assert len(messages) == 3
    assert "(traces.on_request_start: ValueError)" in messages[0]
    assert "secret" not in "".join(messages)


def test_a_logging_handler_that_raises_changes_nothing() -> None:
    """The error is counted even if the app's logging handler fails."""

    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no disk")

    logger, handler, internal_errors = logging.getLogger("fastapi_observe"), Broken(), InternalErrors()
    logger.addHandler(handler)
    try:
        internal_errors("site", ValueError())
    finally:
        logger.removeHandler(handler)
    assert internal_errors.counts == {"site": 1}


def test_every_step_runs() -> None:
    """A step that raises is counted; the steps after it run."""
    done: list[str] = []
    internal_errors = InternalErrors()
    internal_errors.run_each("close", lambda: done.append("a"), lambda: done[9], lambda: done.append("b"))
    assert done == ["a", "b"]
    assert internal_errors.counts == {"close": 1}


def test_no_count_is_lost_between_threads() -> None:
    """Threads that fail at the same time are all counted."""
    internal_errors = InternalErrors()

    def fail() -> None:
        for _ in range(500):
            internal_errors("site", ValueError())

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert internal_errors.counts == {"site": 4000}
