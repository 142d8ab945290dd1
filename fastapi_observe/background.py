"""Instrumentation of Starlette's `BackgroundTask`: each task of a request becomes an operation."""

from __future__ import annotations

import functools
from typing import Any

from starlette.background import BackgroundTask

from fastapi_observe.records.guard import report_error
from fastapi_observe.records.request import current_record

_INSTALLS = "__observe_installs__"


def instrument() -> None:
    """Measure the background tasks of requests of installed apps. Call `uninstrument` once for each call.

    Tasks outside such a request are not measured.
    """
    # Starlette has no hook for background tasks: its `__call__` is the only place that sees each one start and end.
    current: Any = BackgroundTask.__call__
    if not hasattr(current, _INSTALLS):
        current = _measured(current)
        BackgroundTask.__call__ = current  # type: ignore[method-assign]
    setattr(current, _INSTALLS, getattr(current, _INSTALLS) + 1)


def uninstrument() -> None:
    """Revert one `instrument`. The last call restores Starlette's method."""
    current: Any = BackgroundTask.__call__
    if hasattr(current, _INSTALLS):
        setattr(current, _INSTALLS, getattr(current, _INSTALLS) - 1)
        if getattr(current, _INSTALLS) == 0:
            BackgroundTask.__call__ = current.__wrapped__  # type: ignore[method-assign]


def _measured(original: Any) -> Any:
    @functools.wraps(original)
    async def call(task: BackgroundTask) -> None:
        operation = None
        try:
            record = current_record()
            if record is not None:
                operation = record.observability.background_operation(record, task.func)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the task
            report_error("background", exc)
        if operation is None:
            await original(task)
            return
        with operation:
            await original(task)

    setattr(call, _INSTALLS, 0)
    return call
