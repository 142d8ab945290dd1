"""Names of uvicorn that are not documented: a client that has disconnected, and a server that reloads the app."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

MAX_CALLERS: Final = 500
"""Callers that are looked through for uvicorn: a few for each module between it and the app."""


def is_imported_with_reload() -> bool:
    """Return whether uvicorn is importing the app, in a process that it restarts when a file changes.

    The process that `uvicorn.run("main:app", reload=True)` starts can be recognized only by the configuration of its
    server, which is a local variable where the app is imported. Without these names it counts as production.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the current frame
    for _ in range(MAX_CALLERS):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == "uvicorn.config":
            return getattr(frame.f_locals.get("self"), "reload", False) is True
        frame = frame.f_back
    return False


def is_disconnected_cycle(cycle: Any) -> bool:
    """Return whether an object is uvicorn's state of a request whose client disconnected before the response ended.

    `cycle` is the object whose method is the `send` of the request. ASGI reports a disconnect only to an app that waits
    for a message, and uvicorn's `send` then does nothing. Without these names, or with another server or a `send` that
    is wrapped, such a request is reported as if the client had received the response.
    """
    # Other classes may have an attribute of that name with another meaning.
    return getattr(cycle, "disconnected", False) is True and type(cycle).__module__.startswith("uvicorn.")
