"""`get_observability()`, `@traced` and `operation()`: for code without access to the app or the request."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from opentelemetry import trace

from fastapi_observe.jobs import new_job
from fastapi_observe.observability import INSTALLED
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe, report_error, return_no_op
from fastapi_observe.records.operation import new_operation
from fastapi_observe.records.request import current_record
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.traces.user_spans import make_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Tracer

    from fastapi_observe.jobs import Job, MessageHeaders
    from fastapi_observe.observability import Observability
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.redaction.redactor import Redactor


def get_observability() -> Observability:
    """Return the `Observability` of the app whose request is being served, or of the only installed app.

    Raises `RuntimeError` outside a request if no app or several apps are installed.
    """
    try:
        found = _find_observability()
    except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
        report_error("get_observability", exc)
        found = INSTALLED[0] if len(INSTALLED) == 1 else None
    if found is not None:
        return found
    if not INSTALLED:
        raise RuntimeError("fastapi-observe is not installed; call install(app) where the app is created")
    raise RuntimeError(
        f"get_observability() is ambiguous: {len(INSTALLED)} apps are installed and no request is being served; "
        "use app.state.observe"
    )


def _find_observability() -> Observability | None:
    record = current_record()
    if record is not None:
        return record.observability  # type: ignore[no-any-return]
    return INSTALLED[0] if len(INSTALLED) == 1 else None


F = TypeVar("F", bound="Callable[..., Any]")


@overload
def traced(function: F, /) -> F: ...


@overload
def traced(name: str | None = None, /, **attributes: Any) -> Callable[[F], F]: ...


def traced(function: Any = None, /, **attributes: Any) -> Any:
    """Decorate a function, coroutine function, generator or async generator: each call is a span.

    `@traced`, `@traced("price order")` or `@traced("price order", tier="gold")`; the default name is the function's.
    The spans belong to the app whose request is being served, else to the only installed app. If there is none or
    several, they go to the global tracer provider.
    """
    named = function is None or isinstance(function, str)
    if not (named or callable(function) or isinstance(function, classmethod)):
        raise TypeError(f"@traced expected a function or a span name, got {function!r:.80}")
    decorate = make_traced(_current_tracer, function if named else None, attributes)
    return decorate if named else decorate(function)


def _current_tracer() -> tuple[Tracer, Redactor]:
    found = _find_observability()
    if found is None:
        return trace.get_tracer("fastapi_observe"), DEFAULT_REDACTOR
    return found.tracing.tracer, found.redactor


@fail_safe("operation", return_no_op, CALLER_ERRORS)
def operation(name: str, /, **details: Any) -> Operation:
    """Measure a unit of work as `Observability.operation` does, in a module that is imported before `install`.

    `@operation("price order")` or `with operation("price order"):`. The operation belongs to the app whose request is
    being served when it starts, else to the only installed app. If there is none or several, it is not reported.
    """
    return new_operation(_DEFERRED, name, details)


@fail_safe("job", return_no_op, CALLER_ERRORS)
def job(name: str, /, headers: MessageHeaders | None = None) -> Job:
    """Measure work outside requests as `Observability.job` does, in a module that is imported before `install`.

    `@job("send mail")` or `with job("send mail", headers=message.headers):`. The job is reported to the app whose
    request is being served when it starts, else to the only installed app. If there is none or several, it is not.
    """
    return new_job(_find_observability, name, headers)


class _DeferredReporter:
    """Finds the app of an operation when the operation starts."""

    def on_operation_start(self, operation: Operation, /) -> None:
        """Find the app and report the start to it. A copy of the operation looks for its app again."""
        found = _find_observability()
        operation.reporter = _DEFERRED if found is None else _BoundReporter(found)
        if found is not None:
            found.on_operation_start(operation)

    def on_operation_end(self, operation: Operation, /) -> None:
        """Do nothing: the start was not reported."""


class _BoundReporter(_DeferredReporter):
    """Reports the end of an operation to the app that its start was reported to."""

    def __init__(self, observability: Observability) -> None:
        self._observability = observability

    def on_operation_end(self, operation: Operation, /) -> None:
        """Report the end."""
        self._observability.on_operation_end(operation)


_DEFERRED: Final = _DeferredReporter()


class _RenamedFunction(ModuleType):
    """A module that raises an error if it is called: a function had its name."""

    def __call__(self) -> NoReturn:
        raise TypeError("fastapi_observe.current() was renamed to fastapi_observe.get_observability()")


# `from fastapi_observe import current` returns this module, not an error: Python looks for submodules too.
sys.modules[__name__].__class__ = _RenamedFunction
