"""`Operation`: the record of one piece of work inside or outside a request."""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar, cast

from fastapi_observe.records.exceptions import error_type_of, exception_outcome
from fastapi_observe.records.guard import fail_safe, report_error, return_no_op
from fastapi_observe.records.wrapping import wrap_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from fastapi_observe.records.time_breakdown import TimeBreakdown
    from fastapi_observe.records.wrapping import CallScope

F = TypeVar("F", bound="Callable[..., Any]")


MAX_NAME_LENGTH: Final = 256
"""Characters of the name of an operation."""


class OperationReporter(Protocol):
    """Who is told when an operation opens and closes."""

    def on_operation_start(self, operation: Operation, /) -> None:
        """Tell every signal that the operation begins."""

    def on_operation_end(self, operation: Operation, /) -> None:
        """Tell every signal that the operation has ended."""


class Operation:
    """One piece of work, usable as `with`, as `async with` and as a decorator.

    `kind` is `database`, `external`, `background` or `operation` (the user's own). `labels` are low-cardinality names:
    they may become metric labels. `details` are high-cardinality facts: they go to the span and the log line only.
    `duration` is in seconds. `outcome` is `ok`, `error`, `cancelled`, `timeout` or what the client of the kind sets.
    `outer` is the operation inside which this one began, if it has not ended; `work` is where the request counts what
    it waits for. `started` is a time of `perf_counter`, 0 before the beginning.

    One object may be used again, and inside itself: each `with` after the first is an operation of its own. Where a
    block does not fit: `open`, then `suspend` and `resume` around what is not part of it, `close` at the end.
    """

    __slots__ = (
        "_built",
        "_given",
        "_origin",
        "_token",
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
        "scope",
        "span",
        "started",
        "work",
    )

    _built: dict[str, Any]
    _origin: Operation

    has_otel_details: ClassVar = False
    """Whether all details are short and of OpenTelemetry's types."""

    def __init__(
        self,
        reporter: OperationReporter,
        kind: str,
        name: str,
        labels: dict[str, str],
        details: Any = None,
    ) -> None:
        self.reporter = reporter
        self._given: Any = details  # a dict, never changed; clients of a kind keep what they make it of
        self.kind = kind
        self.name = name
        self.labels = labels
        self.outcome = ""
        self.error_type: str | None = None
        self.exception: BaseException | None = None
        self.duration = 0.0
        self.span: Any = None
        self.scope: CallScope | None = None
        self.parent: Operation | None = None
        self.work: TimeBreakdown | None = None
        self.started = 0.0
        self.ended = False
        self._token: Token[Operation | None] | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The high-cardinality facts, put together when a signal wants them."""
        try:
            return self._built
        except AttributeError:
            self._built = built = dict(self._given or ())
            return built

    @property
    def repetition_key(self) -> str:
        """What operations have in common that do the same."""
        return self.name

    @fail_safe("operation.detail")
    def add_details(self, /, **details: Any) -> None:
        """Add high-cardinality facts: they go to the span and the log line, never to a metric label."""
        self.details.update(details)

    def open(self) -> Self:
        """Begin; what is opened until `close` or `suspend` is inside. Raises `RuntimeError` the second time."""
        if self.started:
            raise RuntimeError(f"the operation {self.name!r:.80} has begun already: take again(), or use it as `with`")
        outer = CURRENT_OPERATION.get()
        if outer is not None and not outer.ended:
            self.parent = outer
        self._token = CURRENT_OPERATION.set(self)
        try:
            self.reporter.on_operation_start(self)
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            report_error("operation.open", exc, self.reporter)
        self.started = perf_counter()
        return self

    def suspend(self) -> None:
        """Stand aside: what was current before is current again, the operation goes on."""
        token, self._token = self._token, None
        if token is not None:
            try:  # noqa: SIM105 - suppress() costs more
                CURRENT_OPERATION.reset(token)
            except ValueError:  # left from another task: there is nothing to restore there
                pass
            if self.scope is not None:
                try:
                    self.scope.suspend()
                except Exception as exc:  # noqa: BLE001 - as above
                    report_error("operation.suspend", exc, self.reporter)

    def resume(self) -> None:
        """Be the current operation again."""
        self._token = CURRENT_OPERATION.set(self)
        if self.scope is not None:
            try:
                self.scope.resume()
            except Exception as exc:  # noqa: BLE001 - as above
                report_error("operation.resume", exc, self.reporter)

    def close(self, exc: BaseException | None = None) -> None:
        """End, with what was raised; a second call does nothing."""
        if self.ended:
            return
        self.duration = perf_counter() - self.started
        self.ended = True
        try:
            if exc is None:
                self.outcome = self.outcome or "ok"
            else:
                self._fail(exc)
        except Exception as fault:  # noqa: BLE001 - as above
            self.outcome = self.outcome or "error"
            report_error("operation.judge", fault, self.reporter)
        if self._token is not None:
            self.suspend()
        try:
            self.reporter.on_operation_end(self)
        except Exception as fault:  # noqa: BLE001 - as above
            report_error("operation.close", fault, self.reporter)
        self.parent = None

    def _fail(self, exc: BaseException) -> None:
        if isinstance(exc, GeneratorExit):  # the consumer of a generator had enough: nothing failed
            self.outcome = self.outcome or "ok"
            return
        self.exception = exc
        self.error_type = error_type_of(exc)
        self.outcome = self.outcome or self.outcome_for(exc)

    def outcome_for(self, exc: BaseException) -> str:
        """Name the outcome of work that ended with `exc`; clients of a kind know more."""
        return exception_outcome(exc)

    def is_nested(self) -> bool:
        """Tell whether this is part of an operation of the same kind, whose time and number include it."""
        outer = self.parent
        while outer is not None and not outer.ended:
            if outer.kind == self.kind:
                return True
            outer = outer.parent
        return False

    @fail_safe("operation.again", return_no_op)
    def copy(self) -> Operation:
        """Return an operation like this one, which has not begun: one for each call of a decorated function."""
        return type(self)(self.reporter, self.kind, self.name, self.labels, self._given)

    def __call__(self, function: F) -> F:
        """Decorate a function, coroutine function, generator or async generator: each call is one operation."""
        try:
            return cast("F", wrap_calls(function, self.copy))
        except TypeError:  # it cannot be decorated
            raise
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("operation.decorate", exc, self.reporter)
            return function

    def __enter__(self) -> Self:
        if not self.started:
            return self.open()
        try:
            again = cast("Self", self.copy())
            again._origin = self  # noqa: SLF001 - one of our own
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("operation.again", exc, self.reporter)
            return self
        return again.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        current = CURRENT_OPERATION.get()
        if current is not self and getattr(current, "_origin", None) is self:  # used again: close the one of this block
            current.close(exc)  # type: ignore[union-attr]
        else:
            self.close(exc)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, traceback)


def new_operation(reporter: OperationReporter, name: str, details: dict[str, Any]) -> Operation:
    """Return an operation of the user's own; raises as `Observability.operation` says."""
    if not isinstance(name, str):
        raise TypeError(f"operation() needs a name for the work, got {type(name).__name__}: give it a short text")
    if not name.strip():
        raise ValueError(f"operation() needs a name for the work, got {name!r}: give it a short text")
    redactor = getattr(reporter, "redactor", None)  # where no app is installed nothing is shown
    name = (name if redactor is None else redactor.name(name))[:MAX_NAME_LENGTH]
    return Operation(reporter, "operation", name, {"operation": name}, details)


CURRENT_OPERATION: Final[ContextVar[Operation | None]] = ContextVar("fastapi_observe.operation", default=None)
"""The operation that the calling code is part of; it may have ended."""
