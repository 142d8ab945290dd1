"""Callbacks at fork and at exit that do not keep their owner alive, `ShutdownDeadline`, and `start_thread`."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.throttle import LogThrottle

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

NO_THREAD_THROTTLE: Final = LogThrottle()

LAST_FINALIZER: Final = -1000
"""Priority among the finalizers of multiprocessing: after those of the app, which may log or export something."""

FINAL_LOG_FLUSH: Final = 0.1
"""Seconds for writing the log lines that flushing itself has produced."""

SUPERVISOR_TIMEOUT: Final = 0.1
"""Seconds for the last items of a process whose children have served the requests."""


class ShutdownDeadline:
    """The time that all exports of an install share when the app or the interpreter ends.

    A process that has forked and serves no requests itself (gunicorn's master with `--preload`) ends after its
    children, which have used their own time: it has `SUPERVISOR_TIMEOUT` seconds.
    """

    def __init__(self) -> None:
        self._reset_in_child()
        register_at_fork(self, ShutdownDeadline._reset_in_child, ShutdownDeadline._mark_parent)

    def _reset_in_child(self) -> None:
        self._deadline: float | None = None
        self._has_children = self._serves = False

    def _mark_parent(self) -> None:
        self._has_children = True

    def remaining(self, seconds: float) -> float:
        """Return the remaining seconds. The first call starts the time, which is `seconds` long."""
        now = monotonic()
        if self._deadline is None:
            self._deadline = now + (
                min(seconds, SUPERVISOR_TIMEOUT) if self._has_children and not self._serves else seconds
            )
        return max(0.0, self._deadline - now)

    def reset(self) -> None:
        """Allow the full time again, because the app serves requests."""
        self._serves = True
        self._deadline = None


def register_at_exit(owner: T, method: Callable[[T], None]) -> Callable[[], None]:
    """Call `method(owner)` when this process ends, also as a child of multiprocessing. May call it more than once.

    Returns a function that reverts this.
    """
    call = weak_callback(owner, method)
    atexit.register(call)
    finalizers: list[Any] = []
    # Children that multiprocessing has forked, from a fork server too, end with `os._exit`: no atexit callback runs,
    # but multiprocessing's finalizers do. A child forgets the finalizers that exist when it starts, those of the main
    # module that it has imported included, and then calls what is registered for after a fork, in any start method.
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:

        def add_finalizer(_: object) -> None:
            finalizers.append(util.Finalize(None, call, exitpriority=LAST_FINALIZER))

        if sys.modules["multiprocessing.process"].parent_process() is None:
            util.register_after_fork(owner, add_finalizer)
        else:
            add_finalizer(owner)

    def undo() -> None:
        atexit.unregister(call)
        for finalizer in finalizers:
            finalizer.cancel()

    return undo


def register_at_fork(
    owner: T,
    in_child: Callable[[T], None],
    in_parent: Callable[[T], None] | None = None,
    before: Callable[[T], None] | None = None,
) -> None:
    """Call `in_child(owner)` in every forked child, `before(owner)` and `in_parent(owner)` in the forking process.

    A registration cannot be removed: it ends with its owner.
    """
    callbacks = {"before": before, "after_in_parent": in_parent, "after_in_child": in_child}
    if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
        os.register_at_fork(**{when: weak_callback(owner, call) for when, call in callbacks.items() if call})


def weak_callback(owner: T, method: Callable[[T], None]) -> Callable[[], None]:
    """Return a function that calls `method(owner)` while the owner exists."""
    reference = weakref.ref(owner)

    def call() -> None:
        alive = reference()
        if alive is not None:
            method(alive)

    return call


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
    if NO_THREAD_THROTTLE.allow(consequence):
        logging.getLogger("fastapi_observe").warning(
            "No thread can start: %s. %s Raise the limit of threads or processes (ulimit -u, or pids.max).",
            exc,
            consequence,
        )
