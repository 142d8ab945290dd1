"""What is installed, for code far from the app: `current()` and `@traced`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from opentelemetry import trace

from fastapi_observe.observability import OPEN
from fastapi_observe.records.guard import USERS, guarded, stand_in, tell
from fastapi_observe.records.operation import new_operation
from fastapi_observe.records.request import current_exchange
from fastapi_observe.redaction.redactor import PLAIN
from fastapi_observe.traces.user_spans import traced_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Tracer

    from fastapi_observe.observability import Observability
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.redaction.redactor import Redactor


def current() -> Observability:
    """Return what is installed, for code far from any request object.

    Inside a request: that of its app. Outside: the only installed one; `RuntimeError` if there is none or several.
    """
    try:
        exchange = current_exchange()
    except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
        tell("current", exc)
        exchange = None
    if exchange is not None:
        found: Observability = exchange.observability
        return found
    if len(OPEN) == 1:
        return OPEN[0]
    if not OPEN:
        raise RuntimeError("fastapi-observe is not installed: call install(app) where the app is created")
    raise RuntimeError(
        f"{len(OPEN)} apps are installed in this process and no request is being served: "
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
    decorate = traced_with(_current_owner, function if named else None, attributes)
    return decorate if named else decorate(function)


def _current_owner() -> tuple[Tracer, Redactor]:
    exchange = current_exchange()
    found: Observability | None = None
    if exchange is not None:
        found = exchange.observability
    elif len(OPEN) == 1:
        found = OPEN[0]
    if found is None:
        return trace.get_tracer("fastapi_observe"), PLAIN
    return found.tracing.tracer, found.redactor


@guarded("operation", stand_in, USERS)
def operation(name: str, /, **details: Any) -> Operation:
    """Measure a piece of work, as `Observability.operation` does, from a module that is imported before `install`.

    `@operation("price order")` or `with operation("price order"):`. It is told to the app whose request is served when
    it opens, elsewhere to the only installed one; if there is none or several, to nobody.
    """
    return new_operation(_INSTALLED, name, details)


class _Installed:
    """Stands for what is installed when an operation opens."""

    def open_operation(self, operation: Operation, /) -> None:
        """Hand the operation over to whoever it is told to; one like it looks anew."""
        exchange = current_exchange()
        found = exchange.observability if exchange is not None else OPEN[0] if len(OPEN) == 1 else None
        operation.reporter = _INSTALLED if found is None else _Found(found)
        if found is not None:
            found.open_operation(operation)

    def close_operation(self, operation: Operation, /) -> None:
        """Tell nobody: nothing was installed."""


class _Found(_Installed):
    """What was installed when one operation opened."""

    def __init__(self, found: Observability) -> None:
        self.found = found

    def close_operation(self, operation: Operation, /) -> None:
        """Tell who was told of the beginning."""
        self.found.close_operation(operation)


_INSTALLED: Final = _Installed()
