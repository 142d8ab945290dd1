"""Instrumentation of Starlette's `BackgroundTask`: each task of a request becomes an operation."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Final

from starlette.background import BackgroundTask, BackgroundTasks

from fastapi_observe.internal.opentelemetry import background_task_call
from fastapi_observe.records.guard import report_error
from fastapi_observe.records.request import current_record

_INSTALLS: Final = "__observe_installs__"
_FUNCTION: Final = "__observe_function__"
_WRAPPED_NAMES: Final = frozenset({"task", "func", "function", "fn", "wrapped"})
"""Variables under which tracers such as ddtrace hold the function that they run in place of."""


def instrument() -> None:
    """Measure the background tasks of requests of installed apps. Call `uninstrument` once for each call.

    Tasks outside such a request are not measured.
    """
    # Starlette has no hook for background tasks: its `__call__` is the only place that sees each one start and end.
    current: Any = BackgroundTask.__call__
    if not hasattr(current, _INSTALLS):
        current = _measured(current)
        BackgroundTask.__call__ = current  # type: ignore[method-assign]
        BackgroundTasks.add_task = _named(BackgroundTasks.add_task)  # type: ignore[method-assign]
    setattr(current, _INSTALLS, getattr(current, _INSTALLS) + 1)


def uninstrument() -> None:
    """Revert one `instrument`. The last call restores Starlette's method."""
    current: Any = BackgroundTask.__call__
    if hasattr(current, _INSTALLS):
        setattr(current, _INSTALLS, getattr(current, _INSTALLS) - 1)
        if getattr(current, _INSTALLS) == 0:
            BackgroundTask.__call__ = current.__wrapped__  # type: ignore[method-assign]
            add_task: Any = BackgroundTasks.add_task
            if hasattr(add_task, _FUNCTION):
                BackgroundTasks.add_task = add_task.__wrapped__  # type: ignore[method-assign]


def _named(add_task: Any) -> Any:
    """Wrap `BackgroundTasks.add_task`: a task keeps the function it was added with, whatever wraps it on the way."""

    @functools.wraps(add_task)
    def add(tasks: BackgroundTasks, func: Any, *args: Any, **kwargs: Any) -> None:
        count = len(tasks.tasks)
        add_task(tasks, func, *args, **kwargs)
        try:
            for task in tasks.tasks[count:]:
                task.__dict__[_FUNCTION] = func
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the request
            report_error("background", exc)

    setattr(add, _FUNCTION, add_task)
    return add


def task_function(task: BackgroundTask) -> Any:
    """Return the function that a task was made for, through wrappers of tracers that do not keep its name."""
    function = task.__dict__.get(_FUNCTION, task.func)
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__"):
        return function
    held = []
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the variable has no value yet
            if name in _WRAPPED_NAMES and callable(cell.cell_contents):
                held.append(cell.cell_contents)
    return held[0] if len(held) == 1 else function


def _measured(original: Any) -> Any:
    @functools.wraps(original)
    async def call(task: BackgroundTask) -> None:
        operation, target = None, original
        try:
            record = current_record()
            if record is not None:
                target = background_task_call(original)
                operation = record.observability.background_operation(record, task_function(task))
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the task
            report_error("background", exc)
        if operation is None:
            await original(task)
            return
        with operation:
            await target(task)

    setattr(call, _INSTALLS, 0)
    return call
