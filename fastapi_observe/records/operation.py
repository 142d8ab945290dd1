"""`Operation`: one measured unit of work, inside or outside a request."""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar, cast

from fastapi_observe.internal.errors import Renamed
from fastapi_observe.internal.opentelemetry import attach_context, current_context, detach_context
from fastapi_observe.records.exceptions import error_type_of, exception_outcome
from fastapi_observe.records.guard import fail_safe, report_error, return_no_op
from fastapi_observe.records.wrapping import AsyncWith, wrap_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from opentelemetry.context import Context

F = TypeVar("F", bound="Callable[..., Any]")


MAX_OPERATION_NAME_LENGTH: Final = 256
"""Maximum characters of the name of an operation."""


class OperationReporter(Protocol):
    """Receives the start and the end of operations."""

    def on_operation_start(self, operation: Operation, /) -> None:
        """Handle the start of an operation."""

    def on_operation_end(self, operation: Operation, /) -> None:
        """Handle the end of an operation."""


class Operation(AsyncWith):
    """A unit of work, usable with `with`, with `async with` and as a decorator.

    `kind` is `database`, `external`, `background` or `operation` (created by users). `labels` are names with few
    variants: they may become metric labels. `details` have many variants: they go to the span and the log line only.
    `duration` is in seconds. `outcome` is `ok`, `error`, `cancelled`, `timeout` or another value of the client.
    `parent` is the operation in which this one started, and `exception` the one that it ended with, until its end is
    reported. `started` is a time of `perf_counter`, 0 before the start. `context` is the OpenTelemetry context inside
    the operation, set by a signal at the start; None: that of the caller.

    An object may be used again, also inside itself: each `with` after the first runs a copy. Where a block does not
    fit, call `open`, then `suspend` and `resume` around code that does not belong to the operation, and `close`.
    """

    __slots__ = (
        "_built",
        "_context_token",
        "_given",
        "_origin",
        "_token",
        "context",
        "duration",
        "ended",
        "error_type",
        "exception",
        "kind",
        "labels",
        "name",
        "outcome",
        "parent",
        "reporter",
        "span",
        "started",
    )

    _built: dict[str, Any]
    _origin: Operation

    has_otel_details: ClassVar[bool] = False
    """Whether all details are short and of types that OpenTelemetry accepts as attributes."""

    sends_http: ClassVar[bool] = False
    """Whether it is a call of an instrumented HTTP client, which sends the request itself."""

    def __init__(
        self,
        reporter: OperationReporter,
        kind: str,
        name: str,
        labels: dict[str, str],
        details: Any = None,
    ) -> None:
        self.reporter = reporter
        self._given: Any = details  # a dict that is not modified; subclasses keep the parts of it
        self.kind = kind
        self.name = name
        self.labels = labels
        self.outcome = ""
        self.error_type: str | None = None
        self.exception: BaseException | None = None
        self.duration = 0.0
        self.span: Any = None
        self.context: Context | None = None
        self.parent: Operation | None = None
        self.started = 0.0
        self.ended = False
        self._token: Token[Operation | None] | None = None
        self._context_token: Token[Context] | None = None

    @property
    def details(self) -> dict[str, Any]:
        """Values with many variants. The dict is built when a signal first reads it."""
        try:
            return self._built
        except AttributeError:
            self._built = built = dict(self._given or ())
            return built

    @property
    def repetition_key(self) -> str:
        """A value that repeated operations have in common."""
        return self.name

    @fail_safe("operation.add_details")
    def add_details(self, /, **details: Any) -> None:
        """Add values with many variants. They go to the span and the log line, never to a metric label."""
        self.details.update(details)

    detail = Renamed("add_details")

    def open(self) -> Self:
        """Start, and become the parent of operations that start until `close` or `suspend`.

        Raises `RuntimeError` if it was already started.
        """
        if self.started:
            raise RuntimeError(
                f"operation {self.name!r:.80} was already started; use it as a context manager, or create a new one"
            )
        parent = CURRENT_OPERATION.get()
        if parent is not None and not parent.ended:
            self.parent = parent
        self._token = CURRENT_OPERATION.set(self)
        try:
            self.reporter.on_operation_start(self)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("operation.open", exc, self.reporter)
        if self.context is not None:
            self._context_token = attach_context(self.context)
        self.started = perf_counter()
        return self

    def suspend(self) -> None:
        """Make the operation and the context current again that were so before. This operation continues."""
        token, self._token = self._token, None
        context_token, self._context_token = self._context_token, None
        try:
            if context_token is not None:
                if not self.ended:
                    self.context = current_context()  # it may be that of a span inside, which continues
                detach_context(context_token)
            if token is not None:
                CURRENT_OPERATION.reset(token)
        except ValueError:  # left in another task, whose context has nothing to restore
            pass

    def resume(self) -> None:
        """Become the current operation again after `suspend`."""
        self._token = CURRENT_OPERATION.set(self)
        if self.context is not None:
            self._context_token = attach_context(self.context)

    def close(self, exc: BaseException | None = None) -> None:
        """End with the exception that was raised. Idempotent."""
        if self.ended:
            return
        self.duration = perf_counter() - self.started
        self.ended = True
        try:
            if exc is None:
                self.outcome = self.outcome or "ok"
            else:
                self._fail(exc)
        except Exception as error:  # noqa: BLE001 - as above
            self.outcome = self.outcome or "error"
            report_error("operation.outcome_for", error, self.reporter)
        if self._token is not None:
            self.suspend()
        try:
            self.reporter.on_operation_end(self)
        except Exception as error:  # noqa: BLE001 - as above
            report_error("operation.close", error, self.reporter)
        self.parent = self.context = self.exception = None  # records hold operations until their end

    def set_result(self, started: float, duration: float, exc: BaseException | None) -> None:
        """Describe what something else has measured: an operation that has ended, and is reported without a start."""
        self.started, self.duration, self.ended = started, duration, True
        if exc is None:
            self.outcome = self.outcome or "ok"
        else:
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        if isinstance(exc, GeneratorExit):  # the consumer closed a generator before its end: not an error
            self.outcome = self.outcome or "ok"
            return
        self.exception = exc
        self.error_type = error_type_of(exc)
        self.outcome = self.outcome or self.outcome_for(exc)

    def outcome_for(self, exc: BaseException) -> str:
        """Return the outcome of an operation that ended with `exc`. Subclasses recognize more exceptions."""
        return exception_outcome(exc)

    def is_nested(self) -> bool:
        """Return whether a parent has the same kind. Its time then includes this operation, which is not counted."""
        parent = self.parent
        while parent is not None and not parent.ended:
            if parent.kind == self.kind:
                return True
            parent = parent.parent
        return False

    @fail_safe("operation.copy", return_no_op)
    def copy(self) -> Operation:
        """Return a copy that is not started, such as for one call of a decorated function."""
        return type(self)(self.reporter, self.kind, self.name, self.labels, self._given)

    def __call__(self, function: F) -> F:
        """Decorate a function, coroutine function, generator or async generator: each call is one operation."""
        try:
            return cast("F", wrap_calls(function, self.copy))
        except TypeError:  # not a function: the caller's error
            raise
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("operation.decorate", exc, self.reporter)
            return function

    def __enter__(self) -> Self:
        if not self.started:
            return self.open()
        try:
            again = cast("Self", self.copy())
            again._origin = self  # noqa: SLF001 - the same class
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("operation.copy", exc, self.reporter)
            return self
        return again.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        current = CURRENT_OPERATION.get()
        if current is not self and getattr(current, "_origin", None) is self:  # used again: end the copy of this block
            current.close(exc)  # type: ignore[union-attr]
        else:
            self.close(exc)


class PartialReporter:
    """Reports the end of an operation to the signals that reported its start. Else it is the `Observability`."""

    def __init__(self, observability: Any, excluded: int) -> None:
        self._observability = observability
        self._excluded = excluded

    def on_operation_start(self, operation: Operation) -> None:
        """Report the start of a copy of the operation, which may be in another request."""
        operation.reporter = self._observability
        self._observability.on_operation_start(operation)

    def on_operation_end(self, operation: Operation) -> None:
        """Report the end."""
        self._observability.on_operation_end(operation, self._excluded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observability, name)


def new_operation(reporter: OperationReporter, name: str, details: dict[str, Any]) -> Operation:
    """Return an operation created by a user. Raises as described in `Observability.operation`."""
    require_name("operation", name)
    redactor = getattr(reporter, "redactor", None)  # without an installed app the operation is not reported
    name = (name if redactor is None else redactor.name(name))[:MAX_OPERATION_NAME_LENGTH]
    return Operation(reporter, "operation", name, {"operation": name}, details)


def require_name(function: str, name: object) -> None:
    """Raise `TypeError` if a name that a user has passed to a function is not a string, `ValueError` if it is empty."""
    if not isinstance(name, str):
        raise TypeError(f"{function}() expected a name as a string, got {type(name).__name__}")
    if not name.strip():
        raise ValueError(f"{function}() expected a name, got {name!r}; pass a short string")


CURRENT_OPERATION: Final[ContextVar[Operation | None]] = ContextVar("fastapi_observe.operation", default=None)
"""The operation in which the calling code runs. It may have ended."""

current_operation: Final = CURRENT_OPERATION.get
"""Returns the current operation. A bound method, as `current_context`."""
