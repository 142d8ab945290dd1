"""What an export queue does when its process ends or forks, without being kept alive by that."""

from __future__ import annotations

import atexit
import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FINAL_LOG_FLUSH: Final = 0.1
"""Seconds for the lines that flushing itself has written."""

SUPERVISOR_TIMEOUT: Final = 0.1
"""Seconds for the last items of a process whose children have served."""


class ShutdownDeadline:
    """The time that all exports of an install have together, once, when the app or the interpreter ends.

    A process that forked and serves nothing itself (gunicorn's master with `--preload`) ends after its children, who
    have taken theirs: it has SUPERVISING seconds.
    """

    def __init__(self) -> None:
        self._begin_as_child()
        register_at_fork(self, ShutdownDeadline._begin_as_child, ShutdownDeadline._note_child)

    def _begin_as_child(self) -> None:
        self._deadline: float | None = None
        self._has_children = self._serves = False

    def _note_child(self) -> None:
        self._has_children = True

    def remaining(self, seconds: float) -> float:
        """Return how much is left; where nobody has begun yet, it is so many seconds from now on."""
        now = monotonic()
        if self._deadline is None:
            self._deadline = now + (
                min(seconds, SUPERVISOR_TIMEOUT) if self._has_children and not self._serves else seconds
            )
        return max(0.0, self._deadline - now)

    def reset(self) -> None:
        """Have as much time again: the app goes on."""
        self._serves = True
        self._deadline = None


def share_deadline(*exporting: Any) -> ShutdownDeadline:
    """Give queues, and what has a `queue`, one budget together; anything else has none."""
    budget = ShutdownDeadline()
    for one in exporting:
        queue = getattr(one, "queue", one)
        if hasattr(queue, "budget"):
            queue.budget = budget
    return budget


def register_at_exit(owner: T, method: Callable[[T], None]) -> Callable[[], None]:
    """Have `method(owner)` called when the interpreter ends; call the result to take that back."""
    call = weak_callback(owner, method)
    atexit.register(call)
    return lambda: atexit.unregister(call)


def register_at_fork(owner: T, in_child: Callable[[T], None], in_parent: Callable[[T], None] = lambda _: None) -> None:
    """Have `in_child(owner)` called in every forked child, and `in_parent(owner)` here, before anything else runs."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
        os.register_at_fork(
            after_in_child=weak_callback(owner, in_child), after_in_parent=weak_callback(owner, in_parent)
        )


def weak_callback(owner: T, method: Callable[[T], None]) -> Callable[[], None]:
    """Return what calls `method(owner)` as long as the owner is there."""
    reference = weakref.ref(owner)

    def call() -> None:
        found = reference()
        if found is not None:
            method(found)

    return call
