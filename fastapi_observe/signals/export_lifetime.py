"""What an export queue does when its process ends or forks, without being kept alive by that."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def at_exit(owner: T, method: Callable[[T], None]) -> Callable[[], None]:
    """Have `method(owner)` called when the interpreter ends; call the result to take that back."""
    call = weakly(owner, method)
    atexit.register(call)
    return lambda: atexit.unregister(call)


def at_fork(owner: T, method: Callable[[T], None]) -> None:
    """Have `method(owner)` called in every forked child, before anything else runs there."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
        os.register_at_fork(after_in_child=weakly(owner, method))


def weakly(owner: T, method: Callable[[T], None]) -> Callable[[], None]:
    """Return what calls `method(owner)` as long as the owner is there."""
    reference = weakref.ref(owner)

    def call() -> None:
        found = reference()
        if found is not None:
            method(found)

    return call
