"""Background tasks: Starlette's own class is the only place that sees each one begin and end."""

from __future__ import annotations

import functools
from typing import Any

from starlette.background import BackgroundTask

from fastapi_observe.records.guard import report_error
from fastapi_observe.records.request import current_record

_USERS = "__observe_users__"


def instrument() -> None:
    """Measure every background task that a request of an installed app leaves behind; call `unwatch` once for each.

    A task outside such a request runs as before.
    """
    current: Any = BackgroundTask.__call__
    if not hasattr(current, _USERS):
        current = _measured(current)
        BackgroundTask.__call__ = current  # type: ignore[method-assign]
    setattr(current, _USERS, getattr(current, _USERS) + 1)


def uninstrument() -> None:
    """Take back one `watch`; the last one leaves Starlette as it was."""
    current: Any = BackgroundTask.__call__
    if hasattr(current, _USERS):
        setattr(current, _USERS, getattr(current, _USERS) - 1)
        if getattr(current, _USERS) == 0:
            BackgroundTask.__call__ = current.__wrapped__  # type: ignore[method-assign]


def _measured(original: Any) -> Any:
    @functools.wraps(original)
    async def call(task: BackgroundTask) -> None:
        operation = None
        try:
            exchange = current_record()
            if exchange is not None:
                operation = exchange.observability.background_operation(exchange, task.func)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the task
            report_error("background", exc)
        if operation is None:
            await original(task)
            return
        with operation:
            await original(task)

    setattr(call, _USERS, 0)
    return call
