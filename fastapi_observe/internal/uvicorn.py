"""Names of uvicorn that are not documented: whether the client of a request has disconnected."""

from __future__ import annotations

from typing import Any


def is_disconnected_cycle(cycle: Any) -> bool:
    """Return whether an object is uvicorn's state of a request whose client disconnected before the response ended.

    `cycle` is the object whose method is the `send` of the request. ASGI tells a disconnect only to an app that waits
    for a message, and uvicorn's `send` then does nothing. Without these names, or with another server or a `send` that
    is wrapped, such a request is reported as if the client had received the response.
    """
    # Other classes may have an attribute of that name with another meaning.
    return getattr(cycle, "disconnected", False) is True and type(cycle).__module__.startswith("uvicorn.")
