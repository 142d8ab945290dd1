"""What is installed, for code far from the app: `get_observability()` and `@traced`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from opentelemetry import trace

from fastapi_observe.observability import INSTALLED
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe, report_error, return_no_op
from fastapi_observe.records.operation import new_operation
from fastapi_observe.records.request import current_record
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.traces.user_spans import make_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Tracer

    from fastapi_observe.observability import Observability
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.redaction.redactor import Redactor


def get_observability() -> Observability:
    """Return what is installed, for code far from any request object.

    Inside a request: that of its app. Outside: the only installed one; `RuntimeError` if there is none or several.
    """
    try:
        exchange = current_record()
    except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
        report_error("get_observability", exc)
        exchange = None
    if exchange is not None:
        found: Observability = exchange.observability
        return found
    if len(INSTALLED) == 1:
        return INSTALLED[0]
    if not INSTALLED:
        raise RuntimeError("fastapi-observe is not installed: call install(app) where the app is created")
    raise RuntimeError(
        f"{len(INSTALLED)} apps are installed in this process and no request is being served: "
        "use app.state.observe of the one you mean"
    )


F = TypeVar("F", bound="Callable[..., Any]")


@overload
def traced(function: F, /) -> F: ...


@overload
def traced(name: str | None = None, /, **attributes: Any) -> Callable[[F], F]: ...


def traced(function: Any = None, /, **attributes: Any) -> Any:
    """Decorate a function, coroutine function, generator or async generator: each call is a span.

    `@traced`, `@traced("price order")` or `@traced("price order", tier="gold")`; the name is the function's own unless
    given. Inside a request the spans go where its app's spans go, elsewhere where those of the only installed app go;
    if there is none or several, to the global tracer provider.
    """
    named = function is None or isinstance(function, str)
    if not (named or callable(function) or isinstance(function, classmethod)):
        raise TypeError(f"@traced needs a function or a name for its spans, got {function!r:.80}")
    decorate = make_traced(_current_tracer, function if named else None, attributes)
    return decorate if named else decorate(function)


def _current_tracer() -> tuple[Tracer, Redactor]:
    exchange = current_record()
    found: Observability | None = None
    if exchange is not None:
        found = exchange.observability
    elif len(INSTALLED) == 1:
        found = INSTALLED[0]
    if found is None:
        return trace.get_tracer("fastapi_observe"), DEFAULT_REDACTOR
    return found.tracing.tracer, found.redactor


@fail_safe("operation", return_no_op, CALLER_ERRORS)
def operation(name: str, /, **details: Any) -> Operation:
    """Measure a piece of work, as `Observability.operation` does, from a module that is imported before `install`.

    `@operation("price order")` or `with operation("price order"):`. It is told to the app whose request is served when
    it opens, elsewhere to the only installed one; if there is none or several, to nobody.
    """
    return new_operation(_DEFERRED, name, details)


class _DeferredReporter:
    """Stands for what is installed when an operation opens."""

    def on_operation_start(self, operation: Operation, /) -> None:
        """Hand the operation over to whoever it is told to; one like it looks anew."""
        exchange = current_record()
        found = exchange.observability if exchange is not None else INSTALLED[0] if len(INSTALLED) == 1 else None
        operation.reporter = _DEFERRED if found is None else _BoundReporter(found)
        if found is not None:
            found.on_operation_start(operation)

    def on_operation_end(self, operation: Operation, /) -> None:
        """Tell nobody: nothing was installed."""


class _BoundReporter(_DeferredReporter):
    """What was installed when one operation opened."""

    def __init__(self, found: Observability) -> None:
        self.found = found

    def on_operation_end(self, operation: Operation, /) -> None:
        """Tell who was told of the beginning."""
        self.found.on_operation_end(operation)


_DEFERRED: Final = _DeferredReporter()
