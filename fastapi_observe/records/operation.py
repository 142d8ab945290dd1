"""`Operation`: the record of one piece of work inside or outside a request."""

from __future__ import annotations

import asyncio
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class OperationReporter(Protocol):
    """Who is told when an operation opens and closes."""

    def open_operation(self, operation: Operation, /) -> None:
        """Tell every signal that the operation begins."""

    def close_operation(self, operation: Operation, /) -> None:
        """Tell every signal that the operation has ended."""


class Operation:
    """One piece of work, usable as `with` and as `async with`.

    `kind` is `database`, `external` or `background`. `labels` are low-cardinality names: they may become metric
    labels. `details` are high-cardinality facts: they go to the span and the log line only. `duration` is in seconds.
    `outcome` is `ok`, `error`, `cancelled`, `timeout` or what the client of the kind sets.
    """

    __slots__ = (
        "_reporter",
        "_started",
        "details",
        "duration",
        "error_type",
        "exception",
        "kind",
        "labels",
        "name",
        "outcome",
        "scope",
        "span",
        "span_id",
        "started_ns",
        "trace_id",
    )

    def __init__(
        self,
        reporter: OperationReporter,
        kind: str,
        name: str,
        labels: dict[str, str],
        details: dict[str, Any] | None = None,
    ) -> None:
        self._reporter = reporter
        self.kind = kind
        self.name = name
        self.labels = labels
        self.details: dict[str, Any] = {} if details is None else details
        self.outcome = ""
        self.error_type: str | None = None
        self.exception: BaseException | None = None
        self.duration = 0.0
        self.started_ns = 0
        self._started = 0.0
        self.trace_id = ""
        self.span_id = ""
        self.span: Any = None
        self.scope: Any = None

    def detail(self, **details: Any) -> None:
        """Add high-cardinality facts: they go to the span and the log line, never to a metric label."""
        self.details.update(details)

    def __enter__(self) -> Self:
        self._reporter.open_operation(self)
        self.started_ns = self.started_ns or time_ns()
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.duration = perf_counter() - self._started
        if isinstance(exc, GeneratorExit):  # the consumer of a generator had enough: nothing failed
            exc = None
        if exc is not None:
            self.exception = exc
            self.error_type = error_name(exc)
        if not self.outcome:
            self.outcome = self.judge(exc)
        self._reporter.close_operation(self)

    def judge(self, exc: BaseException | None) -> str:
        """Name the outcome of work that ended with `exc`; clients of a kind know more."""
        return outcome_of(exc)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, traceback)


def error_name(exc: BaseException) -> str:
    """Return the `error_type` of an exception: its class name, with its module unless built in."""
    kind = type(exc)
    try:
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # noqa: BLE001 - a metaclass may override anything
        return str(type.__dict__["__qualname__"].__get__(kind))


def is_cancellation(exc: BaseException | None) -> bool:
    """Tell whether `exc` is a cancellation of asyncio or of trio."""
    return isinstance(exc, asyncio.CancelledError) or type(exc).__name__ == "Cancelled"


def outcome_of(exc: BaseException | None) -> str:
    """Name the outcome of work that ended with `exc`: `ok`, `cancelled`, `timeout` or `error`."""
    if exc is None:
        return "ok"
    if is_cancellation(exc):
        return "cancelled"
    return "timeout" if isinstance(exc, TimeoutError) else "error"
