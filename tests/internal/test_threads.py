"""Holds that a thread that cannot start is a warning instead of an exception."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from fastapi_observe.internal.forks import start_thread

if TYPE_CHECKING:
    import pytest


def test_a_started_thread_is_returned() -> None:
    """It is a daemon with this name that has run its function."""
    done = threading.Event()
    thread = start_thread(lambda _: done.set(), "worker", "Nothing works.", (1,))
    assert thread is not None
    assert done.wait(30)
    assert (thread.name, thread.daemon) == ("worker", True)


def test_at_the_limit_of_threads_there_is_one_warning(no_threads: None, caplog: pytest.LogCaptureFixture) -> None:
    """It names the reason, the consequence and the remedy, once a minute for each consequence."""
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for _ in range(3):
            assert start_thread(print, "worker", "Tests have no worker.") is None
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        "No thread can start: can't start new thread. Tests have no worker. "
        "Raise the limit of threads or processes (ulimit -u, or pids.max)."
    )
