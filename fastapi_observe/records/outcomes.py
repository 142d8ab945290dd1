"""How exceptions and statuses are named, and the outcome of what an exception ended."""

from __future__ import annotations

import asyncio

from fastapi_observe.redaction.redactor import PLAIN


def error_name(exc: BaseException) -> str:
    """Return the `error_type` of an exception: its class name, with its module unless built in."""
    kind = type(exc)
    try:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return PLAIN.name(name)
    except Exception:  # noqa: BLE001 - a metaclass may override anything
        return str(type.__dict__["__qualname__"].__get__(kind))


def is_cancellation(exc: BaseException | None) -> bool:
    """Tell whether `exc` is a cancellation of asyncio or of trio."""
    return isinstance(exc, asyncio.CancelledError) or type(exc).__name__ == "Cancelled"


def outcome_of(exc: BaseException) -> str:
    """Name the outcome of work that ended with `exc`: `cancelled`, `timeout` or `error`."""
    if is_cancellation(exc):
        return "cancelled"
    return "timeout" if isinstance(exc, TimeoutError) else "error"


def status_name(status_code: int) -> str:
    """Return a status as text that may be a label: 100 to 599 (RFC 9110, 15), or `_other`."""
    return str(status_code) if 100 <= status_code <= 599 else "_other"  # noqa: PLR2004 - as above
